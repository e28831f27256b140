//! Putting a FUSE connection on a directory and taking it off again.
//!
//! Done here and not by fuser, whose session unmounts the path a second time after it was unmounted from outside, and
//! so could take away what somebody mounted there since. As root the kernel is asked directly, else `fusermount3`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::{Access, MountOptions, Writing};

const DEVICE: &str = "/dev/fuse";
const SUBTYPE: &str = "cairn";
const HELPER: &str = "fusermount3";

/// How a mount is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmounting {
    /// Not while anything in it is in use.
    WhenIdle,
    /// Out of the tree at once; gone when its last user is.
    Detach,
}

/// Mounts, and gives the connection.
pub(crate) fn attach(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    if !std::fs::metadata(mountpoint)?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    match attach_directly(mountpoint, options) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => attach_by_helper(mountpoint, options),
        result => result,
    }
}

fn attach_directly(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let device = open_device()?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},subtype={SUBTYPE},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.access == Access::Everybody {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.writing == Writing::Refused {
        flags |= MountFlags::RDONLY;
    }
    let data = CString::new(data).expect("it is made of numbers and words");
    rustix::mount::mount(source(options), mountpoint, "fuse", flags, &*data)?;
    Ok(device)
}

fn source(options: &MountOptions) -> &str {
    if options.fsname.is_empty() { SUBTYPE } else { &options.fsname }
}

pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE);
    device.map(OwnedFd::from).map_err(|error| io::Error::new(error.kind(), format!("cannot open {DEVICE}: {error}")))
}

/// The setuid helper mounts and sends the connection over a socket, which it gets as its standard input.
fn attach_by_helper(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let mut option = format!("nosuid,nodev,default_permissions,subtype={SUBTYPE},fsname={}", escaped(source(options)));
    if options.access == Access::Everybody {
        option.push_str(",allow_other");
    }
    if options.writing == Writing::Refused {
        option.push_str(",ro");
    }
    let (ours, theirs) = UnixStream::pair()?;
    let helper = Command::new(HELPER)
        .args(["-o", &option, "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let device = receive_descriptor(&ours);
    let output = helper.wait_with_output()?;
    match device? {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(helper_failed(&output.stderr)),
    }
}

/// `fusermount3` takes options apart at commas; a backslash keeps one.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn no_helper(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("{HELPER} is not installed (package fuse3), and it takes it to mount"))
        }
        kind => io::Error::new(kind, format!("cannot run {HELPER}: {error}")),
    }
}

fn helper_failed(stderr: &[u8]) -> io::Error {
    let message = String::from_utf8_lossy(stderr).trim().to_owned();
    let kind = match &message {
        busy if busy.contains("busy") => io::ErrorKind::ResourceBusy,
        denied if denied.contains("ermission") || denied.contains("allow_other") => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, message)
}

/// The descriptor that was sent, or none where the sender closed its end without.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

/// Has the kernel read ahead as much as one request carries: its 128 KiB are little where a round trip takes long. Only
/// root may, and it is only for speed.
pub(crate) fn widen_read_ahead(mountpoint: &Path) {
    const KIBIBYTES: &str = "1024";
    let widened = std::fs::metadata(mountpoint).and_then(|meta| {
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), KIBIBYTES)
    });
    if let Err(error) = widened {
        tracing::debug!(%error, "read-ahead stays as it is");
    }
}

/// Unmounts.
pub(crate) fn detach(mountpoint: &Path, how: Unmounting) -> io::Result<()> {
    let flags = match how {
        Unmounting::WhenIdle => UnmountFlags::NOFOLLOW,
        Unmounting::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => detach_by_helper(mountpoint, how),
        result => Ok(result?),
    }
}

fn detach_by_helper(mountpoint: &Path, how: Unmounting) -> io::Result<()> {
    let mut helper = Command::new(HELPER);
    helper.arg("-u");
    if how == Unmounting::Detach {
        helper.arg("-z");
    }
    let output = helper.arg("--").arg(mountpoint).stdin(Stdio::null()).output().map_err(no_helper)?;
    if output.status.success() { Ok(()) } else { Err(helper_failed(&output.stderr)) }
}
