//! A pull comes while a file that was changed here is being read or sent, and brings another version of it: what was read
//! cannot be published as it was begun, and whoever waits for it must not be told that it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_platform_api::Vfs;
use cairnfs::replicate::Urgency;

use super::world::World;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    StaysOpen,
    HasClosed,
}

fn overtaken_at(step: &'static str, writer: Writer) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", b"old content");
    world.exchange(&[&a, &b, &a]);
    let handle = b.open_for_writing("file");
    a.write("file", b"theirs, which is longer");
    world.drain(&a);
    b.write_through(handle, 0, b"OURS");
    let pulled = Arc::new(AtomicBool::new(false));
    let (engine, runtime) = (Arc::downgrade(&b.engine), world.runtime.handle().clone());
    b.engine.failpoints.set_hook({
        let pulled = Arc::clone(&pulled);
        move |at| {
            if at == step && !pulled.swap(true, Ordering::SeqCst) {
                let (engine, runtime) = (engine.upgrade().expect("it is pushing"), runtime.clone());
                let pull = std::thread::spawn(move || runtime.block_on(engine.pull_round()).map(|_| ()));
                pull.join().expect("no panic").expect("pulled");
            }
            Ok(())
        }
    });
    if writer == Writer::HasClosed {
        b.drive.release(handle);
    }
    let drained = world.runtime.block_on(b.engine.push_round(Urgency::Drain)).expect("drained");
    assert!(pulled.load(Ordering::SeqCst), "{step} was passed");
    assert!(drained.left.is_empty(), "{drained:?}");
    world.pull(&a);
    let contents: Vec<_> = a.everything().into_values().flatten().collect();
    assert!(contents.iter().any(|content| content.starts_with(b"OURS")), "{step}: what was drained is not there");
    assert!(contents.iter().any(|content| content.starts_with(b"theirs")), "{step}: the other version is lost");
}

#[test]
fn a_file_that_a_pull_overtakes_while_it_is_read_is_sent_in_the_same_drain() {
    overtaken_at("push.in_read", Writer::StaysOpen);
}

#[test]
fn a_file_that_a_pull_overtakes_while_it_is_sent_is_sent_in_the_same_drain() {
    overtaken_at("push.after_pack_rows", Writer::HasClosed);
}
