//! What the README tells people to type, typed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::world::{World, has_program};
use crate::harness::can_mount;

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README")
}

/// Ends what the examples left mounted, also when one of them failed.
struct Unmounter<'a>(&'a World);

impl Drop for Unmounter<'_> {
    fn drop(&mut self) {
        for (data, name) in [("home/.local/share/cairn", "backup"), ("second", "shared")] {
            let machine = self.0.machine(data);
            let _ = machine.command(&["umount", "--force", name]).output();
        }
    }
}

#[test]
fn examples_of_the_readme_work_as_they_are() {
    if !can_mount() || !has_program("sqlite3") || !has_program("python3") {
        return;
    }
    let world = World::new();
    let home = world.directory("home");
    let programs = world.directory("bin");
    symlink(env!("CARGO_BIN_EXE_cairn"), programs.join("cairn")).expect("a link");
    let readme = readme();
    let blocks: Vec<&str> =
        readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("text")).collect();
    assert!(blocks.len() >= 3, "one example for each kind of user");
    let script = format!("set -euxo pipefail\n{}", blocks.concat());

    let _unmounter = Unmounter(&world);
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"));
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(world.path("")).env_clear().env("HOME", &home).env("PATH", path);
    let out = fs::File::create(world.path("readme.out")).expect("a file");
    bash.stdin(std::process::Stdio::null()).stderr(out.try_clone().expect("a file")).stdout(out);
    let status = bash.status().expect("bash is there");
    let shown = fs::read_to_string(world.path("readme.out")).expect("text");
    assert!(status.success(), "{status}\n{shown}");
    assert!(shown.contains("never lose this") && shown.contains("b'replicated'"), "{shown}");
}

#[test]
fn two_commands_of_the_readme_are_real() {
    let readme = readme();
    assert!(readme.lines().count() <= 150);
    assert!(readme.contains("\n    cargo run --release -- mount ~/Cairn\n"));
    assert!(readme.contains("\n    scripts/test\n"));
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.machine("data");
    let mountpoint = world.path("Cairn");
    let mut mounted = machine.mount_with(&["mount", mountpoint.to_str().expect("text")], &mountpoint);
    fs::write(mountpoint.join("file"), "bytes").expect("written");
    machine.run(&["drain"]);
    machine.umount(&[]);
    mounted.ended_well();
}
