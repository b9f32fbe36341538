//! Who, what, when, decision, rule; never a value.

use std::sync::Arc;

use jiff::Timestamp;

use crate::backend::Version;
use crate::policy::RuleName;
use crate::sys::{Gid, Tid, Uid};

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

/// One line of the log.
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
    /// `service/name`, a service, or nothing where the command has no such subject.
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
