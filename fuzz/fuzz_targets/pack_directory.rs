//! Packs whose directory somebody sealed who has the keys.
#![no_main]

use cairnfs::chunk::PackId;
use cairnfs::crypto::{Place, Purpose};
use cairnfs::vault::read_directory;
use cairnfs_fuzz::{keys, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    _ = read_directory(&keys(), &PackId::of(data), data);
    let place = Place { purpose: Purpose::PackDirectory, epoch: 1, position: 16, context: &[] };
    let mut pack = object(b"cairnpck", &place, data);
    let length = (pack.len() - 16) as u32;
    pack.extend_from_slice(&length.to_le_bytes());
    pack.extend_from_slice(b"CPE1");
    _ = read_directory(&keys(), &PackId::of(&pack), &pack);
});
