//! The `secretfs` program: arguments, tracing, exit code.

use std::ffi::OsString;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Diagnostics go to stderr: stdout is for values and tables. A command that ends with an error says in it what its
    // audit log's trouble is; the daemon, which goes on, logs it.
    let stays = |word: OsString| {
        [
            "mount",
            "up",
            "premount",
            "serve",
            "serve-handed",
            "keep",
            "relay",
        ]
        .iter()
        .any(|stays| word == *stays)
    };
    let usual = match std::env::args_os().any(stays) {
        true => "info,fuser=error",
        false => "warn,secretfs::audit=off",
    };
    let mut filter =
        EnvFilter::try_from_env("SECRETFS_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    // What they log is what they send and receive: at no level, whatever the environment says.
    for deaf in [
        "async_nats",
        "hyper",
        "hyper_util",
        "reqwest",
        "rumqttc",
        "rustify",
        "rustls",
        "vaultrs",
    ] {
        if let Ok(off) = format!("{deaf}=off").parse() {
            filter = filter.add_directive(off);
        }
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
    secretfs::cli::run(std::env::args_os())
}
