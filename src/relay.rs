//! The relay: it reads what a server writes down of the requests that it served, and tells the broker which records have
//! changed.
//!
//! For servers that tell of no changes themselves. It runs beside the server, as whoever may read its audit log; it has no
//! identity, no token and no value. What it passes on are hints, so it never guesses what it missed: when it starts, when
//! lines were lost or were too long to be read, and after a broker was away, it says that anything may have changed.

use std::fmt;
use std::path::PathBuf;

use crate::signal::outbox::Outbox;

mod audit;
mod lines;
mod socket;
mod tail;

pub use audit::{Change, changes};
pub use socket::Listener;
pub use tail::Tail;

/// Where the audit log comes from.
#[derive(Debug)]
pub enum Source {
    /// From a file, which the server writes.
    File(PathBuf),
    /// From a socket, to which the server connects: a path, or an address on this machine.
    Socket(String),
}

/// What becomes of the lines of an audit log.
pub struct Sink<'a> {
    /// Whose requests count.
    pub namespace: &'a str,
    /// Where changes go.
    pub outbox: &'a Outbox,
    /// Hears of each change as well.
    pub each: &'a (dyn Fn(&Change) + Sync),
}

impl fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Sink<'_> {
    /// A line.
    fn line(&self, line: &[u8]) {
        for change in changes(line, self.namespace) {
            (self.each)(&change);
            self.outbox.put(change.path, change.version);
        }
    }

    /// Lines were lost.
    fn missed(&self) {
        self.outbox.miss();
    }
}
