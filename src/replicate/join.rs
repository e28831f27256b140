//! Begins with a checkpoint where this device has read no log yet, so that only what came after it must be replayed.
//!
//! Of the checkpoints on the remote the one that covers most is loaded, or the one of which a part is loaded already. One
//! that is damaged, incomplete or from a newer version is told of and passed over; when none is left, the logs are read from
//! their beginning. The remote being away is no reason for that: the load goes on where it was. Until it is decided what
//! this device begins with, it publishes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;

use super::checkpoint::{covered, listed_checkpoint};
use super::engine::Engine;
use super::error::ReplicateError;
use super::pull::PullState;
use super::ready::PushState;
use super::rows::{self, KnownCheckpoint, LogCursor};
use super::status::{Severity, now_ms};
use crate::base::DeviceId;
use crate::chunk::{ChunkId, ChunkLocation, PackId};
use crate::provider::error::with_causes;
use crate::provider::{ErrorKind, ObjectPath};
use crate::store::Rows;
use crate::tree::{Join, JoinError, JoinSource, JoinState, TreeError, keys};
use crate::vault::{Checkpoint, VaultError, paths, read_chunk};

/// The most of a pack that one request reads.
const LONGEST_REQUEST: u64 = 4 << 20;
/// Requests at the same time; with the one before, what a load takes of memory.
const IN_FLIGHT: usize = 3;

/// Checkpoints on the remote by device, those that were not tried yet: number and length.
type Candidates = BTreeMap<DeviceId, Vec<(u64, u64)>>;

/// A checkpoint that was opened.
struct Found {
    path: ObjectPath,
    source: JoinSource,
    checkpoint: Checkpoint,
}

/// Chunks that lie one after the other in a pack.
struct Run {
    pack: PackId,
    range: Range<u64>,
    chunks: Vec<(ChunkId, ChunkLocation)>,
}

/// Why a checkpoint was not loaded.
enum LoadError {
    /// Another one, or the logs, must do.
    Unusable(String),
    /// It is tried again.
    Failed(ReplicateError),
}

impl<E: Into<ReplicateError>> From<E> for LoadError {
    fn from(error: E) -> Self {
        match error.into() {
            ReplicateError::Provider(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {
                Self::Unusable(with_causes(&error))
            }
            ReplicateError::Vault(error @ VaultError::Damaged { .. }) => Self::Unusable(with_causes(&error)),
            error => Self::Failed(error),
        }
    }
}

impl LoadError {
    fn of(error: JoinError) -> Self {
        match error {
            JoinError::Tree(error) => error.into(),
            JoinError::Rows(error) => Self::Unusable(with_causes(&error)),
        }
    }
}

impl Engine {
    /// Loads a checkpoint, if this device has read nothing yet and there is one.
    pub(super) async fn join(self: &Arc<Self>, state: &mut PullState) -> Result<(), ReplicateError> {
        if self.has_joined()? {
            return Ok(());
        }
        // An empty folder where the remote is not mounted has no checkpoints either.
        self.check_descriptor().await?;
        let mut candidates = Candidates::new();
        for entry in self.request(self.provider.list(paths::CHECKPOINTS, None)).await? {
            if let Some((device, seq)) = listed_checkpoint(&entry.path) {
                candidates.entry(device).or_default().push((seq, entry.size));
            }
        }
        if self.go_on(state, &candidates).await? {
            return Ok(());
        }
        let mut open: HashMap<DeviceId, Found> = HashMap::new();
        loop {
            self.open_newest(state, &mut candidates, &mut open).await?;
            let best = open
                .iter()
                .max_by_key(|(device, found)| (covered(&found.checkpoint), **device))
                .map(|(device, _)| *device);
            let Some(found) = best.and_then(|device| open.remove(&device)) else { break };
            match self.load(&found).await {
                Ok(()) => break,
                Err(LoadError::Unusable(reason)) => self.pass_over(state, &found.path, &reason),
                Err(LoadError::Failed(error)) => return Err(error),
            }
        }
        self.blocking(|engine| Ok(engine.tree.abandon_join()?)).await?;
        self.nothing_to_load.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it is decided what this device begins with: a checkpoint was loaded, or there is none to load. Before that
    /// nothing is published: who has change sets of its own cannot load a checkpoint any more, and would replay every log.
    pub(super) fn has_joined(&self) -> Result<bool, ReplicateError> {
        Ok(match self.tree.join_state()? {
            JoinState::Settled => true,
            JoinState::Loading(_) => false,
            JoinState::Blank => {
                self.nothing_to_load.load(Ordering::Acquire) || !rows::log_cursors(&**self.tree.store())?.is_empty()
            }
        })
    }

    /// Whether something of this device can be published. Looks whether there is a checkpoint, once; to load it is for
    /// the next pull.
    pub(super) async fn may_publish(&self, state: &mut PushState) -> Result<bool, ReplicateError> {
        if self.has_joined()? {
            return Ok(true);
        }
        if state.found_checkpoint || self.tree.join_state()? != JoinState::Blank {
            return Ok(false);
        }
        let listed = self.request(self.provider.list(paths::CHECKPOINTS, None)).await?;
        state.found_checkpoint = listed.iter().any(|entry| listed_checkpoint(&entry.path).is_some());
        if !state.found_checkpoint {
            self.nothing_to_load.store(true, Ordering::Release);
        }
        Ok(!state.found_checkpoint)
    }

    /// What comes before anything of this device can be published, for the status.
    pub(super) fn waits_for(&self) -> Result<Option<String>, ReplicateError> {
        if self.has_joined()? {
            return Ok(None);
        }
        let what = match self.tree.join_state()? {
            JoinState::Loading(_) => "a checkpoint of the vault is being loaded",
            _ => "the vault was not read yet",
        };
        Ok(Some(format!("{what}; what is made here is published after that")))
    }

    /// Goes on with the load that was broken off, as long as its checkpoint can be read: another that has appeared meanwhile
    /// covers more, but what was loaded of this one would be lost. Answers whether it is loaded now.
    async fn go_on(self: &Arc<Self>, state: &mut PullState, candidates: &Candidates) -> Result<bool, ReplicateError> {
        let JoinState::Loading(JoinSource { device, number, hash }) = self.tree.join_state()? else { return Ok(false) };
        let path = paths::checkpoint(device, number);
        let listed = candidates.get(&device).and_then(|numbers| numbers.iter().find(|(seq, _)| *seq == number));
        let Some((_, size)) = listed.filter(|_| !state.unusable.contains(&path)) else { return Ok(false) };
        let loaded = match self.open_checkpoint(path.clone(), *size).await {
            Ok(found) if found.source.hash != hash => return Ok(false),
            Ok(found) => self.load(&found).await,
            Err(error) => Err(error),
        };
        match loaded {
            Ok(()) => Ok(true),
            Err(LoadError::Unusable(reason)) => {
                self.pass_over(state, &path, &reason);
                Ok(false)
            }
            Err(LoadError::Failed(error)) => Err(error),
        }
    }

    /// Opens the newest checkpoint of each device of which none is open.
    async fn open_newest(
        &self,
        state: &mut PullState,
        candidates: &mut Candidates,
        open: &mut HashMap<DeviceId, Found>,
    ) -> Result<(), ReplicateError> {
        for (device, numbers) in candidates {
            while !open.contains_key(device) {
                let Some((seq, size)) = numbers.pop() else { break };
                let path = paths::checkpoint(*device, seq);
                if state.unusable.contains(&path) {
                    continue;
                }
                match self.open_checkpoint(path.clone(), size).await {
                    Ok(found) => drop(open.insert(*device, found)),
                    Err(LoadError::Unusable(reason)) => self.pass_over(state, &path, &reason),
                    Err(LoadError::Failed(error)) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn open_checkpoint(&self, path: ObjectPath, size: u64) -> Result<Found, LoadError> {
        let object = self.get_checkpoint(&path, size).await?;
        let (device, seq) = paths::parse_checkpoint(&path).expect("it was made of both");
        let checkpoint = Checkpoint::open(self.vault.keys(), device, seq, &object)?;
        let source = JoinSource { device, number: seq, hash: *blake3::hash(&object).as_bytes() };
        Ok(Found { path, source, checkpoint })
    }

    fn pass_over(&self, state: &mut PullState, path: &ObjectPath, reason: &str) {
        let message = format!("the checkpoint `{path}` cannot be used, an older one or the logs are read: {reason}");
        tracing::warn!(message);
        self.board.failed("join", message, Severity::Passing);
        state.unusable.insert(path.clone());
    }

    async fn load(self: &Arc<Self>, found: &Found) -> Result<(), LoadError> {
        let Found { path, source, checkpoint } = found;
        tracing::info!(%path, bytes = checkpoint.rows.size, "loading a checkpoint");
        let source = *source;
        let Some(mut join) = self.blocking(move |engine| Ok(engine.tree.begin_join(source)?)).await? else {
            return Ok(());
        };
        self.failpoints.pass("join.after_begin")?;
        let (runs, skip) = runs(checkpoint, join.position())?;
        let mut skip = skip;
        let mut downloads = futures::stream::iter(runs)
            .map(|run| async move {
                let path = paths::pack(&run.pack);
                let bytes = self.request(self.provider.get(&path, Some(run.range.clone()))).await;
                bytes.map(|bytes| (run, bytes))
            })
            .buffered(IN_FLIGHT);
        while let Some(download) = downloads.next().await {
            let (run, bytes) = download?;
            let skipped = std::mem::take(&mut skip);
            let (loading, result) = self.blocking(move |engine| Ok(engine.load_run(join, run, bytes, skipped))).await?;
            result?;
            join = loading;
        }
        self.failpoints.pass("join.before_end")?;
        let (checkpoint, path) = (checkpoint.clone(), path.clone());
        self.blocking(move |engine| Ok(engine.end_join(join, &checkpoint, &path))).await?
    }

    /// Takes in the chunks of a run, the first without its first bytes.
    fn load_run(&self, mut join: Join, run: Run, bytes: Bytes, skip: usize) -> (Join, Result<(), LoadError>) {
        let mut skip = skip;
        for (id, location) in run.chunks {
            let result = self.load_chunk(&mut join, &id, &location, &bytes, run.range.start, skip);
            skip = 0;
            if result.is_err() {
                return (join, result);
            }
        }
        (join, Ok(()))
    }

    fn load_chunk(
        &self,
        join: &mut Join,
        id: &ChunkId,
        location: &ChunkLocation,
        bytes: &Bytes,
        start: u64,
        skip: usize,
    ) -> Result<(), LoadError> {
        let range = location.range();
        let index = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        let short = || LoadError::Unusable(format!("`{}` is shorter than it says", paths::pack(&location.pack)));
        let frame = bytes.get(index(range.start)..index(range.end)).ok_or_else(short)?;
        let chunk = read_chunk(self.vault.keys(), id, location, frame)?;
        self.tree.load(join, chunk.get(skip..).unwrap_or_default()).map_err(LoadError::of)?;
        Ok(self.failpoints.pass("join.after_chunk")?)
    }

    /// Makes what was loaded visible: one commit for the rows of the root and how far the logs were read.
    fn end_join(&self, join: Join, checkpoint: &Checkpoint, path: &ObjectPath) -> Result<(), LoadError> {
        let own = self.tree.device().id;
        let others = || checkpoint.covers.iter().filter(|covered| covered.device != own);
        self.drive.notice_writes();
        let touched = self.tree.finish_join(join, checkpoint.rows.size, checkpoint.newest, |bulk| {
            for covered in others() {
                let name = bulk.get(&keys::author(covered.device)).map_err(TreeError::from)?;
                let name = name.map_or_else(|| covered.device.to_string(), |name| lossy(&name));
                let cursor = LogCursor { seq: covered.seq, hash: covered.hash, name };
                rows::put_log_cursor(bulk, covered.device, &cursor);
            }
            let known = KnownCheckpoint { segments: covered(checkpoint), ..rows::known_checkpoint(&*bulk)? };
            rows::put_known_checkpoint(bulk, &known);
            Ok(())
        });
        let touched = touched.map_err(LoadError::of)?;
        self.failpoints.pass("join.after_end")?;
        self.drive.apply_touched(&touched);
        others().for_each(|covered| self.board.device(covered.device, |status| status.last_seen_ms = now_ms()));
        tracing::info!(%path, "the checkpoint is loaded");
        Ok(())
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The requests that bring the stream of rows from `position` on, and how many bytes of the first chunk come before that.
fn runs(checkpoint: &Checkpoint, position: u64) -> Result<(Vec<Run>, usize), LoadError> {
    let locations: HashMap<_, _> = checkpoint.chunks.iter().copied().collect();
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, mut skip) = (0, 0);
    for chunk in &checkpoint.rows.chunks {
        let begin = at;
        at += u64::from(chunk.len);
        if at <= position {
            continue;
        }
        if begin < position {
            skip = usize::try_from(position - begin).unwrap_or(usize::MAX);
        }
        let location = locations.get(&chunk.id).filter(|location| location.plain_len == chunk.len);
        let nowhere = || LoadError::Unusable(format!("it does not say where its chunk {} lies", chunk.id));
        let location = location.ok_or_else(nowhere)?;
        let range = location.range();
        match runs.last_mut() {
            Some(run)
                if run.pack == location.pack
                    && run.range.end == range.start
                    && range.end - run.range.start <= LONGEST_REQUEST =>
            {
                run.range.end = range.end;
                run.chunks.push((chunk.id, *location));
            }
            _ => runs.push(Run { pack: location.pack, range, chunks: vec![(chunk.id, *location)] }),
        }
    }
    Ok((runs, skip))
}

/// Checkpoints that cannot be used.
pub(super) type Unusable = HashSet<ObjectPath>;
