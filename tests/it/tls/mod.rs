//! Remotes behind `https`: whom Cairn trusts, and what it says of a server that it does not.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairnfs::provider::error::with_causes;
use cairnfs::provider::retry::RetrySettings;
use cairnfs::provider::{ErrorKind, ObjectPath, ProviderError, ProviderSettings, PutMode, RemoteUrl, open};

use crate::cli::world::{Machine, World};
use crate::harness::{can_mount, eventually};
use crate::servers::tls::{Authority, Identity, TlsProxy, Validity};
use crate::servers::{self, ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY};

const HERE: &str = "127.0.0.1";

/// An authority whose certificate is in a file.
struct Trusted {
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Trusted {
    fn new() -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
        fs::write(folder.path().join("ca+1.pem"), authority.pem()).expect("written");
        Self { authority, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ca+1.pem")
    }

    /// The URL of a remote at `address`, whose server this authority has to vouch for.
    fn remote(&self, address: SocketAddr, prefix: &str) -> String {
        let file = self.file().to_str().expect("text").replace('+', "%2B");
        format!("{}&ca_file={file}", remote(address, prefix))
    }
}

fn remote(address: SocketAddr, prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}?endpoint=https://{address}&region=us-east-1")
}

/// A machine that has the key of the server in its credentials file.
fn machine<'a>(world: &'a World, name: &'a str) -> Machine<'a> {
    use std::os::unix::fs::PermissionsExt;
    let machine = world.machine(name);
    let file = machine.data().join("credentials.toml");
    if !file.exists() {
        fs::create_dir_all(machine.data()).expect("made");
        let text = format!(
            "[[remote]]\nurl = \"s3://{BUCKET}\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
             secret_access_key = \"{SECRET_ACCESS_KEY}\"\n"
        );
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("ours");
    }
    machine
}

async fn error_of(remote: &str) -> ProviderError {
    let url = RemoteUrl::parse(remote).expect("valid");
    // As often as ever: what is not accepted is not tried again.
    let settings = ProviderSettings::default();
    let provider = open(&url, &servers::credentials(), &settings).expect("opens");
    let path = ObjectPath::new("object").expect("a name");
    let error = provider.get(&path, None).await.expect_err("not accepted");
    assert_eq!(settings.metrics.snapshot().operations, 1, "tried once: {}", with_causes(&error));
    assert!(settings.metrics.snapshot().unreachable_since.is_some());
    error
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_explained_and_not_tried_again() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let trusted = Trusted::new();
    let stranger = Authority::new();
    for (identity, named) in [
        (stranger.sign(HERE, Validity::Now), ["no authority", "ca_file=PATH"]),
        (trusted.authority.sign(HERE, Validity::Past), ["expired at 2002-01-01", "renew"]),
        (trusted.authority.sign("storage.example.org", Validity::Now), ["storage.example.org", "not for 127.0.0.1"]),
    ] {
        refuses(&trusted, server.address(), &identity, &named).await;
    }
    refuses(&trusted, server.address(), trusted.authority.itself(), &["CA:TRUE", "not for servers"]).await;
}

/// Checks that a server which proves itself so is not accepted, once, and what is said of it.
async fn refuses(trusted: &Trusted, server: SocketAddr, identity: &Identity, named: &[&str]) {
    let proxy = TlsProxy::start(server, identity);
    let error = error_of(&trusted.remote(proxy.address(), "tls-refused")).await;
    let text = with_causes(&error);
    assert_eq!((error.kind, error.retryable), (ErrorKind::Untrusted, false), "{text}");
    assert!(text.contains("its certificate is not accepted"), "{text}");
    assert!(named.iter().all(|word| text.contains(word)), "{text}");
}

#[tokio::test]
async fn a_server_without_tls_behind_an_https_endpoint_is_explained() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let trusted = Trusted::new();
    let url = RemoteUrl::parse(&trusted.remote(server.address(), "tls-none")).expect("valid");
    let retry = RetrySettings { attempts: 1, ..RetrySettings::default() };
    let settings = ProviderSettings { retry, ..ProviderSettings::default() };
    let provider = open(&url, &servers::credentials(), &settings).expect("opens");
    let error = provider.get(&ObjectPath::new("object").expect("a name"), None).await.expect_err("no TLS");
    let text = with_causes(&error);
    assert_eq!(error.kind, ErrorKind::Unreachable, "{text}");
    assert!(text.contains("http://"), "{text}");
}

#[tokio::test]
async fn the_authority_in_the_url_vouches_for_its_servers() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let trusted = Trusted::new();
    let proxy = TlsProxy::start(server.address(), &trusted.authority.sign(HERE, Validity::Now));
    let url = RemoteUrl::parse(&trusted.remote(proxy.address(), "tls-accepted")).expect("valid");
    let provider = open(&url, &servers::credentials(), &ProviderSettings::default()).expect("opens");
    let path = ObjectPath::new("object").expect("a name");
    provider.put(&path, Bytes::from_static(b"bytes"), PutMode::IfAbsent).await.expect("stored");
    assert_eq!(provider.get(&path, None).await.expect("there"), Bytes::from_static(b"bytes"));
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let world = World::new();
    let machine = machine(&world, "one");
    let bad = world.path("bad.pem");
    fs::write(&bad, "no certificate").expect("written");
    let broken = world.path("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
    for file in [Path::new("/nonexistent/ca.pem"), &bad, &broken] {
        let file = file.to_str().expect("text");
        let remote = format!("s3://bucket/x?endpoint=https://127.0.0.1:1&ca_file={file}");
        machine.refuses(&["attach", &remote, "--key-file", "none.key"], &[file, "ca_file"]);
    }
    machine.refuses(&["attach", "s3://b?endpoint=https://h&ca_file=ca.pem"], &["ca_file", "absolute path"]);
}

#[test]
fn the_authorities_of_the_system_count_and_a_machine_without_any_says_so() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let trusted = Trusted::new();
    let proxy = TlsProxy::start(server.address(), &trusted.authority.sign(HERE, Validity::Now));
    let remote = remote(proxy.address(), "tls-system");
    let world = World::new();
    let key = world.key_file();
    // Where the system keeps its authorities is looked up in the environment first.
    let file = trusted.file();
    let with_system = machine(&world, "one").with("SSL_CERT_FILE", file.to_str().expect("text"));
    with_system.run(&["init", &remote, "--key-file", &key]);
    let attach = ["attach", &remote, "--key-file", &key];
    for without in [machine(&world, "two"), machine(&world, "three").with("SSL_CERT_FILE", "/dev/null")] {
        without.refuses(&attach, &["certificate is not accepted", "no authority", "ca_file=PATH"]);
        assert!(fs::read_dir(without.data().join("drives")).expect("readable").next().is_none(), "no drive was made");
    }
    with_system.run(&attach);
    // What the URL names is enough by itself.
    let only_named = machine(&world, "four").with("SSL_CERT_FILE", "/dev/null");
    only_named.run(&["attach", &trusted.remote(proxy.address(), "tls-system"), "--key-file", &key]);
}

#[test]
fn a_drive_whose_certificate_expires_works_on_and_says_why_it_does_not_replicate() {
    if !can_mount() {
        return;
    }
    let Some(server) = servers::shared_seaweedfs() else { return };
    let trusted = Trusted::new();
    let valid = trusted.authority.sign(HERE, Validity::Now);
    let proxy = TlsProxy::start(server.address(), &valid);
    let remote = trusted.remote(proxy.address(), "tls-drive");
    let world = World::new();
    let key = world.key_file();
    let (one, two) = (machine(&world, "one"), machine(&world, "two"));
    one.run(&["init", &remote, "--key-file", &key]);
    for machine in [&one, &two] {
        machine.run(&["attach", &remote, "--name", "shared", "--key-file", &key]);
    }
    let first = one.mount("shared", &world.directory("mnt-1"));
    let second = two.mount("shared", &world.directory("mnt-2"));
    fs::write(first.path().join("file"), vec![7; 300_000]).expect("written");
    one.run(&["drain"]);
    eventually("the second machine shows what the first drained", || {
        fs::read(second.path().join("file")).is_ok_and(|bytes| bytes == [7; 300_000])
    });
    one.umount(&[]);
    drop(first);

    proxy.become_another(&trusted.authority.sign(HERE, Validity::Past));
    // It can be mounted all the same, and written to.
    let first = one.mount("shared", &world.path("mnt-1"));
    fs::write(first.path().join("meanwhile"), "offline").expect("written");
    assert_eq!(fs::read(first.path().join("file")).expect("cached"), [7; 300_000]);
    let replication = || one.json(&["status"])[0]["replication"].clone();
    eventually("the status says that the remote is away, and why", || {
        let status = replication();
        let message = status["last_error"]["message"].as_str().unwrap_or_default();
        status["reachability"]["state"] == "unreachable"
            && message.contains("its certificate is not accepted: it expired at 2002-01-01")
    });
    assert!(one.run(&["status"]).contains("expired at 2002-01-01"));
    let drained = one.finish(&["drain", "--timeout", "1s"]);
    assert_eq!(drained.status.code(), Some(3), "{}{}", drained.out, drained.err);
    assert!(drained.out.contains("expired at 2002-01-01"), "{}{}", drained.out, drained.err);
    eventually("the log says so, too", || first.log().contains("expired at 2002-01-01"));

    proxy.become_another(&valid);
    one.run(&["drain"]);
    eventually("the second machine shows what was written meanwhile", || {
        fs::read(second.path().join("meanwhile")).is_ok_and(|bytes| bytes == b"offline")
    });
}
