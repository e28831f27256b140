//! Mounted file systems, and whose they are.

use std::fs;
use std::io::Read;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};

/// `nobody`, who every Linux system has.
const NOBODY: u32 = 65534;

/// Who works: whoever runs this, or an ordinary user.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Us,
    Nobody,
}

impl Who {
    /// A command that this user runs.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self == Self::Nobody {
            // Without settings of ours.
            command.uid(NOBODY).gid(NOBODY).env("HOME", "/nonexistent");
        }
        command
    }

    /// A new directory of this user.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(self, path: PathBuf) -> Result<PathBuf> {
        fs::create_dir_all(&path)?;
        if self == Self::Nobody {
            chown(&path, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(path)
    }
}

/// A mounted file system, unmounted when dropped.
pub struct Mount {
    child: Child,
    program: PathBuf,
    who: Who,
    data: PathBuf,
    path: PathBuf,
}

impl Mount {
    /// Mounts by `cairn mount ARGUMENTS` in directories below `place`.
    ///
    /// # Errors
    /// The mount failed.
    pub fn start(program: &Path, place: &Path, name: &str, who: Who, arguments: &[&str]) -> Result<Self> {
        let path = who.directory(place.join(format!("{name}-mount")))?;
        let data = who.directory(place.join(format!("{name}-data")))?;
        let mut command = who.command(program);
        command.arg("mount").args(arguments).arg(&path);
        let mut child = command.env("CAIRN_DATA_DIR", &data).env("HOME", &data).stdout(Stdio::piped()).spawn()?;
        let mut printed = Vec::new();
        let mut output = child.stdout.take().context("it is piped")?;
        let mut byte = [0];
        while !String::from_utf8_lossy(&printed).contains("is mounted on") {
            ensure!(output.read(&mut byte)? == 1, "the mount of {name} failed");
            printed.extend(byte);
        }
        Ok(Self { child, program: program.to_owned(), who, data, path })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Another command on its data directory.
    ///
    /// # Errors
    /// The command failed.
    pub fn cairn(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.who.command(&self.program);
        command.args(arguments).env("CAIRN_DATA_DIR", &self.data).env("HOME", &self.data).stdout(Stdio::null());
        ensure!(command.status()?.success(), "cairn {arguments:?} failed");
        Ok(())
    }

    /// A field of `/proc/<pid>/status` that is in kB.
    ///
    /// # Errors
    /// There is no such field.
    pub fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).context("no number")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
