//! What replication is doing, for `cairn status` and `cairn drain`.
//!
//! [`Status`] is the value that is shown; [`Board`] is where the tasks write what they see. The board's lock is a leaf:
//! nothing is called while it is held.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use cairn_platform_api::{InodeNo, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::left::{LeftFile, LeftReason};
use super::rows::LogCursor;
use super::upload::FileOutcome;
use crate::base::DeviceId;

/// Rates are means over this window.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Whether the remote answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Reachability {
    /// Not asked yet.
    Unknown,
    /// The last request was answered.
    Reachable,
    /// It has not answered since then (milliseconds since 1970).
    Unreachable {
        /// Since when, in milliseconds since 1970-01-01 UTC.
        since_ms: i64,
    },
}

/// Something that went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
    /// What, in one sentence.
    pub message: String,
}

impl Trouble {
    pub(super) fn now(message: String) -> Self {
        Self { at_ms: now_ms(), message }
    }
}

/// Another device of the vault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its id, six hex digits.
    pub id: String,
    /// The name it gave itself.
    pub name: String,
    /// The last of its segments that was read.
    pub last_seq: u64,
    /// When that was, in milliseconds since 1970-01-01 UTC; 0 before this process saw any.
    pub last_seen_ms: i64,
    /// Why its log is not read any further, if so.
    pub halted: Option<String>,
    /// What of its log the remote has lost, although all of that was read here.
    pub missing: Option<String>,
}

/// What is being sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Objects on the way.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes acknowledged by the remote since the process started.
    pub bytes_done: u64,
    /// Bytes a second, over the last seconds.
    pub rate: u64,
}

/// Everything there is to say about replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The remote's URL, without secrets.
    pub remote: String,
    /// Whether it answers.
    pub reachability: Reachability,
    /// Replication is paused.
    pub paused: bool,
    /// Changes that only this device has: entries of directories, attributes, contents.
    pub changes_only_here: u64,
    /// Files whose content only this device has.
    pub files_only_here: u64,
    /// The bytes of those files.
    pub bytes_only_here: u64,
    /// Segments that are sealed and not yet acknowledged by the remote.
    pub outbox: u64,
    /// What is being sent.
    pub sending: Transfer,
    /// Files whose time had come and that could not be sent: they are only here, or newer here.
    pub left: Vec<LeftFile>,
    /// What must come before anything of this device can be published, if something must.
    pub waits_for: Option<String>,
    /// What went wrong last and has not been made good.
    pub last_error: Option<Trouble>,
    /// Why replication cannot go on without a person, if so.
    pub halted: Option<String>,
    /// Other devices.
    pub devices: Vec<DeviceStatus>,
    /// Upload limit in bytes a second; `None` is none.
    pub upload_limit: Option<u64>,
    /// Download limit in bytes a second; `None` is none.
    pub download_limit: Option<u64>,
}

impl Status {
    /// Whether the remote has everything that this device accepted.
    pub fn is_drained(&self) -> bool {
        self.changes_only_here == 0 && self.files_only_here == 0 && self.outbox == 0
    }
}

/// Where the tasks write what they see.
#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<BoardState>,
}

#[derive(Debug, Default)]
struct BoardState {
    reachability: Option<Reachability>,
    /// The last failure of each task that has not succeeded since.
    errors: BTreeMap<&'static str, (Trouble, Severity)>,
    devices: BTreeMap<DeviceId, DeviceStatus>,
    left: BTreeMap<InodeNo, (i64, LeftReason)>,
    sending: Transfer,
    acknowledged: VecDeque<(Instant, u64)>,
}

/// What a reachability report changed, so that it is logged once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// As before.
    None,
    /// The remote stopped answering.
    WentAway,
    /// The remote answers again.
    CameBack,
}

impl Board {
    pub(super) fn reached(&self) -> Transition {
        let mut state = self.state.lock();
        let before = state.reachability.replace(Reachability::Reachable);
        match before {
            Some(Reachability::Unreachable { .. }) => Transition::CameBack,
            _ => Transition::None,
        }
    }

    pub(super) fn unreachable(&self) -> Transition {
        let mut state = self.state.lock();
        if matches!(state.reachability, Some(Reachability::Unreachable { .. })) {
            return Transition::None;
        }
        state.reachability = Some(Reachability::Unreachable { since_ms: now_ms() });
        Transition::WentAway
    }

    /// A round of `task` failed; whether with something else than the last time.
    pub(super) fn failed(&self, task: &'static str, message: String, severity: Severity) -> bool {
        let trouble = Trouble::now(message.clone());
        let before = self.state.lock().errors.insert(task, (trouble, severity));
        before.is_none_or(|(before, _)| before.message != message)
    }

    pub(super) fn recovered(&self, task: &'static str) {
        self.state.lock().errors.remove(task);
    }

    /// Why replication cannot go on without a person, if so.
    pub(super) fn halted(&self) -> Option<String> {
        self.state.lock().halted()
    }

    /// How reading files ended.
    pub(super) fn read(&self, outcomes: &HashMap<InodeNo, FileOutcome>) {
        let mut state = self.state.lock();
        for (ino, outcome) in outcomes {
            let FileOutcome::Left(reason) = outcome else {
                state.left.remove(ino);
                continue;
            };
            let since = state.left.get(ino).map_or_else(now_ms, |(since, _)| *since);
            let before = state.left.insert(*ino, (since, reason.clone()));
            if before.is_none_or(|(_, before)| before != *reason) {
                tracing::warn!(ino = ino.0, %reason, "a file cannot be sent yet");
            }
        }
    }

    /// Forgets files that could not be sent and are not dirty any more.
    pub(super) fn only_left_of(&self, is_dirty: impl Fn(InodeNo) -> bool) {
        self.state.lock().left.retain(|ino, _| is_dirty(*ino));
    }

    /// The files that could not be sent, and since when.
    pub(super) fn left(&self) -> Vec<(InodeNo, i64, LeftReason)> {
        self.state.lock().left.iter().map(|(ino, (since, reason))| (*ino, *since, reason.clone())).collect()
    }

    pub(super) fn device(&self, id: DeviceId, update: impl FnOnce(&mut DeviceStatus)) {
        update(self.state.lock().devices.entry(id).or_default());
    }

    /// The log of a device is not read any further; whether that is for another reason than before.
    pub(super) fn halts(&self, id: DeviceId, reason: &str) -> bool {
        let mut state = self.state.lock();
        let device = state.devices.entry(id).or_default();
        device.halted.replace(reason.to_owned()).is_none_or(|before| before != reason)
    }

    /// The logs of all other devices are read.
    pub(super) fn only_halted(&self, halted: impl Fn(DeviceId) -> bool) {
        let mut state = self.state.lock();
        let going_on = state.devices.iter_mut().filter(|(id, _)| !halted(**id));
        going_on.for_each(|(_, device)| device.halted = None);
    }

    pub(super) fn sending(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.sending.objects += 1;
        state.sending.bytes += bytes;
    }

    pub(super) fn sent(&self, bytes: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        state.sending.objects = state.sending.objects.saturating_sub(1);
        state.sending.bytes = state.sending.bytes.saturating_sub(bytes);
        if outcome == Outcome::Acknowledged {
            state.sending.bytes_done += bytes;
            state.acknowledged.push_back((Instant::now(), bytes));
            state.forget_old_rates();
        }
    }

    /// Fills in what the board knows, and what rows say of devices that this process has not heard of.
    pub(super) fn fill(&self, status: &mut Status, cursors: Vec<(DeviceId, LogCursor)>) {
        let mut state = self.state.lock();
        state.forget_old_rates();
        status.reachability = state.reachability.unwrap_or(Reachability::Unknown);
        let unreadable = state.left.values().filter_map(|(since, reason)| match reason {
            LeftReason::Unreadable { message } => Some(Trouble { at_ms: *since, message: message.clone() }),
            LeftReason::Restless => None,
        });
        let troubles = state.errors.values().map(|(trouble, _)| trouble.clone()).chain(unreadable);
        status.last_error = troubles.max_by_key(|trouble| trouble.at_ms);
        status.halted = state.halted();
        let mut devices = state.devices.clone();
        for (device, cursor) in cursors {
            let device = devices.entry(device).or_default();
            device.name = cursor.name;
            device.last_seq = cursor.seq;
        }
        status.devices =
            devices.into_iter().map(|(id, device)| DeviceStatus { id: id.to_string(), ..device }).collect();
        status.sending = state.sending.clone();
        let recent: u64 = state.acknowledged.iter().map(|(_, bytes)| bytes).sum();
        status.sending.rate = recent / RATE_WINDOW.as_secs();
    }
}

/// Whether an error goes away by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// Perhaps: the next round tries.
    Passing,
    /// The next round tries, but only a person can make it succeed.
    NeedsAPerson,
}

/// How the sending of an object ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The remote has it.
    Acknowledged,
    /// It may not have it.
    Failed,
}

impl BoardState {
    fn halted(&self) -> Option<String> {
        let halted = self.errors.values().find(|(_, severity)| *severity == Severity::NeedsAPerson);
        halted.map(|(trouble, _)| trouble.message.clone())
    }

    fn forget_old_rates(&mut self) {
        while self.acknowledged.front().is_some_and(|(at, _)| at.elapsed() > RATE_WINDOW) {
            self.acknowledged.pop_front();
        }
    }
}

pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_nanos() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_away_and_coming_back_are_each_reported_once() {
        let board = Board::default();
        assert_eq!(board.reached(), Transition::None);
        assert_eq!(board.unreachable(), Transition::WentAway);
        assert_eq!(board.unreachable(), Transition::None);
        assert_eq!(board.reached(), Transition::CameBack);
        assert_eq!(board.reached(), Transition::None);
    }

    #[test]
    fn status_survives_json() {
        let status = Status {
            remote: "memory:".to_owned(),
            reachability: Reachability::Unreachable { since_ms: 7 },
            paused: false,
            changes_only_here: 1,
            files_only_here: 2,
            bytes_only_here: 3,
            outbox: 4,
            sending: Transfer::default(),
            left: vec![LeftFile { path: "a".to_owned(), reason: LeftReason::Restless, since_ms: 5 }],
            waits_for: None,
            last_error: Some(Trouble { at_ms: 1, message: "no route".to_owned() }),
            halted: None,
            devices: vec![DeviceStatus { id: "00000a".to_owned(), ..DeviceStatus::default() }],
            upload_limit: Some(9),
            download_limit: None,
        };
        let text = serde_json::to_string(&status).expect("a status can be written as JSON");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("and read back"), status);
        assert!(!status.is_drained());
    }
}
