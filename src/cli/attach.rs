//! `cairn attach`.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use cairnfs::base::DeviceId;
use cairnfs::config::drives::NewDrive;
use cairnfs::config::{DataDir, DriveRecord};
use cairnfs::daemon::session;
use cairnfs::provider::{ObjectPath, Provider, PutMode, RemoteUrl};
use cairnfs::tree::DeviceIdentity;
use cairnfs::vault::{Vault, VaultError, VaultFiles, paths};
use clap::Args;

use super::secrets::{Found, SecretArguments};
use super::{Global, Outcome, print, remote};

#[derive(Debug, Args)]
pub struct AttachArguments {
    /// The vault: its folder or URL
    remote: String,
    /// What to call the drive here; made from the remote when not given
    #[arg(long)]
    name: Option<String>,
    /// What other devices call this machine, as in names of conflict copies; the host's name when not given
    #[arg(long, value_name = "NAME")]
    device_name: Option<String>,
    #[command(flatten)]
    secret: SecretArguments,
}

pub fn run(global: &Global, arguments: &AttachArguments) -> Result<Outcome> {
    let data = global.data()?;
    let url = remote::parse(&arguments.remote)?;
    let AttachArguments { name, device_name, secret, .. } = arguments;
    let (record, _) = attach(&data, &url, name.clone(), device_name.clone(), secret)?;
    let DriveRecord { name, id, vault, remote, device, device_name, .. } = &record;
    let value = serde_json::json!({
        "name": name, "id": id, "vault": vault, "remote": remote, "device": device, "device_name": device_name,
    });
    print::result(global.format(), &value, |_| {
        format!("attached {remote} as {name}; mount it with `cairn mount {name} MOUNTPOINT`")
    })?;
    Ok(Outcome::Done)
}

/// Makes the vault on `url` a drive of this machine.
pub fn attach(
    data: &DataDir,
    url: &RemoteUrl,
    name: Option<String>,
    device_name: Option<String>,
    secret: &SecretArguments,
) -> Result<(DriveRecord, Found)> {
    let device_name = device_name.unwrap_or_else(host_name);
    if let Err(reason) = DeviceIdentity::check_name(&device_name) {
        bail!("{device_name:?} cannot be the name of a device: {reason}; choose another with --device-name");
    }
    if data.path().exists() {
        data.create()?;
    }
    let remote = url.to_string();
    refuse_attached(data, &remote)?;
    let provider = remote::open(data, url)?;
    let runtime = session::runtime()?;
    // Before a passphrase is asked for: there may be nothing that it could open.
    let files = runtime.block_on(VaultFiles::fetch(&*provider)).map_err(explain)?;
    let found = secret.for_opening(&remote, None)?;
    let vault = files.unlock(&found.secret)?;
    // Only now: what is refused leaves no data directory behind.
    data.create()?;
    let _lock = data.lock()?;
    refuse_attached(data, &remote)?;
    let device = runtime.block_on(free_device(&*provider))?;
    let new = NewDrive {
        name,
        vault: vault.id().to_string(),
        remote,
        device: device.to_string(),
        device_name,
        secret: found.source.clone(),
    };
    let record = data.prepare_drive(new)?;
    runtime.block_on(keep_copy(data, &record, &vault)).context("cannot keep a copy of the vault's key slots")?;
    data.commit_drive(&record)?;
    Ok((record, found))
}

fn refuse_attached(data: &DataDir, remote: &str) -> Result<()> {
    match data.list_drives()?.into_iter().find(|drive| drive.remote == remote) {
        Some(known) => bail!("{remote} is attached already, as drive {:?}", known.name),
        None => Ok(()),
    }
}

/// A remote without a vault could be a mirror, one day.
fn explain(error: VaultError) -> anyhow::Error {
    let hint = match &error {
        VaultError::NotAVault { .. } => {
            "drives over the files of other tools are not there yet; make a vault in an empty place with `cairn init`"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}; {hint}")
}

/// A random device id that nobody has written a log under.
async fn free_device(provider: &dyn Provider) -> Result<DeviceId> {
    let entries = provider.list(paths::LOG, None).await.context("cannot list the devices of the vault")?;
    let taken: HashSet<&str> = entries.iter().filter_map(|entry| entry.path.as_str().split('/').nth(1)).collect();
    for _ in 0..1000 {
        let mut random = [0; 4];
        getrandom::fill(&mut random).context("the system gives no random numbers")?;
        let device = DeviceId::from_random(u32::from_le_bytes(random));
        if !taken.contains(device.to_string().as_str()) {
            return Ok(device);
        }
    }
    bail!("the vault has so many devices that no free id was found")
}

/// With descriptor and key slots here the drive can be mounted while the remote is away.
async fn keep_copy(data: &DataDir, record: &DriveRecord, vault: &Vault) -> Result<()> {
    let directory = data.drive_dir(record);
    cairnfs::config::create_private_dir(&session::vault_copy_dir(&directory))?;
    let copy = session::vault_copy(&directory);
    let files = vault.files();
    copy.put(&paths::descriptor(), files.descriptor.clone(), PutMode::Overwrite).await?;
    for (path, slot) in &files.slots {
        copy.put(&ObjectPath::new(path)?, slot.clone(), PutMode::Overwrite).await?;
    }
    Ok(())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/etc/hostname").ok();
    let name = name.or_else(|| std::env::var("COMPUTERNAME").ok()).or_else(|| std::env::var("HOSTNAME").ok());
    match name.as_deref().map(str::trim) {
        Some(name) if !name.is_empty() => {
            name.chars().filter(|c| c.is_alphanumeric() || "._-".contains(*c)).take(32).collect()
        }
        _ => "this-machine".to_owned(),
    }
}
