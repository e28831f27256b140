//! Changes of many names at once.

use std::collections::BTreeSet;

use super::*;

/// Publishes all, in change sets that the limit bounds.
fn publish_within(world: &mut World, limit: usize) -> usize {
    world.devices[0].tree.cut_limits.bytes = limit;
    world.upload(0, 1);
    let known: Vec<_> = world.sets.keys().copied().collect();
    let mut cuts = 0;
    while world.cut(0, 0) {
        cuts += 1;
    }
    for (id, (set, _)) in &world.sets {
        assert!(known.contains(id) || set.encode().len() <= limit + 100, "a change set of {}", set.encode().len());
    }
    world.exchange();
    cuts
}

#[test]
fn many_names_are_published_in_several_change_sets() {
    let (limit, names) = (4000, 200);
    let mut world = two_devices();
    let (old, new) = (world.directory(0, ROOT, "old"), world.directory(0, ROOT, "new"));
    world.file(0, ROOT, "f", 1);
    world.finish();
    let file = world.devices[0].tree.lookup(ROOT, &name("f")).unwrap().unwrap();
    let long = |number: usize| name(&format!("{number:0>60}"));

    for number in 0..names {
        world.link(0, file, old, &long(number));
    }
    let cuts = publish_within(&mut world, limit);
    assert!((6..20).contains(&cuts), "{cuts} change sets for new names");
    assert_eq!(world.listing().len(), names + 3);

    for number in 0..names {
        world.rename(0, (old, &long(number)), (new, &long(number)));
    }
    let cuts = publish_within(&mut world, limit);
    assert!((6..20).contains(&cuts), "{cuts} change sets for moved names");

    for number in 0..names {
        world.remove(0, new, &long(number));
    }
    world.remove(0, ROOT, &name("new"));
    let cuts = publish_within(&mut world, limit);
    assert!((3..20).contains(&cuts), "{cuts} change sets for removed names");
    world.assert_listing(&[("/f", "1"), ("/old", "directory")]);
}

#[test]
fn names_of_a_new_file_are_published_in_several_change_sets() {
    let mut world = two_devices();
    world.file(0, ROOT, "f", 1);
    let file = world.devices[0].tree.lookup(ROOT, &name("f")).unwrap().unwrap();
    for number in 0..100 {
        world.link(0, file, ROOT, &name(&format!("{number:0>60}")));
    }
    assert!(publish_within(&mut world, 3000) > 3);
    assert_eq!(world.listing().len(), 101);
}

#[test]
fn a_removed_tree_is_published_in_several_change_sets() {
    let mut world = two_devices();
    let mut directories = Vec::new();
    for number in 0..40 {
        let directory = world.directory(0, ROOT, &format!("d{number}"));
        world.file(0, directory, "f", number);
        directories.push(directory);
    }
    world.finish();
    for (number, &directory) in directories.iter().enumerate() {
        world.remove(0, directory, &name("f"));
        world.remove(0, ROOT, &name(&format!("d{number}")));
    }
    assert!(publish_within(&mut world, 1000) > 3);
    world.assert_listing(&[]);
}

#[test]
fn what_depends_on_each_other_is_published_together_beyond_the_limit() {
    let mut world = two_devices();
    for number in 0..30 {
        world.directory(0, ROOT, &format!("d{number}"));
    }
    world.finish();
    let to = world.directory(0, ROOT, "to");
    world.publish(0);
    for number in 0..30 {
        let name = name(&format!("d{number}"));
        world.rename(0, (ROOT, &name), (to, &name));
    }
    world.devices[0].tree.cut_limits.bytes = 500;
    while world.cut(0, 0) {}
    world.exchange();
    assert_eq!(world.listing().len(), 31);
}

#[test]
fn a_file_keeps_a_name_until_it_has_the_next_one() {
    let mut world = two_devices();
    for number in 0..20 {
        world.file(0, ROOT, &format!("old {number}"), number);
    }
    world.finish();
    for number in 0..20 {
        let old = name(&format!("old {number}"));
        let file = world.devices[0].tree.lookup(ROOT, &old).unwrap().unwrap();
        world.link(0, file, ROOT, &name(&format!("new {number}")));
        world.remove(0, ROOT, &old);
    }
    world.devices[0].tree.cut_limits.bytes = 600;
    let mut cuts = 0;
    while world.cut(0, 0) {
        cuts += 1;
        world.receive(1, 1);
        let files: BTreeSet<_> = world.devices[1].names().into_iter().map(|(_, _, row)| row.ino).collect();
        assert_eq!(files.len(), 20, "after {cuts} change sets");
    }
    assert!((3..15).contains(&cuts), "{cuts} change sets");
    world.check_converged();
}
