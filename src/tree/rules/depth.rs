//! Trees of unusual depth, and directories that come back where others move.

use super::*;
use crate::store::Rows;
use crate::tree::model::dump;
use crate::tree::namespace::climbed;

const DEPTH: usize = 5000;

/// On the stack that threads have by default.
fn on_a_usual_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).expect("a thread can be started");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A directory named `first` in the root and others below it, each in the one before; answers all, from the top.
fn nest(tree: &Tree, first: &str, depth: usize) -> Vec<InodeNo> {
    let row = InodeRow::new(FileKind::Directory, 0o755, Timestamp::default());
    let (mut all, mut parent) = (Vec::new(), ROOT);
    for level in 0..depth {
        let name = name(if level == 0 { first } else { "d" });
        let mut change = tree.change(&[parent]).unwrap();
        let ino = InodeNo(change.allocate());
        change.create(ino, parent, &name, &row).unwrap();
        change.commit();
        all.push(ino);
        parent = ino;
    }
    all
}

fn remove_all(tree: &Tree, first: &str, directories: &[InodeNo]) {
    for (level, &ino) in directories.iter().enumerate().rev() {
        let parent = if level == 0 { ROOT } else { directories[level - 1] };
        let mut change = tree.change(&[parent, ino]).unwrap();
        change.detach(parent, &name(if level == 0 { first } else { "d" })).unwrap();
        change.commit();
    }
}

fn link_at(tree: &Tree, parent: InodeNo, file: &str) {
    let mut row = InodeRow::new(FileKind::Symlink, 0o777, Timestamp::default());
    row.target = Some(b"there".to_vec());
    let mut change = tree.change(&[parent]).unwrap();
    let ino = InodeNo(change.allocate());
    change.create(ino, parent, &name(file), &row).unwrap();
    change.commit();
}

fn cut(tree: &Tree) -> ChangeSet {
    let cut = tree.cut(&mut |_, _| true, |_, _| Ok::<_, TreeError>(())).unwrap();
    cut.expect("there is something to publish").change_set
}

fn fold(tree: &Tree, sets: &[&ChangeSet]) {
    tree.fold(sets.iter().map(|set| (*set).clone()).collect(), |_| Ok(())).unwrap();
}

/// How many directories there are on the way down by these names, and what the last one is.
fn descend(tree: &Tree, first: &str) -> Vec<InodeNo> {
    let mut way = Vec::new();
    let mut next = tree.lookup(ROOT, &name(first)).unwrap();
    while let Some(row) = next {
        way.push(row.ino);
        next = tree.lookup(row.ino, &name("d")).unwrap();
    }
    way
}

#[test]
fn a_name_in_a_deep_directory_that_was_removed_brings_all_of_it_back() {
    on_a_usual_stack(|| {
        let world = two_devices();
        let (one, other) = (&world.devices[0].tree, &world.devices[1].tree);
        let directories = nest(one, "top", DEPTH);
        let made = cut(one);
        fold(other, &[&made]);
        link_at(other, directories[DEPTH - 1], "l");
        remove_all(one, "top", &directories);
        let removed = cut(one);
        fold(other, &[&removed]);
        assert!(descend(other, "top") == directories, "not all is there while the name is pending");
        let named = cut(other);
        fold(one, &[&named]);
        assert!(descend(one, "top") == directories, "not all is there");
        assert!(one.lookup(directories[DEPTH - 1], &name("l")).unwrap().is_some());
        assert!(dump(one) == dump(other), "the devices do not agree");
        assert!(!one.store().any(&[family::GRAVE]).unwrap(), "something is still removed");
    });
}

#[test]
fn deep_trees_under_one_name_merge() {
    on_a_usual_stack(|| {
        let world = two_devices();
        let (one, other) = (&world.devices[0].tree, &world.devices[1].tree);
        let (mine, theirs) = (nest(one, "mine", DEPTH), nest(other, "theirs", DEPTH));
        link_at(one, mine[DEPTH - 1], "l");
        link_at(other, theirs[DEPTH - 1], "m");
        let made = [cut(one), cut(other)];
        fold(one, &[&made[1]]);
        fold(other, &[&made[0]]);
        for (tree, old) in [(one, "mine"), (other, "theirs")] {
            let mut change = tree.change_topology(&[ROOT]).unwrap();
            change.move_name(ROOT, &name(old), ROOT, &name("both")).unwrap();
            change.commit();
        }
        let moved = [cut(one), cut(other)];
        fold(one, &[&moved[1]]);
        fold(other, &[&moved[0]]);
        let both = descend(one, "both");
        assert_eq!(both.len(), DEPTH);
        for file in ["l", "m"] {
            assert!(one.lookup(both[DEPTH - 1], &name(file)).unwrap().is_some(), "{file}");
        }
        assert!(dump(one) == dump(other), "the devices do not agree");
    });
}

#[test]
fn the_way_up_is_climbed_once() {
    let depth = 300;
    let world = two_devices();
    let (one, other) = (&world.devices[0].tree, &world.devices[1].tree);
    let directories = nest(one, "top", depth);
    let made = cut(one);
    let before = climbed();
    fold(other, &[&made]);
    assert!(climbed() - before <= 2 * depth, "{} steps for {depth} new directories", climbed() - before);

    for &directory in &directories {
        link_at(other, directory, "l");
    }
    remove_all(one, "top", &directories);
    let removed = cut(one);
    let before = climbed();
    fold(other, &[&removed]);
    assert!(descend(other, "top") == directories, "not all is there");
    assert!(climbed() - before <= 3 * depth, "{} steps for {depth} directories that come back", climbed() - before);
}

#[test]
fn a_directory_that_moves_while_one_in_it_comes_back_has_one_name() {
    let mut world = two_devices();
    let moved = world.directory(0, ROOT, "moved");
    let outer = world.directory(0, ROOT, "outer");
    let inner = world.directory(0, outer, "inner");
    world.finish();
    world.remove(0, outer, &name("inner"));
    world.rename(1, (ROOT, &name("moved")), (inner, &name("moved")));
    world.rename(1, (ROOT, &name("outer")), (ROOT, &name("renamed")));
    world.publish_both();
    world.assert_listing(&[
        ("/renamed", "directory"),
        ("/renamed/inner", "directory"),
        ("/renamed/inner/moved", "directory"),
    ]);
    assert_eq!(world.at(0, inner, "moved"), moved);
}

#[test]
fn a_directory_that_moves_into_a_removed_one_that_was_in_it_stays() {
    let mut world = two_devices();
    let (a, b) = (world.directory(0, ROOT, "a"), world.directory(0, ROOT, "b"));
    world.finish();
    world.rename(0, (ROOT, &name("a")), (b, &name("a")));
    world.publish(0);
    world.remove(0, b, &name("a"));
    world.publish(0);
    world.rename(1, (ROOT, &name("b")), (a, &name("b")));
    world.publish(1);
    world.exchange();
    world.assert_listing(&[("/b", "directory"), ("/b/a", "directory")]);
}
