//! The tasks that run rounds, and the handle that the daemon holds.
//!
//! A round that fails or panics is reported and tried again after a wait that grows; a wish (drain, pull now, resume)
//! ends the wait.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::backoff::Backoff;
use super::engine::{Engine, Mode};
use super::error::ReplicateError;
use super::fetch::Fetcher;
use super::left::Left;
use super::push::Pushed;
use super::settle::Urgency;
use super::status::Severity;
use super::wanted::Sent;
use super::{DrainProgress, ReplicateSettings, Status};
use crate::drive::Drive;
use crate::tree::Unpublished;

/// How often the drive is asked whether something has settled.
const PUSH_TICK: Duration = Duration::from_millis(500);

/// How often it is looked whether a checkpoint is due; a push that sent something looks, too.
const CHECKPOINT_TICK: Duration = Duration::from_secs(60);

/// Looking for what is ready takes at most one part in so many of the time.
const SEARCH_SHARE: u32 = 10;
/// The longest wait between tries while somebody waits.
const WAITED_FOR: Duration = Duration::from_secs(5);
/// How many rounds try to send a file that somebody waits for, before that is told that it cannot be.
const ATTEMPTS: u32 = 3;

/// Background replication of one drive. Dropping it stops the tasks without waiting for them.
pub struct Replicator {
    engine: Arc<Engine>,
    wishes: Arc<Wishes>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Wishes {
    push: Notify,
    pull: Notify,
    /// A push sent something.
    checkpoint: Notify,
    /// Callers that wait for a drain.
    drains: AtomicUsize,
    /// Counts push rounds that were begun, and says of the last one that ended how.
    rounds: watch::Sender<Rounds>,
}

#[derive(Debug, Clone, Default)]
struct Rounds {
    begun: u64,
    /// The number of the last round that ended well with [`Urgency::Drain`].
    ended: u64,
    /// What that one left behind.
    left: Left,
}

/// Why a drain ended without everything being on the remote.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DrainError {
    /// It would wait for ever.
    #[error("replication is paused; resume it first")]
    Paused,
    /// The drive is being closed.
    #[error("replication was stopped")]
    Stopped,
    /// A person has to look.
    #[error("{0}")]
    Halted(String),
    /// Files could not be sent, although that was tried several times; everything else was.
    #[error("{0}")]
    Left(String),
    /// The rows of the drive cannot be read.
    #[error("{0}")]
    Failed(String),
}

impl Replicator {
    /// Starts the tasks on `runtime`.
    pub fn start(drive: Arc<Drive>, fetcher: &Fetcher, settings: ReplicateSettings, runtime: &Handle) -> Self {
        Self::over(Engine::new(drive, fetcher, settings), runtime)
    }

    /// Starts the tasks that run the rounds of an engine.
    pub fn over(engine: Arc<Engine>, runtime: &Handle) -> Self {
        let wishes = Arc::new(Wishes::default());
        let push = runtime.spawn(push_task(Arc::clone(&engine), Arc::clone(&wishes)));
        let pull = runtime.spawn(pull_task(Arc::clone(&engine), Arc::clone(&wishes)));
        let checkpoint = runtime.spawn(checkpoint_task(Arc::clone(&engine), Arc::clone(&wishes)));
        Self { engine, wishes, tasks: Mutex::new(vec![push, pull, checkpoint]) }
    }

    /// What the rounds share.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Everything there is to say.
    ///
    /// # Errors
    /// When the rows of the drive cannot be read.
    pub fn status(&self) -> Result<Status, ReplicateError> {
        self.engine.status()
    }

    /// Stops requests to the remote; readers still get content.
    pub fn pause(&self) {
        self.engine.set_mode(Mode::Paused);
    }

    /// Goes on after [`Self::pause`], and does not wait for the end of any waiting time.
    pub fn resume(&self) {
        self.engine.set_mode(Mode::Running);
        self.wishes.push.notify_one();
        self.wishes.pull.notify_one();
    }

    /// Looks for what other devices published, now.
    pub fn pull_now(&self) {
        self.wishes.pull.notify_one();
    }

    /// Ends when everything that was accepted before the call is on the remote, however long the remote is away, and
    /// whatever is written meanwhile. Progress is reported now and then.
    ///
    /// # Errors
    /// When it can't end by itself, and [`DrainError::Left`].
    pub async fn drain(&self, progress: impl FnMut(DrainProgress)) -> Result<(), DrainError> {
        self.drain_until(progress, || Ok(false)).await
    }

    /// Ends when what an inode was at the call is on the remote, under its names; or the names of a directory, with what
    /// they need. Other files that cannot be sent do not matter, unless the inode cannot be published without them.
    ///
    /// # Errors
    /// When it can't end by itself, and [`DrainError::Left`].
    pub async fn send(&self, ino: InodeNo) -> Result<(), DrainError> {
        if self.unpublished(ino)? == Unpublished::Nothing && self.engine.nothing_waits().map_err(not_read)? {
            return Ok(());
        }
        for attempt in 1.. {
            let waiting = self.engine.wanted.wish(ino);
            self.wishes.push.notify_one();
            match self.while_running(waiting.answer()).await? {
                Sent::Content => break,
                Sent::Left(_) if attempt < ATTEMPTS => {}
                Sent::Left(reason) => {
                    return Err(DrainError::Left(format!("{:?} {reason}", self.engine.drive.path_of(ino))));
                }
            }
        }
        if self.unpublished(ino)? < Unpublished::Names {
            return Ok(());
        }
        self.drain_until(|_| (), || Ok(self.unpublished(ino)? < Unpublished::Names)).await
    }

    fn unpublished(&self, ino: InodeNo) -> Result<Unpublished, DrainError> {
        self.engine.tree.unpublished(ino).map_err(|error| not_read(error.into()))
    }

    /// Drains; ends also when a round has left files and `suffices` says that they do not matter.
    async fn drain_until(
        &self,
        mut progress: impl FnMut(DrainProgress),
        suffices: impl Fn() -> Result<bool, DrainError>,
    ) -> Result<(), DrainError> {
        let _draining = Draining::begin(&self.wishes);
        let mut rounds = self.wishes.rounds.subscribe();
        let mut seen = rounds.borrow_and_update().begun;
        let mut attempts = 0;
        loop {
            let begun = Instant::now();
            self.is_running()?;
            let status = self.engine.status().map_err(not_read)?;
            progress(DrainProgress {
                changes_left: status.changes_only_here,
                files_left: status.files_only_here,
                bytes_left: status.bytes_only_here,
                segments_left: status.outbox,
            });
            let Rounds { ended, left, .. } = rounds.borrow_and_update().clone();
            if ended > seen {
                if left.is_empty() || suffices()? {
                    return Ok(());
                }
                (seen, attempts) = (ended, attempts + 1);
                if attempts >= ATTEMPTS {
                    return Err(DrainError::Left(self.engine.describe(&left)));
                }
            }
            let tick = PUSH_TICK.max(begun.elapsed() * SEARCH_SHARE);
            let mut mode = self.engine.mode.subscribe();
            tokio::select! {
                // Both senders live as long as `self`.
                _ = rounds.changed() => {}
                _ = mode.wait_for(|mode| *mode != Mode::Running) => {}
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// Waits, unless rounds stop.
    async fn while_running<T>(&self, work: impl Future<Output = T>) -> Result<T, DrainError> {
        tokio::pin!(work);
        loop {
            self.is_running()?;
            let mut mode = self.engine.mode.subscribe();
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = mode.wait_for(|mode| *mode != Mode::Running) => {}
                () = tokio::time::sleep(PUSH_TICK) => {}
            }
        }
    }

    /// Whether rounds can go on by themselves.
    fn is_running(&self) -> Result<(), DrainError> {
        match *self.engine.mode.borrow() {
            Mode::Running => {}
            Mode::Paused => return Err(DrainError::Paused),
            Mode::Stopped => return Err(DrainError::Stopped),
        }
        self.engine.board.halted().map_or(Ok(()), |reason| Err(DrainError::Halted(reason)))
    }

    /// Ends the tasks and waits for them; what is on its way is broken off and sent again next time.
    pub async fn stop(&self) {
        self.engine.set_mode(Mode::Stopped);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a replication task ended badly");
            }
        }
    }
}

impl Drop for Replicator {
    fn drop(&mut self) {
        self.engine.set_mode(Mode::Stopped);
    }
}

fn not_read(error: ReplicateError) -> DrainError {
    DrainError::Failed(error.to_string())
}

struct Draining<'a>(&'a Wishes);

impl<'a> Draining<'a> {
    fn begin(wishes: &'a Wishes) -> Self {
        wishes.drains.fetch_add(1, Ordering::SeqCst);
        wishes.push.notify_one();
        Self(wishes)
    }
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.drains.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn push_task(engine: Arc<Engine>, wishes: Arc<Wishes>) {
    let mut backoff = Backoff::default();
    while engine.until_running().await {
        let urgency = if wishes.drains.load(Ordering::SeqCst) > 0 { Urgency::Drain } else { Urgency::Settled };
        let mut number = 0;
        wishes.rounds.send_modify(|rounds| {
            rounds.begun += 1;
            number = rounds.begun;
        });
        let result = guarded({
            let engine = Arc::clone(&engine);
            async move { engine.push_round(urgency).await }
        })
        .await;
        if result.as_ref().is_ok_and(|pushed| pushed.segments > 0) {
            wishes.checkpoint.notify_one();
        }
        let tick = result.as_ref().map_or(PUSH_TICK, |pushed| PUSH_TICK.max(pushed.search * SEARCH_SHARE));
        let left = result.as_ref().ok().filter(|pushed| !pushed.waits).map(|pushed| pushed.left.clone());
        let mut wait = after(&engine, "push", result.map(|_: Pushed| ()), &mut backoff, tick);
        if let Some(left) = left.filter(|_| urgency == Urgency::Drain) {
            wishes.rounds.send_modify(|rounds| (rounds.ended, rounds.left) = (number, left));
        }
        if urgency == Urgency::Drain || !engine.wanted.is_empty() {
            wait = wait.min(WAITED_FOR);
        }
        pause_for(&engine, wait, &wishes.push).await;
    }
}

async fn pull_task(engine: Arc<Engine>, wishes: Arc<Wishes>) {
    let mut backoff = Backoff::default();
    while engine.until_running().await {
        let result = guarded({
            let engine = Arc::clone(&engine);
            async move { engine.pull_round().await }
        })
        .await;
        let wait = after(&engine, "pull", result.map(|_| ()), &mut backoff, engine.settings.pull_interval);
        pause_for(&engine, wait, &wishes.pull).await;
    }
}

async fn checkpoint_task(engine: Arc<Engine>, wishes: Arc<Wishes>) {
    let mut backoff = Backoff::default();
    let mut turns = Turns::default();
    while engine.until_running().await {
        let is_ours = engine.checkpoint_is_due().and_then(|due| Ok(turns.next(due, engine.checkpoint_turn()?)));
        let result = match is_ours {
            Ok(true) => {
                let engine = Arc::clone(&engine);
                guarded(async move { engine.checkpoint_round().await }).await.map(|_| turns = Turns::default())
            }
            other => other.map(|_| ()),
        };
        let wait = after(&engine, "checkpoint", result, &mut backoff, CHECKPOINT_TICK);
        if pause_for(&engine, wait, &wishes.checkpoint).await == Woken::Wished {
            turns.published = true;
        }
    }
}

/// Whose turn it is to write a checkpoint that is due: all devices know that it is, and one of them is enough.
#[derive(Debug, Default)]
struct Turns {
    /// This device has published: it is the first.
    published: bool,
    /// Turns that passed since it is due.
    passed: usize,
}

impl Turns {
    /// Whether it is the turn of this device, which leaves so many to others.
    fn next(&mut self, due: bool, left_to_others: usize) -> bool {
        self.passed = if due { self.passed + 1 } else { 0 };
        self.published &= due;
        // The first turn is that of who has published.
        due && (self.published || self.passed > left_to_others + 1)
    }
}

/// Runs a round so that a panic in it is an error like others.
async fn guarded<T: Send + 'static>(
    round: impl Future<Output = Result<T, ReplicateError>> + Send + 'static,
) -> Result<T, ReplicateError> {
    match tokio::spawn(round).await {
        Ok(result) => result,
        Err(error) => Err(ReplicateError::Panicked(error.to_string())),
    }
}

/// Reports how a round ended; how long to wait for the next.
fn after(
    engine: &Engine,
    task: &'static str,
    result: Result<(), ReplicateError>,
    backoff: &mut Backoff,
    interval: Duration,
) -> Duration {
    match result {
        Ok(()) => {
            backoff.reset();
            engine.board.recovered(task);
            interval
        }
        Err(ReplicateError::Interrupted) => Duration::ZERO,
        Err(error) => {
            let message = crate::provider::error::with_causes(&error);
            let severity = match error {
                ReplicateError::Halted(_) => Severity::NeedsAPerson,
                _ => Severity::Passing,
            };
            // The remote's comings and goings are logged where they are noticed.
            if engine.board.failed(task, message.clone(), severity) && !error.is_offline() {
                tracing::error!(task, error = message, "replication failed; trying again later");
            }
            backoff.next_wait()
        }
    }
}

/// Why a pause has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Wished,
    Otherwise,
}

/// Waits, unless somebody wishes for a round or the mode changes.
async fn pause_for(engine: &Engine, wait: Duration, wish: &Notify) -> Woken {
    let mut mode = engine.mode.subscribe();
    tokio::select! {
        () = tokio::time::sleep(wait) => Woken::Otherwise,
        () = wish.notified() => Woken::Wished,
        _ = mode.wait_for(|mode| *mode != Mode::Running) => Woken::Otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_devices_one_writes_the_checkpoint_that_is_due() {
        let idle = |count: usize| (0..count).map(|_| Turns::default()).collect::<Vec<_>>();
        let ours = |turns: &mut Vec<Turns>| {
            let each = turns.iter_mut().enumerate().map(|(rank, turns)| turns.next(true, rank));
            each.enumerate().filter(|(_, ours)| *ours).map(|(rank, _)| rank).collect::<Vec<_>>()
        };
        let mut devices = idle(3);
        devices[2].published = true;
        assert_eq!(ours(&mut devices), [2], "who has published");
        let mut devices = idle(3);
        assert_eq!(ours(&mut devices), [] as [usize; 0]);
        assert_eq!(ours(&mut devices), [0], "who published last is gone");
        devices[0] = Turns::default();
        assert!(!devices[1].next(false, 1), "it was written");
        assert!(!devices[1].next(true, 1) && !devices[1].next(true, 1) && devices[1].next(true, 1));
    }
}
