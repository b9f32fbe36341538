//! Who, what, when, decision, rule; never a value.
//!
//! Every access and every command becomes a line of JSON, written by one thread behind a bounded queue, so that an open
//! never waits for a disk. The lines are chained by a keyed hash (`chain`), repeats are folded (`fold`), and what
//! could not be written is counted and said. What the log cannot show: lines cut cleanly off its end while no writer
//! runs. Whoever must know that too sends the log to another machine, or to the journal.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::backend::Version;
use crate::clock::Clock;
use crate::config::AuditConfig;
use crate::policy::RuleName;
use crate::secret::SecretBytes;
use crate::sys::{Gid, Tid, Uid};

mod chain;
mod file;
mod fold;
mod handle;
mod journal;
mod line;
mod read;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use chain::Mac;
pub use line::{Body, Entry, Note, Noted, Record, printable};
pub use read::{Filter, Reader};
pub use verify::{Break, Fault, Line, Report};

/// How an access or a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The value was given, or the command done.
    Allowed,
    /// The policy said no.
    Denied,
    /// There is no such secret.
    Absent,
    /// The backend said no.
    Refused,
    /// The backend could not be reached, or not in time.
    Unreachable,
    /// An old value was given because the backend could not be reached.
    Stale,
    /// The value was taken away.
    Revoked,
    /// Something else went wrong.
    Error,
}

/// One access or command.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// When it ended.
    pub time: Timestamp,
    /// What was done: `open`, `read`, or the command's name.
    pub action: Arc<str>,
    /// By whom.
    pub uid: Uid,
    /// By whom.
    pub gid: Gid,
    /// By which thread (files) or process (commands).
    pub tid: Tid,
    /// `service/name`, a service, `--uid N` or `--all` where that is revoked, or nothing where the command has no subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
    /// The version that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// The rule that decided, or why none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// The thread's name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// The open log. Cheap to clone; the last clone that is dropped writes what is left, for two seconds at most.
#[derive(Clone)]
pub struct Audit(Arc<handle::Handle>);

impl Audit {
    /// Opens the log, continues its chain and starts the writer. The caller sees to it that no other process writes.
    ///
    /// # Errors
    /// [`AuditError`] where the log cannot be opened or must not be trusted.
    pub fn start(
        config: &AuditConfig,
        key: &SecretBytes,
        clock: Clock,
    ) -> Result<Self, AuditError> {
        handle::Handle::start(config, key, clock).map(|handle| Self(Arc::new(handle)))
    }

    /// Takes down a file access. Never blocks and does no I/O; equal ones within a second are counted on one line.
    pub fn record(&self, event: Event) {
        self.0.record(event);
    }

    /// Takes down a command, and returns when its line is on the disk (or with the journal). Never folds.
    ///
    /// # Errors
    /// [`AuditError`] when that was not possible within five seconds; the command should not be done then.
    pub fn record_now(&self, event: Event) -> Result<(), AuditError> {
        self.0.record_now(event)
    }

    /// Whether an open may go on: always with `on_failure = "warn"`, else while the log can be written. One atomic load.
    ///
    /// # Errors
    /// [`Trouble`], which denies.
    pub fn ready(&self) -> Result<(), Trouble> {
        self.0.ready()
    }

    /// Whether the log can be written, whatever `on_failure` says: for `status`.
    ///
    /// # Errors
    /// [`Trouble`]
    pub fn healthy(&self) -> Result<(), Trouble> {
        self.0.healthy()
    }

    /// Why the log could not be written when it was last tried, while that is so.
    #[must_use]
    pub fn failure(&self) -> Option<AuditError> {
        self.0.failure()
    }

    /// The number of the last line that was written.
    #[must_use]
    pub fn last_line(&self) -> u64 {
        self.0.last_line()
    }

    /// Writes what is queued and folded so far.
    ///
    /// # Errors
    /// [`AuditError`] where something could not be written, or not before `deadline`.
    pub fn flush(&self, deadline: Duration) -> Result<(), AuditError> {
        self.0.flush(deadline)
    }

    /// Writes what is queued and folded, and ends the writer. What is recorded afterwards is lost.
    ///
    /// # Errors
    /// [`AuditError`] where something could not be written, or not before `deadline`.
    pub fn close(&self, deadline: Duration) -> Result<(), AuditError> {
        self.0.close(deadline)
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&self.healthy()).finish()
    }
}

/// Why nothing can be audited at the moment. It ends by itself: writing is tried again each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Trouble {
    /// Writing fails.
    #[error("the audit log cannot be written")]
    Unwritable,
    /// More comes than can be written, and some of it was lost.
    #[error("the audit log's queue is full")]
    Full,
}

/// Why the log could not be opened or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The file is not a plain file of one name.
    #[error("audit log {}: not a regular file with one name: set `path` in [audit] to another file", .0.display())]
    Kind(PathBuf),
    /// Others may read or write the file.
    #[error("audit log {}: mode {mode:04o} is too open: chmod 0640 {}", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody unexpected.
    #[error("audit log {}: belongs to uid {uid}, who is neither root, nor we, nor its folder's owner: chown root {}", path.display(), path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: Uid,
    },
    /// The file holds something else.
    #[error("audit log {}: its end is not that of an audit log: move the file away or set `path` in [audit] to another one", .0.display())]
    Foreign(PathBuf),
    /// The system refused.
    #[error(
        "audit log {target}: {why}: check [audit] in the config, the folder's owner and the free space"
    )]
    Unusable {
        /// The file or socket.
        target: String,
        /// The system's reason.
        why: String,
    },
    /// The chain's key is too short to be one.
    #[error(
        "the audit log's key is damaged (shorter than 32 bytes): restore the state folder from a copy"
    )]
    Key,
    /// The deadline passed.
    #[error(
        "the audit log was not written in time: check the disk that holds it, then run `secretfs status`"
    )]
    Slow,
    /// The writer has ended.
    #[error("the audit log is closed: start the daemon again")]
    Closed,
}
