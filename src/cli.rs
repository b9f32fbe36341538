//! The command line: one module for each group of commands.

pub mod args;
pub mod generate;
pub mod import;
pub mod input;
pub mod output;
pub mod serve;
