//! Brings chunks from the vault for readers.
//!
//! A chunk is looked for among the recently read ones, then fetched from its pack. Askers of one chunk share a fetch, and
//! chunks that lie next to each other in a pack and are asked for at the same moment (read-ahead) share one ranged
//! request. The transfer is a task of its own: a reader that gives up at its deadline does not take it from the others.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::ReplicateSettings;
use super::singleflight::SingleFlight;
use crate::chunk::{ChunkId, ChunkLocation, ChunkRef, PackId};
use crate::drive::{ContentSource, FetchError};
use crate::provider::{ErrorKind, Provider, ProviderError};
use crate::tree::Tree;
use crate::vault::{Vault, paths, read_chunk};

/// Bytes between two wanted chunks that are read along rather than asked for separately: less than a round trip costs.
const GAP: u64 = 64 << 10;
/// The most one request reads; more would hold back the first chunk.
const LONGEST_REQUEST: u64 = 8 << 20;

type Fetched = Result<Bytes, FetchError>;

/// The content source of a drive that is attached to a vault. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    vault: Arc<Vault>,
    provider: Arc<dyn Provider>,
    runtime: Handle,
    deadline: Duration,
    /// Set once the drive that this fetcher serves is open.
    tree: OnceLock<Arc<Tree>>,
    recent: Cache<ChunkId, Bytes>,
    flights: SingleFlight<ChunkId, Fetched>,
    /// Chunks asked for and not yet requested, by pack. A leaf lock.
    wanted: Mutex<HashMap<PackId, Vec<Wanted>>>,
}

struct Wanted {
    id: ChunkId,
    location: ChunkLocation,
    reply: oneshot::Sender<Fetched>,
}

impl Fetcher {
    /// A fetcher that reads through `provider` on `runtime`.
    pub fn new(vault: Arc<Vault>, provider: Arc<dyn Provider>, settings: &ReplicateSettings, runtime: Handle) -> Self {
        let recent = Cache::builder()
            .max_capacity(settings.chunk_cache)
            .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            .build();
        Self {
            shared: Arc::new(Shared {
                vault,
                provider,
                runtime,
                deadline: settings.read_deadline,
                tree: OnceLock::new(),
                recent,
                flights: SingleFlight::new(),
                wanted: Mutex::default(),
            }),
        }
    }

    /// Says where chunks lie; called once, when the drive is open.
    pub fn attach(&self, tree: Arc<Tree>) {
        // A second call would name the same drive's tree.
        let _ = self.shared.tree.set(tree);
    }

    pub(super) fn vault(&self) -> &Arc<Vault> {
        &self.shared.vault
    }

    pub(super) fn provider(&self) -> &Arc<dyn Provider> {
        &self.shared.provider
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }
}

impl ContentSource for Fetcher {
    fn fetch(&self, chunk: ChunkRef) -> BoxFuture<'static, Fetched> {
        if let Some(bytes) = self.shared.recent.get(&chunk.id) {
            return futures::future::ready(Ok(bytes)).boxed();
        }
        let shared = &self.shared;
        let flight = shared.flights.join(&chunk.id, || {
            let shared = Arc::clone(shared);
            let task = self.shared.runtime.spawn(async move {
                let result = shared.fetch(chunk).await;
                if let Ok(bytes) = &result {
                    shared.recent.insert(chunk.id, bytes.clone());
                }
                shared.flights.landed(&chunk.id);
                result
            });
            async move { task.await.unwrap_or_else(|_| Err(unavailable(chunk.id, "the fetch was stopped"))) }.boxed()
        });
        flight.boxed()
    }

    fn is_hole(&self, chunk: &ChunkRef) -> bool {
        self.shared.vault.chunker().is_zero_chunk(&chunk.id)
    }
}

impl Shared {
    async fn fetch(self: &Arc<Self>, chunk: ChunkRef) -> Fetched {
        let location = self.locate(chunk.id)?;
        let (reply, answer) = oneshot::channel();
        self.want(location.pack, Wanted { id: chunk.id, location, reply });
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(Ok(bytes))) if bytes.len() as u64 == u64::from(chunk.len) => Ok(bytes),
            Ok(Ok(Ok(_))) => Err(damaged(chunk.id, "its length is not what the file's list of chunks says")),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(unavailable(chunk.id, "the fetch was stopped")),
            Err(_) => Err(unavailable(chunk.id, "the remote does not answer in time")),
        }
    }

    fn locate(&self, id: ChunkId) -> Result<ChunkLocation, FetchError> {
        let Some(tree) = self.tree.get() else {
            return Err(unavailable(id, "the drive is still being opened"));
        };
        match tree.chunk_location(&id) {
            Ok(Some(location)) => Ok(location),
            Ok(None) => Err(unavailable(id, "no log that was read so far says where it lies")),
            Err(error) => Err(unavailable(id, &error.to_string())),
        }
    }

    /// Adds a wish, and makes sure that a task is about to serve the wishes of its pack.
    fn want(self: &Arc<Self>, pack: PackId, wish: Wanted) {
        let mut wanted = self.wanted.lock();
        let wishes = wanted.entry(pack).or_default();
        wishes.push(wish);
        if wishes.len() > 1 {
            return;
        }
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            // Lets the askers that are already running add theirs.
            tokio::task::yield_now().await;
            let wishes = shared.wanted.lock().remove(&pack).unwrap_or_default();
            futures::future::join_all(runs(wishes).into_iter().map(|run| shared.serve(pack, run))).await;
        });
    }

    /// One ranged request for chunks that lie close together.
    async fn serve(&self, pack: PackId, (range, wishes): (Range<u64>, Vec<Wanted>)) {
        let path = paths::pack(&pack);
        let result = self.provider.get(&path, Some(range.clone())).await;
        for wish in wishes {
            let answer = match &result {
                Ok(bytes) => self.open(wish.id, &wish.location, bytes, range.start),
                Err(error) => Err(explain(wish.id, error)),
            };
            // A reader that gave up has dropped its end.
            let _ = wish.reply.send(answer);
        }
    }

    fn open(&self, id: ChunkId, location: &ChunkLocation, bytes: &Bytes, start: u64) -> Fetched {
        let range = location.range();
        let index = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        let frame = bytes
            .get(index(range.start)..index(range.end))
            .ok_or_else(|| damaged(id, "its pack is shorter than the log says"))?;
        read_chunk(self.vault.keys(), &id, location, frame)
            .map(Bytes::from)
            .map_err(|error| damaged(id, &error.to_string()))
    }
}

/// Groups wishes of one pack into requests.
fn runs(mut wishes: Vec<Wanted>) -> Vec<(Range<u64>, Vec<Wanted>)> {
    wishes.sort_by_key(|wish| wish.location.offset);
    let mut runs: Vec<(Range<u64>, Vec<Wanted>)> = Vec::new();
    for wish in wishes {
        let Range { start, end } = wish.location.range();
        match runs.last_mut() {
            Some((range, run))
                if start <= range.end.saturating_add(GAP) && end.saturating_sub(range.start) <= LONGEST_REQUEST =>
            {
                range.end = range.end.max(end);
                run.push(wish);
            }
            _ => runs.push((start..end, vec![wish])),
        }
    }
    runs
}

fn unavailable(id: ChunkId, reason: &str) -> FetchError {
    FetchError::Unavailable { chunk: format!("{id}"), reason: reason.to_owned() }
}

fn damaged(id: ChunkId, reason: &str) -> FetchError {
    FetchError::Damaged { chunk: format!("{id}"), reason: reason.to_owned() }
}

fn explain(id: ChunkId, error: &ProviderError) -> FetchError {
    let reason = crate::provider::error::with_causes(error);
    match error.kind {
        ErrorKind::NotFound | ErrorKind::Corrupt => damaged(id, &reason),
        _ => unavailable(id, &reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeviceId;
    use crate::chunk::Encoding;
    use crate::crypto::Secret;
    use crate::provider::PutMode;
    use crate::provider::memory::MemoryProvider;
    use crate::provider::metrics::{Metered, ProviderMetrics};
    use crate::store::Store;
    use crate::tree::{DeviceIdentity, ManifestRows};
    use crate::vault::InitOptions;

    struct Fixture {
        runtime: tokio::runtime::Runtime,
        remote: Arc<MemoryProvider>,
        metrics: ProviderMetrics,
        fetcher: Fetcher,
        chunks: Vec<(ChunkRef, Vec<u8>)>,
        pack: PackId,
    }

    /// One pack of twenty chunks of 1,000 bytes.
    fn fixture() -> Fixture {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let remote = MemoryProvider::new();
        let options = InitOptions::new(vec![Secret::KeyFile([1; 32].into())]);
        let vault = Arc::new(runtime.block_on(Vault::init(&*remote, options)).expect("a vault is made"));
        let mut builder = vault.pack_builder();
        let mut chunks = Vec::new();
        for byte in 0..20 {
            let content = vec![byte; 1000];
            let chunk = vault.chunker().chunk_ref(&content);
            builder.add(chunk.id, chunk.len, Encoding::Raw, &content);
            chunks.push((chunk, content));
        }
        let pack = builder.finish();
        let store = Arc::new(Store::in_memory().expect("a store opens"));
        let mut operation = store.operation().expect("the store takes operations");
        pack.chunks.iter().for_each(|(id, location)| operation.put_chunk_location(id, location));
        operation.commit();
        let device = DeviceIdentity { id: DeviceId(1), name: "test".to_owned() };
        let tree = Arc::new(Tree::open(store, device).expect("a tree opens"));
        let path = paths::pack(&pack.id);
        runtime.block_on(remote.put(&path, pack.bytes.clone(), PutMode::Overwrite)).expect("the pack is stored");
        let metrics = ProviderMetrics::default();
        let provider = Arc::new(Metered::new(Arc::clone(&remote) as Arc<dyn Provider>, metrics.clone()));
        let settings = ReplicateSettings::default();
        let fetcher = Fetcher::new(vault, provider, &settings, runtime.handle().clone());
        fetcher.attach(tree);
        Fixture { runtime, remote, metrics, fetcher, chunks, pack: pack.id }
    }

    #[test]
    fn many_askers_of_many_chunks_cost_few_requests_and_get_the_bytes() {
        let fixture = fixture();
        let wishes: Vec<_> = (0..200).map(|index| &fixture.chunks[index % fixture.chunks.len()]).collect();
        let answers = wishes.iter().map(|(chunk, _)| fixture.fetcher.fetch(*chunk));
        // Polled by an executor that knows nothing of the runtime, as a driver does.
        let answers = futures::executor::block_on(futures::future::join_all(answers));
        for (answer, (_, content)) in answers.into_iter().zip(wishes) {
            assert_eq!(answer.expect("the chunk is there"), content);
        }
        assert!(fixture.metrics.snapshot().operations <= 20, "chunks are asked for once");
    }

    #[test]
    fn damaged_pack_and_missing_pack_are_told_apart_from_what_is_unknown() {
        let fixture = fixture();
        let (chunk, _) = fixture.chunks[0];
        let path = paths::pack(&fixture.pack);
        let ask = || futures::executor::block_on(fixture.fetcher.fetch(chunk));
        let original = fixture.runtime.block_on(fixture.remote.get(&path, None)).expect("the pack is there");
        let mut altered = original.to_vec();
        altered.iter_mut().for_each(|byte| *byte ^= 1);
        fixture.runtime.block_on(fixture.remote.put(&path, altered.into(), PutMode::Overwrite)).expect("it is stored");
        assert!(matches!(ask(), Err(FetchError::Damaged { .. })));
        fixture.runtime.block_on(fixture.remote.delete(&path)).expect("it is removed");
        assert!(matches!(ask(), Err(FetchError::Damaged { .. })));
        fixture.runtime.block_on(fixture.remote.put(&path, original, PutMode::Overwrite)).expect("it is stored");
        assert!(ask().is_ok(), "a failure is not remembered");
        let unknown = ChunkRef { id: ChunkId([0; 32]), len: 1 };
        let answer = futures::executor::block_on(fixture.fetcher.fetch(unknown));
        assert!(matches!(answer, Err(FetchError::Unavailable { .. })));
    }

    #[test]
    fn wishes_far_apart_are_asked_for_apart() {
        let wish = |offset: u32| Wanted {
            id: ChunkId([0; 32]),
            location: ChunkLocation {
                pack: PackId([0; 32]),
                offset,
                sealed_len: 100,
                plain_len: 50,
                index: 0,
                epoch: 1,
            },
            reply: oneshot::channel().0,
        };
        let far = 100 + u32::try_from(GAP).expect("the gap is small") + 1;
        let ranges = |wishes| runs(wishes).into_iter().map(|(range, wishes)| (range, wishes.len())).collect::<Vec<_>>();
        assert_eq!(ranges(vec![wish(100), wish(0)]), [(0..200, 2)]);
        assert_eq!(ranges(vec![wish(far), wish(0)]), [(0..100, 1), (u64::from(far)..u64::from(far) + 100, 1)]);
        assert_eq!(ranges(vec![wish(0), wish(9 << 20), wish(8 << 20)]).len(), 3);
        assert!(ranges(Vec::new()).is_empty());
    }
}
