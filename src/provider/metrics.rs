//! Counts what goes over the wire, for `status`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
};

/// Counters of one remote. A clone is the same counters.
#[derive(Debug, Clone, Default)]
pub struct ProviderMetrics(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    uploaded_bytes: AtomicU64,
    downloaded_bytes: AtomicU64,
    operations: AtomicU64,
    errors: AtomicU64,
    contact: Mutex<Contact>,
}

/// What the last operations told of the remote. The lock guards nothing else and is never held over an await.
#[derive(Debug, Default, Clone)]
struct Contact {
    last_answer: Option<SystemTime>,
    unreachable_since: Option<SystemTime>,
    last_error: Option<(SystemTime, String)>,
}

/// The counters at one moment. Rates come from the difference of two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Bytes of objects that were stored.
    pub uploaded_bytes: u64,
    /// Bytes of objects that were read.
    pub downloaded_bytes: u64,
    /// Operations that ended, well or not; each try counts.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// When the remote last answered anything, an error included.
    pub last_answer: Option<SystemTime>,
    /// Since when the remote has not answered, when the last thing heard of it is that it cannot be reached.
    pub unreachable_since: Option<SystemTime>,
    /// The last failure and its time, without secrets.
    pub last_error: Option<(SystemTime, String)>,
}

impl ProviderMetrics {
    /// The counters now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let counters = &*self.0;
        let Contact { last_answer, unreachable_since, last_error } = counters.contact.lock().clone();
        MetricsSnapshot {
            uploaded_bytes: counters.uploaded_bytes.load(Ordering::Relaxed),
            downloaded_bytes: counters.downloaded_bytes.load(Ordering::Relaxed),
            operations: counters.operations.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            last_answer,
            unreachable_since,
            last_error,
        }
    }

    fn record<T>(&self, result: &Result<T, ProviderError>) {
        let now = SystemTime::now();
        self.0.operations.fetch_add(1, Ordering::Relaxed);
        let mut contact = self.0.contact.lock();
        match result {
            Ok(_) => {
                contact.last_answer = Some(now);
                contact.unreachable_since = None;
            }
            Err(error) => self.record_error(&mut contact, now, error),
        }
    }

    fn record_error(&self, contact: &mut Contact, now: SystemTime, error: &ProviderError) {
        match error.kind {
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Untrusted => {
                contact.unreachable_since.get_or_insert(now);
            }
            _ => {
                contact.last_answer = Some(now);
                contact.unreachable_since = None;
            }
        }
        // That a name is free or taken is an answer, not a failure.
        if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::AlreadyExists) {
            self.0.errors.fetch_add(1, Ordering::Relaxed);
            contact.last_error = Some((now, super::error::with_causes(error)));
        }
    }
}

/// The decorator that counts.
pub struct Metered {
    inner: Arc<dyn Provider>,
    metrics: ProviderMetrics,
}

impl Metered {
    /// Counts what `inner` does.
    pub fn new(inner: Arc<dyn Provider>, metrics: ProviderMetrics) -> Self {
        Self { inner, metrics }
    }
}

impl Provider for Metered {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            let length = body.len() as u64;
            let result = self.inner.put(path, body, mode).await;
            if result.is_ok() {
                self.metrics.0.uploaded_bytes.fetch_add(length, Ordering::Relaxed);
            }
            self.metrics.record(&result);
            result
        })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(async move {
            let result = self.inner.get(path, range).await;
            if let Ok(body) = &result {
                self.metrics.0.downloaded_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            }
            self.metrics.record(&result);
            result
        })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        Box::pin(async move {
            let result = self.inner.head(path).await;
            self.metrics.record(&result);
            result
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(async move {
            let result = self.inner.list(prefix, start_after).await;
            self.metrics.record(&result);
            result
        })
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            let result = self.inner.delete(path).await;
            self.metrics.record(&result);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::faults::{FaultInjection, FaultSettings, Faults};
    use crate::provider::memory::MemoryProvider;

    #[tokio::test]
    async fn what_passes_is_counted_and_contact_is_known() {
        let (injection, metrics) = (FaultInjection::new(0), ProviderMetrics::default());
        let faults = Arc::new(Faults::new(MemoryProvider::new(), injection.clone()));
        let provider = Metered::new(faults, metrics.clone());
        let path = ObjectPath::new("x").expect("a name");
        assert_eq!(metrics.snapshot().last_answer, None);
        provider.put(&path, vec![0; 1000].into(), PutMode::Overwrite).await.expect("stored");
        provider.get(&path, Some(0..300)).await.expect("there");
        provider.put(&path, Bytes::new(), PutMode::IfAbsent).await.expect_err("taken");
        let now = metrics.snapshot();
        assert_eq!((now.uploaded_bytes, now.downloaded_bytes, now.operations, now.errors), (1000, 300, 3, 0));
        assert!(now.last_answer.is_some() && now.unreachable_since.is_none() && now.last_error.is_none());

        injection.set(FaultSettings { error: 1.0, ..FaultSettings::default() });
        provider.head(&path).await.expect_err("unreachable");
        let first = metrics.snapshot();
        provider.head(&path).await.expect_err("unreachable");
        let second = metrics.snapshot();
        assert!(first.unreachable_since.is_some());
        assert_eq!(second.unreachable_since, first.unreachable_since, "it is since the first failure");
        assert!(second.last_error.is_some_and(|(_, text)| text.contains("look up \"x\"") && text.contains("injected")));

        injection.set(FaultSettings::default());
        provider.head(&path).await.expect("back");
        assert_eq!(metrics.snapshot().unreachable_since, None);
    }
}
