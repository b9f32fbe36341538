//! The `secretfs` program: arguments, tracing, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Diagnostics go to stderr: stdout is for values and tables. fuser warns of each kind of request that we leave to
    // its answer (ENOSYS), which is what we want.
    let filter = EnvFilter::try_from_env("SECRETFS_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,fuser=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    secretfs::cli::run(std::env::args_os())
}
