//! Real S3 servers, started by a test and gone with it, and a proxy that makes trouble in front of them.
//!
//! A server that is not installed is a reason to skip: [`S3Server::start`] says so and returns `None`. Servers get free ports and
//! a folder of their own. However the test process ends, a watchdog ends the server and removes the folder: it waits for the end
//! of a pipe that only the test process holds.

pub mod proxy;
pub mod tls;

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use crate::patience::{NEVER, eventually, eventually_some};
use bytes::Bytes;
use cairnfs::config::credentials::{AccessKey, Credentials};
use cairnfs::provider::retry::RetrySettings;
use cairnfs::provider::{ObjectPath, ProviderSettings, PutMode, RemoteUrl, open};

/// What clients of the servers sign with.
pub const ACCESS_KEY_ID: &str = "testkey";
/// The secret of [`ACCESS_KEY_ID`].
pub const SECRET_ACCESS_KEY: &str = "testsecret123";
/// The bucket that exists from the start.
pub const BUCKET: &str = "test";

/// Somebody else may take a port between our choice and the server's start.
const START_ATTEMPTS: usize = 3;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Checks signatures and decides conditional puts right.
    SeaweedFs,
    /// Ignores the conditions of conditional puts, as some stores do.
    Rclone,
}

/// A running S3 server.
pub struct S3Server {
    kind: Kind,
    ports: Vec<u16>,
    folder: PathBuf,
    process: Mutex<Option<Process>>,
}

/// The SeaweedFS that the tests of this process share; each uses a prefix of its own. `None` where it is not installed.
pub fn shared_seaweedfs() -> Option<&'static S3Server> {
    static SHARED: LazyLock<Option<S3Server>> = LazyLock::new(|| S3Server::start(Kind::SeaweedFs));
    let server = SHARED.as_ref();
    if server.is_none() {
        // Each test that needs it says so, not only the first.
        not_installed(Kind::SeaweedFs);
    }
    server
}

/// A prefix in the bucket that no other test of this process uses.
pub fn unique_prefix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("prefix-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The key that the servers know.
pub fn credentials() -> Credentials {
    let mut credentials = Credentials::default();
    let key = AccessKey {
        access_key_id: ACCESS_KEY_ID.to_owned().into(),
        secret_access_key: SECRET_ACCESS_KEY.to_owned().into(),
        session_token: None,
    };
    credentials.insert("s3://", key);
    credentials
}

/// The URL of `prefix` in the bucket of a server, or of a proxy before it, that listens on `address`.
pub fn remote_at(address: SocketAddr, prefix: &str) -> RemoteUrl {
    let text = format!("s3://{BUCKET}/{prefix}?endpoint=http://{address}&region=us-east-1");
    RemoteUrl::parse(&text).expect("a valid URL")
}

impl S3Server {
    /// A server with an empty bucket, or `None` and a line that says so where it is not installed.
    pub fn start(kind: Kind) -> Option<Self> {
        let program = kind.program();
        let Some(tool) = find_tool(program) else {
            not_installed(kind);
            return None;
        };
        for attempt in 1..=START_ATTEMPTS {
            let folder = tempfile::Builder::new().prefix("cairn-server-").tempdir().expect("a folder").keep();
            let server = Self { kind, ports: free_ports(kind.port_count()), folder, process: Mutex::new(None) };
            match server.launch(&tool) {
                Ok(()) => return Some(server),
                Err(reason) => println!("{program} did not start, attempt {attempt}: {reason}"),
            }
        }
        panic!("{program} does not start");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    /// The URL of `prefix` in its bucket.
    pub fn remote(&self, prefix: &str) -> RemoteUrl {
        remote_at(self.address(), prefix)
    }

    /// Ends the server in its own way; what it stores stays.
    pub fn stop(&self) {
        if let Some(process) = self.process.lock().expect("not poisoned").take() {
            process.stop();
        }
    }

    /// Starts the server again after [`S3Server::stop`], with what it had stored, on the same port.
    pub fn start_again(&self) {
        let tool = find_tool(self.kind.program()).expect("it was started before");
        if let Err(reason) = self.launch(&tool) {
            panic!("{} does not start again: {reason}", self.kind.program());
        }
    }

    fn launch(&self, tool: &Path) -> Result<(), String> {
        let log = self.folder.join("log");
        let mut command = Command::new(tool);
        self.kind.configure(&mut command, &self.folder, &self.ports);
        let output = File::create(&log).expect("a log file");
        command.stdin(Stdio::null()).stderr(output.try_clone().expect("a second handle")).stdout(output);
        let mut process = Process::spawn(&mut command, &self.folder);
        let ended = eventually_some("the server is ready, or has ended", || match process.ended() {
            Some(status) => Some(Err(format!("it ended with {status}: {}", tail(&log)))),
            None => self.is_ready(&log).then_some(Ok(())),
        });
        ended?;
        *self.process.lock().expect("not poisoned") = Some(process);
        self.wait_until_it_stores();
        Ok(())
    }

    /// SeaweedFS answers with errors for a while after it says that it is ready.
    fn wait_until_it_stores(&self) {
        let retry = RetrySettings {
            attempts: u32::MAX,
            first_delay: Duration::from_millis(10),
            longest_delay: Duration::from_millis(100),
            give_up_after: NEVER,
        };
        let settings = ProviderSettings { retry, ..ProviderSettings::default() };
        let store = async {
            let provider = open(&self.remote("ready"), &credentials(), &settings).expect("opens");
            let path = ObjectPath::new("object").expect("a name");
            provider.put(&path, Bytes::from_static(b"x"), PutMode::Overwrite).await.expect("stored");
            provider.get(&path, None).await.expect("there");
        };
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(store);
        };
        // A thread of its own, as the caller may be in a runtime already.
        thread::scope(|scope| scope.spawn(run).join().expect("it stores"));
    }

    fn is_ready(&self, log: &Path) -> bool {
        // The port of SeaweedFS answers before the bucket is there.
        let announced = match self.kind {
            Kind::SeaweedFs => fs::read(log).is_ok_and(|text| contains(&text, b"All enabled components")),
            Kind::Rclone => true,
        };
        announced && TcpStream::connect(self.address()).is_ok()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.process.lock().expect("not poisoned").take());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::SeaweedFs => "weed",
            Self::Rclone => "rclone",
        }
    }

    /// SeaweedFS listens on many ports, most of which would be fixed unless it is told.
    fn port_count(self) -> usize {
        match self {
            Self::SeaweedFs => SEAWEEDFS_PORTS.len(),
            Self::Rclone => 1,
        }
    }

    fn configure(self, command: &mut Command, folder: &Path, ports: &[u16]) {
        match self {
            Self::SeaweedFs => configure_seaweedfs(command, folder, ports),
            Self::Rclone => {
                fs::create_dir_all(folder.join("data").join(BUCKET)).expect("a folder");
                command.args(["serve", "s3", "--config", "/dev/null", "--vfs-cache-mode", "full"]);
                command.args(["--addr", &format!("127.0.0.1:{}", ports[0])]);
                command.args(["--auth-key", &format!("{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}")]);
                command.arg("--cache-dir").arg(folder.join("cache")).arg(folder.join("data"));
            }
        }
    }
}

const SEAWEEDFS_PORTS: [&str; 13] = [
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "s3.port.lance",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "webdav.port",
];

fn configure_seaweedfs(command: &mut Command, folder: &Path, ports: &[u16]) {
    let identities = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY_ID}","secretKey":"{SECRET_ACCESS_KEY}"}}],
        "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    let config = folder.join("s3.json");
    fs::write(&config, identities).expect("written");
    fs::create_dir_all(folder.join("data")).expect("a folder");
    // Else its own log goes to the temporary directory, and stays there.
    command.current_dir(folder).arg(format!("-logdir={}", folder.display()));
    command.args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
    command.args(["-admin.ui=false", "-master.telemetry=false", "-webdav=false"]);
    command.arg(format!("-bucket={BUCKET}"));
    command.arg(format!("-dir={}", folder.join("data").display()));
    command.arg(format!("-s3.config={}", config.display()));
    command.args(SEAWEEDFS_PORTS.iter().zip(ports).map(|(option, port)| format!("-{option}={port}")));
}

/// A server process and the watchdog that outlives this one.
struct Process {
    server: Child,
    watchdog: Child,
    /// Its end is what the watchdog waits for.
    _lifeline: ChildStdin,
}

impl Process {
    fn spawn(command: &mut Command, folder: &Path) -> Self {
        let server = command.spawn().expect("the program starts");
        let mut watchdog = Command::new("sh")
            .args([
                "-c",
                r#"trap "" INT TERM HUP; read -r _; kill -KILL "$1"; rm -rf "$2""#,
                "watchdog",
                &server.id().to_string(),
            ])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let lifeline = watchdog.stdin.take().expect("it is piped");
        Self { server, watchdog, _lifeline: lifeline }
    }

    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.server.try_wait().expect("our child")
    }

    /// Asks it to end, and waits until it has.
    fn stop(mut self) {
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.server.id())]).status();
        assert!(asked.is_ok_and(|status| status.success()), "the server is there to be asked");
        eventually("the server ends", || self.ended().is_some());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog first: it must not outlive the number of a process that is gone.
        for child in [&mut self.watchdog, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn not_installed(kind: Kind) {
    crate::skip::skipped(format_args!("{} is not installed (scripts/test-deps installs it)", kind.program()));
}

/// A program that `scripts/test-deps` installed, or that is on the `PATH`.
pub fn find_tool(program: &str) -> Option<PathBuf> {
    let installed = std::env::var_os("CAIRN_TEST_TOOLS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache?.join("cairn-test-tools"))
    });
    let installed = installed.into_iter().flat_map(|tools| [tools.join("venv/bin"), tools.join("bin")]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = installed.chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Ports that were free a moment ago; none of them is given out twice, as a server may not have taken its own yet, or be stopped.
/// They are none of those that the system gives to connections (from 32768 on), so a server that was stopped finds its port free
/// when it starts again.
fn free_ports(count: usize) -> Vec<u16> {
    static FIRST: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("first"));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let candidates = std::iter::repeat_with(|| {
        let number = FIRST.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        10_000 + (number % 22_000) as u16
    });
    candidates.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).take(count).collect()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
}
