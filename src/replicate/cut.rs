//! Makes segments of what can be published. In memory only, on a blocking thread; sending is [`super::push`]'s.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::engine::Engine;
use super::error::ReplicateError;
use super::rows::{self, LogHead};
use crate::chunk::{ChunkRef, Chunker, ContentId, Last, Manifest};
use crate::store::Exclusive;
use crate::tree::{ChangeSet, TreeError};
use crate::vault::{ManifestRef, Segment};

/// Chunks that one segment places, about 1 MB of it; more are placed by segments of their own before.
const CHUNKS_MAX: usize = 20_000;

/// Whether a cut put something into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutOutcome {
    /// A segment, and there is more.
    More,
    /// A segment with all there was.
    Last,
    /// There was nothing to publish.
    Nothing,
    /// A checkpoint is being loaded: nothing can be published before.
    Waits,
}

impl Engine {
    /// Puts one segment into the outbox, if there is anything to publish.
    pub(super) fn cut(&self) -> Result<CutOutcome, ReplicateError> {
        if rows::packs(&**self.tree.store(), CHUNKS_MAX)?.chunks.len() >= CHUNKS_MAX {
            let mut bulk = self.tree.store().exclusive()?;
            self.seal(None, &mut bulk)?;
            bulk.commit();
            return Ok(CutOutcome::More);
        }
        let cut = self.tree.cut(
            &mut |ino, snapshot| self.drive.still_clean(ino, snapshot),
            |change_set, bulk| -> Result<(), ReplicateError> {
                self.failpoints.pass("push.in_cut")?;
                self.seal(Some(change_set), bulk)
            },
        );
        if let Err(ReplicateError::Tree(TreeError::Joining)) = cut {
            return Ok(CutOutcome::Waits);
        }
        let Some(cut) = cut? else { return Ok(CutOutcome::Nothing) };
        self.failpoints.pass("push.after_cut")?;
        self.drive.apply_touched(&cut.touched);
        Ok(if cut.more { CutOutcome::More } else { CutOutcome::Last })
    }

    fn seal(&self, change_set: Option<&ChangeSet>, bulk: &mut Exclusive<'_>) -> Result<(), ReplicateError> {
        let before = rows::log_head(&*bulk)?;
        let packs = rows::packs(&*bulk, CHUNKS_MAX)?;
        let contents: BTreeSet<ContentId> =
            change_set.iter().flat_map(|set| set.contents()).map(|content| content.id).collect();
        let manifests = contents.into_iter().map(|id| Ok((id, self.manifest_ref(&id)?)));
        let seen = rows::log_cursors(&*bulk)?.into_iter().map(|(device, cursor)| (device, cursor.seq)).collect();
        let device = self.tree.device();
        let segment = Segment {
            device: device.id,
            seq: before.seq + 1,
            previous: before.hash,
            seen,
            device_name: device.name.clone(),
            change_sets: change_set.iter().map(|set| Bytes::from(set.encode())).collect(),
            manifests: manifests.collect::<Result<_, ReplicateError>>()?,
            chunks: packs.chunks.clone(),
        };
        let (object, hash) = segment.seal(self.vault.keys())?;
        rows::put_segment(bulk, &LogHead { seq: segment.seq, hash }, object, &packs)?;
        Ok(())
    }

    /// How a segment names a content's list of chunks. The chunks of a long one were packed when the content was.
    fn manifest_ref(&self, id: &ContentId) -> Result<ManifestRef, ReplicateError> {
        let missing = || ReplicateError::Halted(format!("the database lost the list of chunks of {id:?}"));
        let Some(manifest) = self.tree.manifest(id)? else {
            // It came from another device, and could not be read here.
            let list = self.tree.wanted_list(id)?.ok_or_else(missing)?;
            return Ok(ManifestRef::Chunked(list));
        };
        Ok(match long_manifest(self.vault.chunker(), &manifest) {
            Some((chunks, _)) => ManifestRef::Chunked(Manifest::new(chunks)),
            None => ManifestRef::Inline(manifest),
        })
    }
}

/// The chunks of a list of chunks that is too long to travel in a segment, and the encoded list. The same list is always
/// cut the same way.
pub(super) fn long_manifest(chunker: &Chunker, manifest: &Manifest) -> Option<(Vec<ChunkRef>, Vec<u8>)> {
    let encoded = manifest.encode();
    if encoded.len() <= Manifest::INLINE_MAX {
        return None;
    }
    let mut chunks = Vec::new();
    let mut rest = encoded.as_slice();
    while let Some(length) = chunker.next_cut(rest, Last::Yes) {
        let (chunk, after) = rest.split_at(length);
        chunks.push(chunker.chunk_ref(chunk));
        rest = after;
    }
    Some((chunks, encoded))
}
