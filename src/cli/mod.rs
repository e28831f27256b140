//! The commands: what a person types, checked and turned into calls of the library, and what is printed for them.
//!
//! One file per command. Results go to stdout, as text or with `--json` as one JSON value; everything else goes to stderr.
//! An error is one line, `cairn: what happened and what to do`. Exit codes: 0 done, 1 failed, 2 usage, 3 held or incomplete.

mod attach;
mod completions;
mod detach;
mod drain;
mod drives;
mod init;
mod limits;
mod logging;
mod mount;
mod own_vault;
mod pause;
mod print;
mod pull;
mod remote;
mod secrets;
mod status;
mod target;
mod umount;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cairnfs::config::DataDir;
use clap::{Args, Parser, Subcommand};

const LONG_ABOUT: &str = "\
A folder that behaves like a fast local disk, while everything in it is carried in the background, encrypted and deduplicated, \
to the storage you choose.

Start with `cairn mount ~/Cairn`: it makes an encrypted vault on this computer and mounts it. To keep the vault elsewhere, make \
it there with `cairn init REMOTE` and mount that: `cairn mount REMOTE ~/Cairn`, on as many machines as you like.";

const AFTER_HELP: &str = "\
A REMOTE is a folder, written as its absolute path or as fs:///path, or a bucket, s3://bucket/prefix?endpoint=URL&region=NAME; \
quote it, as a shell takes ? and & for itself. Access keys come from credentials.toml in the data directory, the environment or \
the usual AWS places.

A passphrase is asked for, or comes from --passphrase-file or CAIRN_PASSPHRASE.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 held or incomplete.";

/// An encrypted drive that replicates itself to cloud and network storage in the background
#[derive(Debug, Parser)]
#[command(name = "cairn", version, about, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command knows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Where this machine's state lives: drives, their caches, keys
    #[arg(long, global = true, value_name = "DIR", env = "CAIRN_DATA_DIR", value_hint = clap::ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    /// What to log, to stderr: error, warn, info, debug, trace, or a filter such as cairnfs::replicate=debug
    #[arg(long, global = true, value_name = "FILTER", env = "CAIRN_LOG")]
    log: Option<String>,
}

impl Global {
    fn data(&self) -> Result<DataDir> {
        Ok(DataDir::locate(self.data_dir.clone())?)
    }

    fn format(&self) -> print::Format {
        if self.json { print::Format::Json } else { print::Format::Text }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a drive
    #[command(long_about = mount::LONG_ABOUT)]
    Mount(mount::MountArguments),
    /// End a mount; what is not sent yet is sent after the next mount
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArguments),
    /// Make a vault: an encrypted place for a drive's content on a remote
    #[command(long_about = init::LONG_ABOUT)]
    Init(init::InitArguments),
    /// Make a vault's drive known to this machine without mounting it; mounting the vault does this, too
    Attach(attach::AttachArguments),
    /// Forget a drive that is not mounted, and what is cached of it; the vault stays as it is
    Detach(detach::DetachArguments),
    /// List the drives of this machine
    Drives,
    /// Show how drives are: mounted where, what is only here, what is being sent, what went wrong
    Status(status::StatusArguments),
    /// Send everything now and wait until the remote has it
    Drain(drain::DrainArguments),
    /// Stop sending and fetching; the drive goes on working
    Pause(target::Target),
    /// Go on sending and fetching after a pause
    Resume(target::Target),
    /// Fetch what other devices have published, now
    Pull(target::Target),
    /// Show or change how fast a mounted drive may send and fetch, until it is mounted again
    Limits(limits::LimitsArguments),
    /// Print completions for a shell
    Completions(completions::CompletionsArguments),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Incomplete,
}

/// Runs the command of this process's arguments.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(&arguments) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::from(3),
        Err(error) => {
            print::note(&format!("cairn: {}", print::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> Result<Outcome> {
    let global = &arguments.global;
    if !matches!(arguments.command, Command::Mount(_)) {
        logging::to_stderr(global.log.as_deref().unwrap_or("error"))?;
    }
    match &arguments.command {
        Command::Mount(mount) => mount::run(global, mount),
        Command::Umount(umount) => umount::run(global, umount),
        Command::Init(init) => init::run(global, init),
        Command::Attach(attach) => attach::run(global, attach),
        Command::Detach(detach) => detach::run(global, detach),
        Command::Drives => drives::run(global),
        Command::Status(status) => status::run(global, status),
        Command::Drain(drain) => drain::run(global, drain),
        Command::Pause(target) => pause::run(global, target, pause::Turn::Off),
        Command::Resume(target) => pause::run(global, target, pause::Turn::On),
        Command::Pull(target) => pull::run(global, target),
        Command::Limits(limits) => limits::run(global, limits),
        Command::Completions(completions) => completions::run::<Arguments>(completions),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn definitions_are_consistent() {
        Arguments::command().debug_assert();
    }
}
