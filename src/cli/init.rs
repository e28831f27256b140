//! `cairn init`.

use anyhow::Result;
use cairnfs::crypto::{Cipher, Secret, SystemRandomness};
use cairnfs::daemon::session;
use cairnfs::vault::{InitOptions, Vault};
use clap::{Args, ValueEnum};

use super::secrets::SecretArguments;
use super::{Global, Outcome, print, remote};

const EXAMPLES: &str = "\
Examples:
  cairn init /mnt/disk/vault
  cairn init 's3://bucket/vault?region=eu-central-1'
  cairn init 's3://bucket/vault?endpoint=https://host:9000' --key-file ~/vault.key";

pub const LONG_ABOUT: &str = "\
Make a vault: an encrypted place for a drive's content on a remote.

This is done once for each vault. Then any number of machines mount it, with the same passphrase or key file: \
`cairn mount REMOTE MOUNTPOINT`.

A recovery phrase is printed: write it down. With it the vault can be opened when passphrase or key file are lost.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InitArguments {
    /// An empty or new folder, or an empty place in a bucket
    remote: String,
    /// How content is encrypted
    #[arg(long, value_enum, default_value = "xchacha20-poly1305")]
    cipher: CipherName,
    /// Make no recovery phrase: the passphrase or key file is then the only way in
    #[arg(long)]
    no_recovery_phrase: bool,
    #[command(flatten)]
    secret: SecretArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CipherName {
    /// The default: fast everywhere
    #[value(name = "xchacha20-poly1305")]
    XChaCha20Poly1305,
    /// Faster on processors that have instructions for it
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
}

pub fn run(global: &Global, arguments: &InitArguments) -> Result<Outcome> {
    let data = global.data()?;
    let url = remote::parse(&arguments.remote)?;
    let provider = remote::open(&data, &url)?;
    let runtime = session::runtime()?;
    remote::make_folder(&url)?;
    // Before a passphrase is asked for or a key file made: the place may be taken.
    runtime.block_on(Vault::check_vacant(&*provider))?;
    let found = arguments.secret.for_new_vault(&url.to_string())?;
    let mut secrets = vec![found.secret];
    let recovery = (!arguments.no_recovery_phrase).then(|| Secret::new_recovery_phrase(&SystemRandomness));
    secrets.extend(recovery.clone());
    let mut options = InitOptions::new(secrets);
    options.cipher = match arguments.cipher {
        CipherName::XChaCha20Poly1305 => Cipher::XChaCha20Poly1305,
        CipherName::Aes256Gcm => Cipher::Aes256Gcm,
    };
    let vault = runtime.block_on(Vault::init(&*provider, options))?;
    let words = recovery.as_ref().map(Secret::reveal);
    let value = serde_json::json!({
        "vault": vault.id().to_string(),
        "remote": url.to_string(),
        "recovery_phrase": words.as_ref().map(|words| words.as_str()),
    });
    print::result(global.format(), &value, |_| {
        let phrase = words.as_ref().map_or(String::new(), |words| recovery_text(words));
        format!("{phrase}the vault is ready; mount it with `cairn mount {} MOUNTPOINT`", url)
    })?;
    Ok(Outcome::Done)
}

/// What is said about a recovery phrase, once.
pub fn recovery_text(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let lines: Vec<String> = words.chunks(6).map(|line| format!("    {}", line.join(" "))).collect();
    format!(
        "This is the recovery phrase of the vault. It is shown once. Write it down and keep it in a safe place: with it the\n\
         vault can be opened (type it where a passphrase is asked for) when the key file or passphrase is lost.\n\n{}\n\n",
        lines.join("\n")
    )
}
