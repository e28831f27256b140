//! A folder as a remote, durably.
//!
//! An object is written to a temporary beside its place, synced, given its name, and then the folder is synced: after a crash it
//! is there whole or not at all. Folders that had to be made are synced too. Temporaries are never listed; those that a crash
//! left behind are removed by a listing once they are a day old.
//!
//! A folder on a disk that is not mounted looks like an empty one. So a root that is missing is
//! [`ErrorKind::Unreachable`], and so is one that is not the folder (by its time of creation, where the file system keeps it) in
//! which an object was read or written before. Symbolic links below the root are followed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Capabilities, ErrorKind, LISTED_MAX, OBJECT_MAX, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError,
    ProviderFuture, PutMode, RemoteUrl,
};

/// What the names of temporaries begin with; no object can have such a name.
const TEMPORARY_PREFIX: &str = ".cairn-tmp-";
/// Older temporaries belong to nobody: no put takes this long.
const TEMPORARY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Objects as files below a folder. A clone is the same remote.
#[derive(Clone)]
pub struct FsProvider(Arc<Folder>);

struct Folder {
    root: PathBuf,
    name: String,
    /// When the root in which an object was first seen was created.
    pinned: OnceLock<SystemTime>,
    /// Folders whose names are durable. Guards nothing else, and is not held over file operations.
    durable: Mutex<HashSet<PathBuf>>,
}

/// One operation on one object or prefix: what its errors name.
#[derive(Clone, Copy)]
struct Task<'a> {
    folder: &'a Folder,
    operation: &'static str,
    object: &'a str,
}

impl FsProvider {
    /// The folder, which must exist by the time it is used: it is never created, since a missing one may be a disk that is not
    /// mounted.
    pub fn new(root: &Path) -> Self {
        let name = RemoteUrl::Fs(root.into()).to_string();
        Self(Arc::new(Folder { root: root.into(), name, pinned: OnceLock::new(), durable: Mutex::default() }))
    }

    /// File operations block, so they run where that disturbs nobody. They go on when the caller stops waiting.
    fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        object: &str,
        work: impl FnOnce(Task<'_>) -> Result<T, ProviderError> + Send + 'static,
    ) -> ProviderFuture<'_, T> {
        let (folder, object) = (Arc::clone(&self.0), object.to_owned());
        Box::pin(async move {
            let (name, lost) = (folder.name.clone(), object.clone());
            let task = move || work(Task { folder: &folder, operation, object: &object });
            match tokio::task::spawn_blocking(task).await {
                Ok(result) => result,
                Err(error) => Err(ProviderError::new(ErrorKind::Other, operation, name, lost).with_source(error)),
            }
        })
    }
}

impl Provider for FsProvider {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: true, ranged_read: true }
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        self.run("put", path.as_str(), move |task| task.put(&body, mode))
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        self.run("get", path.as_str(), |task| task.get(range))
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        self.run("head", path.as_str(), |task| task.head())
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        let start_after = start_after.map(str::to_owned);
        self.run("list", prefix, move |task| task.list(start_after.as_deref()))
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        self.run("delete", path.as_str(), |task| task.delete())
    }
}

impl Task<'_> {
    fn error(&self, kind: ErrorKind) -> ProviderError {
        ProviderError::new(kind, self.operation, &self.folder.name, self.object)
    }

    fn failed(&self, error: io::Error) -> ProviderError {
        let (kind, retryable) = classify(&error);
        ProviderError { retryable, ..self.error(kind).with_source(error) }
    }

    /// Fails unless the root is there, and is the one it was.
    fn check_root(&self) -> Result<(), ProviderError> {
        let unreachable = |reason: &str| self.error(ErrorKind::Unreachable).with_source(reason);
        let meta = match fs::metadata(&self.folder.root) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(unreachable("the folder does not exist; mount its disk, or create it"));
            }
            Err(error) => return Err(self.failed(error)),
        };
        if !meta.is_dir() {
            return Err(self.error(ErrorKind::InvalidConfig).with_source("it is not a folder"));
        }
        match (self.folder.pinned.get(), meta.created()) {
            (Some(pinned), Ok(created)) if *pinned != created => {
                Err(unreachable("the folder is not the one it was; its disk may not be mounted"))
            }
            _ => Ok(()),
        }
    }

    /// Remembers the root as the right one, after an object was seen in it.
    fn pin_root(&self) {
        if self.folder.pinned.get().is_none() {
            if let Ok(created) = fs::metadata(&self.folder.root).and_then(|meta| meta.created()) {
                self.folder.pinned.get_or_init(|| created);
            }
        }
    }

    /// The file of the object, refusing names that this system would take for something else than a file's name.
    fn file(&self) -> Result<PathBuf, ProviderError> {
        self.below_root(self.object.split('/'))
    }

    fn below_root<'s>(&self, segments: impl Iterator<Item = &'s str>) -> Result<PathBuf, ProviderError> {
        let mut path = self.folder.root.clone();
        for segment in segments {
            let mut components = Path::new(segment).components();
            let is_name = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
            if !is_name || segment.contains(['/', '\0']) || segment.starts_with(TEMPORARY_PREFIX) {
                return Err(self.error(ErrorKind::InvalidConfig).with_source("a folder cannot hold this name"));
            }
            path.push(segment);
        }
        Ok(path)
    }

    fn put(self, body: &[u8], mode: PutMode) -> Result<(), ProviderError> {
        let file = self.file()?;
        self.check_root()?;
        let parent = file.parent().expect("a file below the root has a parent").to_owned();
        self.make_folders(&parent).map_err(|error| self.failed(error))?;
        let stored = write_whole(&parent, &file, body, mode).map_err(|error| self.failed(error));
        if stored.is_ok() {
            self.pin_root();
        }
        stored
    }

    /// Makes `folder` and what is missing between it and the root, and makes their names durable: also that of a folder which
    /// is there, since whoever made it may not have come to that yet.
    fn make_folders(&self, folder: &Path) -> io::Result<()> {
        if folder == self.folder.root || (self.folder.durable.lock().contains(folder) && folder.is_dir()) {
            return Ok(());
        }
        let above = folder.parent().ok_or(io::ErrorKind::NotFound)?;
        self.make_folders(above)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => return Err(error),
            _ => sync_folder(above)?,
        }
        self.folder.durable.lock().insert(folder.to_owned());
        Ok(())
    }

    fn get(self, range: Option<Range<u64>>) -> Result<Bytes, ProviderError> {
        let body = self.file().and_then(|file| match read(&file, range) {
            Ok(body) => Ok(body),
            Err(error) if is_absence(&error) => {
                self.check_root()?;
                Err(self.error(ErrorKind::NotFound))
            }
            Err(error) => Err(self.failed(error)),
        })?;
        self.pin_root();
        Ok(body)
    }

    fn head(self) -> Result<Option<ObjectMeta>, ProviderError> {
        match fs::metadata(self.file()?) {
            Ok(meta) if meta.is_file() => Ok(Some(ObjectMeta { size: meta.len(), modified: meta.modified().ok() })),
            Ok(_) => Ok(None),
            Err(error) if is_absence(&error) => self.check_root().map(|()| None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn delete(self) -> Result<(), ProviderError> {
        let file = self.file()?;
        match fs::remove_file(&file) {
            Ok(()) => {
                let parent = file.parent().expect("a file below the root has a parent");
                sync_folder(parent).map_err(|error| self.failed(error))
            }
            Err(error) if is_absence(&error) => self.check_root(),
            Err(_) if file.is_dir() => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn list(self, start_after: Option<&str>) -> Result<Vec<ObjectEntry>, ProviderError> {
        self.check_root()?;
        let folder = self.below_root(self.object.split('/').filter(|segment| !segment.is_empty()))?;
        let mut found = self.walk(folder)?;
        if let Some(start) = start_after {
            found.retain(|entry| entry.path.as_str() > start);
        }
        found.sort_unstable();
        // What was not mounted while we looked has not been seen.
        self.check_root()?;
        Ok(found)
    }

    /// What is in `folder`, whose objects' paths begin with our prefix, and in the folders in it.
    fn walk(&self, folder: PathBuf) -> Result<Vec<ObjectEntry>, ProviderError> {
        let mut found = Vec::new();
        let mut folders = vec![Stop { place: folder, prefix: self.object.to_owned(), links: Links::Follow }];
        while let Some(stop) = folders.pop() {
            self.look_into(&stop, &mut folders, &mut found)?;
            if found.len() > LISTED_MAX {
                return Err(self.error(ErrorKind::Corrupt).with_source("it holds more objects than any vault"));
            }
        }
        Ok(found)
    }

    fn look_into(
        &self,
        Stop { place, prefix, links }: &Stop,
        folders: &mut Vec<Stop>,
        found: &mut Vec<ObjectEntry>,
    ) -> Result<(), ProviderError> {
        let entries = match fs::read_dir(place) {
            Err(error) if is_absence(&error) => return Ok(()),
            entries => entries.map_err(|error| self.failed(error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let meta = match fs::metadata(entry.path()) {
                // Removed since it was listed, or a symbolic link to nowhere.
                Err(error) if is_absence(&error) => continue,
                meta => meta.map_err(|error| self.failed(error))?,
            };
            let path = format!("{prefix}{name}");
            if meta.is_dir() {
                let links = match (entry.file_type().is_ok_and(|kind| kind.is_symlink()), *links) {
                    (true, Links::Refuse) => return Err(self.links_in_links(&path)),
                    (true, Links::Follow) => Links::Refuse,
                    (false, links) => links,
                };
                // No object is so deep, whoever made the folder and however many there are in it.
                if path.len() < ObjectPath::LEN_MAX {
                    folders.push(Stop { place: entry.path(), prefix: format!("{path}/"), links });
                }
            } else if name.starts_with(TEMPORARY_PREFIX) {
                sweep(&entry.path(), &meta);
            } else {
                let path = ObjectPath::new(&path).map_err(|error| self.error(ErrorKind::Corrupt).with_source(error))?;
                found.push(ObjectEntry { path, size: meta.len() });
            }
        }
        Ok(())
    }

    fn links_in_links(&self, path: &str) -> ProviderError {
        let reason = format!("{path:?} is a symbolic link within a folder that is one, and may lead in a circle");
        self.error(ErrorKind::InvalidConfig).with_source(reason)
    }
}

/// A folder that a listing has to look into.
struct Stop {
    place: PathBuf,
    /// What the paths of objects in it begin with.
    prefix: String,
    links: Links,
}

/// What to do with symbolic links to folders. A part of a remote may lie elsewhere; links within links could form a circle.
#[derive(Clone, Copy)]
enum Links {
    Follow,
    Refuse,
}

/// Removes a temporary that nobody can still be writing. One that cannot be removed is no reason to fail.
fn sweep(file: &Path, meta: &fs::Metadata) {
    let age = meta.modified().ok().and_then(|modified| modified.elapsed().ok());
    if age.is_some_and(|age| age > TEMPORARY_LIFETIME) {
        if let Err(error) = fs::remove_file(file) {
            tracing::debug!(?file, %error, "cannot remove an old temporary file");
        }
    }
}

/// A temporary file that is removed unless it got its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing there means that it was renamed; anything else is swept one day.
        let _ = fs::remove_file(&self.0);
    }
}

fn write_whole(folder: &Path, file: &Path, body: &[u8], mode: PutMode) -> io::Result<()> {
    if mode == PutMode::IfAbsent && fs::symlink_metadata(file).is_ok() {
        // It may be ours, of a try that was given up before this.
        sync_folder(folder)?;
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let number = getrandom::u64().map_err(io::Error::other)?;
    let temporary = Temporary(folder.join(format!("{TEMPORARY_PREFIX}{number:016x}")));
    let mut writing = File::create_new(&temporary.0)?;
    writing.write_all(body)?;
    writing.sync_all()?;
    drop(writing);
    match mode {
        PutMode::Overwrite => fs::rename(&temporary.0, file)?,
        PutMode::IfAbsent => name_if_absent(&temporary.0, file)?,
    }
    sync_folder(folder)
}

/// A hard link is the one portable way to give a name only where there is none. File systems without links are asked first,
/// which another writer may slip past.
fn name_if_absent(temporary: &Path, file: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, file) {
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
            if fs::symlink_metadata(file).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(temporary, file)
        }
        result => result,
    }
}

fn read(file: &Path, range: Option<Range<u64>>) -> io::Result<Bytes> {
    let mut opened = File::open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut body = Vec::new();
    match range {
        None => {
            if opened.metadata()?.len() > OBJECT_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than any object"));
            }
            opened.take(OBJECT_MAX).read_to_end(&mut body)?;
        }
        Some(range) => {
            let length = range.end.checked_sub(range.start).ok_or(io::ErrorKind::UnexpectedEof)?;
            if range.end > opened.metadata()?.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            opened.seek(SeekFrom::Start(range.start))?;
            opened.take(length).read_to_end(&mut body)?;
            if body.len() as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(body.into())
}

/// Makes the names in a folder durable. Where folders cannot be opened or synced, the system does it by itself or not at all.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = match File::open(folder) {
        Err(_) if cfg!(windows) => return Ok(()),
        opened => opened?,
    };
    match opened.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

/// Whether there is no such file; a file where a folder is needed means the same.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The one place that says what a failed file operation means, and whether to repeat it.
fn classify(error: &io::Error) -> (ErrorKind, bool) {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => (ErrorKind::NotFound, false),
        Io::AlreadyExists => (ErrorKind::AlreadyExists, false),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => (ErrorKind::PermissionDenied, false),
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (ErrorKind::NoSpace, false),
        Io::UnexpectedEof | Io::InvalidData => (ErrorKind::Corrupt, false),
        Io::TimedOut => (ErrorKind::Timeout, true),
        Io::StaleNetworkFileHandle
        | Io::HostUnreachable
        | Io::NetworkUnreachable
        | Io::NetworkDown
        | Io::NotConnected
        | Io::ConnectionReset
        | Io::ConnectionAborted
        | Io::BrokenPipe => (ErrorKind::Unreachable, true),
        Io::Interrupted | Io::WouldBlock | Io::ResourceBusy => (ErrorKind::Other, true),
        _ => (ErrorKind::Other, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).expect("a name")
    }

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).expect("readable");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn no_temporary_is_left_after_any_outcome() {
        let root = tempfile::tempdir().expect("a folder");
        let provider = FsProvider::new(root.path());
        provider.put(&path("a"), Bytes::from_static(b"1"), PutMode::IfAbsent).await.expect("stored");
        let error = provider.put(&path("a"), Bytes::from_static(b"2"), PutMode::IfAbsent).await.expect_err("taken");
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        fs::create_dir(root.path().join("folder")).expect("made");
        provider.put(&path("folder"), Bytes::from_static(b"3"), PutMode::Overwrite).await.expect_err("a folder");
        assert_eq!(names(root.path()), ["a", "folder"]);
    }

    #[tokio::test]
    async fn one_of_many_racing_writers_wins() {
        let root = tempfile::tempdir().expect("a folder");
        let provider = FsProvider::new(root.path());
        for round in 0..5 {
            let object = path(&format!("deep/{round}/race"));
            let bodies: Vec<Bytes> = (0..8).map(|writer: u8| vec![writer; 100].into()).collect();
            let puts = bodies.iter().map(|body| provider.put(&object, body.clone(), PutMode::IfAbsent));
            let results = futures::future::join_all(puts).await;
            let winners: Vec<usize> = (0..8).filter(|writer| results[*writer].is_ok()).collect();
            assert_eq!(winners.len(), 1);
            assert_eq!(provider.get(&object, None).await.expect("there"), bodies[winners[0]]);
        }
    }

    #[tokio::test]
    async fn temporaries_are_not_listed_and_swept_when_old() {
        let root = tempfile::tempdir().expect("a folder");
        let (old, young) = (root.path().join(".cairn-tmp-old"), root.path().join(".cairn-tmp-young"));
        let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
        File::create(&old).and_then(|file| file.set_modified(two_days_ago)).expect("made");
        File::create(&young).expect("made");
        let provider = FsProvider::new(root.path());
        assert_eq!(provider.list("", None).await.expect("listed"), []);
        assert_eq!(names(root.path()), [".cairn-tmp-young"]);
        let error = provider.put(&path(".cairn-tmp-x"), Bytes::new(), PutMode::Overwrite).await.expect_err("reserved");
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
    }

    #[tokio::test]
    async fn a_root_that_is_gone_is_unreachable_and_never_empty() {
        let parent = tempfile::tempdir().expect("a folder");
        let root = parent.path().join("disk");
        let provider = FsProvider::new(&root);
        let object = path("a/b");
        let kinds = [
            provider.list("", None).await.map(drop).expect_err("gone").kind,
            provider.list("a/", None).await.map(drop).expect_err("gone").kind,
            provider.head(&object).await.map(drop).expect_err("gone").kind,
            provider.get(&object, None).await.map(drop).expect_err("gone").kind,
            provider.delete(&object).await.expect_err("gone").kind,
            provider.put(&object, Bytes::new(), PutMode::Overwrite).await.expect_err("gone").kind,
        ];
        assert_eq!(kinds, [ErrorKind::Unreachable; 6]);
        assert!(!root.exists(), "a missing root is never created");
    }

    #[tokio::test]
    async fn a_root_that_was_replaced_is_unreachable() {
        let parent = tempfile::tempdir().expect("a folder");
        let root = parent.path().join("disk");
        fs::create_dir(&root).expect("made");
        let Ok(created) = fs::metadata(&root).expect("there").created() else {
            println!("skipped: this file system keeps no time of creation");
            return;
        };
        let (provider, object) = (FsProvider::new(&root), path("a"));
        provider.put(&object, Bytes::from_static(b"1"), PutMode::Overwrite).await.expect("stored");
        fs::rename(&root, parent.path().join("unmounted")).expect("moved");
        // Times of creation advance with the ticks of the kernel's clock.
        loop {
            fs::create_dir(&root).expect("made");
            if fs::metadata(&root).and_then(|meta| meta.created()).expect("kept") != created {
                break;
            }
            fs::remove_dir(&root).expect("removed");
        }
        assert_eq!(provider.head(&object).await.expect_err("another folder").kind, ErrorKind::Unreachable);
        assert_eq!(provider.list("", None).await.expect_err("another folder").kind, ErrorKind::Unreachable);
        let put = provider.put(&object, Bytes::new(), PutMode::Overwrite).await;
        assert_eq!(put.expect_err("another folder").kind, ErrorKind::Unreachable);
        fs::remove_dir(&root).expect("empty still");
        fs::rename(parent.path().join("unmounted"), &root).expect("mounted again");
        assert_eq!(provider.get(&object, None).await.expect("there"), Bytes::from_static(b"1"));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_linked_folder_is_listed_and_a_circle_refused() {
        let (root, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("packs")).expect("linked");
        let provider = FsProvider::new(root.path());
        provider.put(&path("packs/ab/1"), Bytes::from_static(b"1"), PutMode::IfAbsent).await.expect("stored");
        assert!(elsewhere.path().join("ab/1").exists());
        let listed = provider.list("", None).await.expect("listed");
        assert_eq!(listed, [ObjectEntry { path: path("packs/ab/1"), size: 1 }]);
        std::os::unix::fs::symlink("..", root.path().join("packs/ab/circle")).expect("linked");
        assert_eq!(provider.list("", None).await.expect_err("a circle").kind, ErrorKind::InvalidConfig);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn folders_without_end_end_no_listing() {
        let root = tempfile::tempdir().expect("a folder");
        let provider = FsProvider::new(root.path());
        provider.put(&path("log/1"), Bytes::from_static(b"1"), PutMode::IfAbsent).await.expect("stored");
        // Deeper than a path may name: each is made beside the others and moved to where it belongs, the innermost first.
        let (inner, outer) = (root.path().join("inner"), root.path().join("outer"));
        fs::create_dir(&inner).expect("made");
        for _ in 0..3000 {
            fs::create_dir(&outer).expect("made");
            fs::rename(&inner, outer.join("a")).expect("moved");
            fs::rename(&outer, &inner).expect("moved");
        }
        fs::rename(&inner, root.path().join("log/deep")).expect("moved");
        assert_eq!(provider.list("", None).await.expect("listed"), [ObjectEntry { path: path("log/1"), size: 1 }]);
        // What removes a temporary folder may go by paths, and these are too long.
        while root.path().join("log/deep").exists() {
            let next = root.path().join("next");
            let deeper = fs::rename(root.path().join("log/deep/a"), &next).is_ok();
            fs::remove_dir(root.path().join("log/deep")).expect("empty");
            if deeper {
                fs::rename(&next, root.path().join("log/deep")).expect("moved");
            }
        }
    }

    #[tokio::test]
    async fn what_others_left_in_the_folder_is_listed() {
        // On Windows the stroke separates folders.
        let file = if cfg!(windows) { "My Files/deep/ünï code.txt" } else { "My Files/deep/ünï \\code.txt" };
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("My Files/deep")).expect("made");
        fs::write(root.path().join(file), b"12345").expect("written");
        let listed = FsProvider::new(root.path()).list("", None).await.expect("listed");
        assert_eq!(listed, [ObjectEntry { path: path(file), size: 5 }]);
    }
}
