//! Change sets: each has one encoding.
#![no_main]

use cairnfs::tree::ChangeSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(change_set) = ChangeSet::decode(data) {
        assert_eq!(ChangeSet::decode(&change_set.encode()), Ok(change_set));
    }
});
