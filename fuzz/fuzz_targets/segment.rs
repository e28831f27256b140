//! A segment: its plaintext, and an object that somebody sealed who has the keys.
#![no_main]

use cairnfs::base::DeviceId;
use cairnfs::crypto::{Place, Purpose};
use cairnfs::vault::Segment;
use cairnfs_fuzz::{keys, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(segment) = Segment::decode(data) {
        assert_eq!(Segment::decode(&segment.encode()), Ok(segment));
    }
    let device = DeviceId(7);
    assert!(Segment::open(&keys(), device, 1, data).is_err());
    let context = device.0.to_le_bytes();
    let place = Place { purpose: Purpose::Segment, epoch: 1, position: 1, context: &context };
    _ = Segment::open(&keys(), device, 1, &object(b"cairnseg", &place, data));
});
