//! A device in the test's process: a drive of its own directory, and an engine whose rounds the test calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_platform_api::{
    Attributes, Caller, DirectoryDetail, FileKind, FsError, HandleNo, InodeNo, OpenMode, RenameMode, SetAttributes,
    SetIdBits, SetTime, SyncScope, Vfs, VfsName, VfsResult,
};
use cairnfs::base::DeviceId;
use cairnfs::drive::Drive;
use cairnfs::replicate::{Engine, Fetcher};

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1, umask: 0 };
const READ: OpenMode = OpenMode { read: true, write: false, append: false, truncate: false };
const WRITE: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

pub struct Device {
    pub name: String,
    pub drive: Arc<Drive>,
    pub engine: Arc<Engine>,
    pub fetcher: Fetcher,
}

/// Name to content (`None` for a directory), below the root.
pub type Listing = BTreeMap<String, Option<Vec<u8>>>;

fn name(text: &str) -> VfsName {
    VfsName::new(text.as_bytes()).expect("tests use valid names")
}

impl Device {
    pub fn id(&self) -> DeviceId {
        self.drive.tree().device().id
    }

    pub fn resolve(&self, path: &str) -> VfsResult<InodeNo> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(InodeNo::ROOT, |parent, part| Ok(self.drive.lookup(parent, &name(part))?.ino))
    }

    fn parent<'p>(&self, path: &'p str) -> (InodeNo, VfsName) {
        let (parent, last): (&'p str, &'p str) = path.rsplit_once('/').unwrap_or(("", path));
        (self.resolve(parent).expect("the parent exists"), name(last))
    }

    pub fn mkdir(&self, path: &str) {
        let (parent, name) = self.parent(path);
        self.drive.mkdir(CALLER, parent, &name, 0o755).expect("a directory can be made");
    }

    /// Replaces or makes the file, in place.
    pub fn write(&self, path: &str, content: &[u8]) {
        let (parent, name) = self.parent(path);
        let handle = match self.drive.lookup(parent, &name) {
            Ok(attributes) => {
                let mode = OpenMode { truncate: true, ..WRITE };
                self.drive.open(CALLER, attributes.ino, mode).wait().expect("the file opens").handle
            }
            Err(FsError::NotFound) => {
                self.drive.create(CALLER, parent, &name, 0o644, WRITE).expect("the file is made").1.handle
            }
            Err(error) => panic!("lookup {path}: {error}"),
        };
        for (index, piece) in content.chunks(1 << 20).enumerate() {
            let offset = (index as u64) << 20;
            self.drive.write(handle, offset, piece, SetIdBits::Clear).wait().expect("the bytes are accepted");
        }
        self.drive.release(handle);
    }

    /// Makes a large file as disk images are, without holding all of it in memory: no two parts are equal, and around the middle
    /// nothing compresses.
    pub fn write_image(&self, path: &str, length: u64) {
        let (parent, name) = self.parent(path);
        let handle = self.drive.create(CALLER, parent, &name, 0o644, WRITE).expect("the file is made").1.handle;
        for offset in (0..length).step_by(1 << 20) {
            let dense = offset.abs_diff(length / 2) <= 8 << 20;
            let piece = if dense { noise(offset, 1 << 20) } else { noise(offset, 4096).repeat(256) };
            self.drive.write(handle, offset, &piece, SetIdBits::Clear).wait().expect("the bytes are accepted");
        }
        self.drive.release(handle);
    }

    /// Makes a copy as `cp` does where the file system offers to copy.
    pub fn copy(&self, from: &str, to: &str) {
        let (parent, name) = self.parent(to);
        let source = self.open(from);
        let target = self.drive.create(CALLER, parent, &name, 0o644, WRITE).expect("the file is made").1.handle;
        let mut offset = 0;
        loop {
            let copied = self.drive.copy_file_range(source, offset, target, offset, 64 << 20).wait();
            match copied.expect("the bytes are copied") {
                0 => break,
                count => offset += count,
            }
        }
        self.drive.release(source);
        self.drive.release(target);
    }

    /// A hash of what a file holds.
    pub fn hash(&self, path: &str) -> blake3::Hash {
        let handle = self.open(path);
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        loop {
            let piece = self.drive.read(handle, offset, 1 << 20).wait().expect("it can be read");
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
            offset += piece.len() as u64;
        }
        self.drive.release(handle);
        hasher.finalize()
    }

    pub fn write_at(&self, path: &str, offset: u64, bytes: &[u8]) {
        let ino = self.resolve(path).expect("the file exists");
        let handle = self.drive.open(CALLER, ino, WRITE).wait().expect("the file opens").handle;
        self.drive.write(handle, offset, bytes, SetIdBits::Clear).wait().expect("the bytes are accepted");
        self.drive.release(handle);
    }

    /// The number of what has this path.
    pub fn ino(&self, path: &str) -> InodeNo {
        self.resolve(path).expect("the file exists")
    }

    pub fn open_for_writing(&self, path: &str) -> HandleNo {
        self.drive.open(CALLER, self.ino(path), WRITE).wait().expect("the file opens").handle
    }

    /// A handle for reading and writing; nothing is written.
    pub fn open_in_mode(&self, path: &str, append: bool) -> HandleNo {
        let ino = self.resolve(path).expect("the file exists");
        self.drive.open(CALLER, ino, OpenMode { append, ..WRITE }).wait().expect("the file opens").handle
    }

    pub fn write_through(&self, handle: HandleNo, offset: u64, bytes: &[u8]) {
        self.drive.write(handle, offset, bytes, SetIdBits::Clear).wait().expect("the bytes are accepted");
    }

    pub fn read_through(&self, handle: HandleNo) -> Vec<u8> {
        self.drive.read(handle, 0, 1 << 20).wait().expect("it can be read")
    }

    pub fn sync(&self, handle: HandleNo) {
        self.drive.fsync(handle, SyncScope::All).wait().expect("it is durable");
    }

    /// A handle for reading.
    pub fn open(&self, path: &str) -> HandleNo {
        let ino = self.resolve(path).expect("the file exists");
        self.drive.open(CALLER, ino, READ).wait().expect("the file opens").handle
    }

    pub fn read(&self, path: &str) -> VfsResult<Vec<u8>> {
        let ino = self.resolve(path)?;
        let handle = self.drive.open(CALLER, ino, READ).wait()?.handle;
        let mut content = Vec::new();
        let result = loop {
            match self.drive.read(handle, content.len() as u64, 1 << 20).wait() {
                Ok(piece) if piece.is_empty() => break Ok(()),
                Ok(piece) => content.extend_from_slice(&piece),
                Err(error) => break Err(error),
            }
        };
        self.drive.release(handle);
        result.map(|()| content)
    }

    pub fn rename(&self, from: &str, to: &str) {
        let (from_parent, from_name) = self.parent(from);
        let (to_parent, to_name) = self.parent(to);
        self.drive
            .rename(from_parent, &from_name, to_parent, &to_name, RenameMode::Replace)
            .expect("the name can be moved");
    }

    pub fn remove(&self, path: &str) {
        let (parent, name) = self.parent(path);
        self.drive.unlink(parent, &name).expect("the name can be taken away");
    }

    pub fn rmdir(&self, path: &str) {
        let (parent, name) = self.parent(path);
        self.drive.rmdir(parent, &name).expect("the directory can be removed");
    }

    pub fn attributes(&self, path: &str) -> Attributes {
        self.drive.getattr(self.ino(path), None).expect("it has attributes")
    }

    pub fn set_times(&self, path: &str, atime: Option<SetTime>, mtime: Option<SetTime>) {
        let set = SetAttributes { atime, mtime, ..SetAttributes::default() };
        self.drive.setattr(CALLER, self.ino(path), None, set).wait().expect("its times can be set");
    }

    /// Ends the device as an orderly stop does.
    pub fn close(self) {
        self.drive.close().expect("everything is durable");
    }

    pub fn state(&self, path: &str) -> String {
        let ino = self.resolve(path).expect("the file exists");
        let value = self.drive.getxattr(ino, b"user.cairn.state").expect("every file has a state");
        String::from_utf8(value).expect("states are words")
    }

    /// The names in the root directory.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let handle = self.drive.opendir(InodeNo::ROOT).expect("the directory opens");
        self.drive
            .readdir(handle, 0, DirectoryDetail::Names, &mut |entry| {
                names.push(String::from_utf8_lossy(entry.name).into_owned());
                std::ops::ControlFlow::Continue(())
            })
            .expect("the directory can be read");
        self.drive.releasedir(handle);
        names
    }

    /// Every path below the root with its content.
    pub fn everything(&self) -> Listing {
        let mut listing = Listing::new();
        self.collect(InodeNo::ROOT, "", &mut listing);
        listing
    }

    fn collect(&self, dir: InodeNo, prefix: &str, listing: &mut Listing) {
        let handle = self.drive.opendir(dir).expect("the directory opens");
        let mut entries = Vec::new();
        self.drive
            .readdir(handle, 0, DirectoryDetail::Names, &mut |entry| {
                if entry.name != b"." && entry.name != b".." {
                    entries.push((entry.ino, entry.kind, String::from_utf8_lossy(entry.name).into_owned()));
                }
                std::ops::ControlFlow::Continue(())
            })
            .expect("the directory can be read");
        self.drive.releasedir(handle);
        for (ino, kind, name) in entries {
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if kind == FileKind::Directory {
                listing.insert(path.clone(), None);
                self.collect(ino, &path, listing);
            } else {
                let content = self.read(&path).unwrap_or_else(|error| panic!("read {path}: {error}"));
                listing.insert(path, Some(content));
            }
        }
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    stream.fill(&mut bytes);
    bytes
}
