//! Faults on purpose, for tests. The same seed gives the same sequence of faults; which of several operations that run at
//! one time gets which is up to their order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
};

/// Which faults to inject. Probabilities are from 0 to 1, of each operation by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FaultSettings {
    /// The operation is not done and fails as unreachable.
    pub error: f64,
    /// A put or delete is done and fails as unreachable.
    pub applied_but_error: f64,
    /// A get or list breaks off on the way back and fails as unreachable.
    pub cut_reply: f64,
    /// The operation is not done, and the store asks to wait for this time.
    pub rate_limit: Option<(f64, Duration)>,
    /// How long every operation waits before it begins.
    pub latency: Duration,
}

/// A source of faults, whose settings can be changed while operations run. A clone is the same source.
#[derive(Debug, Clone)]
pub struct FaultInjection(Arc<Mutex<Source>>);

#[derive(Debug)]
struct Source {
    settings: FaultSettings,
    state: u64,
    injected: u64,
}

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    FailsBefore(ErrorKind),
    FailsAfter,
}

impl FaultInjection {
    /// No faults until [`FaultInjection::set`].
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Source { settings: FaultSettings::default(), state: seed, injected: 0 })))
    }

    /// Changes what is injected from now on.
    pub fn set(&self, settings: FaultSettings) {
        self.0.lock().settings = settings;
    }

    /// How many operations have failed by this source.
    pub fn injected(&self) -> u64 {
        self.0.lock().injected
    }

    fn decide(&self, after: fn(&FaultSettings) -> f64) -> (Duration, Fate) {
        let mut source = self.0.lock();
        let settings = source.settings;
        let mut left = source.fraction();
        let mut falls_in = |probability: f64| {
            left -= probability;
            left < 0.0
        };
        let fate = if falls_in(settings.error) {
            Fate::FailsBefore(ErrorKind::Unreachable)
        } else if let Some((_, wait)) = settings.rate_limit.filter(|(probability, _)| falls_in(*probability)) {
            Fate::FailsBefore(ErrorKind::RateLimited { retry_after: Some(wait) })
        } else if falls_in(after(&settings)) {
            Fate::FailsAfter
        } else {
            Fate::Works
        };
        source.injected += u64::from(fate != Fate::Works);
        (settings.latency, fate)
    }
}

impl Source {
    /// The next number from 0 up to 1, by SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
    fn fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The decorator that injects faults.
pub struct Faults {
    inner: Arc<dyn Provider>,
    injection: FaultInjection,
}

impl Faults {
    /// Puts the faults of `injection` in front of `inner`.
    pub fn new(inner: Arc<dyn Provider>, injection: FaultInjection) -> Self {
        Self { inner, injection }
    }

    async fn run<T>(
        &self,
        operation: &'static str,
        object: &str,
        after: fn(&FaultSettings) -> f64,
        work: ProviderFuture<'_, T>,
    ) -> Result<T, ProviderError> {
        let error = |kind| ProviderError::new(kind, operation, self.name(), object).with_source("injected fault");
        let (latency, fate) = self.injection.decide(after);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fate {
            Fate::Works => work.await,
            Fate::FailsBefore(kind) => Err(error(kind)),
            Fate::FailsAfter => work.await.and(Err(error(ErrorKind::Unreachable))),
        }
    }
}

impl Provider for Faults {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        let work = self.inner.put(path, body, mode);
        Box::pin(self.run("put", path.as_str(), |settings| settings.applied_but_error, work))
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(self.run("get", path.as_str(), |settings| settings.cut_reply, self.inner.get(path, range)))
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        Box::pin(self.run("head", path.as_str(), |_| 0.0, self.inner.head(path)))
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(self.run("list", prefix, |settings| settings.cut_reply, self.inner.list(prefix, start_after)))
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        let work = self.inner.delete(path);
        Box::pin(self.run("delete", path.as_str(), |settings| settings.applied_but_error, work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::memory::MemoryProvider;

    async fn outcomes(seed: u64) -> Vec<bool> {
        let injection = FaultInjection::new(seed);
        injection.set(FaultSettings { error: 0.3, applied_but_error: 0.2, ..FaultSettings::default() });
        let faults = Faults::new(MemoryProvider::new(), injection.clone());
        let path = ObjectPath::new("x").expect("a name");
        let mut outcomes = Vec::new();
        for _ in 0..1000 {
            outcomes.push(faults.put(&path, Bytes::new(), PutMode::Overwrite).await.is_ok());
        }
        assert_eq!(injection.injected(), outcomes.iter().filter(|ok| !**ok).count() as u64);
        outcomes
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_faults_at_the_wanted_rate() {
        let first = outcomes(7).await;
        assert_eq!(first, outcomes(7).await);
        assert_ne!(first, outcomes(8).await);
        let failed = first.iter().filter(|ok| !**ok).count();
        assert!((420..580).contains(&failed), "{failed} of 1000, wanted about 500");
    }

    #[tokio::test]
    async fn an_applied_put_is_there_and_a_failed_one_is_not() {
        let (store, injection) = (MemoryProvider::new(), FaultInjection::new(1));
        let faults = Faults::new(store.clone(), injection.clone());
        let (applied, failed) =
            (ObjectPath::new("applied").expect("a name"), ObjectPath::new("failed").expect("a name"));
        injection.set(FaultSettings { applied_but_error: 1.0, ..FaultSettings::default() });
        faults.put(&applied, Bytes::new(), PutMode::Overwrite).await.expect_err("an error all the same");
        injection.set(FaultSettings { error: 1.0, ..FaultSettings::default() });
        faults.put(&failed, Bytes::new(), PutMode::Overwrite).await.expect_err("an error");
        assert!(store.head(&applied).await.expect("known").is_some());
        assert!(store.head(&failed).await.expect("known").is_none());
    }
}
