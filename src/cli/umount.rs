//! `cairn umount`.

use anyhow::Result;
use cairnfs::daemon::control::{InUse, Request};
use clap::Args;

use super::target::Target;
use super::{Global, Outcome, print};

#[derive(Debug, Args)]
pub struct UmountArguments {
    #[command(flatten)]
    target: Target,
    /// Take the mount away from programs that still use it
    #[arg(long)]
    force: bool,
}

pub fn run(global: &Global, arguments: &UmountArguments) -> Result<Outcome> {
    let mounted = arguments.target.mounted(global)?;
    let in_use = if arguments.force { InUse::Force } else { InUse::Refuse };
    mounted.client.ask_to_end(Request::Unmount { in_use })?;
    let value = serde_json::json!({ "drive": mounted.record.name, "mounted": false });
    print::result(global.format(), &value, |_| String::new())?;
    Ok(Outcome::Done)
}
