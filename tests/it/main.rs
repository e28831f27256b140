//! Integration tests: real mounts, real servers, whole programs. One binary, one module per subject.

#[cfg(target_os = "linux")]
mod cli;
#[cfg(target_os = "linux")]
mod dice;
#[cfg(target_os = "linux")]
mod drive;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod harness;
mod patience;
#[cfg(target_os = "linux")]
mod posix;
#[cfg(target_os = "linux")]
mod power;
#[cfg(target_os = "linux")]
mod provider;
mod replicate;
#[cfg(target_os = "linux")]
mod semantics;
#[cfg(target_os = "linux")]
mod servers;
#[cfg(target_os = "linux")]
mod skip;
#[cfg(target_os = "linux")]
mod tls;
