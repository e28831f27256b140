//! Test suites of the field on mounted drives: pjdfstest for what POSIX says of names, modes, times and errors, fsx for contents.
//! `scripts/test-deps` installs both.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::exerciser::Exerciser;
use super::world::{Mounted, World, becomes_equal, copy_program};
use crate::harness::{can_mount, is_root};
use crate::servers::find_tool;
use crate::skip::skipped;

/// Two ordinary users that every Debian has; the suite acts as both.
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "/dev/shm"
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["daemon", "daemon"], ["nobody", "nogroup"]]
"#;
const NOBODY: u32 = 65534;

/// The case that opens a running program, at last with `O_RDONLY | O_TRUNC`: for that the kernel asks a FUSE file system to
/// empty the file before it looks whether the program runs (docs/SEMANTICS.md), and a program that is still starting dies of it
/// before the kernel looks. All else that it says is said by `a_program_that_runs_is_not_written_to` of our own suite.
const DECIDED_BY_CHANCE: &str = "open::etxtbsy";

/// All kinds of operations that the suite knows, also through mappings, on a file that is opened again now and then.
const FSX_CONFIG: &str = r"
flen = 262144
[weights]
close_open = 1
invalidate = 1
truncate = 5
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 2
punch_hole = 5
copy_file_range = 5
";

fn tool(name: &str) -> Option<PathBuf> {
    let found = find_tool(name);
    if found.is_none() {
        skipped(format_args!("{name} is not installed (scripts/test-deps installs it)"));
    }
    found
}

/// Runs the suite and answers how many of its cases passed.
#[track_caller]
fn pjdfstest(world: &World, mounted: &Mounted, mut command: Command) -> u64 {
    let config = world.path("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG).expect("written");
    let output = command.arg("-c").arg(&config).arg("-p").arg(mounted.path()).output().expect("the suite starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed = |line: &str| Some(line.strip_suffix("FAILED")?.trim().to_owned());
    let failed: Vec<String> = text.lines().filter_map(failed).collect();
    assert!(output.status.success() || failed == [DECIDED_BY_CHANCE], "{failed:?} failed\n{text}");
    let summary = text.lines().find(|line| line.starts_with("Summary: ")).expect("a summary");
    assert!(summary.starts_with(&format!("Summary: {} failed, ", failed.len())), "{text}");
    let passed = summary.split(", ").find_map(|part| part.strip_suffix(" passed")).expect("a count");
    passed.parse().expect("a number")
}

fn pjdfstest_as_root(options: &[&str]) {
    let Some(suite) = tool("pjdfstest") else { return };
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    // Others are to reach the mount.
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    world.with_vault();
    let machine = world.attached("two");
    let mountpoint = world.directory("mnt");
    let text = mountpoint.to_str().expect("text");
    let arguments = [&["mount", "shared", text, "--allow-other"], options].concat();
    let mounted = machine.mount_with(&arguments, &mountpoint);
    let passed = pjdfstest(&world, &mounted, Command::new(suite));
    assert!(passed > 350, "only {passed} cases ran");
}

#[test]
fn pjdfstest_passes_for_root() {
    pjdfstest_as_root(&[]);
}

#[test]
fn pjdfstest_passes_for_root_without_passthrough() {
    pjdfstest_as_root(&["--no-passthrough"]);
}

#[test]
fn pjdfstest_passes_for_an_ordinary_user() {
    let Some(suite) = tool("pjdfstest") else { return };
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    let home = world.directory("home");
    let mountpoint = world.directory("home/mnt");
    let (program, suite_copy) = (home.join("cairn"), home.join("pjdfstest"));
    copy_program(env!("CARGO_BIN_EXE_cairn"), &program);
    copy_program(suite, &suite_copy);
    for path in [world.path(""), home.clone(), mountpoint.clone()] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("we are root");
    }
    let machine = world.machine("one");
    let mut command = Command::new(&program);
    command.args(["mount", mountpoint.to_str().expect("text")]);
    command.env("CAIRN_DATA_DIR", home.join("data")).env("HOME", &home).uid(NOBODY).gid(NOBODY);
    let mut mounted = machine.mount_by(command, &mountpoint);
    let mut command = Command::new(suite_copy);
    command.uid(NOBODY).gid(NOBODY);
    let passed = pjdfstest(&world, &mounted, command);
    assert!(passed > 150, "only {passed} cases ran");
    // Its mount is not for us to look into, so it has to end by itself.
    mounted.signal(Signal::TERM);
    mounted.ended_well();
}

fn fsx(world: &World, suite: &Path, mounted: &Mounted, seed: u64) {
    let config = world.path("fsx.toml");
    fs::write(&config, FSX_CONFIG).expect("written");
    let operations = number("CAIRN_FSX_OPERATIONS", 3000).to_string();
    let output = Command::new(suite)
        .args(["-N", &operations, "-S", &seed.to_string(), "-f"])
        .arg(&config)
        .arg("-P")
        .arg(world.path(""))
        .arg(mounted.path().join(format!("seed-{seed}")))
        .output()
        .expect("the suite starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "seed {seed}: {text}");
    assert!(text.contains("All operations completed"), "seed {seed}: {text}");
}

fn fsx_seeds(options: &[&str]) {
    let Some(suite) = tool("fsx") else { return };
    if !can_mount() {
        return;
    }
    let seeds = number("CAIRN_FSX_SEEDS", 3) as u64;
    let world = World::new();
    world.with_vault();
    let machine = world.attached("two");
    // It is published all the time while it is written.
    machine.set("settle = '1ms'\nmax-delay = '1ms'\ncache-budget = '1 B'\nread-deadline = '1d'\n");
    let mountpoint = world.directory("mnt");
    let text = mountpoint.to_str().expect("text");
    let mounted = machine.mount_with(&[&["mount", "shared", text], options].concat(), &mountpoint);
    for seed in 1..=seeds {
        fsx(&world, &suite, &mounted, seed);
    }
}

#[test]
fn fsx_finds_no_fault() {
    fsx_seeds(&[]);
}

#[test]
fn fsx_finds_no_fault_without_passthrough() {
    fsx_seeds(&["--no-passthrough"]);
}

/// How much of a suite is done: what fits here, or more by a variable.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Files that are exercised side by side while the drive publishes them all the time and keeps nothing of what it published. In the
/// end another machine has the same.
fn exercised_under_eviction(options: &[&str]) {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("two");
    machine.set("settle = '1ms'\nmax-delay = '1ms'\ncache-budget = '1 B'\nread-deadline = '1d'\n");
    let mountpoint = world.directory("mnt");
    let text = mountpoint.to_str().expect("text");
    let mounted = machine.mount_with(&[&["mount", "shared", text], options].concat(), &mountpoint);
    let seeds = number("CAIRN_EXERCISED_SEEDS", 4) as u64;
    let operations = number("CAIRN_EXERCISED_OPERATIONS", 1500);
    std::thread::scope(|scope| {
        for seed in 1..=seeds {
            let mut exerciser = Exerciser::new(mounted.path(), seed);
            scope.spawn(move || {
                let evictions = exerciser.run(operations);
                eprintln!("seed {seed}: {operations} operations, {evictions} evictions");
                assert!(evictions > 0, "nothing was read from the remote again");
            });
        }
    });
    machine.run(&["drain"]);
    let other = world.attached("three").mount("shared", &world.directory("mnt-3"));
    becomes_equal(other.path(), mounted.path());
}

#[test]
fn exercised_files_are_right_when_they_are_evicted_all_the_time() {
    exercised_under_eviction(&[]);
}

#[test]
fn exercised_files_are_right_when_they_are_evicted_all_the_time_without_passthrough() {
    exercised_under_eviction(&["--no-passthrough"]);
}
