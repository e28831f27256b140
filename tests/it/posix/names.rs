//! Making, finding, linking and removing names.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::support::*;
use crate::harness::is_root;

pub fn what_is_made_is_found(dir: &Path) {
    fs::write(dir.join("file"), b"content").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"content");
    assert!(fs::metadata(dir.join("sub")).unwrap().is_dir());
    assert_eq!(names(dir), ["file", "sub"]);
    fails_io(fs::metadata(dir.join("nothing")), Errno::NOENT);
    fails_io(fs::metadata(dir.join("file/below")), Errno::NOTDIR);
}

pub fn a_name_that_was_missing_is_found_once_made(dir: &Path) {
    for round in 0..20 {
        let path = dir.join(format!("name{round}"));
        assert!(!path.exists());
        fs::write(&path, b"x").unwrap();
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
    }
}

pub fn exclusive_create_fails_where_the_name_is_taken(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    let again = File::options().write(true).create_new(true).open(&path);
    fails_io(again, Errno::EXIST);
    symlink("nowhere", dir.join("dangling")).unwrap();
    fails_io(File::options().write(true).create_new(true).open(dir.join("dangling")), Errno::EXIST);
    fails_io(fs::create_dir(&path), Errno::EXIST);
    fails_io(symlink("x", &path), Errno::EXIST);
    fails(mknod(&path, FileType::Fifo, 0o600), Errno::EXIST);
}

pub fn nodes_of_every_kind_can_be_made(dir: &Path) {
    mknod(&dir.join("regular"), FileType::RegularFile, 0o640).unwrap();
    mknod(&dir.join("fifo"), FileType::Fifo, 0o600).unwrap();
    mknod(&dir.join("socket"), FileType::Socket, 0o600).unwrap();
    let kind = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap().file_type();
    assert!(kind("regular").is_file());
    assert!(kind("fifo").is_fifo());
    assert!(kind("socket").is_socket());
    assert_eq!(mode(&dir.join("regular")), 0o640);
    let listed = fs::read_dir(dir).unwrap().map(Result::unwrap);
    assert_eq!(listed.filter(|entry| entry.file_type().unwrap().is_fifo()).count(), 1);
    if is_root() {
        let path = dir.join("null");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().rdev(), rustix::fs::makedev(1, 3));
        assert!(kind("null").is_char_device());
    }
}

pub fn a_fifo_carries_bytes(dir: &Path) {
    let path = dir.join("fifo");
    mknod(&path, FileType::Fifo, 0o600).unwrap();
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || fs::read(path).unwrap())
    };
    fs::write(&path, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
}

pub fn a_socket_can_be_connected_to(dir: &Path) {
    // A socket's address is short; the path of a temporary directory need not be.
    let path = dir.join("s");
    if path.as_os_str().len() > 100 {
        crate::skip::skipped("the path is too long for a socket");
        return;
    }
    let listener = UnixListener::bind(&path).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

pub fn symbolic_links_keep_their_target(dir: &Path) {
    let target = "t".repeat(4000);
    symlink(&target, dir.join("long")).unwrap();
    assert_eq!(fs::read_link(dir.join("long")).unwrap().as_os_str(), &target[..]);
    assert_eq!(fs::symlink_metadata(dir.join("long")).unwrap().len(), 4000);
    fs::write(dir.join("file"), b"there").unwrap();
    symlink("file", dir.join("link")).unwrap();
    assert_eq!(fs::read(dir.join("link")).unwrap(), b"there");
    fails_io(fs::read_link(dir.join("file")), Errno::INVAL);
    symlink("loop", dir.join("loop")).unwrap();
    fails_io(fs::read(dir.join("loop")), Errno::LOOP);
}

pub fn hard_links_are_one_file(dir: &Path) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, b"first").unwrap();
    let before = ctime(&one);
    fs::hard_link(&one, &two).unwrap();
    assert_eq!((ino(&one), nlink(&one)), (ino(&two), 2));
    assert!(ctime(&one) > before);
    fs::write(&two, b"second").unwrap();
    assert_eq!(fs::read(&one).unwrap(), b"second");
    fs::remove_file(&one).unwrap();
    assert_eq!((fs::read(&two).unwrap(), nlink(&two)), (b"second".to_vec(), 1));
    fails_io(fs::hard_link(dir, dir.join("dirlink")), Errno::PERM);
    fails_io(fs::hard_link(dir.join("one"), dir.join("three")), Errno::NOENT);
    fails_io(fs::hard_link(&two, dir), Errno::EXIST);
}

pub fn names_are_bytes(dir: &Path) {
    let odd: &[&[u8]] =
        &[b"\xff\xfe", b" ", b"...", b"a\nb", "\u{e4}".as_bytes(), "a\u{308}".as_bytes(), b"-", b"A", b"a"];
    for name in odd {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    assert_eq!(names(dir).len(), odd.len());
    for name in odd {
        assert_eq!(fs::read(dir.join(OsStr::from_bytes(name))).unwrap(), *name);
    }
}

pub fn names_have_255_bytes_at_most(dir: &Path) {
    fs::write(dir.join("n".repeat(255)), b"").unwrap();
    let long = dir.join("n".repeat(256));
    fails_io(fs::write(&long, b""), Errno::NAMETOOLONG);
    fails_io(fs::create_dir(&long), Errno::NAMETOOLONG);
    fails_io(fs::metadata(&long), Errno::NAMETOOLONG);
    fails_io(fs::rename(dir.join("n".repeat(255)), &long), Errno::NAMETOOLONG);
    assert_eq!(names(dir).len(), 1);
}

pub fn unlink_and_rmdir_refuse_the_wrong_kind(dir: &Path) {
    fs::create_dir_all(dir.join("full/sub")).unwrap();
    file(&dir.join("file"));
    fails_io(fs::remove_file(dir.join("full")), Errno::ISDIR);
    fails_io(fs::remove_dir(dir.join("file")), Errno::NOTDIR);
    fails_io(fs::remove_dir(dir.join("full")), Errno::NOTEMPTY);
    fails_io(fs::remove_dir(dir.join("nothing")), Errno::NOENT);
    fs::remove_dir(dir.join("full/sub")).unwrap();
    fs::remove_dir(dir.join("full")).unwrap();
    assert_eq!(names(dir), ["file"]);
}

pub fn directories_count_their_subdirectories(dir: &Path) {
    let parent = dir.join("parent");
    fs::create_dir(&parent).unwrap();
    assert_eq!(nlink(&parent), 2);
    fs::create_dir(parent.join("a")).unwrap();
    fs::create_dir(parent.join("b")).unwrap();
    file(&parent.join("c"));
    assert_eq!(nlink(&parent), 4);
    fs::rename(parent.join("a"), dir.join("a")).unwrap();
    assert_eq!(nlink(&parent), 3);
    fs::remove_dir(parent.join("b")).unwrap();
    assert_eq!(nlink(&parent), 2);
}

pub fn every_change_of_a_directory_shows_in_its_times(dir: &Path) {
    let parent = dir.join("parent");
    fs::create_dir(&parent).unwrap();
    let outside = dir.join("outside");
    file(&outside);
    let changes: [(&str, &dyn Fn()); 9] = [
        ("create", &|| drop(file(&parent.join("file")))),
        ("mkdir", &|| fs::create_dir(parent.join("sub")).unwrap()),
        ("symlink", &|| symlink("x", parent.join("link")).unwrap()),
        ("mknod", &|| mknod(&parent.join("fifo"), FileType::Fifo, 0o600).unwrap()),
        ("link", &|| fs::hard_link(&outside, parent.join("hard")).unwrap()),
        ("rename within", &|| fs::rename(parent.join("file"), parent.join("moved")).unwrap()),
        ("rename away", &|| fs::rename(parent.join("moved"), dir.join("moved")).unwrap()),
        ("unlink", &|| fs::remove_file(parent.join("link")).unwrap()),
        ("rmdir", &|| fs::remove_dir(parent.join("sub")).unwrap()),
    ];
    for (what, change) in changes {
        age(&parent);
        let before = ctime(&parent);
        change();
        assert!(mtime(&parent) > 1_000_000_000_000, "mtime after {what}");
        assert!(ctime(&parent) > before, "ctime after {what}");
    }
}

pub fn an_unlinked_file_lives_while_it_is_open(dir: &Path) {
    use std::os::unix::fs::FileExt;
    let path = dir.join("file");
    let open = file(&path);
    open.write_all_at(b"before", 0).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(names(dir).is_empty());
    fs::write(&path, b"another").unwrap();
    open.write_all_at(b" after", 6).unwrap();
    open.set_len(11).unwrap();
    let meta = open.metadata().unwrap();
    assert_eq!((meta.nlink(), meta.len()), (0, 11));
    let mut bytes = [0; 11];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"before afte");
    open.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    open.sync_all().unwrap();
    assert_eq!(open.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read(&path).unwrap(), b"another");
}

/// Programs that want `O_TMPFILE` make a name and remove it where they get this error.
pub fn a_file_without_a_name_cannot_be_made(dir: &Path) {
    use rustix::fs::{Mode, OFlags};
    let made = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR);
    fails(made.map(drop), Errno::OPNOTSUPP);
    assert!(names(dir).is_empty());
}
