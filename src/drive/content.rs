//! Reading content that is not here: whole chunks, some ahead of the reader, never under a lock and never on the thread of
//! a request.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cairn_platform_api::{FsError, VfsResult};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::inner::Inner;
use super::layout::{Layout, Piece};
use super::node::{Claims, NodeRef};
use crate::base::os;

/// A reader that goes on where it stopped gets twice as many chunks ahead each time, up to this many: with chunks of
/// 512 KiB that is 4 MiB, the product of 300 Mbit/s and 100 ms.
const WINDOW_MAX: u32 = 8;
/// Chunks that may be on their way at once for all files that are being made local: some 64 MiB.
pub(super) const HYDRATING_MAX: usize = 64;
/// The unit in which bytes read ahead are counted.
pub(super) const READ_AHEAD_UNIT: u64 = 64 * 1024;

/// Where a handle has been reading.
#[derive(Debug, Default)]
pub(super) struct Progress {
    next: u64,
    window: u32,
}

impl Progress {
    /// Notes a read and says how many chunks to fetch ahead of its end.
    pub(super) fn note(&mut self, range: &Range<u64>) -> u32 {
        self.window = if range.start == self.next { (self.window * 2).clamp(1, WINDOW_MAX) } else { 0 };
        self.next = range.end;
        self.window
    }
}

impl Inner {
    /// Reads a range of a partial file. `ahead` more chunks are fetched in the background.
    pub(super) async fn read_partial(
        self: Arc<Self>,
        node: NodeRef,
        range: Range<u64>,
        ahead: u32,
    ) -> VfsResult<Vec<u8>> {
        let node = match self.prepared(node.clone()).await {
            // What is fetched cannot be kept, and is handed out.
            Err(FsError::NoSpace | FsError::QuotaExceeded) => node,
            prepared => prepared?,
        };
        let missing = node.body.lock().missing(range.clone());
        if missing.is_empty() {
            return read_present(&node, range);
        }
        let layout = self.layout(&node)?;
        let end = missing.last().map_or(range.end, |last| last.end);
        let mut wanted: Vec<Piece> = Vec::new();
        for gap in missing {
            wanted.extend(layout.covering(gap));
        }
        wanted.dedup();
        if node.file.get().is_some() {
            self.read_ahead(&node, &layout, end, ahead);
        }
        let fetched = tokio::time::timeout(self.settings.read_deadline, self.fetch(&node, wanted)).await;
        let pieces = fetched.map_err(|_| {
            tracing::warn!(ino = node.ino.0, "reading a remote content took longer than its deadline");
            FsError::Io
        })??;
        self.blocking(move || compose(&node, range, &pieces)).await
    }

    /// Fetches what is missing of the first bytes of a content, a few chunks at a time.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] where there is no room for it; [`FsError::Io`] where a chunk does not come within its deadline.
    pub(super) async fn hydrate(self: &Arc<Self>, node: &NodeRef, end: u64) -> VfsResult<()> {
        let missing = node.body.lock().missing(0..end);
        if missing.is_empty() {
            return Ok(());
        }
        let layout = self.layout(node)?;
        let bytes = missing.into_iter().map(|gap| self.data_in(&layout, gap)).sum();
        let inner = Arc::clone(self);
        self.blocking(move || inner.admit(bytes)).await?;
        let mut pieces = layout.covering(0..end);
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < WINDOW_MAX as usize {
                let Some(piece) = pieces.next() else { break };
                let wanted = piece.range.start..piece.range.end.min(end);
                if !node.body.lock().missing(wanted.clone()).is_empty() {
                    running.push(self.fetch_and_keep(node, piece, wanted));
                }
            }
            match running.next().await {
                Some(result) => result?,
                None => return Ok(()),
            }
        }
    }

    /// How many bytes of a range take room.
    fn data_in(&self, layout: &Layout, range: Range<u64>) -> u64 {
        let pieces = layout.covering(range.clone()).filter(|piece| !self.source.is_hole(&piece.chunk));
        pieces.map(|piece| piece.range.end.min(range.end) - piece.range.start.max(range.start)).sum()
    }

    async fn fetch_and_keep(self: &Arc<Self>, node: &NodeRef, piece: Piece, wanted: Range<u64>) -> VfsResult<()> {
        let _permit = self.hydrating.acquire().await.map_err(|_| FsError::Io)?;
        let fetched = tokio::time::timeout(self.settings.read_deadline, self.fetch(node, vec![piece])).await;
        fetched.map_err(|_| {
            tracing::warn!(ino = node.ino.0, "fetching a remote content took longer than its deadline");
            FsError::Io
        })??;
        if node.body.lock().missing(wanted).is_empty() { Ok(()) } else { Err(FsError::NoSpace) }
    }

    /// Fetches pieces side by side, and keeps each in the backing file as it comes.
    async fn fetch(self: &Arc<Self>, node: &NodeRef, pieces: Vec<Piece>) -> VfsResult<Vec<(Piece, Bytes)>> {
        let mut running: FuturesUnordered<_> = pieces
            .into_iter()
            .map(|piece| {
                let fetch = self.source.fetch(piece.chunk);
                async move { (piece, fetch.await) }
            })
            .collect();
        let mut done = Vec::new();
        while let Some((piece, result)) = running.next().await {
            let bytes = result.map_err(|error| {
                tracing::warn!(ino = node.ino.0, error = %error, "a content cannot be read");
                FsError::Io
            })?;
            if bytes.len() as u64 != piece.range.end - piece.range.start {
                tracing::error!(ino = node.ino.0, chunk = %piece.chunk.id, "a chunk has another length than its list says");
                return Err(FsError::Io);
            }
            let (inner, kept, target) = (Arc::clone(self), (piece.clone(), bytes.clone()), node.clone());
            self.blocking(move || inner.keep(&target, &kept.0, &kept.1)).await?;
            done.push((piece, bytes));
        }
        Ok(done)
    }

    /// Starts fetching the chunks after `from`, as far as the budget for all readers allows.
    fn read_ahead(self: &Arc<Self>, node: &NodeRef, layout: &Layout, from: u64, chunks: u32) {
        let size = node.body.lock().content().map_or(0, |content| content.size);
        for piece in layout.covering(from..size).take(chunks as usize) {
            if node.body.lock().missing(piece.range.clone()).is_empty() {
                continue;
            }
            let Some(permit) = self.read_ahead_permit(piece.range.end - piece.range.start) else { return };
            let (inner, node) = (Arc::clone(self), node.clone());
            self.settings.runtime.spawn(async move {
                let fetched = tokio::time::timeout(inner.settings.read_deadline, inner.fetch(&node, vec![piece])).await;
                if !matches!(fetched, Ok(Ok(_))) {
                    tracing::debug!(ino = node.ino.0, "reading ahead failed");
                }
                drop(permit);
            });
        }
    }

    fn read_ahead_permit(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(READ_AHEAD_UNIT)).ok()?;
        Arc::clone(&self.read_ahead_units).try_acquire_many_owned(units).ok()
    }

    /// Writes the parts of a chunk that are still missing; of a file that became local nothing is. A disk without room for it is not an error: the reader has the
    /// bytes, they are only not kept.
    fn keep(&self, node: &NodeRef, piece: &Piece, bytes: &Bytes) -> VfsResult<()> {
        let Some(file) = node.file.get() else { return Ok(()) };
        let is_hole = bytes.iter().all(|byte| *byte == 0);
        if !is_hole && self.admit(bytes.len() as u64).is_err() {
            return Ok(());
        }
        let mut body = node.body.lock();
        for gap in body.missing(piece.range.clone()) {
            let part = slice(bytes, piece, &gap).ok_or(FsError::Io)?;
            let punched = is_hole && os::punch_hole(file, gap.start, gap.end - gap.start).is_ok();
            match if punched { Ok(()) } else { os::write_all_at(file, part, gap.start) } {
                Ok(()) => body.mark(gap),
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => break,
                Err(error) => return Err(error.into()),
            }
        }
        node.note_completion(&mut body);
        let unsaved = body.published().is_some_and(|published| published.claims == Claims::Unsaved);
        let named = body.orphan.is_none();
        drop(body);
        self.used(node.ino);
        if unsaved && named {
            self.later(node);
            self.bound_chores();
        }
        Ok(())
    }

    /// The chunks of what a partial node's gaps stand for.
    fn layout(&self, node: &NodeRef) -> VfsResult<Arc<Layout>> {
        if let Some(layout) = node.layout.get() {
            return Ok(Arc::clone(layout));
        }
        let content = node.body.lock().content().ok_or(FsError::Io)?;
        let manifest = self.tree.manifest(&content.id).map_err(super::inner::failed)?.ok_or_else(|| {
            tracing::error!(ino = node.ino.0, content = %content.id, "the list of chunks of a content is missing");
            FsError::Io
        })?;
        Ok(Arc::clone(node.layout.get_or_init(|| Arc::new(Layout::new(manifest)))))
    }
}

/// Reads a range of which nothing is missing.
pub(super) fn read_present(node: &NodeRef, range: Range<u64>) -> VfsResult<Vec<u8>> {
    // Only an empty content has no backing file here.
    let Some(file) = node.file.get() else { return Ok(Vec::new()) };
    let mut buffer = vec![0; usize::try_from(range.end - range.start).map_err(|_| FsError::Invalid)?];
    let count = os::read_at(file, &mut buffer, range.start)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// Reads a range whose gaps, if there are any left, are in the pieces.
fn compose(node: &NodeRef, range: Range<u64>, pieces: &[(Piece, Bytes)]) -> VfsResult<Vec<u8>> {
    // A write between the file's bytes and the gaps would mix old and new.
    let body = node.body.lock();
    let mut buffer = match (node.file.get(), body.content()) {
        (None, Some(content)) => vec![0; content.size.min(range.end).saturating_sub(range.start) as usize],
        _ => read_present(node, range.clone())?,
    };
    let end = range.start + buffer.len() as u64;
    for gap in body.missing(range.start..end) {
        for (piece, bytes) in pieces {
            let part = gap.start.max(piece.range.start)..gap.end.min(piece.range.end);
            if part.start >= part.end {
                continue;
            }
            let from = (part.start - range.start) as usize;
            let source = slice(bytes, piece, &part).ok_or(FsError::Io)?;
            buffer.get_mut(from..from + source.len()).ok_or(FsError::Io)?.copy_from_slice(source);
        }
    }
    Ok(buffer)
}

fn slice<'a>(bytes: &'a Bytes, piece: &Piece, part: &Range<u64>) -> Option<&'a [u8]> {
    let from = usize::try_from(part.start.checked_sub(piece.range.start)?).ok()?;
    let to = usize::try_from(part.end.checked_sub(piece.range.start)?).ok()?;
    bytes.get(from..to)
}

/// Whether a node is complete enough for its bytes to be read from the file at once.
pub(super) fn is_present(node: &NodeRef, range: &Range<u64>) -> bool {
    node.complete.load(Ordering::Acquire) || {
        let body = node.body.lock();
        let empty = body.content().is_some_and(|content| content.size == 0);
        (node.file.get().is_some() || empty) && body.missing(range.clone()).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_for_a_sequential_reader_only() {
        let mut progress = Progress::default();
        let windows: Vec<u32> = (0..6).map(|step| progress.note(&(step * 10..step * 10 + 10))).collect();
        assert_eq!(windows, [1, 2, 4, 8, 8, 8]);
        assert_eq!(progress.note(&(500..510)), 0);
        assert_eq!(progress.note(&(510..520)), 1);
    }
}
