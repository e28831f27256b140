//! Files with secrets: who else may read them, and what is never told of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::world::{Machine, PASSPHRASE, World};
use crate::harness::can_mount;
use crate::servers::{self, ACCESS_KEY_ID, SECRET_ACCESS_KEY};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

/// Gives a machine the key of the tests' servers by its credentials file.
fn write_credentials(machine: &Machine<'_>) {
    fs::create_dir_all(machine.data()).expect("made");
    let file = machine.data().join("credentials.toml");
    let text = format!(
        "[[remote]]\nurl = \"s3://\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\nsecret_access_key = \"{SECRET_ACCESS_KEY}\"\n"
    );
    fs::write(&file, text).expect("written");
    set_mode(&file, 0o600);
}

#[test]
fn secrets_that_others_may_read_are_refused_with_the_way_out() {
    let world = World::new();
    let machine = world.with_vault();
    let (remote, key) = (world.remote(), world.key_file());
    let passphrase = world.path("passphrase.txt");
    fs::write(&passphrase, PASSPHRASE).expect("written");
    for mode in [0o640, 0o604] {
        set_mode(Path::new(&key), mode);
        machine.refuses(&["attach", &remote, "--key-file", &key], &["vault.key", "chmod 600"]);
        set_mode(&passphrase, mode);
        let passphrase = passphrase.to_str().expect("text");
        machine.refuses(&["attach", &remote, "--passphrase-file", passphrase], &["passphrase.txt", "chmod 600"]);
        let new = format!("fs://{}", world.path("new").display());
        machine.refuses(&["init", &new, "--passphrase-file", passphrase], &["passphrase.txt", "chmod 600"]);
    }
    set_mode(Path::new(&key), 0o600);
    write_credentials(&machine);
    let credentials = machine.data().join("credentials.toml");
    set_mode(&credentials, 0o640);
    let attach = ["attach", &remote, "--key-file", &key];
    machine.refuses(&attach, &["credentials.toml", "chmod 600"]);
    set_mode(&credentials, 0o600);
    machine.run(&attach);
    // Also when it is mounted, long after it was attached.
    set_mode(&credentials, 0o644);
    let mountpoint = world.directory("mnt");
    machine.refuses(&["mount", &remote, mountpoint.to_str().expect("text")], &["credentials.toml", "chmod 600"]);
}

#[test]
fn a_passphrase_may_come_through_a_pipe() {
    let world = World::new();
    let machine = world.machine("one");
    let script = r#"exec "$0" init "$1" --passphrase-file <(echo "a long passphrase")"#;
    let mut command = std::process::Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_cairn"), &world.remote()]).env("CAIRN_DATA_DIR", machine.data());
    let output = command.env_remove("CAIRN_PASSPHRASE").output().expect("bash is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nothing_secret_is_logged_even_where_everything_is() {
    if !can_mount() {
        return;
    }
    let Some(server) = servers::shared_seaweedfs() else { return };
    let world = World::new();
    let machine = world.machine("one").with("CAIRN_LOG", "trace").with("CAIRN_PASSPHRASE", PASSPHRASE);
    write_credentials(&machine);
    let remote = server.remote("cli-secrets").to_string();
    let mut told = Vec::new();
    let init = machine.finish(&["init", &remote]);
    assert!(init.status.success(), "{}", init.err);
    let words: Vec<&str> =
        init.out.lines().filter(|line| line.starts_with("    ")).flat_map(str::split_whitespace).collect();
    assert_eq!(words.len(), 24, "a recovery phrase: {}", init.out);
    told.push(init.err.clone());
    for command in [["attach", &remote, "--name", "shared"].as_slice(), &["status"], &["drives"]] {
        let finished = machine.finish(command);
        assert!(finished.status.success(), "{}", finished.err);
        told.extend([finished.out, finished.err]);
    }
    let mountpoint = world.directory("mnt");
    let mounted = machine.mount_with(&["mount", "shared", mountpoint.to_str().expect("text")], &mountpoint);
    fs::write(mounted.path().join("file"), vec![1; 100_000]).expect("written");
    for command in [["drain"].as_slice(), &["status", "--json"], &["pull"]] {
        let finished = machine.finish(command);
        assert!(finished.status.success(), "{}", finished.err);
        told.extend([finished.out, finished.err]);
    }
    machine.umount(&[]);
    told.extend([mounted.printed(), mounted.log()]);
    // The same with a wrong key, whose error the server explains.
    let credentials = machine.data().join("credentials.toml");
    let wrong = fs::read_to_string(&credentials).expect("text").replace(SECRET_ACCESS_KEY, "wrong-secret-key");
    fs::write(&credentials, wrong).expect("written");
    let refused = machine.finish(&["attach", &format!("{remote}&imds=false")]);
    assert_eq!(refused.status.code(), Some(1), "{}", refused.err);
    told.push(refused.err);

    let told = told.concat();
    assert!(told.contains("TRACE") && told.contains("DEBUG"), "everything was logged");
    let phrase = words.join(" ");
    for secret in [ACCESS_KEY_ID, SECRET_ACCESS_KEY, "wrong-secret-key", PASSPHRASE, &phrase] {
        let line = told.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret:?} is told: {line:?}");
    }
}
