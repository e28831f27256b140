//! Carries what a drive accepts to its vault, and what other devices published into the drive.
//!
//! A push round reads the files that have settled, sends what the vault lacks as packs, records what was sent, cuts a
//! change set and sends it as a segment. A pull round reads the new segments of other devices and folds them; one that has
//! none yet begins with a checkpoint. When many segments have come since the last checkpoint, one is written. Rounds are
//! idempotent: after a crash or an error the next one goes on from the rows that the last one left, by the same code.
//! Being offline is a normal state, not an error of anybody.
//!
//! Does not decide what changed or who wins: that is [`crate::tree`].

mod backoff;
mod checkpoint;
mod cut;
mod engine;
mod error;
mod failpoint;
mod fetch;
mod join;
mod left;
mod pull;
mod push;
mod reading;
mod ready;
mod rows;
mod send;
mod settle;
mod singleflight;
mod status;
mod upload;
mod wanted;
mod worker;

use std::time::Duration;

pub use checkpoint::{CheckpointPolicy, Checkpointed};
pub use engine::{Engine, unpublished};
pub use error::ReplicateError;
pub use failpoint::{Failpoints, STEPS, Stopped};
pub use fetch::Fetcher;
pub use left::{Left, LeftFile, LeftReason};
pub use pull::Pulled;
pub use push::Pushed;
pub use settle::{SettlePolicy, Urgency};
pub use status::{DeviceStatus, Reachability, Status, Transfer, Trouble};
pub use worker::{DrainError, Replicator};

use crate::provider::BandwidthLimits;

/// How replication behaves.
#[derive(Debug, Clone)]
pub struct ReplicateSettings {
    /// When changes are published.
    pub settle: SettlePolicy,
    /// How often other devices' logs are looked at.
    pub pull_interval: Duration,
    /// How long a reader waits for content before it gets an error.
    pub read_deadline: Duration,
    /// The most of one file that a round reads, in bytes, so that what came meanwhile does not wait for all of a large file.
    pub slice: u64,
    /// The limits that the provider obeys, for the status.
    pub bandwidth: BandwidthLimits,
    /// Most bytes of recently read chunks that are kept in memory.
    pub chunk_cache: u64,
    /// Segments up to which all logs are listed at once; beyond that, mostly what is new of each.
    pub whole_listing: u64,
    /// When a checkpoint is written.
    pub checkpoint: CheckpointPolicy,
}

impl Default for ReplicateSettings {
    fn default() -> Self {
        Self {
            settle: SettlePolicy::default(),
            // Within the five seconds in which another device shows what was drained, with time left to read it.
            pull_interval: Duration::from_secs(2),
            read_deadline: Duration::from_secs(30),
            slice: 256 << 20,
            bandwidth: BandwidthLimits::default(),
            chunk_cache: 32 << 20,
            // What S3 answers to one request.
            whole_listing: 1000,
            checkpoint: CheckpointPolicy::default(),
        }
    }
}

/// How much is still to be sent, as a drain sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DrainProgress {
    /// Changes of names and attributes that only this device has.
    pub changes_left: u64,
    /// Files whose content only this device has.
    pub files_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// Segments to be sent.
    pub segments_left: u64,
}
