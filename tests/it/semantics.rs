//! `docs/SEMANTICS.md` names tests for every promise, and each of them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tests of this program; those of the POSIX suite without the file system they run on.
fn tests() -> BTreeSet<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).args(["--list", "--format", "terse"]).output().expect("this program runs");
    let list = String::from_utf8(output.stdout).expect("names of tests are text");
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let names = names.map(|name| match name.split("::").collect::<Vec<_>>()[..] {
        ["posix", _, module, case] => format!("posix::{module}::{case}"),
        _ => name.to_owned(),
    });
    names.collect()
}

/// Whether a module of the library has a function of that name: its tests are in another program.
fn is_in_the_library(path: &str) -> bool {
    let Some((module, function)) = path.rsplit_once("::") else { return false };
    let file = project().join("src").join(module.replace("::", "/"));
    let sources = [file.with_extension("rs"), file.join("mod.rs")].map(fs::read_to_string);
    sources.into_iter().flatten().any(|source| {
        source.contains(&format!("#[test]\n    fn {function}()"))
            || source.contains(&format!("#[test]\nfn {function}()"))
    })
}

#[test]
fn every_promise_names_tests_that_exist() {
    let semantics = fs::read_to_string(project().join("docs/SEMANTICS.md")).expect("the document");
    let tests = tests();
    let mut promises = 0;
    for line in semantics.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| about")) {
        let (promise, proof) = line.trim_end_matches(" |").rsplit_once(" | ").expect("a row has several columns");
        let named: Vec<&str> = proof.split(", ").map(|name| name.trim_matches('`')).collect();
        assert!(!named.is_empty() && proof.starts_with('`'), "no test is named: {promise}");
        for name in named {
            let exists = match name.strip_prefix("cairnfs::") {
                Some(path) => is_in_the_library(path),
                None => tests.contains(name),
            };
            assert!(exists, "there is no test {name}: {promise}");
        }
        promises += 1;
    }
    assert!(promises >= 40, "{promises} promises were found");
}
