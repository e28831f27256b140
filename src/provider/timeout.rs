//! A deadline for every operation, so that a remote which does not answer is told from one that is slow.
//!
//! Objects that are sent at the same time share the line. So each gets the time that all bytes take which are on their way
//! together; else several at once on a slow line would all be given up, again and again.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
};

/// How long an operation may take: `base`, and the time its bytes take at `slowest_rate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeoutSettings {
    /// What every operation gets.
    pub base: Duration,
    /// The rate in bytes per second below which a transfer counts as stuck.
    pub slowest_rate: u64,
    /// The size a whole object is taken to have before it is read, in bytes.
    pub assumed_object_size: u64,
    /// What a listing gets in place of `base`: it may take many requests, each of which the service watches over.
    pub list: Duration,
}

impl Default for TimeoutSettings {
    /// 30 s, and 64 KiB/s: a pack of 16 MiB gets about five minutes, which a poor uplink of 0.5 Mbit/s makes.
    fn default() -> Self {
        Self {
            base: Duration::from_secs(30),
            slowest_rate: 64 << 10,
            assumed_object_size: 32 << 20,
            list: Duration::from_secs(1800),
        }
    }
}

/// The decorator that gives up. The operation it gave up on may still be applied by the remote.
pub struct Timeout {
    inner: Arc<dyn Provider>,
    settings: TimeoutSettings,
    sending: Sending,
}

/// The bytes that are being sent.
#[derive(Debug, Default)]
struct Sending {
    now: AtomicU64,
    /// The most there were since there were none.
    most: AtomicU64,
}

/// Bytes on their way, until this is dropped.
struct UnderWay<'a> {
    sending: &'a Sending,
    bytes: u64,
}

impl Sending {
    fn begin(&self, bytes: u64) -> UnderWay<'_> {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.most.fetch_max(now, Ordering::Relaxed);
        UnderWay { sending: self, bytes }
    }
}

impl UnderWay<'_> {
    /// The bytes this transfer may have to share the line with, its own included.
    fn together(&self) -> u64 {
        self.sending.most.load(Ordering::Relaxed).max(self.bytes)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.sending.now.fetch_sub(self.bytes, Ordering::Relaxed) == self.bytes {
            self.sending.most.store(0, Ordering::Relaxed);
        }
    }
}

impl Timeout {
    /// Gives up on operations of `inner` by these settings.
    pub fn new(inner: Arc<dyn Provider>, settings: TimeoutSettings) -> Self {
        Self { inner, settings, sending: Sending::default() }
    }

    fn allowance(&self, bytes: u64) -> Duration {
        self.settings.base + Duration::from_millis(bytes.saturating_mul(1000) / self.settings.slowest_rate.max(1))
    }

    async fn within<T>(
        &self,
        allowance: Duration,
        operation: &'static str,
        object: &str,
        future: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        match tokio::time::timeout(allowance, future).await {
            Ok(result) => result,
            Err(_) => Err(ProviderError::new(ErrorKind::Timeout, operation, self.name(), object)),
        }
    }
}

impl Timeout {
    /// Waits for a put: time for its bytes and for those that share the line with them, also if they come later.
    async fn send(
        &self,
        bytes: u64,
        object: &str,
        put: impl Future<Output = Result<(), ProviderError>>,
    ) -> Result<(), ProviderError> {
        let under_way = self.sending.begin(bytes);
        let begun = Instant::now();
        let mut put = std::pin::pin!(put);
        loop {
            let deadline = begun + self.allowance(under_way.together());
            match tokio::time::timeout_at(deadline, &mut put).await {
                Ok(result) => return result,
                Err(_) if begun + self.allowance(under_way.together()) > deadline => {}
                Err(_) => return Err(ProviderError::new(ErrorKind::Timeout, "put", self.name(), object)),
            }
        }
    }
}

impl Provider for Timeout {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(self.send(body.len() as u64, path.as_str(), self.inner.put(path, body, mode)))
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        let bytes = range.as_ref().map(|range| range.end.saturating_sub(range.start));
        let allowance = self.allowance(bytes.unwrap_or(self.settings.assumed_object_size));
        Box::pin(self.within(allowance, "get", path.as_str(), self.inner.get(path, range)))
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        Box::pin(self.within(self.settings.base, "head", path.as_str(), self.inner.head(path)))
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(self.within(self.settings.list, "list", prefix, self.inner.list(prefix, start_after)))
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        Box::pin(self.within(self.settings.base, "delete", path.as_str(), self.inner.delete(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::faults::{FaultInjection, FaultSettings, Faults};
    use crate::provider::memory::MemoryProvider;

    fn slow(latency: Duration) -> Timeout {
        let injection = FaultInjection::new(0);
        injection.set(FaultSettings { latency, ..FaultSettings::default() });
        let settings = TimeoutSettings {
            base: Duration::from_secs(10),
            slowest_rate: 1000,
            assumed_object_size: 5000,
            list: Duration::from_secs(100),
        };
        Timeout::new(Arc::new(Faults::new(MemoryProvider::new(), injection)), settings)
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_grow_with_the_bytes() {
        let path = ObjectPath::new("x").expect("a name");
        let provider = slow(Duration::from_secs(12));
        provider.put(&path, vec![0; 3000].into(), PutMode::Overwrite).await.expect("13 s are enough");
        provider.get(&path, None).await.expect("15 s are enough");
        provider.get(&path, Some(0..3000)).await.expect("13 s are enough");
        provider.list("", None).await.expect("100 s are enough");
        let error = provider.get(&path, Some(0..1000)).await.expect_err("11 s are not");
        assert_eq!((error.kind, error.retryable, error.operation), (ErrorKind::Timeout, true, "get"));
        let error = provider.put(&path, Bytes::new(), PutMode::Overwrite).await.expect_err("10 s are not");
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert_eq!(provider.head(&path).await.expect_err("10 s are not").kind, ErrorKind::Timeout);
        assert_eq!(provider.delete(&path).await.expect_err("10 s are not").kind, ErrorKind::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn transfers_that_share_a_slow_line_are_not_given_up() {
        let paths: Vec<_> = ["a", "b", "c", "d"].map(|name| ObjectPath::new(name).expect("a name")).into();
        // 4 s for the bytes of each at the slowest rate, and 16 s for those of all.
        let provider = slow(Duration::from_secs(25));
        let put = |path| provider.put(path, vec![0; 4000].into(), PutMode::Overwrite);
        for result in futures::future::join_all(paths.iter().map(put)).await {
            result.expect("26 s are enough");
        }
        let error = put(&paths[0]).await.expect_err("by itself it has 14 s");
        assert_eq!(error.kind, ErrorKind::Timeout);
    }
}
