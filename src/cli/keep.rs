//! `keep`, which only the keeper of another release calls: what it hands over, by numbers.

use std::path::PathBuf;

use crate::cli::serve::{Named, adopt, adopt_named};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::Failure;
use crate::keeper::upgrade::{self, Handed};

/// What the other keeper hands over.
#[derive(Debug, clap::Args)]
pub struct Keep {
    /// The server that still serves
    #[arg(long)]
    server: i32,
    /// Servers before it that have not ended yet
    #[arg(long)]
    before: Vec<i32>,
    /// Where the server says how it is
    #[arg(long)]
    word: i32,
    /// /dev/fuse, mounted
    #[arg(long)]
    device: i32,
    /// The top of the mount, where it can be written to
    #[arg(long)]
    writable: Option<i32>,
    /// Memory for what the kernel knows of the mount
    #[arg(long)]
    ledger: i32,
    /// Whether the kernel sends again what a dead server has not answered
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    resends: bool,
    /// The control socket, listening
    #[arg(long)]
    control: i32,
    /// The daemon's lock, locked
    #[arg(long)]
    lock: i32,
    /// Memory for the key of a store's sealed identity
    #[arg(long)]
    key: Vec<Named>,
    /// Memory for sealed values
    #[arg(long)]
    values: i32,
    /// Memory for the key to them
    #[arg(long)]
    values_key: i32,
    /// Where the secrets appear
    #[arg(long)]
    mount: PathBuf,
    /// The runtime folder
    #[arg(long)]
    runtime: PathBuf,
    /// Only say whether this could be
    #[arg(long)]
    check: bool,
}

/// Keeps the mount until the end.
///
/// # Errors
/// A [`Failure`], if it cannot.
pub fn keep(config: &Config, keep: Keep, clock: &Clock) -> Result<(), Failure> {
    let failed = |error: crate::run::RunError| Failure::failed(error.to_string());
    let adopt = |number| adopt(number).map_err(failed);
    let handed = Handed {
        server: keep.server,
        before: keep.before,
        word: adopt(keep.word)?,
        device: adopt(keep.device)?,
        writable: keep.writable.map(adopt).transpose()?,
        ledger: adopt(keep.ledger)?,
        resends: keep.resends,
        control: adopt(keep.control)?,
        lock: adopt(keep.lock)?,
        keys: adopt_named(keep.key).map_err(failed)?,
        values: adopt(keep.values)?,
        values_key: adopt(keep.values_key)?,
        mount: keep.mount,
        runtime: keep.runtime,
    };
    handed.fits(config).map_err(Failure::usage)?;
    if keep.check {
        return Ok(());
    }
    upgrade::resume(config, clock, handed).map_err(|error| super::daemon::keeper_failure(&error))
}
