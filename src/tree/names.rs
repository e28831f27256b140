//! Names and numbers that the fold invents. They depend on nothing but what all devices know.

use cairn_platform_api::{InodeNo, NAME_MAX, VfsName};

use super::DEVICE_NAME_MAX;
use crate::base::{DeviceId, Hlc};

/// A longer extension is taken for a part of the stem.
const EXTENSION_MAX: usize = 32;
/// More of a device's name does not go into a file name.
const DEVICE_MAX: usize = 64;

/// As much of a device's name as a change set takes, cut between characters.
pub(super) fn of_device(name: &str) -> &str {
    &name[..name.floor_boundary(DEVICE_NAME_MAX)]
}

/// The number of the `attempt`th copy that keeps what `device` made of the inode `of`; also its dentry's.
pub(super) fn copy_number(of: InodeNo, device: DeviceId, attempt: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"cairn conflict copy");
    hasher.update(&of.0.to_le_bytes());
    hasher.update(&device.0.to_le_bytes());
    hasher.update(&attempt.to_le_bytes());
    let mut bytes = [0; 8];
    bytes[..5].copy_from_slice(&hasher.finalize().as_bytes()[..5]);
    u64::from(DeviceId::DERIVED.0) << 40 | u64::from_le_bytes(bytes)
}

/// `stem (conflict <device> <UTC time>).ext`; from the second attempt on ` 2`, ` 3`... follow the parenthesis. The stem
/// is cut where the name would be too long, between characters where it is UTF-8.
pub(super) fn conflict_name(name: &VfsName, device: &str, time: Hlc, attempt: u64) -> VfsName {
    let bytes = name.as_bytes();
    let dot = bytes.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0 && bytes.len() - dot <= EXTENSION_MAX);
    let (stem, extension) = bytes.split_at(dot.unwrap_or(bytes.len()));
    let device: String = device.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    let device = &device[..device.floor_boundary(DEVICE_MAX)];
    let mut suffix = format!(" (conflict {device} {})", utc(time));
    if attempt > 0 {
        suffix.push_str(&format!(" {}", attempt + 1));
    }
    let room = NAME_MAX - suffix.len() - extension.len();
    let stem = match std::str::from_utf8(stem) {
        Ok(text) => &stem[..text.floor_boundary(room)],
        Err(_) => &stem[..stem.len().min(room)],
    };
    let name = [stem, suffix.as_bytes(), extension].concat();
    VfsName::new(&name).expect("it is not empty, short enough, and made of a name's bytes")
}

trait FloorBoundary {
    /// The largest character boundary that is not above `limit`.
    fn floor_boundary(&self, limit: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_boundary(&self, limit: usize) -> usize {
        (0..=limit.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// `YYYY-MM-DD HHMMSS`.
fn utc(time: Hlc) -> String {
    let seconds = time.unix_millis() / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}{:02}{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// The date of a day after 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &[u8], attempt: u64) -> Vec<u8> {
        let time = Hlc(1_764_072_000_000 << 16);
        conflict_name(&VfsName::new(name).unwrap(), "lap/top", time, attempt).as_bytes().to_vec()
    }

    #[test]
    fn conflict_names_keep_the_extension() {
        assert_eq!(named(b"a.tar.gz", 0), b"a.tar (conflict lap_top 2025-11-25 120000).gz");
        assert_eq!(named(b".profile", 0), b".profile (conflict lap_top 2025-11-25 120000)");
        assert_eq!(named(b"a.txt", 1), b"a (conflict lap_top 2025-11-25 120000) 2.txt");
        assert_eq!(named(b"a", 2), b"a (conflict lap_top 2025-11-25 120000) 3");
    }

    #[test]
    fn conflict_names_stay_within_the_limit_and_cut_between_characters() {
        let long = named("ä".repeat(126).as_bytes(), 0);
        assert!(long.len() <= NAME_MAX && std::str::from_utf8(&long).is_ok());
        assert_eq!(named(&[0xFF; 255], 0).len(), NAME_MAX);
        assert_eq!(named(&[b'.'; 255], 7).len(), NAME_MAX);
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_454), (2026, 1, 1));
        assert_eq!(utc(Hlc(951_868_799_000 << 16)), "2000-02-29 235959");
    }

    #[test]
    fn copies_have_numbers_of_no_device() {
        let number = copy_number(InodeNo(77), DeviceId(3), 0);
        assert_eq!(number >> 40, 0xFF_FFFF);
        assert_ne!(number, copy_number(InodeNo(77), DeviceId(3), 1));
        assert_ne!(number, copy_number(InodeNo(77), DeviceId(4), 0));
    }
}
