//! Wrong input: one sentence that names the thing, exit code 1 or 2, and nothing changed. (A full disk: `full_disk`.)

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::workload::noise;
use super::world::{Machine, PASSPHRASE, World, snapshot};
use crate::harness::{MemoryDisk, can_mount, eventually, is_root};

/// Argon2id is meant to take time, so vaults with a passphrase are made only where it matters.
fn with_passphrase(world: &World) -> Machine<'_> {
    let machine = world.machine("one").with("CAIRN_PASSPHRASE", PASSPHRASE);
    machine.run(&["init", &world.remote()]);
    machine
}

/// Checks that a command is refused and that nothing changes: not the vault, and not what is in the data directory.
#[track_caller]
fn refuses_and_leaves(world: &World, machine: &Machine<'_>, arguments: &[&str], named: &[&str]) {
    let before = (snapshot(&world.path("vault")), kept(machine));
    machine.refuses(arguments, named);
    let after = (snapshot(&world.path("vault")), kept(machine));
    assert_eq!(after, before, "cairn {} changed something", arguments.join(" "));
}

/// What a machine keeps: all files of its data directory and what they hold.
fn kept(machine: &Machine<'_>) -> BTreeMap<PathBuf, Vec<u8>> {
    fn collect(directory: &Path, kept: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let bytes = if path.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
            collect(&path, kept);
            kept.insert(path, bytes);
        }
    }
    let mut files = BTreeMap::new();
    collect(&machine.data(), &mut files);
    files
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("written");
}

fn cut_in_half(path: &Path) {
    let bytes = fs::read(path).expect("readable");
    fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
}

/// The only file at any depth below a directory.
fn only_file(directory: &Path) -> PathBuf {
    let mut entries = fs::read_dir(directory).expect("a directory");
    let path = entries.next().expect("it is not empty").expect("an entry").path();
    assert!(entries.next().is_none(), "more than one in {directory:?}");
    if path.is_dir() { only_file(&path) } else { path }
}

#[test]
fn wrong_passphrase_is_said_and_makes_nothing() {
    let world = World::new();
    with_passphrase(&world);
    let other = world.machine("two").with("CAIRN_PASSPHRASE", "wrong");
    refuses_and_leaves(&world, &other, &["attach", &world.remote()], &["passphrase", "vault"]);
    let mountpoint = world.directory("mnt");
    let mount = ["mount", &world.remote(), mountpoint.to_str().expect("text")];
    refuses_and_leaves(&world, &other, &mount, &["passphrase", "vault"]);
    let empty = world.machine("two").with("CAIRN_PASSPHRASE", "");
    refuses_and_leaves(&world, &empty, &["attach", &world.remote()], &["CAIRN_PASSPHRASE", "empty"]);
    let none = world.machine("two");
    refuses_and_leaves(&world, &none, &["attach", &world.remote()], &["no terminal", "--passphrase-file"]);
}

#[test]
fn secrets_that_cannot_be_read_are_named() {
    let world = World::new();
    let machine = world.with_vault();
    let remote = world.remote();
    fs::write(world.path("bad.key"), "not a key").expect("written");
    fs::write(world.path("empty"), "\n").expect("written");
    for (arguments, named) in [
        (["--key-file", "none.key"], "none.key"),
        (["--key-file", "bad.key"], "bad.key"),
        (["--passphrase-file", "none"], "none"),
        (["--passphrase-file", "empty"], "empty"),
    ] {
        let arguments = [["attach", &remote].as_slice(), &arguments].concat();
        refuses_and_leaves(&world, &machine, &arguments, &[named]);
    }
    let both = machine.finish(&["attach", &remote, "--key-file", "a", "--passphrase-file", "b"]);
    assert_eq!(both.status.code(), Some(2), "{}", both.err);
}

#[test]
fn what_is_not_a_vault_is_told_from_one() {
    let world = World::new();
    let machine = world.machine("one").with("CAIRN_PASSPHRASE", PASSPHRASE);
    let vault = world.directory("vault");
    let remote = world.remote();
    refuses_and_leaves(&world, &machine, &["attach", &remote], &[&remote, "cairn init"]);
    fs::write(vault.join("somebody's file"), "bytes").expect("written");
    refuses_and_leaves(&world, &machine, &["attach", &remote], &[&remote, "cairn init"]);
    refuses_and_leaves(&world, &machine, &["init", &remote], &["somebody's file"]);
}

#[test]
fn init_of_a_vault_is_refused() {
    let world = World::new();
    let machine = world.with_vault();
    refuses_and_leaves(&world, &machine, &["init", &world.remote(), "--key-file", "new.key"], &[&world.remote()]);
    assert!(!world.path("new.key").exists(), "no key file was made");
}

#[test]
fn damaged_descriptor_and_key_slots_are_named() {
    let world = World::new();
    let machine = world.with_vault();
    let vault = world.path("vault");
    let descriptor = vault.join("cairn.json");
    let slots: Vec<_> =
        fs::read_dir(vault.join("keys")).expect("slots").map(|slot| slot.expect("a slot").path()).collect();
    let attach = |named: &[&str]| {
        refuses_and_leaves(&world, &machine, &["attach", &world.remote(), "--key-file", &world.key_file()], named);
    };

    let good = fs::read_to_string(&descriptor).expect("text");
    fs::write(&descriptor, &good[..good.len() / 2]).expect("written");
    attach(&["cairn.json"]);
    fs::write(&descriptor, "").expect("written");
    attach(&["cairn.json"]);
    fs::write(&descriptor, newer(&good)).expect("written");
    attach(&["version 2", "update"]);
    fs::remove_file(&descriptor).expect("removed");
    fs::create_dir_all(vault.join("log/00000a")).expect("made");
    fs::write(vault.join("log/00000a/00000000000000000001"), "bytes").expect("written");
    attach(&["cairn.json"]);
    fs::remove_dir_all(vault.join("log")).expect("removed");
    fs::write(&descriptor, &good).expect("written");

    // With every slot damaged none can be the right one.
    slots.iter().for_each(|slot| flip_a_bit(slot));
    attach(&["keys/"]);
    slots.iter().for_each(|slot| flip_a_bit(slot));
    slots.iter().for_each(|slot| cut_in_half(slot));
    attach(&["keys/"]);
}

fn newer(descriptor: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(descriptor).expect("JSON");
    let version = value.as_object_mut().expect("an object").get_mut("version").expect("a version");
    *version = serde_json::json!(2);
    value.to_string()
}

#[test]
fn remotes_and_drives_that_do_not_exist_are_named() {
    let world = World::new();
    let machine = world.machine("one").with("CAIRN_PASSPHRASE", PASSPHRASE);
    let mountpoint = world.directory("mnt");
    let mountpoint = mountpoint.to_str().expect("text");
    for (what, named) in [
        ("gopher://host/path", "gopher"),
        ("s3://bucket/prefix?colour=blue", "colour"),
        ("s3://user:secret@bucket/prefix", "credentials.toml"),
        ("fs://host/path", "host"),
        ("memory:x", "memory"),
        ("fs:///nonexistent/vault", "/nonexistent/vault"),
    ] {
        machine.refuses(&["mount", what, mountpoint], &[named]);
        machine.refuses(&["attach", what], &[named]);
    }
    machine.refuses(&["init", "gopher://host/path"], &["gopher"]);
    machine.refuses(&["mount", "no-such-drive", mountpoint], &["no-such-drive", "cairn drives"]);
    for command in ["umount", "drain", "status", "pause", "detach"] {
        machine.refuses(&[command, "no-such-drive"], &["no-such-drive", "cairn drives"]);
    }
    machine.refuses(&["umount"], &["no drive is mounted"]);
    let secret = machine.finish(&["attach", "s3://user:secret@bucket/prefix"]);
    assert!(!secret.err.contains("secret@"), "a secret is not repeated: {}", secret.err);
}

#[test]
fn device_names_that_others_could_not_read_are_refused() {
    let world = World::new();
    let machine = world.with_vault();
    let attach = |name: &str, named: &str| {
        let (remote, key) = (world.remote(), world.key_file());
        let arguments = ["attach", &remote, "--key-file", &key, "--device-name", name];
        refuses_and_leaves(&world, &machine, &arguments, &[named, "--device-name"]);
    };
    attach(&"n".repeat(256), "255 bytes");
    attach("", "empty");
    attach("a\u{1b}[2J", "control characters");
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let world = World::new();
    let machine = world.machine("one");
    for arguments in [
        ["mount"].as_slice(),
        &["detach"],
        &["mount", "a", "b", "c"],
        &["fly"],
        &["drain", "--timeout", "soon"],
        &["limits", "--upload", "fast"],
        &["init", "fs:///x", "--cipher", "rot13"],
        &["completions", "cmd.exe"],
    ] {
        let finished = machine.finish(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {}", finished.err);
    }
}

/// A log that one machine has published and another has not read, cut or with a bit flipped: it is named, what was there stays,
/// and once it is whole again everything goes on.
#[test]
fn damaged_log_is_named_and_goes_on_once_it_is_restored() {
    if !can_mount() {
        return;
    }
    for (damage, joined) in
        [(flip_a_bit as fn(&Path), true), (cut_in_half, true), (flip_a_bit, false), (cut_in_half, false)]
    {
        let world = World::new();
        world.with_vault();
        let (one, two) = (world.attached("one"), world.attached("two"));
        // In one segment.
        one.publishes_when_drained();
        let mountpoint = world.directory("mnt-2");
        let mount = ["mount", "shared", mountpoint.to_str().expect("text")];
        let mounted = joined.then(|| two.mount("shared", &mountpoint));
        if joined {
            two.run(&["pause"]);
        }
        let first = one.mount("shared", &world.directory("mnt-1"));
        fs::write(first.path().join("file"), "bytes").expect("written");
        one.run(&["drain"]);
        let log = only_file(&world.path("vault/log"));
        let name = log.strip_prefix(world.path("vault")).expect("below it").to_str().expect("text");
        let whole = fs::read(&log).expect("readable");
        damage(&log);
        let vault = snapshot(&world.path("vault"));
        if joined {
            two.run(&["resume"]);
            two.refuses(&["pull"], &[name, "restore"]);
            assert!(two.run(&["status"]).contains(name), "the status tells it, too");
        } else {
            let refused = two.finish(&mount);
            let sentence = refused.err.lines().last().expect("it says why");
            assert_eq!(refused.status.code(), Some(1), "{}", refused.err);
            assert!(sentence.starts_with("cairn: ") && sentence.contains(name), "{}", refused.err);
            assert!(sentence.contains("restore"), "{}", refused.err);
        }
        assert_eq!(snapshot(&world.path("vault")), vault, "the vault was changed");
        fs::write(&log, whole).expect("written");
        let mounted = mounted.unwrap_or_else(|| two.mount("shared", &mountpoint));
        two.pull();
        assert_eq!(fs::read_to_string(mounted.path().join("file")).expect("it is there"), "bytes");
    }
}

/// Content whose pack is cut or has a bit flipped is an error for who reads it, never wrong bytes; the log says which pack.
#[test]
fn damaged_pack_is_named_and_never_read_as_content() {
    if !can_mount() {
        return;
    }
    for damage in [flip_a_bit, cut_in_half] {
        let world = World::new();
        world.with_vault();
        let (one, two) = (world.attached("one"), world.attached("two"));
        // In one pack.
        one.publishes_when_drained();
        let first = one.mount("shared", &world.directory("mnt-1"));
        let content = noise(1, 100_000);
        fs::write(first.path().join("file"), &content).expect("written");
        one.run(&["drain"]);
        let pack = only_file(&world.path("vault/packs"));
        let whole = fs::read(&pack).expect("readable");
        damage(&pack);
        let second = two.mount("shared", &world.directory("mnt-2"));
        let error = fs::read(second.path().join("file")).expect_err("damaged");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let name = pack.file_name().expect("it has one").to_str().expect("text");
        eventually("the log names the pack", || second.log().contains(name));
        assert_eq!(fs::read(first.path().join("file")).expect("cached"), content);
        fs::write(&pack, whole).expect("written");
        assert!(fs::read(second.path().join("file")).expect("it is whole again") == content);
    }
}

#[test]
fn unusable_mountpoints_are_named() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.with_vault();
    let full = world.directory("full");
    fs::write(full.join("file"), "bytes").expect("written");
    let file = full.join("file");
    let remote = world.remote();
    let key = world.key_file();
    for (mountpoint, named) in [
        (world.path("missing").as_path(), "mkdir"),
        (full.as_path(), "not empty"),
        (file.as_path(), "not a directory"),
        (Path::new("/proc"), "already mounted"),
    ] {
        let mountpoint = mountpoint.to_str().expect("text");
        let mount = ["mount", remote.as_str(), mountpoint, "--key-file", &key];
        refuses_and_leaves(&world, &machine, &mount, &[mountpoint, named]);
        let background = [mount.as_slice(), &["--background"]].concat();
        refuses_and_leaves(&world, &machine, &background, &[mountpoint, named]);
    }
    assert_eq!(fs::read_to_string(file).expect("untouched"), "bytes");

    // A directory that has a drive already.
    let busy = world.directory("busy");
    let other = world.machine("other");
    let _mounted = other.mount_with(&["mount", busy.to_str().expect("text")], &busy);
    let busy = busy.to_str().expect("text");
    refuses_and_leaves(&world, &machine, &["mount", &remote, busy, "--key-file", &key], &[busy, "already mounted"]);
}

#[test]
fn read_only_data_directory_is_named() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let disk = MemoryDisk::mount(&world.directory("data"), "16m");
    let empty = world.machine("data");
    disk.make_read_only();
    let mountpoint = world.directory("mnt");
    let mountpoint = mountpoint.to_str().expect("text");
    let (remote, key) = (world.remote(), world.key_file());
    for arguments in [
        ["attach", &remote, "--key-file", &key].as_slice(),
        &["mount", &remote, mountpoint, "--key-file", &key],
        &["mount", mountpoint],
    ] {
        refuses_and_leaves(&world, &empty, arguments, &["data", "Read-only"]);
    }
    assert!(fs::read_dir(mountpoint).expect("not mounted").next().is_none());
}

#[test]
fn unusable_data_directory_is_named() {
    let world = World::new();
    world.with_vault();
    fs::write(world.path("file"), "bytes").expect("written");
    let machine = world.machine("file");
    machine.refuses(&["attach", &world.remote(), "--key-file", &world.key_file()], &["data directory", "--data-dir"]);
    assert_eq!(fs::read_to_string(world.path("file")).expect("untouched"), "bytes");
}

#[test]
fn bad_settings_are_refused_before_anything_is_mounted() {
    let world = World::new();
    world.with_vault();
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    let mount = ["mount", "shared", mountpoint.to_str().expect("text")];
    fs::write(machine.drive_dir().join("settings.toml"), "uplaod-limit = '1 MiB'").expect("written");
    machine.refuses(&mount, &["settings.toml", "uplaod-limit"]);
    fs::remove_file(machine.drive_dir().join("settings.toml")).expect("removed");
    fs::write(machine.drive_dir().join("drive.json"), "{").expect("written");
    machine.refuses(&mount, &["drive.json"]);
}
