//! What the program shows on a terminal, and what where there is none.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::world::{Machine, Mounted, World};
use crate::harness::{can_mount, eventually};

/// Runs a command with its stderr on a terminal of this size until it ends; what it wrote there.
fn on_terminal(mut command: Command, columns: u16, rows: u16) -> (std::process::ExitStatus, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("ours");
    unlockpt(&terminal).expect("ours");
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("it has a size");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let far_end = File::options().read(true).write(true).open(name.to_str().expect("text")).expect("opened");
    let mut child = command.stdout(Stdio::null()).stderr(far_end).spawn().expect("the program starts");
    drop(command);
    let mut shown = Vec::new();
    // A terminal whose last user is gone answers EIO.
    match File::from(terminal).read_to_end(&mut shown) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        read => _ = read.expect("readable"),
    }
    (child.wait().expect("our child"), String::from_utf8(shown).expect("text"))
}

/// A drive whose remote is away, so that a drain shows how far it is until its time is over.
fn with_work(world: &World) -> (Machine<'_>, Mounted) {
    world.with_vault();
    let machine = world.attached("one");
    let mounted = machine.mount("shared", &world.directory("mnt"));
    fs::rename(world.path("vault"), world.path("elsewhere")).expect("moved");
    fs::write(mounted.path().join("file"), vec![7; 300_000]).expect("written");
    eventually("the status says that the remote is away", || {
        let status = machine.json(&["status"]);
        status[0]["replication"]["last_error"]["message"].is_string()
    });
    (machine, mounted)
}

const DRAIN: [&str; 3] = ["drain", "--timeout", "1s"];

#[test]
fn a_drain_shows_a_bar_on_terminals_of_every_size_and_kind() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (machine, _mounted) = with_work(&world);
    let shown = |columns, rows, variables: &[(&str, &str)]| {
        let mut command = machine.command(&DRAIN);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        let (status, shown) = on_terminal(command, columns, rows);
        assert_eq!(status.code(), Some(3), "{columns} x {rows} {variables:?}: {shown:?}");
        assert!(!shown.contains("panicked"), "{columns} x {rows} {variables:?}: {shown:?}");
        shown
    };
    let wide = shown(200, 24, &[]);
    assert!(wide.contains("1 file (293.0 KiB) left"), "{wide:?}");
    assert!(wide.contains("vault") && wide.contains("does not exist"), "it says what keeps it: {wide:?}");
    let last = wide.rsplit("left").next().expect("it has an end");
    assert!(last.contains("\u{1b}[2K"), "the bar is gone in the end: {wide:?}");
    for (columns, rows) in [(0, 0), (1, 1), (20, 3)] {
        shown(columns, rows, &[]);
    }
    for variables in [[("LC_ALL", "C"), ("LANG", "C")], [("NO_COLOR", "1"), ("TERM", "xterm")]] {
        let shown = shown(200, 24, &variables);
        assert!(shown.is_ascii() && shown.contains("1 file"), "{shown:?}");
        assert!(!shown.contains("\u{1b}[3"), "no colours: {shown:?}");
    }
    // What cannot move its cursor gets no bar.
    let dumb = shown(200, 24, &[("TERM", "dumb")]);
    assert!(!dumb.contains('\u{1b}'), "{dumb:?}");
}

#[test]
fn a_drain_shows_lines_where_there_is_no_terminal() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (machine, mounted) = with_work(&world);
    let drained = machine.finish(&DRAIN);
    assert_eq!(drained.status.code(), Some(3), "{}{}", drained.out, drained.err);
    let line = "1 file (293.0 KiB) left; ";
    assert!(drained.err.starts_with(line) && drained.err.contains("does not exist"), "{}", drained.err);
    assert!(
        drained.out.contains("1 file (293.0 KiB) is only here: the time that was given is over"),
        "{}",
        drained.out
    );
    assert!(!drained.err.contains('\u{1b}') && !drained.out.contains('\u{1b}'), "{}", drained.err);
    // Also where there was no time at all to find out.
    let at_once = machine.finish(&["drain", "--timeout", "0s"]);
    assert!(
        at_once.err.starts_with(line) && at_once.out.contains("1 file (293.0 KiB) is only here"),
        "{}",
        at_once.out
    );
    let json = machine.finish(&[DRAIN.as_slice(), &["--json"]].concat());
    assert_eq!((json.status.code(), json.err.as_str()), (Some(3), ""), "nothing beside JSON");
    let json: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!((&json["drained"], &json["left"]["files_left"]), (&false.into(), &1.into()), "{json}");
    fs::rename(world.path("elsewhere"), world.path("vault")).expect("moved back");
    // Whoever reads the first lines only, as `head` does, stops nothing.
    let mut command = machine.command(&["drain"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop((child.stdout.take(), child.stderr.take()));
    let status = child.wait().expect("our child");
    assert!(status.success(), "{status}");
    machine.umount(&[]);
    drop(mounted);
}
