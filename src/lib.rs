//! secretfs: secrets as files, for exactly the processes that may read them.

pub mod audit;
pub mod backend;
pub mod caller;
pub mod cli;
pub mod clock;
pub mod config;
pub mod policy;
pub mod secret;
pub mod sys;
