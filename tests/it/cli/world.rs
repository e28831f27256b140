//! Machines to play with: each is a data directory; a command is a process of the program.
//!
//! Output goes to files, so that no process ever waits for the test to read it. Nothing waits for a fixed time: conditions are
//! polled, and a deadline that is far longer than anything takes turns "never" into a failure.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::harness::can_mount;
use crate::patience::{eventually, eventually_some, within};
use crate::servers::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY, remote_at, unique_prefix};

pub const PASSPHRASE: &str = "correct horse battery staple";

/// Whether a program is here; says so when it is not.
pub fn has_program(name: &str) -> bool {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        crate::skip::skipped(format_args!("{name} is not installed"));
    }
    found
}

/// A place for one test: the vault and the machines are in it.
pub struct World {
    root: TempDir,
    runs: AtomicU64,
    remote: String,
    environment: Vec<(&'static str, String)>,
}

impl World {
    /// With the vault in a folder.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("cairn-cli-").tempdir().expect("a temporary directory");
        let remote = format!("fs://{}", root.path().join("vault").display());
        Self { root, runs: AtomicU64::new(0), remote, environment: Vec::new() }
    }

    /// With a vault to mount; nothing where mounts cannot be tested.
    pub fn to_mount() -> Option<Self> {
        can_mount().then(|| {
            let world = Self::new();
            world.with_vault();
            world
        })
    }

    /// With the vault on a server.
    pub fn on(server: &S3Server) -> Self {
        let mut world = Self::new();
        world.remote = server.remote(&unique_prefix()).to_string();
        world.environment.push(("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()));
        world.environment.push(("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()));
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Makes an empty directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("a new directory");
        path
    }

    /// The URL of the vault.
    pub fn remote(&self) -> String {
        self.remote.clone()
    }

    /// The URL of the vault on a server by way of a proxy.
    pub fn remote_by(&self, proxy: SocketAddr) -> String {
        let prefix = self.remote.split(['/', '?']).nth(3).expect("s3://bucket/prefix?options");
        remote_at(proxy, prefix).to_string()
    }

    pub fn machine<'a>(&'a self, name: &'a str) -> Machine<'a> {
        Machine { world: self, name, environment: self.environment.clone() }
    }

    /// A vault that a key file opens, which costs no time, and the machine that made it.
    pub fn with_vault(&self) -> Machine<'_> {
        self.with_vault_of("one")
    }

    /// A vault made by a machine of another name.
    pub fn with_vault_of<'a>(&'a self, name: &'a str) -> Machine<'a> {
        let machine = self.machine(name);
        machine.run(&["init", &self.remote(), "--key-file", &self.key_file()]);
        machine
    }

    pub fn key_file(&self) -> String {
        self.path("vault.key").display().to_string()
    }

    /// Attaches the vault to a further machine.
    pub fn attached<'a>(&'a self, name: &'a str) -> Machine<'a> {
        self.attached_by(name, &self.remote)
    }

    /// Attaches the vault to a further machine by another URL. Its readers wait for as long as it takes.
    pub fn attached_by<'a>(&'a self, name: &'a str, remote: &str) -> Machine<'a> {
        let machine = self.machine(name);
        machine.run(&["attach", remote, "--name", "shared", "--device-name", name, "--key-file", &self.key_file()]);
        machine.set("read-deadline = '1d'\n");
        machine
    }

    fn output(&self) -> (PathBuf, PathBuf) {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        (self.path(&format!("{run}.out")), self.path(&format!("{run}.err")))
    }
}

/// One machine.
#[derive(Clone)]
pub struct Machine<'a> {
    world: &'a World,
    name: &'a str,
    environment: Vec<(&'static str, String)>,
}

/// What a process left.
pub struct Finished {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl<'a> Machine<'a> {
    /// The same machine with a variable set for its processes.
    pub fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    pub fn data(&self) -> PathBuf {
        self.world.path(self.name)
    }

    /// The directory of its only drive.
    pub fn drive_dir(&self) -> PathBuf {
        let mut drives = fs::read_dir(self.data().join("drives")).expect("drives");
        drives.next().expect("one drive").expect("readable").path()
    }

    /// Gives its only drive these settings, from its next mount on.
    pub fn set(&self, settings: &str) {
        fs::write(self.drive_dir().join("settings.toml"), settings).expect("written");
    }

    /// Has its only drive publish nothing by itself, from its next mount on.
    pub fn publishes_when_drained(&self) {
        self.set("settle = '1d'\nmax-delay = '1d'\nread-deadline = '1d'\n");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CAIRN_") || variable.to_string_lossy().starts_with("AWS_") {
                command.env_remove(variable);
            }
        }
        command.env("CAIRN_DATA_DIR", self.data()).env("HOME", self.world.root.path());
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        command.current_dir(self.world.root.path()).stdin(Stdio::null()).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub fn finish(&self, arguments: &[&str]) -> Finished {
        let (out, err) = self.world.output();
        let mut command = self.command(arguments);
        command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
        let mut child = command.spawn().expect("the program starts");
        let status = wait(&mut child, &format!("cairn {}", arguments.join(" ")));
        Finished { status, out: text(&out), err: text(&err) }
    }

    /// Runs a command that must do what it is for; its output.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let Finished { status, out, err } = self.finish(arguments);
        assert!(status.success(), "cairn {} failed: {status}\n{out}{err}", arguments.join(" "));
        out
    }

    /// Unmounts what was used a moment ago: a process that another test is about to start may still hold a descriptor of ours.
    #[track_caller]
    pub fn umount(&self, arguments: &[&str]) {
        eventually("nobody uses the mount", || {
            let Finished { status, out, err } = self.finish(&[&["umount"], arguments].concat());
            assert!(status.success() || err.contains("is in use"), "{status}\n{out}{err}");
            status.success()
        });
    }

    /// Pulls; again where the machine was so slow that a request took too long.
    #[track_caller]
    pub fn pull(&self) {
        eventually("a pull succeeds", || self.finish(&["pull"]).status.success());
    }

    /// Runs a command that prints JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// Runs a command that must fail with one sentence that has all of `named` in it.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], named: &[&str]) {
        let Finished { status, out, err } = self.finish(arguments);
        let command = arguments.join(" ");
        assert_eq!(status.code(), Some(1), "cairn {command}: {status}\n{out}{err}");
        let lines: Vec<&str> = err.lines().collect();
        let [line] = lines.as_slice() else { panic!("cairn {command}: not one line:\n{err}") };
        assert!(line.starts_with("cairn: "), "cairn {command}: {line}");
        for name in named {
            assert!(line.contains(name), "cairn {command}: {name:?} is not named: {line}");
        }
    }

    /// Mounts in the foreground; waits until the drive can be used.
    #[track_caller]
    pub fn mount(&self, what: &str, mountpoint: &Path) -> Mounted {
        let mountpoint_text = mountpoint.to_str().expect("text");
        self.mount_with(&["mount", what, mountpoint_text, "--log", "info"], mountpoint)
    }

    #[track_caller]
    pub fn mount_with(&self, arguments: &[&str], mountpoint: &Path) -> Mounted {
        self.mount_by(self.command(arguments), mountpoint)
    }

    /// Mounts by a command that becomes the program.
    #[track_caller]
    pub fn mount_by(&self, command: Command, mountpoint: &Path) -> Mounted {
        let mut mounted = self.start_by(command, mountpoint);
        eventually("the mount is ready", || {
            let ended = mounted.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "the mount ended: {ended:?}\n{}", mounted.log());
            mounted.is_ready()
        });
        mounted
    }

    /// Mounts in the foreground, in a process that may end at any moment; waits until the drive can be used or the process is gone.
    pub fn mount_doomed(&self, what: &str, mountpoint: &Path) -> Mounted {
        let mut mounted = self.start(what, mountpoint);
        eventually("the mount is ready or gone", || mounted.is_ready() || mounted.has_ended());
        mounted
    }

    /// Begins to mount in the foreground.
    pub fn start(&self, what: &str, mountpoint: &Path) -> Mounted {
        let mountpoint_text = mountpoint.to_str().expect("text");
        self.start_by(self.command(&["mount", what, mountpoint_text, "--log", "info"]), mountpoint)
    }

    fn start_by(&self, mut command: Command, mountpoint: &Path) -> Mounted {
        let (out, err) = self.world.output();
        command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
        let child = command.spawn().expect("the program starts");
        Mounted { child, mountpoint: mountpoint.to_owned(), out, err }
    }
}

/// A mount in the foreground, taken away when dropped.
pub struct Mounted {
    child: Child,
    mountpoint: PathBuf,
    out: PathBuf,
    err: PathBuf,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Whether the drive can be used.
    pub fn is_ready(&self) -> bool {
        self.printed().contains("is mounted on")
    }

    pub fn printed(&self) -> String {
        text(&self.out)
    }

    pub fn log(&self) -> String {
        text(&self.err)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        if within(2000, || self.has_ended().then_some(())).is_some() {
            return;
        }
        // The kernel may never end the connection by itself (docs/SEMANTICS.md, Known limits); a mount that is in use stays.
        let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::FORCE);
        self.child.wait().expect("it is our child");
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        wait(&mut self.child, "the mount")
    }

    /// Waits for the end of the process, which must be a good one.
    #[track_caller]
    pub fn ended_well(&mut self) {
        let status = self.ended();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.kill();
        }
        // A dead mount would keep the directory from being removed; a living one is another process's.
        if rustix::fs::statfs(&self.mountpoint).err() == Some(rustix::io::Errno::NOTCONN) {
            let unmounted = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
            if unmounted.is_err() {
                let _ = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&self.mountpoint).status();
            }
        }
    }
}

/// What a process has written so far; the last character may not be whole.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("readable")).into_owned()
}

#[track_caller]
fn wait(child: &mut Child, what: &str) -> ExitStatus {
    eventually_some(what, || child.try_wait().expect("it is our child"))
}

/// A program in another place, for others to run. Copied by a process of its own: a descriptor of ours that writes to it could be
/// on its way to a process that another test is about to start, and nobody may run a file that is being written.
pub fn copy_program(from: impl AsRef<Path>, to: &Path) {
    let copied = Command::new("cp").arg(from.as_ref()).arg(to).status().expect("cp is there");
    assert!(copied.success());
}

/// Everything of a tree that a copy must keep: paths, kinds, modes, owners, links, times, extended attributes and contents.
pub fn snapshot(root: &Path) -> Vec<String> {
    try_snapshot(root).expect("it is there and readable")
}

fn try_snapshot(root: &Path) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    describe(root, Path::new(""), &mut lines)?;
    lines.sort();
    Ok(lines)
}

/// Waits until a tree that was pulled shows all that is in another. The kernel is told of changes at once, but a machine that
/// stands still for a second does not wait for it.
#[track_caller]
pub fn becomes_equal(pulled: &Path, original: &Path) {
    for _ in 0..100 {
        if try_snapshot(pulled).ok() == Some(snapshot(original)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(snapshot(pulled), snapshot(original));
}

fn describe(root: &Path, below: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let path = below.join(entry?.file_name());
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full)?;
        lines.push(format!("{} {} {}", path.display(), attributes(&full, &meta)?, content(&full, &meta)?));
        if meta.is_dir() {
            describe(root, &path, lines)?;
        }
    }
    Ok(())
}

fn attributes(path: &Path, meta: &Metadata) -> io::Result<String> {
    let (mode, owner, links) = (meta.mode(), (meta.uid(), meta.gid()), meta.nlink());
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let mut attributes: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
            Ok(format!("{}={}", name.escape_ascii(), value[..length].escape_ascii()))
        })
        .collect::<io::Result<_>>()?;
    attributes.sort();
    Ok(format!("{mode:o} {owner:?} {links} {}.{:09} {attributes:?}", meta.mtime(), meta.mtime_nsec()))
}

fn content(path: &Path, meta: &Metadata) -> io::Result<String> {
    Ok(if meta.is_symlink() {
        format!("-> {}", fs::read_link(path)?.display())
    } else if meta.is_file() {
        blake3::hash(&fs::read(path)?).to_string()
    } else {
        String::new()
    })
}
