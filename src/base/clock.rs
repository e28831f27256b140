//! The hybrid logical clock that ids of change sets are made with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Hlc;

/// Follows the wall clock, and never answers anything that is not greater than all it has answered or seen.
pub struct HybridClock {
    last: AtomicU64,
    wall: fn() -> SystemTime,
}

impl HybridClock {
    /// A clock over the system's.
    pub fn new() -> Self {
        Self::over(SystemTime::now)
    }

    /// A clock over this wall clock, for simulations.
    pub fn over(wall: fn() -> SystemTime) -> Self {
        Self { last: AtomicU64::new(0), wall }
    }

    /// The next time: strictly greater than everything answered or seen before.
    pub fn tick(&self) -> Hlc {
        let wall = (self.wall)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64) << 16;
        let next = |last: u64| Some(wall.max(last.saturating_add(1)));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).expect("the closure is total");
        Hlc(wall.max(last.saturating_add(1)))
    }

    /// Notes a time seen elsewhere.
    pub fn observe(&self, seen: Hlc) {
        self.last.fetch_max(seen.0, Ordering::AcqRel);
    }
}

impl Default for HybridClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_grow_even_when_the_wall_clock_stands_still_or_others_are_ahead() {
        let clock = HybridClock::over(|| UNIX_EPOCH + std::time::Duration::from_millis(5));
        let first = clock.tick();
        assert_eq!(first.unix_millis(), 5);
        assert!(clock.tick() > first);
        clock.observe(Hlc(99 << 16));
        assert!(clock.tick() > Hlc(99 << 16));
        clock.observe(Hlc(1));
        assert!(clock.tick() > Hlc(99 << 16));
    }
}
