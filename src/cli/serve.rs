//! `serve`, which systemd calls, and `serve-handed`, which only the keeper calls: with the descriptors that it hands over, by
//! their numbers.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use crate::clock::Clock;
use crate::run::{self, Holder, Inherited, RunError};
use crate::secret::Name;
use crate::sys::{self, Gid, Uid};

/// What the keeper hands over.
#[derive(Debug, clap::Args)]
pub struct Handed {
    /// /dev/fuse, mounted
    #[arg(long)]
    device: i32,
    /// The top of the mount, where it can be written to
    #[arg(long)]
    writable: Option<i32>,
    /// Where the server says how it is
    #[arg(long)]
    word: i32,
    /// The control socket, listening
    #[arg(long)]
    control: i32,
    /// The identity file of a store
    #[arg(long)]
    identity: Vec<Named>,
    /// Memory for the key of a store's sealed identity
    #[arg(long)]
    key: Vec<Named>,
    /// Memory for sealed values
    #[arg(long)]
    values: i32,
    /// Memory for the key to them
    #[arg(long)]
    values_key: i32,
    /// Memory for what the kernel knows of the mount
    #[arg(long)]
    ledger: i32,
    /// Whom to become: UID:GID:NAME
    #[arg(long)]
    user: Option<UserArg>,
}

/// NAME=NUMBER
#[derive(Debug, Clone)]
pub(super) struct Named {
    name: Name,
    number: i32,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once('=').ok_or("NAME=NUMBER")?;
        let name = name.parse::<Name>().map_err(|error| error.to_string())?;
        Ok(Self {
            name,
            number: number.parse().map_err(|_| "not a number")?,
        })
    }
}

#[derive(Debug, Clone)]
struct UserArg(sys::User);

impl FromStr for UserArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let mut number = || {
            parts
                .next()
                .and_then(|part| part.parse().ok())
                .ok_or("UID:GID:NAME")
        };
        let (uid, gid) = (Uid(number()?), Gid(number()?));
        let user = sys::User::new(parts.next().ok_or("UID:GID:NAME")?, uid, gid);
        user.map(Self).map_err(|error| error.to_string())
    }
}

/// Serves what systemd holds until the end; or only says what this release writes down of a mount.
///
/// # Errors
/// [`RunError`]
pub fn serve(config: &Path, check: bool, clock: &Clock) -> Result<(), RunError> {
    if !check {
        return run::serve_stored(config, clock);
    }
    let said = writeln!(std::io::stdout(), "{}", run::fits(config, clock)?);
    said.map_err(|why| RunError::System {
        what: "saying so",
        why,
    })
}

/// Serves what the keeper hands over until the end.
///
/// # Errors
/// [`RunError`]
pub fn serve_handed(config: &Path, serve: Handed, clock: &Clock) -> Result<(), RunError> {
    let inherited = Inherited {
        device: adopt(serve.device)?,
        writable: serve.writable.map(adopt).transpose()?,
        holder: Holder::keeper(adopt(serve.word)?),
        control: adopt(serve.control)?,
        identities: adopt_named(serve.identity)?,
        keys: adopt_named(serve.key)?,
        values: adopt(serve.values)?,
        values_key: adopt(serve.values_key)?,
        ledger: adopt(serve.ledger)?,
        user: serve.user.map(|user| user.0),
    };
    run::serve(config, inherited, clock)
}

/// A descriptor that was handed over.
///
/// # Errors
/// [`RunError::System`]
pub(super) fn adopt(number: i32) -> Result<OwnedFd, RunError> {
    sys::adopt(number).map_err(|why| RunError::System {
        what: "it needs descriptors that only the keeper passes, so run `secretfs mount`",
        why,
    })
}

/// The same of several, by their names.
///
/// # Errors
/// [`RunError::System`]
pub(super) fn adopt_named(named: Vec<Named>) -> Result<BTreeMap<Name, OwnedFd>, RunError> {
    named
        .into_iter()
        .map(|Named { name, number }| Ok((name, adopt(number)?)))
        .collect()
}
