//! The program as people and scripts use it: real processes, real mounts, a vault in a folder.

mod bad_input;
mod crash;
mod exerciser;
mod full_disk;
mod lifecycle;
mod programs;
mod readme;
mod secrets;
mod suites;
mod terminal;
mod trouble;
mod workload;
pub mod world;
