//! Rows, as they lie on this machine's disk: what is accepted is read back as it was meant.
#![no_main]

use cairnfs::cache::CacheRow;
use cairnfs::tree::InodeRow;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(row) = InodeRow::decode(data) {
        assert_eq!(InodeRow::decode(&row.encode()), Ok(row));
    }
    if let Ok(row) = CacheRow::decode(data) {
        assert_eq!(CacheRow::decode(&row.encode()), Ok(row));
    }
});
