//! How long a round that failed waits for the next try: exponential, with jitter so that many devices do not come back
//! to a recovering remote at the same moment.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: an hour offline costs one small request a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// The waits of one task.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A round succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// A round failed: how long to wait, between half of the exponential step and all of it.
    pub fn next_wait(&mut self) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let mut random = [0; 2];
        // Without randomness the wait is only less spread out.
        let spread = getrandom::fill(&mut random).map_or(u16::MAX, |()| u16::from_le_bytes(random));
        step.mul_f64(0.5 + 0.5 * f64::from(spread) / f64::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        let first = backoff.next_wait();
        assert!(first <= FIRST && first >= FIRST / 2);
        for _ in 0..100 {
            assert!(backoff.next_wait() <= LONGEST);
        }
        assert!(backoff.next_wait() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }
}
