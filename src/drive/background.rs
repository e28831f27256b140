//! The background work of a drive: one thread that looks again at inodes, keeps the cache within its budget, and at first
//! recovers from an unclean stop. Everything it does is idempotent, and can stop at any point.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use cairn_platform_api::{FsError, InodeNo, VfsResult};
use parking_lot::{Condvar, Mutex};

use super::inner::{Inner, failed};
use super::local::{Fresh, Saved};
use super::node::NodeRef;
use super::write_back::SYNC_EACH_BELOW;
use crate::store::Rows;
use crate::tree::keys::{self, family};
use crate::tree::{ContentState, InodeRow};

/// How often it looks. What was fetched since is fetched again after a crash.
const PERIOD: Duration = Duration::from_millis(400);

/// When this many nodes wait, whoever brings one more does not leave them to the next period.
const CHORES_HELP: usize = 256;
/// The most nodes that wait; each holds a descriptor.
const CHORES_MAX: usize = 512;

/// How many files that may be mapped are looked at in a period.
const CHECKED_AT_ONCE: usize = 1000;

/// Periods between two tries to renew files whose syncs failed: each copies them.
const RENEW_EVERY: u32 = 25;

/// The row that says that the last stop was clean.
fn clean_stop() -> [u8; 9] {
    keys::numbered(family::META, 0x64_7269_7665)
}

/// How the last session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastStop {
    Clean,
    Unclean,
}

/// How far the recovery from an unclean stop is.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    state: Mutex<RecoveryState>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum RecoveryState {
    #[default]
    Running,
    Complete,
    /// Something could not be looked at, or the drive was closed before.
    Incomplete,
}

impl Recovery {
    fn end(&self, state: RecoveryState) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    fn is_complete(&self) -> bool {
        *self.state.lock() == RecoveryState::Complete
    }

    /// Waits until it has ended.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| *state == RecoveryState::Running);
    }
}

/// The thread.
pub(super) struct Background {
    /// Dropping it stops the thread.
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Background {
    pub(super) fn start(inner: &Arc<Inner>, last: LastStop) -> io::Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(1);
        let inner = Arc::clone(inner);
        let thread = std::thread::Builder::new().name("drive".into()).spawn(move || {
            let stopping = || !matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty));
            let recovered = inner.recover(last, &stopping);
            inner.recovery.end(recovered);
            let mut checked = 0_usize;
            let mut periods = 0_u32;
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                inner.do_chores();
                inner.check_mappable(checked, CHECKED_AT_ONCE);
                checked = checked.wrapping_add(CHECKED_AT_ONCE);
                inner.retiring.retry(&inner.store, &inner.files);
                inner.judge_asides();
                inner.ask_for_asides();
                inner.keep_budget();
                inner.keep_room();
                inner.keep_ballast();
                periods = periods.wrapping_add(1);
                if periods % RENEW_EVERY == 0 {
                    inner.retry_renewals();
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    pub(super) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the background work of the drive ended in a panic");
        }
    }
}

impl Inner {
    /// Notes that a session begins, durably, and says how the last one ended.
    pub(super) fn begin_session(&self) -> Result<LastStop, crate::store::StoreError> {
        let last = {
            let mut rows = self.store.operation()?;
            let clean = rows.get(&clean_stop())?.is_some();
            if clean {
                rows.delete(&clean_stop());
            }
            rows.commit();
            if clean { LastStop::Clean } else { LastStop::Unclean }
        };
        // From the first request on a crash must be seen as one.
        self.store.flush()?;
        Ok(last)
    }

    /// Makes everything durable and notes that the stop is clean, unless what the last unclean one left was not looked at
    /// to the end.
    pub(super) fn end_session(&self) -> VfsResult<()> {
        self.do_chores();
        self.sync_written()?;
        self.store.flush().map_err(failed)?;
        if !self.recovery.is_complete() {
            return Ok(());
        }
        let mut rows = self.store.operation().map_err(failed)?;
        rows.put(&clean_stop(), &[1][..]);
        rows.commit();
        self.store.flush().map_err(failed)
    }

    /// Makes durable what was written in this session and is only here.
    fn sync_written(&self) -> VfsResult<()> {
        let mut only_here = Vec::new();
        let written = self.write_back.take_written();
        for ino in &written {
            if matches!(self.row(*ino)?, Some(InodeRow { content: ContentState::Local { .. }, .. })) {
                only_here.push(*ino);
            }
        }
        let synced = self.write_back.sync_each(only_here);
        if synced.is_err() {
            // Whoever tries again must not take them for safe.
            written.into_iter().for_each(|ino| self.write_back.note_written(ino));
        }
        Ok(synced?)
    }

    /// Tries again to give files new backing files where that failed when they were closed: the disk may have room again.
    fn retry_renewals(&self) {
        self.each(self.write_back.lost_files(), &|| false, |ino| {
            let node = self.node(ino)?;
            self.renew(&node)
        });
    }

    /// Looks again at the inodes that asked for it.
    pub(super) fn do_chores(&self) {
        let _turn = self.chores_turn.lock();
        let nodes: Vec<_> = std::mem::take(&mut *self.chores.lock()).into_values().collect();
        let written_anew = |node: &&NodeRef| !node.has_writers() && node.emptied.swap(false, Ordering::AcqRel);
        let anew = nodes.iter().filter(written_anew).map(|node| node.ino).collect();
        // Who has one open is told; the others asked for nothing.
        let _ = self.write_back.sync_each(anew);
        if !self.claim_together(&nodes) {
            nodes.iter().for_each(|node| self.do_chore(node));
        }
    }

    /// Does the chores of many files at the cost of one sync. Answers whether that is possible, and pays.
    fn claim_together(&self, nodes: &[NodeRef]) -> bool {
        let seen: Vec<_> = nodes.iter().map(Self::unsaved).collect();
        if seen.iter().flatten().count() < SYNC_EACH_BELOW {
            return false;
        }
        if let Err(error) = self.files.sync_everything() {
            tracing::debug!(error = %error, "contents are synced one by one");
            return false;
        }
        let fresh = if nodes.len() < CHORES_HELP { Fresh::Wait } else { Fresh::ClaimAsParts };
        for (node, seen) in nodes.iter().zip(seen) {
            self.finish_chore(node, || match seen {
                Some(seen) => self.claim(node, &seen, fresh),
                None => Ok(Saved::All),
            });
        }
        true
    }

    /// Each node that waits holds a descriptor: where many do, who brings more does their chores, or waits until it can.
    pub(super) fn bound_chores(&self) {
        let waiting = self.chores.lock().len();
        if waiting >= CHORES_MAX {
            // Somebody else may have done them by now.
            drop(self.chores_turn.lock());
        }
        if self.chores.lock().len() >= CHORES_HELP && !self.chores_turn.is_locked() {
            self.do_chores();
        }
    }

    /// Looks again at one inode, if it asked for it.
    pub(super) fn do_chore_of(&self, ino: InodeNo) {
        let node = self.chores.lock().remove(&ino);
        if let Some(node) = node {
            self.do_chore(&node);
        }
    }

    fn do_chore(&self, node: &NodeRef) {
        self.finish_chore(node, || self.save_presence(node));
    }

    fn finish_chore(&self, node: &NodeRef, save: impl FnOnce() -> VfsResult<Saved>) {
        match self.look_again(node, save) {
            Ok(Saved::All) | Err(FsError::Stale) => {}
            Ok(Saved::NotAll) => self.later(node),
            Err(error) => {
                tracing::warn!(ino = node.ino.0, error = %error, "what is here of a file cannot be recorded yet");
                self.later(node);
            }
        }
    }

    /// A detached node has nothing to record, nor anything to look at.
    fn look_again(&self, node: &NodeRef, save: impl FnOnce() -> VfsResult<Saved>) -> VfsResult<Saved> {
        // Which may not be loaded yet.
        self.node(node.ino)?;
        let saved = save()?;
        self.settle(node)?;
        self.check_stamp(node)?;
        if let Err(error) = self.renew(node) {
            tracing::warn!(ino = node.ino.0, error = %error, "a file that could not be synced cannot be copied");
        }
        Ok(saved)
    }

    /// Looks whether files that may be mapped were written to after they became clean.
    pub(super) fn check_mappable(&self, skip: usize, count: usize) {
        self.each(self.kernel.mappable_after(skip, count), &|| false, |ino| {
            let node = self.node(ino)?;
            self.check_stamp(&node)
        });
    }

    /// What is only here may not have been synced before the program ended.
    fn note_unsynced(&self) -> VfsResult<()> {
        let noted = self.tree.local_inodes(&mut |ino| {
            self.write_back.note_written(ino);
            ControlFlow::Continue(())
        });
        noted.map_err(failed)
    }

    fn recover(&self, last: LastStop, stopping: &dyn Fn() -> bool) -> RecoveryState {
        let mut recovered = RecoveryState::Complete;
        if last == LastStop::Unclean {
            if let Err(error) = self.note_unsynced() {
                tracing::warn!(error = %error, "the files that are only here cannot be listed");
                recovered = RecoveryState::Incomplete;
            }
            let mut found = Vec::new();
            if let Err(error) = self.files.scan(|ino| found.push(ino)) {
                tracing::warn!(error = %error, "the backing files cannot be listed");
                recovered = RecoveryState::Incomplete;
            }
            if !self.each(found, stopping, |ino| self.sweep(ino)) {
                recovered = RecoveryState::Incomplete;
            }
        }
        let mut cached = Vec::new();
        let listed = self.store.scan_family(family::CACHE, &mut |key, _| {
            cached.extend(keys::number(key).map(InodeNo));
            if stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = listed {
            tracing::warn!(error = %error, "the cache rows cannot be listed");
        }
        self.each(cached, stopping, |ino| self.account(ino));
        recovered
    }

    /// Whether all went well.
    fn each(&self, inos: Vec<InodeNo>, stopping: &dyn Fn() -> bool, act: impl Fn(InodeNo) -> VfsResult<()>) -> bool {
        let mut well = true;
        for ino in inos {
            if stopping() {
                return false;
            }
            match act(ino) {
                Ok(()) | Err(FsError::Stale) => {}
                Err(error) => {
                    well = false;
                    tracing::warn!(ino = ino.0, error = %error, "a backing file could not be checked");
                }
            }
        }
        well
    }
}
