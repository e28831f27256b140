//! Access control lists, as ext4 has them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, getxattr, lgetxattr, lremovexattr, lsetxattr, removexattr, setxattr};
use rustix::io::{Errno, Result};

use super::support::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const SOMEBODY: u32 = 1234;
const NO_ID: u32 = u32::MAX;

/// An entry: tag, permissions and whom it names.
type Entry = (u16, u16, u32);

const fn owner(permissions: u16) -> Entry {
    (0x01, permissions, NO_ID)
}
const fn user(id: u32, permissions: u16) -> Entry {
    (0x02, permissions, id)
}
const fn owning_group(permissions: u16) -> Entry {
    (0x04, permissions, NO_ID)
}
const fn group(id: u32, permissions: u16) -> Entry {
    (0x08, permissions, id)
}
const fn mask(permissions: u16) -> Entry {
    (0x10, permissions, NO_ID)
}
const fn other(permissions: u16) -> Entry {
    (0x20, permissions, NO_ID)
}

fn list(entries: &[Entry]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(tag, permissions, id)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

fn set(path: &Path, name: &str, entries: &[Entry]) -> Result<()> {
    setxattr(path, name, &list(entries), XattrFlags::empty())
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0; 8192];
    let length = getxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn shell(dir: &Path, script: &str) {
    assert!(Command::new("sh").args(["-c", script]).current_dir(dir).status().unwrap().success(), "{script}");
}

pub fn a_list_and_the_mode_are_kept_in_step(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    set_mode(&path, 0o600);
    fails(get(&path, ACCESS), Errno::NODATA);
    let before = ctime(&path);
    set(&path, ACCESS, &[owner(7), user(SOMEBODY, 6), owning_group(1), mask(4), other(1)]).unwrap();
    assert!(ctime(&path) > before);
    assert_eq!(mode(&path), 0o741, "the group's bits are the mask");
    set_mode(&path, 0o670);
    let changed = list(&[owner(6), user(SOMEBODY, 6), owning_group(1), mask(7), other(0)]);
    assert_eq!(get(&path, ACCESS).unwrap(), changed);
    // Through a descriptor that is open for writing, where the kernel may write by itself.
    let open = reopen(&path);
    rustix::fs::fchmod(&open, 0o640.into()).unwrap();
    assert_eq!(get(&path, ACCESS).unwrap()[28..30], [0x10, 0], "the mask is the fourth entry");
    assert_eq!(get(&path, ACCESS).unwrap()[30], 4);
    removexattr(&path, ACCESS).unwrap();
    assert_eq!((mode(&path), get(&path, ACCESS)), (0o640, Err(Errno::NODATA)));
    set(&path, ACCESS, &[owner(7), user(SOMEBODY, 6), owning_group(1), mask(4), other(1)]).unwrap();
    set(&path, ACCESS, &[owner(6), owning_group(4), other(4)]).unwrap();
    assert_eq!((mode(&path), get(&path, ACCESS)), (0o644, Err(Errno::NODATA)), "a mode says that");
}

pub fn what_is_made_inherits_the_default_list(dir: &Path) {
    let sub = dir.join("sub");
    fs::create_dir(&sub).unwrap();
    let default = [owner(7), user(SOMEBODY, 7), owning_group(5), group(SOMEBODY, 4), mask(7), other(5)];
    set(&sub, DEFAULT, &default).unwrap();
    assert_eq!(get(&sub, DEFAULT).unwrap(), list(&default));
    fails(get(&sub, ACCESS), Errno::NODATA);
    shell(&sub, "umask 077; : > file && mkdir below && mkfifo fifo && ln -s file link");
    let limited = [owner(6), user(SOMEBODY, 7), owning_group(5), group(SOMEBODY, 4), mask(6), other(4)];
    for name in ["file", "fifo"] {
        assert_eq!((mode(&sub.join(name)), get(&sub.join(name), ACCESS)), (0o664, Ok(list(&limited))), "{name}");
        fails(get(&sub.join(name), DEFAULT), Errno::NODATA);
    }
    let below = sub.join("below");
    assert_eq!((mode(&below), get(&below, ACCESS)), (0o775, Ok(list(&default))));
    assert_eq!(get(&below, DEFAULT).unwrap(), list(&default));
    fails(lgetxattr(sub.join("link"), ACCESS, &mut [0; 100][..]), Errno::OPNOTSUPP);
    // Without named entries nothing more than a mode comes of it, but the umask does not count either.
    set(&sub, DEFAULT, &[owner(7), owning_group(7), other(4)]).unwrap();
    shell(&sub, "umask 077; : > more");
    assert_eq!((mode(&sub.join("more")), get(&sub.join("more"), ACCESS)), (0o664, Err(Errno::NODATA)));
    removexattr(&sub, DEFAULT).unwrap();
    shell(&sub, "umask 077; : > plain");
    assert_eq!(mode(&sub.join("plain")), 0o600);
}

pub fn without_a_default_list_the_umask_applies(dir: &Path) {
    shell(dir, "umask 027; : > file && mkdir sub && mkfifo fifo && ln -s file link");
    let modes = ["file", "sub", "fifo", "link"].map(|name| mode(&dir.join(name)));
    assert_eq!(modes, [0o640, 0o750, 0o640, 0o777]);
}

pub fn lists_are_refused_where_ext4_refuses_them(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    set_mode(&path, 0o644);
    fails(set(&path, ACCESS, &[owner(7), owning_group(5)]), Errno::INVAL);
    fails(set(&path, ACCESS, &[owner(7), user(1, 7), owning_group(5), other(5)]), Errno::INVAL);
    fails(set(&path, ACCESS, &[owner(7), owning_group(9), other(5)]), Errno::INVAL);
    fails(setxattr(&path, ACCESS, b"\x02\0\0\0no list", XattrFlags::empty()), Errno::INVAL);
    fails(set(&path, DEFAULT, &[owner(7), owning_group(5), other(5)]), Errno::ACCESS);
    let mut many = vec![owner(7)];
    many.extend((1..600).map(|id| user(id, 7)));
    many.extend([owning_group(5), mask(5), other(5)]);
    fails(set(&path, ACCESS, &many), Errno::TOOBIG);
    symlink("file", dir.join("link")).unwrap();
    let link = dir.join("link");
    fails(
        lsetxattr(&link, ACCESS, &list(&[owner(7), owning_group(5), other(5)]), XattrFlags::empty()),
        Errno::OPNOTSUPP,
    );
    fails(lremovexattr(&link, ACCESS), Errno::OPNOTSUPP);
    removexattr(&path, ACCESS).expect("there is none, and that is fine");
    fails(setxattr(&path, "system.other", b"x", XattrFlags::empty()), Errno::OPNOTSUPP);
    assert_eq!((mode(&path), get(&path, ACCESS)), (0o644, Err(Errno::NODATA)));
}

pub fn a_list_decides_who_may_do_what(dir: &Path) {
    if !has_other_users(dir) {
        return;
    }
    let path = dir.join("file");
    fs::write(&path, b"content").unwrap();
    let (reads, writes) = ("cat file", "echo more >> file");
    set(&path, ACCESS, &[owner(6), user(NOBODY, 6), owning_group(0), group(SOMEBODY, 4), mask(6), other(0)]).unwrap();
    assert!(as_nobody(dir, reads) && as_nobody(dir, writes));
    assert!(as_user(dir, SOMEBODY, SOMEBODY, reads) && !as_user(dir, SOMEBODY, SOMEBODY, writes));
    assert!(!as_user(dir, SOMEBODY, 4321, reads));
    set_mode(&path, 0o640);
    assert!(as_nobody(dir, reads) && !as_nobody(dir, writes), "the mask limits what is named");
    set_mode(&path, 0o600);
    assert!(!as_nobody(dir, reads) && !as_user(dir, SOMEBODY, SOMEBODY, reads));
    set_mode(&path, 0o660);
    assert!(as_nobody(dir, writes));
    removexattr(&path, ACCESS).unwrap();
    assert!(!as_nobody(dir, reads));
    let sub = dir.join("sub");
    fs::create_dir(&sub).unwrap();
    set_mode(&sub, 0o700);
    assert!(!as_nobody(dir, "ls sub"));
    set(&sub, ACCESS, &[owner(7), user(NOBODY, 7), owning_group(0), mask(7), other(0)]).unwrap();
    assert!(as_nobody(dir, "ls sub && touch sub/file && rm sub/file"));
}

pub fn setfacl_and_getfacl_agree(dir: &Path) {
    if Command::new("setfacl").arg("--version").output().is_err() {
        return crate::skip::skipped("no setfacl (package acl)");
    }
    let shown = |name: &str| {
        let output = Command::new("getfacl").args(["-n", "-c", "-E", name]).current_dir(dir).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    shell(dir, "umask 022; : > file && mkdir sub && setfacl -m u:1234:rwX,g:4321:r file");
    assert_eq!(shown("file"), "user::rw-\nuser:1234:rw-\ngroup::r--\ngroup:4321:r--\nmask::rw-\nother::r--");
    shell(dir, "chmod g-w file && cp -a file copy");
    assert_eq!(shown("copy"), "user::rw-\nuser:1234:rw-\ngroup::r--\ngroup:4321:r--\nmask::r--\nother::r--");
    shell(dir, "setfacl -x u:1234,g:4321 copy");
    assert_eq!(shown("copy"), "user::rw-\ngroup::r--\nmask::r--\nother::r--");
    shell(dir, "setfacl -b copy && setfacl -b copy && setfacl -k sub");
    assert_eq!(shown("copy"), "user::rw-\ngroup::r--\nother::r--");
    shell(dir, "setfacl -d -m u:1234:rwx sub && umask 077 && mkdir sub/below && : > sub/file && rm file");
    let default = "default:user::rwx\ndefault:user:1234:rwx\ndefault:group::r-x\ndefault:mask::rwx\ndefault:other::r-x";
    let access = "user::rwx\nuser:1234:rwx\ngroup::r-x\nmask::rwx\nother::r-x";
    assert_eq!(shown("sub/below"), format!("{access}\n{default}"));
    assert_eq!(shown("sub/file"), "user::rw-\nuser:1234:rwx\ngroup::r-x\nmask::rw-\nother::r--");
    if has_other_users(dir) {
        assert!(!as_nobody(dir, "setfacl -m u:65534:rwx copy"), "only the owner changes the list");
    }
}
