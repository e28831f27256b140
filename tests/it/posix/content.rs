//! Reading, writing, allocating and copying.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom as Look};
use rustix::io::Errno;

use super::support::*;

pub fn what_was_written_is_read(dir: &Path) {
    let bytes = pattern(3_000_001, 3);
    fs::write(dir.join("file"), &bytes).unwrap();
    assert!(fs::read(dir.join("file")).unwrap() == bytes);
    let open = reopen(&dir.join("file"));
    for offset in [0, 1, 4095, 4096, 131_071, 1_048_577, 2_999_990] {
        let mut part = [0; 11];
        open.read_exact_at(&mut part, offset).unwrap();
        assert_eq!(part, bytes[offset as usize..offset as usize + 11]);
    }
}

pub fn writes_of_any_size_land_where_they_belong(dir: &Path) {
    let open = file(&dir.join("file"));
    let mut expected = vec![0; 300_000];
    for (step, length) in [1, 4095, 4096, 4097, 70_000, 131_072].into_iter().cycle().take(60).enumerate() {
        let offset = step * 7919 % (expected.len() - length);
        let bytes = pattern(length, step as u32);
        open.write_all_at(&bytes, offset as u64).unwrap();
        expected[offset..offset + length].copy_from_slice(&bytes);
    }
    let length = open.metadata().unwrap().len() as usize;
    assert!(fs::read(dir.join("file")).unwrap() == expected[..length]);
}

pub fn append_writes_go_to_the_end(dir: &Path) {
    let path = dir.join("log");
    let open = || File::options().append(true).create(true).open(&path).unwrap();
    let (mut one, mut two) = (open(), open());
    for _ in 0..50 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n".repeat(50));
}

pub fn appends_of_many_writers_are_all_kept(dir: &Path) {
    let path = dir.join("log");
    file(&path);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                // Half of them can read too: those take another way through the driver.
                let mut log = File::options().append(true).read(writer % 2 == 0).open(path).unwrap();
                for _ in 0..100 {
                    log.write_all(format!("{writer}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let log = fs::read_to_string(&path).unwrap();
    for writer in 0..4 {
        assert_eq!(log.lines().filter(|line| *line == writer.to_string()).count(), 100);
    }
    assert_eq!(log.len(), 800);
}

pub fn opening_with_truncation_empties(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, pattern(9000, 1)).unwrap();
    let reader = File::open(&path).unwrap();
    let mut writer = File::create(&path).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 0);
    writer.write_all(b"short").unwrap();
    let mut bytes = Vec::new();
    (&reader).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"short");
}

pub fn a_handle_does_only_what_it_was_opened_for(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, b"content").unwrap();
    fails_io(File::open(&path).unwrap().write(b"x"), Errno::BADF);
    fails_io(File::options().write(true).open(&path).unwrap().read(&mut [0]), Errno::BADF);
    fails_io(File::open(&path).unwrap().set_len(0), Errno::INVAL);
}

pub fn two_handles_see_each_others_writes(dir: &Path) {
    let path = dir.join("file");
    let (one, two) = (file(&path), reopen(&path));
    for round in 0..50_u64 {
        one.write_all_at(&round.to_le_bytes(), 4090).unwrap();
        let mut bytes = [0; 8];
        two.read_exact_at(&mut bytes, 4090).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), round);
    }
    let late = File::open(&path).unwrap();
    let mut bytes = [0; 8];
    late.read_exact_at(&mut bytes, 4090).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 49);
}

pub fn reading_and_writing_go_on_after_a_reopen(dir: &Path) {
    let path = dir.join("file");
    for round in 0..30_u32 {
        let bytes = pattern(10_000 + round as usize, round);
        if round % 3 == 0 {
            fs::write(&path, &bytes).unwrap();
        } else {
            let open = reopen(&path);
            open.write_all_at(&bytes, 0).unwrap();
            open.set_len(bytes.len() as u64).unwrap();
        }
        assert!(fs::read(&path).unwrap() == bytes, "round {round}");
    }
}

pub fn fsync_of_files_and_directories_succeeds(dir: &Path) {
    let open = file(&dir.join("file"));
    open.write_all_at(b"x", 0).unwrap();
    open.sync_all().unwrap();
    open.sync_data().unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
}

pub fn fallocate_reserves(dir: &Path) {
    let open = file(&dir.join("file"));
    open.write_all_at(b"content", 0).unwrap();
    rustix::fs::fallocate(&open, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    let meta = open.metadata().unwrap();
    assert_eq!(meta.len(), 7);
    assert!(meta.blocks() * 512 >= 1 << 20);
    rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 2 << 20);
    let bytes = fs::read(dir.join("file")).unwrap();
    assert!(bytes.starts_with(b"content\0") && bytes[7..].iter().all(|b| *b == 0));
}

pub fn fallocate_punches_holes(dir: &Path) {
    let path = dir.join("file");
    let mut expected = pattern(1 << 20, 4);
    fs::write(&path, &expected).unwrap();
    let open = reopen(&path);
    let blocks = open.metadata().unwrap().blocks();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&open, punch, 100_001, 500_000).unwrap();
    expected[100_001..600_001].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
    assert!(open.metadata().unwrap().blocks() < blocks);
    rustix::fs::fallocate(&open, punch, 1 << 20, 1 << 20).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 1 << 20);
}

pub fn fallocate_zeroes_ranges(dir: &Path) {
    let path = dir.join("file");
    let mut expected = pattern(100_000, 5);
    fs::write(&path, &expected).unwrap();
    let open = reopen(&path);
    rustix::fs::fallocate(&open, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 90_000, 50_000).unwrap();
    expected[90_000..].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
    rustix::fs::fallocate(&open, FallocateFlags::ZERO_RANGE, 10_000, 110_000).unwrap();
    expected[10_000..].fill(0);
    expected.resize(120_000, 0);
    assert!(fs::read(&path).unwrap() == expected);
}

pub fn fallocate_refuses_what_is_not_offered(dir: &Path) {
    let open = file(&dir.join("file"));
    open.write_all_at(&[1; 16384], 0).unwrap();
    fails(rustix::fs::fallocate(&open, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Errno::OPNOTSUPP);
    fails(rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, 0), Errno::INVAL);
    let reader = File::open(dir.join("file")).unwrap();
    fails(rustix::fs::fallocate(&reader, FallocateFlags::empty(), 0, 10), Errno::BADF);
}

pub fn lseek_finds_data_and_holes(dir: &Path) {
    const MIB: u64 = 1 << 20;
    let open = file(&dir.join("file"));
    open.set_len(8 * MIB).unwrap();
    open.write_all_at(&vec![7; MIB as usize], 2 * MIB).unwrap();
    open.sync_all().unwrap();
    let seek = |to| rustix::fs::seek(&open, to);
    assert_eq!(seek(Look::Data(0)), Ok(2 * MIB));
    assert_eq!(seek(Look::Data(2 * MIB + 5)), Ok(2 * MIB + 5));
    assert_eq!(seek(Look::Hole(0)), Ok(0));
    assert_eq!(seek(Look::Hole(2 * MIB)), Ok(3 * MIB));
    fails(seek(Look::Data(3 * MIB)), Errno::NXIO);
    fails(seek(Look::Hole(8 * MIB)), Errno::NXIO);
    let mut open = open;
    assert_eq!(open.seek(SeekFrom::End(-1)).unwrap(), 8 * MIB - 1);
}

pub fn copy_file_range_copies(dir: &Path) {
    let bytes = pattern(500_000, 6);
    fs::write(dir.join("from"), &bytes).unwrap();
    let (from, to) = (File::open(dir.join("from")).unwrap(), file(&dir.join("to")));
    let (mut from_offset, mut to_offset) = (1000, 10);
    while to_offset < 400_010 {
        let left = (400_010 - to_offset) as usize;
        let copied = rustix::fs::copy_file_range(&from, Some(&mut from_offset), &to, Some(&mut to_offset), left);
        assert!(copied.unwrap() > 0);
    }
    let copy = fs::read(dir.join("to")).unwrap();
    assert_eq!(copy.len(), 400_010);
    assert!(copy[..10] == [0; 10] && copy[10..] == bytes[1000..401_000]);
    let mut end = 500_000;
    assert_eq!(rustix::fs::copy_file_range(&from, Some(&mut end), &to, None, 10), Ok(0));
}

pub fn copy_file_range_within_one_file(dir: &Path) {
    let path = dir.join("file");
    let bytes = pattern(10_000, 7);
    fs::write(&path, &bytes).unwrap();
    let open = reopen(&path);
    let (mut from, mut to) = (0, 20_000);
    assert_eq!(rustix::fs::copy_file_range(&open, Some(&mut from), &open, Some(&mut to), 10_000), Ok(10_000));
    let copy = fs::read(&path).unwrap();
    assert!(copy[..10_000] == bytes && copy[20_000..] == bytes && copy[10_000..20_000].iter().all(|b| *b == 0));
    let (mut from, mut to) = (0, 100);
    fails(rustix::fs::copy_file_range(&open, Some(&mut from), &open, Some(&mut to), 1000), Errno::INVAL);
}
