//! From the first mount to the last detach.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::world::{Mounted, World, becomes_equal, copy_program, has_program, snapshot};
use crate::harness::{can_mount, eventually};
use crate::posix::support::NOBODY;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn first_mount_makes_a_vault_and_the_next_one_finds_everything() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.machine("data");
    let mountpoint = world.path("Cairn");
    let mut mounted = machine.mount_with(&["mount", text(&mountpoint)], &mountpoint);
    let printed = mounted.printed();
    let words: Vec<&str> =
        printed.lines().filter(|line| line.starts_with("    ")).flat_map(str::split_whitespace).collect();
    assert_eq!(words.len(), 24, "a recovery phrase of 24 words: {printed}");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&machine.data()), 0o700);
    for key in fs::read_dir(machine.data().join("keys")).expect("keys") {
        assert_eq!(mode(&key.expect("a key").path()), 0o600);
    }
    fs::write(mountpoint.join("kept"), "bytes").expect("written");
    machine.umount(&[text(&mountpoint)]);
    mounted.ended_well();
    assert!(fs::read_dir(&mountpoint).expect("unmounted").next().is_none());

    let mut mounted = machine.mount_with(&["mount", text(&mountpoint)], &mountpoint);
    assert!(!mounted.printed().contains("recovery"), "the phrase is shown once: {}", mounted.printed());
    assert_eq!(fs::read_to_string(mountpoint.join("kept")).expect("read"), "bytes");
    machine.umount(&[]);
    mounted.ended_well();

    // The recovery phrase opens the vault on another machine.
    let vault = format!("fs://{}", machine.data().join("vault").display());
    let other = world.machine("other").with("CAIRN_PASSPHRASE", words.join(" "));
    other.run(&["attach", &vault, "--name", "rescued"]);
}

#[test]
fn background_mount_returns_when_ready_and_status_drain_and_umount_reach_it() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.with_vault();
    let mountpoint = world.directory("mnt");
    let remote = world.remote();
    machine.run(&[
        "mount",
        &remote,
        text(&mountpoint),
        "--background",
        "--key-file",
        &world.key_file(),
        "--name",
        "work",
    ]);
    fs::write(mountpoint.join("file"), vec![7; 100_000]).expect("the mount is ready");

    let status = machine.json(&["status"]);
    assert_eq!(status[0]["name"], "work");
    assert_eq!(status[0]["mountpoint"], text(&mountpoint));
    assert_eq!(status[0]["replication"]["remote"], remote.as_str());
    assert!(machine.run(&["status", "work"]).contains(text(&mountpoint)));
    machine.refuses(&["mount", "work", text(&world.directory("second"))], &["work", "already mounted"]);
    machine.refuses(&["detach", "work"], &["work", "umount"]);

    assert_eq!(machine.json(&["drain", "work"])["drained"], true);
    let status = machine.json(&["status", text(&mountpoint)]);
    assert_eq!(status[0]["replication"]["files_only_here"], 0, "{status}");
    assert!(machine.run(&["status"]).contains("the remote has everything"));

    machine.run(&["limits", "work", "--upload", "1 MiB"]);
    assert_eq!(machine.json(&["limits", "work"])["upload_limit"], 1 << 20);
    machine.run(&["limits", "work", "--upload", "none"]);
    assert_eq!(machine.json(&["limits", "work"])["upload_limit"], serde_json::Value::Null);
    machine.run(&["pull", "work"]);

    machine.umount(&["work"]);
    assert!(fs::read_dir(&mountpoint).expect("unmounted").next().is_none(), "umount returns when it is done");
    assert_eq!(machine.json(&["status", "work"])[0]["mountpoint"], serde_json::Value::Null);
    machine.refuses(&["drain", "work"], &["work", "not mounted", "cairn mount work"]);
    machine.run(&["detach", "work"]);
    assert_eq!(machine.json(&["drives"]), serde_json::json!([]));
    assert!(world.path("vault").join("cairn.json").exists(), "the vault stays");
}

#[test]
fn pause_holds_replication_and_drain_says_so() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mounted = machine.mount("shared", &world.directory("mnt"));
    machine.run(&["pause"]);
    fs::write(mounted.path().join("held"), "bytes").expect("written");
    let drained = machine.finish(&["drain", "--timeout", "1h"]);
    assert_eq!(drained.status.code(), Some(3), "{}{}", drained.out, drained.err);
    assert!(drained.out.contains("paused"), "{}", drained.out);
    let status = machine.json(&["status"]);
    assert_eq!(status[0]["replication"]["paused"], true);
    assert_ne!(status[0]["replication"]["files_only_here"], 0, "{status}");
    machine.run(&["resume"]);
    machine.run(&["drain"]);
}

#[test]
fn unpublished_changes_are_not_detached_unless_asked() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mut mounted = machine.mount("shared", &world.directory("mnt"));
    machine.run(&["pause"]);
    fs::write(mounted.path().join("only here"), "bytes").expect("written");
    machine.umount(&[]);
    mounted.ended_well();
    machine.refuses(&["detach", "shared"], &["shared", "1 file", "--discard-unpublished"]);
    machine.run(&["detach", "shared", "--discard-unpublished"]);
}

#[test]
fn what_was_written_just_before_a_kill_is_not_detached() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mut mounted = machine.mount("shared", &world.directory("mnt"));
    fs::write(mounted.path().join("file"), "published").expect("written");
    machine.run(&["drain"]);
    fs::write(mounted.path().join("file"), "only here").expect("written");
    mounted.kill();
    machine.refuses(&["detach", "shared"], &["1 file", "--discard-unpublished"]);
    let mounted = machine.mount("shared", mounted.path());
    machine.run(&["drain"]);
    let other = world.attached("two");
    let second = other.mount("shared", &world.directory("mnt-2"));
    assert_eq!(fs::read_to_string(second.path().join("file")).expect("there"), "only here");
    drop(mounted);
}

#[test]
fn mount_in_use_is_refused_to_end_unless_forced() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mut mounted = machine.mount("shared", &world.directory("mnt"));
    let file = fs::File::create(mounted.path().join("open")).expect("made");
    machine.refuses(&["umount"], &[text(mounted.path()), "in use", "--force"]);
    assert!(!mounted.has_ended());
    drop(file);
    machine.umount(&["--force"]);
    mounted.ended_well();
}

#[test]
fn a_mount_waits_for_a_process_that_is_about_to_end() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    // What a process whose mount is gone still holds, until everything is durable.
    let lock = fs::File::create(machine.drive_dir().join("lock")).expect("made");
    fs4::FileExt::lock(&lock).expect("nobody has it");
    let errors = world.path("waiting.err");
    let mut command = machine.command(&["mount", "shared", text(&mountpoint)]);
    command.stdout(fs::File::create(world.path("waiting.out")).expect("a file"));
    let mut waiting = command.stderr(fs::File::create(&errors).expect("a file")).spawn().expect("starts");
    eventually("it says what it waits for", || {
        assert!(waiting.try_wait().expect("our child").is_none(), "{}", fs::read_to_string(&errors).expect("text"));
        fs::read_to_string(&errors).expect("text").contains("in use by another cairn process")
    });
    drop(lock);
    eventually("it is mounted", || machine.json(&["status"])[0]["mountpoint"].is_string());
    machine.umount(&[]);
    assert!(waiting.wait().expect("our child").success(), "{}", fs::read_to_string(&errors).expect("text"));
}

#[test]
fn a_mount_of_another_data_directory_is_named_as_such() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let other = world.with_vault();
    let machine = world.attached("two");
    let mounted = machine.mount("shared", &world.directory("my mount"));
    other.refuses(&["umount", text(mounted.path())], &["another data directory", "--data-dir", "fusermount3 -u"]);
    machine.umount(&[text(mounted.path())]);
}

#[test]
fn process_ends_by_itself_when_others_unmount_or_a_signal_comes() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    let endings: [fn(&Mounted); 2] = [
        |mounted| {
            let status = Command::new("umount").arg(mounted.path()).status().expect("umount is there");
            assert!(status.success());
        },
        |mounted| mounted.signal(Signal::INT),
    ];
    for (number, end) in endings.into_iter().enumerate() {
        if number == 0 && !crate::harness::is_root() {
            continue;
        }
        let mut mounted = machine.mount("shared", &mountpoint);
        // By another process: a descriptor of ours could be on its way to a process that another test is about to start.
        let script = format!("printf bytes >{}", mountpoint.join(number.to_string()).display());
        assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell").success());
        end(&mounted);
        mounted.ended_well();
    }
    let _mounted = machine.mount("shared", &mountpoint);
    assert_eq!(fs::read_to_string(mountpoint.join("1")).expect("kept"), "bytes");
}

#[test]
fn two_machines_show_what_the_other_wrote() {
    let Some(world) = World::to_mount() else { return };
    let (one, two) = (world.attached("one"), world.attached("two"));
    let mounted = one.mount("shared", &world.directory("mnt-1"));
    let other = two.mount("shared", &world.directory("mnt-2"));
    fs::create_dir(mounted.path().join("from one")).expect("made");
    fs::write(mounted.path().join("from one/file"), vec![1; 300_000]).expect("written");
    one.run(&["drain"]);
    two.pull();
    becomes_equal(other.path(), mounted.path());

    fs::write(other.path().join("from two"), "more").expect("written");
    fs::rename(other.path().join("from one"), other.path().join("renamed by two")).expect("renamed");
    two.run(&["drain"]);
    // Without asking: within the interval.
    eventually("the first machine shows what the second did", || {
        mounted.path().join("from two").exists() && mounted.path().join("renamed by two/file").exists()
    });
    becomes_equal(mounted.path(), other.path());

    // A third sees everything from the start.
    let three = world.attached("three");
    let third = three.mount("shared", &world.directory("mnt-3"));
    assert_eq!(snapshot(third.path()), snapshot(other.path()));
}

#[test]
fn drive_works_while_its_remote_is_away() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    let mut mounted = machine.mount("shared", &mountpoint);
    fs::write(mountpoint.join("before"), "bytes").expect("written");
    machine.run(&["drain"]);
    machine.umount(&[]);
    mounted.ended_well();
    fs::rename(world.path("vault"), world.path("elsewhere")).expect("moved");

    let mut mounted = machine.mount("shared", &mountpoint);
    assert_eq!(fs::read_to_string(mountpoint.join("before")).expect("cached"), "bytes");
    fs::write(mountpoint.join("meanwhile"), "more").expect("written");
    let drained = machine.finish(&["drain", "--timeout", "1s"]);
    assert_eq!(drained.status.code(), Some(3), "{}{}", drained.out, drained.err);
    assert!(!world.path("vault").exists(), "nothing was written where the vault was");
    machine.umount(&[]);
    mounted.ended_well();
    fs::rename(world.path("elsewhere"), world.path("vault")).expect("moved back");

    let mounted = machine.mount("shared", &mountpoint);
    machine.run(&["drain"]);
    let other = world.attached("two");
    let second = other.mount("shared", &world.directory("mnt-2"));
    assert_eq!(snapshot(second.path()), snapshot(mounted.path()));
}

#[test]
fn fsync_waits_for_the_remote_where_the_settings_say_so() {
    let Some(world) = World::to_mount() else { return };
    let machine = world.attached("one");
    // Nothing else would publish so soon.
    let settings = "fsync = 'remote'\nsettle = '1h'\nmax-delay = '1h'\n";
    fs::write(machine.drive_dir().join("settings.toml"), settings).expect("written");
    let mounted = machine.mount("shared", &world.directory("mnt"));
    fs::write(mounted.path().join("file"), "bytes").expect("written");
    assert!(!world.path("vault").join("log").exists());
    fs::File::open(mounted.path().join("file")).expect("opened").sync_all().expect("on the remote");
    assert!(world.path("vault").join("log").exists());
    machine.run(&["pause"]);
    fs::write(mounted.path().join("file"), "more").expect("written");
    fs::File::open(mounted.path().join("file")).expect("opened").sync_all().expect_err("never a false success");
    machine.run(&["resume"]);
}

#[test]
fn memory_drive_mounts_without_a_data_directory() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.machine("none");
    let mountpoint = world.directory("mnt");
    let mut mounted = machine.mount_with(&["mount", "--memory", text(&mountpoint)], &mountpoint);
    fs::write(mountpoint.join("file"), "bytes").expect("written");
    assert_eq!(fs::read_to_string(mountpoint.join("file")).expect("read"), "bytes");
    mounted.signal(Signal::TERM);
    mounted.ended_well();
    assert!(!machine.data().exists());
}

#[test]
fn completions_and_help_are_there_for_every_command() {
    let world = World::new();
    let machine = world.machine("none");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(machine.run(&["completions", shell]).contains("umount"), "{shell}");
    }
    let help = machine.run(&["--help"]);
    for command in [
        "mount", "umount", "init", "attach", "detach", "drives", "status", "drain", "pause", "resume", "pull", "limits",
    ] {
        assert!(help.contains(command), "{command} in {help}");
        assert!(machine.run(&[command, "--help"]).contains("--data-dir"), "{command}");
    }
    assert!(!machine.data().exists(), "asking for help makes nothing");
    assert!(machine.run(&["mount", "--help"]).contains("Without REMOTE"), "the long text is there");
}

#[test]
fn keys_of_json_are_words_that_need_no_quotes() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.machine("one");
    let (remote, key) = (world.remote(), world.key_file());
    let mut shown = vec![machine.json(&["init", &remote, "--key-file", &key])];
    shown.push(machine.json(&["attach", &remote, "--name", "shared", "--key-file", &key]));
    let mounted = machine.mount("shared", &world.directory("mnt"));
    for command in ["status", "drives", "drain", "limits", "pause", "resume", "pull", "umount"] {
        shown.push(machine.json(&[command]));
    }
    drop(mounted);
    shown.push(machine.json(&["detach", "shared"]));
    shown.iter().for_each(check_keys);
}

fn check_keys(value: &serde_json::Value) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(check_keys),
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{key} in {value}");
                check_keys(value);
            }
        }
        _ => {}
    }
}

#[test]
fn bash_completes_commands_options_and_values() {
    let world = World::new();
    let script = r#"
        source <("$0" completions bash)
        complete_as_bash() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cairn cairn "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"; }
        complete_as_bash cairn dr; echo "${COMPREPLY[*]}"
        complete_as_bash cairn mount --ba; echo "${COMPREPLY[*]}"
        complete_as_bash cairn init --cipher ""; echo "${COMPREPLY[*]}"
    "#;
    let machine = world.machine("none");
    let mut bash = Command::new("bash");
    bash.args(["-c", script, env!("CARGO_BIN_EXE_cairn")]).env("CAIRN_DATA_DIR", machine.data());
    let output = bash.output().expect("bash is there");
    let shown = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(shown, "drives drain\n--background\nxchacha20-poly1305 aes-256-gcm\n", "{errors}");
}

#[test]
fn a_limit_of_the_size_of_files_ends_writes_and_not_the_drive() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    let mut command = Command::new("bash");
    // In KiB; without passthrough the drive itself writes.
    let script = r#"ulimit -f 16384; exec "$0" mount shared "$1" --no-passthrough"#;
    command.args(["-c", script, env!("CARGO_BIN_EXE_cairn")]).arg(&mountpoint).env("CAIRN_DATA_DIR", machine.data());
    let mut mounted = machine.mount_by(command, &mountpoint);
    let file = fs::File::create(mountpoint.join("large")).expect("made");
    std::os::unix::fs::FileExt::write_all_at(&file, b"beyond", 32 << 20).expect_err("it is too large");
    drop(file);
    fs::write(mountpoint.join("small"), "bytes").expect("written");
    assert_eq!(fs::read_to_string(mountpoint.join("small")).expect("read"), "bytes");
    machine.umount(&[]);
    mounted.ended_well();
}

#[test]
fn a_mount_takes_as_many_descriptors_as_it_may() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let machine = world.machine("one");
    let mountpoint = world.directory("mnt");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 200; exec "$0" mount --memory "$1""#, env!("CARGO_BIN_EXE_cairn")]);
    let mut mounted = machine.mount_by(
        {
            command.arg(&mountpoint);
            command
        },
        &mountpoint,
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", mounted.process())).expect("limits");
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).expect("it has one");
    let numbers: Vec<&str> = limit.split_whitespace().skip(3).take(2).collect();
    assert!(numbers[0] == numbers[1] && numbers[0] != "200", "{limit}");
    mounted.signal(Signal::TERM);
    mounted.ended_well();
}

#[test]
fn an_ordinary_user_owns_the_drive_they_make() {
    use std::os::unix::fs::chown;
    use std::os::unix::process::CommandExt;
    if !can_mount() || !rustix::process::geteuid().is_root() || !has_program("fusermount3") {
        return;
    }
    if fs::metadata("/dev/fuse").expect("a device").permissions().mode() & 0o006 != 0o006 {
        crate::skip::skipped("/dev/fuse is for root only");
        return;
    }
    let world = World::new();
    let home = world.path("").canonicalize().expect("there");
    let program = home.join("cairn");
    copy_program(env!("CARGO_BIN_EXE_cairn"), &program);
    chown(&home, Some(NOBODY), Some(NOBODY)).expect("we are root");
    let script = "set -e; mkdir drive; ./cairn mount drive --background >/dev/null; echo kept >drive/file; mkdir drive/d; \
                  cat drive/file; stat -c %u:%a drive; ./cairn drain; ./cairn umount drive; ./cairn status";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(&home).env("HOME", &home).env("CAIRN_DATA_DIR", home.join("data"));
    let output = shell.uid(NOBODY).gid(NOBODY).output().expect("a shell");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let _ = Command::new("fusermount3")
        .args(["-u", "-z"])
        .arg(home.join("drive"))
        .stderr(std::process::Stdio::null())
        .status();
    assert!(output.status.success(), "{out}{err}");
    assert!(out.starts_with(&format!("kept\n{NOBODY}:755\n")), "{out}{err}");
}
