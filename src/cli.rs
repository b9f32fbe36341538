//! The commands.

pub mod generate;
pub mod import;
