//! Picks the file system driver of this system, and holds the few calls that only make sense with one: checks of a mount
//! point, the signals that end a mount, leaving the terminal. The one file outside of `platform/` that names a system.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_platform_api::Vfs;
use tokio::runtime::Handle;

const SOURCE_PREFIX: &str = "cairn:";

/// How to mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Users other than the one who mounts may use it, as owner and mode of the files say.
    pub allow_other: bool,
    /// Nothing can be changed through it.
    pub read_only: bool,
    /// Every read and write passes this process, also where the kernel could do it by itself.
    pub no_passthrough: bool,
}

/// Why a drive cannot be mounted at a place.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no driver.
    #[error("mounting is not there yet on this system; on Linux it is")]
    NoDriver,
    /// No such directory.
    #[error("the mountpoint {0:?} does not exist; make it with `mkdir -p`")]
    Missing(PathBuf),
    /// Something else.
    #[error("the mountpoint {0:?} is not a directory; name an empty one")]
    NotADirectory(PathBuf),
    /// It would hide what is in it.
    #[error("the mountpoint {0:?} is not empty; name an empty directory")]
    NotEmpty(PathBuf),
    /// Something is mounted there.
    #[error("something is already mounted on {0:?}; end that with `cairn umount`, or name another directory")]
    Busy(PathBuf),
    /// It cannot be looked at.
    #[error("cannot use the mountpoint {path:?}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The driver refused.
    #[error("cannot mount on {path:?}")]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why the process was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// By the person at the terminal.
    Interrupt,
    /// By the system.
    Terminate,
}

/// Checks that a drive can be mounted on the directory, and gives its absolute path without links. A mount there whose process
/// died is removed.
///
/// # Errors
/// [`MountError`].
pub fn check_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let absolute =
        std::path::absolute(path).map_err(|source| MountError::Unusable { path: path.to_owned(), source })?;
    system::remove_dead_mount(&absolute);
    let resolved = absolute.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::Missing(absolute.clone()),
        io::ErrorKind::NotADirectory => MountError::NotADirectory(absolute.clone()),
        _ => MountError::Unusable { path: absolute.clone(), source },
    })?;
    let unusable = |source| MountError::Unusable { path: resolved.clone(), source };
    if !resolved.metadata().map_err(unusable)?.is_dir() {
        return Err(MountError::NotADirectory(resolved));
    }
    if system::is_mounted(&resolved).map_err(unusable)? {
        return Err(MountError::Busy(resolved));
    }
    if resolved.read_dir().map_err(unusable)?.next().is_some() {
        return Err(MountError::NotEmpty(resolved));
    }
    Ok(resolved)
}

/// Whether something is mounted on the directory; what cannot be looked at counts as mounted.
pub fn is_mounted(path: &Path) -> bool {
    system::is_mounted(path).unwrap_or(true)
}

/// Whether a drive is mounted on the directory, by whatever process of whatever data directory.
pub fn is_drive(path: &Path) -> bool {
    system::source_of(path).is_some_and(|source| source.starts_with(SOURCE_PREFIX))
}

/// What `mount` shows as the device of a drive.
pub fn source_name(drive: &str) -> String {
    format!("{SOURCE_PREFIX}{drive}")
}

/// A mount. It ends when this is dropped.
pub struct Mount(system::Mount);

/// Mounts `vfs`; `source` is what `mount` shows as the device.
///
/// # Errors
/// [`MountError::NoDriver`] or [`MountError::Refused`].
pub fn mount(
    vfs: Arc<dyn Vfs>,
    mountpoint: &Path,
    source: &str,
    options: MountOptions,
    runtime: Handle,
) -> Result<Mount, MountError> {
    system::mount(vfs, mountpoint, source, options, runtime).map(Mount)
}

impl Mount {
    /// Waits until the mount is gone, whoever ended it, and everything in it is durable here.
    ///
    /// # Errors
    /// What went wrong in the end.
    pub fn wait(&self) -> io::Result<()> {
        self.0.wait()
    }

    /// Ends the mount.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when it is in use; it stays.
    pub fn unmount(&self) -> io::Result<()> {
        self.0.unmount()
    }

    /// Takes the mount away from everybody; it ends when the last file in it is closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self) -> io::Result<()> {
        self.0.detach()
    }
}

/// Gives the signals that ask the process to end, one after the other.
pub struct Signals(system::Signals);

impl Signals {
    /// From now on they are given here, and do not end the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Self> {
        system::Signals::listen().map(Self)
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        self.0.next().await
    }
}

/// Takes as many file descriptors and as large files as the system gives without asking for a privilege: each open file of a mount
/// costs one descriptor, and the usual limit of 1024 is soon reached.
pub fn raise_limits() {
    system::raise_limits();
}

/// Leaves the terminal and its session for good; what would be printed goes to `log`.
///
/// # Errors
/// When the system refuses.
pub fn leave_terminal(log: &File) -> io::Result<()> {
    system::leave_terminal(log)
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::sync::Arc;

    use cairn_platform_api::Vfs;
    use cairn_platform_fuse as fuse;
    use tokio::runtime::Handle;
    use tokio::signal::unix::{self, SignalKind};

    use super::{MountError, MountOptions, Signal};

    pub(super) use fuse::Mounted as Mount;

    pub(super) fn mount(
        vfs: Arc<dyn Vfs>,
        mountpoint: &Path,
        source: &str,
        options: MountOptions,
        runtime: Handle,
    ) -> Result<Mount, MountError> {
        let options = fuse::MountOptions {
            fsname: source.to_owned(),
            passthrough: if options.no_passthrough { fuse::Passthrough::Off } else { fuse::Passthrough::Auto },
            access: if options.allow_other { fuse::Access::Everybody } else { fuse::Access::Owner },
            writing: if options.read_only { fuse::Writing::Refused } else { fuse::Writing::Allowed },
        };
        fuse::mount(vfs, mountpoint, &options, runtime)
            .map_err(|source| MountError::Refused { path: mountpoint.to_owned(), source })
    }

    pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
        let Some(parent) = path.parent() else { return Ok(true) };
        Ok(path.metadata()?.dev() != parent.metadata()?.dev())
    }

    /// The device of what is mounted on top of the directory. The table of mounts is read, since a mount may not answer.
    pub(super) fn source_of(path: &Path) -> Option<String> {
        let table = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let escape = |text: &str| {
            text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
        };
        let wanted = escape(path.to_str()?);
        let mounts = table.lines().filter_map(|line| line.split_once(' '));
        let mut on_path = mounts.filter(|(_, rest)| rest.split(' ').next() == Some(wanted.as_str()));
        // The last is on top.
        on_path.next_back().map(|(source, _)| source.to_owned())
    }

    /// The kernel answers ENOTCONN for a mount whose process is gone; nothing can be lost by removing it. It may still answer
    /// for attributes from its cache, so it is asked for what it does not keep.
    pub(super) fn remove_dead_mount(path: &Path) {
        if rustix::fs::statfs(path).err() == Some(rustix::io::Errno::NOTCONN) {
            let by_root = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).is_ok();
            if !by_root {
                // Failing is seen when the mount point is checked next.
                let _ = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(path).status();
            }
        }
    }

    pub(super) struct Signals {
        interrupt: unix::Signal,
        terminate: unix::Signal,
        hangup: unix::Signal,
    }

    impl Signals {
        pub(super) fn listen() -> io::Result<Self> {
            // Sent to whoever writes beyond a limit of the size of files; to whom it does not end, the write says so.
            drop(unix::signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
            Ok(Self {
                interrupt: unix::signal(SignalKind::interrupt())?,
                terminate: unix::signal(SignalKind::terminate())?,
                hangup: unix::signal(SignalKind::hangup())?,
            })
        }

        pub(super) async fn next(&mut self) -> Signal {
            tokio::select! {
                _ = self.interrupt.recv() => Signal::Interrupt,
                _ = self.terminate.recv() => Signal::Terminate,
                _ = self.hangup.recv() => Signal::Terminate,
            }
        }
    }

    pub(super) fn raise_limits() {
        use rustix::process::{Resource, getrlimit, setrlimit};
        for (what, resource) in [("number of open files", Resource::Nofile), ("size of files", Resource::Fsize)] {
            let mut limit = getrlimit(resource);
            limit.current = limit.maximum;
            if let Err(error) = setrlimit(resource, limit) {
                tracing::warn!(%error, "cannot raise the limit of the {what}");
            }
        }
    }

    pub(super) fn leave_terminal(log: &File) -> io::Result<()> {
        // Fails when this process leads its group already; then no terminal of another process is left behind either.
        let _ = rustix::process::setsid();
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        rustix::stdio::dup2_stdout(log)?;
        rustix::stdio::dup2_stderr(log)?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::convert::Infallible;
    use std::fs::File;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use cairn_platform_api::Vfs;
    use tokio::runtime::Handle;

    use super::{MountError, MountOptions, Signal};

    pub(super) struct Mount(Infallible);

    impl Mount {
        pub(super) fn wait(&self) -> io::Result<()> {
            match self.0 {}
        }

        pub(super) fn unmount(&self) -> io::Result<()> {
            match self.0 {}
        }

        pub(super) fn detach(&self) -> io::Result<()> {
            match self.0 {}
        }
    }

    pub(super) fn mount(_: Arc<dyn Vfs>, _: &Path, _: &str, _: MountOptions, _: Handle) -> Result<Mount, MountError> {
        Err(MountError::NoDriver)
    }

    pub(super) fn is_mounted(_: &Path) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn source_of(_: &Path) -> Option<String> {
        None
    }

    pub(super) fn remove_dead_mount(_: &Path) {}

    pub(super) fn raise_limits() {}

    pub(super) struct Signals(());

    impl Signals {
        pub(super) fn listen() -> io::Result<Self> {
            Ok(Self(()))
        }

        pub(super) async fn next(&mut self) -> Signal {
            match tokio::signal::ctrl_c().await {
                Ok(()) => Signal::Interrupt,
                Err(_) => std::future::pending().await,
            }
        }
    }

    pub(super) fn leave_terminal(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_mountpoints_are_told_apart() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let good = temporary.path().join("good");
        std::fs::create_dir(&good).expect("made");
        assert!(check_mountpoint(&good).is_ok());
        assert!(matches!(check_mountpoint(&temporary.path().join("none")), Err(MountError::Missing(_))));
        assert!(matches!(check_mountpoint(temporary.path()), Err(MountError::NotEmpty(_))));
        let file = good.join("file");
        std::fs::write(&file, "").expect("written");
        assert!(matches!(check_mountpoint(&file), Err(MountError::NotADirectory(_))));
        if cfg!(target_os = "linux") {
            // Windows says that it does not exist.
            assert!(matches!(check_mountpoint(&file.join("below")), Err(MountError::NotADirectory(_))));
            assert!(matches!(check_mountpoint(Path::new("/proc")), Err(MountError::Busy(_))));
        }
    }
}
