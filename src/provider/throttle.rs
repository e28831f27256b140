//! Bandwidth limits, by a token bucket for each direction.
//!
//! Bytes are paid for before an object is sent and before a range is read; a whole object, whose size is not known, is paid for
//! after it was read. So the limit holds on average and from object to object, while one object goes at the speed of the line.
//! Transfers that wait at one time share what there is.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Capabilities, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderFuture, PutMode};

/// How long an idle line saves up: what may be sent at once after a pause.
const BURST: Duration = Duration::from_secs(1);
/// Transfers take their share in portions of at most this time, so that several progress together.
const PORTION: Duration = Duration::from_millis(100);

/// Bytes per second up and down; can be changed while operations run. A clone is the same limits.
#[derive(Debug, Clone, Default)]
pub struct BandwidthLimits(Arc<Limits>);

#[derive(Debug, Default)]
struct Limits {
    up: Direction,
    down: Direction,
}

#[derive(Debug, Default)]
struct Direction {
    /// Guards the bucket only; never held over an await.
    bucket: Mutex<Bucket>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Bytes per second, at least 1; `None` is no limit.
    rate: Option<u64>,
    tokens: f64,
    filled: Option<Instant>,
}

impl BandwidthLimits {
    /// Limits in bytes per second; `None` and 0 are no limit.
    pub fn new(up: Option<u64>, down: Option<u64>) -> Self {
        let limits = Self::default();
        limits.set(up, down);
        limits
    }

    /// Changes the limits, also for transfers that are waiting.
    pub fn set(&self, up: Option<u64>, down: Option<u64>) {
        self.0.up.set(up.filter(|rate| *rate > 0));
        self.0.down.set(down.filter(|rate| *rate > 0));
    }

    /// The limits up and down, in bytes per second.
    pub fn get(&self) -> (Option<u64>, Option<u64>) {
        (self.0.up.bucket.lock().rate, self.0.down.bucket.lock().rate)
    }
}

impl Direction {
    fn set(&self, rate: Option<u64>) {
        self.bucket.lock().rate = rate;
        self.changed.notify_waiters();
    }

    /// Returns once `bytes` may pass.
    async fn pay(&self, bytes: u64) {
        let mut unpaid = bytes as f64;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the rate is looked at, so that no change is missed.
            changed.as_mut().enable();
            let Some(wait) = self.bucket.lock().take(&mut unpaid, Instant::now()) else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }
}

impl Bucket {
    /// Pays as much of `unpaid` as there is; how long to wait for the next portion, or `None` when all is paid.
    fn take(&mut self, unpaid: &mut f64, now: Instant) -> Option<Duration> {
        let rate = self.rate? as f64;
        let filled = self.filled.replace(now);
        let since = filled.map_or(BURST, |filled| now.saturating_duration_since(filled));
        self.tokens = (self.tokens + since.as_secs_f64() * rate).min(BURST.as_secs_f64() * rate);
        let paid = unpaid.min(self.tokens.max(0.0));
        self.tokens -= paid;
        *unpaid -= paid;
        // Less than a byte is rounding.
        if *unpaid < 1.0 {
            return None;
        }
        Some(Duration::from_secs_f64(*unpaid / rate).min(PORTION).max(Duration::from_millis(1)))
    }
}

/// The decorator that waits for bandwidth.
pub struct Throttle {
    inner: Arc<dyn Provider>,
    limits: BandwidthLimits,
}

impl Throttle {
    /// Holds `inner` to `limits`.
    pub fn new(inner: Arc<dyn Provider>, limits: BandwidthLimits) -> Self {
        Self { inner, limits }
    }
}

impl Provider for Throttle {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            self.limits.0.up.pay(body.len() as u64).await;
            self.inner.put(path, body, mode).await
        })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(async move {
            if let Some(range) = range {
                self.limits.0.down.pay(range.end.saturating_sub(range.start)).await;
                return self.inner.get(path, Some(range)).await;
            }
            let body = self.inner.get(path, None).await?;
            self.limits.0.down.pay(body.len() as u64).await;
            Ok(body)
        })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        self.inner.head(path)
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        self.inner.list(prefix, start_after)
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        self.inner.delete(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::memory::MemoryProvider;

    fn path() -> ObjectPath {
        ObjectPath::new("x").expect("a name")
    }

    // Time is simulated in these tests: it passes only while everything waits.

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_on_average_after_one_burst() {
        let throttle = Throttle::new(MemoryProvider::new(), BandwidthLimits::new(Some(1000), None));
        let start = Instant::now();
        throttle.put(&path(), Bytes::from(vec![0; 1000]), PutMode::Overwrite).await.expect("stored");
        assert_eq!(start.elapsed(), Duration::ZERO, "a second's worth was saved up");
        for _ in 0..10 {
            throttle.put(&path(), Bytes::from(vec![0; 1000]), PutMode::Overwrite).await.expect("stored");
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.9..10.6).contains(&seconds), "{seconds}");
        throttle.get(&path(), None).await.expect("there");
        assert!(start.elapsed().as_secs_f64() - seconds < 0.001, "the other direction is free");
    }

    #[tokio::test(start_paused = true)]
    async fn reading_is_limited_whole_and_in_ranges_and_by_several_readers_together() {
        let store = MemoryProvider::new();
        store.put(&path(), Bytes::from(vec![0; 10_000]), PutMode::Overwrite).await.expect("stored");
        let throttle = Throttle::new(store, BandwidthLimits::new(None, Some(1000)));
        let (start, path) = (Instant::now(), path());
        let whole = async { throttle.get(&path, None).await.map(|body| body.len()) };
        let range = async { throttle.get(&path, Some(1000..6000)).await.map(|body| body.len()) };
        let (whole, range) = tokio::join!(whole, range);
        assert_eq!((whole.expect("there"), range.expect("there")), (10_000, 5000));
        let seconds = start.elapsed().as_secs_f64();
        assert!((13.9..15.0).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn lifting_a_limit_frees_who_waits_at_once() {
        let limits = BandwidthLimits::new(Some(1), None);
        let throttle = Throttle::new(MemoryProvider::new(), limits.clone());
        let (start, path) = (Instant::now(), path());
        let putting = throttle.put(&path, Bytes::from(vec![0; 1_000_000]), PutMode::Overwrite);
        let lifting = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            limits.set(None, Some(7));
        };
        let (result, ()) = tokio::join!(putting, lifting);
        result.expect("stored");
        assert!(start.elapsed() < Duration::from_secs(6));
        assert_eq!(limits.get(), (None, Some(7)));
    }
}
