//! What the commands answer: what `--json` prints, and what the tables are made from. Never a value.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::Record;
use crate::backend::Version;
use crate::policy::revocation::Revocation;
use crate::secret::{Name, SecretPath};

/// Of `put`, `get` and `rollback`: which version it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// The secret.
    pub path: SecretPath,
    /// The version that was made or given.
    pub version: Version,
    /// True if it is older than it should be, because the backend cannot be reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// Of `ls`: one secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The secret.
    pub path: SecretPath,
    /// Its newest version, where the store has it.
    pub version: Option<Version>,
    /// When that was made.
    pub modified: Option<Timestamp>,
    /// Its length in bytes.
    pub size: Option<usize>,
}

/// Of `history`: one version, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its number.
    pub version: Version,
    /// When it was made.
    pub created: Timestamp,
    /// Its length in bytes, where the backend says it without the value.
    pub size: Option<usize>,
}

/// Of `rm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The secret.
    pub path: SecretPath,
    /// The version, if it was one only.
    pub version: Option<Version>,
}

/// Of `wait`: what is current now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// The secret.
    pub path: SecretPath,
    /// The number of its generation, unless it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The version behind it, unless it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// True if the secret is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// Of `reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different now; nothing if the config says what it said before.
    pub changes: Vec<String>,
    /// Users and groups in the config that are not known.
    pub unknown: Vec<String>,
}

/// Of `restore` and `rekey`: how much there is in the store afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The store.
    pub backend: Name,
    /// How many secrets it has.
    pub secrets: usize,
    /// The age recipients that it is sealed to.
    pub recipients: Vec<String>,
}

/// Of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon; left out when none runs.
    pub daemon: Option<DaemonStatus>,
    /// The backends.
    pub backends: Vec<BackendStatus>,
    /// The broker where changes are heard; left out if the config names none, or no daemon runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerStatus>,
    /// Values in the cache.
    pub cached: usize,
    /// Their bytes.
    pub cached_bytes: usize,
    /// Fetches under way.
    pub fetching: usize,
    /// Open files and directories.
    pub handles: usize,
    /// Why the audit log cannot be written, if it cannot.
    pub audit_failure: Option<String>,
    /// The number of the audit log's last line.
    pub audit_lines: u64,
    /// Users and groups in the config that are not known, and close their services.
    pub unknown: Vec<String>,
    /// What is revoked now.
    #[serde(default)]
    pub revoked: Vec<Revocation>,
    /// What is kept for a start without a network; left out if nothing is, or no daemon runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<OfflineStatus>,
}

/// What is kept for a start without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineStatus {
    /// The file.
    pub path: String,
    /// How many secrets can be shown from it.
    pub secrets: usize,
    /// When it was last written.
    pub written: Option<Timestamp>,
    /// Why it was not, if it was not.
    pub trouble: Option<String>,
}

/// Of `unrevoke`. `revoke` answers with the [`Revocation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrevoked {
    /// What was given back.
    pub lifted: Revocation,
    /// What is revoked all the same, as far as it is the caller's business.
    pub still: Vec<Revocation>,
}

/// A running daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The server's process.
    pub pid: u32,
    /// Whom it runs as.
    pub uid: u32,
    /// Where the secrets appear.
    pub mount: String,
    /// Since when.
    pub since: Timestamp,
    /// Its release.
    pub release: String,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name in the config; with `@SERVICE` where that service signs in for itself.
    pub name: String,
    /// Its `type`.
    pub kind: String,
    /// Why it cannot be used, if it cannot.
    pub trouble: Option<String>,
    /// How many secrets it has, if it is a store.
    pub secrets: Option<usize>,
    /// How changes at it are noticed; left out if it announces them, or no daemon runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<SignalStatus>,
    /// What it has leased to us; left out if there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<LeaseStatus>,
}

/// What a backend has leased to us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// How many leases have not ended.
    pub held: usize,
    /// When the next of them ends, unless it is renewed.
    pub next_end: Timestamp,
}

/// The broker where changes are heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Scheme, host and port.
    pub url: String,
    /// Since when we are connected; left out while we are not, and try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<Timestamp>,
    /// Why we are not, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How changes at a backend are noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStatus {
    /// When it last answered a poll.
    pub polled: Option<Timestamp>,
    /// When it, or a broker, last told of a change.
    pub heard: Option<Timestamp>,
    /// How many of its records are in use.
    pub in_use: usize,
    /// How many of them we may not see without reading them: the TTL alone counts.
    pub refused: usize,
}

/// Of `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The secret.
    pub path: SecretPath,
    /// Whether it may be read.
    pub allowed: bool,
    /// The rule that allows, or why none does.
    pub reason: String,
    /// The caller's user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups, if a rule asked for them.
    pub groups: Option<Vec<u32>>,
    /// Its systemd unit, if a rule asked for it.
    pub unit: Option<String>,
    /// Its container, if a rule asked for it.
    pub container: Option<String>,
    /// Where the value is looked for, in this order; only for who may read or manage it.
    pub references: Vec<String>,
    /// The version in the cache, if there is one that would be served.
    pub cached: Option<Version>,
}

/// Of `doctor`: one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: Health,
    /// What was found, and the mend.
    pub detail: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, but not as safely as it could.
    Warning,
    /// It does not work.
    Wrong,
}

/// Of `audit`: one line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// What it says.
    #[serde(flatten)]
    pub record: Record,
    /// True if the key vouches for it.
    pub verified: bool,
}

/// Of `audit`: what is known after the last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSummary {
    /// How many lines were read.
    pub lines: u64,
    /// False if there was no key to verify them with.
    pub verified: bool,
    /// Where the chain breaks first.
    pub broken: Option<String>,
    /// How many lines were torn by a crash, and named afterwards.
    pub torn: u64,
    /// How many events could not be written.
    pub lost: u64,
}
