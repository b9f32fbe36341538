//! `keep`, which only the keeper of another release calls: what it hands over, by numbers.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::cli::serve::{Named, adopt, adopt_named};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::Failure;
use crate::fs::Ledger;
use crate::keeper::upgrade::{self, Handed};
use crate::sys;

/// How long a config may be wrong that was right before.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// What of the config cannot change
    #[arg(long, value_name = "KEY=VALUE")]
    fixed: Vec<OsString>,
    /// Only say whether this could be
    #[arg(long)]
    check: bool,
}

/// Keeps the mount until the end.
///
/// # Errors
/// A [`Failure`], if it cannot.
pub fn keep(config: &Path, keep: Keep, clock: &Clock) -> Result<(), Failure> {
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
        fixed: keep.fixed.iter().filter_map(|fixed| split(fixed)).collect(),
    };
    if !keep.check {
        let config = load(config, clock)?;
        return upgrade::resume(&config, clock, handed)
            .map_err(|error| super::daemon::keeper_failure(&error));
    }
    // The other keeper waits for the answer; without one there is nobody to give it to.
    sys::die_with_parent().map_err(|why| Failure::failed(why.to_string()))?;
    handed
        .fits(&super::load(config)?)
        .map_err(Failure::failed)?;
    if !Ledger::is_of_this_release(&handed.ledger) {
        return Err(Failure::failed(
            "it writes down differently what the kernel knows, which takes a restart: `secretfs unmount`, then `secretfs mount`",
        ));
    }
    let said = writeln!(std::io::stdout(), "{}", upgrade::YES);
    said.map_err(|why| Failure::failed(why.to_string()))
}

/// The config, which was right a moment ago: somebody who saves it at this very moment is waited for, as there is no way back.
fn load(config: &Path, clock: &Clock) -> Result<Config, Failure> {
    let deadline = clock.now() + PATIENCE;
    loop {
        match super::load(config) {
            Ok(config) => return Ok(config),
            Err(failure) if clock.now() >= deadline => {
                return Err(Failure::failed(failure.message));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// KEY=VALUE
fn split(fixed: &OsStr) -> Option<(String, OsString)> {
    let bytes = fixed.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (bytes.get(..at)?, bytes.get(at + 1..)?);
    let key = std::str::from_utf8(key).ok()?;
    Some((key.to_owned(), OsStr::from_bytes(value).to_owned()))
}
