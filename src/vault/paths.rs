//! Where the objects of a vault lie.

use crate::base::DeviceId;
use crate::chunk::PackId;
use crate::provider::ObjectPath;

/// The descriptor.
pub const DESCRIPTOR: &str = "cairn.json";
/// Below it lie the key slots.
pub const KEYS: &str = "keys/";
/// Below it lie the packs.
pub const PACKS: &str = "packs/";
/// Below it lie the logs of the devices.
pub const LOG: &str = "log/";
/// Below it lie the checkpoints of the devices.
pub const CHECKPOINTS: &str = "checkpoints/";

/// The descriptor's path.
pub fn descriptor() -> ObjectPath {
    path(DESCRIPTOR.to_owned())
}

/// A key slot.
pub fn key_slot(id: &[u8; 16]) -> ObjectPath {
    path(format!("{KEYS}{}", hex::encode(id)))
}

/// A pack.
pub fn pack(id: &PackId) -> ObjectPath {
    let name = id.to_string();
    path(format!("{PACKS}{}/{name}", &name[..2]))
}

/// A segment of a device's log.
pub fn segment(device: DeviceId, seq: u64) -> ObjectPath {
    path(format!("{}{seq:020}", log(device)))
}

/// A device's log: what to list.
pub fn log(device: DeviceId) -> String {
    format!("{LOG}{device}/")
}

/// A checkpoint of a device.
pub fn checkpoint(device: DeviceId, seq: u64) -> ObjectPath {
    path(format!("{CHECKPOINTS}{device}/{seq:020}"))
}

/// The device and number of a segment's path.
pub fn parse_segment(path: &ObjectPath) -> Option<(DeviceId, u64)> {
    parse_numbered(path, LOG)
}

/// The device and number of a checkpoint's path.
pub fn parse_checkpoint(path: &ObjectPath) -> Option<(DeviceId, u64)> {
    parse_numbered(path, CHECKPOINTS)
}

fn parse_numbered(path: &ObjectPath, prefix: &str) -> Option<(DeviceId, u64)> {
    let (device, seq) = path.as_str().strip_prefix(prefix)?.split_once('/')?;
    let digits = |text: &str, allowed: fn(u8) -> bool| text.bytes().all(allowed);
    if device.len() != 6 || seq.len() != 20 || !digits(seq, |b| b.is_ascii_digit()) {
        return None;
    }
    if !digits(device, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let device = DeviceId(u32::from_str_radix(device, 16).ok()?);
    device.is_valid().then_some((device, seq.parse().ok()?))
}

fn path(text: String) -> ObjectPath {
    ObjectPath::new(&text).expect("hex digits and fixed names make object paths")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_segments_are_read_back_and_sort_by_number() {
        let device = DeviceId(0x00ab_cdef & 0xff_ffff);
        for seq in [0, 1, 9, 10, u64::MAX] {
            assert_eq!(parse_segment(&segment(device, seq)), Some((device, seq)));
            assert_eq!(parse_checkpoint(&checkpoint(device, seq)), Some((device, seq)));
        }
        assert!(segment(device, 9) < segment(device, 10));
    }

    #[test]
    fn other_paths_are_not_segments() {
        for text in [
            "log/abcdef/1",
            "log/ABCDEF/00000000000000000001",
            "log/000000/00000000000000000001",
            "log/abcdef/99999999999999999999",
            "log/abcdef/+0000000000000000001",
            "log/abcdef/00000000000000000001/x",
            "checkpoints/abcdef/00000000000000000001",
        ] {
            assert_eq!(parse_segment(&ObjectPath::new(text).expect("a path")), None, "{text}");
        }
    }
}
