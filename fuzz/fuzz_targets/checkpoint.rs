//! A checkpoint: its plaintext, and an object that somebody sealed who has the keys.
#![no_main]

use cairnfs::base::DeviceId;
use cairnfs::crypto::{Place, Purpose};
use cairnfs::vault::Checkpoint;
use cairnfs_fuzz::{keys, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::decode(data) {
        assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
    }
    let device = DeviceId(7);
    assert!(Checkpoint::open(&keys(), device, 1, data).is_err());
    let context = device.0.to_le_bytes();
    let place = Place { purpose: Purpose::Checkpoint, epoch: 1, position: 1, context: &context };
    _ = Checkpoint::open(&keys(), device, 1, &object(b"cairnchk", &place, data));
});
