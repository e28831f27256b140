//! Programs that make and read many files: git, cargo, zip.

use std::fs;

use super::super::world::World;
use super::{Pair, shell, sources};

/// Files of the repository: many in the full run, `CAIRN_GIT_FILES=20000`.
fn git_files() -> usize {
    std::env::var("CAIRN_GIT_FILES").map_or(1200, |text| text.parse().expect("a number"))
}

pub fn git_gc_and_status_of_many_files_are_right_on_both_machines(world: &World, pair: &Pair<'_>) {
    let files = git_files();
    let origin = world.directory("origin");
    for number in 0..files {
        let directory = origin.join(format!("{:02}/{}", number % 40, number % 3));
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join(format!("file-{number}")), format!("{number}\n").repeat(1 + number % 50))
            .expect("written");
    }
    let commit = "git add -A && git -c user.name=t -c user.email=t@example.org commit -qm";
    shell(&origin, &format!("git init -q && {commit} one"));
    let [first, second] = pair.paths();
    shell(first, &format!("git clone -q {} clone", origin.display()));
    let changed = "git status --porcelain | wc -l";
    let in_clone = |path, script: &str| shell(path, &format!("cd clone && {script}"));
    assert_eq!(in_clone(first, changed), "0\n");
    // A third of the files in each of the 40 directories.
    in_clone(first, "for directory in */0; do for file in $directory/*; do echo more >> $file; done; done");
    let touched = files.div_ceil(3);
    assert_eq!(in_clone(first, changed), format!("{touched}\n"));
    in_clone(first, "git stash -q && git stash pop -q && git checkout -q . && git gc -q --prune=now");
    assert_eq!(in_clone(first, changed), "0\n");
    in_clone(first, &format!("git rm -qr 07 && git mv 08 moved && {commit} two && git gc -q --prune=now"));
    pair.carry(0);
    for path in [first, second] {
        assert_eq!(in_clone(path, changed), "0\n");
        in_clone(path, "git fsck --full --strict");
    }
    // The other machine goes on.
    in_clone(
        second,
        &format!("git reset -q --hard HEAD~1 && echo new > new && {commit} three && git gc -q --prune=now"),
    );
    pair.carry(1);
    assert_eq!(in_clone(first, &format!("{changed}; git ls-files | wc -l")), format!("0\n{}\n", files + 1));
}

/// A crate without dependencies: a build script, a library, a program, a test.
const CRATE: [(&str, &str); 4] = [
    ("Cargo.toml", "[package]\nname = 'small'\nversion = '0.1.0'\nedition = '2021'\n[workspace]\n"),
    (
        "build.rs",
        "fn main() { let out = std::env::var('OUT_DIR').unwrap(); std::fs::write(out + '/made.rs', 'pub const MADE: u32 = 41;').unwrap(); }",
    ),
    (
        "src/lib.rs",
        "include!(concat!(env!('OUT_DIR'), '/made.rs'));\npub fn answer() -> u32 { MADE + 1 }\n#[test] fn right() { assert_eq!(answer(), 42); }\n",
    ),
    ("src/main.rs", "fn main() { println!('{}', small::answer()); }\n"),
];

pub fn cargo_builds_and_sees_what_is_fresh(_world: &World, pair: &Pair<'_>) {
    let [first, second] = pair.paths();
    fs::create_dir_all(first.join("small/src")).expect("made");
    for (name, text) in CRATE {
        let quoted = if name == "Cargo.toml" { text.to_owned() } else { text.replace('\'', "\"") };
        fs::write(first.join("small").join(name), quoted).expect("written");
    }
    let cargo = |path, command: &str| {
        shell(path, &format!("cd small && CARGO_TARGET_DIR=$PWD/target cargo {command} --offline"))
    };
    let compiles = |text: &str| text.contains("Compiling small");
    assert!(compiles(&cargo(first, "build")));
    let shown = cargo(first, "build");
    assert!(!compiles(&shown), "nothing has changed: {shown}");
    assert!(cargo(first, "test --lib").contains("1 passed"));
    fs::write(first.join("small/src/main.rs"), "fn main() { println!(\"the answer is {}\", small::answer()); }\n")
        .expect("written");
    assert!(cargo(first, "run").contains("the answer is 42"));
    pair.carry(0);
    assert_eq!(shell(second, "small/target/debug/small"), "the answer is 42\n");
}

pub fn zip_archives_are_made_and_unpacked(_world: &World, pair: &Pair<'_>) {
    let from = sources().join("src").display().to_string();
    let [first, second] = pair.paths();
    shell(
        first,
        &format!(
            "python3 -m zipfile -c archive.zip {from} && mkdir unpacked && python3 -m zipfile -e archive.zip unpacked"
        ),
    );
    shell(first, &format!("diff -r {from} unpacked/src"));
    pair.carry(0);
    shell(second, &format!("python3 -m zipfile -t archive.zip && diff -r {from} unpacked/src"));
    shell(second, "mkdir again && cd again && python3 -m zipfile -e ../archive.zip . && rm -r ../unpacked");
    pair.carry(1);
    shell(first, &format!("diff -r {from} again/src && test ! -e unpacked"));
}
