//! `cairn.json`: what is accepted is written as it was meant.
#![no_main]

use bytes::Bytes;
use cairnfs::vault::VaultFiles;
use libfuzzer_sys::fuzz_target;

fn files(descriptor: Bytes) -> VaultFiles {
    VaultFiles { remote: "fuzz".to_owned(), descriptor, slots: Vec::new() }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(descriptor) = files(Bytes::copy_from_slice(data)).descriptor() {
        let again = files(descriptor.encode().into()).descriptor().expect("what was accepted is valid");
        assert_eq!(again, descriptor);
    }
});
