//! The command line: one module for each group of commands.

pub mod args;
pub mod input;
pub mod serve;
pub mod output;
