//! Which drive a command means: by name, id, remote or mountpoint, or the only one there is.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use cairnfs::config::{ConfigError, DataDir, DriveRecord};
use cairnfs::daemon::client::Client;
use cairnfs::daemon::driver;
use clap::Args;

use super::Global;

/// A drive of this machine.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Name, remote or mountpoint of the drive; may be left out where only one is mounted
    #[arg(value_name = "DRIVE")]
    drive: Option<String>,
}

/// A drive and the process that has it mounted.
pub struct Mounted {
    pub record: DriveRecord,
    pub client: Client,
}

impl Target {
    /// The drive, which must be mounted.
    pub fn mounted(&self, global: &Global) -> Result<Mounted> {
        let data = global.data()?;
        match &self.drive {
            Some(name) => {
                let record = attached(&data, name)?;
                let client = client(&data, &record)?.ok_or_else(|| not_mounted(&record))?;
                Ok(Mounted { record, client })
            }
            None => only_mounted(&data),
        }
    }
}

/// The drive of this name, remote or mountpoint, mounted or not.
pub fn attached(data: &DataDir, name: &str) -> Result<DriveRecord> {
    match data.find_drive(name) {
        Err(ConfigError::NoSuchDrive { .. }) => mounted_on(data, name)?.ok_or_else(|| unknown(data, name)),
        found => Ok(found?),
    }
}

/// The process that has a drive mounted, if one has.
pub fn client(data: &DataDir, record: &DriveRecord) -> Result<Option<Client>> {
    let directory = data.drive_dir(record);
    Client::find(&directory).with_context(|| format!("cannot find out whether drive {:?} is mounted", record.name))
}

fn mounted_on(data: &DataDir, path: &str) -> Result<Option<DriveRecord>> {
    // Resolving could hang or fail on a mount whose process is gone; its absolute path does as well.
    let absolute = std::path::absolute(path).with_context(|| format!("cannot use {path:?}"))?;
    let resolved = absolute.canonicalize().unwrap_or_else(|_| absolute.clone());
    for record in data.list_drives()? {
        if let Some(client) = client(data, &record)? {
            let mountpoint = Path::new(client.mountpoint());
            if mountpoint == resolved || mountpoint == absolute {
                return Ok(Some(record));
            }
        }
    }
    Ok(None)
}

fn only_mounted(data: &DataDir) -> Result<Mounted> {
    let mut mounted = Vec::new();
    for record in data.list_drives()? {
        if let Some(client) = client(data, &record)? {
            mounted.push(Mounted { record, client });
        }
    }
    match mounted.len() {
        0 => bail!("no drive is mounted; mount one with `cairn mount MOUNTPOINT`"),
        1 => Ok(mounted.remove(0)),
        _ => {
            let names: Vec<&str> = mounted.iter().map(|mounted| mounted.record.name.as_str()).collect();
            bail!("several drives are mounted, name the one you mean: {}", names.join(", "))
        }
    }
}

fn unknown(data: &DataDir, name: &str) -> anyhow::Error {
    let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
    if driver::is_drive(&path) {
        return anyhow!(
            "{name:?} is a drive of another data directory than {:?}; name that with --data-dir, or end the mount with \
             `fusermount3 -u` (as root `umount`)",
            data.path()
        );
    }
    anyhow!("{name:?} is neither a drive of this machine nor where one is mounted; see `cairn drives`")
}

fn not_mounted(record: &DriveRecord) -> anyhow::Error {
    anyhow!("drive {:?} is not mounted; mount it with `cairn mount {} MOUNTPOINT`", record.name, record.name)
}
