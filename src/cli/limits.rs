//! `cairn limits`.

use anyhow::{Result, bail};
use cairnfs::config::settings::HumanSize;
use cairnfs::daemon::control::{Limit, Reply, Request};
use clap::Args;

use super::target::Target;
use super::{Global, Outcome, print};

#[derive(Debug, Args)]
pub struct LimitsArguments {
    #[command(flatten)]
    target: Target,
    /// Bytes a second to send, such as "2 MiB", or none
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    upload: Option<Limit>,
    /// Bytes a second to fetch, such as "10 MiB", or none
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    download: Option<Limit>,
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit::None),
        size => size.parse().map(|HumanSize(bytes)| Limit::BytesPerSecond(bytes)),
    }
}

pub fn run(global: &Global, arguments: &LimitsArguments) -> Result<Outcome> {
    let mounted = arguments.target.mounted(global)?;
    let (upload, download) = (arguments.upload.unwrap_or(Limit::Keep), arguments.download.unwrap_or(Limit::Keep));
    if (upload, download) != (Limit::Keep, Limit::Keep) {
        mounted.client.ask(Request::Limits { upload, download }, |_| ())?;
    }
    let Reply::Status(status) = mounted.client.ask(Request::Status, |_| ())? else {
        bail!(
            "the process of drive {:?} gave an answer that makes no sense; is it of another version?",
            mounted.record.name
        );
    };
    let (upload, download) = status.replication.map_or((None, None), |now| (now.upload_limit, now.download_limit));
    let value = serde_json::json!({ "drive": mounted.record.name, "upload_limit": upload, "download_limit": download });
    let show = |limit: Option<u64>| limit.map_or("no limit".to_owned(), |bytes| format!("{}/s", print::size(bytes)));
    print::result(global.format(), &value, |_| format!("upload {}, download {}", show(upload), show(download)))?;
    Ok(Outcome::Done)
}
