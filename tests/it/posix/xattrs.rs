//! Extended attributes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    FileType, XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, lsetxattr, removexattr, setxattr,
};
use rustix::io::Errno;

use super::support::*;

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 70_000];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn list(path: &Path) -> Vec<String> {
    let mut list = vec![0_u8; 70_000];
    let length = listxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    // What a file system shows of itself is not what was set.
    names.retain(|name| !name.starts_with("user.cairn."));
    names.sort();
    names
}

pub fn attributes_are_kept_byte_for_byte(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    fs::create_dir(dir.join("sub")).unwrap();
    let large = pattern(65_536, 8);
    for path in [&path, &dir.join("sub")] {
        let before = ctime(path);
        setxattr(path, "user.empty", b"", XattrFlags::empty()).unwrap();
        setxattr(path, "user.bytes", b"\0\xff\n", XattrFlags::empty()).unwrap();
        setxattr(path, "user.large", &large, XattrFlags::empty()).unwrap();
        assert!(ctime(path) > before);
        assert_eq!(get(path, "user.empty").unwrap(), b"");
        assert_eq!(get(path, "user.bytes").unwrap(), b"\0\xff\n");
        assert!(get(path, "user.large").unwrap() == large);
        assert_eq!(list(path), ["user.bytes", "user.empty", "user.large"]);
        removexattr(path, "user.bytes").unwrap();
        assert_eq!(list(path), ["user.empty", "user.large"]);
    }
}

pub fn missing_attributes_and_small_buffers_are_told_apart(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    fails(get(&path, "user.none"), Errno::NODATA);
    fails(removexattr(&path, "user.none"), Errno::NODATA);
    setxattr(&path, "user.name", b"twelve bytes", XattrFlags::empty()).unwrap();
    assert_eq!(getxattr_query(&path, "user.name"), Ok(12));
    fails(getxattr(&path, "user.name", &mut [0; 11][..]), Errno::RANGE);
    assert_eq!(getxattr(&path, "user.name", &mut [0; 12][..]), Ok(12));
    assert!(listxattr_query(&path).unwrap() >= "user.name\0".len());
    fails(listxattr(&path, &mut [0; 3][..]), Errno::RANGE);
}

pub fn create_and_replace_say_what_they_expect(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    fails(setxattr(&path, "user.a", b"1", XattrFlags::REPLACE), Errno::NODATA);
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE).unwrap();
    fails(setxattr(&path, "user.a", b"2", XattrFlags::CREATE), Errno::EXIST);
    setxattr(&path, "user.a", b"3", XattrFlags::REPLACE).unwrap();
    assert_eq!(get(&path, "user.a").unwrap(), b"3");
}

pub fn limits_are_those_of_linux(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    let name = format!("user.{}", "n".repeat(250));
    setxattr(&path, &name, b"x", XattrFlags::empty()).unwrap();
    fails(setxattr(&path, format!("{name}n"), b"x", XattrFlags::empty()), Errno::RANGE);
    fails(setxattr(&path, "user.large", &vec![0; 65_537], XattrFlags::empty()), Errno::TOOBIG);
}

pub fn attributes_follow_the_file(dir: &Path) {
    let path = dir.join("file");
    let open = file(&path);
    rustix::fs::fsetxattr(&open, "user.a", b"1", XattrFlags::empty()).unwrap();
    fs::rename(&path, dir.join("moved")).unwrap();
    fs::hard_link(dir.join("moved"), dir.join("linked")).unwrap();
    assert_eq!(get(&dir.join("linked"), "user.a").unwrap(), b"1");
    let mut value = [0; 1];
    let reader = File::open(dir.join("linked")).unwrap();
    assert_eq!(rustix::fs::fgetxattr(&reader, "user.a", &mut value[..]), Ok(1));
}

/// The kernel's rule, for every file system.
pub fn user_attributes_are_of_files_and_directories(dir: &Path) {
    std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
    fails(lsetxattr(dir.join("link"), "user.a", b"1", XattrFlags::empty()), Errno::PERM);
    mknod(&dir.join("fifo"), FileType::Fifo, 0o600).unwrap();
    fails(setxattr(dir.join("fifo"), "user.a", b"1", XattrFlags::empty()), Errno::PERM);
}

pub fn trusted_and_security_attributes_are_for_root(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    let path = dir.join("file");
    file(&path);
    set_mode(&path, 0o666);
    for name in ["trusted.a", "security.a"] {
        setxattr(&path, name, b"1", XattrFlags::empty()).unwrap();
        assert_eq!(get(&path, name).unwrap(), b"1");
    }
    assert_eq!(list(&path), ["security.a", "trusted.a"]);
    let python = |what: &str| as_nobody(dir, &format!("python3 -c 'import os; {what}'"));
    if !python("") {
        return crate::skip::skipped("no python3");
    }
    assert!(python(r#"assert os.listxattr("file") == ["security.a"]"#), "others do not see that there is one");
    assert!(!python(r#"os.getxattr("file", "trusted.a")"#) && python(r#"os.getxattr("file", "security.a")"#));
    for name in ["trusted.a", "security.a"] {
        assert!(!python(&format!(r#"os.setxattr("file", "{name}", b"2")"#)), "{name}");
        assert!(!python(&format!(r#"os.removexattr("file", "{name}")"#)), "{name}");
    }
}

pub fn a_write_drops_file_capabilities(dir: &Path) {
    const CAPABILITY: &str = "security.capability";
    // Version 2, effective: CAP_NET_BIND_SERVICE.
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let path = dir.join("program");
    fs::write(&path, b"content").unwrap();
    let grant = || setxattr(&path, CAPABILITY, &value, XattrFlags::empty());
    if grant().is_err() {
        return crate::skip::skipped("takes CAP_SETFCAP");
    }
    let changes: [fn(&Path); 4] = [
        |path| reopen(path).write_all_at(b"x", 0).unwrap(),
        |path| reopen(path).set_len(3).unwrap(),
        |path| drop(File::create(path).unwrap()),
        |path| std::os::unix::fs::chown(path, Some(1), None).unwrap(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        grant().unwrap();
        assert_eq!(get(&path, CAPABILITY).unwrap(), value);
        change(&path);
        assert_eq!(get(&path, CAPABILITY), Err(Errno::NODATA), "change {number}");
    }
}
