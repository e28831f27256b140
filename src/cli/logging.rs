//! Where the log goes: stderr, or a file once a process has left its terminal.
//!
//! The file is for its owner only and does not grow without bound: a full one becomes `cairn.log.1`, in the place of the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use cairnfs::base::os::{self, Disposition};
use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How long a log file gets, in bytes; there are two of them at most.
const LONGEST: u64 = 8 << 20;

/// Where the log goes from now on, once it is set; stderr before.
static FILE: OnceLock<LogFile> = OnceLock::new();

/// Starts logging.
pub fn to_stderr(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("{filter:?} is not a log filter; write a level such as debug, or cairnfs::replicate=debug")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Sink).init();
    Ok(())
}

/// Opens a log file to go on at its end.
pub fn open(path: &Path) -> io::Result<File> {
    drop(os::open_private(path, Disposition::Create)?);
    OpenOptions::new().append(true).open(path)
}

/// Goes on in the file at `path`.
pub fn continue_in(path: &Path, file: File) {
    // Set once in the life of a process.
    let _ = FILE.set(LogFile { path: path.to_owned(), longest: LONGEST, current: Mutex::new(file) });
}

struct LogFile {
    path: PathBuf,
    longest: u64,
    /// The lock guards the order of lines and the change of the file.
    current: Mutex<File>,
}

impl LogFile {
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut current = self.current.lock();
        if current.metadata()?.len() + line.len() as u64 > self.longest {
            let mut old = self.path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *current = open(&self.path)?;
        }
        current.write_all(line)
    }
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LogFile::write(self, line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sink;

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Box<dyn Write + 'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match FILE.get() {
            Some(file) => Box::new(file),
            None => Box::new(io::stderr()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_its_end_is_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("cairn.log");
        let log = LogFile { path: path.clone(), longest: 100, current: Mutex::new(open(&path).expect("made")) };
        for number in 0..100 {
            log.write(format!("line {number}\n").as_bytes()).expect("written");
        }
        let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect("text");
        let kept = text("cairn.log.1") + &text("cairn.log");
        assert!(kept.ends_with("line 98\nline 99\n") && kept.len() <= 200, "{kept}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 2);
    }
}
