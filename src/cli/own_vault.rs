//! The vault in the data directory, made by the first mount that names no remote.
//!
//! It is made under another name and renamed when it and its key file are whole, so that an interrupted first run leaves nothing
//! that a second one could mistake for a vault.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cairnfs::config::{DataDir, DriveRecord};
use cairnfs::crypto::{Secret, SystemRandomness};
use cairnfs::daemon::session;
use cairnfs::provider::RemoteUrl;
use cairnfs::provider::fs::FsProvider;
use cairnfs::vault::{InitOptions, Vault, VaultFiles};

use super::secrets::SecretArguments;
use super::{attach, init};

/// The drive of the vault in the data directory.
pub fn find_or_make(data: &DataDir) -> Result<DriveRecord> {
    let path = data.own_vault();
    let url = RemoteUrl::Fs(path.clone());
    let remote = url.to_string();
    if let Some(record) = data.list_drives()?.into_iter().find(|drive| drive.remote == remote) {
        return Ok(record);
    }
    data.create()?;
    if !path.exists() {
        make(data, &path)?;
    }
    let key_file = key_file(data, &path)?;
    let (record, _) = attach::attach(data, &url, Some("cairn".to_owned()), None, &key_file)?;
    Ok(record)
}

fn make(data: &DataDir, path: &Path) -> Result<()> {
    let _lock = data.lock()?;
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("unfinished");
    let recovery = Secret::new_recovery_phrase(&SystemRandomness);
    let key = Secret::new_key_file(&SystemRandomness);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {unfinished:?}"))?;
    }
    cairnfs::config::create_private_dir(&unfinished)?;
    let provider = FsProvider::new(&unfinished);
    let options = InitOptions::new(vec![key.clone(), recovery.clone()]);
    let vault = session::runtime()?
        .block_on(Vault::init(&provider, options))
        .with_context(|| format!("cannot make a vault in the data directory {:?}", data.path()))?;
    data.create_key_file(&vault.id().to_string(), key.reveal().as_bytes())?;
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{}", init::recovery_text(&recovery.reveal()))?;
    stdout.flush()?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot make {path:?}"))
}

/// The key file that was made with the vault.
fn key_file(data: &DataDir, path: &Path) -> Result<SecretArguments> {
    let files = session::runtime()?.block_on(VaultFiles::fetch(&FsProvider::new(path)))?;
    let vault = files.descriptor()?.vault;
    Ok(SecretArguments::key_file(data.key_file(&vault.to_string())))
}
