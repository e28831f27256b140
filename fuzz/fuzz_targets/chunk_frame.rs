//! Frames of chunks: damaged, and sealed by somebody who has the keys.
#![no_main]

use cairnfs::chunk::{ChunkId, ChunkLocation, PackId};
use cairnfs::crypto::{Place, Purpose};
use cairnfs::vault::read_chunk;
use cairnfs_fuzz::keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let keys = keys();
    let id = ChunkId([3; 32]);
    let location = |sealed_len| ChunkLocation {
        pack: PackId([4; 32]),
        offset: 16,
        sealed_len,
        plain_len: 1000,
        index: 0,
        epoch: 1,
    };
    assert!(read_chunk(&keys, &id, &location(data.len() as u32), data).is_err());
    let mut frame = Vec::new();
    let place = Place { purpose: Purpose::Chunk, epoch: 1, position: 0, context: &id.0 };
    keys.seal(&place, &[data], &mut frame);
    // The id is that of no bytes the fuzzer can find.
    assert!(read_chunk(&keys, &id, &location(frame.len() as u32), &frame).is_err());
});
