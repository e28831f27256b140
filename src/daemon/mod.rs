//! A mounted drive as a process: its life from the start to the end of the mount, and the control connection over which
//! commands reach it.

pub mod client;
pub mod control;
pub mod driver;
mod error;
pub mod server;
pub mod session;

pub use error::SessionError;
