//! The remote misbehaves or is away.

use std::sync::Arc;

use cairn_platform_api::FsError;
use cairnfs::provider::faults::{FaultInjection, FaultSettings, Faults};
use cairnfs::provider::{ErrorKind, ProviderError};
use cairnfs::replicate::{Reachability, ReplicateError, Urgency};

use super::device::{Device, noise};
use super::world::World;

fn device_with_faults(world: &World, name: &str, seed: u64) -> (Device, FaultInjection) {
    let injection = FaultInjection::new(seed);
    let provider = Faults::new(Arc::clone(&world.remote), injection.clone());
    (world.device_over(name, Arc::new(provider)), injection)
}

/// Rounds are repeated as the tasks would, until one succeeds.
fn insist<T>(mut round: impl FnMut() -> Result<T, ReplicateError>) -> T {
    for _ in 0..1000 {
        match round() {
            Ok(done) => return done,
            Err(ReplicateError::Provider(_)) => {}
            Err(error) => panic!("a fault of the remote became {error:?}"),
        }
    }
    panic!("a round fails again and again");
}

fn unavailable() -> ReplicateError {
    ProviderError::new(ErrorKind::Unreachable, "get", "the remote", "").into()
}

#[test]
fn devices_agree_whatever_the_remote_does_to_their_requests() {
    let world = World::new();
    let (a, faults_a) = device_with_faults(&world, "a", 1);
    let (b, faults_b) = device_with_faults(&world, "b", 2);
    let settings = FaultSettings { error: 0.2, applied_but_error: 0.1, cut_reply: 0.1, ..FaultSettings::default() };
    faults_a.set(settings);
    faults_b.set(settings);
    for round in 0..6u64 {
        a.write(&format!("a{round}"), &noise(round, 300_000));
        b.write(&format!("b{round}"), &noise(100 + round, 1000));
        a.write("both", &noise(200 + round, 5000));
        b.write("both", &noise(300 + round, 5000));
        for device in [&a, &b] {
            insist(|| world.runtime.block_on(device.engine.pull_round()));
            insist(|| match world.runtime.block_on(device.engine.push_round(Urgency::Drain)) {
                // A file that was edited before all of it was here needs the remote to be sent.
                Ok(pushed) if !pushed.left.is_empty() => Err(unavailable()),
                other => other,
            });
        }
    }
    faults_a.set(FaultSettings::default());
    faults_b.set(FaultSettings::default());
    world.exchange(&[&a, &b]);
    assert!(a.everything() == b.everything());
    let fresh = world.device("fresh");
    world.pull(&fresh);
    assert!(fresh.everything() == a.everything());
}

#[test]
fn remote_that_is_away_stops_nobody_but_readers_of_what_is_not_here() {
    let world = World::new();
    let (a, faults) = device_with_faults(&world, "a", 1);
    let b = world.device("b");
    b.write("theirs", &noise(1, 10_000));
    a.write("mine", b"here");
    world.exchange(&[&b, &a]);

    faults.set(FaultSettings { error: 1.0, ..FaultSettings::default() });
    a.write("offline", b"written while the remote is away");
    assert!(world.runtime.block_on(a.engine.push_round(Urgency::Drain)).is_err());
    let status = a.engine.status().expect("there is a status");
    assert!(matches!(status.reachability, Reachability::Unreachable { .. }), "{status:?}");
    assert!(!status.is_drained());
    assert_eq!(a.read("mine").expect("it is here"), b"here");
    assert_eq!(a.read("offline").expect("it is here"), b"written while the remote is away");
    assert_eq!(a.read("theirs"), Err(FsError::Io));

    faults.set(FaultSettings::default());
    assert_eq!(a.read("theirs").expect("the remote is back"), noise(1, 10_000));
    world.exchange(&[&a, &b]);
    assert!(a.everything() == b.everything());
    let status = a.engine.status().expect("there is a status");
    assert_eq!(status.reachability, Reachability::Reachable);
}
