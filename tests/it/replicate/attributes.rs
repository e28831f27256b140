//! Attributes on other devices: they are what they were set to, and what goes together stays together.

use cairn_platform_api::{AclKind, FsError, SetAttributes, SetTime, SetXattrMode, Timestamp, Vfs, VfsResult};

use super::device::{CALLER, Device};
use super::world::World;

/// Owner, a named user, the owning group, the mask, others: `rw- 7:rw- r-- mask r--`.
fn list(mask: u8) -> Vec<u8> {
    let entries =
        [(1, 6, [0xff; 4]), (2, 6, [7, 0, 0, 0]), (4, 4, [0xff; 4]), (0x10, mask, [0xff; 4]), (0x20, 0, [0xff; 4])];
    let entries = entries.into_iter().flat_map(|(tag, permissions, [a, b, c, d])| [tag, 0, permissions, 0, a, b, c, d]);
    [2, 0, 0, 0].into_iter().chain(entries).collect()
}

impl Device {
    fn acl(&self, path: &str, kind: AclKind) -> VfsResult<Vec<u8>> {
        self.drive.getxattr(self.ino(path), kind.name())
    }

    fn set_acl(&self, path: &str, kind: AclKind, value: &[u8]) {
        self.drive.setxattr(self.ino(path), kind.name(), value, SetXattrMode::Any).expect("the list is set");
    }

    fn change(&self, path: &str, set: SetAttributes) {
        self.drive.setattr(CALLER, self.ino(path), None, set).wait().expect("the attributes are set");
    }

    fn chmod(&self, path: &str, mode: u16) {
        self.change(path, SetAttributes { mode: Some(mode), ..SetAttributes::default() });
    }
}

#[test]
fn access_control_lists_reach_other_devices_and_survive_a_restart() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.mkdir("d");
    a.set_acl("d", AclKind::Default, &list(6));
    a.write("d/inherits", b"content");
    a.write("f", b"content");
    a.set_acl("f", AclKind::Access, &list(4));
    world.exchange(&[&a, &b]);
    let b = world.restart(b);
    for device in [&a, &b] {
        assert_eq!((device.attributes("f").mode, device.acl("f", AclKind::Access)), (0o640, Ok(list(4))));
        assert_eq!(device.acl("d", AclKind::Default), Ok(list(6)));
        // Made with 0644: the mask is limited by that.
        assert_eq!(
            (device.attributes("d/inherits").mode, device.acl("d/inherits", AclKind::Access)),
            (0o640, Ok(list(4)))
        );
    }
    b.chmod("f", 0o600);
    b.drive.removexattr(b.ino("d"), AclKind::Default.name()).expect("the list is removed");
    world.exchange(&[&b, &a]);
    assert_eq!((a.attributes("f").mode, a.acl("f", AclKind::Access)), (0o600, Ok(list(0))));
    assert_eq!(a.acl("d", AclKind::Default), Err(FsError::NoAttribute));
}

#[test]
fn a_mode_and_a_list_that_were_set_on_two_devices_are_brought_in_step() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("mode first", b"content");
    a.write("list first", b"content");
    for path in ["mode first", "list first"] {
        a.chmod(path, 0o660);
    }
    world.exchange(&[&a, &b]);
    // The list with mask 6 leaves the mode as it is, so what counts is the mode of the other device, whoever was first.
    a.chmod("mode first", 0o600);
    a.set_acl("list first", AclKind::Access, &list(6));
    world.drain(&a);
    b.set_acl("mode first", AclKind::Access, &list(6));
    b.chmod("list first", 0o600);
    world.exchange(&[&b, &a]);
    for device in [&a, &b] {
        for path in ["mode first", "list first"] {
            let seen = (device.attributes(path).mode, device.acl(path, AclKind::Access));
            assert_eq!(seen, (0o600, Ok(list(0))), "{path} on {}", device.name);
        }
    }
}

#[test]
fn times_of_any_year_reach_other_devices() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let times =
        [(-1, 999_999_999), (-1, 0), (-2_000_000_000, 1), (0, 0), (4_102_444_800, 7), (7_258_118_400, 999_999_999)];
    let at = |(seconds, nanos)| Timestamp::from_parts(seconds, nanos);
    for (number, time) in times.into_iter().enumerate() {
        let (file, directory) = (format!("f{number}"), format!("d{number}"));
        a.write(&file, b"content");
        a.mkdir(&directory);
        let set = Some(SetTime::At(at(time)));
        for path in [file, directory] {
            a.change(&path, SetAttributes { atime: set, mtime: set, ..SetAttributes::default() });
        }
    }
    for (path, time) in [("d0", Timestamp::from_nanos(i64::MIN)), ("d1", Timestamp::from_nanos(i64::MAX))] {
        let set = Some(SetTime::At(time));
        a.change(path, SetAttributes { atime: set, ..SetAttributes::default() });
    }
    world.exchange(&[&a, &b]);
    let b = world.restart(b);
    for device in [&a, &b] {
        for (number, time) in times.into_iter().enumerate() {
            let (file, directory) =
                (device.attributes(&format!("f{number}")), device.attributes(&format!("d{number}")));
            assert_eq!((file.mtime, file.atime, directory.mtime), (at(time), at(time), at(time)), "on {}", device.name);
        }
        let (first, last) = (device.attributes("d0").atime, device.attributes("d1").atime);
        assert_eq!((first.as_nanos(), last.as_nanos()), (i64::MIN, i64::MAX));
    }
}
