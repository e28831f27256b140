//! Who may do what: owners, modes, set-id bits, sticky directories. All of it takes root, to act as others.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;

use super::support::*;
use crate::harness::{eventually, is_root};

/// An ordinary user and group.
const SOMEBODY: u32 = 1234;

pub fn modes_decide_who_may_do_what(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    fs::write(dir.join("file"), b"content").unwrap();
    for (bits, reads, writes) in
        [(0o600, false, false), (0o604, true, false), (0o602, false, true), (0o606, true, true)]
    {
        set_mode(&dir.join("file"), bits);
        assert_eq!(as_nobody(dir, "cat file"), reads, "{bits:o}");
        assert_eq!(as_nobody(dir, "echo more >> file"), writes, "{bits:o}");
    }
    set_mode(&dir.join("file"), 0o060);
    chown(dir.join("file"), None, Some(NOBODY)).unwrap();
    assert!(as_nobody(dir, "cat file && echo more >> file"));
    assert!(!as_nobody(dir, "chmod 666 file"), "only the owner changes the mode");
    assert!(!as_nobody(dir, "touch -d @1000 file"), "only the owner sets times");
}

pub fn a_directory_that_is_not_writable_keeps_its_names(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    let sub = dir.join("sub");
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("file"), b"").unwrap();
    set_mode(&sub.join("file"), 0o666);
    set_mode(&sub, 0o755);
    for script in ["rm -f file", "mv file other", "touch new", "mkdir new", "ln -s x new", "ln file new"] {
        assert!(!as_nobody(&sub, script), "{script}");
    }
    assert_eq!(names(&sub), ["file"]);
    set_mode(&sub, 0o711);
    assert!(!as_nobody(dir, "ls sub") && as_nobody(dir, "test -r sub/file"));
    set_mode(&sub, 0o744);
    assert!(as_nobody(dir, "ls sub") && !as_nobody(dir, "cat sub/file"));
}

pub fn files_belong_to_whoever_makes_them(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    set_mode(dir, 0o777);
    assert!(as_user(dir, SOMEBODY, NOBODY, "touch file && mkdir sub && ln -s x link && mkfifo fifo"));
    for name in ["file", "sub", "link", "fifo"] {
        let meta = fs::symlink_metadata(dir.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (SOMEBODY, NOBODY), "{name}");
    }
    assert_eq!((mode(&dir.join("file")), mode(&dir.join("sub"))), (0o644, 0o755));
    assert!(!as_user(dir, SOMEBODY, NOBODY, "chown 0 file"));
}

pub fn a_set_group_id_directory_passes_its_group_on(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, None, Some(4321)).unwrap();
    set_mode(&shared, 0o2777);
    assert!(as_nobody(&shared, "touch file && mkdir sub && touch sub/below && ln -s x link"));
    for name in ["file", "sub", "sub/below", "link"] {
        assert_eq!(fs::symlink_metadata(shared.join(name)).unwrap().gid(), 4321, "{name}");
    }
    assert_eq!(mode(&shared.join("sub")), 0o2755);
    assert_eq!(mode(&shared.join("file")), 0o644);
}

pub fn in_a_sticky_directory_only_owners_remove(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    set_mode(dir, 0o1777);
    assert!(as_user(dir, SOMEBODY, SOMEBODY, "echo > theirs"));
    set_mode(&dir.join("theirs"), 0o666);
    assert!(!as_nobody(dir, "rm -f theirs") && !as_nobody(dir, "mv theirs mine"));
    assert!(as_nobody(dir, "touch mine && mv mine own && rm own"));
    assert!(!as_nobody(dir, "touch mine && mv -f mine theirs"));
    assert!(as_user(dir, SOMEBODY, SOMEBODY, "rm theirs"));
}

pub fn a_write_by_an_ordinary_user_clears_set_id_bits(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    let path = dir.join("program");
    let changes = [
        "echo more >> program",
        ": > program",
        "truncate -s 3 program",
        "dd of=program conv=notrunc if=/bin/sh bs=9 count=1",
    ];
    for script in changes {
        fs::write(&path, b"content").unwrap();
        set_mode(&path, 0o6777);
        assert!(as_nobody(dir, script), "{script}");
        assert_eq!(mode(&path), 0o777, "{script}");
    }
    set_mode(&path, 0o2767);
    assert!(as_nobody(dir, "echo more >> program"));
    assert_eq!(mode(&path) & 0o4000, 0, "without group execute the group bit is no privilege");
}

pub fn a_change_of_owner_clears_set_id_bits(dir: &Path) {
    if !is_root() {
        return;
    }
    let path = dir.join("program");
    file(&path);
    set_mode(&path, 0o6755);
    chown(&path, Some(SOMEBODY), None).unwrap();
    assert_eq!(mode(&path), 0o755);
    set_mode(&path, 0o6755);
    chown(&path, None, Some(SOMEBODY)).unwrap();
    assert_eq!(mode(&path), 0o755);
    let sub = dir.join("sub");
    fs::create_dir(&sub).unwrap();
    set_mode(&sub, 0o2755);
    chown(&sub, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    assert_eq!(mode(&sub), 0o2755, "a directory keeps them");
}

pub fn programs_can_be_run(dir: &Path) {
    fs::copy("/bin/true", dir.join("program")).unwrap();
    set_mode(&dir.join("program"), 0o755);
    // A process that another test is about to start may have the program open for writing for a moment.
    let run = || Command::new(dir.join("program")).status();
    eventually("it runs", || !matches!(run(), Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy));
    assert!(run().unwrap().success());
}

pub fn a_program_that_runs_is_not_written_to(dir: &Path) {
    let program = dir.join("program");
    // By a process of its own: a descriptor of ours could be on its way to one that another test is about to start.
    assert!(Command::new("cp").arg("/bin/cat").arg(&program).status().unwrap().success());
    let mut running = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut question, mut answer) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
    let open = fs::File::options;
    let ways =
        [open().write(true).clone(), open().read(true).append(true).clone(), open().write(true).truncate(true).clone()];
    for way in ways {
        fails_io(way.open(&program), Errno::TXTBSY);
    }
    question.write_all(b"it runs").unwrap();
    let mut bytes = [0; 7];
    answer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"it runs");
    drop(question);
    assert!(running.wait().unwrap().success());
    eventually("it can be written to", || fs::File::options().write(true).open(&program).is_ok());
}
