//! Objects in memory, for tests and trials. Every clone of the `Arc` is the same store, and so is every [`MemoryProvider::named`]
//! of one name within the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
};

/// The stores that have a name. They live as long as the process.
static NAMED: LazyLock<Mutex<HashMap<String, Arc<MemoryProvider>>>> = LazyLock::new(Mutex::default);

struct Object {
    body: Bytes,
    modified: SystemTime,
}

/// A store in memory.
pub struct MemoryProvider {
    name: String,
    objects: Mutex<BTreeMap<ObjectPath, Object>>,
}

impl MemoryProvider {
    /// An empty store that nobody else has.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { name: "memory:".into(), objects: Mutex::default() })
    }

    /// The store of this process that has this name, empty at first.
    pub fn named(name: &str) -> Arc<Self> {
        let mut stores = NAMED.lock();
        let store = stores
            .entry(name.into())
            .or_insert_with(|| Arc::new(Self { name: format!("memory:{name}"), objects: Mutex::default() }));
        Arc::clone(store)
    }

    fn error(&self, kind: ErrorKind, operation: &'static str, path: &ObjectPath) -> ProviderError {
        ProviderError::new(kind, operation, &self.name, path.as_str())
    }

    fn put_now(&self, path: &ObjectPath, body: Bytes, mode: PutMode) -> Result<(), ProviderError> {
        let mut objects = self.objects.lock();
        if mode == PutMode::IfAbsent && objects.contains_key(path) {
            return Err(self.error(ErrorKind::AlreadyExists, "put", path));
        }
        objects.insert(path.clone(), Object { body, modified: SystemTime::now() });
        Ok(())
    }

    fn get_now(&self, path: &ObjectPath, range: Option<Range<u64>>) -> Result<Bytes, ProviderError> {
        let objects = self.objects.lock();
        let object = objects.get(path).ok_or_else(|| self.error(ErrorKind::NotFound, "get", path))?;
        let Some(range) = range else { return Ok(object.body.clone()) };
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if start <= end && end <= object.body.len() => Ok(object.body.slice(start..end)),
            _ => Err(self.error(ErrorKind::Corrupt, "get", path)),
        }
    }

    fn list_now(&self, prefix: &str, start_after: Option<&str>) -> Vec<ObjectEntry> {
        let objects = self.objects.lock();
        let below = objects.iter().filter(|(path, _)| path.as_str().starts_with(prefix));
        let after = below.filter(|(path, _)| start_after.is_none_or(|start| path.as_str() > start));
        after.map(|(path, object)| ObjectEntry { path: path.clone(), size: object.body.len() as u64 }).collect()
    }
}

impl Provider for MemoryProvider {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: true, ranged_read: true }
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move { self.put_now(path, body, mode) })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        Box::pin(async move { self.get_now(path, range) })
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        let meta = |object: &Object| ObjectMeta { size: object.body.len() as u64, modified: Some(object.modified) };
        Box::pin(async move { Ok(self.objects.lock().get(path).map(meta)) })
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        Box::pin(async move { Ok(self.list_now(prefix, start_after)) })
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            self.objects.lock().remove(path);
            Ok(())
        })
    }
}
