//! `cairn pause` and `cairn resume`.

use anyhow::Result;
use cairnfs::daemon::control::Request;

use super::target::Target;
use super::{Global, Outcome, print};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Off,
    On,
}

pub fn run(global: &Global, target: &Target, turn: Turn) -> Result<Outcome> {
    let mounted = target.mounted(global)?;
    let (request, word) = match turn {
        Turn::Off => (Request::Pause, "paused"),
        Turn::On => (Request::Resume, "resumed"),
    };
    mounted.client.ask(request, |_| ())?;
    let value = serde_json::json!({ "drive": mounted.record.name, "replication": word });
    print::result(global.format(), &value, |_| format!("replication of {} is {word}", mounted.record.name))?;
    Ok(Outcome::Done)
}
