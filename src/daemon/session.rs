//! The life of a mounted drive: open, mount, answer orders, end.
//!
//! Mounting asks the remote nothing: the vault is unlocked with the copy of its descriptor and key slots that attaching made,
//! and the drive shows what it has. The mount ends when it is unmounted, by whomever, or by a signal; then everything is
//! durable here, and what the remote lacks is sent after the next mount.
//!
//! Threads: the caller's waits for the end of the mount; everything else runs on the runtime that is made here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use cairn_platform_api::{Caller, FsError, InodeNo, SetAttributes, SetTime, Timestamp, Vfs};
use cairn_platform_memory::MemoryFs;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::control::{ControlFile, DriveStatus, InUse, Reply, Request, Token};
use super::driver::{self, Mount, MountOptions, Signal, Signals};
use super::error::{SessionError, system};
use super::server::{self, Handler, Replies};
use crate::base::{DeviceId, os};
use crate::config::credentials::Credentials;
use crate::config::{DataDir, DriveRecord, FsyncPolicy, Settings};
use crate::crypto::Secret;
use crate::drive::{ContentSource, Drive, DriveError, DriveSettings, MemorySource};
use crate::provider::fs::FsProvider;
use crate::provider::{BandwidthLimits, ProviderSettings, RemoteUrl};
use crate::replicate::{DeviceStatus, DrainError, DrainProgress, Fetcher, ReplicateSettings, Replicator, Status};
use crate::tree::DeviceIdentity;
use crate::vault::{Vault, VaultError, VaultFiles};

/// How long programs may keep a mount alive that was taken away from them.
const GRACE: Duration = Duration::from_secs(10);
/// How long the tasks of the runtime may take to notice that it ends.
const RUNTIME_END: Duration = Duration::from_secs(5);
/// How long a process whose mount is gone may take to end.
const OTHER_PROCESS_END: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Says that the logs of the vault have been read once.
const JOINED_FILE: &str = "joined";

/// Everything it takes to mount a drive.
pub struct Plan {
    /// The drive.
    pub record: DriveRecord,
    /// Where its directory is.
    pub data: DataDir,
    /// Where to mount it; see [`driver::check_mountpoint`].
    pub mountpoint: PathBuf,
    /// What unlocks the vault.
    pub secret: Secret,
    /// Keys of remotes.
    pub credentials: Credentials,
    /// The drive's settings.
    pub settings: Settings,
    /// How to mount.
    pub options: MountOptions,
}

/// A runtime for a process that works in the background of others: few threads, however many cores there are.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> Result<Runtime, SessionError> {
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4));
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("cairn")
        .enable_all()
        .build()
        .map_err(system("start threads"))
}

/// Mounts a drive and stays until the mount ends. `ready` is called once it can be used.
///
/// # Errors
/// [`SessionError`]; when it comes before `ready`, nothing is mounted.
pub fn run(plan: Plan, ready: impl FnOnce() -> io::Result<()>) -> Result<(), SessionError> {
    driver::raise_limits();
    let runtime = runtime()?;
    let signals = listen(&runtime)?;
    let drive_dir = plan.data.drive_dir(&plan.record);
    let opened = open(&plan, &drive_dir, &runtime)?;
    let vfs: Arc<dyn Vfs> = Arc::<Drive>::clone(&opened.drive);
    let source = driver::source_name(&plan.record.name);
    let mount = driver::mount(Arc::clone(&vfs), &plan.mountpoint, &source, plan.options, runtime.handle().clone())?;
    let ending = Arc::new(Ending { mount, vfs, mountpoint: plan.mountpoint.display().to_string() });
    runtime.spawn(Arc::clone(&ending).follow(signals));

    let departures = Arc::new(Mutex::default());
    let session = Arc::new(Session {
        departures: Arc::clone(&departures),
        ending: Arc::clone(&ending),
        drive: Arc::clone(&opened.drive),
        replicator: Arc::clone(&opened.replicator),
        bandwidth: opened.bandwidth.clone(),
        record: plan.record,
    });
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).map_err(system("listen on 127.0.0.1"))?;
    let file = ControlFile {
        port: listener.local_addr().map_err(system("listen on 127.0.0.1"))?.port(),
        token: Token::random()?,
        process: std::process::id(),
        mountpoint: ending.mountpoint.clone(),
    };
    runtime.spawn(server::serve(listener, file.token.clone(), session));
    let published = file.publish(&drive_dir)?;
    ready().map_err(system("say that the drive is mounted"))?;
    tracing::info!(mountpoint = ending.mountpoint, "mounted");

    let ended = ending.mount.wait();
    tracing::info!("the mount has ended");
    drop(published);
    runtime.block_on(opened.replicator.stop());
    let closed = opened.drive.close();
    // The drive is free for other processes once nothing holds it, and that is what clients wait for.
    runtime.shutdown_timeout(RUNTIME_END);
    let name = opened.name;
    drop((ending, opened.replicator, opened.drive));
    // Their connections close with the process, after its locks: whoever waited may open the drive at once.
    std::mem::forget(departures);
    ended.map_err(system("end the mount cleanly"))?;
    closed.map_err(|source| SessionError::Close { name, source })
}

/// Mounts a file system that is in memory only and stays until the mount ends.
///
/// # Errors
/// As [`run`].
pub fn run_memory(
    mountpoint: &Path,
    options: MountOptions,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), SessionError> {
    driver::raise_limits();
    let runtime = runtime()?;
    let signals = listen(&runtime)?;
    let vfs: Arc<dyn Vfs> = Arc::new(MemoryFs::new());
    own_root(&*vfs, os::current_owner())
        .map_err(|source| SessionError::OwnRoot { name: "memory".to_owned(), source })?;
    let mount =
        driver::mount(Arc::clone(&vfs), mountpoint, &driver::source_name("memory"), options, runtime.handle().clone())?;
    let ending = Arc::new(Ending { mount, vfs, mountpoint: mountpoint.display().to_string() });
    runtime.spawn(Arc::clone(&ending).follow(signals));
    ready().map_err(system("say that the drive is mounted"))?;
    let ended = ending.mount.wait();
    drop(ending);
    runtime.shutdown_timeout(RUNTIME_END);
    ended.map_err(system("end the mount cleanly"))
}

fn listen(runtime: &Runtime) -> Result<Signals, SessionError> {
    let _context = runtime.enter();
    Signals::listen().map_err(system("listen to signals"))
}

struct Opened {
    name: String,
    drive: Arc<Drive>,
    replicator: Arc<Replicator>,
    bandwidth: BandwidthLimits,
}

fn open(plan: &Plan, drive_dir: &Path, runtime: &Runtime) -> Result<Opened, SessionError> {
    let Plan { record, settings, .. } = plan;
    let name = record.name.clone();
    let size = |limit: Option<crate::config::settings::HumanSize>| limit.map(|size| size.0);
    let bandwidth = BandwidthLimits::new(size(settings.upload_limit), size(settings.download_limit));
    let url = RemoteUrl::parse(&record.remote).map_err(|source| SessionError::Url { name: name.clone(), source })?;
    let mut provider_settings = ProviderSettings { bandwidth: bandwidth.clone(), ..ProviderSettings::default() };
    if let Some(timeout) = settings.request_timeout {
        provider_settings.timeout.base = timeout.0;
    }
    let provider = crate::provider::open(&url, &plan.credentials, &provider_settings)?;
    let vault = runtime
        .block_on(unlock(drive_dir, &plan.secret))
        .map_err(|source| SessionError::Vault { name: name.clone(), source })?;

    let mut replicate_settings = ReplicateSettings { bandwidth: bandwidth.clone(), ..ReplicateSettings::default() };
    if let Some(settle) = settings.settle {
        replicate_settings.settle.settle = settle.0;
    }
    if let Some(delay) = settings.max_delay {
        replicate_settings.settle.max_delay = delay.0;
    }
    if let Some(interval) = settings.pull_interval {
        replicate_settings.pull_interval = interval.0;
    }
    if let Some(deadline) = settings.read_deadline {
        replicate_settings.read_deadline = deadline.0;
    }
    let handle = runtime.handle();
    let fetcher = Fetcher::new(Arc::new(vault), provider, &replicate_settings, handle.clone());
    let mut drive_settings = DriveSettings::new(identity(record)?, handle.clone());
    if let Some(budget) = size(settings.cache_budget) {
        drive_settings.cache_budget = budget;
    }
    drive_settings.read_deadline = replicate_settings.read_deadline;
    let drive = open_once_free(drive_dir, drive_settings, Arc::new(fetcher.clone()))
        .map_err(|source| SessionError::Drive { name: name.clone(), source })?;
    let replicator = Arc::new(Replicator::start(Arc::clone(&drive), &fetcher, replicate_settings, handle));
    join(drive_dir, &drive, &replicator, runtime, &name)?;
    if settings.fsync == FsyncPolicy::Remote {
        // The drive must not keep the replicator that keeps the drive.
        let replicator = Arc::downgrade(&replicator);
        drive.sync_remotely(Box::new(move |ino| Box::pin(sent(replicator.clone(), ino))));
    }
    Ok(Opened { name, drive, replicator, bandwidth })
}

/// Opens a drive. A process whose mount has just been taken away still has it until everything is durable.
fn open_once_free(
    drive_dir: &Path,
    settings: DriveSettings,
    source: Arc<dyn ContentSource>,
) -> Result<Arc<Drive>, DriveError> {
    let begun = Instant::now();
    let mut said = false;
    loop {
        match Drive::open(drive_dir, settings.clone(), Arc::clone(&source)) {
            Err(error @ DriveError::InUse(_)) if begun.elapsed() < OTHER_PROCESS_END => {
                if !said {
                    tracing::warn!("{error}; waiting for it to end");
                    said = true;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            opened => return opened,
        }
    }
}

/// Waits until the remote has the inode. While it is paused or halted an `fsync` would wait for ever, so it fails; so it does
/// for a file that cannot be sent.
async fn sent(replicator: Weak<Replicator>, ino: InodeNo) -> Result<(), FsError> {
    let replicator = replicator.upgrade().ok_or(FsError::Io)?;
    replicator.send(ino).await.map_err(|error| {
        tracing::error!(error = one_line(&error), "an fsync that waits for the remote failed");
        FsError::Io
    })
}

/// A new member of the vault has nothing to show before it has read the others' logs: until that has been done once, an empty
/// directory could be taken for an empty vault.
fn join(
    drive_dir: &Path,
    drive: &Drive,
    replicator: &Replicator,
    runtime: &Runtime,
    name: &str,
) -> Result<(), SessionError> {
    let joined = drive_dir.join(JOINED_FILE);
    if joined.exists() {
        return Ok(());
    }
    let failed = |source| SessionError::Join { name: name.to_owned(), source };
    runtime.block_on(replicator.engine().pull_round()).map_err(failed)?;
    if let Some(reason) = unreadable_log(&replicator.status().map_err(failed)?) {
        return Err(SessionError::JoinDamaged { name: name.to_owned(), reason });
    }
    own_new_root(drive).map_err(|source| SessionError::OwnRoot { name: name.to_owned(), source })?;
    crate::config::replace_private_file(&joined, b"")?;
    Ok(())
}

/// Says of a device whose log cannot be read any further, if there is one, why, and what to do.
fn unreadable_log(status: &Status) -> Option<String> {
    let (device, reason) =
        status.devices.iter().find_map(|device| device.halted.as_ref().map(|reason| (device, reason)))?;
    let DeviceStatus { name, id, .. } = device;
    // Its name is in its log.
    let device = if name.is_empty() { id.clone() } else { format!("{name:?} ({id})") };
    Some(format!(
        "the log of device {device} cannot be read any further: {reason}; until the vault is restored, what that device \
         did later is missing here"
    ))
}

/// The same, or of a log that is gone although all of it was read here.
fn incomplete_log(status: &Status) -> Option<String> {
    unreadable_log(status).or_else(|| {
        let DeviceStatus { name, id, missing, .. } = status.devices.iter().find(|device| device.missing.is_some())?;
        let missing = missing.as_ref()?;
        Some(format!(
            "of device {name:?} ({id}): {missing}; restore the vault, or others cannot read what that device did"
        ))
    })
}

/// The root of a new vault belongs to who mounts it first.
fn own_new_root(drive: &Drive) -> Result<(), FsError> {
    let is_new = drive.getattr(InodeNo::ROOT, None)?.ctime == Timestamp::default();
    if is_new { own_root(drive, os::current_owner()) } else { Ok(()) }
}

/// Gives a root that has no owner but root yet to a user: an ordinary one could not make anything in it.
fn own_root(vfs: &dyn Vfs, (uid, gid): (u32, u32)) -> Result<(), FsError> {
    if uid == 0 {
        return Ok(());
    }
    let set = SetAttributes { uid: Some(uid), gid: Some(gid), mtime: Some(SetTime::Now), ..SetAttributes::default() };
    vfs.setattr(Caller { uid: 0, gid: 0, pid: 0, umask: 0 }, InodeNo::ROOT, None, set).wait().map(|_| ())
}

/// What only this machine has of a drive that is not mounted.
///
/// # Errors
/// [`SessionError`], also when the drive is in use.
pub fn unpublished(data: &DataDir, record: &DriveRecord) -> Result<DrainProgress, SessionError> {
    let runtime = runtime()?;
    let failed = |source| SessionError::Drive { name: record.name.clone(), source };
    let settings = DriveSettings::new(identity(record)?, runtime.handle().clone());
    let source = Arc::new(MemorySource::default());
    let drive = open_once_free(&data.drive_dir(record), settings, source).map_err(failed)?;
    drive.wait_for_recovery();
    crate::replicate::unpublished(&drive)
        .map_err(|source| SessionError::Replication { name: record.name.clone(), source })
}

/// This machine as a member of the vault.
fn identity(record: &DriveRecord) -> Result<DeviceIdentity, SessionError> {
    let unusable = || SessionError::Record { name: record.name.clone(), field: "device id" };
    let id = u32::from_str_radix(&record.device, 16).map(DeviceId).map_err(|_| unusable())?;
    if !id.is_valid() {
        return Err(unusable());
    }
    let name = &record.device_name;
    DeviceIdentity::check_name(name)
        .map_err(|_| SessionError::Record { name: record.name.clone(), field: "device name" })?;
    Ok(DeviceIdentity { id, name: name.clone() })
}

/// Where a drive keeps its copy of the vault's descriptor and key slots.
pub fn vault_copy_dir(drive_dir: &Path) -> PathBuf {
    drive_dir.join("vault")
}

/// That copy, to be read and written.
pub fn vault_copy(drive_dir: &Path) -> FsProvider {
    FsProvider::new(&vault_copy_dir(drive_dir))
}

async fn unlock(drive_dir: &Path, secret: &Secret) -> Result<Vault, VaultError> {
    VaultFiles::fetch(&vault_copy(drive_dir)).await?.unlock(secret)
}

/// The ways a mount ends on purpose.
struct Ending {
    mount: Mount,
    vfs: Arc<dyn Vfs>,
    mountpoint: String,
}

impl Ending {
    /// Ends the mount on a signal. The person at the terminal is told when it is in use, and insists with a second signal;
    /// the system is in a hurry.
    async fn follow(self: Arc<Self>, mut signals: Signals) {
        let mut in_use = InUse::Refuse;
        loop {
            if signals.next().await == Signal::Terminate {
                in_use = InUse::Force;
            }
            match Arc::clone(&self).end(in_use).await {
                Ok(()) => return,
                Err(message) => tracing::error!("{message}; a second Ctrl-C ends it anyway"),
            }
            in_use = InUse::Force;
        }
    }

    async fn end(self: Arc<Self>, in_use: InUse) -> Result<(), String> {
        let ending = Arc::clone(&self);
        let ended = tokio::task::spawn_blocking(move || match (ending.mount.unmount(), in_use) {
            (Err(error), InUse::Force) if error.kind() == io::ErrorKind::ResourceBusy => {
                ending.mount.detach().map(|()| true)
            }
            (unmounted, _) => unmounted.map(|()| false),
        });
        let mountpoint = &self.mountpoint;
        match ended.await.map_err(io::Error::other).and_then(|ended| ended) {
            Ok(detached) => {
                if detached {
                    tokio::spawn(Arc::clone(&self).leave_after_grace());
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(format!(
                "{mountpoint} is in use; close the programs that use it (`fuser -m {mountpoint}` lists them) or use \
                 `cairn umount --force {mountpoint}`"
            )),
            Err(error) => Err(format!("cannot unmount {mountpoint}: {error}")),
        }
    }

    /// Programs that keep files open do not keep the process for ever.
    async fn leave_after_grace(self: Arc<Self>) {
        tokio::time::sleep(GRACE).await;
        tracing::warn!(mountpoint = self.mountpoint, "ending although programs still have files open");
        let synced = tokio::task::spawn_blocking(move || self.vfs.destroy()).await;
        std::process::exit(i32::from(!matches!(synced, Ok(Ok(())))));
    }
}

/// What orders work on.
struct Session {
    record: DriveRecord,
    drive: Arc<Drive>,
    replicator: Arc<Replicator>,
    bandwidth: BandwidthLimits,
    ending: Arc<Ending>,
    /// Clients that wait for the end; a leaf lock.
    departures: Arc<Mutex<Vec<Replies>>>,
}

impl Handler for Session {
    fn handle(self: Arc<Self>, request: Request, replies: Replies) -> BoxFuture<'static, ()> {
        Box::pin(self.carry_out(request, replies))
    }
}

impl Session {
    async fn carry_out(self: Arc<Self>, request: Request, mut replies: Replies) {
        let reply = match request {
            Request::Status => self.status(),
            Request::Drain { timeout_ms } => match self.drain(timeout_ms, &mut replies).await {
                Some(reply) => reply,
                None => return,
            },
            Request::Pause => {
                self.replicator.pause();
                Reply::Done
            }
            Request::Resume => {
                self.replicator.resume();
                Reply::Done
            }
            Request::Pull => match self.pull().await {
                Ok(()) => Reply::Done,
                Err(message) => Reply::Failed { message },
            },
            Request::Limits { upload, download } => {
                let (up, down) = self.bandwidth.get();
                self.bandwidth.set(upload.apply(up), download.apply(down));
                Reply::Done
            }
            Request::Unmount { in_use } => return self.unmount(in_use, replies).await,
        };
        // A client that is gone needs no answer.
        let _ = replies.send(&reply).await;
    }

    /// Looks for what other devices published. Who asks is told when not all of it can be read.
    async fn pull(&self) -> Result<(), String> {
        let engine = self.replicator.engine();
        engine.look_again().await;
        engine.pull_round().await.map_err(|error| one_line(&error))?;
        let status = self.replicator.status().map_err(|error| one_line(&error))?;
        incomplete_log(&status).map_or(Ok(()), Err)
    }

    fn status(&self) -> Reply {
        match self.replicator.status() {
            Ok(replication) => Reply::Status(Box::new(DriveStatus {
                mountpoint: Some(self.ending.mountpoint.clone()),
                process: Some(std::process::id()),
                replication: Some(replication),
                ..DriveStatus::not_mounted(&self.record)
            })),
            Err(error) => Reply::Failed { message: one_line(&error) },
        }
    }

    /// The result, or nothing when the client has gone.
    async fn drain(&self, timeout_ms: Option<u64>, replies: &mut Replies) -> Option<Reply> {
        let (sender, mut receiver) = watch::channel(DrainProgress::default());
        let drive = Arc::clone(&self.drive);
        let drain = async {
            // What an unclean stop left may not be seen as unpublished yet.
            let recovered = tokio::task::spawn_blocking(move || drive.wait_for_recovery()).await;
            recovered.map_err(|error| DrainError::Failed(error.to_string()))?;
            let report = move |progress| _ = sender.send_replace(progress);
            self.replicator.drain(report).await
        };
        let deadline = async {
            match timeout_ms {
                Some(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(drain, deadline);
        let mut left = DrainProgress::default();
        let (before, _) = self.sent();
        let incomplete = |left, reason: String| Some(Reply::Incomplete { left, reason });
        loop {
            tokio::select! {
                ended = &mut drain => return match ended {
                    Ok(()) => Some(Reply::Done),
                    Err(error) => incomplete(left, one_line(&error)),
                },
                () = &mut deadline => {
                    // Nothing may have been reported yet.
                    left = crate::replicate::unpublished(&self.drive).unwrap_or(left);
                    replies.send(&self.draining(left, before)).await.ok()?;
                    let trouble = self.trouble().map_or(String::new(), |trouble| format!("; {trouble}"));
                    return incomplete(left, format!("the time that was given is over{trouble}"));
                }
                Ok(()) = receiver.changed() => {
                    left = *receiver.borrow_and_update();
                    replies.send(&self.draining(left, before)).await.ok()?;
                },
            }
        }
    }

    /// How far a drain is that began when so many bytes had been sent.
    fn draining(&self, left: DrainProgress, before: u64) -> Reply {
        let (done, rate) = self.sent();
        Reply::Draining { left, sent: done.saturating_sub(before), rate, trouble: self.trouble() }
    }

    /// Bytes that the remote has acknowledged so far, and how fast it does.
    fn sent(&self) -> (u64, u64) {
        // What cannot be read now fails the drain by itself.
        self.replicator.status().map_or((0, 0), |status| (status.sending.bytes_done, status.sending.rate))
    }

    /// What keeps replication from going on, if anything does.
    fn trouble(&self) -> Option<String> {
        let status = self.replicator.status().ok()?;
        let incomplete = incomplete_log(&status);
        status.last_error.map(|trouble| trouble.message).or(status.waits_for).or(incomplete)
    }

    /// Ends the mount; the client learns that the drive is free by the end of the connection.
    async fn unmount(&self, in_use: InUse, mut replies: Replies) {
        // The process may be gone before it could say that it is done.
        if replies.send(&Reply::Ending).await.is_err() {
            return;
        }
        match Arc::clone(&self.ending).end(in_use).await {
            Ok(()) => self.departures.lock().push(replies),
            // A client that is gone needs no answer.
            Err(message) => _ = replies.send(&Reply::Failed { message }).await,
        }
    }
}

/// An error and its sources.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = error.source();
    }
    line
}
