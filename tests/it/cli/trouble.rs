//! A mounted drive whose S3 server is away or unreliable. The first machine reaches the server through a proxy that makes the
//! trouble; the second one does not, so that it shows what has really arrived.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use super::workload::{noise, work};
use super::world::{Machine, Mounted, World, becomes_equal, snapshot};
use crate::harness::can_mount;
use crate::patience::{ends, eventually};
use crate::servers::proxy::{FaultProxy, ProxyFaults};
use crate::servers::{Kind, S3Server, shared_seaweedfs};

const LARGE: usize = 300_000;

/// Two machines that have the same tree: `cached` is on both, and `theirs` of the second one has not been read by the first.
struct Scene<'a> {
    one: Machine<'a>,
    first: Mounted,
    two: Machine<'a>,
    second: Mounted,
}

impl<'a> Scene<'a> {
    fn new(world: &'a World, remote_of_one: &str) -> Self {
        world.with_vault_of("maker");
        let (one, two) = (world.attached_by("one", remote_of_one), world.attached("two"));
        // Errors come soon; nothing that must succeed depends on these times, since what fails is tried again.
        let settings = "request-timeout = '3s'\nread-deadline = '3s'\nsettle = '10ms'\npull-interval = '100ms'\n";
        fs::write(one.drive_dir().join("settings.toml"), settings).expect("written");
        let first = one.mount("shared", &world.directory("mnt-1"));
        let second = two.mount("shared", &world.directory("mnt-2"));
        fs::write(first.path().join("cached"), noise(1, LARGE)).expect("written");
        fs::create_dir(second.path().join("theirs")).expect("made");
        for number in 0..4 {
            fs::write(second.path().join(format!("theirs/{number}")), noise(10 + number, LARGE)).expect("written");
        }
        let scene = Self { one, first, two, second };
        scene.one.run(&["drain"]);
        scene.two.run(&["drain"]);
        scene.one.pull();
        eventually("the first shows what the second has", || {
            fs::read_dir(scene.first.path().join("theirs")).is_ok_and(|files| files.count() == 4)
        });
        scene
    }

    fn theirs(&self, number: u64) -> std::path::PathBuf {
        self.first.path().join(format!("theirs/{number}"))
    }

    /// Nobody who works on the first machine waits for the network, and what is there can be read.
    fn work(&self, name: &str, seed: u64) {
        let (mountpoint, name) = (self.first.path().to_owned(), name.to_owned());
        ends("a workload", move || work(&mountpoint, &name, seed)).expect("the drive takes everything");
        assert!(fs::read(self.first.path().join("cached")).expect("cached") == noise(1, LARGE));
        assert_eq!(fs::metadata(self.theirs(0)).expect("known").len(), LARGE as u64);
    }

    /// While the remote is away: what is not here gives an error to readers and to writers, but for who empties it.
    fn miss_what_is_not_here(&self) {
        for (number, open) in [(0, OpenOptions::new().read(true)), (1, OpenOptions::new().append(true))] {
            let path = self.theirs(number);
            let open = open.clone();
            let answer = ends("a request for what is not here", move || {
                use std::io::Read;
                open.open(path).and_then(|mut file| file.read(&mut [0; 100]))
            });
            assert_eq!(answer.expect_err("it is not here").raw_os_error(), Some(libc::EIO));
        }
        let path = self.theirs(2);
        ends("emptying a file", move || fs::write(path, "all new")).expect("nothing of the old content is needed");
        let drained = self.one.finish(&["drain", "--timeout", "1s"]);
        assert_eq!(drained.status.code(), Some(3), "{}{}", drained.out, drained.err);
        eventually("the status says that the remote is away, and what is only here", || {
            let replication = &self.one.json(&["status"])[0]["replication"];
            replication["reachability"]["state"] == "unreachable" && replication["files_only_here"] != 0
        });
    }

    /// The remote is well: everything arrives, and all machines are the same, also one that starts from nothing.
    fn end(&self, world: &World) {
        self.one.run(&["drain"]);
        self.two.pull();
        self.two.run(&["drain"]);
        self.one.pull();
        fetch_all(self.first.path());
        becomes_equal(self.first.path(), self.second.path());
        let expected = snapshot(self.second.path());
        let three = world.attached("three");
        let third = three.mount("shared", &world.directory("mnt-3"));
        assert_eq!(snapshot(third.path()), expected);
    }
}

/// Reads everything, again where the short deadline was missed.
fn fetch_all(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("known");
        if kind.is_dir() {
            fetch_all(&entry.path());
        } else if kind.is_file() {
            eventually("a file is read", || fs::read(entry.path()).is_ok());
        }
    }
}

/// The remote is away, in some way, while people work on the first machine.
fn survives_an_absence(faults: ProxyFaults) {
    let (true, Some(server)) = (can_mount(), shared_seaweedfs()) else { return };
    let world = World::on(server);
    let proxy = FaultProxy::start(server.address(), 1);
    let scene = Scene::new(&world, &world.remote_by(proxy.address()));
    proxy.set(faults);
    scene.work("offline", 100);
    scene.miss_what_is_not_here();
    // The second machine goes on meanwhile, and has seen nothing of this.
    fs::write(scene.second.path().join("meanwhile"), "by the second").expect("written");
    scene.two.run(&["drain"]);
    assert!(!scene.second.path().join("offline").exists());
    proxy.set(ProxyFaults::default());
    scene.end(&world);
}

#[test]
fn server_that_answers_nothing_blocks_nobody_and_loses_nothing() {
    survives_an_absence(ProxyFaults { stall: true, ..ProxyFaults::default() });
}

#[test]
fn server_that_closes_every_connection_blocks_nobody_and_loses_nothing() {
    survives_an_absence(ProxyFaults { refuse: true, ..ProxyFaults::default() });
}

#[test]
fn server_that_is_stopped_and_started_blocks_nobody_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let Some(server) = S3Server::start(Kind::SeaweedFs) else { return };
    let world = World::on(&server);
    let scene = Scene::new(&world, &world.remote());
    server.stop();
    scene.work("offline", 100);
    fs::write(scene.second.path().join("meanwhile"), "by the second").expect("written");
    scene.miss_what_is_not_here();
    server.start_again();
    scene.end(&world);
}

/// Requests go wrong now and then, both ways. `enough` says when the faults have met what they are meant for.
fn survives_unreliability(faults: ProxyFaults, enough: fn(&FaultProxy) -> bool) {
    let (true, Some(server)) = (can_mount(), shared_seaweedfs()) else { return };
    let world = World::on(server);
    let proxy = FaultProxy::start(server.address(), 1);
    let scene = Scene::new(&world, &world.remote_by(proxy.address()));
    proxy.set(faults);
    let mut round = 0;
    while round == 0 || !enough(&proxy) {
        scene.work(&format!("work-{round}"), 1000 * round);
        replace_often(scene.first.path(), round);
        scene.one.run(&["drain"]);
        round += 1;
        assert!(round < 100, "the faults never came");
        scene.two.pull();
        eventually("the document has arrived", || {
            let document = fs::read(scene.second.path().join("document")).unwrap_or_default();
            assert!(document.iter().all(|byte| Some(byte) == document.first()), "torn");
            document == vec![round as u8; LARGE]
        });
    }
    // The other way: bytes or an error, never wrong ones, and all of them in the end.
    let path = scene.theirs(0);
    eventually("what was not here is read", || match fs::read(&path) {
        Ok(bytes) => {
            assert!(bytes == noise(10, LARGE), "wrong bytes");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            false
        }
    });
    work(scene.second.path(), "by the second", 7).expect("the drive takes everything");
    scene.two.run(&["drain"]);
    eventually("the first shows what the second did", || {
        scene.one.finish(&["pull"]).status.success() && scene.first.path().join("by the second/large").exists()
    });
    proxy.set(ProxyFaults::default());
    scene.end(&world);
}

/// Saves a document again and again, the way editors do.
fn replace_often(mountpoint: &Path, round: u64) {
    for version in [200, 201, round as u8 + 1] {
        fs::write(mountpoint.join("document.new"), vec![version; LARGE]).expect("written");
        fs::rename(mountpoint.join("document.new"), mountpoint.join("document")).expect("renamed");
    }
}

#[test]
fn every_fifth_request_that_fails_loses_nothing() {
    survives_unreliability(ProxyFaults { unavailable: 0.2, ..ProxyFaults::default() }, |proxy| {
        proxy.faulty_puts() >= 3
    });
}

#[test]
fn server_that_asks_for_patience_loses_nothing() {
    let faults = ProxyFaults { unavailable: 0.2, retry_after: Some(1), ..ProxyFaults::default() };
    survives_unreliability(faults, |proxy| proxy.faulty_puts() >= 2);
}

#[test]
fn replies_and_uploads_that_are_cut_short_tear_nothing() {
    let faults = ProxyFaults { cut_reply: 0.2, cut_upload: 0.2, ..ProxyFaults::default() };
    survives_unreliability(faults, |proxy| proxy.faulty_puts() >= 3);
}

#[test]
fn puts_that_are_applied_and_answered_with_an_error_lose_nothing() {
    survives_unreliability(ProxyFaults { applied_but_error: 0.3, ..ProxyFaults::default() }, |proxy| {
        proxy.faulty_puts() >= 3
    });
}

#[test]
fn slow_server_loses_nothing() {
    let faults = ProxyFaults { latency: Duration::from_millis(200), ..ProxyFaults::default() };
    survives_unreliability(faults, |_| true);
}
