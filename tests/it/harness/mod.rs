//! Mounts a [`Vfs`] for a test and takes it away again, also when the test fails.

pub mod backed;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cairn_platform_api::Vfs;
use cairn_platform_fuse::{Access, MountOptions, Mounted};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use crate::patience::{NEVER, eventually, eventually_some};

/// Whether mounts can be tested here; says why not.
pub fn can_mount() -> bool {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = &device {
        crate::skip::skipped(format_args!("no /dev/fuse ({error})"));
        return false;
    }
    let helper = rustix::process::geteuid().is_root()
        || Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !helper {
        crate::skip::skipped("no fusermount3, which it takes to mount without being root");
    }
    helper
}

/// Whether tests can act as several users; says why not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        crate::skip::skipped("takes root, to act as other users");
    }
    root
}

/// A file system in memory, for the time of a test. It takes root to mount it.
pub struct MemoryDisk(PathBuf);

impl MemoryDisk {
    /// Mounts one of a size such as `48m` over a directory.
    pub fn mount(at: &Path, size: &str) -> Self {
        Self::with_files(at, size, 1_000_000)
    }

    /// With room for so many files and directories.
    pub fn with_files(at: &Path, size: &str, files: u32) -> Self {
        let options = format!("size={size},nr_inodes={files},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "cairn-test"]).arg(at).status();
        assert!(mounted.expect("mount runs").success(), "root can mount a tmpfs");
        Self(at.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// From now on nothing can be written to it.
    pub fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status();
        assert!(status.expect("mount runs").success(), "nothing on it is open for writing");
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A runtime for a mount.
pub fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

/// Options of a mount that other users can use, where that is permitted.
pub fn for_everybody() -> MountOptions {
    let access = if rustix::process::geteuid().is_root() { Access::Everybody } else { Access::Owner };
    MountOptions { access, ..MountOptions::default() }
}

/// A mounted file system with a directory and a runtime of its own. Gone when dropped.
pub struct Mount {
    // In the order of dropping: the session needs the runtime, and the directory must be empty again.
    mounted: Option<Mounted>,
    _runtime: Runtime,
    directory: TempDir,
    kept: Option<Box<dyn Any + Send + Sync>>,
}

impl Mount {
    /// Mounts for everybody where that is permitted.
    pub fn new(vfs: Arc<dyn Vfs>) -> Self {
        Self::with_options(vfs, &for_everybody())
    }

    pub fn with_options(vfs: Arc<dyn Vfs>, options: &MountOptions) -> Self {
        Self::on(runtime(), vfs, options)
    }

    /// Mounts a file system that uses this runtime too.
    pub fn on(runtime: Runtime, vfs: Arc<dyn Vfs>, options: &MountOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("cairn-mount-").tempdir().expect("a temporary directory");
        let mounted = cairn_platform_fuse::mount(vfs, directory.path(), options, runtime.handle().clone());
        let mounted = Some(mounted.expect("the mount"));
        open_to_all(directory.path());
        Self { mounted, _runtime: runtime, directory, kept: None }
    }

    /// Keeps something that the file system needs until the mount is gone.
    pub fn keep(mut self, what: impl Any + Send + Sync) -> Self {
        self.kept = Some(Box::new(what));
        self
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("it is there until dropped")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Before the directory, whose removal would else empty the file system.
        drop(self.mounted.take());
    }
}

/// Temporary directories are for their owner only; tests look in as others.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("the owner may");
}

/// One mount for all tests that are running; the last of them takes it away.
pub struct SharedMount(Mutex<Weak<Mount>>);

impl SharedMount {
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// Runs a case in a fresh directory, which is named after it, of the mount that `make` makes if there is none.
    pub fn with(&self, name: &str, make: impl FnOnce() -> Mount, case: fn(&Path)) {
        if !can_mount() {
            return;
        }
        let mount = {
            let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let mount = Arc::new(make());
                *shared = Arc::downgrade(&mount);
                mount
            })
        };
        case(&case_directory(mount.path(), name));
    }
}

fn case_directory(mountpoint: &Path, name: &str) -> PathBuf {
    let directory = mountpoint.join(name);
    std::fs::create_dir(&directory).expect("a directory for the case");
    open_to_all(&directory);
    directory
}
