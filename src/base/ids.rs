//! Ids of devices and change sets.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A device of a vault: 24 bits, never 0 (the root directory's number) and never [`DeviceId::DERIVED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// The device part of numbers that the fold derives: it belongs to no device.
    pub const DERIVED: Self = Self(0xFF_FFFF);

    /// The id for these random bits, held to what a device may have.
    pub const fn from_random(bits: u32) -> Self {
        match bits & 0xFF_FFFF {
            0 | 0xFF_FFFF => Self(1),
            id => Self(id),
        }
    }

    /// Whether a device may have this id.
    pub const fn is_valid(self) -> bool {
        self.0 != 0 && self.0 < Self::DERIVED.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// A hybrid logical time: 48 bits of Unix milliseconds, then a 16 bit counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The wall clock part, in milliseconds since 1970.
    pub const fn unix_millis(self) -> u64 {
        self.0 >> 16
    }

    /// The wall clock part.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.unix_millis())
    }
}

/// The id of a change set. Ids are ordered by time, then device; that order is the order of the fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId {
    /// When, by the hybrid clock of the author.
    pub hlc: Hlc,
    /// The author.
    pub device: DeviceId,
}

impl ChangeId {
    /// Twelve bytes, big-endian, that order as ids do.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.hlc.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.device.0.to_be_bytes());
        bytes
    }

    /// The inverse of [`ChangeId::to_bytes`].
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            hlc: Hlc(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            device: DeviceId(u32::from_be_bytes([i, j, k, l])),
        }
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.hlc.0, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_order_as_ids_do_and_round_trip() {
        let id = |hlc, device| ChangeId { hlc: Hlc(hlc), device: DeviceId(device) };
        let ids = [id(1, 9), id(2, 3), id(2, 4), id(256, 1), id(u64::MAX, 1)];
        for pair in ids.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].to_bytes() < pair[1].to_bytes());
        }
        for id in ids {
            assert_eq!(ChangeId::from_bytes(id.to_bytes()), id);
        }
    }

    #[test]
    fn random_device_ids_are_always_valid() {
        for bits in [0, 1, 0xFF_FFFF, 0xFFFF_FFFF, 0xFF00_0000, 77] {
            assert!(DeviceId::from_random(bits).is_valid());
        }
    }
}
