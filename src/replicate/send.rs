//! The sending half of an upload: packs go out several at a time, and what they carried is recorded as they are
//! acknowledged.
//!
//! Memory is bounded by [`IN_FLIGHT`] packs here, [`QUEUED`] before, and the one or two that the cutting half holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use cairn_platform_api::InodeNo;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::engine::Engine;
use super::error::ReplicateError;
use super::push::Presence;
use super::reading::Existed;
use super::rows;
use super::status::Outcome;
use crate::cache::Stamp;
use crate::chunk::{ChunkId, ChunkLocation, Manifest, PackId};
use crate::drive::Synced;
use crate::provider::PutMode;
use crate::tree::{Content, InodeRow, ManifestRows, Place};
use crate::vault::paths;

/// Packs that are sent at the same time: enough to fill a line with latency, few enough to bound memory.
pub(super) const IN_FLIGHT: usize = 4;
/// Finished packs that wait for a place.
pub(super) const QUEUED: usize = 1;

/// A pack of this round, by the order in which packs were begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// A finished pack.
pub(super) struct SealedPack {
    pub(super) ticket: Ticket,
    pub(super) id: PackId,
    pub(super) bytes: Bytes,
    pub(super) chunks: Vec<(ChunkId, ChunkLocation)>,
}

/// What a file was before it was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    /// The published content that it began as.
    pub(super) base: Option<Content>,
    /// Its name.
    place: Option<Place>,
    /// Who may read it: mode, owner and group.
    access: Option<(u16, u32, u32)>,
}

/// A content that existed as a whole.
pub(super) struct ReadFile {
    pub(super) ino: InodeNo,
    pub(super) origin: Origin,
    pub(super) content: Content,
    pub(super) existed: Existed,
    pub(super) manifest: Manifest,
    /// The packs of this round that hold its chunks.
    pub(super) needs: BTreeSet<Ticket>,
}

/// What the cutting half produces, in order.
pub(super) enum Produced {
    Pack(SealedPack),
    File(Box<ReadFile>),
}

/// What the sending half did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) packs: u64,
    pub(super) files: u64,
    /// Files whose base a pull replaced since they were read: what was read of them cannot be published.
    pub(super) overtaken: Vec<InodeNo>,
}

/// Sends until the cutting half closes the channel. The first failure ends it, after what is on the way has ended.
pub(super) async fn send(engine: Arc<Engine>, mut produced: mpsc::Receiver<Produced>) -> Result<Sent, ReplicateError> {
    let mut sender = Sender { engine, acknowledged: BTreeSet::new(), waiting: Vec::new(), sent: Sent::default() };
    let mut uploads = JoinSet::new();
    let mut failure = None;
    let mut open = true;
    while open || !uploads.is_empty() {
        let result = tokio::select! {
            biased;
            Some(joined) = uploads.join_next(), if !uploads.is_empty() => match joined {
                Ok(uploaded) => sender.finished(uploaded).await,
                Err(panic) => Err(ReplicateError::Panicked(panic.to_string())),
            },
            next = produced.recv(), if open && uploads.len() < IN_FLIGHT => match next {
                Some(Produced::Pack(pack)) => {
                    uploads.spawn(upload(Arc::clone(&sender.engine), pack));
                    Ok(())
                }
                Some(Produced::File(file)) => sender.file(*file).await,
                None => {
                    open = false;
                    Ok(())
                }
            },
        };
        if let Err(error) = result {
            failure.get_or_insert(error);
            open = false;
            produced.close();
        }
    }
    failure.map_or(Ok(sender.sent), Err)
}

type Uploaded = Result<SealedPack, ReplicateError>;

async fn upload(engine: Arc<Engine>, mut pack: SealedPack) -> Uploaded {
    engine.failpoints.pass("push.before_pack")?;
    let body = std::mem::take(&mut pack.bytes);
    let length = body.len() as u64;
    engine.board.sending(length);
    let result = engine.request(engine.provider.put(&paths::pack(&pack.id), body, PutMode::Overwrite)).await;
    engine.board.sent(length, if result.is_ok() { Outcome::Acknowledged } else { Outcome::Failed });
    result?;
    engine.failpoints.pass("push.after_pack")?;
    Ok(pack)
}

struct Sender {
    engine: Arc<Engine>,
    acknowledged: BTreeSet<Ticket>,
    waiting: Vec<ReadFile>,
    sent: Sent,
}

impl Sender {
    async fn finished(&mut self, result: Uploaded) -> Result<(), ReplicateError> {
        let SealedPack { id, ticket, chunks, .. } = result?;
        self.engine.blocking(move |engine| engine.record_pack(id, &chunks)).await?;
        self.acknowledged.insert(ticket);
        self.sent.packs += 1;
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|file| file.needs.is_subset(&self.acknowledged));
        self.waiting = waiting;
        self.record(ready).await
    }

    async fn file(&mut self, file: ReadFile) -> Result<(), ReplicateError> {
        if file.needs.is_subset(&self.acknowledged) {
            return self.record(vec![file]).await;
        }
        self.waiting.push(file);
        Ok(())
    }

    async fn record(&mut self, files: Vec<ReadFile>) -> Result<(), ReplicateError> {
        let read = files.len();
        let overtaken = self.engine.blocking(move |engine| engine.record_files(&files)).await?;
        self.sent.files += (read - overtaken.len()) as u64;
        self.sent.overtaken.extend(overtaken);
        Ok(())
    }
}

impl Engine {
    /// Keeps where the chunks of an acknowledged pack lie, durably: a crash after this does not send it again.
    fn record_pack(&self, pack: PackId, chunks: &[(ChunkId, ChunkLocation)]) -> Result<(), ReplicateError> {
        let mut operation = self.tree.store().operation()?;
        rows::put_pack(&mut operation, pack, chunks);
        operation.commit();
        self.tree.store().flush()?;
        self.known_packs.learn(pack, Presence::There);
        Ok(self.failpoints.pass("push.after_pack_rows")?)
    }

    /// Answers which files were overtaken by a pull.
    fn record_files(&self, files: &[ReadFile]) -> Result<Vec<InodeNo>, ReplicateError> {
        let mut overtaken = Vec::new();
        for file in files {
            if !self.record_file(file)? {
                overtaken.push(file.ino);
            }
        }
        Ok(overtaken)
    }

    /// Answers whether the content can be published.
    fn record_file(&self, file: &ReadFile) -> Result<bool, ReplicateError> {
        let mut operation = self.tree.store().operation()?;
        operation.put_manifest(&file.content.id, &file.manifest);
        operation.commit();
        if !self.tree.set_snapshot_over(file.ino, file.origin.base, &file.existed.snapshot(file.content))? {
            return self.hand_down(file);
        }
        if let Existed::WithStamp(stamp, synced) = file.existed {
            self.say_uploaded(file.ino, file.content, stamp, synced)?;
        }
        self.failpoints.pass("push.after_snapshot")?;
        Ok(true)
    }

    /// What a file is at this moment.
    pub(super) fn origin(&self, ino: InodeNo) -> Result<Origin, ReplicateError> {
        let row = self.tree.inode(ino)?;
        let base = row.as_ref().and_then(|row| row.content.published());
        let place = self.tree.links(ino)?.into_iter().next().map(|link| link.place);
        Ok(Origin { base, place, access: row.as_ref().map(access_of) })
    }

    /// Has a file that replaced the one that was read published with what was read, as what its name meant at one time: where
    /// a file is replaced again and again, none may live long enough to be sent. Answers whether that can be.
    fn hand_down(&self, file: &ReadFile) -> Result<bool, ReplicateError> {
        let Some(place) = &file.origin.place else { return Ok(false) };
        if self.tree.inode(file.ino)?.is_some() {
            return Ok(false);
        }
        let Some(heir) = self.tree.lookup(place.parent, &place.name)? else { return Ok(false) };
        let row = self.tree.inode(heir.ino)?;
        // Others must not get to read it.
        if row.as_ref().map(access_of) != file.origin.access {
            return Ok(false);
        }
        if self.tree.snapshot(heir.ino)?.is_some() {
            return Ok(true);
        }
        let existed = Existed::Once(file.existed.modified());
        Ok(self.tree.set_snapshot_over(heir.ino, None, &existed.snapshot(file.content))?)
    }

    pub(super) fn say_uploaded(
        &self,
        ino: InodeNo,
        content: Content,
        stamp: Stamp,
        synced: Option<Synced>,
    ) -> Result<(), ReplicateError> {
        match synced {
            Some(synced) => self.drive.uploaded_since(ino, content, stamp, synced)?,
            None => self.drive.uploaded(ino, content, stamp)?,
        }
        Ok(())
    }
}

fn access_of(row: &InodeRow) -> (u16, u32, u32) {
    (row.mode, row.uid, row.gid)
}
