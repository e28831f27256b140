//! From what a person types to an open remote.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairnfs::config::DataDir;
use cairnfs::config::credentials::{CREDENTIALS_FILE, Credentials};
use cairnfs::provider::{Provider, ProviderSettings, RemoteUrl};

/// Checks a URL. A remote in the memory of this process would be gone with it.
pub fn parse(text: &str) -> Result<RemoteUrl> {
    match RemoteUrl::parse(text)? {
        RemoteUrl::Memory(_) => {
            Err(anyhow!("a memory remote is gone when the program ends; name a folder or a bucket"))
        }
        url => Ok(url),
    }
}

/// Opens it for a command that a person waits for.
pub fn open(data: &DataDir, url: &RemoteUrl) -> Result<Arc<dyn Provider>> {
    let credentials = Credentials::load(&data.path().join(CREDENTIALS_FILE))?;
    let mut settings = ProviderSettings::default();
    settings.retry.attempts = 3;
    Ok(cairnfs::provider::open(url, &credentials, &settings)?)
}

/// Makes the folder of a remote that is to be a new vault. What is above it must be there: else its disk may not be mounted.
pub fn make_folder(url: &RemoteUrl) -> Result<()> {
    let RemoteUrl::Fs(path) = url else { return Ok(()) };
    if path.parent().is_some_and(|parent| parent.is_dir()) {
        cairnfs::config::create_private_dir(path)?;
    }
    Ok(())
}
