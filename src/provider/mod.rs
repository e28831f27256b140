//! Object storage behind one trait, [`Provider`], and everything that makes a real store behave: retries, bandwidth limits,
//! deadlines, counters and injected faults, each a decorator in its own file.
//!
//! Invariants that callers rely on:
//! - [`Provider::get`] gives exactly what was asked for, or an error; it never gives less.
//! - [`Provider::list`] is complete, or an error.
//! - Nothing that a store sends takes more memory than was asked for: see [`OBJECT_MAX`], [`LISTED_MAX`] and [`read_whole`].
//! - What is not known is an error: `Ok(None)` of [`Provider::head`] means confirmed absent.
//! - A failed put may have been applied, whole; it is never applied in part.
//! - Nothing that is displayed, debug-printed or logged here holds a secret.
//!
//! Order of the decorators, from the caller inwards: retry, throttle, metrics, timeout, faults, service. Waiting for bandwidth
//! is thus not counted against a deadline, a retried operation waits for bandwidth again, and what was given up counts as a
//! failure. Only [`retry`] retries, and only the mapping of a service decides what may be retried.
//!
//! It does not know what the objects mean, never caches, and never splits one object into several.

pub mod error;
pub mod faults;
pub mod fs;
pub mod memory;
pub mod metrics;
mod open;
mod path;
mod read;
mod remote_url;
pub mod retry;
pub mod s3;
pub mod throttle;
pub mod timeout;
mod tls;

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use error::{ErrorKind, ProviderError};
pub use metrics::{MetricsSnapshot, ProviderMetrics};
pub use open::{ProviderSettings, decorate, open};
pub use path::{InvalidObjectPath, ObjectPath};
pub use read::{holds, read_whole};
pub use remote_url::{RemoteUrl, RemoteUrlError};
pub use throttle::BandwidthLimits;

/// No object is longer: a pack of 256 MiB and a chunk, padded. Of a longer one nothing is handed out.
pub const OBJECT_MAX: u64 = 512 << 20;

/// The most objects of a listing: a vault of 100 TB has as many. A store that goes on listing is not believed.
pub const LISTED_MAX: usize = 8 << 20;

/// What an operation of a [`Provider`] returns.
pub type ProviderFuture<'a, T> = BoxFuture<'a, Result<T, ProviderError>>;

/// A store of immutable-sized objects under paths.
pub trait Provider: Send + Sync + 'static {
    /// The URL of the remote, without secrets.
    fn name(&self) -> String;

    /// What the store can do.
    fn capabilities(&self) -> Capabilities;

    /// Stores `body` under `path`, whole and durably, or fails. With [`PutMode::IfAbsent`] an object that is there stays and
    /// the error is [`ErrorKind::AlreadyExists`]; a store without [`Capabilities::put_if_absent`] does this by asking first,
    /// which two writers can pass at once.
    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()>;

    /// Reads the object, or exactly `range` of it. A range that ends after the object is [`ErrorKind::Corrupt`], and so is an
    /// object longer than [`OBJECT_MAX`] where all of it is asked for.
    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes>;

    /// What is known of the object; `None` when it is confirmed absent.
    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>>;

    /// Every object at any depth below `prefix`, which is empty or ends in `/`, sorted by the bytes of the path. With
    /// `start_after` (a whole path, `prefix` included) only those that sort after it. More than [`LISTED_MAX`] are
    /// [`ErrorKind::Corrupt`].
    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>>;

    /// Removes the object; one that is absent is fine.
    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()>;
}

/// What a store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`PutMode::IfAbsent`] is decided by the store, so that of several writers one wins. Some stores claim it and do not.
    pub put_if_absent: bool,
    /// Reading a range costs no more than the range.
    pub ranged_read: bool,
}

/// What [`Provider::put`] does with an object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Replaces it.
    Overwrite,
    /// Leaves it and fails with [`ErrorKind::AlreadyExists`].
    IfAbsent,
}

/// What [`Provider::head`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Length in bytes.
    pub size: u64,
    /// When it was stored, by the clock of the store, where that is known.
    pub modified: Option<SystemTime>,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectEntry {
    /// Its path.
    pub path: ObjectPath,
    /// Length in bytes.
    pub size: u64,
}
