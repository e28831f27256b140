//! The drive over real files and a real database: against the model, and through restarts, publication and eviction.

mod cold;
mod content;
mod full_disk;
mod model;
pub mod mounted;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cairn_platform_api::{Attributes, Caller, HandleNo, InodeNo, OpenMode, Opened, SetIdBits, Vfs, VfsName, VfsResult};
use cairnfs::base::DeviceId;
use cairnfs::cache::Stamp;
use cairnfs::chunk::{ChunkId, ChunkRef, ContentId, Manifest};
use cairnfs::drive::{ContentReader, ContentSource, Drive, DriveError, DriveSettings, FetchError, MemorySource};
use cairnfs::tree::{Content, DeviceIdentity, ManifestRows, Snapshot, TreeError};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::harness::{NEVER, eventually, eventually_some};

/// Small, so that files of a few pages have several chunks.
const CHUNK: usize = 8192;
pub const ROOT: InodeNo = InodeNo::ROOT;
pub const USER: Caller = Caller { uid: 0, gid: 0, pid: 1, umask: 0 };
pub const READ: OpenMode = OpenMode { read: true, write: false, append: false, truncate: false };
pub const WRITE: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

/// A source that can be cut off, and counts.
#[derive(Default)]
pub struct Remote {
    chunks: MemorySource,
    pub fetched: AtomicUsize,
    pub gone: std::sync::atomic::AtomicBool,
    pub hanging: std::sync::atomic::AtomicBool,
}

impl ContentSource for Remote {
    fn fetch(&self, chunk: ChunkRef) -> BoxFuture<'static, Result<Bytes, FetchError>> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        if self.hanging.load(Ordering::Relaxed) {
            return Box::pin(futures::future::pending());
        }
        if self.gone.load(Ordering::Relaxed) {
            let error = FetchError::Unavailable { chunk: chunk.id.to_string(), reason: "offline".to_owned() };
            return Box::pin(async { Err(error) });
        }
        self.chunks.fetch(chunk)
    }

    fn is_hole(&self, chunk: &ChunkRef) -> bool {
        self.chunks.is_hole(chunk)
    }
}

/// A drive in a temporary directory, with a remote in memory.
pub struct Machine {
    drive: Option<Arc<Drive>>,
    pub remote: Arc<Remote>,
    settings: DriveSettings,
    dir: TempDir,
    _runtime: Runtime,
}

impl Machine {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(adjust: impl FnOnce(&mut DriveSettings)) -> Self {
        Self::at(tempfile::tempdir().expect("a temporary directory"), adjust)
    }

    pub fn at(dir: TempDir, adjust: impl FnOnce(&mut DriveSettings)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let device = DeviceIdentity { id: DeviceId(7), name: "here".to_owned() };
        let mut settings = DriveSettings::new(device, runtime.handle().clone());
        settings.disk_reserve = 0;
        settings.read_deadline = NEVER;
        adjust(&mut settings);
        let mut machine = Self { drive: None, remote: Arc::default(), settings, dir, _runtime: runtime };
        machine.open();
        machine
    }

    pub fn drive(&self) -> &Arc<Drive> {
        self.drive.as_ref().expect("it is open")
    }

    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Stops cleanly and opens again.
    pub fn restart(&mut self) {
        self.drive().close().expect("closed");
        self.crash();
    }

    /// Lets go of the drive without closing it, and opens it again: a stop that the drive sees as unclean.
    pub fn crash(&mut self) {
        self.drive = None;
        self.open();
    }

    fn open(&mut self) {
        self.drive = Some(eventually_some("nobody has the drive any more", || {
            match Drive::open(self.dir.path(), self.settings.clone(), self.remote.clone()) {
                Ok(drive) => Some(drive),
                // A read ahead that still runs keeps the old one for a moment.
                Err(DriveError::InUse(_)) => None,
                Err(error) => panic!("the drive opens: {error:?}"),
            }
        }));
    }

    /// What replication does: uploads all local contents and publishes. Answers how many contents were published.
    pub fn publish(&self) -> usize {
        let drive = self.drive();
        for dirty in drive.dirty_files().expect("listed") {
            if let Some(reader) = drive.open_content(dirty.ino).expect("opened") {
                let (bytes, stamp) = read_settled(&reader);
                let content = self.store(&bytes);
                drive.uploaded(dirty.ino, content, stamp).expect("recorded");
                let stamp = cairnfs::tree::Stamp { size: stamp.size, mtime: stamp.mtime, ctime: stamp.ctime };
                drive.tree().set_snapshot(dirty.ino, &Snapshot { content, stamp }).expect("kept");
            }
        }
        let still_clean = &mut |ino, snapshot: &Snapshot| drive.still_clean(ino, snapshot);
        let cut = drive.tree().cut(still_clean, |_, _| Ok::<_, TreeError>(())).expect("cut");
        let Some(cut) = cut else { return 0 };
        drive.apply_touched(&cut.touched);
        cut.published.len()
    }

    /// Puts bytes on the remote, and their list of chunks into the rows.
    pub fn store(&self, bytes: &[u8]) -> Content {
        let mut manifest = Manifest { size: bytes.len() as u64, chunks: Vec::new() };
        let mut ids = Vec::new();
        for piece in bytes.chunks(CHUNK) {
            let id = ChunkId(*blake3::hash(piece).as_bytes());
            self.remote.chunks.insert(id, Bytes::copy_from_slice(piece));
            ids.extend_from_slice(&id.0);
            manifest.chunks.push(ChunkRef { id, len: piece.len() as u32 });
        }
        let id = ContentId(*blake3::hash(&ids).as_bytes());
        let mut rows = self.drive().tree().store().operation().expect("started");
        rows.put_manifest(&id, &manifest);
        rows.commit();
        Content { size: manifest.size, id }
    }

    /// Publishes, waits until nothing is local, and evicts everything that nobody has open.
    pub fn make_cold(&self, inos: &[InodeNo]) {
        self.publish();
        for ino in inos {
            eventually("a published file can be evicted", || self.evicted(*ino));
        }
    }

    fn evicted(&self, ino: InodeNo) -> bool {
        self.drive().evict(ino).expect("evicted");
        self.state(ino) == "remote" || self.attributes(ino).size == 0
    }

    pub fn state(&self, ino: InodeNo) -> String {
        let state = self.drive().getxattr(ino, b"user.cairn.state").expect("a state");
        String::from_utf8(state).expect("a word")
    }

    pub fn attributes(&self, ino: InodeNo) -> Attributes {
        self.drive().getattr(ino, None).expect("attributes")
    }

    pub fn create(&self, name: &str) -> (InodeNo, HandleNo) {
        let (attributes, opened) = self.drive().create(USER, ROOT, &named(name), 0o644, WRITE).expect("created");
        (attributes.ino, opened.handle)
    }

    pub fn open_file(&self, ino: InodeNo, mode: OpenMode) -> VfsResult<Opened> {
        self.drive().open(USER, ino, mode).wait()
    }

    pub fn write(&self, handle: HandleNo, offset: u64, bytes: &[u8]) {
        let written = self.drive().write(handle, offset, bytes, SetIdBits::Clear).wait();
        assert_eq!(written, Ok(bytes.len() as u32));
    }

    pub fn read(&self, handle: HandleNo, offset: u64, length: usize) -> VfsResult<Vec<u8>> {
        self.drive().read(handle, offset, length as u32).wait()
    }

    /// Makes a closed file with these bytes.
    pub fn file(&self, name: &str, bytes: &[u8]) -> InodeNo {
        let (ino, handle) = self.create(name);
        self.write(handle, 0, bytes);
        self.drive().release(handle);
        ino
    }

    /// The bytes of a file.
    pub fn bytes(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        let opened = self.open_file(ino, READ)?;
        let bytes = self.read(opened.handle, 0, 1 << 24);
        self.drive().release(opened.handle);
        bytes
    }

    pub fn lookup(&self, name: &str) -> VfsResult<Attributes> {
        self.drive().lookup(ROOT, &named(name))
    }
}

/// Bytes that differ from each other everywhere.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn named(name: &str) -> VfsName {
    VfsName::new(name.as_bytes()).expect("a name")
}

/// Reads a content until it stands still.
fn read_settled(reader: &ContentReader) -> (Vec<u8>, Stamp) {
    let mut read = None;
    eventually("a file that nobody writes to stands still", || {
        let Some(before) = reader.stamp().expect("a stamp") else { return false };
        let mut bytes = vec![0; usize::try_from(before.size).expect("it fits")];
        let count = reader.read_at(&mut bytes, 0).expect("read");
        bytes.truncate(count);
        read = Some((bytes, before));
        reader.stamp().expect("a stamp") == Some(before)
    });
    read.expect("it was read")
}
