//! The cutting half of an upload: cuts files into chunks, and packs what the vault lacks.
//!
//! Runs on a blocking thread, hands its packs to [`super::send`] through a bounded channel, and stops when that stops. How a
//! content is read so that what is published existed as a whole at one time says [`super::reading`].

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_platform_api::InodeNo;
use tokio::sync::mpsc;

use super::cut::long_manifest;
use super::engine::Engine;
use super::error::ReplicateError;
use super::left::LeftReason;
use super::push::Presence;
use super::reading::{
    CutError, Existed, FRESH_WAIT, Part, Parts, Source, content_error, for_each_chunk, settled_stamp, stands_still,
};
use super::send::{Origin, Produced, ReadFile, SealedPack, Ticket};
use crate::cache::Stamp;
use crate::chunk::{ChunkId, ChunkRef, Compressor, Manifest};
use crate::drive::{ContentReader, Look, Synced};
use crate::provider::error::with_causes;
use crate::tree::Content;
use crate::vault::PackBuilder;

/// How often a file that changes under the reader is read again before it is left for the next round.
const ATTEMPTS: usize = 3;
/// From so many files on, all contents are synced at once rather than each by itself.
const SYNC_TOGETHER: usize = 8;
/// Room for several chunks of the greatest length, so that little is moved to the front of the buffer.
const BUFFERED_CHUNKS: usize = 4;
/// How often reading a file twice may stop at the end of a slice, beyond the slices that it has: it has more of them when
/// it is overwritten meanwhile.
const SPARE_SLICES: u64 = 2;

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileOutcome {
    /// Its content is on the way, or was before this round; it stood still while it was read.
    Whole,
    /// Its content at one time is on the way; finding it took so long.
    Moment { spent: Duration },
    /// Part of it is on the way; the next pass goes on with the rest.
    Begun,
    /// A pull replaced what it began as while it was read or sent; the next pass reads it again.
    Overtaken,
    /// A later round tries again.
    Left(LeftReason),
    /// It has no local content any more.
    Gone,
}

/// Whether a chunk has to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// The vault has it, or a pack of this round.
    Nothing,
    /// It was packed just now.
    Chunk,
}

/// The chunks of a file, as far as it was read, and the packs of this round that hold them.
#[derive(Default)]
struct Gathered {
    chunks: Vec<ChunkRef>,
    needs: BTreeSet<Ticket>,
}

impl Gathered {
    fn from(chunks: Vec<ChunkRef>) -> Self {
        Self { chunks, needs: BTreeSet::new() }
    }

    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
    }
}

/// Takes a chunk and its bytes.
type VisitWith<'v> = dyn FnMut(&mut Cutter, ChunkRef, &[u8]) -> Result<(), CutError> + 'v;

/// Cuts files for one pass.
pub(super) struct Cutter {
    engine: Arc<Engine>,
    produced: mpsc::Sender<Produced>,
    compressor: Compressor,
    builder: PackBuilder,
    ticket: Ticket,
    /// Chunks of packs of this pass, which have no rows yet.
    packed: HashMap<ChunkId, Ticket>,
    parts: Parts,
    synced: Option<Synced>,
    /// Of the file that is taken now.
    origin: Origin,
    buffer: Vec<u8>,
}

impl Cutter {
    pub(super) fn new(
        engine: Arc<Engine>,
        produced: mpsc::Sender<Produced>,
        parts: Parts,
    ) -> Result<Self, ReplicateError> {
        let compressor = engine.vault.compressor()?;
        let builder = engine.vault.pack_builder();
        let buffer = vec![0; BUFFERED_CHUNKS * engine.vault.chunker().params().maximum as usize];
        Ok(Self {
            engine,
            produced,
            compressor,
            builder,
            ticket: Ticket(0),
            packed: HashMap::new(),
            parts,
            synced: None,
            origin: Origin::default(),
            buffer,
        })
    }

    /// Prepares for a batch of so many files.
    pub(super) fn begin(&mut self, files: usize) -> Result<(), ReplicateError> {
        if files >= SYNC_TOGETHER {
            // So that what was written just now is old enough to be told from what is written while it is read.
            std::thread::sleep(FRESH_WAIT * 3);
            self.synced = self.engine.drive.sync_contents()?;
        }
        Ok(())
    }

    /// Takes the content of one file. One that cannot be read does not hold up the others.
    pub(super) fn file(&mut self, ino: InodeNo) -> Result<FileOutcome, ReplicateError> {
        let outcome = match self.take(ino) {
            Err(error @ ReplicateError::Content { .. }) => {
                FileOutcome::Left(LeftReason::Unreadable { message: with_causes(&error) })
            }
            other => other?,
        };
        if outcome != FileOutcome::Begun {
            self.parts.remove(&ino);
        }
        Ok(outcome)
    }

    fn take(&mut self, ino: InodeNo) -> Result<FileOutcome, ReplicateError> {
        // What goes on from an earlier pass gets one attempt: it must not begin again for ever.
        let attempts = if self.parts.contains_key(&ino) { 1 } else { ATTEMPTS };
        for _ in 0..attempts {
            // Before the file is opened: what is read is of this content or of one that came later.
            self.origin = self.engine.origin(ino)?;
            let opened = self.engine.drive.open_content(ino).map_err(|source| content_error(ino, source))?;
            let Some(reader) = opened else {
                return Ok(FileOutcome::Gone);
            };
            let standing = match (settled_stamp(ino, &reader, self.synced)?, self.parts.get(&ino)) {
                (Some((stamp, synced)), None) => self.take_standing(ino, &reader, stamp, synced),
                (Some((stamp, synced)), Some(Part::Standing { stamp: then, .. })) if *then == stamp => {
                    self.take_standing(ino, &reader, stamp, synced)
                }
                _ => Err(CutError::Moved),
            };
            let taken = match standing {
                Err(CutError::Moved) => self.take_moment(ino, &reader),
                other => other,
            };
            match taken {
                Ok(outcome) => return Ok(outcome),
                Err(CutError::Moved) => {}
                Err(CutError::Suspended) => return Ok(FileOutcome::Begun),
                Err(CutError::Failed(error)) => return Err(error),
            }
        }
        Ok(FileOutcome::Left(LeftReason::Restless))
    }

    /// Takes the content of a file that stands still.
    fn take_standing(
        &mut self,
        ino: InodeNo,
        reader: &ContentReader,
        stamp: Stamp,
        synced: Option<Synced>,
    ) -> Result<FileOutcome, CutError> {
        if let Some(snapshot) = self.engine.tree.snapshot(ino)? {
            if Stamp::from(snapshot.stamp) == stamp {
                self.engine.say_uploaded(ino, snapshot.content, stamp, synced)?;
                return Ok(FileOutcome::Whole);
            }
        }
        let begun = match self.parts.remove(&ino) {
            Some(Part::Standing { chunks, .. }) => chunks,
            _ => Vec::new(),
        };
        let mut gathered = Gathered::from(begun);
        let read = self.gather(ino, (reader, stamp.size), &mut gathered);
        self.engine.failpoints.pass("push.in_read")?;
        if !matches!(read, Err(CutError::Failed(_))) {
            stands_still(ino, reader, stamp, synced)?;
        }
        if matches!(read, Err(CutError::Suspended)) {
            self.parts.insert(ino, Part::Standing { stamp, chunks: std::mem::take(&mut gathered.chunks) });
        }
        read?;
        self.finish_file(ino, gathered, Existed::WithStamp(stamp, synced))?;
        Ok(FileOutcome::Whole)
    }

    /// Takes what the content of a file in motion was at one time.
    fn take_moment(&mut self, ino: InodeNo, reader: &ContentReader) -> Result<FileOutcome, CutError> {
        let begun = Instant::now();
        let (content, chunks) = match self.parts.remove(&ino) {
            Some(Part::Frozen { base, content, chunks }) if base == self.origin.base => (content, chunks),
            other => match reader.freeze().map_err(|source| content_error(ino, source))? {
                Some(content) => (content, Vec::new()),
                None => return self.take_twice(ino, reader, other),
            },
        };
        let spent = begun.elapsed();
        let mut gathered = Gathered::from(chunks);
        let Look { size, modified } = content.look();
        let read = self.gather(ino, (&content, size), &mut gathered);
        if matches!(read, Err(CutError::Suspended)) {
            self.parts.insert(
                ino,
                Part::Frozen { base: self.origin.base, content, chunks: std::mem::take(&mut gathered.chunks) },
            );
        }
        read?;
        self.finish_moment(ino, reader, gathered, Existed::Once(modified))?;
        Ok(FileOutcome::Moment { spent })
    }

    /// Takes a file that is read twice and found the same.
    fn take_twice(
        &mut self,
        ino: InodeNo,
        reader: &ContentReader,
        part: Option<Part>,
    ) -> Result<FileOutcome, CutError> {
        let begun = Instant::now();
        let (size, times) = match part {
            Some(Part::ReadTwice { size, begun }) => (size, begun),
            _ => (reader.look().map_err(|source| content_error(ino, source))?.size, 0),
        };
        let mut first = Vec::new();
        let end = self.read(ino, reader, 0..size, &mut |_, chunk, _| {
            first.push(chunk);
            Ok(())
        })?;
        let spent = begun.elapsed();
        // A hole was not read: it was one, and not behind the end, if the file is that long now.
        let now = reader.look().map_err(|source| content_error(ino, source))?;
        if end != size || now.size < size {
            return Err(CutError::Moved);
        }
        self.engine.failpoints.pass("push.in_read")?;
        let slice = self.engine.settings.slice;
        let (mut expected, mut lacking) = (first.iter(), 0_u64);
        let mut gathered = Gathered::default();
        let again = self.read(ino, reader, 0..size, &mut |cutter, chunk, plaintext| {
            if expected.next() != Some(&chunk) {
                return Err(CutError::Moved);
            }
            if lacking >= slice {
                return Err(CutError::Suspended);
            }
            if cutter.chunk(chunk, plaintext, &mut gathered.needs)? == Lack::Chunk {
                lacking += u64::from(chunk.len);
            }
            gathered.chunks.push(chunk);
            Ok(())
        });
        match again {
            Ok(end) if end == size => {}
            Ok(_) => return Err(CutError::Moved),
            Err(CutError::Suspended) if times < size / slice.max(1) + SPARE_SLICES => {
                self.parts.insert(ino, Part::ReadTwice { size, begun: times + 1 });
                return Err(CutError::Suspended);
            }
            Err(CutError::Suspended) => return Err(CutError::Moved),
            Err(error) => return Err(error),
        }
        self.finish_moment(ino, reader, gathered, Existed::Once(now.modified))?;
        Ok(FileOutcome::Moment { spent })
    }

    /// What is published of a file must be durable here, or be followed by something that is: after a loss of power the file
    /// is what this device has to say.
    fn finish_moment(
        &mut self,
        ino: InodeNo,
        reader: &ContentReader,
        gathered: Gathered,
        existed: Existed,
    ) -> Result<(), CutError> {
        reader.sync().map_err(|source| content_error(ino, source))?;
        Ok(self.finish_file(ino, gathered, existed)?)
    }

    fn finish_file(&mut self, ino: InodeNo, gathered: Gathered, existed: Existed) -> Result<(), ReplicateError> {
        let Gathered { chunks, mut needs } = gathered;
        let manifest = Manifest::new(chunks);
        if let Some((chunks, encoded)) = long_manifest(self.engine.vault.chunker(), &manifest) {
            let mut rest = encoded.as_slice();
            for chunk in chunks {
                let (plaintext, after) = rest.split_at(chunk.len as usize);
                self.chunk(chunk, plaintext, &mut needs)?;
                rest = after;
            }
        }
        let content = Content { size: manifest.size, id: manifest.content_id(self.engine.vault.keys()) };
        let origin = self.origin.clone();
        self.produce(Produced::File(Box::new(ReadFile { ino, origin, content, existed, manifest, needs })))
    }

    /// Sends the last pack of the pass; what is begun and not finished is handed back.
    pub(super) fn finish(mut self) -> Result<Parts, ReplicateError> {
        self.close_pack()?;
        Ok(self.parts)
    }

    /// Reads on, as far as a slice goes, and makes sure that the chunks are in the vault.
    fn gather(
        &mut self,
        ino: InodeNo,
        (source, size): (&dyn Source, u64),
        gathered: &mut Gathered,
    ) -> Result<(), CutError> {
        let slice = self.engine.settings.slice;
        let mut taken = 0_u64;
        self.read(ino, source, gathered.bytes()..size, &mut |cutter, chunk, plaintext| {
            if taken >= slice {
                return Err(CutError::Suspended);
            }
            if !cutter.engine.vault.chunker().is_zero_chunk(&chunk.id) {
                taken += u64::from(chunk.len);
            }
            cutter.chunk(chunk, plaintext, &mut gathered.needs)?;
            gathered.chunks.push(chunk);
            Ok(())
        })?;
        Ok(())
    }

    fn read(
        &mut self,
        ino: InodeNo,
        source: &dyn Source,
        range: Range<u64>,
        visit: &mut VisitWith<'_>,
    ) -> Result<u64, CutError> {
        let engine = Arc::clone(&self.engine);
        let mut buffer = std::mem::take(&mut self.buffer);
        let visit = &mut |chunk, plaintext: &[u8]| visit(self, chunk, plaintext);
        let result = for_each_chunk(engine.vault.chunker(), &mut buffer, (ino, source), range, visit);
        self.buffer = buffer;
        result
    }

    /// Makes sure that a chunk is in the vault, or in a pack of this pass.
    fn chunk(
        &mut self,
        chunk: ChunkRef,
        plaintext: &[u8],
        needs: &mut BTreeSet<Ticket>,
    ) -> Result<Lack, ReplicateError> {
        if let Some(ticket) = self.packed.get(&chunk.id) {
            needs.insert(*ticket);
            return Ok(Lack::Nothing);
        }
        if let Some(location) = self.engine.tree.chunk_location(&chunk.id)? {
            if self.engine.presence_of(location.pack)? == Presence::There {
                return Ok(Lack::Nothing);
            }
        }
        let (encoding, encoded) = self.compressor.compress(plaintext)?;
        self.builder.add(chunk.id, chunk.len, encoding, &encoded);
        self.packed.insert(chunk.id, self.ticket);
        needs.insert(self.ticket);
        if self.builder.is_full() {
            self.close_pack()?;
        }
        Ok(Lack::Chunk)
    }

    fn close_pack(&mut self) -> Result<(), ReplicateError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let builder = std::mem::replace(&mut self.builder, self.engine.vault.pack_builder());
        let pack = builder.finish();
        let ticket = self.ticket;
        self.ticket = Ticket(ticket.0 + 1);
        self.produce(Produced::Pack(SealedPack { ticket, id: pack.id, bytes: pack.bytes, chunks: pack.chunks }))
    }

    /// The sending half closes the channel when it has failed, and says itself why.
    fn produce(&self, produced: Produced) -> Result<(), ReplicateError> {
        self.produced.blocking_send(produced).map_err(|_| ReplicateError::Interrupted)
    }
}
