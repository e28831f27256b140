//! Devices that join by a checkpoint: they end with the rows of one that replayed all change sets.

use std::collections::BTreeSet;

use super::model::{Device, Random, World, seeds};
use super::*;
use crate::base::{ChangeId, DeviceId};

const SOURCE: JoinSource = JoinSource { device: DeviceId(1), number: 7, hash: [5; 32] };

/// The published rows of a device as a checkpoint has them.
fn stream_of(tree: &Tree) -> (Vec<u8>, Option<ChangeId>) {
    tree.store.flush().unwrap();
    let mut stream = Vec::new();
    let newest = dump_published(&tree.store.snapshot().unwrap(), &mut |piece| {
        stream.extend_from_slice(piece);
        Ok::<_, TreeError>(())
    });
    (stream, newest.unwrap())
}

/// Loads pieces of random length, and begins again now and then, as after a crash.
fn load(tree: &Tree, random: &mut Random, stream: &[u8]) -> Result<Join, JoinError> {
    let mut join = tree.begin_join(SOURCE)?.expect("nothing was folded yet");
    let mut at = usize::try_from(join.position()).unwrap();
    while at < stream.len() {
        if random.one_in(10) {
            join = tree.begin_join(SOURCE)?.expect("nothing was folded yet");
            at = usize::try_from(join.position()).unwrap();
        }
        let length = (1 + random.below(700)).min(stream.len() - at);
        tree.load(&mut join, &stream[at..at + length])?;
        at += length;
    }
    Ok(join)
}

fn shuffled(random: &mut Random, mut sets: Vec<ChangeSet>) -> Vec<ChangeSet> {
    for at in (1..sets.len()).rev() {
        sets.swap(at, random.below(at + 1));
    }
    sets
}

fn fold_in_batches(device: &Device, random: &mut Random, sets: Vec<ChangeSet>) {
    let mut sets = shuffled(random, sets);
    while !sets.is_empty() {
        let count = 1 + random.below(sets.len().min(4));
        let batch = sets.split_off(sets.len() - count);
        device.tree.fold(batch, |_| Ok(())).unwrap();
        device.check("after a fold");
    }
}

#[test]
fn who_joins_by_a_checkpoint_has_row_by_row_what_a_full_replay_has() {
    for seed in seeds(15) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed + 5_000_000, 3);
        let before = 10 + world.random.below(40);
        (0..before).for_each(|_| world.step());
        let source = &world.devices[world.random.below(3)];
        let known: BTreeSet<_> = source.known.clone();
        let (stream, newest) = stream_of(&source.tree);
        let Some(newest) = newest else { continue };
        (0..20).for_each(|_| world.step());
        world.finish();

        let joiner = Device::new(9);
        let join = load(&joiner.tree, &mut world.random, &stream).unwrap();
        let touched = joiner.tree.finish_join(join, stream.len() as u64, newest, |_| Ok(())).unwrap();
        let in_root = joiner.names().iter().filter(|(parent, ..)| *parent == InodeNo::ROOT).count();
        assert_eq!(touched.is_empty(), in_root == 0, "the kernel is told of what is in the root directory");
        joiner.check("after joining");
        assert!(stream_of(&joiner.tree) == (stream, Some(newest)), "the rows of the source, and no others");

        let all: Vec<_> = world.sets.values().map(|(set, _)| set.clone()).collect();
        let rest = all.iter().filter(|set| !known.contains(&set.id)).cloned().collect();
        fold_in_batches(&joiner, &mut world.random, rest);
        let replayer = Device::new(8);
        fold_in_batches(&replayer, &mut world.random, all);
        assert!(stream_of(&joiner.tree) == stream_of(&replayer.tree));
    }
}

#[test]
fn what_was_made_while_a_checkpoint_was_loaded_is_kept_and_converges() {
    for seed in seeds(15) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed + 6_000_000, 3);
        (0..40).for_each(|_| world.step());
        let (stream, newest) = stream_of(&world.devices[0].tree);
        let Some(newest) = newest else { continue };
        world.devices.push(Device::new(4));
        (0..5).for_each(|_| world.act(3));
        let half = stream.len() / 2;
        let mut join = world.devices[3].tree.begin_join(SOURCE).unwrap().unwrap();
        world.devices[3].tree.load(&mut join, &stream[..half]).unwrap();
        (0..5).for_each(|_| world.act(3));
        let cut = world.devices[3].tree.cut(&mut |_, _| true, |_, _| Ok::<_, TreeError>(()));
        assert!(matches!(cut, Err(TreeError::Joining)), "nothing is cut meanwhile");
        let visible = world.devices[3].visible();
        world.devices[3].tree.load(&mut join, &stream[half..]).unwrap();
        assert_eq!(world.devices[3].visible().len(), visible.len() + loaded_names(&world.devices[3]));
        world.devices[3].tree.finish_join(join, stream.len() as u64, newest, |_| Ok(())).unwrap();
        world.devices[3].known = world.devices[0].known.clone();
        world.devices[3].check("after joining");
        (0..20).for_each(|_| world.step());
        world.finish();
        world.check_converged();
        world.check_nothing_lost();
    }
}

/// Names that no way from the root leads to, yet.
fn loaded_names(device: &Device) -> usize {
    device.names().iter().filter(|(parent, ..)| *parent != InodeNo::ROOT && parent.0 >> 40 != 4).count()
}

#[test]
fn load_that_is_abandoned_at_any_moment_leaves_what_was_there_before() {
    for seed in seeds(12) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed + 7_000_000, 2);
        (0..50).for_each(|_| world.step());
        let (stream, newest) = stream_of(&world.devices[0].tree);
        if newest.is_none() {
            continue;
        }
        world.devices.push(Device::new(4));
        (0..6).for_each(|_| world.act(2));
        let (visible, values) = (world.devices[2].visible(), world.devices[2].values());
        let end = world.random.below(stream.len() + 1);
        let tree = &world.devices[2].tree;
        drop(load(tree, &mut world.random, &stream[..end]).unwrap());
        if world.random.one_in(2) {
            tree.abandon_join().unwrap();
        } else {
            let other =
                tree.begin_join(JoinSource { number: 8, ..SOURCE }).unwrap().expect("another checkpoint can be loaded");
            assert_eq!(other.position(), 0);
            tree.abandon_join().unwrap();
        }
        assert_eq!(tree.join_state().unwrap(), JoinState::Blank);
        let device = &world.devices[2];
        assert_eq!((device.visible(), device.values()), (visible, values));
        device.check("after the load was abandoned");
        world.finish();
        world.check_converged();
        world.check_nothing_lost();
    }
}

/// A device that has published, and its rows.
fn published() -> (World, Vec<u8>, ChangeId) {
    let mut world = World::new(3, 2);
    (0..40).for_each(|_| world.step());
    world.finish();
    let (stream, newest) = stream_of(&world.devices[0].tree);
    (world, stream, newest.unwrap())
}

#[test]
fn damaged_and_cut_streams_are_refused_and_never_taken_for_whole() {
    let (mut world, stream, newest) = published();
    for case in 0..1500 {
        let mut bytes = stream.clone();
        let at = world.random.below(bytes.len());
        match case % 3 {
            0 => bytes[at] ^= 1 << world.random.below(8),
            1 => bytes.truncate(at),
            _ => drop(bytes.drain(at..(at + 1 + world.random.below(40)).min(stream.len()))),
        }
        let mut rows = RowStream::default();
        rows.push(&bytes);
        while let Ok(Some(_)) = rows.next_row() {}
        if case % 30 != 1 {
            continue;
        }
        let device = Device::new(9);
        let result = load(&device.tree, &mut world.random, &bytes)
            .and_then(|join| device.tree.finish_join(join, stream.len() as u64, newest, |_| Ok(())));
        assert!(matches!(result, Err(JoinError::Rows(_))), "cut at {at} of {}", stream.len());
        device.tree.abandon_join().unwrap();
        assert!(device.visible().is_empty());
    }
}

#[test]
fn rows_that_no_checkpoint_has_are_refused() {
    let (mut world, stream, newest) = published();
    let loads = |number: u32, stream: &[u8], newest, random: &mut Random| {
        let device = Device::new(number);
        load(&device.tree, random, stream)
            .and_then(|join| device.tree.finish_join(join, stream.len() as u64, newest, |_| Ok(())))
    };
    let random = &mut world.random;
    assert!(loads(9, &stream, newest, random).is_ok());
    let older = ChangeId { hlc: crate::base::Hlc(1), ..newest };
    assert!(matches!(loads(9, &stream, older, random), Err(JoinError::Rows(_))), "another change set is the newest");
    assert!(matches!(loads(1, &stream, newest, random), Err(JoinError::Rows(_))), "numbers of this device");
    let mut foreign = stream.clone();
    foreign.extend_from_slice(&[9, b'Z', 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert!(matches!(loads(9, &foreign, newest, random), Err(JoinError::Rows(_))), "a family of this machine alone");
    assert!(matches!(loads(9, &stream[..1], newest, random), Err(JoinError::Rows(_))), "nothing");
}

#[test]
fn device_that_has_change_sets_does_not_load_a_checkpoint() {
    let (world, ..) = published();
    let tree = &world.devices[1].tree;
    assert_eq!(tree.join_state().unwrap(), JoinState::Settled);
    assert!(tree.begin_join(SOURCE).unwrap().is_none());
}

#[test]
fn where_a_pack_lies_that_no_segment_names_is_in_no_checkpoint() {
    use crate::chunk::{ChunkId, ChunkLocation, PackId};
    let (mut world, ..) = published();
    let tree = &world.devices[0].tree;
    let location = |pack| ChunkLocation { pack, offset: 100, sealed_len: 90, plain_len: 50, index: 0, epoch: 1 };
    let (named, unnamed) = ((ChunkId([3; 32]), PackId([4; 32])), (ChunkId([5; 32]), PackId([6; 32])));
    let mut rows = tree.store.operation().unwrap();
    rows.put_chunk_location(&named.0, &location(named.1));
    rows.put_chunk_location(&unnamed.0, &location(unnamed.1));
    // As for a pack that was acknowledged, until a segment of this device names it.
    rows.put(&keys::pack(&unnamed.1), &[1, 0][..]);
    rows.commit();
    let (stream, newest) = stream_of(tree);
    let joiner = Device::new(9);
    let join = load(&joiner.tree, &mut world.random, &stream).unwrap();
    joiner.tree.finish_join(join, stream.len() as u64, newest.unwrap(), |_| Ok(())).unwrap();
    assert_eq!(joiner.tree.chunk_location(&named.0).unwrap(), Some(location(named.1)));
    assert_eq!(joiner.tree.chunk_location(&unnamed.0).unwrap(), None);
}
