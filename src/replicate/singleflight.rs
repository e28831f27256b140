//! Several askers, one fetch: whoever asks for a key that is already being fetched waits for that fetch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

/// A fetch that several askers wait for.
pub(super) type Flight<V> = Shared<BoxFuture<'static, V>>;

/// The fetches on their way. The lock is a leaf, held for map operations only.
pub(super) struct SingleFlight<K, V: Clone> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K: Clone + Eq + Hash + Send + 'static, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    pub(super) fn new() -> Self {
        Self { flights: Arc::default() }
    }

    /// The fetch of `key` that is on its way, or the one that `start` makes. What `start` makes has to run by itself
    /// (a spawned task): askers may give up waiting.
    pub(super) fn join(&self, key: &K, start: impl FnOnce() -> BoxFuture<'static, V>) -> Flight<V> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key) {
            return flight.clone();
        }
        let flight = start().shared();
        flights.insert(key.clone(), flight.clone());
        flight
    }

    /// Called by the task once the result is where later askers find it, or has failed.
    pub(super) fn landed(&self, key: &K) {
        self.flights.lock().remove(key);
    }
}

impl<K, V: Clone> Clone for SingleFlight<K, V> {
    fn clone(&self) -> Self {
        Self { flights: Arc::clone(&self.flights) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn askers_share_one_fetch_and_the_next_starts_anew() {
        let flights = SingleFlight::<u8, u32>::new();
        let mut started = 0;
        let mut ask = |flights: &SingleFlight<u8, u32>| {
            flights.join(&1, || {
                started += 1;
                let value = started;
                async move { value }.boxed()
            })
        };
        let first = ask(&flights);
        let second = ask(&flights);
        assert_eq!(first.now_or_never(), Some(1));
        assert_eq!(second.now_or_never(), Some(1));
        flights.landed(&1);
        assert_eq!(ask(&flights).now_or_never(), Some(2));
    }
}
