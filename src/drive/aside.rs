//! Contents that were replaced or removed by a fold while somebody could still write to them.
//!
//! A file that is open for writing, and was not written to, takes the content of another device like any other: that it is
//! open is no change. But it may be written to afterwards, through a handle, or past the drive through a mapping that
//! outlives its handle. So its backing file is not removed but *set aside*: moved under a number of its own, once a row
//! that says so is durable ([`Retirement::then_move`]). When nobody can write to it any more it is judged: what was written
//! to becomes a file with a conflict name, anything else goes.
//!
//! What must hold after a crash at any moment: as long as the row is there, the file is under its own number, or still
//! under the inode's, and then no other file is: nobody makes one before the move. The row goes first, the file after it.
//!
//! Whether it was written to is told from length and modification time: moving a file may change its change time. Nobody
//! can set the modification time of a file that is set aside back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_platform_api::{InodeNo, VfsResult};
use parking_lot::Mutex;

use super::inner::{Inner, failed};
use super::node::{Access, Holds, NodeRef};
use super::retiring::Retirement;
use crate::base::os::{self, FileStatus};
use crate::cache::{Presence, Stamp};
use crate::store::Exclusive;
use crate::tree::{AsideRow, ChangeSet, Content, ContentState, Contents, Touched, TreeError, keys};

/// How many looks lie between two requests to the kernel to let go of an inode, at most.
const ASK_EVERY: u32 = 64;

/// What is set aside in this session. Nothing else is locked under the lock.
#[derive(Debug, Default)]
pub(super) struct Asides {
    kept: Mutex<Vec<Aside>>,
    /// Held by who judges them.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Aside {
    of: InodeNo,
    number: InodeNo,
    stamp: Stamp,
    /// Those who had it open.
    node: Option<NodeRef>,
    /// Whether its file is under its own number.
    moved: Arc<AtomicBool>,
    looks: u32,
}

impl Aside {
    fn has_writers(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.has_writers())
    }
}

/// Answers for the backing files in a fold.
struct Keeper<'a> {
    inner: &'a Inner,
    set_aside: Vec<(Retirement, Aside)>,
}

impl Contents for Keeper<'_> {
    fn is_unmodified(&mut self, ino: InodeNo, content: &Content) -> bool {
        let Some(stamp) = self.inner.claimed_stamp(ino, content) else { return false };
        let status = match self.inner.nodes.in_use(ino) {
            Some(node) => self.inner.local_status(&node, (*content, stamp)),
            None => self.inner.files.status(ino).ok().flatten(),
        };
        status.is_some_and(|status| Stamp::from(status) == stamp)
    }

    fn replaced(&mut self, ino: InodeNo, content: &Content) -> Option<crate::tree::Stamp> {
        let stamp = self.inner.claimed_stamp(ino, content)?;
        let node = self.inner.nodes.in_use(ino);
        // One that is local may be opened for writing at this moment, without a lock that is held here.
        let is_open = node.as_ref().is_some_and(|node| node.has_writers() || node.body.lock().is_local());
        let may_be_written = is_open || self.inner.kernel.is_mappable(ino);
        may_be_written.then(|| stamp.into())
    }

    fn set_aside(&mut self, ino: InodeNo, number: InodeNo, stamp: crate::tree::Stamp) {
        let node = self.inner.nodes.in_use(ino).filter(|node| node.body.lock().loaded);
        let aside = Aside { of: ino, number, stamp: stamp.into(), node, moved: Arc::default(), looks: 0 };
        // Before the fold shows: nobody makes another file under the inode's number until this one is moved.
        self.set_aside.push((self.inner.retiring.announce_move(ino), aside));
    }
}

impl Inner {
    /// The stamp that the file of an inode has as long as it equals a content, if a row says that it does.
    fn claimed_stamp(&self, ino: InodeNo, content: &Content) -> Option<Stamp> {
        let row = self.cache_row(&*self.store, ino).ok().flatten()?;
        match row.presence {
            Presence::Complete(stamp) if row.content == content.id => Some(stamp),
            _ => None,
        }
    }

    /// What the file of a local inode looks like, if it equals a content as long as it has a stamp.
    fn local_status(&self, node: &NodeRef, expected: (Content, Stamp)) -> Option<FileStatus> {
        let body = node.body.lock();
        match (&body.holds, node.file.get()) {
            (Holds::Local { equal: Some(equal) }, Some(file)) if *equal == expected => os::status(file).ok(),
            _ if body.loaded => None,
            _ => self.files.status(node.ino).ok().flatten(),
        }
    }

    /// See [`super::Drive::fold`].
    pub(super) fn fold(
        &self,
        sets: Vec<ChangeSet>,
        record: impl FnOnce(&mut Exclusive<'_>) -> Result<(), TreeError>,
    ) -> Result<Vec<Touched>, TreeError> {
        self.write_back(&sets);
        self.judge_asides();
        self.check_mappable(0, usize::MAX);
        let mut keeper = Keeper { inner: self, set_aside: Vec::new() };
        let touched = self.tree.fold_with(sets, &mut keeper, record)?;
        for (retirement, aside) in keeper.set_aside {
            if let Some(node) = &aside.node {
                node.set_aside.store(true, Ordering::Release);
            }
            if self.write_back.replaced(aside.of, aside.node.as_deref()) {
                self.write_back.lose(aside.number);
            }
            retirement.then_move(aside.number, Arc::clone(&aside.moved), &self.store, &self.files);
            self.asides.kept.lock().push(aside);
        }
        Ok(touched)
    }

    /// Has the kernel hand over what programs stored into mappings of files that these change sets may replace.
    fn write_back(&self, sets: &[ChangeSet]) {
        let changed = sets.iter().flat_map(|set| {
            let contents = set.inodes.iter().filter(|inode| inode.content.is_some()).map(|inode| inode.ino);
            contents.chain(set.dentries.iter().filter(|dentry| dentry.to.is_none()).map(|dentry| dentry.ino))
        });
        for ino in changed {
            let through_us = self
                .nodes
                .in_use(ino)
                .is_some_and(|node| node.has_writers() && node.body.lock().access == Some(Access::Requests));
            if through_us {
                self.notify(|notifier| notifier.inode_changed(ino));
            }
        }
    }

    /// Decides about what was set aside and cannot be written to any more.
    pub(super) fn judge_asides(&self) {
        let _turn = self.asides.turn.lock();
        let judged: Vec<_> = {
            let kept = self.asides.kept.lock();
            let ripe = kept.iter().filter(|aside| !aside.has_writers() && aside.moved.load(Ordering::Acquire));
            ripe.map(|aside| (aside.of, aside.number, aside.stamp, aside.node.clone())).collect()
        };
        for (of, number, stamp, node) in judged {
            if let Some(node) = node {
                let mut body = node.body.lock();
                // In this order: what a writer has mapped is noted before it ends. Whoever has it mapped keeps the kernel
                // from forgetting the inode.
                if node.has_writers() || self.kernel.is_mappable(of) {
                    continue;
                }
                // From now on nobody begins to write to it.
                body.judged = true;
                if node.lost.load(Ordering::Acquire) {
                    self.write_back.lose(number);
                }
            } else if self.kernel.is_mappable(of) {
                continue;
            }
            match self.judge(of, number, stamp) {
                Ok(()) => self.asides.kept.lock().retain(|aside| aside.number != number),
                Err(error) => tracing::warn!(ino = of.0, error = %error, "a replaced content is kept for now"),
            }
        }
    }

    fn judge(&self, of: InodeNo, number: InodeNo, stamp: Stamp) -> VfsResult<()> {
        if self.files.status(number)?.is_some_and(|status| was_written(status, stamp)) {
            let place = self.tree.adopt_aside(number).map_err(failed)?;
            if let Some(place) = place {
                self.write_back.note_written(number);
                // Should a sync have failed it gets another backing file.
                self.later(&self.nodes.acquire(number));
                tracing::info!(ino = of.0, "a file was written to after another device replaced it: it is kept beside");
                self.notify(|notifier| {
                    notifier.inode_changed(place.parent);
                    notifier.entry_changed(place.parent, &place.name);
                });
            }
        } else {
            let retirement = self.retiring.announce(number);
            self.tree.forget_aside(number).map_err(failed)?;
            self.write_back.replaced(number, None);
            retirement.after_commit(&self.store, &self.files);
        }
        Ok(())
    }

    /// Asks the kernel to let go of inodes whose old contents can be decided about then.
    pub(super) fn ask_for_asides(&self) {
        let due: Vec<_> = {
            let mut kept = self.asides.kept.lock();
            let waiting = kept.iter_mut().filter(|aside| !aside.has_writers() && self.kernel.is_mappable(aside.of));
            waiting
                .filter_map(|aside| {
                    aside.looks = aside.looks.wrapping_add(1);
                    let due = aside.looks.is_power_of_two() || aside.looks % ASK_EVERY == 0;
                    due.then_some(aside.of)
                })
                .collect()
        };
        due.into_iter().for_each(|ino| self.ask_to_forget(ino));
    }

    /// The kernel is gone: decides about all that nobody has open.
    pub(super) fn end_asides(&self) -> VfsResult<()> {
        if self.asides() == 0 {
            return Ok(());
        }
        self.wait_for_retirements()?;
        self.judge_asides();
        Ok(())
    }

    /// Decides about everything that earlier sessions set aside: nobody writes to it any more.
    pub(super) fn recover_asides(&self) {
        let asides = match self.tree.asides() {
            Ok(asides) => asides,
            Err(error) => return tracing::error!(error = %error, "what was set aside cannot be read"),
        };
        for (number, aside) in asides {
            let recovered = self.finish_move(number, &aside).and_then(|moved| match moved {
                true => self.judge(aside.of, number, aside.stamp.into()),
                false => Ok(()),
            });
            if let Err(error) = recovered {
                tracing::error!(ino = aside.of.0, error = %error, "a replaced content is kept for the next start");
            }
        }
    }

    /// Moves a file that a crash kept from being moved. Answers whether that is done; else it is tried again, and judged then.
    fn finish_move(&self, number: InodeNo, aside: &AsideRow) -> VfsResult<bool> {
        if self.files.status(number)?.is_some() {
            return Ok(true);
        }
        let is_local = self.row(aside.of)?.is_some_and(|row| matches!(row.content, ContentState::Local { .. }));
        // A file that is local, or that a row claims, was made after the move.
        let is_new = is_local || self.cache_row(&*self.store, aside.of)?.is_some();
        if is_new || self.files.rename(aside.of, number).is_ok() {
            return Ok(true);
        }
        let (of, stamp, moved) = (aside.of, Stamp::from(aside.stamp), Arc::default());
        let retirement = self.retiring.announce_move(of);
        retirement.then_move(number, Arc::clone(&moved), &self.store, &self.files);
        self.asides.kept.lock().push(Aside { of, number, stamp, node: None, moved, looks: 0 });
        Ok(false)
    }

    /// Whether a number is that of a content that is set aside.
    pub(super) fn is_aside(&self, rows: &impl crate::store::Rows, number: InodeNo) -> VfsResult<bool> {
        Ok(rows.get(&keys::aside(number)).map_err(failed)?.is_some())
    }

    /// How many contents are set aside.
    pub(super) fn asides(&self) -> usize {
        self.asides.kept.lock().len()
    }
}

fn was_written(status: FileStatus, stamp: Stamp) -> bool {
    (status.size, status.mtime) != (stamp.size, stamp.mtime)
}
