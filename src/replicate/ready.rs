//! Which dirty files and changes a push round is to send, and what rounds remember of them from one to the next.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cairn_platform_api::{InodeNo, Timestamp};

use super::engine::Engine;
use super::error::ReplicateError;
use super::reading::Parts;
use super::settle::{SettlePolicy, Urgency};
use super::upload::FileOutcome;
use crate::drive::DirtyFile;
use crate::tree::Place;

/// Bytes of files that are read before a segment is cut, so that what came first does not wait for all the rest.
const BATCH: u64 = 256 << 20;
/// Files in a batch.
const BATCH_FILES: usize = 10_000;
/// A file that is read while it is written is read at most one part in so many of the time.
const READING_SHARE: u32 = 10;

/// A name whose file was not looked at in so many looks has none in motion any more.
const NAME_KEPT: u64 = 4;

/// What push rounds remember from one to the next.
#[derive(Debug, Default)]
pub struct PushState {
    /// The remote was found to hold this vault, and no more of our log than we wrote.
    pub(super) remote_checked: bool,
    /// There is a checkpoint to begin with: the pull loads it.
    pub(super) found_checkpoint: bool,
    files: HashMap<InodeNo, Seen>,
    /// Names of files in motion: one that replaces another by a rename has waited as long as its name has.
    names: HashMap<Place, Named>,
    looks: u64,
    pub(super) changes: Changes,
    pub(super) parts: Parts,
}

/// Length and times: differs whenever the content does, once the file has been read while it stood still.
type Appearance = (u64, Timestamp, Timestamp);

fn appearance(file: &DirtyFile) -> Appearance {
    (file.size, file.modified, file.changed)
}

/// A name of a file in motion.
#[derive(Debug, Clone, Copy)]
struct Named {
    /// When a file under it was first seen dirty, or last taken.
    since: Timestamp,
    /// The last look at which it had one.
    look: u64,
}

/// A dirty file as rounds have seen it.
#[derive(Debug, Clone)]
struct Seen {
    /// When it was first seen dirty, or last taken.
    since: Timestamp,
    /// What it was when its content was last taken while it stood still. A file that is open for writing stays dirty after that.
    taken: Option<Appearance>,
    /// How long it is left alone at least, if it never comes to rest.
    patience: Duration,
    /// Its name, while it is in motion.
    place: Option<Place>,
}

/// The count of unpublished changes as rounds have seen it: changes of names and attributes have no times of their own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    count: u64,
    /// When there were some first, after the last cut.
    since: Timestamp,
    /// When the count was last another.
    moved: Timestamp,
    /// What the last cut could not publish: it waits for contents.
    held_back: u64,
}

/// What a pass has to do.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) files: Vec<DirtyFile>,
    pub(super) changes: bool,
    /// Nothing remains for this round after it.
    pub(super) is_last: bool,
}

/// Whose files a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those that somebody waits for.
    Wanted,
    /// Those that remain, too.
    Everybody,
}

impl Turn {
    /// Who waits comes first, but not every time: others must come to their turn, and the round to its end.
    pub(super) fn next(self, wanted: &[InodeNo]) -> Self {
        if wanted.is_empty() || self == Self::Wanted { Self::Everybody } else { Self::Wanted }
    }
}

/// Which files a round may still take: those that were dirty when it began. What comes meanwhile is for the next one, so
/// that a round ends however much is written.
#[derive(Debug, Default)]
pub(super) struct Remaining(Option<HashSet<InodeNo>>);

impl Remaining {
    fn among(&mut self, dirty: &[DirtyFile]) -> &HashSet<InodeNo> {
        self.0.get_or_insert_with(|| dirty.iter().map(|file| file.ino).collect())
    }

    /// A pass read this file: to the end, or the next one goes on with it.
    pub(super) fn was_read(&mut self, ino: InodeNo, how_far: HowFar) {
        if let Some(remaining) = &mut self.0 {
            match how_far {
                HowFar::ToTheEnd => remaining.remove(&ino),
                HowFar::Partly => remaining.insert(ino),
            };
        }
    }
}

/// How far a file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HowFar {
    ToTheEnd,
    Partly,
}

impl Engine {
    /// What a pass takes: what is wanted; and in everybody's turn what has settled and remains for this round, small files
    /// first, so that many come before a large one.
    pub(super) fn ready(
        &self,
        state: &mut PushState,
        urgency: Urgency,
        remaining: &mut Remaining,
        (turn, wanted): (Turn, &[InodeNo]),
    ) -> Result<Ready, ReplicateError> {
        let now = Timestamp::now();
        let settle = &self.settings.settle;
        let dirty = self.drive.dirty_files()?;
        let place_of = &mut |ino| Ok(self.tree.links(ino)?.into_iter().next().map(|link| link.place));
        state.see(&dirty, settle, now, place_of)?;
        self.board.only_left_of(|ino| state.files.contains_key(&ino));
        let changes = state.changes.are_ready(self.tree.pending_summary()?.changes, settle, now, urgency);
        let remaining = remaining.among(&dirty);
        let is_wanted = |file: &&DirtyFile| wanted.contains(&file.ino) && !state.was_taken(file);
        let mut files: Vec<_> = dirty.iter().filter(is_wanted).copied().collect();
        if turn == Turn::Wanted {
            return Ok(Ready { files, changes: true, is_last: false });
        }
        let remains = |file: &&DirtyFile| {
            remaining.contains(&file.ino) && !wanted.contains(&file.ino) && state.is_ready(file, settle, now, urgency)
        };
        let mut batch: Vec<_> = dirty.iter().filter(remains).copied().collect();
        let is_last = batch.is_empty();
        batch.sort_by_key(|file| file.size);
        let mut bytes = 0_u64;
        let fits = batch.into_iter().take(BATCH_FILES).take_while(|file| {
            let is_first = bytes == 0;
            bytes = bytes.saturating_add(file.size);
            is_first || bytes <= BATCH
        });
        files.extend(fits);
        Ok(Ready { files, changes, is_last })
    }
}

impl PushState {
    fn see(
        &mut self,
        dirty: &[DirtyFile],
        settle: &SettlePolicy,
        now: Timestamp,
        place_of: &mut dyn FnMut(InodeNo) -> Result<Option<Place>, ReplicateError>,
    ) -> Result<(), ReplicateError> {
        self.looks += 1;
        let look = self.looks;
        let mut before = std::mem::take(&mut self.files);
        for file in dirty {
            let unseen = Seen { since: now, taken: None, patience: Duration::ZERO, place: None };
            let mut seen = before.remove(&file.ino).unwrap_or(unseen);
            seen.place = if settle.has_rested(file.changed, now) { None } else { place_of(file.ino)? };
            if let Some(place) = &seen.place {
                let named = self.names.entry(place.clone()).or_insert(Named { since: seen.since, look });
                named.look = look;
                seen.since = seen.since.min(named.since);
            }
            self.files.insert(file.ino, seen);
        }
        self.names.retain(|_, named| look - named.look < NAME_KEPT);
        let files = &self.files;
        self.parts.retain(|ino, _| files.contains_key(ino));
        Ok(())
    }

    /// Whether the file is what it was when it was taken.
    fn was_taken(&self, file: &DirtyFile) -> bool {
        self.files.get(&file.ino).is_some_and(|seen| seen.taken == Some(appearance(file)))
    }

    fn is_ready(&self, file: &DirtyFile, settle: &SettlePolicy, now: Timestamp, urgency: Urgency) -> bool {
        let Some(seen) = self.files.get(&file.ino) else { return false };
        let settle = SettlePolicy { max_delay: settle.max_delay.max(seen.patience), ..*settle };
        // Whoever drains reads again what looks the same.
        let taken = urgency == Urgency::Settled && self.was_taken(file);
        !taken && settle.is_ready(seen.since, file.modified, now, urgency)
    }

    /// Remembers how the reading of files that were ready ended.
    pub(super) fn were_read(&mut self, files: &[DirtyFile], outcomes: &HashMap<InodeNo, FileOutcome>, now: Timestamp) {
        for file in files {
            let (taken, spent) = match outcomes.get(&file.ino) {
                Some(FileOutcome::Begun) => continue,
                Some(FileOutcome::Whole) => (Some(appearance(file)), Duration::ZERO),
                Some(FileOutcome::Moment { spent }) => (None, *spent),
                Some(FileOutcome::Left(_) | FileOutcome::Overtaken | FileOutcome::Gone) | None => {
                    (None, Duration::ZERO)
                }
            };
            let place = self.files.remove(&file.ino).and_then(|seen| seen.place);
            let is_gone = matches!(outcomes.get(&file.ino), Some(FileOutcome::Overtaken | FileOutcome::Gone));
            if let Some(named) = place.as_ref().filter(|_| !is_gone).and_then(|place| self.names.get_mut(place)) {
                named.since = now;
            }
            let patience = spent.saturating_mul(READING_SHARE);
            self.files.insert(file.ino, Seen { since: now, taken, patience, place });
        }
    }
}

impl Changes {
    /// Whether changes have settled: their number has.
    fn are_ready(&mut self, count: u64, settle: &SettlePolicy, now: Timestamp, urgency: Urgency) -> bool {
        if count != self.count {
            self.since = if self.count == self.held_back { now } else { self.since };
            self.count = count;
            self.moved = now;
        }
        match urgency {
            Urgency::Drain => count > 0,
            Urgency::Settled => count != self.held_back && settle.is_ready(self.since, self.moved, now, urgency),
        }
    }

    /// A cut left this many.
    pub(super) fn were_cut(&mut self, left: u64) {
        self.count = left;
        self.held_back = left;
    }
}

#[cfg(test)]
mod tests {
    use cairn_platform_api::VfsName;

    use super::*;

    #[test]
    fn who_waits_comes_first_and_not_every_time() {
        let wanted = [InodeNo(7)];
        assert_eq!(Turn::Everybody.next(&[]), Turn::Everybody);
        assert_eq!(Turn::Everybody.next(&wanted), Turn::Wanted);
        assert_eq!(Turn::Wanted.next(&wanted), Turn::Everybody);
        assert_eq!(Turn::Wanted.next(&[]), Turn::Everybody);
    }

    #[test]
    fn a_file_that_took_long_to_read_in_motion_is_left_alone_for_longer() {
        let at = |seconds: i64| Timestamp::from_nanos(seconds * 1_000_000_000);
        let file = |modified| DirtyFile {
            ino: InodeNo(7),
            size: 1,
            modified: at(modified),
            changed: at(modified),
            open_for_write: crate::drive::OpenForWrite::Yes,
        };
        let settle = SettlePolicy::default();
        let mut state = PushState::default();
        state.see(&[file(0)], &settle, at(0), &mut |_| Ok(None)).expect("seen");
        assert!(state.is_ready(&file(30), &settle, at(30), Urgency::Settled), "its longest delay is over");
        let spent = Duration::from_secs(10);
        state.were_read(&[file(30)], &HashMap::from([(InodeNo(7), FileOutcome::Moment { spent })]), at(30));
        assert!(!state.is_ready(&file(100), &settle, at(100), Urgency::Settled));
        assert!(state.is_ready(&file(100), &settle, at(102), Urgency::Settled), "it has come to rest");
        assert!(state.is_ready(&file(130), &settle, at(130), Urgency::Settled));
        assert!(state.is_ready(&file(100), &settle, at(100), Urgency::Drain));
    }

    #[test]
    fn a_file_that_is_replaced_again_and_again_waits_no_longer_than_one_that_is_written_all_the_time() {
        let at = |milliseconds: i64| Timestamp::from_nanos(milliseconds * 1_000_000);
        let settle = SettlePolicy::default();
        let name = |text: &[u8]| VfsName::new(text).expect("a name");
        let place = |text: &[u8]| Place { parent: InodeNo::ROOT, name: name(text) };
        let mut state = PushState::default();
        let mut taken = Vec::new();
        for number in 0..200 {
            let time = at(number * 500);
            let file = DirtyFile {
                ino: InodeNo(100 + number as u64),
                size: 1,
                modified: time,
                changed: time,
                open_for_write: crate::drive::OpenForWrite::No,
            };
            // Now and then it does not have its name yet.
            let named = if number % 7 == 3 { place(b"tmp") } else { place(b"state") };
            state.see(&[file], &settle, time, &mut |_| Ok(Some(named.clone()))).expect("seen");
            if state.is_ready(&file, &settle, time, Urgency::Settled) {
                state.were_read(&[file], &HashMap::from([(file.ino, FileOutcome::Whole)]), time);
                taken.push(number / 2);
            }
        }
        assert_eq!(taken, [30, 60, 90]);
        state.see(&[], &settle, at(0), &mut |_| Ok(None)).expect("seen");
        for _ in 0..NAME_KEPT {
            state.see(&[], &settle, at(0), &mut |_| Ok(None)).expect("seen");
        }
        assert!(state.names.is_empty() && state.files.is_empty());
    }
}
