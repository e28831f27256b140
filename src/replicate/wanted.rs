//! Inodes that somebody waits for: `fsync` on a drive that syncs with the remote.
//!
//! A push round consists of passes: read some files, cut, send. A pass takes what is wanted before anything else. Whoever
//! waits is told how the first pass that was begun after the wish ended for that inode, whatever becomes of others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::left::LeftReason;

/// What a pass did about an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sent {
    /// Its content was sent, or was already. Whether its names could be published is another question.
    Content,
    /// Its content could not be sent.
    Left(LeftReason),
}

/// The wishes. The lock is a leaf, held for map operations only.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    state: Mutex<State>,
    /// The number of the last pass that ended well.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    wishes: HashMap<InodeNo, Vec<Wish>>,
    next: u64,
}

#[derive(Debug)]
struct Wish {
    id: u64,
    /// Passes up to this number were begun before.
    from: u64,
    answer: Option<Sent>,
}

/// A pass: its number, and what it is to take first.
#[derive(Debug)]
pub(super) struct Pass {
    number: u64,
    pub(super) wanted: Vec<InodeNo>,
}

/// A wish that is withdrawn when this is dropped.
pub(super) struct Waiting {
    wanted: Arc<Wanted>,
    ino: InodeNo,
    id: u64,
}

impl Wanted {
    /// Wishes for an inode.
    pub(super) fn wish(self: &Arc<Self>, ino: InodeNo) -> Waiting {
        let mut state = self.state.lock();
        let (id, from) = (state.next, state.begun);
        state.next += 1;
        state.wishes.entry(ino).or_default().push(Wish { id, from, answer: None });
        Waiting { wanted: Arc::clone(self), ino, id }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().wishes.values().flatten().all(|wish| wish.answer.is_some())
    }

    /// A new pass.
    pub(super) fn begin_pass(&self) -> Pass {
        let mut state = self.state.lock();
        state.begun += 1;
        let open = |wishes: &Vec<Wish>| wishes.iter().any(|wish| wish.answer.is_none());
        let wanted = state.wishes.iter().filter(|(_, wishes)| open(wishes)).map(|(ino, _)| *ino).collect();
        Pass { number: state.begun, wanted }
    }

    /// A pass ended well: what it was to take first was sent, but for what it left, and for those that the next pass
    /// goes on with.
    pub(super) fn end_pass(
        &self,
        pass: &Pass,
        left: &BTreeMap<InodeNo, LeftReason>,
        goes_on: impl Fn(InodeNo) -> bool,
    ) {
        let mut state = self.state.lock();
        for ino in pass.wanted.iter().filter(|ino| !goes_on(**ino)) {
            let answer = left.get(ino).map_or(Sent::Content, |reason| Sent::Left(reason.clone()));
            let open = |wish: &&mut Wish| wish.answer.is_none() && wish.from < pass.number;
            for wish in state.wishes.get_mut(ino).into_iter().flatten().filter(open) {
                wish.answer = Some(answer.clone());
            }
        }
        drop(state);
        self.ended.send_replace(pass.number);
    }
}

impl Waiting {
    /// How it ended. Waits for as long as that takes.
    pub(super) async fn answer(&self) -> Sent {
        let mut ended = self.wanted.ended.subscribe();
        loop {
            ended.borrow_and_update();
            if let Some(answer) = self.get() {
                return answer;
            }
            // The sender lives as long as `self`.
            let _ = ended.changed().await;
        }
    }

    fn get(&self) -> Option<Sent> {
        let state = self.wanted.state.lock();
        state.wishes.get(&self.ino)?.iter().find(|wish| wish.id == self.id)?.answer.clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.wanted.state.lock();
        if let Some(wishes) = state.wishes.get_mut(&self.ino) {
            wishes.retain(|wish| wish.id != self.id);
            if wishes.is_empty() {
                state.wishes.remove(&self.ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeNo = InodeNo(7);

    #[test]
    fn a_wish_is_answered_by_the_first_pass_that_was_begun_after_it() {
        let wanted = Arc::new(Wanted::default());
        let none = BTreeMap::new();
        let early = wanted.begin_pass();
        let waiting = wanted.wish(INO);
        wanted.end_pass(&early, &none, |_| false);
        assert_eq!(waiting.get(), None, "what that pass took may be from before");
        let pass = wanted.begin_pass();
        assert_eq!(pass.wanted, [INO]);
        let late = wanted.wish(INO);
        wanted.end_pass(&pass, &none, |_| true);
        assert_eq!(waiting.get(), None, "the next pass goes on with it");
        let pass = wanted.begin_pass();
        wanted.end_pass(&pass, &BTreeMap::from([(INO, LeftReason::Restless)]), |_| false);
        assert_eq!(waiting.get(), Some(Sent::Left(LeftReason::Restless)));
        assert_eq!(late.get(), waiting.get());
        assert!(wanted.is_empty() && wanted.begin_pass().wanted.is_empty());
        drop((waiting, late));
        assert!(wanted.state.lock().wishes.is_empty());
    }

    #[test]
    fn a_wish_made_during_a_pass_waits_for_the_next() {
        let wanted = Arc::new(Wanted::default());
        let first = wanted.wish(INO);
        let pass = wanted.begin_pass();
        let second = wanted.wish(INO);
        wanted.end_pass(&pass, &BTreeMap::new(), |_| false);
        assert_eq!((first.get(), second.get()), (Some(Sent::Content), None));
        assert_eq!(wanted.begin_pass().wanted, [INO]);
    }
}
