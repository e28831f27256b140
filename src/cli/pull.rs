//! `cairn pull`.

use anyhow::Result;
use cairnfs::daemon::control::Request;

use super::target::Target;
use super::{Global, Outcome, print};

pub fn run(global: &Global, target: &Target) -> Result<Outcome> {
    let mounted = target.mounted(global)?;
    mounted.client.ask(Request::Pull, |_| ())?;
    let value = serde_json::json!({ "drive": mounted.record.name, "pulled": true });
    print::result(global.format(), &value, |_| {
        format!("{} shows what other devices had published", mounted.record.name)
    })?;
    Ok(Outcome::Done)
}
