//! `cairn status`.

use std::fmt::Write;

use anyhow::{Result, bail};
use cairnfs::config::{DataDir, DriveRecord};
use cairnfs::daemon::client::ClientError;
use cairnfs::daemon::control::{DriveStatus, Reply, Request};
use cairnfs::replicate::{Reachability, Status};
use clap::Args;

use super::{Global, Outcome, print, target};

/// Files that could not be sent and are shown; `--json` has all of them.
const LEFT_SHOWN: usize = 5;

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Name, remote or mountpoint of a drive; all drives when left out
    drive: Option<String>,
}

pub fn run(global: &Global, arguments: &StatusArguments) -> Result<Outcome> {
    let data = global.data()?;
    let records = match &arguments.drive {
        Some(name) => vec![target::attached(&data, name)?],
        None => data.list_drives()?,
    };
    let statuses = records.iter().map(|record| ask(&data, record)).collect::<Result<Vec<_>>>()?;
    print::result(global.format(), &statuses, |statuses| {
        if statuses.is_empty() {
            return "no drives; `cairn mount MOUNTPOINT` makes one".to_owned();
        }
        statuses.iter().map(text).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Outcome::Done)
}

fn ask(data: &DataDir, record: &DriveRecord) -> Result<DriveStatus> {
    let Some(client) = target::client(data, record)? else { return Ok(DriveStatus::not_mounted(record)) };
    match client.ask(Request::Status, |_| ()) {
        Ok(Reply::Status(status)) => Ok(*status),
        Ok(_) => bail!(
            "the process of drive {:?} gave an answer that makes no sense; is it of another version?",
            record.name
        ),
        Err(ClientError::NotMounted) => Ok(DriveStatus::not_mounted(record)),
        Err(error) => Err(error.into()),
    }
}

fn text(status: &DriveStatus) -> String {
    let mut out = String::new();
    let place = status.mountpoint.as_ref().map_or("not mounted".to_owned(), |path| format!("mounted on {path}"));
    line(&mut out, &status.name, &place);
    line(&mut out, "  device", &format!("{} ({})", status.device_name, status.device));
    match &status.replication {
        None => line(&mut out, "  remote", &status.remote),
        Some(replication) => replication_text(&mut out, replication),
    }
    out
}

fn replication_text(out: &mut String, status: &Status) {
    let reachable = match status.reachability {
        Reachability::Unknown => "not asked yet".to_owned(),
        Reachability::Reachable => "reachable".to_owned(),
        Reachability::Unreachable { since_ms } => format!("not reachable since {}", print::ago(since_ms)),
    };
    let paused = if status.paused { ", paused" } else { "" };
    line(out, "  remote", &format!("{}, {reachable}{paused}", status.remote));
    let only_here = if status.is_drained() {
        "nothing: the remote has everything".to_owned()
    } else {
        format!(
            "{}, {}; {} of names and attributes",
            print::count(status.files_only_here, "file"),
            print::size(status.bytes_only_here),
            print::count(status.changes_only_here, "change")
        )
    };
    line(out, "  only here", &only_here);
    if let Some(waits) = &status.waits_for {
        line(out, "  waits", waits);
    }
    for file in status.left.iter().take(LEFT_SHOWN) {
        line(out, "  not sent", &format!("{file}, since {}", print::ago(file.since_ms)));
    }
    if status.left.len() > LEFT_SHOWN {
        line(
            out,
            "  not sent",
            &format!("and {}", print::count((status.left.len() - LEFT_SHOWN) as u64, "other file")),
        );
    }
    let sending = &status.sending;
    if sending.objects > 0 {
        let objects = print::count(sending.objects, "object");
        line(out, "  sending", &format!("{objects}, {}, {}/s", print::size(sending.bytes), print::size(sending.rate)));
    }
    for device in &status.devices {
        let seen =
            if device.last_seen_ms > 0 { format!(", read {}", print::ago(device.last_seen_ms)) } else { String::new() };
        let halted = device.halted.as_ref().map_or(String::new(), |why| format!(", not read any further: {why}"));
        let missing = device.missing.as_ref().map_or(String::new(), |what| format!(", {what}"));
        line(out, "  other", &format!("{} ({}){seen}{halted}{missing}", device.name, device.id));
    }
    if let Some(trouble) = &status.last_error {
        line(out, "  last error", &format!("{}, {}", trouble.message, print::ago(trouble.at_ms)));
    }
    if let Some(why) = &status.halted {
        line(out, "  halted", why);
    }
}

fn line(out: &mut String, label: &str, value: &str) {
    let (label, value) = (print::plain(label), print::plain(value));
    writeln!(out, "{label:12}  {value}").expect("a string can be written to");
}
