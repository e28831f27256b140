//! Writes checkpoints: the published rows of this device, so that a new one need not replay every log.
//!
//! One is written when enough segments of all devices together have come since the newest that is known here. The rows are
//! read from a snapshot of the store, so nobody waits for it. They are cut into small chunks of their own; those that the
//! checkpoint before has are not sent again. The object is written last, and names only packs that were acknowledged.
//! Whatever fails is tried again later. Normally one device writes: the one that has just published, or, should it not come
//! to that, the others in the order of their ids, one each minute; and who is about to store the object looks once more
//! whether another has come first. Two that write at once nevertheless write two checkpoints, and both are right.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::engine::Engine;
use super::error::ReplicateError;
use super::push::Presence;
use super::rows::{self, KnownCheckpoint};
use super::status::Outcome;
use crate::base::codec::DecodeError;
use crate::base::{ChangeId, DeviceId};
use crate::chunk::{ChunkId, ChunkLocation, ChunkRef, Chunker, ChunkerParams, Compressor, Last, Manifest, PackId};
use crate::provider::error::with_causes;
use crate::provider::{ErrorKind, ObjectEntry, ObjectPath, PutMode, holds};
use crate::store::StoreSnapshot;
use crate::tree::{JoinState, dump_published};
use crate::vault::{Checkpoint, Covered, FinishedPack, LOG_OBJECT_MAX, PackBuilder, VaultError, paths};

/// How the rows are cut, whatever the vault's lengths are. Rows that change lie scattered, and each costs its chunk; a list
/// of chunks this short names 200 GB of rows before it outgrows a checkpoint's object.
const ROWS_CHUNKS: ChunkerParams = ChunkerParams { minimum: 16 << 10, average: 64 << 10, maximum: 256 << 10 };
/// Room for several chunks, so that little is moved to the front.
const BUFFERED: usize = 4 * (256 << 10);
/// Finished packs that wait to be sent, one at a time: a checkpoint is in no hurry.
const QUEUED: usize = 1;
/// No device gets as far as this: a greater number in a listing is not one that it gave.
const NUMBERS_END: u64 = 1 << 48;

/// When a checkpoint is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// After so many segments of all devices together.
    pub segments: u64,
    /// After so many bytes of segments.
    pub bytes: u64,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        // A new device then replays some ten seconds at most.
        Self { segments: 1000, bytes: 64 << 20 }
    }
}

/// What a round of writing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checkpointed {
    /// A checkpoint was written.
    pub written: bool,
    /// Packs that were sent for it.
    pub packs: u64,
}

/// The newest checkpoint of each device, as it is listed.
type Newest = HashMap<DeviceId, ObjectEntry>;

/// The stream of rows as a checkpoint names it.
struct CutRows {
    list: Manifest,
    chunks: Vec<(ChunkId, ChunkLocation)>,
    newest: Option<ChangeId>,
}

/// The device and number of a checkpoint in a listing.
pub(super) fn listed_checkpoint(path: &ObjectPath) -> Option<(DeviceId, u64)> {
    paths::parse_checkpoint(path).filter(|(_, number)| *number < NUMBERS_END)
}

impl Engine {
    /// Writes a checkpoint, if one is due.
    ///
    /// # Errors
    /// When the remote or the rows fail; what was sent is not sent again.
    pub async fn checkpoint_round(self: &Arc<Self>) -> Result<Checkpointed, ReplicateError> {
        if !self.checkpoint_is_due()? {
            return Ok(Checkpointed::default());
        }
        let listed = self.list_newest().await?;
        let before = self.newest_checkpoint(listed.values()).await?;
        if let Some(before) = &before {
            self.found_checkpoint(before)?;
            if !self.checkpoint_is_due()? {
                return Ok(Checkpointed::default());
            }
        }
        let Some(snapshot) = self.settled_snapshot().await? else { return Ok(Checkpointed::default()) };
        self.check_remote().await?;
        self.write_checkpoint(snapshot, before, &listed).await
    }

    /// How many turns this device leaves to others when a checkpoint is due: it is theirs in the order of their ids.
    ///
    /// # Errors
    /// When the rows fail.
    pub fn checkpoint_turn(&self) -> Result<usize, ReplicateError> {
        let own = self.tree.device().id;
        let others = rows::log_cursors(&**self.tree.store())?;
        Ok(others.into_iter().filter(|(device, _)| *device < own).count())
    }

    /// Whether enough has come since the newest checkpoint that is known here.
    ///
    /// # Errors
    /// When the rows fail.
    pub fn checkpoint_is_due(&self) -> Result<bool, ReplicateError> {
        let store = &**self.tree.store();
        let known = rows::known_checkpoint(store)?;
        let segments = rows::segments(store)?.saturating_sub(known.segments);
        let bytes = rows::segment_bytes(store)?.saturating_sub(known.bytes);
        let policy = &self.settings.checkpoint;
        Ok(segments > 0 && (segments >= policy.segments || bytes >= policy.bytes))
    }

    /// The newest checkpoint of each device.
    async fn list_newest(&self) -> Result<Newest, ReplicateError> {
        let mut newest = Newest::new();
        for entry in self.request(self.provider.list(paths::CHECKPOINTS, None)).await? {
            newest.extend(listed_checkpoint(&entry.path).map(|(device, _)| (device, entry)));
        }
        let own = newest.get(&self.tree.device().id).and_then(|entry| listed_checkpoint(&entry.path));
        self.note_own_number(own.map_or(0, |(_, number)| number))?;
        Ok(newest)
    }

    /// The checkpoint that covers most, of those that can be read.
    async fn newest_checkpoint(
        &self,
        listed: impl Iterator<Item = &ObjectEntry>,
    ) -> Result<Option<Checkpoint>, ReplicateError> {
        let mut best: Option<Checkpoint> = None;
        for ObjectEntry { path, size } in listed {
            let object = match self.get_checkpoint(path, *size).await {
                Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::NotFound => continue,
                Err(ReplicateError::Vault(_)) => continue,
                object => object?,
            };
            let Some((device, seq)) = listed_checkpoint(path) else { continue };
            match Checkpoint::open(self.vault.keys(), device, seq, &object) {
                Ok(found) if best.as_ref().is_none_or(|best| covered(best) < covered(&found)) => best = Some(found),
                Ok(_) => {}
                Err(error) => tracing::warn!(error = with_causes(&error), "a checkpoint cannot be read"),
            }
        }
        Ok(best)
    }

    /// A checkpoint's object, unless it is longer than any can be.
    pub(super) async fn get_checkpoint(&self, path: &ObjectPath, size: u64) -> Result<Bytes, ReplicateError> {
        if size > LOG_OBJECT_MAX {
            let limit = DecodeError::TooLong { what: "the object", length: size, limit: LOG_OBJECT_MAX as usize };
            return Err(VaultError::Damaged { object: path.to_string(), source: limit.into() }.into());
        }
        self.get_listed(path, size).await
    }

    fn note_own_number(&self, number: u64) -> Result<(), ReplicateError> {
        self.note_checkpoint(|known| known.number = known.number.max(number))
    }

    pub(super) fn found_checkpoint(&self, found: &Checkpoint) -> Result<(), ReplicateError> {
        let bytes = rows::segment_bytes(&**self.tree.store())?;
        self.note_checkpoint(|known| {
            if known.segments < covered(found) {
                known.segments = covered(found);
                known.bytes = bytes;
            }
        })
    }

    fn note_checkpoint(&self, note: impl FnOnce(&mut KnownCheckpoint)) -> Result<(), ReplicateError> {
        let mut operation = self.tree.store().operation()?;
        let mut known = rows::known_checkpoint(&operation)?;
        note(&mut known);
        rows::put_known_checkpoint(&mut operation, &known);
        operation.commit();
        Ok(())
    }

    /// A moment at which everything that was cut here is on the remote: a checkpoint must not cover what others cannot see.
    async fn settled_snapshot(&self) -> Result<Option<StoreSnapshot>, ReplicateError> {
        let _no_push = self.push.lock().await;
        if self.tree.join_state()? != JoinState::Settled {
            return Ok(None);
        }
        self.tree.store().flush_later().await?;
        let snapshot = self.tree.store().snapshot()?;
        Ok(rows::first_in_outbox(&snapshot)?.is_none().then_some(snapshot))
    }

    async fn write_checkpoint(
        self: &Arc<Self>,
        snapshot: StoreSnapshot,
        before: Option<Checkpoint>,
        listed: &Newest,
    ) -> Result<Checkpointed, ReplicateError> {
        let device = self.tree.device().id;
        let mut covers = Vec::new();
        for (device, cursor) in rows::log_cursors(&snapshot)? {
            covers.push(Covered { device, seq: cursor.seq, hash: cursor.hash });
        }
        let head = rows::log_head(&snapshot)?;
        if head.seq > 0 {
            covers.push(Covered { device, seq: head.seq, hash: head.hash });
        }
        covers.sort_by_key(|covered| covered.device);
        let bytes = rows::segment_bytes(&snapshot)?;
        let (rows, packs) = self.send_rows(snapshot, before).await?;
        let Some(newest) = rows.newest else { return Ok(Checkpointed::default()) };
        let mut come_since = self.list_newest().await?;
        come_since.retain(|device, entry| listed.get(device) != Some(entry));
        let seq = rows::known_checkpoint(&**self.tree.store())?.number + 1;
        let checkpoint = Checkpoint { device, seq, covers, newest, rows: rows.list, chunks: rows.chunks };
        let another = self.newest_checkpoint(come_since.values()).await?;
        if let Some(another) = another.filter(|another| covered(another) >= covered(&checkpoint)) {
            // What was sent is for the next one.
            self.found_checkpoint(&another)?;
            return Ok(Checkpointed { written: false, packs });
        }
        self.failpoints.pass("checkpoint.before_object")?;
        self.send_checkpoint(&checkpoint).await?;
        self.failpoints.pass("checkpoint.after_object")?;
        self.blocking(move |engine| {
            let mut operation = engine.tree.store().operation()?;
            rows::put_known_checkpoint(
                &mut operation,
                &KnownCheckpoint { segments: covered(&checkpoint), bytes, number: seq },
            );
            rows::forget_rows_packs(&mut operation)?;
            operation.commit();
            Ok(())
        })
        .await?;
        Ok(Checkpointed { written: true, packs })
    }

    async fn send_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), ReplicateError> {
        let object = checkpoint.seal(self.vault.keys())?;
        let path = paths::checkpoint(checkpoint.device, checkpoint.seq);
        let length = object.len() as u64;
        self.board.sending(length);
        let result = self.request(self.provider.put(&path, object.clone(), PutMode::IfAbsent)).await;
        self.board.sent(length, if result.is_ok() { Outcome::Acknowledged } else { Outcome::Failed });
        match result {
            Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::AlreadyExists => {
                // Perhaps it was stored, and the answer was lost.
                if self.request(holds(&*self.provider, &path, &object)).await? {
                    return Ok(());
                }
                self.note_own_number(checkpoint.seq)?;
                Err(error.into())
            }
            other => other,
        }
    }

    /// Cuts the rows, and sends what the vault lacks of them.
    async fn send_rows(
        self: &Arc<Self>,
        snapshot: StoreSnapshot,
        before: Option<Checkpoint>,
    ) -> Result<(CutRows, u64), ReplicateError> {
        let (sender, receiver) = mpsc::channel(QUEUED);
        let engine = Arc::clone(self);
        let cutting = tokio::task::spawn_blocking(move || {
            let mut cutter = RowCutter::new(engine, before, sender)?;
            let newest = dump_published(&snapshot, &mut |piece| cutter.push(piece))?;
            drop(snapshot);
            cutter.finish(newest)
        });
        let sent = self.unless_interrupted(self.send_packs(receiver)).await;
        // Ends soon after the sending half: the channel is closed.
        let cut = match cutting.await {
            Ok(cut) => cut,
            Err(error) => Err(ReplicateError::Panicked(error.to_string())),
        };
        // A sending half that failed makes the cutting half fail too, and knows why.
        let sent = sent?;
        Ok((cut?, sent))
    }

    async fn send_packs(self: &Arc<Self>, mut packs: mpsc::Receiver<FinishedPack>) -> Result<u64, ReplicateError> {
        let mut sent = 0;
        while let Some(FinishedPack { id, bytes, chunks }) = packs.recv().await {
            self.failpoints.pass("checkpoint.before_pack")?;
            let length = bytes.len() as u64;
            self.board.sending(length);
            let result = self.request(self.provider.put(&paths::pack(&id), bytes, PutMode::Overwrite)).await;
            self.board.sent(length, if result.is_ok() { Outcome::Acknowledged } else { Outcome::Failed });
            result?;
            self.failpoints.pass("checkpoint.after_pack")?;
            self.blocking(move |engine| engine.record_rows_pack(id, &chunks)).await?;
            self.failpoints.pass("checkpoint.after_pack_rows")?;
            sent += 1;
        }
        Ok(sent)
    }

    fn record_rows_pack(&self, pack: PackId, chunks: &[(ChunkId, ChunkLocation)]) -> Result<(), ReplicateError> {
        let mut operation = self.tree.store().operation()?;
        rows::put_rows_pack(&mut operation, pack, chunks);
        operation.commit();
        self.tree.store().flush()?;
        self.known_packs.learn(pack, Presence::There);
        Ok(())
    }
}

/// How many segments a checkpoint has, of all devices together.
pub(super) fn covered(checkpoint: &Checkpoint) -> u64 {
    checkpoint.covers.iter().map(|covered| covered.seq).fold(0, u64::saturating_add)
}

/// Cuts the stream of rows. Runs on a blocking thread.
struct RowCutter {
    engine: Arc<Engine>,
    chunker: Chunker,
    compressor: Compressor,
    builder: PackBuilder,
    produced: mpsc::Sender<FinishedPack>,
    /// Where chunks of earlier checkpoints and attempts lie, and those of packs of this one.
    known: HashMap<ChunkId, ChunkLocation>,
    /// Chunks in packs of this one.
    packed: HashSet<ChunkId>,
    list: Vec<ChunkRef>,
    buffer: Vec<u8>,
}

impl RowCutter {
    fn new(
        engine: Arc<Engine>,
        before: Option<Checkpoint>,
        produced: mpsc::Sender<FinishedPack>,
    ) -> Result<Self, ReplicateError> {
        let mut known: HashMap<_, _> = before.into_iter().flat_map(|before| before.chunks).collect();
        known.extend(rows::rows_packs(&**engine.tree.store())?);
        let chunker = Chunker::new(engine.vault.keys(), ROWS_CHUNKS).expect("the lengths are within bounds");
        Ok(Self {
            chunker,
            compressor: engine.vault.compressor()?,
            builder: engine.vault.pack_builder(),
            engine,
            produced,
            known,
            packed: HashSet::new(),
            list: Vec::new(),
            buffer: Vec::with_capacity(2 * BUFFERED),
        })
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), ReplicateError> {
        if self.produced.is_closed() {
            return Err(ReplicateError::Interrupted);
        }
        self.buffer.extend_from_slice(piece);
        if self.buffer.len() >= BUFFERED { self.cut(Last::No) } else { Ok(()) }
    }

    fn cut(&mut self, last: Last) -> Result<(), ReplicateError> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        while let Some(length) = self.chunker.next_cut(rest, last) {
            let (chunk, after) = rest.split_at(length);
            self.chunk(chunk)?;
            rest = after;
        }
        let rest = rest.len();
        self.buffer = buffer;
        self.buffer.drain(..self.buffer.len() - rest);
        Ok(())
    }

    fn chunk(&mut self, plaintext: &[u8]) -> Result<(), ReplicateError> {
        let chunk = self.chunker.chunk_ref(plaintext);
        self.list.push(chunk);
        if self.packed.contains(&chunk.id) {
            return Ok(());
        }
        if let Some(location) = self.known.get(&chunk.id) {
            if self.engine.presence_of(location.pack)? == Presence::There {
                return Ok(());
            }
        }
        let (encoding, encoded) = self.compressor.compress(plaintext)?;
        self.builder.add(chunk.id, chunk.len, encoding, &encoded);
        self.packed.insert(chunk.id);
        if self.builder.is_full() { self.close_pack() } else { Ok(()) }
    }

    fn close_pack(&mut self) -> Result<(), ReplicateError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let pack = std::mem::replace(&mut self.builder, self.engine.vault.pack_builder()).finish();
        self.known.extend(pack.chunks.iter().copied());
        // The sending half closes the channel when it has failed, and says itself why.
        self.produced.blocking_send(pack).map_err(|_| ReplicateError::Interrupted)
    }

    fn finish(mut self, newest: Option<ChangeId>) -> Result<CutRows, ReplicateError> {
        self.cut(Last::Yes)?;
        self.close_pack()?;
        let mut named = HashSet::new();
        let used = self.list.iter().filter(|chunk| named.insert(chunk.id));
        let chunks = used.filter_map(|chunk| Some((chunk.id, *self.known.get(&chunk.id)?))).collect();
        Ok(CutRows { list: Manifest::new(self.list), chunks, newest })
    }
}
