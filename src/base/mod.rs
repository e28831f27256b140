//! What everything stands on: the ids of devices and change sets, the hybrid clock, the byte codec.
//!
//! Nothing here knows of files, remotes or disks.

mod clock;
pub mod codec;
mod ids;
pub mod os;

pub use clock::HybridClock;
pub use ids::{ChangeId, DeviceId, Hlc};
