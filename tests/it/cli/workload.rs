//! What people and programs do to a folder: a bit of everything that a copy must keep.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Works in a new directory of this name, reads what was made, and syncs some of it.
pub fn work(mountpoint: &Path, name: &str, seed: u64) -> io::Result<()> {
    let root = mountpoint.join(name);
    fs::create_dir(&root)?;
    for number in 0..20 {
        fs::write(root.join(format!("small-{number}")), noise(seed + number, 500 * number as usize))?;
    }
    let large = noise(seed, 2_000_000);
    fs::write(root.join("large"), &large)?;
    change_contents(&root, seed)?;
    change_names(&root)?;
    change_attributes(&root)?;
    let mut expected = large;
    expected[700_000..700_003].copy_from_slice(b"new");
    assert!(fs::read(root.join("large"))? == expected, "what was written is read back");
    File::open(root.join("large"))?.sync_all()?;
    File::open(&root)?.sync_all()
}

fn change_contents(root: &Path, seed: u64) -> io::Result<()> {
    OpenOptions::new().append(true).open(root.join("small-3"))?.write_all(b"and more")?;
    OpenOptions::new().write(true).open(root.join("large"))?.write_all_at(b"new", 700_000)?;
    OpenOptions::new().write(true).open(root.join("small-19"))?.set_len(1234)?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(1 << 20)?;
    sparse.write_all_at(&noise(seed, 3000), 500_000)?;
    fs::write(root.join("scratch"), "of no use")?;
    fs::remove_file(root.join("scratch"))
}

fn change_names(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join("deep/er/still"))?;
    fs::write(root.join("deep/er/still/file"), "in a directory")?;
    fs::rename(root.join("deep"), root.join("renamed"))?;
    fs::create_dir(root.join("empty"))?;
    fs::create_dir(root.join("gone"))?;
    fs::remove_dir(root.join("gone"))?;
    fs::write(root.join("document.new"), "version 2")?;
    fs::rename(root.join("document.new"), root.join("small-1"))?;
    fs::rename(root.join("small-4"), root.join("renamed/er/moved"))?;
    rustix::fs::renameat_with(CWD, root.join("small-5"), CWD, root.join("small-6"), RenameFlags::EXCHANGE)?;
    fs::hard_link(root.join("small-7"), root.join("renamed/second name"))?;
    symlink("renamed/er/moved", root.join("link"))?;
    rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    fs::remove_file(root.join("small-8"))
}

fn change_attributes(root: &Path) -> io::Result<()> {
    fs::set_permissions(root.join("small-9"), Permissions::from_mode(0o600))?;
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o2750))?;
    let time = UNIX_EPOCH + Duration::new(981_173_106, 789_000_001);
    File::options().write(true).open(root.join("small-10"))?.set_times(FileTimes::new().set_modified(time))?;
    rustix::fs::setxattr(root.join("small-11"), "user.comment", b"kept too", XattrFlags::empty())?;
    rustix::fs::setxattr(root.join("empty"), "user.comment", b"\0bytes", XattrFlags::empty())?;
    Ok(())
}
