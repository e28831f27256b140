//! Where the chunks of a content lie in the file.

use std::ops::Range;

use crate::chunk::{ChunkRef, Manifest};

/// A chunk and the bytes of the file it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) chunk: ChunkRef,
    pub(super) range: Range<u64>,
}

/// The chunks of a content by offset.
#[derive(Debug)]
pub(super) struct Layout {
    /// The end of each chunk.
    ends: Vec<u64>,
    chunks: Vec<ChunkRef>,
}

impl Layout {
    pub(super) fn new(manifest: Manifest) -> Self {
        let mut end = 0;
        let ends = manifest.chunks.iter().map(|chunk| {
            end += u64::from(chunk.len);
            end
        });
        Self { ends: ends.collect(), chunks: manifest.chunks }
    }

    /// The pieces that hold a part of the range, in order.
    pub(super) fn covering(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let first = self.ends.partition_point(|&end| end <= range.start);
        let mut start = first.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.iter().zip(&self.chunks).skip(first).map_while(move |(&end, &chunk)| {
            let piece = Piece { chunk, range: start..end };
            start = end;
            (piece.range.start < range.end).then_some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;

    #[test]
    fn pieces_cover_a_range_and_no_more() {
        let chunk = |id, len| ChunkRef { id: ChunkId([id; 32]), len };
        let chunks = vec![chunk(1, 10), chunk(2, 5), chunk(3, 20)];
        let layout = Layout::new(Manifest { size: 35, chunks });
        let starts = |range| layout.covering(range).map(|piece| piece.range.start).collect::<Vec<_>>();
        assert_eq!(starts(0..35), [0, 10, 15]);
        assert_eq!(starts(9..11), [0, 10]);
        assert_eq!(starts(10..15), [10]);
        assert_eq!(starts(34..99), [15]);
        assert_eq!(starts(35..99), [] as [u64; 0]);
        assert_eq!(layout.covering(14..15).next().map(|piece| piece.range), Some(10..15));
    }
}
