//! Mapped files.
#![expect(unsafe_code, reason = "mapping memory has no safe form")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use super::support::*;

/// A whole file of this length, mapped shared.
pub struct Mapping(*mut u8, usize);

impl Mapping {
    /// To read and write.
    pub fn new(file: &File, length: usize) -> Self {
        Self::with(file, length, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// To read only.
    pub fn to_read(file: &File, length: usize) -> Self {
        Self::with(file, length, ProtFlags::READ)
    }

    fn with(file: &File, length: usize, protection: ProtFlags) -> Self {
        // SAFETY: a fresh mapping where the kernel likes it touches no memory of ours.
        let address = unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) };
        Self(address.unwrap().cast(), length)
    }

    pub fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.1);
        // SAFETY: the range is inside the mapping, which is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len()) }
    }

    pub fn load(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.1);
        // SAFETY: the range is inside the mapping, and nobody cuts the file meanwhile.
        unsafe { std::slice::from_raw_parts(self.0.add(offset), length) }.to_vec()
    }

    pub fn sync(&self) {
        // SAFETY: it is a mapping.
        unsafe { msync(self.0.cast(), self.1, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is a mapping, and nothing refers into it.
        unsafe { munmap(self.0.cast(), self.1) }.unwrap();
    }
}

pub fn stores_to_a_shared_mapping_reach_the_file(dir: &Path) {
    let path = dir.join("file");
    let mut expected = pattern(100_000, 9);
    fs::write(&path, &expected).unwrap();
    let open = reopen(&path);
    let mapping = Mapping::new(&open, expected.len());
    assert!(mapping.load(0, expected.len()) == expected);
    mapping.store(4000, b"across a page border");
    mapping.store(99_995, b"end");
    expected[4000..4020].copy_from_slice(b"across a page border");
    expected[99_995..99_998].copy_from_slice(b"end");
    mapping.sync();
    assert!(fs::read(&path).unwrap() == expected);
    open.write_all_at(b"written", 50_000).unwrap();
    assert_eq!(mapping.load(50_000, 7), b"written");
    expected[50_000..50_007].copy_from_slice(b"written");
    drop(mapping);
    drop(open);
    assert!(fs::read(&path).unwrap() == expected);
}

pub fn a_mapping_outlives_its_descriptor_and_its_name(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, pattern(20_000, 1)).unwrap();
    let mapping = Mapping::new(&reopen(&path), 20_000);
    mapping.store(10_000, b"after close");
    mapping.sync();
    assert_eq!(fs::read(&path).unwrap()[10_000..10_011], *b"after close");
    fs::remove_file(&path).unwrap();
    mapping.store(0, b"after unlink");
    mapping.sync();
    assert_eq!(mapping.load(0, 12), b"after unlink");
}

pub fn a_synced_store_moves_the_modification_time(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, pattern(20_000, 1)).unwrap();
    let open = reopen(&path);
    let mapping = Mapping::new(&open, 20_000);
    age(&path);
    assert_eq!(mtime(&path), 1_000_000_000_000);
    mapping.store(5, b"x");
    mapping.sync();
    assert!(mtime(&path) > 1_000_000_000_000);
    let path = dir.join("new");
    let open = file(&path);
    open.set_len(8192).unwrap();
    let mapping = Mapping::new(&open, 8192);
    age(&path);
    mapping.store(5000, b"x");
    mapping.sync();
    assert!(mtime(&path) > 1_000_000_000_000);
}

pub fn a_page_from_a_mapping_is_not_appended(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, pattern(8192, 2)).unwrap();
    let open = File::options().read(true).append(true).open(&path).unwrap();
    let mapping = Mapping::new(&open, 8192);
    mapping.store(100, b"in place");
    mapping.sync();
    drop(mapping);
    assert_eq!(open.metadata().unwrap().len(), 8192);
    assert_eq!(fs::read(&path).unwrap()[100..108], *b"in place");
}
