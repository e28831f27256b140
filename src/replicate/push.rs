//! A push round: the files that have settled go up, then what changed is cut and goes up as a segment.
//!
//! Order, and what a crash after each step leaves: packs are acknowledged, then become rows (else they are sent again); a
//! file whose packs are all rows becomes a snapshot (else it is read again, and its chunks are found to be there); the cut
//! puts the sealed segment into the outbox in the same commit that says what it published; that commit is made durable
//! before the segment is sent (so the same number never names two segments); a segment that was acknowledged leaves
//! the outbox (else the same bytes are sent again, and found to be there).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_platform_api::{InodeNo, Timestamp};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::cut::CutOutcome;
use super::engine::Engine;
use super::error::ReplicateError;
use super::left::{Left, LeftReason};
use super::reading::Parts;
use super::ready::{HowFar, PushState, Ready, Remaining, Turn};
use super::rows;
use super::send::{self, QUEUED};
use super::settle::Urgency;
use super::status::Outcome;
use super::upload::{Cutter, FileOutcome};
use crate::chunk::PackId;
use crate::provider::{ErrorKind, PutMode, holds};
use crate::tree::keys;
use crate::vault::paths;

/// Why another has written what only this device writes, and what to do.
const USED_TWICE: &str = "its data directory is used twice, or was restored from a backup; copy the files whose \
    `user.cairn.state` is `local` out of the mount, then `cairn detach --discard-unpublished` it and attach the vault again";

/// What a push round did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Packs that were acknowledged.
    pub packs: u64,
    /// Files whose content was read and sent.
    pub files: u64,
    /// Segments that were acknowledged.
    pub segments: u64,
    /// Files that could not be sent because they change all the time, or cannot be read.
    pub left: Left,
    /// Nothing could be published yet, since a checkpoint is to be loaded: what was read is, by the next round.
    pub waits: bool,
    /// How long it took to find out what is ready: rounds that find much to look at are to be rarer.
    pub search: Duration,
}

/// How reading a batch of files ended.
#[derive(Default)]
struct Read {
    outcomes: HashMap<InodeNo, FileOutcome>,
    /// Files that are so large that the next pass goes on with them.
    parts: Parts,
    /// Nothing could be cut yet.
    waits: bool,
}

impl Read {
    fn left(&self) -> BTreeMap<InodeNo, LeftReason> {
        let left = self.outcomes.iter().filter_map(|(ino, outcome)| match outcome {
            FileOutcome::Left(reason) => Some((*ino, reason.clone())),
            _ => None,
        });
        left.collect()
    }

    /// Whether the next pass is to go on with a file.
    fn goes_on(&self, ino: InodeNo) -> bool {
        self.parts.contains_key(&ino) || self.outcomes.get(&ino) == Some(&FileOutcome::Overtaken)
    }
}

/// Whether a pack is on the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Missing,
}

/// Which packs this process stored or looked for. A leaf lock.
#[derive(Debug, Default)]
pub(super) struct KnownPacks(Mutex<HashMap<PackId, Presence>>);

impl KnownPacks {
    pub(super) fn learn(&self, pack: PackId, presence: Presence) {
        self.0.lock().insert(pack, presence);
    }
}

impl Engine {
    /// Sends what is ready, in passes: some files, then what changed. What comes meanwhile is for the next round, unless
    /// somebody waits for it.
    ///
    /// # Errors
    /// When the remote, the files or the rows fail; what was sent stays sent.
    pub async fn push_round(self: &Arc<Self>, urgency: Urgency) -> Result<Pushed, ReplicateError> {
        let mut state = self.push.lock().await;
        let mut pushed = Pushed::default();
        let mut remaining = Remaining::default();
        let mut waiting = rows::outbox_len(&**self.tree.store())? > 0;
        let mut first = true;
        let mut turn = Turn::Everybody;
        loop {
            let begun = Instant::now();
            let pass = self.wanted.begin_pass();
            turn = turn.next(&pass.wanted);
            let ready = self.ready(&mut state, urgency, &mut remaining, (turn, &pass.wanted))?;
            pushed.search = begun.elapsed();
            let is_last = ready.is_last;
            if is_last && pass.wanted.is_empty() && !waiting && !(first && ready.changes) {
                return Ok(pushed);
            }
            if !state.remote_checked {
                self.check_remote().await?;
                state.remote_checked = true;
            }
            (waiting, first) = (false, false);
            self.drive.set_sending(ready.files.iter().map(|file| file.ino).collect());
            let result = self.publish(&ready, &mut state, &mut pushed).await;
            self.drive.set_sending(HashSet::new());
            // Whatever went wrong, the remote may be another one when it is back.
            state.remote_checked = result.is_ok();
            let read = result?;
            let left = read.left();
            self.board.read(&read.outcomes);
            for file in &ready.files {
                remaining.was_read(file.ino, if read.goes_on(file.ino) { HowFar::Partly } else { HowFar::ToTheEnd });
            }
            state.were_read(&ready.files, &read.outcomes, Timestamp::now());
            if read.waits {
                state.parts = read.parts;
                pushed.waits = true;
                return Ok(pushed);
            }
            state.changes.were_cut(self.tree.pending_summary()?.changes);
            self.wanted.end_pass(&pass, &left, |ino| read.goes_on(ino));
            pushed.left.0.extend(left.into_keys());
            let ended = !ready.files.iter().any(|file| read.goes_on(file.ino));
            state.parts = read.parts;
            if is_last && ended && state.parts.is_empty() {
                return Ok(pushed);
            }
        }
    }

    /// Uploads, cuts and sends.
    async fn publish(
        self: &Arc<Self>,
        ready: &Ready,
        state: &mut PushState,
        pushed: &mut Pushed,
    ) -> Result<Read, ReplicateError> {
        pushed.segments += self.send_outbox().await?;
        let mut read = Read { parts: std::mem::take(&mut state.parts), ..Read::default() };
        if !ready.files.is_empty() {
            let batch = ready.files.iter().map(|file| file.ino).collect();
            read = self.upload(batch, read.parts, pushed).await?;
        }
        if !self.may_publish(state).await? {
            read.waits = true;
            return Ok(read);
        }
        loop {
            let outcome = self.blocking(|engine| engine.cut()).await?;
            pushed.segments += self.send_outbox().await?;
            // What changes while this goes on is for the next round.
            if outcome != CutOutcome::More {
                read.waits = outcome == CutOutcome::Waits;
                return Ok(read);
            }
        }
    }

    /// Reads and sends the content of files.
    async fn upload(
        self: &Arc<Self>,
        batch: Vec<InodeNo>,
        parts: Parts,
        pushed: &mut Pushed,
    ) -> Result<Read, ReplicateError> {
        let (sender, receiver) = mpsc::channel(QUEUED);
        let engine = Arc::clone(self);
        let cutting = tokio::task::spawn_blocking(move || {
            let mut cutter = Cutter::new(engine, sender, parts)?;
            cutter.begin(batch.len())?;
            let outcomes = batch.into_iter().map(|ino| Ok((ino, cutter.file(ino)?)));
            let outcomes = outcomes.collect::<Result<_, ReplicateError>>()?;
            Ok(Read { outcomes, parts: cutter.finish()?, waits: false })
        });
        let sent = self.unless_interrupted(send::send(Arc::clone(self), receiver)).await;
        // Ends soon after the sending half: the channel is closed.
        let cut = joined(cutting.await);
        // A sending half that failed makes the cutting half fail too, and knows why.
        let sent = sent?;
        pushed.packs += sent.packs;
        pushed.files += sent.files;
        let mut read: Read = cut?;
        read.outcomes.extend(sent.overtaken.into_iter().map(|ino| (ino, FileOutcome::Overtaken)));
        Ok(read)
    }

    /// Sends the segments that are waiting, in order.
    async fn send_outbox(self: &Arc<Self>) -> Result<u64, ReplicateError> {
        let mut sent = 0;
        while let Some((seq, object)) = rows::first_in_outbox(&**self.tree.store())? {
            // Only what is durable here may be seen by others: otherwise a crash could give its number to something else.
            self.tree.store().flush_later().await?;
            self.failpoints.pass("push.after_flush")?;
            self.send_segment(seq, object).await?;
            self.failpoints.pass("push.after_segment")?;
            self.blocking(move |engine| engine.forget_segment(seq)).await?;
            self.failpoints.pass("push.after_outbox")?;
            sent += 1;
        }
        Ok(sent)
    }

    async fn send_segment(&self, seq: u64, object: Bytes) -> Result<(), ReplicateError> {
        let path = paths::segment(self.tree.device().id, seq);
        let length = object.len() as u64;
        self.board.sending(length);
        let result = self.request(self.provider.put(&path, object.clone(), PutMode::IfAbsent)).await;
        let result = match result {
            Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::AlreadyExists => {
                match self.request(holds(&*self.provider, &path, &object)).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(ReplicateError::Halted(format!(
                        "`{path}` on the remote is not what this drive wrote: {USED_TWICE}"
                    ))),
                    Err(error) => Err(error),
                }
            }
            other => other,
        };
        self.board.sent(length, if result.is_ok() { Outcome::Acknowledged } else { Outcome::Failed });
        result
    }

    /// Makes sure that the remote is the one this drive belongs to, and has what this device sent.
    pub(super) async fn check_remote(&self) -> Result<(), ReplicateError> {
        self.check_descriptor().await?;
        let acknowledged = self.acknowledged()?;
        let own = self.tree.device().id;
        let logs = self.list_what_is_new(HashMap::from([(own, acknowledged)])).await?;
        let newest = logs.get(&own).and_then(|log| log.last_key_value()).map_or(0, |(seq, _)| *seq);
        self.check_own_log(acknowledged, newest)
    }

    /// Makes sure that the vault is this drive's: a disk that is not mounted leaves an empty folder behind.
    pub(super) async fn check_descriptor(&self) -> Result<(), ReplicateError> {
        let path = paths::descriptor();
        let ours = &self.vault.files().descriptor;
        let length = ours.len() as u64;
        let another = || {
            let remote = self.provider.name();
            Err(ReplicateError::Halted(format!("{remote} holds another vault than this drive's")))
        };
        // No more than that, however long it is.
        match self.request(self.provider.get(&path, Some(0..length))).await {
            Ok(descriptor) if descriptor == ours => Ok(()),
            Ok(_) => another(),
            Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::Corrupt => {
                match self.request(self.provider.head(&path)).await? {
                    Some(there) if there.size < length => another(),
                    _ => Err(error.into()),
                }
            }
            Err(ReplicateError::Provider(error)) if error.kind == ErrorKind::NotFound => {
                let remote = self.provider.name();
                Err(ReplicateError::Halted(format!(
                    "there is no vault at {remote} any more; if it is on another disk, is that mounted?"
                )))
            }
            Err(error) => Err(error),
        }
    }

    /// The last segment of this device that the remote is known to have.
    pub(super) fn acknowledged(&self) -> Result<u64, ReplicateError> {
        let written = rows::log_head(&**self.tree.store())?.seq;
        Ok(rows::first_in_outbox(&**self.tree.store())?.map_or(written, |(seq, _)| seq - 1))
    }

    /// `newest` is the last segment of this device in a listing, `acknowledged` the last it was known to have before.
    pub(super) fn check_own_log(&self, acknowledged: u64, newest: u64) -> Result<(), ReplicateError> {
        let written = rows::log_head(&**self.tree.store())?.seq;
        if newest > written {
            return Err(ReplicateError::Halted(format!(
                "the remote has segment {newest} of this device, which wrote {written}: {USED_TWICE}"
            )));
        }
        if newest < acknowledged {
            return Err(ReplicateError::Halted(format!(
                "the remote lost segments of this device: it has {newest} of {acknowledged}; restore it from a replica"
            )));
        }
        Ok(())
    }

    /// Whether a pack that rows name is really there; asked once in the life of a process. On a blocking thread.
    pub(super) fn presence_of(&self, pack: PackId) -> Result<Presence, ReplicateError> {
        let known = self.known_packs.0.lock().get(&pack).copied();
        if let Some(presence) = known {
            return Ok(presence);
        }
        let path = paths::pack(&pack);
        let presence = match self.runtime.block_on(self.request(self.provider.head(&path)))? {
            Some(_) => Presence::There,
            None => {
                tracing::error!(%path, "a pack is missing on the remote; what of it is here is sent again");
                Presence::Missing
            }
        };
        self.known_packs.learn(pack, presence);
        Ok(presence)
    }

    fn forget_segment(&self, seq: u64) -> Result<(), ReplicateError> {
        let mut operation = self.tree.store().operation()?;
        operation.delete(&keys::outbox(seq));
        operation.commit();
        Ok(())
    }
}

fn joined<T>(result: Result<Result<T, ReplicateError>, tokio::task::JoinError>) -> Result<T, ReplicateError> {
    result.unwrap_or_else(|error| Err(ReplicateError::Panicked(error.to_string())))
}
