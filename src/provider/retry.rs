//! Tries again, and nothing else does: exponential backoff with full jitter, a wait that the store asks for, an end.
//!
//! A put that failed may have been applied. When the next try of a [`PutMode::IfAbsent`] then finds an object, it is read back:
//! our own bytes mean that the put succeeded.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
    holds,
};

/// When an operation is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySettings {
    /// How often an operation is tried at most, at least once.
    pub attempts: u32,
    /// The longest wait before the second try; it doubles from try to try.
    pub first_delay: Duration,
    /// What the wait grows to at most, unless the store asks for more.
    pub longest_delay: Duration,
    /// No try begins later than this after the first.
    pub give_up_after: Duration,
}

impl Default for RetrySettings {
    /// Rides out a server that restarts; what lasts longer is for the caller, who can tell a person.
    fn default() -> Self {
        Self {
            attempts: 6,
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(20),
            give_up_after: Duration::from_secs(120),
        }
    }
}

/// The decorator that tries again.
pub struct Retry {
    inner: Arc<dyn Provider>,
    settings: RetrySettings,
}

impl Retry {
    /// Tries operations of `inner` again by these settings.
    pub fn new(inner: Arc<dyn Provider>, settings: RetrySettings) -> Self {
        Self { inner, settings }
    }

    /// Calls `attempt` with the number of failures so far until it succeeds or is not worth repeating.
    async fn repeat<T, F>(&self, mut attempt: impl FnMut(u32) -> F) -> Result<T, ProviderError>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        let last_start = Instant::now() + self.settings.give_up_after;
        let mut failures = 0;
        loop {
            let error = match attempt(failures).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failures += 1;
            let delay = self.delay_after(failures, &error);
            if !error.retryable || failures >= self.settings.attempts || Instant::now() + delay > last_start {
                return Err(error);
            }
            tracing::debug!(%error, failures, ?delay, "trying again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Full jitter keeps many clients from coming back at one moment, after a wait the store asked for, too.
    fn delay_after(&self, failures: u32, error: &ProviderError) -> Duration {
        let doubled = self.settings.first_delay.saturating_mul(1 << (failures - 1).min(20));
        let jitter = doubled.min(self.settings.longest_delay).mul_f64(random_fraction());
        match error.kind {
            ErrorKind::RateLimited { retry_after: Some(wait) } => wait.saturating_add(jitter),
            _ => jitter,
        }
    }

    async fn put_once(
        &self,
        path: &ObjectPath,
        body: Bytes,
        mode: PutMode,
        failures: u32,
    ) -> Result<(), ProviderError> {
        match self.inner.put(path, body.clone(), mode).await {
            Err(error) if error.kind == ErrorKind::AlreadyExists && failures > 0 => {
                match holds(&*self.inner, path, &body).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(error),
                    Err(read) if read.kind == ErrorKind::NotFound => Err(ProviderError { retryable: true, ..read }),
                    Err(read) => Err(read),
                }
            }
            result => result,
        }
    }
}

/// A number from 0 up to 1. Without randomness of the system the waits are merely not spread.
fn random_fraction() -> f64 {
    getrandom::u32().map_or(1.0, |value| f64::from(value) / f64::from(u32::MAX))
}

impl Provider for Retry {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move { self.repeat(|failures| self.put_once(path, body.clone(), mode, failures)).await })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(async move { self.repeat(|_| self.inner.get(path, range.clone())).await })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        Box::pin(self.repeat(|_| self.inner.head(path)))
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(self.repeat(move |_| self.inner.list(prefix, start_after)))
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        Box::pin(self.repeat(|_| self.inner.delete(path)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;

    use super::*;
    use crate::provider::memory::MemoryProvider;

    /// A store whose operations fail as scripted before they are done; then it works. Notes the time of every try.
    struct Scripted {
        store: Arc<MemoryProvider>,
        failures: Mutex<VecDeque<ProviderError>>,
        tries: Mutex<Vec<Instant>>,
    }

    impl Scripted {
        fn new(failures: impl IntoIterator<Item = ErrorKind>) -> Arc<Self> {
            let failures = failures.into_iter().map(|kind| ProviderError::new(kind, "get", "scripted", "x")).collect();
            Arc::new(Self { store: MemoryProvider::new(), failures: Mutex::new(failures), tries: Mutex::default() })
        }

        fn next(&self) -> Result<(), ProviderError> {
            self.tries.lock().push(Instant::now());
            self.failures.lock().pop_front().map_or(Ok(()), Err)
        }
    }

    impl Provider for Scripted {
        fn name(&self) -> String {
            "scripted".into()
        }

        fn capabilities(&self) -> Capabilities {
            self.store.capabilities()
        }

        /// Applied, whatever is then answered.
        fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
            Box::pin(async move {
                self.store.put(path, body, mode).await?;
                self.next()
            })
        }

        fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
            Box::pin(async move {
                self.next()?;
                self.store.get(path, range).await
            })
        }

        fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
            self.store.head(path)
        }

        fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
            self.store.list(prefix, start_after)
        }

        fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
            self.store.delete(path)
        }
    }

    fn path() -> ObjectPath {
        ObjectPath::new("x").expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_ridden_out() {
        let scripted = Scripted::new([ErrorKind::Unreachable, ErrorKind::Timeout, ErrorKind::Unreachable]);
        scripted.store.put(&path(), Bytes::from_static(b"body"), PutMode::Overwrite).await.expect("stored");
        let retry = Retry::new(scripted.clone(), RetrySettings::default());
        assert_eq!(retry.get(&path(), None).await.expect("in the end"), Bytes::from_static(b"body"));
        assert_eq!(scripted.tries.lock().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_not_repeated() {
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::InvalidConfig, ErrorKind::Corrupt] {
            let scripted = Scripted::new([kind]);
            let error = Retry::new(scripted.clone(), RetrySettings::default()).get(&path(), None).await;
            assert_eq!(error.expect_err("fails").kind, kind);
            assert_eq!(scripted.tries.lock().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_and_time_are_bounded_and_delays_stay_within_the_doubling() {
        let settings = RetrySettings { give_up_after: Duration::from_secs(3600), ..RetrySettings::default() };
        let scripted = Scripted::new(std::iter::repeat_n(ErrorKind::Unreachable, 100));
        let error = Retry::new(scripted.clone(), settings).get(&path(), None).await.expect_err("fails");
        assert_eq!(error.kind, ErrorKind::Unreachable);
        let tries = scripted.tries.lock().clone();
        assert_eq!(tries.len(), 6);
        for (number, pair) in tries.windows(2).enumerate() {
            let longest = Duration::from_millis(200 << number) + Duration::from_millis(5);
            assert!(pair[1] - pair[0] <= longest, "{number}: {:?}", pair[1] - pair[0]);
        }

        let settings = RetrySettings { attempts: 1000, give_up_after: Duration::from_secs(60), ..settings };
        let scripted = Scripted::new(std::iter::repeat_n(ErrorKind::Unreachable, 1000));
        Retry::new(scripted.clone(), settings).get(&path(), None).await.expect_err("fails");
        let tries = scripted.tries.lock().clone();
        assert!(*tries.last().expect("tried") - tries[0] <= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_a_store_asks_for_is_kept() {
        let wait = Duration::from_secs(30);
        let scripted = Scripted::new([ErrorKind::RateLimited { retry_after: Some(wait) }]);
        scripted.store.put(&path(), Bytes::new(), PutMode::Overwrite).await.expect("stored");
        Retry::new(scripted.clone(), RetrySettings::default()).get(&path(), None).await.expect("in the end");
        let tries = scripted.tries.lock().clone();
        assert!(tries[1] - tries[0] >= wait);

        let scripted = Scripted::new([ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(9000)) }]);
        let error = Retry::new(scripted.clone(), RetrySettings::default()).get(&path(), None).await;
        let kind = error.expect_err("longer than we wait").kind;
        assert_eq!(kind, ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(9000)) });
        assert_eq!(scripted.tries.lock().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_that_was_applied_but_failed_succeeds_and_a_stranger_is_respected() {
        let scripted = Scripted::new([ErrorKind::Unreachable]);
        let retry = Retry::new(scripted.clone(), RetrySettings::default());
        retry.put(&path(), Bytes::from_static(b"ours"), PutMode::IfAbsent).await.expect("it is ours");

        let error = retry.put(&path(), Bytes::from_static(b"ours"), PutMode::IfAbsent).await.expect_err("taken");
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "the first try saw it: that is not our doing");
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_somebody_else_stored_meanwhile_is_not_taken_for_ours() {
        let store = MemoryProvider::new();
        let settings = crate::provider::faults::FaultSettings { error: 1.0, ..Default::default() };
        let injection = crate::provider::faults::FaultInjection::new(1);
        injection.set(settings);
        let faults = Arc::new(crate::provider::faults::Faults::new(store.clone(), injection.clone()));
        let retry = Retry::new(faults, RetrySettings::default());
        let putting = async { retry.put(&path(), Bytes::from_static(b"ours"), PutMode::IfAbsent).await };
        let meanwhile = async {
            tokio::task::yield_now().await;
            store.put(&path(), Bytes::from_static(b"theirs"), PutMode::Overwrite).await.expect("stored");
            injection.set(crate::provider::faults::FaultSettings::default());
        };
        let (result, ()) = tokio::join!(putting, meanwhile);
        assert_eq!(result.expect_err("taken").kind, ErrorKind::AlreadyExists);
        assert_eq!(store.get(&path(), None).await.expect("there"), Bytes::from_static(b"theirs"));
    }
}
