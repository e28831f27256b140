//! Key slots, with a checksum that is right: it keeps nobody out who means harm.
#![no_main]

use cairnfs::crypto::KeySlot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    _ = KeySlot::decode(data);
    let hash = cairnfs::vault::Segment::hash(data);
    _ = KeySlot::decode(&[data, &hash].concat());
});
