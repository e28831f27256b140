//! A provider that remembers what it was asked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cairnfs::provider::{Capabilities, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderFuture, PutMode};
use parking_lot::Mutex;

/// What was asked for, and how much came.
#[derive(Debug, Default, Clone)]
pub struct Record {
    /// Paths of objects that were read, whole or in part.
    pub gets: Vec<String>,
    pub downloaded: u64,
    pub lists: u64,
    /// What was listed.
    pub prefixes: Vec<String>,
    /// Objects that lists answered.
    pub listed: u64,
}

impl Record {
    pub fn gets_below(&self, prefix: &str) -> usize {
        self.gets.iter().filter(|path| path.starts_with(prefix)).count()
    }

    pub fn lists_of(&self, prefix: &str) -> usize {
        self.prefixes.iter().filter(|listed| *listed == prefix).count()
    }
}

pub struct Recorded {
    inner: Arc<dyn Provider>,
    record: Mutex<Record>,
}

impl Recorded {
    pub fn new(inner: Arc<dyn Provider>) -> Arc<Self> {
        Arc::new(Self { inner, record: Mutex::default() })
    }

    /// What was asked for since the last call.
    pub fn take(&self) -> Record {
        std::mem::take(&mut *self.record.lock())
    }
}

impl Provider for Recorded {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        self.inner.put(path, body, mode)
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        self.record.lock().gets.push(path.as_str().to_owned());
        Box::pin(async move {
            let bytes = self.inner.get(path, range).await?;
            self.record.lock().downloaded += bytes.len() as u64;
            Ok(bytes)
        })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        self.inner.head(path)
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        {
            let mut record = self.record.lock();
            record.lists += 1;
            record.prefixes.push(prefix.to_owned());
        }
        Box::pin(async move {
            let entries = self.inner.list(prefix, start_after).await?;
            self.record.lock().listed += entries.len() as u64;
            Ok(entries)
        })
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        self.inner.delete(path)
    }
}
