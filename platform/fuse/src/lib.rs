//! The Linux driver: a [`Vfs`] as a FUSE mount.
//!
//! Requests are taken by a few threads, each with a channel of its own; none waits for a disk sync or the network, for
//! what takes long is awaited on the runtime the mount was given. The kernel keeps what it was told for long and is
//! told of changes; it checks permissions and keeps locks itself. Where it may, it reads, writes and maps backing files
//! without asking.
//!
//! Not offered: `O_TMPFILE` and `statx` birth times (fuser 0.18 has none), locks across hosts.

mod announce;
mod attach;
mod convert;
mod driver;
mod errno;
mod interrupts;
mod known;
mod open_inodes;
mod replies;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cairn_platform_api::{Vfs, VfsResult};
use fuser::{Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use crate::announce::Announcer;
use crate::attach::Unmounting;
use crate::driver::Driver;

/// Whether the kernel may read and write backing files by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passthrough {
    /// Where kernel (Linux 6.9) and privileges (`CAP_SYS_ADMIN`) allow it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Who may use the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// The user who mounted it.
    #[default]
    Owner,
    /// Everybody, as owner and mode of the files say (`allow_other`).
    Everybody,
}

/// Whether the mount can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writing {
    /// Yes.
    #[default]
    Allowed,
    /// No (`ro`).
    Refused,
}

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// What `mount` shows as the source; empty means `cairn`.
    pub fsname: String,
    /// Kernel passthrough.
    pub passthrough: Passthrough,
    /// Who may use the mount.
    pub access: Access,
    /// Whether it can be written.
    pub writing: Writing,
}

/// A mount. It ends when this is dropped: at once where nothing in it is in use, else it is taken out of the tree and
/// ends with its last user.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    end: Arc<End>,
}

/// How the session ended, once it has.
#[derive(Debug, Default)]
struct End {
    /// Whether we took the mount out of the tree: the path may be somebody else's by now.
    taken_away: Mutex<bool>,
    result: Mutex<Option<Result<(), (io::ErrorKind, String)>>>,
    changed: Condvar,
}

impl End {
    fn reached(&self, result: io::Result<()>) {
        let mut end = self.result.lock();
        *end = Some(result.map_err(|error| (error.kind(), error.to_string())));
        self.changed.notify_all();
    }

    fn wait(&self) -> io::Result<()> {
        let mut end = self.result.lock();
        loop {
            match &*end {
                Some(Ok(())) => return Ok(()),
                Some(Err((kind, message))) => return Err(io::Error::new(*kind, message.clone())),
                None => self.changed.wait(&mut end),
            }
        }
    }

    fn is_reached(&self) -> bool {
        self.result.lock().is_some()
    }

    /// Unmounts, unless that is done.
    fn take_away(&self, mountpoint: &Path, how: Unmounting) -> io::Result<()> {
        let mut taken_away = self.taken_away.lock();
        if !*taken_away && !self.is_reached() {
            attach::detach(mountpoint, how)?;
            *taken_away = true;
        }
        Ok(())
    }
}

impl Mounted {
    /// Where.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the mount is gone, whoever unmounts it, and [`Vfs::destroy`] has returned. Blocks: not for a thread
    /// that futures run on.
    ///
    /// # Errors
    /// Where the session failed, or `destroy` did.
    pub fn wait(&self) -> io::Result<()> {
        self.end.wait()
    }

    /// Unmounts; open files keep it from that. What was written is handed over before this returns; [`Vfs::destroy`]
    /// may still be at work (see [`wait`](Self::wait)). Does nothing where the mount is gone already.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] where something is in use; the mount stays.
    pub fn unmount(&self) -> io::Result<()> {
        self.end.take_away(&self.mountpoint, Unmounting::WhenIdle)
    }

    /// Takes the mount out of the tree at once; it ends when the last file in it is closed.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn detach(&self) -> io::Result<()> {
        self.end.take_away(&self.mountpoint, Unmounting::Detach)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if *self.end.taken_away.lock() {
            return;
        }
        let unmounted = self.unmount();
        if unmounted.is_ok() {
            // How it ended was for `wait` to say.
            let _ = self.wait();
        } else if let Err(error) = self.detach() {
            tracing::warn!(mountpoint = %self.mountpoint.display(), %error, "cannot unmount");
        }
    }
}

/// Threads that take requests: two even on one processor, so that a slow one does not hold up all.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// Mounts `vfs` on the directory `mountpoint`. Answers that come later are awaited on `runtime`, which has a timer.
///
/// # Errors
/// Where the mount point is not a directory, or FUSE is not there or not permitted.
pub fn mount(vfs: Arc<dyn Vfs>, mountpoint: &Path, options: &MountOptions, runtime: Handle) -> io::Result<Mounted> {
    let mountpoint = mountpoint.canonicalize()?;
    let device = attach::attach(&mountpoint, options)?;
    let end = Arc::new(End::default());
    let started = start(vfs, device, options, runtime, &mountpoint, end.clone());
    if started.is_err() {
        // The first error is the one to tell.
        let _ = attach::detach(&mountpoint, Unmounting::Detach);
    }
    started?;
    attach::widen_read_ahead(&mountpoint);
    Ok(Mounted { mountpoint, end })
}

fn start(
    vfs: Arc<dyn Vfs>,
    device: std::os::fd::OwnedFd,
    options: &MountOptions,
    runtime: Handle,
    mountpoint: &Path,
    end: Arc<End>,
) -> io::Result<()> {
    let kernel = Arc::new(OnceLock::new());
    let destroyed = Arc::new(Mutex::new(Ok(())));
    let note = {
        let destroyed = destroyed.clone();
        Box::new(move |result: VfsResult<()>| *destroyed.lock() = result)
    };
    let driver = Driver::new(vfs.clone(), options.passthrough, runtime, kernel.clone(), note);
    let session = Session::from_fd(driver, device, session_acl(options.access), session_config())?;
    // The handshake is done, and requests wait until the session runs.
    let announcer = Arc::new(Announcer::start(session.notifier())?);
    kernel.set(session.notifier()).expect("the cell was made above");
    vfs.attach(announcer.clone());
    let mountpoint = mountpoint.to_owned();
    std::thread::Builder::new().name("cairn-fuse".to_owned()).spawn(move || {
        let ran = session.run();
        announcer.stop();
        if ran.is_err() {
            // Nobody answers any more: better no mount than one that hangs.
            let _ = end.take_away(&mountpoint, Unmounting::Detach);
        }
        let destroyed = std::mem::replace(&mut *destroyed.lock(), Ok(()));
        end.reached(ran.and(destroyed.map_err(io::Error::other)));
    })?;
    Ok(())
}

fn session_acl(access: Access) -> SessionACL {
    match access {
        Access::Owner => SessionACL::Owner,
        Access::Everybody => SessionACL::All,
    }
}

fn session_config() -> Config {
    let mut config = Config::default();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    config.n_threads = Some(processors.clamp(*THREADS.start(), *THREADS.end()));
    // Each clone opens the device once more, which the helper's user may not be allowed to.
    config.clone_fd = attach::open_device().is_ok();
    config
}
