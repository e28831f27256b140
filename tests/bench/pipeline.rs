//! How fast content becomes packs, in memory, on one core: each stage alone, then all of them as an upload runs them.
//!
//! `cargo bench --bench pipeline [-- --mib N] [--json]`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use cairnfs::chunk::{ChunkRef, Chunker, ChunkerParams, Compressor, Encoding, Last, PackId};
use cairnfs::crypto::{Cipher, Place, Purpose, Randomness, SeededRandomness, SystemRandomness, VaultId, VaultKeys};
use cairnfs::vault::PackBuilder;

const LEVEL: i32 = 3;
const PACK_TARGET: usize = 16 << 20;

fn main() -> Result<()> {
    let (mut mib, mut json) = (256, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--mib" => mib = arguments.next().context("--mib needs a number")?.parse().context("--mib")?,
            "--json" => json = true,
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown argument {other:?}"),
        }
    }
    let mut noise = vec![0; mib << 20];
    SeededRandomness::new("pipeline").fill(&mut noise);
    let text = text(noise.len() / 4);
    let mut report = Report { rows: Vec::new() };
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm] {
        measure(&mut report, cipher, &noise)?;
    }
    let keys = keys(Cipher::default());
    let chunker = Chunker::new(&keys, ChunkerParams::default())?;
    report.time("text: whole", text.len(), || whole(&keys, &chunker, &text))??;
    let zeros = vec![0; noise.len()];
    report.time("zeros: cut+hash", zeros.len(), || {
        cut(&chunker, &zeros, |chunk| _ = black_box(chunker.chunk_ref(chunk)))
    })?;
    report.print(json)
}

fn keys(cipher: Cipher) -> VaultKeys {
    VaultKeys::new(&[1; 32], VaultId::from_bytes([2; 16]), cipher, Arc::new(SystemRandomness))
}

/// Lines as in a log: they compress to about a quarter.
fn text(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len / 40 + 8];
    SeededRandomness::new("text").fill(&mut noise);
    let mut text = Vec::with_capacity(len + 64);
    for bytes in noise.windows(4) {
        text.extend_from_slice(format!("2026-01-01 request {:?} took {} ms\n", &bytes[..3], bytes[3]).as_bytes());
        if text.len() >= len {
            break;
        }
    }
    text
}

fn measure(report: &mut Report, cipher: Cipher, content: &[u8]) -> Result<()> {
    let keys = keys(cipher);
    let chunker = Chunker::new(&keys, ChunkerParams::default())?;
    let len = content.len();
    if cipher == Cipher::default() {
        report.time("cut", len, || cut(&chunker, content, |chunk| _ = black_box(chunk)))?;
        report.time("hash (chunk id)", len, || cut_fixed(content, |chunk| _ = black_box(chunker.chunk_ref(chunk))))?;
        let mut compressor = Compressor::new(LEVEL)?;
        report.time("compress (bypass)", len, || {
            cut_fixed(content, |chunk| _ = black_box(compressor.compress(chunk).map(|(encoding, _)| encoding)));
        })?;
        report.time("hash (pack id)", len, || {
            content.chunks(PACK_TARGET).for_each(|pack| _ = black_box(PackId::of(pack)))
        })?;
    }
    let mut frame = Vec::with_capacity(2 << 20);
    report.time(&format!("seal, {cipher}"), len, || {
        cut_fixed(content, |chunk| {
            frame.clear();
            let place = Place { purpose: Purpose::Chunk, epoch: 1, position: 0, context: &[] };
            keys.seal(&place, &[chunk], &mut frame);
        });
    })?;
    report.time(&format!("seal+pack, {cipher}"), len, || {
        let mut builder = PackBuilder::new(keys.clone(), PACK_TARGET);
        let chunk_ref = chunker.zero_chunk();
        cut_fixed(content, |chunk| add(&keys, &mut builder, chunk_ref, Encoding::Raw, chunk));
        black_box(builder.finish());
    })?;
    report.time(&format!("whole, {cipher}"), len, || whole(&keys, &chunker, content))?
}

fn cut(chunker: &Chunker, mut content: &[u8], mut visit: impl FnMut(&[u8])) {
    while let Some(end) = chunker.next_cut(content, Last::Yes) {
        let (chunk, rest) = content.split_at(end);
        visit(chunk);
        content = rest;
    }
}

/// Pieces of the average length of a chunk, for the stages that come after the cut.
fn cut_fixed(content: &[u8], visit: impl FnMut(&[u8])) {
    content.chunks(512 << 10).for_each(visit);
}

fn add(keys: &VaultKeys, builder: &mut PackBuilder, chunk: ChunkRef, encoding: Encoding, encoded: &[u8]) {
    builder.add(chunk.id, chunk.len, encoding, encoded);
    if builder.is_full() {
        black_box(std::mem::replace(builder, PackBuilder::new(keys.clone(), PACK_TARGET)).finish());
    }
}

fn whole(keys: &VaultKeys, chunker: &Chunker, content: &[u8]) -> Result<()> {
    let mut compressor = Compressor::new(LEVEL)?;
    let mut builder = PackBuilder::new(keys.clone(), PACK_TARGET);
    let mut failed = None;
    cut(chunker, content, |chunk| {
        let chunk_ref = chunker.chunk_ref(chunk);
        match compressor.compress(chunk) {
            Ok((encoding, encoded)) => add(keys, &mut builder, chunk_ref, encoding, &encoded),
            Err(error) => failed = Some(error),
        }
    });
    black_box(builder.finish());
    failed.map_or(Ok(()), |error| Err(error.into()))
}

struct Report {
    rows: Vec<(String, f64)>,
}

impl Report {
    /// The best of three runs: what else the machine does only ever makes a run slower.
    fn time<T>(&mut self, name: &str, len: usize, mut run: impl FnMut() -> T) -> Result<T> {
        let mut best = f64::INFINITY;
        let mut result = None;
        for _ in 0..3 {
            let start = Instant::now();
            result = Some(run());
            best = best.min(start.elapsed().as_secs_f64());
        }
        self.rows.push((name.to_owned(), len as f64 / 1e6 / best));
        result.context("three runs give a result")
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            let rows: Vec<_> = self
                .rows
                .iter()
                .map(|(name, rate)| serde_json::json!({ "stage": name, "mb_per_s": rate.round() }))
                .collect();
            println!("{}", serde_json::to_string(&rows)?);
            return Ok(());
        }
        println!("{:<32} {:>8}", "stage, one core", "MB/s");
        for (name, rate) in &self.rows {
            println!("{name:<32} {rate:>8.0}");
        }
        Ok(())
    }
}
