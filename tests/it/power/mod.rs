//! Power cuts: the data directory of a whole program lies on a disk that forgets what was not synced.
//!
//! The disk ([`disk`]) is a FUSE mount, so everything that the program does about its files comes by: the rows, the backing
//! files, the records. A cut comes after a number of changes of the disk, not after a time. `CAIRN_CUTS` says how often to cut
//! (default 24), `CAIRN_SEED` repeats a run as far as threads can.

mod disk;
mod refusals;
mod worker;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use cairn_platform_fuse::{MountOptions, Passthrough};

use crate::cli::world::{Machine, Mounted, World, snapshot};
use crate::dice::Dice;
use crate::harness::{Mount, can_mount, eventually};
use disk::{Disk, Survival};
use worker::{Worker, sync};

const WORKERS: u64 = 2;

/// A machine whose data directory is on a disk of ours.
struct Computer {
    disk: Arc<Disk>,
    mounted: Option<Mount>,
    data: std::path::PathBuf,
}

impl Computer {
    /// The machine of that name in the world.
    fn new(world: &World, name: &str) -> Self {
        let mut computer = Self { disk: Disk::new(), mounted: None, data: world.path(name) };
        computer.start(Passthrough::Off);
        computer
    }

    /// Mounts the disk. A mount that wants passthrough for itself cannot lie below another's.
    fn start(&mut self, passthrough: Passthrough) {
        let options = MountOptions { passthrough, ..MountOptions::default() };
        let mount = Mount::with_options(Arc::<Disk>::clone(&self.disk), &options);
        // A name that stays.
        let _ = fs::remove_file(&self.data);
        std::os::unix::fs::symlink(mount.path(), &self.data).expect("a link");
        self.mounted = Some(mount);
    }

    /// What is left when the power comes back. Nothing of the program may be running.
    fn lose(&mut self, survival: Survival) {
        self.disk.cut();
        drop(self.mounted.take());
        self.disk.lose(survival);
    }
}

/// A computer with a drive that was attached and is mounted.
struct Scene {
    world: World,
    computer: Computer,
    mounted: Option<Mounted>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        world.with_vault();
        let mut computer = Computer::new(&world, "powered");
        let machine = world.attached("powered");
        // Attaching is durable.
        computer.lose(Survival::Nothing);
        computer.start(Passthrough::Off);
        configure(&machine, "1h");
        let mounted = Some(machine.mount("shared", &world.directory("mnt")));
        Self { world, computer, mounted }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.mounted.as_ref().expect("mounted").path().join(name)
    }

    fn machine(&self) -> Machine<'_> {
        self.world.machine("powered")
    }

    /// Cuts the power, loses what was not synced, and mounts again.
    fn cut(&mut self) {
        self.computer.disk.cut();
        if let Some(mut mounted) = self.mounted.take() {
            mounted.kill();
        }
        self.computer.lose(Survival::Nothing);
        self.computer.start(Passthrough::Off);
        self.mounted = Some(self.machine().mount("shared", &self.world.path("mnt")));
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn configure(machine: &Machine<'_>, settle: &str) {
    // So small a cache that what was published is mostly read from the vault again.
    let text = format!("settle = '{settle}'\nmax-delay = '{settle}'\ncache-budget = '256 KiB'\nread-deadline = '1d'\n");
    machine.set(&text);
    sync(&machine.drive_dir().join("settings.toml")).expect("durable");
    sync(&machine.drive_dir()).expect("durable");
}

fn survival(dice: &mut Dice) -> Survival {
    match dice.below(3) {
        0 => Survival::Nothing,
        _ => Survival::Parts { seed: dice.next() },
    }
}

fn check(workers: &mut [Worker]) {
    workers.iter_mut().for_each(Worker::check_and_adopt);
}

/// Lets the workers work until the power goes.
fn work_until_the_cut(workers: &mut [Worker], mounted: &mut Mounted, disk: &Disk) {
    std::thread::scope(|scope| {
        for worker in workers.iter_mut() {
            scope.spawn(|| worker.work());
        }
        eventually("the power goes", || !disk.has_power());
        mounted.kill();
    });
}

/// The power goes while the drive is being opened, or as soon as it is.
fn cut_while_it_opens(computer: &mut Computer, machine: &Machine<'_>, mountpoint: &Path, dice: &mut Dice) {
    computer.disk.cut_after(dice.below(120) as u64);
    let mut opening = machine.start("shared", mountpoint);
    eventually("the power goes or the drive is there", || {
        !computer.disk.has_power() || opening.is_ready() || opening.has_ended()
    });
    opening.kill();
    drop(opening);
    computer.lose(survival(dice));
    computer.start(Passthrough::Off);
}

/// What must hold in the end: another machine gets the same.
fn compare_with_another(world: &World, machine: &Machine<'_>, mounted: &Mounted) {
    machine.run(&["drain"]);
    let other = world.attached("two");
    let second = other.mount("shared", &world.directory("mnt-2"));
    assert_eq!(snapshot(second.path()), snapshot(mounted.path()));
}

#[test]
fn what_was_synced_is_there_after_every_power_cut() {
    if !can_mount() {
        return;
    }
    let cuts = number("CAIRN_CUTS", 24);
    let seed = number("CAIRN_SEED", 1);
    eprintln!("CAIRN_CUTS={cuts} CAIRN_SEED={seed}");
    let mut dice = Dice::new(seed);
    let world = World::new();
    world.with_vault();
    let mut computer = Computer::new(&world, "powered");
    let machine = world.attached("powered");
    computer.lose(Survival::Nothing);
    computer.start(Passthrough::Off);
    let mountpoint = world.directory("mnt");
    configure(&machine, "1ms");
    for _ in 0..1 + cuts / 8 {
        cut_while_it_opens(&mut computer, &machine, &mountpoint, &mut dice);
    }
    let mut mounted = machine.mount("shared", &mountpoint);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|number| Worker::new(&mountpoint, number, seed)).collect();

    for round in 0..cuts {
        eprintln!("round {round}");
        if dice.below(6) == 0 {
            // The power goes after a clean end.
            workers.iter_mut().for_each(|worker| worker.do_steps(dice.below(40)));
            machine.umount(&["shared"]);
            mounted.ended_well();
            workers.iter_mut().for_each(Worker::everything_is_durable);
        } else {
            computer.disk.cut_after(1 + dice.below(600) as u64);
            work_until_the_cut(&mut workers, &mut mounted, &computer.disk);
        }
        let passthrough = if dice.below(2) == 0 { Passthrough::Auto } else { Passthrough::Off };
        computer.lose(survival(&mut dice));
        computer.start(passthrough);
        if dice.below(4) == 0 {
            cut_while_it_opens(&mut computer, &machine, &mountpoint, &mut dice);
        }
        configure(&machine, if dice.below(2) == 0 { "1h" } else { "1ms" });
        mounted = machine.mount("shared", &mountpoint);
        check(&mut workers);
    }
    configure(&machine, "1s");
    compare_with_another(&world, &machine, &mounted);
}

#[test]
fn a_file_that_replaced_another_unsynced_is_whole_as_soon_as_it_has_the_name() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    fs::write(scene.path("file"), "old").expect("written");
    sync(&scene.path("file")).expect("durable");
    fs::write(scene.path("new"), [7; 50_000]).expect("written");
    fs::rename(scene.path("new"), scene.path("file")).expect("renamed");
    sync(&scene.path("")).expect("durable");
    scene.cut();
    assert!(fs::read(scene.path("file")).expect("readable") == [7; 50_000], "the new file is not whole");
}

#[test]
fn a_file_that_was_emptied_and_written_anew_is_soon_durable() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    fs::write(scene.path("file"), "old").expect("written");
    sync(&scene.path("file")).expect("durable");
    fs::write(scene.path("file"), [7; 50_000]).expect("written");
    eventually("the content is synced", || !scene.computer.disk.has_unsynced("/content/"));
    scene.cut();
    assert!(fs::read(scene.path("file")).expect("readable") == [7; 50_000], "the new content is not whole");
}

#[test]
fn what_was_written_before_an_unmount_survives_a_power_cut_after_it() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    let content = |n: usize| vec![n as u8; 1 + n * 3000];
    for n in 0..12 {
        fs::write(scene.path(&format!("file-{n}")), content(n)).expect("written");
    }
    scene.machine().umount(&["shared"]);
    scene.mounted.as_mut().expect("mounted").ended_well();
    scene.cut();
    for n in 0..12 {
        assert!(fs::read(scene.path(&format!("file-{n}"))).expect("readable") == content(n), "file {n} is not whole");
    }
}

#[test]
fn a_failed_sync_is_told_until_the_file_is_safe() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    let file = File::create_new(scene.path("file")).expect("made");
    file.write_all_at(&[7; 50_000], 0).expect("written");
    scene.computer.disk.fail_syncs("/content/", 1);
    file.sync_all().expect_err("the disk failed");
    assert_eq!(scene.computer.disk.failed_syncs(), 1);
    file.sync_all().expect_err("what was lost is not there now");
    // The first copy of it fails, too.
    scene.computer.disk.fail_syncs(".copy", 1);
    drop(file);
    eventually("the first copy fails", || scene.computer.disk.failed_syncs() == 2);
    // To look whether it is would keep the file in use.
    let log = || scene.mounted.as_ref().expect("mounted").log();
    eventually("the file is copied", || log().contains("has a new backing file"));
    sync(&scene.path("file")).expect("durable");
    scene.cut();
    assert!(fs::read(scene.path("file")).expect("readable") == [7; 50_000], "a sync was acknowledged that was none");
}

#[test]
fn a_failed_sync_of_a_replaced_content_does_not_count_for_the_one_that_replaced_it() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    fs::write(scene.path("file"), "first").expect("written");
    scene.machine().run(&["drain"]);
    let old = File::options().read(true).write(true).open(scene.path("file")).expect("opened");
    let other = scene.world.attached("two");
    let second = other.mount("shared", &scene.world.directory("mnt-2"));
    fs::write(second.path().join("file"), "of the other device").expect("written");
    other.run(&["drain"]);
    scene.machine().run(&["pull"]);
    assert_eq!(fs::read(scene.path("file")).expect("readable"), b"of the other device");

    old.write_all_at(b"more", 5).expect("written");
    scene.computer.disk.fail_syncs("/content/", 1);
    old.sync_all().expect_err("the disk failed");
    assert_eq!(scene.computer.disk.failed_syncs(), 1);
    let new = File::options().write(true).open(scene.path("file")).expect("the new content was never lost");
    new.write_all_at(b"OF", 0).expect("written");
    new.sync_all().expect("durable");
    old.sync_all().expect_err("what was lost is not there now");
    drop((old, new));

    let log = || scene.mounted.as_ref().expect("mounted").log();
    eventually("the old content is copied", || log().contains("has a new backing file"));
    let names = fs::read_dir(scene.path("")).expect("listed").map(|entry| entry.expect("an entry").file_name());
    let conflict =
        names.into_iter().find(|name| name.to_string_lossy().contains("conflict")).expect("it was written to");
    let conflict = scene.path(&conflict.to_string_lossy());
    sync(&conflict).expect("durable");
    assert_eq!(fs::read(conflict).expect("readable"), b"firstmore");
    assert_eq!(fs::read(scene.path("file")).expect("readable"), b"OF the other device");
}
