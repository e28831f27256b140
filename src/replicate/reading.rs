//! How the content of a file is read for an upload, so that what is published existed as a whole at one time. By one of:
//!
//! - The file *stands still*: its stamp (size and times) is the same before and after it is read, with a sync before each
//!   look.
//! - It is *frozen*: the file system makes a copy that shares its blocks, in one step.
//! - It is *read twice*, as far as it went when that was begun: if the same bytes are there again, all of them were there
//!   when the second reading began. That is how a log is sent that is written all the time. (Bytes that are other bytes in
//!   between and then again what they were are not noticed.)

use std::collections::HashMap;
use std::ops::Range;

use cairn_platform_api::{FsError, InodeNo, Timestamp, VfsResult};

use super::error::ReplicateError;
use crate::cache::Stamp;
use crate::chunk::{ChunkRef, Chunker, Last};
use crate::drive::{ContentReader, FrozenContent, Synced};
use crate::tree::{self, Content, Snapshot};

/// How long a file whose clock has not ticked since it was written is given to do so, in steps.
const FRESH_WAITS: usize = 10;
pub(super) const FRESH_WAIT: std::time::Duration = std::time::Duration::from_millis(20);

/// When a content that was read existed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Existed {
    /// At least as long as the file has this stamp.
    WithStamp(Stamp, Option<Synced>),
    /// At one time, when it had last been modified then. The file may be another since.
    Once(Timestamp),
}

impl Existed {
    /// When it had last been modified then.
    pub(super) fn modified(&self) -> Timestamp {
        match *self {
            Self::WithStamp(stamp, _) => stamp.mtime,
            Self::Once(mtime) => mtime,
        }
    }

    /// What the tree keeps of an upload. No file ever has the stamp of one that was read from a file in motion.
    pub(super) fn snapshot(&self, content: Content) -> Snapshot {
        let stamp = match *self {
            Self::WithStamp(stamp, _) => stamp.into(),
            Self::Once(mtime) => tree::Stamp { size: content.size, mtime, ctime: Timestamp::from_nanos(i64::MIN) },
        };
        Snapshot { content, stamp }
    }
}

/// What a round has of a large file when it stops. The chunks are in the vault.
#[derive(Debug)]
pub(super) enum Part {
    /// The first chunks of the file as long as it has this stamp.
    Standing { stamp: Stamp, chunks: Vec<ChunkRef> },
    /// The first chunks of this; the file began as `base`.
    Frozen { base: Option<Content>, content: FrozenContent, chunks: Vec<ChunkRef> },
    /// Nothing, but how far it is to be read, and how often that was begun.
    ReadTwice { size: u64, begun: u64 },
}

/// The files that rounds have begun and not finished.
pub(super) type Parts = HashMap<InodeNo, Part>;

/// Why reading a file ended before its end.
pub(super) enum CutError {
    /// The file changed.
    Moved,
    /// The slice of this round ends here.
    Suspended,
    Failed(ReplicateError),
}

impl<E: Into<ReplicateError>> From<E> for CutError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What can be read.
pub(super) trait Source {
    /// Fills the buffer from an offset; fewer bytes than asked mean the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> VfsResult<usize>;

    /// Where the next bytes are that are stored; `None` when only a hole follows.
    fn next_data(&self, offset: u64) -> VfsResult<Option<u64>>;
}

impl Source for ContentReader {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> VfsResult<usize> {
        Self::read_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> VfsResult<Option<u64>> {
        Self::next_data(self, offset)
    }
}

impl Source for FrozenContent {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> VfsResult<usize> {
        Self::read_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> VfsResult<Option<u64>> {
        Self::next_data(self, offset)
    }
}

/// Takes a chunk and its bytes.
pub(super) type Visit<'v> = dyn FnMut(ChunkRef, &[u8]) -> Result<(), CutError> + 'v;

/// Cuts what is read of a range, or of that part of it which is there, into chunks; answers where it ended. Holes are not
/// read.
pub(super) fn for_each_chunk(
    chunker: &Chunker,
    buffer: &mut [u8],
    (ino, source): (InodeNo, &dyn Source),
    range: Range<u64>,
    visit: &mut Visit<'_>,
) -> Result<u64, CutError> {
    let zero = chunker.zero_chunk();
    let failed = |source| content_error(ino, source);
    let (mut start, mut end, mut offset) = (0, 0, range.start);
    let mut last = Last::No;
    loop {
        while let Some(length) = chunker.next_cut(&buffer[start..end], last) {
            let piece = &buffer[start..start + length];
            visit(chunker.chunk_ref(piece), piece)?;
            start += length;
        }
        if last == Last::Yes {
            return Ok(offset);
        }
        buffer.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        if buffer[..end].iter().all(|byte| *byte == 0) {
            let position = offset - end as u64;
            let data = source.next_data(position).map_err(failed)?.map_or(range.end, |data| data.min(range.end));
            let holes = data.saturating_sub(position) / u64::from(zero.len);
            if holes > 0 {
                let zeros = vec![0; zero.len as usize];
                (0..holes).try_for_each(|_| visit(zero, &zeros))?;
                (end, offset) = (0, position + holes * u64::from(zero.len));
            }
        }
        let room = buffer.len() - end;
        let wanted = usize::try_from(range.end.saturating_sub(offset)).map_or(room, |rest| rest.min(room));
        let got = source.read_at(&mut buffer[end..end + wanted], offset).map_err(failed)?;
        end += got;
        offset += got as u64;
        if got < wanted || offset >= range.end {
            last = Last::Yes;
        }
    }
}

/// The stamp of a file that stands still, and the sync that it is from before of; `None` when it does not stand still.
pub(super) fn settled_stamp(
    ino: InodeNo,
    reader: &ContentReader,
    synced: Option<Synced>,
) -> Result<Option<(Stamp, Option<Synced>)>, ReplicateError> {
    if let Some(synced) = synced {
        if let Some(stamp) = reader.stamp_since(synced).map_err(|source| content_error(ino, source))? {
            return Ok(Some((stamp, Some(synced))));
        }
    }
    for _ in 0..FRESH_WAITS {
        if let Some(stamp) = reader.stamp().map_err(|source| content_error(ino, source))? {
            return Ok(Some((stamp, None)));
        }
        std::thread::sleep(FRESH_WAIT);
    }
    Ok(None)
}

/// Whether the file still has the stamp that it had before it was read.
pub(super) fn stands_still(
    ino: InodeNo,
    reader: &ContentReader,
    stamp: Stamp,
    synced: Option<Synced>,
) -> Result<(), CutError> {
    let now = match synced {
        Some(synced) => reader.stamp_since(synced),
        None => reader.stamp(),
    };
    match now {
        Ok(Some(now)) if now == stamp => Ok(()),
        Ok(_) => Err(CutError::Moved),
        Err(source) => Err(content_error(ino, source).into()),
    }
}

pub(super) fn content_error(ino: InodeNo, source: FsError) -> ReplicateError {
    ReplicateError::Content { ino: format!("{ino:?}"), source }
}
