//! Decides when a dirty file is worth publishing: once it has been left alone for a moment, or when it has waited too
//! long. Pure; knows no clock.

use std::time::Duration;

use cairn_platform_api::Timestamp;

/// How long changes are gathered before they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettlePolicy {
    /// A file untouched for this long is published.
    pub settle: Duration,
    /// A file that never comes to rest is published this long after it became dirty, and again after each such time.
    pub max_delay: Duration,
}

impl Default for SettlePolicy {
    fn default() -> Self {
        Self { settle: Duration::from_secs(1), max_delay: Duration::from_secs(30) }
    }
}

/// How much a push hurries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Only what has settled.
    Settled,
    /// Everything, now: somebody waits for it.
    Drain,
}

impl SettlePolicy {
    /// Whether what last changed at `changed` has been at rest for so long by `now` that it can have been sent.
    pub fn has_rested(&self, changed: Timestamp, now: Timestamp) -> bool {
        elapsed(changed, now) >= self.settle * 2
    }

    /// Whether what became dirty at `since` and was last modified at `modified` is ready at `now`.
    ///
    /// A modification time after `now` was set by a program and says nothing; one before `since` neither (`cp -p`).
    /// A clock that was set back makes everything ready rather than holding it for as long as the clock is behind.
    pub fn is_ready(&self, since: Timestamp, modified: Timestamp, now: Timestamp, urgency: Urgency) -> bool {
        if urgency == Urgency::Drain || since > now {
            return true;
        }
        let last = if modified > now { since } else { modified.max(since) };
        elapsed(last, now) >= self.settle || elapsed(since, now) >= self.max_delay
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    let nanos = to.as_nanos().saturating_sub(from.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_nanos(milliseconds * 1_000_000)
    }

    fn ready(since: i64, modified: i64, now: i64) -> bool {
        SettlePolicy::default().is_ready(at(since), at(modified), at(now), Urgency::Settled)
    }

    #[test]
    fn file_at_rest_is_ready_and_file_in_use_is_not() {
        assert!(!ready(0, 5_000, 5_500));
        assert!(ready(0, 5_000, 6_000));
    }

    #[test]
    fn file_that_never_rests_is_ready_after_the_longest_delay() {
        assert!(!ready(0, 29_900, 29_999));
        assert!(ready(0, 29_900, 30_000));
    }

    #[test]
    fn times_set_by_programs_do_not_hold_or_hurry() {
        assert!(!ready(10_000, 1, 10_500), "an old modification time set by `cp -p` is no rest");
        assert!(ready(10_000, 99_000_000, 11_000), "a modification time in the future does not hold the file");
    }

    #[test]
    fn clock_set_back_makes_everything_ready() {
        assert!(ready(10_000, 10_000, 5_000));
    }

    #[test]
    fn drain_does_not_wait() {
        assert!(SettlePolicy::default().is_ready(at(0), at(0), at(0), Urgency::Drain));
    }
}
