//! Reads the logs of other devices and folds them in.
//!
//! A log is read in order and without gaps, and every segment must name the hash of the one before. A segment that a listing
//! lacks while it has later ones is asked for by its name, since the store may list late; one that is not there is waited
//! for. A log that does not continue what was read before has been tampered with, rolled back or is written by two copies
//! of one device: nothing of it is taken any more. The status says so, and also where a log is gone as a whole.
//!
//! A device that has read nothing yet begins with a checkpoint ([`super::join`]); its logs go on after it.
//!
//! What a segment brings (the change sets, the lists of chunks, where chunks lie, and how far the log was read) becomes
//! visible in one commit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::engine::Engine;
use super::error::ReplicateError;
use super::join::Unusable;
use super::rows::{self, LogCursor};
use super::status::{Severity, now_ms};
use crate::base::DeviceId;
use crate::chunk::{ChunkId, ChunkLocation, ContentId, Manifest};
use crate::provider::error::with_causes;
use crate::provider::{ErrorKind, ObjectPath};
use crate::tree::{ChangeSet, ManifestRows};
use crate::vault::{Damage, LOG_OBJECT_MAX, ManifestRef, Segment, VaultError, paths, read_chunk};

/// Sealed bytes that are read before they are folded; bounds memory while a device catches up.
const BATCH: u64 = 8 << 20;
/// Segments in a batch.
const BATCH_SEGMENTS: usize = 1024;
/// Segments that are asked for at the same time.
const IN_FLIGHT: usize = 8;
/// When a log that was found broken is looked at again: it may have been restored from a replica.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Segments of one device that a round asks for although they were not listed.
const UNLISTED: usize = 8;

/// Rounds between two listings of all logs, where those are long: some thirty seconds.
const PARTIAL_LISTINGS: u32 = 15;
/// Lists of chunks that could not be read are asked for in every so many rounds at least: once a minute or so.
const LONGEST_WAIT: u32 = 32;

/// What pull rounds remember from one to the next.
#[derive(Debug, Default)]
pub struct PullState {
    broken: HashMap<DeviceId, Instant>,
    /// Devices of whose logs a segment is missing.
    gaps: HashSet<DeviceId>,
    /// Rounds in which only what is new of known logs is listed, before all of them are again.
    rounds_to_whole_listing: u32,
    /// Rounds until lists of chunks that could not be read are asked for again, and how many it were the last time.
    rounds_to_wait: u32,
    wait: u32,
    /// Checkpoints that were found to be damaged.
    pub(super) unusable: Unusable,
}

/// What a pull round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Segments that were read and folded.
    pub segments: u64,
}

/// The segments of one device that are on the remote: number to length.
pub(super) type Log = BTreeMap<u64, u64>;

/// A segment to read.
#[derive(Debug, Clone, Copy)]
struct Listed {
    device: DeviceId,
    seq: u64,
    size: u64,
}

/// How far each log was read, by rows and by what this batch has read.
type Cursors = HashMap<DeviceId, LogCursor>;

impl Engine {
    /// Reads what other devices published and folds it in.
    ///
    /// # Errors
    /// When the remote or the rows fail; what was folded stays.
    pub async fn pull_round(self: &Arc<Self>) -> Result<Pulled, ReplicateError> {
        let mut state = self.pull.lock().await;
        self.join(&mut state).await?;
        let mut logs = self.list_logs(&mut state).await?;
        self.look_for_gaps(&mut state, &mut logs).await?;
        let mut pulled = Pulled::default();
        loop {
            let batch = self.plan(&mut state, &logs)?;
            if batch.is_empty() {
                self.ask_again(&mut state).await?;
                self.board.only_halted(|device| state.broken.contains_key(&device) || state.gaps.contains(&device));
                // A checkpoint that could not be loaded is made good for, and so is a round that failed.
                ["join", "pull"].into_iter().for_each(|task| self.board.recovered(task));
                return Ok(pulled);
            }
            let (segments, failure) = self.read_batch(&mut state, batch).await?;
            let read = segments.len() as u64;
            if read > 0 {
                let seen: BTreeSet<_> = segments.iter().flat_map(|read| read.seen.iter().copied()).collect();
                let batch = self.resolve(segments).await?;
                self.blocking(move |engine| engine.fold(batch)).await?;
                if seen.into_iter().any(|device| !self.knows_log_of(device)) {
                    state.rounds_to_whole_listing = 0;
                }
                pulled.segments += read;
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
    }

    /// Has the next round look at everything, also at logs and lists that were found broken: they may have been restored.
    pub async fn look_again(&self) {
        let mut state = self.pull.lock().await;
        state.broken.clear();
        state.rounds_to_whole_listing = 0;
        state.rounds_to_wait = 0;
    }

    /// What there is of the logs. All of them are listed at once while they are short, and now and then, to find new
    /// devices; otherwise of each known log what comes after that which was read.
    async fn list_logs(&self, state: &mut PullState) -> Result<HashMap<DeviceId, Log>, ReplicateError> {
        let own = self.tree.device().id;
        let acknowledged = self.acknowledged()?;
        let mut known: HashMap<DeviceId, u64> =
            rows::log_cursors(&**self.tree.store())?.into_iter().map(|(device, cursor)| (device, cursor.seq)).collect();
        let read = known.clone();
        known.insert(own, acknowledged);
        let is_short = known.values().sum::<u64>() <= self.settings.whole_listing;
        let mut logs = if is_short || state.rounds_to_whole_listing == 0 {
            let listed = self.list_segments(paths::LOG, None).await?;
            state.rounds_to_whole_listing = PARTIAL_LISTINGS;
            listed
        } else {
            state.rounds_to_whole_listing -= 1;
            self.list_what_is_new(known).await?
        };
        let own = logs.remove(&own).unwrap_or_default();
        if let Err(error) = self.check_own_log(acknowledged, own.last_key_value().map_or(0, |(seq, _)| *seq)) {
            // That the whole vault is another, or gone, says more.
            self.check_descriptor().await?;
            return Err(error);
        }
        self.look_for_lost_logs(read, &logs).await?;
        Ok(logs)
    }

    /// Says of which devices the log is gone as a whole. What was read of it stays.
    async fn look_for_lost_logs(
        &self,
        read: HashMap<DeviceId, u64>,
        logs: &HashMap<DeviceId, Log>,
    ) -> Result<(), ReplicateError> {
        let is_lost = |device: &DeviceId, seq: u64| seq > 0 && !logs.contains_key(device);
        if read.iter().any(|(device, seq)| is_lost(device, *seq)) {
            // That the whole vault is another, or gone, says more.
            self.check_descriptor().await?;
        }
        for (device, seq) in read {
            let missing = is_lost(&device, seq)
                .then(|| format!("its log `{}` is gone; {seq} segments of it were read here", paths::log(device)));
            self.board.device(device, |status| {
                if missing.is_some() && missing != status.missing {
                    tracing::error!(%device, reason = missing, "the remote lost the log of a device");
                }
                status.missing = missing;
            });
        }
        Ok(())
    }

    /// A segment is stored after the one before it. One that was not listed, while later ones were, is asked for by its
    /// name; where it is confirmed absent it was lost, and nothing after it can be read.
    async fn look_for_gaps(
        &self,
        state: &mut PullState,
        logs: &mut HashMap<DeviceId, Log>,
    ) -> Result<(), ReplicateError> {
        state.gaps.clear();
        for (device, log) in logs {
            let Some(newest) = log.last_key_value().map(|(seq, _)| *seq) else { continue };
            let mut next = rows::log_cursor(&**self.tree.store(), *device)?.seq + 1;
            for _ in 0..UNLISTED {
                while log.contains_key(&next) {
                    next += 1;
                }
                if next > newest || state.broken.contains_key(device) {
                    break;
                }
                let path = paths::segment(*device, next);
                let Some(there) = self.request(self.provider.head(&path)).await? else {
                    let reason = format!("`{path}` is missing, and later ones are there");
                    self.tell_halted(*device, &reason);
                    state.gaps.insert(*device);
                    break;
                };
                log.insert(next, there.size);
            }
        }
        Ok(())
    }

    fn tell_halted(&self, device: DeviceId, reason: &str) {
        if self.board.halts(device, reason) {
            tracing::error!(%device, reason, "the log of a device is not read any further");
        }
    }

    fn knows_log_of(&self, device: DeviceId) -> bool {
        let cursor = rows::log_cursor(&**self.tree.store(), device);
        device == self.tree.device().id || cursor.is_ok_and(|cursor| cursor.seq > 0)
    }

    /// Of each of these logs what comes after that number, and that.
    pub(super) async fn list_what_is_new(
        &self,
        known: HashMap<DeviceId, u64>,
    ) -> Result<HashMap<DeviceId, Log>, ReplicateError> {
        let lists = futures::stream::iter(known).map(|(device, seq)| async move {
            let folder = paths::log(device);
            // The last one that was read is asked for, too: a log that went back does not have it.
            let after = seq.checked_sub(1).map(|before| paths::segment(device, before));
            let listed = self.list_segments(&folder, after.as_ref().map(ObjectPath::as_str)).await?;
            if seq == 0 || listed.get(&device).is_some_and(|log| log.contains_key(&seq)) {
                return Ok(listed);
            }
            self.list_segments(&folder, None).await
        });
        lists.buffer_unordered(IN_FLIGHT).try_concat().await
    }

    async fn list_segments(&self, folder: &str, after: Option<&str>) -> Result<HashMap<DeviceId, Log>, ReplicateError> {
        let mut logs: HashMap<DeviceId, Log> = HashMap::new();
        for entry in self.request(self.provider.list(folder, after)).await? {
            if let Some((device, seq)) = paths::parse_segment(&entry.path) {
                logs.entry(device).or_default().insert(seq, entry.size);
            }
        }
        Ok(logs)
    }

    /// What to read next: of each log the segments that follow the last one read, without gaps.
    fn plan(&self, state: &mut PullState, logs: &HashMap<DeviceId, Log>) -> Result<Vec<Listed>, ReplicateError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (device, log) in logs {
            state.broken.retain(|_, since| since.elapsed() < LOOK_AGAIN);
            if state.broken.contains_key(device) {
                continue;
            }
            let cursor = rows::log_cursor(&**self.tree.store(), *device)?;
            let newest = log.last_key_value().map_or(0, |(seq, _)| *seq);
            if newest < cursor.seq {
                let reason = format!("its log ended at segment {} and now ends at {newest}", cursor.seq);
                self.distrust(state, *device, reason);
                continue;
            }
            for (seq, size) in (cursor.seq + 1..).map_while(|seq| Some((seq, *log.get(&seq)?))) {
                if size > LOG_OBJECT_MAX {
                    let path = paths::segment(*device, seq);
                    self.distrust(state, *device, format!("`{path}` has {size} bytes, more than any segment has"));
                    break;
                }
                if !batch.is_empty() && (bytes + size > BATCH || batch.len() >= BATCH_SEGMENTS) {
                    return Ok(batch);
                }
                bytes += size;
                batch.push(Listed { device: *device, seq, size });
            }
        }
        Ok(batch)
    }

    /// Reads and verifies a batch. What was read before a failure is handed over with it.
    async fn read_batch(
        &self,
        state: &mut PullState,
        batch: Vec<Listed>,
    ) -> Result<(Vec<Read>, Option<ReplicateError>), ReplicateError> {
        let mut cursors = Cursors::new();
        let mut segments = Vec::new();
        let mut downloads = futures::stream::iter(batch)
            .map(|Listed { device, seq, size }| async move {
                let object = self.get_listed(&paths::segment(device, seq), size).await?;
                Ok::<_, ReplicateError>((device, seq, object))
            })
            .buffered(IN_FLIGHT);
        loop {
            let (device, seq, object) = match downloads.try_next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ok((segments, None)),
                Err(error) => return Ok((segments, Some(error))),
            };
            if state.broken.contains_key(&device) {
                continue;
            }
            let before = match cursors.get(&device) {
                Some(cursor) => cursor.clone(),
                None => rows::log_cursor(&**self.tree.store(), device)?,
            };
            match self.open_segment(device, seq, &before, &object) {
                Ok(read) => {
                    cursors.insert(device, read.cursor.clone());
                    segments.push(read);
                }
                Err(reason) => self.distrust(state, device, reason),
            }
        }
    }

    /// An object as long as it was listed, so that a store that lies cannot make us read more.
    pub(super) async fn get_listed(&self, path: &ObjectPath, size: u64) -> Result<Bytes, ReplicateError> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        self.request(self.provider.get(path, Some(0..size))).await
    }

    /// Checks that a segment continues its log; the reason why not otherwise.
    fn open_segment(&self, device: DeviceId, seq: u64, before: &LogCursor, object: &[u8]) -> Result<Read, String> {
        let segment = Segment::open(self.vault.keys(), device, seq, object).map_err(|error| with_causes(&error))?;
        if segment.previous != before.hash {
            let path = paths::segment(device, seq);
            return Err(format!("`{path}` does not continue what was read before; the log was rewritten"));
        }
        let change_sets = segment.change_sets.iter().map(|bytes| ChangeSet::decode(bytes));
        let change_sets = change_sets.collect::<Result<Vec<_>, _>>().map_err(|error| with_causes(&error))?;
        if change_sets.iter().any(|set| set.id.device != device) {
            return Err(format!("`{}` names another device as its author", paths::segment(device, seq)));
        }
        let cursor = LogCursor { seq, hash: Segment::hash(object), name: segment.device_name.clone() };
        let seen = segment.seen.into_iter().map(|(device, _)| device).collect();
        let bytes = object.len() as u64;
        Ok(Read { device, cursor, bytes, seen, change_sets, manifests: segment.manifests, chunks: segment.chunks })
    }

    /// Fetches the lists of chunks that are themselves stored as chunks. A damaged one costs its file, not the log.
    async fn resolve(&self, batch: Vec<Read>) -> Result<Vec<Resolved>, ReplicateError> {
        let mut lists = HashMap::new();
        for (id, manifest) in batch.iter().flat_map(|read| &read.manifests) {
            if let ManifestRef::Chunked(list) = manifest {
                match self.fetch_manifest(list, &batch).await? {
                    Ok(manifest) if manifest.content_id(self.vault.keys()) == *id => {
                        lists.insert(*id, manifest);
                    }
                    Ok(_) => tracing::error!(content = ?id, "a list of chunks is another's; its file cannot be read"),
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::error!(content = ?id, error, "a list of chunks is damaged; its file cannot be read");
                    }
                }
            }
        }
        let resolved = batch.into_iter().map(|read| {
            let Read { device, cursor, bytes, change_sets, chunks, .. } = read;
            let (mut manifests, mut wanted) = (Vec::new(), Vec::new());
            for (id, manifest) in read.manifests {
                match (manifest, lists.get(&id)) {
                    (ManifestRef::Inline(manifest), _) => manifests.push((id, manifest)),
                    (ManifestRef::Chunked(_), Some(manifest)) => manifests.push((id, manifest.clone())),
                    (ManifestRef::Chunked(list), None) => wanted.push((id, list)),
                }
            }
            Resolved { device, cursor, bytes, change_sets, manifests, wanted, chunks }
        });
        Ok(resolved.collect())
    }

    /// Asks again for lists of chunks that were missing or damaged: the store may have been restored from a replica.
    async fn ask_again(self: &Arc<Self>, state: &mut PullState) -> Result<(), ReplicateError> {
        if state.rounds_to_wait > 0 {
            state.rounds_to_wait -= 1;
            return Ok(());
        }
        let mut left = 0_usize;
        for (id, list) in self.tree.wanted_lists()? {
            let found = match self.tree.manifest(&id)? {
                Some(known) => Some(known),
                None => self.fetch_manifest(&list, &[]).await?.ok(),
            };
            match found.filter(|manifest| manifest.content_id(self.vault.keys()) == id) {
                Some(manifest) => {
                    let mut operation = self.tree.store().operation()?;
                    operation.put_found_list(&id, &manifest);
                    operation.commit();
                }
                None => left += 1,
            }
        }
        if left == 0 {
            state.wait = 0;
            self.board.recovered("lists");
        } else {
            state.wait = (state.wait * 2).clamp(1, LONGEST_WAIT);
            let message = format!("{left} files cannot be read here: their lists of chunks are missing or damaged");
            self.board.failed("lists", message, Severity::Passing);
        }
        state.rounds_to_wait = state.wait;
        Ok(())
    }

    /// The outer error is the remote's: the round is tried again.
    async fn fetch_manifest(
        &self,
        list: &Manifest,
        batch: &[Read],
    ) -> Result<Result<Manifest, VaultError>, ReplicateError> {
        let mut encoded = Vec::new();
        for chunk in &list.chunks {
            let in_batch = batch.iter().flat_map(|read| &read.chunks).find(|(id, _)| *id == chunk.id);
            let location = match in_batch {
                Some((_, location)) => Some(*location),
                None => self.tree.chunk_location(&chunk.id)?,
            };
            let missing = || VaultError::Damaged { object: format!("{}", chunk.id), source: Damage::Hash };
            let Some(location) = location else { return Ok(Err(missing())) };
            let path = paths::pack(&location.pack);
            let frame = match self.request(self.provider.get(&path, Some(location.range()))).await {
                Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::NotFound => {
                    return Ok(Err(error.into()));
                }
                other => other?,
            };
            match read_chunk(self.vault.keys(), &chunk.id, &location, &frame) {
                Ok(bytes) => encoded.extend(bytes),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Manifest::decode(&encoded)
            .map_err(|error| VaultError::Damaged { object: "a list of chunks".to_owned(), source: error.into() }))
    }

    fn distrust(&self, state: &mut PullState, device: DeviceId, reason: String) {
        self.tell_halted(device, &reason);
        state.broken.insert(device, Instant::now());
    }

    /// Makes a batch visible: one commit for the change sets, what they need, and how far the logs were read.
    fn fold(&self, batch: Vec<Resolved>) -> Result<(), ReplicateError> {
        self.failpoints.pass("pull.before_fold")?;
        let mut change_sets = Vec::new();
        let mut batch_rows = Vec::with_capacity(batch.len());
        for mut read in batch {
            change_sets.append(&mut read.change_sets);
            batch_rows.push(read);
        }
        let touched = self.drive.fold(change_sets, |bulk| {
            for read in &batch_rows {
                read.chunks.iter().for_each(|(id, location)| bulk.put_chunk_location(id, location));
                read.manifests.iter().for_each(|(id, manifest)| bulk.put_manifest(id, manifest));
                read.wanted.iter().for_each(|(id, list)| bulk.put_wanted_list(id, list));
                rows::put_log_cursor(bulk, read.device, &read.cursor);
            }
            rows::add_segment_bytes(bulk, batch_rows.iter().map(|read| read.bytes).sum())
        })?;
        self.failpoints.pass("pull.after_fold")?;
        self.drive.apply_touched(&touched);
        for read in batch_rows {
            self.board.device(read.device, |status| status.last_seen_ms = now_ms());
        }
        Ok(())
    }
}

/// A verified segment.
struct Read {
    device: DeviceId,
    cursor: LogCursor,
    /// The length of the segment.
    bytes: u64,
    /// The devices that its author knew.
    seen: Vec<DeviceId>,
    change_sets: Vec<ChangeSet>,
    manifests: Vec<(ContentId, ManifestRef)>,
    chunks: Vec<(ChunkId, ChunkLocation)>,
}

/// A segment with its lists of chunks.
struct Resolved {
    device: DeviceId,
    cursor: LogCursor,
    /// The length of the segment.
    bytes: u64,
    change_sets: Vec<ChangeSet>,
    manifests: Vec<(ContentId, Manifest)>,
    /// Those that could not be read, with the chunks that hold them.
    wanted: Vec<(ContentId, Manifest)>,
    chunks: Vec<(ChunkId, ChunkLocation)>,
}
