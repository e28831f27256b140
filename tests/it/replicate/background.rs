//! The tasks: rounds without anybody calling them, drain, pause, and tasks that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairnfs::replicate::{CheckpointPolicy, DrainError, ReplicateSettings, Replicator};

use super::device::Device;
use super::world::World;
use crate::patience::eventually;

fn start(world: &World, device: &Device) -> Replicator {
    Replicator::start(Arc::clone(&device.drive), &device.fetcher, ReplicateSettings::default(), world.runtime.handle())
}

#[test]
fn what_was_drained_shows_on_the_other_device_by_itself() {
    // What was drained is to show within five seconds.
    assert!(ReplicateSettings::default().pull_interval <= Duration::from_secs(3));
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let (replicator_a, replicator_b) = (start(&world, &a), start(&world, &b));
    a.write("file", b"content");
    let mut last = None;
    world.runtime.block_on(replicator_a.drain(|progress| last = Some(progress))).expect("it drains");
    assert!(last.is_some(), "there is progress");
    assert!(replicator_a.status().expect("there is a status").is_drained());
    eventually("b shows the file", || b.read("file").is_ok_and(|content| content == b"content"));
    b.write("answer", b"from b");
    world.runtime.block_on(replicator_b.drain(|_| {})).expect("it drains");
    eventually("a shows the answer", || a.read("answer").is_ok_and(|content| content == b"from b"));
    world.runtime.block_on(replicator_a.stop());
    world.runtime.block_on(replicator_b.stop());
}

#[test]
fn paused_replication_sends_nothing_and_says_so() {
    let world = World::new();
    let a = world.device("a");
    let replicator = start(&world, &a);
    replicator.pause();
    a.write("file", b"content");
    let drained = world.runtime.block_on(replicator.drain(|_| {}));
    assert!(matches!(drained, Err(DrainError::Paused)), "{drained:?}");
    assert!(replicator.status().expect("there is a status").paused);
    assert_eq!(world.objects("log/"), 0);
    replicator.resume();
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    assert_ne!(world.objects("log/"), 0);
    world.runtime.block_on(replicator.stop());
    let drained = world.runtime.block_on(replicator.drain(|_| {}));
    assert!(matches!(drained, Err(DrainError::Stopped)), "{drained:?}");
}

#[test]
fn checkpoint_is_written_by_itself_once_enough_segments_have_come() {
    let world = World::new();
    let a = world.device("a");
    let checkpoint = CheckpointPolicy { segments: 2, bytes: u64::MAX };
    let settings = ReplicateSettings { checkpoint, ..ReplicateSettings::default() };
    let replicator = Replicator::start(Arc::clone(&a.drive), &a.fetcher, settings, world.runtime.handle());
    a.write("one", b"1");
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    a.write("two", b"2");
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    eventually("there is a checkpoint", || world.objects("checkpoints/") == 1);
    world.runtime.block_on(replicator.stop());
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.everything(), a.everything());
}

#[test]
fn new_device_that_drains_at_once_begins_with_the_checkpoint() {
    let world = World::new();
    let a = world.device_of("a", Arc::clone(&world.remote), |settings| {
        settings.checkpoint = CheckpointPolicy { segments: 1, bytes: u64::MAX };
    });
    a.write("theirs", b"from a");
    world.drain(&a);
    assert!(world.runtime.block_on(a.engine.checkpoint_round()).expect("it is written").written);
    // Who replays the logs does not find them.
    while world.objects("log/") > 0 {
        world.alter_last("log/", |_| None);
    }
    let b = world.device("b");
    b.write("mine", b"from b");
    let replicator = start(&world, &b);
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    assert_eq!(b.everything().len(), 2);
    assert_eq!(replicator.status().expect("there is a status").waits_for, None);
    world.runtime.block_on(replicator.stop());
}

#[test]
fn task_that_panics_is_reported_and_started_again() {
    let world = World::new();
    let a = world.device("a");
    let replicator = start(&world, &a);
    let panicked = Arc::new(AtomicBool::new(false));
    replicator.engine().failpoints.set_hook({
        let panicked = Arc::clone(&panicked);
        move |step| {
            if step == "push.in_cut" && !panicked.swap(true, Ordering::SeqCst) {
                panic!("a test makes the cut fail");
            }
            Ok(())
        }
    });
    a.write("file", b"content");
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    assert!(panicked.load(Ordering::SeqCst));
    assert!(replicator.status().expect("there is a status").last_error.is_none(), "it was made good");
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.everything(), a.everything());
    world.runtime.block_on(replicator.stop());
}
