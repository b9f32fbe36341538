//! The process behind a request, and how more is found out about it.
//!
//! The kernel gives uid, gid and thread id with each request. Supplementary groups and the cgroup cost a read in
//! `/proc` (12 to 19 µs) and are looked up only where a rule needs them, while the caller is still blocked on us: until
//! we answer, its thread id cannot be reused. Nothing is remembered by thread id afterwards.

use std::fmt;

use crate::sys::{Gid, Tid, Uid};

pub mod procfs;

/// What is known of a caller. What is `None` has not been looked up yet.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Caller {
    /// The file-system uid, as the host sees it.
    pub uid: Uid,
    /// The file-system gid, as the host sees it.
    pub gid: Gid,
    /// The thread, in our pid namespace.
    pub tid: Tid,
    /// The supplementary groups.
    pub groups: Option<Vec<Gid>>,
    /// The systemd unit and the container.
    pub cgroup: Option<Cgroup>,
}

impl Caller {
    /// A caller of whom only the kernel's own word is known.
    #[must_use]
    pub fn new(uid: Uid, gid: Gid, tid: Tid) -> Self {
        Self {
            uid,
            gid,
            tid,
            groups: None,
            cgroup: None,
        }
    }

    /// Looks one more thing up, if it is not known already.
    ///
    /// # Errors
    /// [`CallerError`] when it cannot be found out, which denies.
    pub fn find_out(&mut self, evidence: Evidence, lookup: &dyn Lookup) -> Result<(), CallerError> {
        match evidence {
            Evidence::Groups if self.groups.is_none() => {
                self.groups = Some(lookup.groups(self.tid)?)
            }
            Evidence::Cgroup if self.cgroup.is_none() => {
                self.cgroup = Some(lookup.cgroup(self.tid)?)
            }
            Evidence::Groups | Evidence::Cgroup => {}
        }
        Ok(())
    }
}

/// Something about a caller that a rule needs and that has to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its supplementary groups.
    Groups,
    /// Its cgroup: unit and container.
    Cgroup,
}

/// What the kernel-written cgroup path says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cgroup {
    /// The first `.service` or `.scope` of the path.
    pub unit: Option<String>,
    /// The container's id, 64 hexadecimal digits, where an engine's cgroup stands outside of any service.
    pub container: Option<String>,
}

/// Where callers are looked up: `/proc`, or a test's table.
pub trait Lookup: Send + Sync + fmt::Debug {
    /// The supplementary groups of a thread.
    ///
    /// # Errors
    /// [`CallerError`]
    fn groups(&self, tid: Tid) -> Result<Vec<Gid>, CallerError>;

    /// The cgroup of a thread.
    ///
    /// # Errors
    /// [`CallerError`]
    fn cgroup(&self, tid: Tid) -> Result<Cgroup, CallerError>;

    /// The thread's own name for itself: for people who read the audit log, never for a rule.
    fn comm(&self, tid: Tid) -> Option<String>;
}

/// Why a caller could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// Thread id 0: the caller lives in a pid namespace that we cannot see into.
    #[error("the caller is not visible from the daemon's pid namespace")]
    Invisible,
    /// Its entry in `/proc` cannot be read or is not what the kernel writes.
    #[error("/proc/{tid}/{file} cannot be read: {why}")]
    Unreadable {
        /// The thread.
        tid: Tid,
        /// The file below its folder.
        file: &'static str,
        /// The reason.
        why: String,
    },
}
