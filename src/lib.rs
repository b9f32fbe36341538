//! secretfs: secrets as files, for exactly the processes that may read them.

// What unit tests share with the tests outside names the library as they do.
#[cfg(test)]
extern crate self as secretfs;

pub mod access;
pub mod audit;
pub mod backend;
pub mod cache;
pub mod caller;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod events;
pub mod fs;
pub mod fuse;
pub mod keeper;
pub mod policy;
pub mod relay;
pub mod run;
pub mod secret;
pub mod signal;
mod sync;
pub mod sys;
