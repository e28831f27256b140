//! Where the secret of a vault comes from: a file, the environment, or the person at the terminal; never an argument.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cairnfs::config::{SecretSource, read_secret_file};
use cairnfs::crypto::{Secret, SystemRandomness};
use clap::Args;
use zeroize::Zeroizing;

use super::print;

const VARIABLE: &str = "CAIRN_PASSPHRASE";

/// How a person says which secret to use.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretArguments {
    /// Read the passphrase from the first line of a file that only you may read (mode 600)
    #[arg(long, value_name = "FILE", conflicts_with = "key_file", value_hint = clap::ValueHint::FilePath)]
    passphrase_file: Option<PathBuf>,
    /// Use a key file that only you may read (mode 600) instead of a passphrase
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key_file: Option<PathBuf>,
}

/// A secret, and where to get it from the next time.
pub struct Found {
    pub secret: Secret,
    pub source: SecretSource,
}

impl SecretArguments {
    /// This key file.
    pub fn key_file(path: PathBuf) -> Self {
        Self { passphrase_file: None, key_file: Some(path) }
    }

    /// The secret of an existing vault. What was given now goes before what was recorded when the drive was attached.
    pub fn for_opening(&self, vault: &str, recorded: Option<&SecretSource>) -> Result<Found> {
        let source = match (self.given()?, recorded) {
            (Some(source), _) => source,
            (None, Some(source)) => source.clone(),
            (None, None) => SecretSource::Passphrase,
        };
        let secret = match &source {
            SecretSource::KeyFile { path } => read_key_file(path)?,
            SecretSource::PassphraseFile { path } => read_passphrase_file(path)?,
            SecretSource::Passphrase => match from_environment()? {
                Some(secret) => secret,
                None => Secret::passphrase(&prompt(&format!("Passphrase of {vault}: "))?)?,
            },
        };
        Ok(Found { secret, source })
    }

    /// The secret of a vault that is about to be made: a key file is made where there is none, a prompt asks twice.
    pub fn for_new_vault(&self, vault: &str) -> Result<Found> {
        let source = self.given()?.unwrap_or(SecretSource::Passphrase);
        let secret = match &source {
            SecretSource::KeyFile { path } if !path.exists() => new_key_file(path)?,
            SecretSource::KeyFile { path } => read_key_file(path)?,
            SecretSource::PassphraseFile { path } => read_passphrase_file(path)?,
            SecretSource::Passphrase => match from_environment()? {
                Some(secret) => secret,
                None => prompt_twice(vault)?,
            },
        };
        Ok(Found { secret, source })
    }

    fn given(&self) -> Result<Option<SecretSource>> {
        let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| format!("cannot use {path:?}"));
        Ok(match (&self.key_file, &self.passphrase_file) {
            (Some(path), _) => Some(SecretSource::KeyFile { path: absolute(path)? }),
            (None, Some(path)) => Some(SecretSource::PassphraseFile { path: absolute(path)? }),
            // Whoever sets the variable means it, whatever was recorded.
            (None, None) => std::env::var_os(VARIABLE).map(|_| SecretSource::Passphrase),
        })
    }
}

fn from_environment() -> Result<Option<Secret>> {
    match std::env::var(VARIABLE) {
        Ok(text) => {
            Ok(Some(Secret::passphrase(&Zeroizing::new(text)).with_context(|| format!("{VARIABLE} is unusable"))?))
        }
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{VARIABLE} is not UTF-8; set it to the passphrase"),
    }
}

fn read_passphrase_file(path: &Path) -> Result<Secret> {
    let content = read_secret_file(path)?;
    let text = std::str::from_utf8(&content).with_context(|| format!("the passphrase file {path:?} is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    Secret::passphrase(line).with_context(|| format!("the first line of {path:?} is unusable"))
}

fn read_key_file(path: &Path) -> Result<Secret> {
    let bytes = read_secret_file(path)?;
    Secret::key_file(&bytes).with_context(|| format!("the key file {path:?} is unusable"))
}

fn new_key_file(path: &Path) -> Result<Secret> {
    let secret = Secret::new_key_file(&SystemRandomness);
    cairnfs::config::create_private_file(path, secret.reveal().as_bytes())?;
    let path = path.display();
    print::note(&format!("made the key file {path}; without it or the recovery phrase nobody can read the vault"));
    Ok(secret)
}

fn prompt_twice(vault: &str) -> Result<Secret> {
    let first = prompt(&format!("New passphrase of {vault}: "))?;
    let secret = Secret::passphrase(&first)?;
    if *prompt("The same again: ")? != *first {
        bail!("the two passphrases differ; nothing was made, try again");
    }
    Ok(secret)
}

fn prompt(text: &str) -> Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the passphrase; use --passphrase-file, --key-file or {VARIABLE}");
    }
    std::io::stderr().flush()?;
    rpassword::prompt_password(text).map(Zeroizing::new).context("cannot read the passphrase from the terminal")
}
