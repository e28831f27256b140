//! Moving names.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::support::*;

pub fn rename_replaces_in_one_step(dir: &Path) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, b"new").unwrap();
    fs::write(&to, b"old").unwrap();
    let moved = ino(&from);
    let before = ctime(&from);
    fs::rename(&from, &to).unwrap();
    assert_eq!((fs::read(&to).unwrap(), ino(&to)), (b"new".to_vec(), moved));
    assert!(ctime(&to) > before);
    assert_eq!(names(dir), ["to"]);
    fails_io(fs::rename(&from, &to), Errno::NOENT);
    fs::rename(&to, &to).unwrap();
    assert_eq!(names(dir), ["to"]);
}

pub fn rename_over_open_file_keeps_reader_alive(dir: &Path) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, b"new").unwrap();
    fs::write(&to, b"the old one").unwrap();
    let mut reader = File::open(&to).unwrap();
    let writer = reopen(&to);
    fs::rename(&from, &to).unwrap();
    writer.write_all_at(b"THE", 0).unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"THE old one");
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read(&to).unwrap(), b"new");
}

pub fn rename_between_hard_links_does_nothing(dir: &Path) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    file(&one);
    fs::hard_link(&one, &two).unwrap();
    fs::rename(&one, &two).unwrap();
    assert_eq!(names(dir), ["one", "two"]);
}

pub fn rename_refuses_the_wrong_kind(dir: &Path) {
    fs::create_dir_all(dir.join("full/sub")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    file(&dir.join("file"));
    fails_io(fs::rename(dir.join("file"), dir.join("empty")), Errno::ISDIR);
    fails_io(fs::rename(dir.join("empty"), dir.join("file")), Errno::NOTDIR);
    fails_io(fs::rename(dir.join("empty"), dir.join("full")), Errno::NOTEMPTY);
    fs::rename(dir.join("full"), dir.join("empty")).unwrap();
    assert_eq!(names(&dir.join("empty")), ["sub"]);
}

pub fn a_directory_cannot_be_moved_below_itself(dir: &Path) {
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    fails_io(fs::rename(dir.join("a"), dir.join("a/b/c/d")), Errno::INVAL);
    fails_io(fs::rename(dir.join("a"), dir.join("a/x")), Errno::INVAL);
    fails(rename_with(&dir.join("a"), &dir.join("a/b"), RenameFlags::EXCHANGE), Errno::INVAL);
    assert_eq!(names(&dir.join("a/b")), ["c"]);
}

pub fn a_moved_directory_has_its_new_parent_above(dir: &Path) {
    fs::create_dir_all(dir.join("one/sub")).unwrap();
    fs::create_dir(dir.join("two")).unwrap();
    fs::rename(dir.join("one/sub"), dir.join("two/sub")).unwrap();
    assert_eq!(fs::metadata(dir.join("two/sub/..")).unwrap().ino(), ino(&dir.join("two")));
    assert_eq!((nlink(&dir.join("one")), nlink(&dir.join("two"))), (2, 3));
}

pub fn noreplace_refuses_a_taken_name(dir: &Path) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, b"new").unwrap();
    fs::write(&to, b"old").unwrap();
    fails(rename_with(&from, &to, RenameFlags::NOREPLACE), Errno::EXIST);
    assert_eq!(fs::read(&to).unwrap(), b"old");
    fs::remove_file(&to).unwrap();
    rename_with(&from, &to, RenameFlags::NOREPLACE).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"new");
}

pub fn exchange_swaps_whatever_is_there(dir: &Path) {
    fs::create_dir_all(dir.join("one/sub")).unwrap();
    fs::create_dir(dir.join("two")).unwrap();
    fs::write(dir.join("two/file"), b"content").unwrap();
    let (sub, file) = (dir.join("one/sub"), dir.join("two/file"));
    let inodes = (ino(&sub), ino(&file));
    rename_with(&sub, &file, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((ino(&file), ino(&sub)), inodes);
    assert_eq!(fs::read(&sub).unwrap(), b"content");
    assert_eq!((nlink(&dir.join("one")), nlink(&dir.join("two"))), (2, 3));
    assert_eq!(fs::metadata(file.join("..")).unwrap().ino(), ino(&dir.join("two")));
    fails(rename_with(&sub, &dir.join("nothing"), RenameFlags::EXCHANGE), Errno::NOENT);
}

/// Rounds of a replacement that readers watch.
const REPLACEMENTS: u32 = 300;

pub fn readers_never_miss_a_file_that_is_being_replaced(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, 0_u32.to_le_bytes()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Relaxed) {
                        let bytes = fs::read(&path).expect("the name is always there");
                        let seen = u32::from_le_bytes(bytes.try_into().expect("whole files only"));
                        assert!(seen >= last, "an old file came back");
                        last = seen;
                    }
                })
            })
            .collect();
        for round in 1..=REPLACEMENTS {
            let temporary = dir.join("temporary");
            fs::write(&temporary, round.to_le_bytes()).unwrap();
            fs::rename(&temporary, &path).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert_eq!(fs::read(&path).unwrap(), REPLACEMENTS.to_le_bytes());
}

pub fn concurrent_directory_moves_make_no_cycle(dir: &Path) {
    fs::create_dir_all(dir.join("a")).unwrap();
    fs::create_dir_all(dir.join("b")).unwrap();
    std::thread::scope(|scope| {
        for (from, to, back) in [("a", "b/a", "b/a"), ("b", "a/b", "a/b")] {
            scope.spawn(move || {
                for _ in 0..100 {
                    if fs::rename(dir.join(from), dir.join(to)).is_ok() {
                        fs::rename(dir.join(back), dir.join(from)).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(names(dir), ["a", "b"]);
}
