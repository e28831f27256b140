//! Named steps at which tests make replication fail or the process die, so that every order of events around a crash
//! can be produced on purpose.
//!
//! A process started with `CAIRN_ABORT_AT=name` (or `name:n`) aborts when it reaches that step for the first (`n`th)
//! time. Tests in the same process install a hook instead. Neither exists in release builds.

use std::fmt;
#[cfg(debug_assertions)]
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

#[cfg(debug_assertions)]
use parking_lot::Mutex;

/// Every step, in the order in which a push, a pull, the writing of a checkpoint and the loading of one pass them.
pub const STEPS: &[&str] = &[
    // All of a content was read, and is still to be found the same.
    "push.in_read",
    "push.before_pack",
    "push.after_pack",
    "push.after_pack_rows",
    "push.after_snapshot",
    "push.in_cut",
    "push.after_cut",
    "push.after_flush",
    "push.after_segment",
    "push.after_outbox",
    "pull.before_fold",
    "pull.after_fold",
    "checkpoint.before_pack",
    "checkpoint.after_pack",
    "checkpoint.after_pack_rows",
    "checkpoint.before_object",
    "checkpoint.after_object",
    "join.after_begin",
    "join.after_chunk",
    "join.before_end",
    "join.after_end",
];

/// A step was made to fail by a test.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped at {0} by a test")]
pub struct Stopped(pub &'static str);

#[cfg(debug_assertions)]
type Hook = Arc<dyn Fn(&'static str) -> Result<(), Stopped> + Send + Sync>;

/// The steps of one replicator.
#[derive(Default)]
pub struct Failpoints {
    #[cfg(debug_assertions)]
    hook: Mutex<Option<Hook>>,
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failpoints")
    }
}

#[cfg(debug_assertions)]
impl Failpoints {
    /// Called at every step from now on; an error makes the step fail.
    pub fn set_hook(&self, hook: impl Fn(&'static str) -> Result<(), Stopped> + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// Passes the step `name`.
    ///
    /// # Errors
    /// What the hook says.
    pub fn pass(&self, name: &'static str) -> Result<(), Stopped> {
        debug_assert!(STEPS.contains(&name), "{name} is not listed");
        abort_if_asked(name);
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(name))
    }
}

#[cfg(not(debug_assertions))]
impl Failpoints {
    /// Passes the step `name`.
    ///
    /// # Errors
    /// None in release builds.
    pub fn pass(&self, _name: &'static str) -> Result<(), Stopped> {
        Ok(())
    }
}

#[cfg(debug_assertions)]
fn abort_if_asked(name: &str) {
    static ASKED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let asked = ASKED.get_or_init(|| {
        let value = std::env::var("CAIRN_ABORT_AT").ok()?;
        match value.split_once(':') {
            Some((name, count)) => Some((name.to_owned(), count.parse().ok()?)),
            None => Some((value, 1)),
        }
    });
    if let Some((step, count)) = asked {
        if step == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count {
            tracing::error!(step = name, "aborting as CAIRN_ABORT_AT asks");
            std::process::abort();
        }
    }
}
