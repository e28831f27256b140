//! Backing files: which bytes of which content are here.
//!
//! Every regular file that has content on this machine has one sparse backing file, `content/<2 hex>/<inode number>`. A
//! [`CacheRow`] says which ranges of which published content it holds, and the [`Stamp`] it had when it was last known to
//! equal that content. This module knows files, ranges and rows; whose content they are is the drive's knowledge.

mod backing;
mod ranges;
mod row;
mod space;

pub use backing::{BackingFiles, Stamp};
pub use ranges::RangeSet;
pub use row::{CacheRow, Presence};
pub use space::DiskSpace;
