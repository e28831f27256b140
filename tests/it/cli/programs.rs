//! Ordinary programs on a drive, and what they made as seen on a second machine, both ways, with the vault in a folder and on a
//! real S3 server. The second machine is mounted all the time and shows what the first did without being asked to look.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
        world.with_vault();
        let machines = [world.attached("one"), world.attached("two")];
        let mounts = [
            machines[0].mount("shared", &world.directory("mnt-1")),
            machines[1].mount("shared", &world.directory("mnt-2")),
        ];
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

fn sqlite_in_wal_mode_under_load_is_whole_on_both_machines(_world: &World, pair: &Pair<'_>) {
    // Three writers at once, each transaction made durable, and a reader that sees whole transactions only.
    let load = r#"
        writer() {
            { echo '.timeout 120000'; for n in $(seq 60); do
                echo "begin immediate; insert into t values($1, $n, randomblob(3000)); update total set n = n + 1; commit;"
            done; } | sqlite3 -bail app.db
        }
        writer 1 & one=$!; writer 2 & two=$!; writer 3 & three=$!
        for _ in $(seq 10); do
            seen=$(sqlite3 -cmd '.timeout 120000' app.db 'select (select count(*) from t) - (select n from total)')
            test "$seen" = 0
        done
        wait $one; wait $two; wait $three
        # Of connections that are closed at the same time none may be the last, which removes the log.
        sqlite3 app.db 'pragma wal_checkpoint(truncate)' >/dev/null
    "#;
    let tables = "pragma journal_mode=wal; create table t(writer, n, filler); create table total(n); insert into total values(0)";
    shell(pair.paths()[0], &format!("sqlite3 app.db '{tables}'"));
    // Looking changes nothing; else both machines would make the files beside the database.
    let check = "test ! -e app.db-wal && sqlite3 'file:app.db?immutable=1' \
                 'pragma integrity_check; select count(*) from t; select n from total'";
    for (turn, rows) in [(0, 180), (1, 360)] {
        shell(pair.paths()[turn], load);
        pair.carry(turn);
        for path in pair.paths() {
            assert_eq!(shell(path, check), format!("ok\n{rows}\n{rows}\n"));
        }
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
