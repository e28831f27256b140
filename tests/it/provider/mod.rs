//! Providers: one conformance suite for all, over real servers, too, and what they make of trouble.

mod conformance;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use cairnfs::config::credentials::Credentials;
use cairnfs::provider::faults::{FaultInjection, FaultSettings};
use cairnfs::provider::fs::FsProvider;
use cairnfs::provider::memory::MemoryProvider;
use cairnfs::provider::retry::RetrySettings;
use cairnfs::provider::{ProviderSettings, RemoteUrl, decorate, open};

use crate::servers::{self, Kind, S3Server, unique_prefix};
use conformance::{Store, conforms};

/// Tries again at once and often: for faults that strike at random.
fn patient() -> ProviderSettings {
    let retry = RetrySettings {
        attempts: 10_000,
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(50),
        give_up_after: Duration::from_secs(300),
    };
    ProviderSettings { retry, ..ProviderSettings::default() }
}

/// Tries once: for the error itself.
fn hasty() -> ProviderSettings {
    let retry = RetrySettings { attempts: 1, ..RetrySettings::default() };
    ProviderSettings { retry, ..ProviderSettings::default() }
}

#[tokio::test]
async fn memory_conforms() {
    conforms(MemoryProvider::new(), Store::PAGED).await;
    let url = RemoteUrl::parse("memory:conformance").expect("valid");
    let provider = open(&url, &Credentials::default(), &ProviderSettings::default()).expect("opens");
    conforms(provider, Store::SMALL).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    conforms(Arc::new(FsProvider::new(folder.path())), Store::SMALL).await;
    let folder = tempfile::tempdir().expect("a folder");
    let url = RemoteUrl::Fs(folder.path().into());
    conforms(open(&url, &Credentials::default(), &ProviderSettings::default()).expect("opens"), Store::SMALL).await;
}

#[tokio::test]
async fn faults_behind_retries_conform() {
    for seed in 0..10 {
        let injection = FaultInjection::new(seed);
        injection.set(FaultSettings {
            error: 0.2,
            applied_but_error: 0.2,
            cut_reply: 0.2,
            rate_limit: Some((0.1, Duration::from_millis(1))),
            latency: Duration::ZERO,
        });
        let settings = ProviderSettings { faults: Some(injection.clone()), ..patient() };
        conforms(decorate(MemoryProvider::new(), &settings), Store::SMALL).await;
        assert!(injection.injected() > 20, "the faults were there");
    }
}

#[tokio::test]
async fn seaweedfs_conforms() {
    let Some(server) = servers::shared_seaweedfs() else { return };
    let remote = server.remote(&unique_prefix());
    let provider = open(&remote, &servers::credentials(), &ProviderSettings::default()).expect("opens");
    conforms(provider, Store::PAGED).await;
}

#[tokio::test]
async fn a_store_that_ignores_conditions_conforms_but_for_races() {
    let Some(server) = S3Server::start(Kind::Rclone) else { return };
    let remote = server.remote(&unique_prefix());
    let provider = open(&remote, &servers::credentials(), &ProviderSettings::default()).expect("opens");
    conforms(provider, Store::CONDITION_BLIND).await;
}

#[tokio::test]
async fn names_tell_no_secret() {
    let remote = RemoteUrl::parse("s3://test/x?endpoint=http://127.0.0.1:1&region=r").expect("valid");
    let provider = open(&remote, &servers::credentials(), &hasty()).expect("opens");
    assert_eq!(provider.name(), remote.to_string());
    assert!(!provider.name().contains(servers::ACCESS_KEY_ID) && !provider.name().contains(servers::SECRET_ACCESS_KEY));
}
