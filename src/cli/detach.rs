//! `cairn detach`.

use anyhow::{Context, Result, bail};
use cairnfs::daemon::session;
use cairnfs::replicate::DrainProgress;
use clap::Args;

use super::{Global, Outcome, print, target};

#[derive(Debug, Args)]
pub struct DetachArguments {
    /// Name or remote of the drive; `cairn drives` lists them
    drive: String,
    /// Also when this machine has changes that the remote has not: they are lost
    #[arg(long)]
    discard_unpublished: bool,
}

pub fn run(global: &Global, arguments: &DetachArguments) -> Result<Outcome> {
    let data = global.data()?;
    let record = target::attached(&data, &arguments.drive)?;
    let name = &record.name;
    if let Some(client) = target::client(&data, &record)? {
        bail!("drive {name:?} is mounted on {}; end that first with `cairn umount {name}`", client.mountpoint());
    }
    let _lock = data.lock()?;
    let left = session::unpublished(&data, &record)
        .with_context(|| format!("cannot find out whether the remote has everything of drive {name:?}"));
    match left {
        Ok(left) if left == DrainProgress::default() => {}
        _ if arguments.discard_unpublished => {}
        Ok(left) => bail!(
            "drive {name:?} has changes that the remote has not ({}, {}); mount it and `cairn drain` it, or lose them with \
             --discard-unpublished",
            print::count(left.files_left, "file"),
            print::size(left.bytes_left)
        ),
        Err(error) => return Err(error),
    }
    data.remove_drive(&record)?;
    let value = serde_json::json!({ "drive": name, "attached": false });
    print::result(global.format(), &value, |_| {
        format!("detached {name}; its vault on {} stays as it is", record.remote)
    })?;
    Ok(Outcome::Done)
}
