//! The `secretfs` program: arguments, tracing, exit code.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Diagnostics go to stderr: stdout is for values and tables.
    let filter = EnvFilter::try_from_env("SECRETFS_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,fuser=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
    secretfs::cli::run(std::env::args_os())
}
