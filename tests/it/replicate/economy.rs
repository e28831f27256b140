//! What is sent is what is new.

use std::sync::Arc;

use cairn_platform_api::{SetTime, Timestamp, Vfs};
use cairnfs::provider::Provider;
use cairnfs::provider::fs::FsProvider;
use tempfile::TempDir;

use super::device::noise;
use super::recorded::Recorded;
use super::world::World;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn small_change_of_a_file_of_a_gibibyte_sends_little_and_a_copy_of_it_metadata_only() {
    let folder = TempDir::new().expect("a temporary directory");
    let world = World::over(Arc::new(FsProvider::new(folder.path())));
    let (a, b) = (world.device("a"), world.device("b"));
    a.write_image("large", GIB);
    world.drain(&a);
    let first = world.remote_bytes();
    assert!(first > 16 * MIB, "the middle does not compress");

    a.write_at("large", GIB / 2, &noise(2, 4096));
    world.drain(&a);
    let changed = world.remote_bytes();
    assert!(changed - first <= 8 * MIB, "{} bytes for a change of 4 KiB", changed - first);

    let packs = world.objects("packs/");
    a.copy("large", "copy");
    world.drain(&a);
    let copied = world.remote_bytes() - changed;
    assert_eq!(world.objects("packs/"), packs, "a copy sent content");
    assert!(copied < MIB, "{copied} bytes for a copy");

    world.pull(&b);
    assert_eq!(b.hash("copy"), a.hash("large"));
}

#[test]
fn copies_on_two_devices_send_metadata_only() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let content = noise(1, 5 << 20);
    a.write("original", &content);
    world.exchange(&[&a, &b]);
    let (packs, bytes) = (world.objects("packs/"), world.remote_bytes());
    a.write("copy", &content);
    b.write("copy of b", &content);
    world.exchange(&[&a, &b]);
    assert_eq!(world.objects("packs/"), packs);
    let sent = world.remote_bytes() - bytes;
    assert!(sent < 64 << 10, "{sent} bytes for two copies");
    assert!(b.read("copy").expect("it is there") == content);
    assert_eq!(a.everything().len(), 3);
}

#[test]
fn temporary_files_leave_no_object_behind() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("d");
    a.write("d/document", b"version 1");
    world.exchange(&[&a, &b]);
    let before = world.objects("");
    let published = a.attributes("d").mtime;
    for round in 0..10 {
        a.write("d/scratch", &noise(round, 100_000));
        a.rename("d/scratch", "d/other");
        a.remove("d/other");
        a.mkdir("d/lock");
        a.rmdir("d/lock");
        a.rename("d/document", "d/moved");
        a.rename("d/moved", "d/document");
        if round % 3 == 0 {
            world.drain(&a);
        }
    }
    world.drain(&a);
    assert_eq!(world.objects(""), before, "what cancelled out left an object on the remote");
    let times = a.attributes("d");
    assert!(times.mtime > published, "a change of a directory shows in its times at once");
    let a = world.restart(a);
    world.drain(&a);
    assert_eq!(world.objects(""), before);
    assert_eq!(a.attributes("d"), times, "and after a restart");

    // It goes along with the next change.
    a.write("elsewhere", b"new");
    world.drain(&a);
    world.pull(&b);
    assert_eq!((b.attributes("d").mtime, b.attributes("d").ctime), (times.mtime, times.ctime));
    assert_eq!(b.everything(), a.everything());
}

#[test]
fn times_that_a_program_set_are_sent() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("d");
    world.exchange(&[&a, &b]);
    let old = SetTime::At(Timestamp::from_nanos(7));
    for (atime, mtime) in [(None, Some(old)), (Some(old), None), (None, Some(SetTime::Now)), (Some(old), Some(old))] {
        let before = world.objects("");
        a.write("d/scratch", b"gone soon");
        a.remove("d/scratch");
        a.set_times("d", atime, mtime);
        world.drain(&a);
        assert_eq!(world.objects(""), before + 1);
        world.pull(&b);
        assert_eq!(b.attributes("d"), a.attributes("d"));
    }
}

#[test]
fn times_of_a_directory_do_not_go_back_because_of_what_cancelled_out() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("d");
    world.exchange(&[&a, &b]);
    a.write("d/scratch", b"gone soon");
    a.remove("d/scratch");
    world.drain(&a);
    b.write("d/new", b"of b");
    world.drain(&b);
    world.pull(&a);
    assert_eq!(a.attributes("d").mtime, b.attributes("d").mtime, "a new name shows in the time of its directory");
    world.exchange(&[&a, &b]);
    assert_eq!(a.attributes("d"), b.attributes("d"));
}

#[test]
fn save_by_rename_costs_its_content_and_one_change() {
    let world = World::new();
    let a = world.device("a");
    a.write("document", b"version 1");
    world.drain(&a);
    let (packs, segments) = (world.objects("packs/"), world.objects("log/"));
    for round in 0..10 {
        a.write(".document.tmp", format!("version {round}").as_bytes());
        a.rename(".document.tmp", "document");
    }
    world.drain(&a);
    assert_eq!((world.objects("packs/"), world.objects("log/")), (packs + 1, segments + 1));
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.everything(), a.everything());
    assert_eq!(b.everything().len(), 1);
}

#[test]
fn many_small_files_share_objects() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for dir in 0..10u64 {
        a.mkdir(&format!("d{dir}"));
        for file in 0..1000 {
            a.write(&format!("d{dir}/f{file}"), &noise(dir * 1000 + file, 4096));
        }
    }
    world.exchange(&[&a, &b]);
    let objects = world.objects("");
    assert!(objects < 200, "{objects} objects for 10,000 files of 4 KiB");
    assert!(a.everything() == b.everything());
}

#[test]
fn file_larger_than_a_round_is_sent_in_slices_and_once() {
    let world = World::new();
    let a = world.device_of_slices("a", 5 << 20);
    a.write("large", &noise(1, 24 << 20));
    a.write("small", b"small");
    world.drain(&a);
    let sent = world.remote_bytes();
    assert!(sent < 26 * MIB, "{sent} bytes for a file of 24 MiB");
    let b = world.device("b");
    world.pull(&b);
    assert!(b.everything() == a.everything());
}

#[test]
fn long_logs_are_not_listed_again_and_again() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for number in 0..5 {
        a.write(&format!("a{number}"), b"of a");
        b.write(&format!("b{number}"), b"of b");
        world.exchange(&[&a, &b]);
    }
    let recorded = Recorded::new(Arc::clone(&world.remote));
    let c = world.device_of("c", Arc::clone(&recorded) as Arc<dyn Provider>, |settings| settings.whole_listing = 0);
    world.pull(&c);
    let record = recorded.take();
    assert_eq!((record.lists, record.gets_below("log/")), (2, 10), "checkpoints and logs, each segment");
    for _ in 0..3 {
        world.pull(&c);
        let record = recorded.take();
        assert_eq!((record.lists, record.listed, record.gets.len()), (3, 2, 0), "{record:?}");
    }
    a.write("new", b"of a");
    world.drain(&a);
    world.pull(&c);
    assert_eq!(c.read("new").expect("it is there"), b"of a");
    assert_eq!(recorded.take().gets_below("log/"), 1);

    // A device that nobody has heard of is found in time, and at once when somebody else has.
    let d = world.device("d");
    d.write("from d", b"of d");
    world.drain(&d);
    assert!((0..20).any(|_| {
        world.pull(&c);
        c.read("from d").is_ok()
    }));
    let e = world.device("e");
    e.write("from e", b"of e");
    world.exchange(&[&e, &a]);
    a.write("knows e", b"of a");
    world.drain(&a);
    (0..2).for_each(|_| world.pull(&c));
    assert_eq!(c.read("from e").expect("it is there"), b"of e");

    // A log that went back is noticed.
    world.alter_last(&format!("log/{}/", b.id()), |_| None);
    world.pull(&c);
    let halted = c.engine.status().expect("there is a status").devices.into_iter().filter_map(|device| device.halted);
    assert_eq!(halted.count(), 1);
}

// Elsewhere files can only be synced one by one.
#[cfg(target_os = "linux")]
#[test]
fn many_small_files_are_synced_together() {
    let world = World::new();
    let a = world.device("a");
    for file in 0..300 {
        a.write(&format!("f{file}"), &noise(file, 100));
    }
    if a.drive.sync_contents().expect("synced").is_none() {
        crate::skip::skipped("the temporary directory is on a file system whose files are synced one by one");
        return;
    }
    let before = a.drive.content_syncs();
    world.drain(&a);
    let syncs = a.drive.content_syncs() - before;
    assert!(syncs < 30, "{syncs} syncs for 300 files");
}

// Elsewhere holes are not told from zeros.
#[cfg(target_os = "linux")]
#[test]
fn holes_are_neither_read_nor_sent_nor_stored() {
    const LENGTH: u64 = 1 << 36;
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("sparse", b"begin");
    a.write_at("sparse", LENGTH - 3, b"end");
    world.drain(&a);
    assert!(world.remote_bytes() < MIB, "{} bytes for a hole", world.remote_bytes());
    world.pull(&b);
    let handle = b.open("sparse");
    let read = |offset| b.drive.read(handle, offset, 64 << 10).wait().expect("readable");
    assert!(read(0).starts_with(b"begin\0"));
    assert_eq!(read(LENGTH - 3), b"end");
    assert!(read(LENGTH / 2).iter().all(|byte| *byte == 0));
    let status = b.drive.getattr(b.ino("sparse"), None).expect("attributes");
    assert_eq!(status.size, LENGTH);
    b.drive.release(handle);
    let stored = std::fs::metadata(world.backing_file("b", b.ino("sparse"))).expect("it is there");
    assert!(std::os::unix::fs::MetadataExt::blocks(&stored) * 512 < 20 * MIB, "{stored:?}");
}
