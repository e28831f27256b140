//! Ordinary programs on a drive, and what they made as seen on a second machine, both ways, with the vault in a folder and on a
//! real S3 server. The second machine is mounted all the time and shows what the first did without being asked to look. What programs do
//! with contents goes both ways that the kernel has: past the drive, and through it.

mod builds;
mod databases;
mod saving;
mod streams;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use databases::sqlite_in_wal_mode_under_load_is_whole_on_both_machines;

use super::world::{Machine, Mounted, World, becomes_equal, has_program, snapshot};
use crate::harness::{can_mount, eventually};
use crate::servers::shared_seaweedfs;

/// Runs a script in a directory; what it prints.
#[track_caller]
fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        // Nothing goes on once a command has ended.
        .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "maintenance.auto"), ("GIT_CONFIG_VALUE_0", "false")])
        // Looking changes nothing; else both machines would write the index.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .output()
        .expect("bash is there");
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{}\n{shown}", output.status);
    shown
}

/// A tree of real files: this project's own sources.
fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Two machines that have mounted one vault.
struct Pair<'a> {
    machines: [Machine<'a>; 2],
    mounts: [Mounted; 2],
    carried: Cell<u32>,
}

impl<'a> Pair<'a> {
    fn new(world: &'a World) -> Self {
        Self::with(world, &[])
    }

    /// Mounted with further options.
    fn with(world: &'a World, options: &[&str]) -> Self {
        world.with_vault();
        let machines = [world.attached("one"), world.attached("two")];
        let mount = |machine: &Machine<'a>, mountpoint: PathBuf| {
            let path = mountpoint.to_str().expect("text");
            machine.mount_with(&[&["mount", "shared", path, "--log", "info"], options].concat(), &mountpoint)
        };
        let mounts = [mount(&machines[0], world.directory("mnt-1")), mount(&machines[1], world.directory("mnt-2"))];
        Self { machines, mounts, carried: Cell::new(0) }
    }

    fn paths(&self) -> [&Path; 2] {
        [self.mounts[0].path(), self.mounts[1].path()]
    }

    /// Drains a machine. The other one then shows, by itself, everything that this one does.
    #[track_caller]
    fn carry(&self, from: usize) {
        self.machines[from].run(&["drain"]);
        // Published after everything else.
        let marker = format!("marker-{}", self.carried.replace(self.carried.get() + 1));
        fs::write(self.mounts[from].path().join(&marker), "done").expect("written");
        self.machines[from].run(&["drain"]);
        let other = self.mounts[1 - from].path();
        eventually("the other machine shows what was drained", || other.join(&marker).exists());
        becomes_equal(other, self.mounts[from].path());
    }
}

/// Each case on a vault in a folder, and on one on a server.
macro_rules! on_every_store {
    ($($case:ident by $($program:literal),+;)*) => {
        mod on_a_folder {
            $(#[test]
            fn $case() {
                if super::can_run(&[$($program),+]) {
                    let world = super::World::new();
                    super::$case(&world, &super::Pair::new(&world));
                }
            })*
        }
        mod on_s3 {
            $(#[test]
            fn $case() {
                let (true, Some(server)) = (super::can_run(&[$($program),+]), super::shared_seaweedfs()) else { return };
                let world = super::World::on(server);
                super::$case(&world, &super::Pair::new(&world));
            })*
        }
    };
}

on_every_store! {
    git_clone_is_whole_on_both_machines by "git";
    sqlite_in_wal_mode_under_load_is_whole_on_both_machines by "sqlite3";
    tar_of_a_source_tree_is_the_same_on_both_machines by "tar";
    rsync_finds_no_difference_on_either_machine by "rsync";
}

/// Each case with both ways of the kernel to the contents.
macro_rules! on_both_ways {
    ($($module:ident::$case:ident by $($program:literal),+;)*) => {
        mod past_the_drive {
            $(#[test]
            fn $case() {
                super::run(&[$($program),+], &[], super::$module::$case);
            })*
        }
        mod through_the_drive {
            $(#[test]
            fn $case() {
                super::run(&[$($program),+], &["--no-passthrough"], super::$module::$case);
            })*
        }
    };
}

on_both_ways! {
    builds::cargo_builds_and_sees_what_is_fresh by "cargo";
    builds::git_gc_and_status_of_many_files_are_right_on_both_machines by "git";
    builds::zip_archives_are_made_and_unpacked by "python3";
    databases::sqlite_in_wal_mode_under_load_is_whole_on_both_machines by "sqlite3";
    databases::sqlite_with_a_rollback_journal_under_load_is_whole_on_both_machines by "sqlite3";
    saving::documents_saved_by_editors_arrive_whole_and_alone by "bash";
    saving::vim_saves_in_both_ways by "vim";
    streams::a_download_is_filled_out_of_order by "bash";
    streams::a_file_can_be_read_while_it_grows by "bash";
    streams::lines_that_processes_append_are_all_there by "bash";
    streams::tail_follows_a_log_that_is_rotated by "tail";
    streams::watchers_are_told_of_local_changes by "bash";
}

fn run(programs: &[&str], options: &[&str], case: fn(&World, &Pair<'_>)) {
    if can_run(programs) {
        let world = World::new();
        case(&world, &Pair::with(&world, options));
    }
}

fn can_run(programs: &[&str]) -> bool {
    can_mount() && programs.iter().all(|program| has_program(program))
}

fn git_clone_is_whole_on_both_machines(world: &World, pair: &Pair<'_>) {
    let origin = world.directory("origin");
    let commit = "git add -A && git -c user.name=t -c user.email=t@example.org commit -qm";
    shell(
        &origin,
        &format!(
            "git init -q && cp -r {0}/src {0}/docs . && {commit} one && rm -r docs && git mv src moved && {commit} two && git gc -q",
            sources().display()
        ),
    );
    let clone = format!(
        "git clone -q {} clone && cd clone && git checkout -q -b work && date > new && {commit} three",
        origin.display()
    );
    shell(pair.paths()[0], &clone);
    pair.carry(0);
    let check =
        "cd clone && git fsck --full --strict && test -z \"$(git status --porcelain)\" && git log --oneline | wc -l";
    for path in pair.paths() {
        assert!(shell(path, check).trim_end().ends_with('3'));
    }
    shell(pair.paths()[1], &format!("cd clone && git rm -qr moved/cli && date >> new && {commit} four && git gc -q"));
    pair.carry(1);
    for path in pair.paths() {
        assert!(shell(path, check).trim_end().ends_with('4'));
    }
}

fn tar_of_a_source_tree_is_the_same_on_both_machines(_world: &World, pair: &Pair<'_>) {
    let from = sources().display().to_string();
    let [first, second] = pair.paths();
    shell(first, &format!("tar -C {from} -cf - src tests docs Cargo.toml Cargo.lock | tar -xpf -"));
    shell(first, "ln -s Cargo.toml link && ln src/lib.rs hard && mkfifo pipe && chmod 640 Cargo.lock && mkdir empty");
    pair.carry(0);
    for directory in ["src", "tests", "docs"] {
        shell(second, &format!("diff -r {from}/{directory} {directory}"));
    }
    let links = "stat -c %h hard && test hard -ef src/lib.rs && test -p pipe && readlink link";
    assert_eq!(shell(second, links), "2\nCargo.toml\n");

    shell(second, &format!("rm -r docs hard && tar -C {from} -cf - platform | tar -xpf - && mv src moved"));
    pair.carry(1);
    shell(first, &format!("diff -r {from}/platform platform && diff -r {from}/src moved && test ! -e docs"));
    assert_eq!(shell(first, "stat -c %h moved/lib.rs"), "1\n");
}

fn rsync_finds_no_difference_on_either_machine(world: &World, pair: &Pair<'_>) {
    let local = world.directory("local");
    shell(
        &local,
        &format!(
            "cp -a {0}/src {0}/Cargo.lock . && truncate -s 3M sparse && dd if=/dev/urandom of=random bs=1M count=5",
            sources().display()
        ),
    );
    shell(
        &local,
        "chmod 600 random && touch -d '2001-02-03 04:05:06.789' Cargo.lock && mkdir -p deep/er/still && chmod 2750 deep",
    );
    let difference = format!("rsync -a --checksum --itemize-changes --dry-run --delete {}/ copy/", local.display());
    for turn in [0, 1] {
        // Of another second than what rsync makes: it corrects only times whose seconds differ.
        shell(&local, "find . -type d -exec touch -d '2019-01-02 03:04:05.678' {} +");
        shell(pair.paths()[turn], &format!("rsync -a --delete {}/ copy/", local.display()));
        pair.carry(turn);
        for path in pair.paths() {
            assert_eq!(shell(path, &difference), "");
        }
        // And back, from the machine that did not write it.
        let back = world.directory(&format!("back-{turn}"));
        shell(&back, &format!("rsync -a {}/copy/ .", pair.paths()[1 - turn].display()));
        assert_eq!(snapshot(&back), snapshot(&local));
        shell(&local, "rm -rf src/cli && echo more >> Cargo.lock && touch -d '2011-02-03' random && chmod 700 deep/er");
    }
}
