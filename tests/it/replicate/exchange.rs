//! What one device does the others show.

use cairn_platform_api::Vfs;
use cairnfs::replicate::Stopped;

use super::device::noise;
use super::world::{World, drain};

#[test]
fn what_one_device_does_the_other_shows() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("docs");
    a.write("docs/plan.txt", b"first");
    a.write("empty", b"");
    world.exchange(&[&a, &b]);
    assert_eq!(b.everything(), a.everything());
    assert_eq!(b.read("docs/plan.txt").expect("it is there"), b"first");

    b.write("docs/plan.txt", b"second");
    b.rename("docs/plan.txt", "docs/done.txt");
    b.write("from b", &[7; 100_000]);
    b.remove("empty");
    world.exchange(&[&b, &a]);
    assert_eq!(a.everything(), b.everything());
    assert_eq!(a.read("docs/done.txt").expect("it was renamed"), b"second");
    assert!(a.read("empty").is_err());
}

#[test]
fn concurrent_edits_of_a_file_are_both_kept() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("report.txt", b"base");
    world.exchange(&[&a, &b]);
    a.write("report.txt", b"from a");
    b.write("report.txt", b"from b");
    world.exchange(&[&a, &b, &a]);
    assert_eq!(a.everything(), b.everything());
    let mut contents: Vec<Vec<u8>> = a.everything().into_values().flatten().collect();
    contents.sort();
    assert_eq!(contents, [b"from a".to_vec(), b"from b".to_vec()]);
}

#[test]
fn equal_edits_are_no_conflict() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("notes", b"base");
    world.exchange(&[&a, &b]);
    a.write("notes", b"the same");
    b.write("notes", b"the same");
    world.drain(&a);
    world.drain(&b);
    world.exchange(&[&a, &b]);
    assert_eq!(a.everything(), b.everything());
    assert_eq!(a.everything().len(), 1);
}

#[test]
fn file_changed_here_survives_its_removal_there() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("kept", b"base");
    a.write("gone", b"base");
    world.exchange(&[&a, &b]);
    a.remove("kept");
    a.remove("gone");
    b.write("kept", b"edited");
    world.exchange(&[&a, &b, &a]);
    assert_eq!(a.everything(), b.everything());
    assert_eq!(a.read("kept").expect("the edit survives"), b"edited");
    assert!(a.read("gone").is_err());
}

#[test]
fn file_made_in_a_directory_removed_there_stays() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("d");
    world.exchange(&[&a, &b]);
    a.rmdir("d");
    b.write("d/new", b"content");
    world.exchange(&[&a, &b, &a]);
    assert_eq!(a.everything(), b.everything());
    assert_eq!(a.read("d/new").expect("the directory came back"), b"content");
}

#[test]
fn device_that_joins_late_sees_everything_and_a_restarted_one_goes_on() {
    let world = World::new();
    let mut a = world.device("a");
    for round in 0..5u8 {
        a.write("counter", &[round]);
        a.write(&format!("file {round}"), &[round; 10]);
        world.drain(&a);
        a = world.restart(a);
    }
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.everything(), a.everything());
    a.write("after", b"restart");
    world.exchange(&[&a, &b]);
    let b = world.restart(b);
    assert_eq!(b.everything(), a.everything());
}

#[test]
fn states_say_where_a_content_is() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", b"content");
    assert_eq!(a.state("file"), "local");
    world.exchange(&[&a, &b]);
    assert_eq!(a.state("file"), "replicated");
    assert_eq!(b.state("file"), "remote");
    b.read("file").expect("it can be fetched");
    assert_eq!(b.state("file"), "replicated");
}

#[test]
fn file_of_very_many_chunks_arrives() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("huge", &noise(1, 6 << 20));
    a.write("also", b"a short one in the same segment");
    world.exchange(&[&a, &b]);
    assert!(world.objects("log/") > 1, "where the chunks lie takes more than one segment");
    assert!(b.everything() == a.everything());
    let late = world.device("late");
    world.pull(&late);
    assert!(late.everything() == a.everything());
}

#[test]
fn a_handle_has_a_replaced_content_after_a_merge_and_not_after_a_cut_that_failed() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", b"first");
    world.exchange(&[&a, &b]);
    assert_eq!(b.read("file").expect("it is there"), b"first");
    let old = b.open("file");
    b.write_at("file", 0, b"local");
    b.engine.failpoints.set_hook(|step| if step == "push.in_cut" { Err(Stopped(step)) } else { Ok(()) });
    assert!(drain(&world.runtime, &b).is_err());
    b.write_at("file", 0, b"again");
    // Where nobody has what the file has now, nothing can be compared with it.
    let current = b.open("file");
    assert!(!b.drive.is_replaced(old));

    b.engine.failpoints.set_hook(|_| Ok(()));
    world.exchange(&[&b, &a]);
    assert!(!b.drive.is_replaced(old));
    b.drive.release(current);
    a.write("file", b"theirs");
    world.drain(&a);
    world.pull(&b);
    let new = b.open("file");
    assert!(b.drive.is_replaced(old) && !b.drive.is_replaced(new));
    assert_eq!(b.drive.read(old, 0, 100).wait().expect("it goes on"), b"again");
    assert_eq!(b.read("file").expect("it is there"), b"theirs");
    b.drive.release(old);
    b.drive.release(new);
}
