//! A new device begins with a checkpoint, and what goes wrong with one costs nothing but time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cairnfs::provider::faults::{FaultInjection, FaultSettings, Faults};
use cairnfs::provider::fs::FsProvider;
use cairnfs::provider::{ObjectPath, Provider, PutMode};
use cairnfs::replicate::{CheckpointPolicy, Checkpointed, ReplicateError, Stopped, Urgency};
use cairnfs::vault::{Checkpoint, Segment, paths};
use tempfile::TempDir;

use super::device::{Device, noise};
use super::recorded::Recorded;
use super::world::World;

/// A device that writes a checkpoint after every segment, when it is asked to.
fn eager(world: &World, name: &str) -> Device {
    world.device_of(name, Arc::clone(&world.remote), |settings| {
        settings.checkpoint = CheckpointPolicy { segments: 1, bytes: u64::MAX };
    })
}

fn checkpoint(world: &World, device: &Device) -> Checkpointed {
    world.runtime.block_on(device.engine.checkpoint_round()).expect("a checkpoint is written")
}

fn write_checkpoint(world: &World, device: &Device) -> Checkpoint {
    assert!(checkpoint(world, device).written);
    read_checkpoint(world, device)
}

/// The last that a device wrote.
fn read_checkpoint(world: &World, device: &Device) -> Checkpoint {
    let path = last_of(world, device);
    let (device, seq) = paths::parse_checkpoint(&path).expect("it is a checkpoint");
    let object = world.runtime.block_on(world.remote.get(&path, None)).expect("it is there");
    Checkpoint::open(world.vault.keys(), device, seq, &object).expect("it is whole")
}

/// Both write: when a has looked for checkpoints of others and is about to store its own, b stores one.
fn write_at_once(world: &World, a: &Device, b: &Device) {
    let (engine, runtime) = (Arc::clone(&b.engine), world.runtime.handle().clone());
    a.engine.failpoints.set_hook(move |step| {
        if step == "checkpoint.before_object" {
            let (engine, runtime) = (Arc::clone(&engine), runtime.clone());
            let round = std::thread::spawn(move || runtime.block_on(engine.checkpoint_round()));
            assert!(round.join().expect("it does not panic").expect("a checkpoint is written").written);
        }
        Ok(())
    });
    assert!(checkpoint(world, a).written);
    a.engine.failpoints.set_hook(|_| Ok(()));
}

fn last_of(world: &World, device: &Device) -> ObjectPath {
    world.last(&format!("checkpoints/{}/", device.id()))
}

fn remove(world: &World, path: &ObjectPath) {
    world.runtime.block_on(world.remote.delete(path)).expect("it can be removed");
}

fn remove_covered(world: &World, checkpoint: &Checkpoint) {
    for covered in &checkpoint.covers {
        (1..=covered.seq).for_each(|seq| remove(world, &paths::segment(covered.device, seq)));
    }
}

fn trouble(device: &Device) -> String {
    let status = device.engine.status().expect("there is a status");
    status.last_error.map(|trouble| trouble.message).unwrap_or_default()
}

/// Pulls; the last that the status told of meanwhile, when logs were about to be folded.
fn pull_and_listen(world: &World, device: &Device) -> String {
    let told = Arc::new(Mutex::new(String::new()));
    let (heard, engine) = (Arc::clone(&told), Arc::downgrade(&device.engine));
    device.engine.failpoints.set_hook(move |step| {
        if step == "pull.before_fold" {
            let status = engine.upgrade().and_then(|engine| engine.status().ok());
            let trouble = status.and_then(|status| status.last_error).map(|trouble| trouble.message);
            *heard.lock().expect("nobody panics") = trouble.unwrap_or_default();
        }
        Ok(())
    });
    world.pull(device);
    device.engine.failpoints.set_hook(|_| Ok(()));
    told.lock().expect("nobody panics").clone()
}

#[test]
fn new_device_reads_the_checkpoint_and_not_the_segments_that_it_covers() {
    let dir = TempDir::new().expect("a temporary directory");
    let world = World::over(Arc::new(FsProvider::new(dir.path())));
    let (a, b) = (eager(&world, "a"), eager(&world, "b"));
    a.mkdir("docs");
    a.write("docs/plan", &noise(1, 300_000));
    a.write("both", b"base");
    world.exchange(&[&a, &b]);
    a.write("both", b"from a");
    b.write("both", b"from b");
    b.mkdir("docs/more");
    b.rename("docs/plan", "docs/more/plan");
    world.exchange(&[&a, &b, &a]);
    a.remove("both");
    world.exchange(&[&a, &b]);
    write_at_once(&world, &a, &b);
    assert_eq!(world.objects("checkpoints/"), 2);
    let covered = read_checkpoint(&world, &b);
    assert!(covered.covers.len() == 2 && covered.covers == read_checkpoint(&world, &a).covers);
    assert!(!checkpoint(&world, &a).written, "nothing has come since");
    b.write("after", b"the checkpoint");
    world.drain(&b);
    world.pull(&a);
    remove_covered(&world, &covered);

    let recorded = Recorded::new(Arc::clone(&world.remote));
    let c = world.device_over("c", Arc::clone(&recorded) as Arc<dyn Provider>);
    world.pull(&c);
    let record = recorded.take();
    assert_eq!(record.gets_below("log/"), world.objects("log/"), "{record:?}");
    assert_eq!(record.gets_below("log/"), 1, "what came after the checkpoint");
    assert!(c.everything() == a.everything());
    assert!(c.everything().len() >= 4);
    assert_eq!(trouble(&c), "");

    // It is a device like any other from then on.
    c.write("docs/more/plan", b"from c");
    world.drain(&c);
    let d = world.device("d");
    world.pull(&d);
    assert_eq!(d.read("docs/more/plan").expect("it was changed"), b"from c");
    let c = world.restart(c);
    world.pull(&c);
    assert!(c.everything() == d.everything());
}

#[test]
fn what_a_new_device_made_before_it_joined_is_kept_and_merged() {
    let world = World::new();
    let (a, joiner) = (eager(&world, "a"), world.device("joiner"));
    a.mkdir("shared");
    a.write("shared/a", b"from a");
    a.write("name", b"from a");
    world.drain(&a);
    remove_covered(&world, &write_checkpoint(&world, &a));
    joiner.mkdir("shared");
    joiner.write("shared/mine", b"mine");
    joiner.write("name", b"mine");
    world.pull(&joiner);
    let seen = joiner.everything();
    assert_eq!(seen.len(), 5, "{:?}", seen.keys());
    world.drain(&joiner);
    let third = world.device("third");
    world.pull(&third);
    assert!(third.everything() == seen);
}

#[test]
fn what_is_made_before_the_first_pull_waits_for_the_checkpoint() {
    let world = World::new();
    let a = eager(&world, "a");
    a.write("a", b"from a");
    world.drain(&a);
    remove_covered(&world, &write_checkpoint(&world, &a));
    let faults = FaultInjection::new(1);
    let recorded = Recorded::new(Arc::new(Faults::new(Arc::clone(&world.remote), faults.clone())));
    let b = world.device_over("b", Arc::clone(&recorded) as Arc<dyn Provider>);
    b.write("b", b"from b");
    let waits = || b.engine.status().expect("there is a status").waits_for.unwrap_or_default();

    faults.set(FaultSettings { error: 1.0, ..FaultSettings::default() });
    let pushed = world.runtime.block_on(b.engine.push_round(Urgency::Drain));
    assert!(matches!(pushed, Err(ReplicateError::Provider(_))), "{pushed:?}");
    assert_eq!(b.read("b").expect("it is here"), b"from b");
    assert!(waits().contains("not read yet"), "{}", waits());

    faults.set(FaultSettings::default());
    for round in 0..3 {
        recorded.take();
        let pushed = world.runtime.block_on(b.engine.push_round(Urgency::Drain)).expect("contents are sent");
        assert!(pushed.segments == 0 && pushed.waits, "{pushed:?}");
        let looked = recorded.take().lists_of("checkpoints/");
        assert_eq!(looked, usize::from(round == 0), "it looks once whether there is a checkpoint");
    }
    assert_eq!(world.objects("log/"), 0);
    let failed = Arc::new(AtomicUsize::new(0));
    b.engine.failpoints.set_hook(move |step| match step {
        "join.before_end" if failed.fetch_add(1, Ordering::SeqCst) == 0 => Err(Stopped("join.before_end")),
        _ => Ok(()),
    });
    assert!(world.runtime.block_on(b.engine.pull_round()).is_err());
    assert!(waits().contains("being loaded"), "{}", waits());
    world.pull(&b);
    assert_eq!(waits(), "");
    world.drain(&b);
    let c = world.device("c");
    world.pull(&c);
    assert_eq!(c.everything().len(), 2);
    assert!(c.everything() == b.everything());
}

#[test]
fn log_that_does_not_continue_what_the_checkpoint_covers_is_not_read() {
    let world = World::new();
    let a = eager(&world, "a");
    a.write("file", b"content");
    world.drain(&a);
    let covered = write_checkpoint(&world, &a).covers[0];
    let forged = Segment {
        device: covered.device,
        seq: covered.seq + 1,
        previous: [9; 32],
        seen: Vec::new(),
        device_name: "a".to_owned(),
        change_sets: Vec::new(),
        manifests: Vec::new(),
        chunks: Vec::new(),
    };
    let (object, _) = forged.seal(world.vault.keys()).expect("it is small");
    let path = paths::segment(forged.device, forged.seq);
    world.runtime.block_on(world.remote.put(&path, object, PutMode::IfAbsent)).expect("it is stored");
    let joiner = world.device("joiner");
    world.pull(&joiner);
    assert_eq!(joiner.read("file").expect("the checkpoint has it"), b"content");
    let halted = joiner.engine.status().expect("there is a status").devices.remove(0).halted.unwrap_or_default();
    assert!(halted.contains("does not continue"), "{halted}");
}

/// Spoils a checkpoint, given its path and the packs that only it has.
type Spoil = fn(&World, &ObjectPath, &[ObjectPath]);

fn alter(world: &World, path: &ObjectPath, alter: impl FnOnce(&mut Vec<u8>)) {
    let mut body = world.runtime.block_on(world.remote.get(path, None)).expect("it can be read").to_vec();
    alter(&mut body);
    world.runtime.block_on(world.remote.put(path, Bytes::from(body), PutMode::Overwrite)).expect("it is stored");
}

const SPOILS: [(&str, Spoil); 6] = [
    ("altered", |world, path, _| alter(world, path, |body| body[100] ^= 1)),
    ("cut short", |world, path, _| alter(world, path, |body| body.truncate(body.len() / 2))),
    ("newer", |world, path, _| alter(world, path, |body| body[8] = 2)),
    ("without a pack", |world, _, packs| packs.iter().for_each(|pack| remove(world, pack))),
    ("with a pack cut short", |world, _, packs| {
        packs.iter().for_each(|pack| alter(world, pack, |body| body.truncate(40)));
    }),
    ("with an altered pack", |world, _, packs| {
        packs.iter().for_each(|pack| alter(world, pack, |body| body.iter_mut().for_each(|byte| *byte ^= 1)));
    }),
];

#[test]
fn checkpoint_that_cannot_be_used_is_passed_over_for_an_older_one_and_at_last_the_logs() {
    for (how, spoil) in SPOILS {
        let world = World::new();
        let a = eager(&world, "a");
        a.write("first", &noise(1, 1000));
        world.drain(&a);
        let first = write_checkpoint(&world, &a);
        let first_path = last_of(&world, &a);
        a.write("second", b"2");
        world.drain(&a);
        let second = write_checkpoint(&world, &a);
        let spoil = |path: &ObjectPath, checkpoint: &Checkpoint| {
            let packs: Vec<_> = checkpoint.chunks.iter().map(|(_, location)| paths::pack(&location.pack)).collect();
            spoil(&world, path, &packs);
        };
        spoil(&last_of(&world, &a), &second);

        let recorded = Recorded::new(Arc::clone(&world.remote));
        let b = world.device_over("b", Arc::clone(&recorded) as Arc<dyn Provider>);
        let told = pull_and_listen(&world, &b);
        assert!(b.everything() == a.everything(), "{how}");
        let since = (world.objects("log/") as u64 - first.covers[0].seq) as usize;
        let record = recorded.take();
        assert_eq!(record.gets_below("log/"), since, "{how}: {told}: {record:?}");
        assert!(told.contains("checkpoints/"), "{how}: {told}");
        assert_eq!(trouble(&b), "", "{how}: it was made good for");

        spoil(&first_path, &first);
        let c = world.device("c");
        let told = pull_and_listen(&world, &c);
        assert!(c.everything() == a.everything(), "{how}");
        assert!(told.contains("logs are read"), "{how}: {told}");
        assert_eq!(trouble(&c), "", "{how}: it was made good for");
    }
}

#[test]
fn checkpoint_whose_rows_are_not_rows_is_refused() {
    let world = World::new();
    let a = eager(&world, "a");
    a.write("file", b"content");
    world.drain(&a);
    let whole = write_checkpoint(&world, &a);
    // Sealed by somebody who has the keys: its own rows without the first chunk.
    let mut rows = whole.rows.clone();
    rows.chunks.push(rows.chunks[0]);
    rows.size += u64::from(rows.chunks[0].len);
    let odd = Checkpoint { seq: whole.seq + 1, rows, ..whole };
    let object = odd.seal(world.vault.keys()).expect("it is small");
    let path = paths::checkpoint(odd.device, odd.seq);
    world.runtime.block_on(world.remote.put(&path, object, PutMode::IfAbsent)).expect("it is stored");
    a.write("after", b"the checkpoint");
    world.drain(&a);
    let b = world.device("b");
    let told = pull_and_listen(&world, &b);
    assert!(b.everything() == a.everything());
    assert!(told.contains(path.as_str()), "{told}");
}

/// Directories with names that do not compress, of which a checkpoint has many chunks.
fn many_directories(device: &Device) {
    for number in 0..3000u64 {
        let name: String = noise(number, 100).iter().map(|byte| format!("{byte:02x}")).collect();
        device.mkdir(&name);
    }
}

#[test]
fn next_checkpoint_of_a_large_tree_costs_little_and_a_load_that_broke_off_goes_on() {
    let world = World::new();
    let a = eager(&world, "a");
    a.mkdir("d");
    a.write("d/file", b"content");
    many_directories(&a);
    world.drain(&a);
    let before = world.remote_bytes();
    let first = write_checkpoint(&world, &a);
    let of_first = world.remote_bytes() - before;
    assert!(first.rows.chunks.len() > 20, "{} chunks", first.rows.chunks.len());
    a.write("one more", b"file");
    world.drain(&a);
    let before = world.remote_bytes();
    let last = write_checkpoint(&world, &a);
    let of_second = world.remote_bytes() - before;
    assert!(of_second * 2 < of_first, "{of_second} bytes after {of_first}");

    let recorded = Recorded::new(Arc::clone(&world.remote));
    let b = world.device_over("b", Arc::clone(&recorded) as Arc<dyn Provider>);
    let passed = AtomicUsize::new(0);
    let limit = last.rows.chunks.len() * 3 / 4;
    b.engine.failpoints.set_hook(move |step| match step {
        "join.after_chunk" if passed.fetch_add(1, Ordering::SeqCst) == limit => Err(Stopped("join.after_chunk")),
        _ => Ok(()),
    });
    let pulled = world.runtime.block_on(b.engine.pull_round());
    assert!(matches!(pulled, Err(ReplicateError::Stopped(_))), "{pulled:?}");
    assert!(b.everything().is_empty(), "half a tree is not seen");
    b.write("meanwhile", b"written while the checkpoint is loaded");
    let pushed = world.runtime.block_on(b.engine.push_round(Urgency::Drain)).expect("contents are sent");
    assert!(pushed.segments == 0 && pushed.waits, "{pushed:?}");

    let b = world.restart_over(b, Arc::clone(&recorded) as Arc<dyn Provider>);
    let chunks = Arc::new(AtomicUsize::new(0));
    b.engine.failpoints.set_hook({
        let chunks = Arc::clone(&chunks);
        move |step| {
            chunks.fetch_add(usize::from(step == "join.after_chunk"), Ordering::SeqCst);
            Ok(())
        }
    });
    world.pull(&b);
    let loaded = chunks.load(Ordering::SeqCst);
    assert!(loaded > 0 && loaded < last.rows.chunks.len(), "{loaded} of {} chunks", last.rows.chunks.len());
    assert_eq!(recorded.take().gets_below("log/"), 0);
    world.drain(&b);
    world.pull(&a);
    assert_eq!(a.read("meanwhile").expect("it was published"), b"written while the checkpoint is loaded");
    assert!(a.everything() == b.everything());
}

/// Has a new device load half of the last checkpoint.
fn load_half(world: &World, name: &str, chunks: usize) -> Device {
    let device = world.device(name);
    let passed = AtomicUsize::new(0);
    device.engine.failpoints.set_hook(move |step| match step {
        "join.after_chunk" if passed.fetch_add(1, Ordering::SeqCst) == chunks / 2 => Err(Stopped("join.after_chunk")),
        _ => Ok(()),
    });
    let pulled = world.runtime.block_on(device.engine.pull_round());
    assert!(matches!(pulled, Err(ReplicateError::Stopped(_))), "{pulled:?}");
    device
}

#[test]
fn load_that_broke_off_goes_on_although_another_checkpoint_covers_more() {
    let world = World::new();
    let a = eager(&world, "a");
    many_directories(&a);
    world.drain(&a);
    let first = write_checkpoint(&world, &a);
    let chunks = first.rows.chunks.len();
    let path = last_of(&world, &a);
    let (b, c) = (load_half(&world, "b", chunks), load_half(&world, "c", chunks));
    a.write("one more", b"file");
    world.drain(&a);
    write_checkpoint(&world, &a);

    let loaded = Arc::new(AtomicUsize::new(0));
    let b = world.restart(b);
    b.engine.failpoints.set_hook({
        let loaded = Arc::clone(&loaded);
        move |step| {
            loaded.fetch_add(usize::from(step == "join.after_chunk"), Ordering::SeqCst);
            Ok(())
        }
    });
    world.pull(&b);
    let loaded = loaded.load(Ordering::SeqCst);
    assert!(loaded > 0 && loaded < chunks, "{loaded} of {chunks} chunks");
    assert!(b.everything() == a.everything());

    remove(&world, &path);
    let c = world.restart(c);
    world.pull(&c);
    assert!(c.everything() == a.everything(), "what was loaded of one that is gone does no harm");
}

#[test]
fn checkpoint_that_fails_fails_no_push_and_sends_its_packs_once() {
    let world = World::new();
    let a = eager(&world, "a");
    a.write("file", b"content");
    world.drain(&a);
    a.engine.failpoints.set_hook(|step| match step {
        "checkpoint.before_object" => Err(Stopped("checkpoint.before_object")),
        _ => Ok(()),
    });
    let failed = world.runtime.block_on(a.engine.checkpoint_round());
    assert!(matches!(failed, Err(ReplicateError::Stopped(_))), "{failed:?}");
    assert_eq!(world.objects("checkpoints/"), 0);
    let packs = world.objects("packs/");
    a.close();
    let a = eager(&world, "a");
    let done = checkpoint(&world, &a);
    assert!(done.written && done.packs == 0, "{done:?}");
    assert_eq!((world.objects("packs/"), world.objects("checkpoints/")), (packs, 1));
}

#[test]
fn checkpoint_covers_nothing_that_is_not_on_the_remote() {
    let world = World::new();
    let a = eager(&world, "a");
    a.write("file", b"content");
    a.engine.failpoints.set_hook(|step| match step {
        "push.after_flush" => Err(Stopped("push.after_flush")),
        _ => Ok(()),
    });
    assert!(world.runtime.block_on(a.engine.push_round(Urgency::Drain)).is_err());
    assert!(!checkpoint(&world, &a).written, "a segment waits to be sent");
    a.engine.failpoints.set_hook(|_| Ok(()));
    world.drain(&a);
    assert!(checkpoint(&world, &a).written);
}

#[test]
fn who_finds_when_about_to_store_a_checkpoint_that_another_came_first_stores_none() {
    let world = World::new();
    let (a, b) = (eager(&world, "a"), eager(&world, "b"));
    a.write("file", b"content");
    world.exchange(&[&a, &b]);
    let (engine, runtime) = (Arc::clone(&b.engine), world.runtime.handle().clone());
    a.engine.failpoints.set_hook(move |step| {
        if step == "checkpoint.after_pack_rows" {
            let (engine, runtime) = (Arc::clone(&engine), runtime.clone());
            let round = std::thread::spawn(move || runtime.block_on(engine.checkpoint_round()));
            assert!(round.join().expect("it does not panic").expect("a checkpoint is written").written);
        }
        Ok(())
    });
    assert!(!checkpoint(&world, &a).written);
    a.engine.failpoints.set_hook(|_| Ok(()));
    assert_eq!(world.objects("checkpoints/"), 1);
    assert!(!checkpoint(&world, &a).written, "it knows the other");
    a.write("more", b"content");
    world.drain(&a);
    assert!(checkpoint(&world, &a).written);
    let c = world.device("c");
    world.pull(&c);
    assert!(c.everything() == a.everything());
}

#[test]
fn devices_that_find_a_checkpoint_of_another_write_none() {
    let world = World::new();
    let (a, b) = (eager(&world, "a"), eager(&world, "b"));
    a.write("file", b"content");
    world.exchange(&[&a, &b]);
    assert!(checkpoint(&world, &a).written);
    assert!(!checkpoint(&world, &b).written);
    assert_eq!(world.objects("checkpoints/"), 1);
}
