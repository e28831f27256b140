//! `cairn mount`.
//!
//! In the background means: this program starts itself once more, hands on what that prints, and ends as soon as the mount is
//! ready or has failed. The other one leaves the terminal when it is ready.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cairnfs::config::credentials::{CREDENTIALS_FILE, Credentials};
use cairnfs::config::{ConfigError, DataDir, DriveRecord, Settings};
use cairnfs::daemon::driver::{self, MountError, MountOptions};
use cairnfs::daemon::session::{self, Plan};
use clap::Args;

use super::secrets::SecretArguments;
use super::{Global, Outcome, attach, logging, own_vault, print, remote, target};

/// Set for the process in the background.
const BACKGROUND_VARIABLE: &str = "CAIRN_IN_BACKGROUND";
/// The last line on stdout of the process in the background before it leaves the terminal.
const READY_LINE: &str = "\u{1}ready";

const EXAMPLES: &str = "\
Examples:
  cairn mount ~/Cairn
  cairn mount /mnt/disk/vault ~/Work --background
  cairn mount 's3://bucket/vault?region=eu-central-1' ~/Work --name work
  cairn mount work ~/Work";

pub const LONG_ABOUT: &str = "\
Mount a drive and stay until it is unmounted, with `cairn umount`, Ctrl-C or `fusermount3 -u`.

Without REMOTE the drive is an encrypted vault in the data directory. The first time it is made, together with a key file beside \
it, and a recovery phrase is printed: write it down.

With the REMOTE of a vault, that is attached first if it is not yet (see `cairn init` for making one). With the name of a drive, \
that one is mounted.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "cairn mount [OPTIONS] [REMOTE|DRIVE] MOUNTPOINT")]
pub struct MountArguments {
    /// The vault or drive, and the empty directory to mount it on
    #[arg(value_name = "REMOTE|DRIVE> <MOUNTPOINT", num_args = 1..=2, required = true, value_hint = clap::ValueHint::DirPath)]
    places: Vec<PathBuf>,
    /// Return once the drive is mounted; the log is cairn.log in the drive's directory
    #[arg(long)]
    background: bool,
    /// Let other users use the mount, as owner and mode of the files say
    #[arg(long)]
    allow_other: bool,
    /// Do not allow changes through the mount
    #[arg(long)]
    read_only: bool,
    /// Never let the kernel read and write cached files by itself
    #[arg(long)]
    no_passthrough: bool,
    /// Mount a file system that is in memory and gone with the mount, for trying out and for tests
    #[arg(long, conflicts_with_all = ["background"])]
    memory: bool,
    /// Name of the drive, where this attaches one
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    secret: SecretArguments,
}

impl MountArguments {
    fn mountpoint(&self) -> &Path {
        self.places.last().expect("one is required")
    }

    /// The vault or drive, if one is named.
    fn what(&self) -> Result<Option<&str>> {
        let [what, _] = self.places.as_slice() else { return Ok(None) };
        what.to_str().map(Some).with_context(|| format!("{what:?} is not UTF-8 and cannot be a remote or drive"))
    }

    fn options(&self) -> MountOptions {
        MountOptions { allow_other: self.allow_other, read_only: self.read_only, no_passthrough: self.no_passthrough }
    }
}

pub fn run(global: &Global, arguments: &MountArguments) -> Result<Outcome> {
    let in_background = std::env::var_os(BACKGROUND_VARIABLE).is_some();
    if arguments.background && !in_background {
        return start_in_background();
    }
    logging::to_stderr(global.log.as_deref().unwrap_or("warn"))?;
    if arguments.memory {
        if arguments.places.len() > 1 {
            bail!("a drive in memory has no remote; use `cairn mount --memory MOUNTPOINT`");
        }
        let mountpoint = driver::check_mountpoint(arguments.mountpoint())?;
        session::run_memory(&mountpoint, arguments.options(), || announce(&mountpoint, "a drive in memory"))?;
        return Ok(Outcome::Done);
    }
    let plan = prepare(global, arguments)?;
    let log = plan.data.drive_dir(&plan.record).join("cairn.log");
    let (mountpoint, name) = (plan.mountpoint.clone(), format!("drive {}", plan.record.name));
    session::run(plan, || {
        announce(&mountpoint, &name)?;
        if in_background { leave_terminal(&log) } else { Ok(()) }
    })?;
    Ok(Outcome::Done)
}

/// Finds or makes the drive. The mount point is checked first: nothing is made for a mount that cannot be.
fn prepare(global: &Global, arguments: &MountArguments) -> Result<Plan> {
    let data = global.data()?;
    let what = arguments.what()?;
    let mountpoint = match driver::check_mountpoint(arguments.mountpoint()) {
        // Whoever names no vault gets everything made that it takes, the directory included.
        Err(MountError::Missing(path)) if what.is_none() && path.parent().is_some_and(Path::is_dir) => {
            fs::create_dir(&path).with_context(|| format!("cannot make the mountpoint {path:?}"))?;
            driver::check_mountpoint(&path)?
        }
        checked => checked?,
    };
    let (record, found) = match what {
        None => {
            let record = own_vault::find_or_make(&data)?;
            let found = arguments.secret.for_opening(&record.remote, Some(&record.secret))?;
            (record, found)
        }
        Some(what) => attached_or_new(&data, what, arguments)?,
    };
    // A process whose mount is gone is about to end, and is waited for.
    let client = target::client(&data, &record)?.filter(|client| driver::is_mounted(Path::new(client.mountpoint())));
    if let Some(client) = client {
        bail!("drive {:?} is already mounted on {}; a drive can be mounted once", record.name, client.mountpoint());
    }
    let settings = Settings::load(&data.drive_dir(&record))?;
    let credentials = Credentials::load(&data.path().join(CREDENTIALS_FILE))?;
    let options = arguments.options();
    Ok(Plan { record, data, mountpoint, secret: found.secret, credentials, settings, options })
}

fn attached_or_new(
    data: &DataDir,
    what: &str,
    arguments: &MountArguments,
) -> Result<(DriveRecord, super::secrets::Found)> {
    // A remote is looked up as it is stored, not as it was typed.
    let url = remote::parse(what);
    let name = url.as_ref().map_or_else(|_| what.to_owned(), ToString::to_string);
    match data.find_drive(&name) {
        Ok(record) => {
            let found = arguments.secret.for_opening(&record.remote, Some(&record.secret))?;
            Ok((record, found))
        }
        Err(ConfigError::NoSuchDrive { .. }) => {
            let url = match (url, what.contains(':')) {
                (Ok(url), _) => url,
                (Err(error), true) => return Err(error),
                (Err(_), false) => {
                    bail!("{what:?} is neither a drive of this machine (see `cairn drives`) nor a remote")
                }
            };
            attach::attach(data, &url, arguments.name.clone(), None, &arguments.secret)
        }
        Err(error) => Err(error.into()),
    }
}

fn announce(mountpoint: &Path, what: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{what} is mounted on {}", mountpoint.display())?;
    stdout.flush()
}

fn leave_terminal(log: &Path) -> io::Result<()> {
    let file = logging::open(log)?;
    {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{READY_LINE}")?;
        stdout.flush()?;
    }
    driver::leave_terminal(&file)?;
    logging::continue_in(log, file);
    Ok(())
}

fn start_in_background() -> Result<Outcome> {
    let program = std::env::current_exe().context("cannot find out where this program is")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND_VARIABLE, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the process in the background")?;
    let mut errors = child.stderr.take().expect("it is piped");
    let relay = std::thread::spawn(move || io::copy(&mut errors, &mut io::stderr()));
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let ready = relay_until_ready(output)?;
    let _ = relay.join();
    if ready {
        return Ok(Outcome::Done);
    }
    let status = child.wait().context("cannot wait for the process in the background")?;
    if status.code().is_none() {
        print::note(&format!("cairn: the process in the background ended by {status}"));
    }
    // Else it has said why itself.
    std::process::exit(status.code().filter(|code| *code != 0).unwrap_or(1));
}

/// Hands on what the process prints, and says whether it became ready before it closed its output.
fn relay_until_ready(output: BufReader<impl Read>) -> Result<bool> {
    for line in output.lines() {
        let line = line.context("cannot read from the process in the background")?;
        if line == READY_LINE {
            return Ok(true);
        }
        // Whoever reads may have seen enough; the mount is on its way.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }
    Ok(false)
}
