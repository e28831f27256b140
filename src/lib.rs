//! The product behind the `cairn` program.

pub mod base;
pub mod cache;
pub mod chunk;
pub mod config;
pub mod crypto;
pub mod daemon;
pub mod drive;
pub mod provider;
pub mod replicate;
pub mod store;
pub mod tree;
pub mod vault;
