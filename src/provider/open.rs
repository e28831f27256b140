//! From the URL of a remote to a [`Provider`] with all its decorators.

use std::sync::Arc;

use crate::config::credentials::Credentials;

use super::faults::{FaultInjection, Faults};
use super::fs::FsProvider;
use super::memory::MemoryProvider;
use super::metrics::{Metered, ProviderMetrics};
use super::retry::{Retry, RetrySettings};
use super::s3::S3Provider;
use super::throttle::{BandwidthLimits, Throttle};
use super::timeout::{Timeout, TimeoutSettings};
use super::{Provider, ProviderError, RemoteUrl};

/// How a remote is used. Limits, counters and faults are handles: a clone is the same thing.
#[derive(Debug, Clone, Default)]
pub struct ProviderSettings {
    /// When to try again.
    pub retry: RetrySettings,
    /// How long to wait for an answer.
    pub timeout: TimeoutSettings,
    /// How much to send and receive in a second.
    pub bandwidth: BandwidthLimits,
    /// What was sent and received.
    pub metrics: ProviderMetrics,
    /// Faults to inject, in tests.
    pub faults: Option<FaultInjection>,
}

/// Opens a remote. The remote itself is not asked anything.
///
/// # Errors
/// [`super::ErrorKind::InvalidConfig`] when the URL lacks something, such as the region.
pub fn open(
    url: &RemoteUrl,
    credentials: &Credentials,
    settings: &ProviderSettings,
) -> Result<Arc<dyn Provider>, ProviderError> {
    let service: Arc<dyn Provider> = match url {
        RemoteUrl::Fs(path) => Arc::new(FsProvider::new(path)),
        RemoteUrl::S3(location) => {
            let key = credentials.key_for(&url.to_string());
            Arc::new(S3Provider::new(location, key, settings.timeout.base)?)
        }
        RemoteUrl::Memory(name) => MemoryProvider::named(name),
    };
    Ok(decorate(service, settings))
}

/// Puts all decorators around a service, in the one order.
pub fn decorate(service: Arc<dyn Provider>, settings: &ProviderSettings) -> Arc<dyn Provider> {
    let service = match &settings.faults {
        Some(injection) => Arc::new(Faults::new(service, injection.clone())),
        None => service,
    };
    let timed = Timeout::new(service, settings.timeout);
    let metered = Metered::new(Arc::new(timed), settings.metrics.clone());
    let throttled = Throttle::new(Arc::new(metered), settings.bandwidth.clone());
    Arc::new(Retry::new(Arc::new(throttled), settings.retry))
}
