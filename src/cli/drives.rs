//! `cairn drives`.

use anyhow::Result;
use serde::Serialize;

use super::{Global, Outcome, print, target};

#[derive(Serialize)]
struct Line {
    name: String,
    id: String,
    vault: String,
    remote: String,
    device: String,
    mountpoint: Option<String>,
}

pub fn run(global: &Global) -> Result<Outcome> {
    let data = global.data()?;
    let mut lines = Vec::new();
    for record in data.list_drives()? {
        let mountpoint = target::client(&data, &record)?.map(|client| client.mountpoint().to_owned());
        let cairnfs::config::DriveRecord { name, id, vault, remote, device, .. } = record;
        lines.push(Line { name, id, vault, remote, device, mountpoint });
    }
    print::result(global.format(), &lines, |lines| {
        if lines.is_empty() {
            return "no drives; `cairn mount MOUNTPOINT` makes one".to_owned();
        }
        let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let shown = lines.iter().map(|line| {
            let place = line.mountpoint.as_ref().map_or("not mounted".to_owned(), |path| format!("mounted on {path}"));
            format!("{:width$}  {}  {place}", line.name, line.remote)
        });
        shown.collect::<Vec<_>>().join("\n")
    })?;
    Ok(Outcome::Done)
}
