//! Callers out of a table, and how often each thing about them was asked.

#![allow(unreachable_pub, reason = "it is part of tests")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use secretfs::caller::{Caller, CallerError, Cgroup, Lookup};
use secretfs::sys::{Gid, Tid, Uid};

/// What is known of each thread; of all others nothing can be found out.
#[derive(Debug, Default)]
pub struct Table {
    pub groups: HashMap<u32, Vec<u32>>,
    pub units: HashMap<u32, &'static str>,
    /// Look-ups of groups, cgroup and name.
    pub asked: [AtomicUsize; 3],
}

#[allow(dead_code, reason = "each test uses its part")]
impl Table {
    pub fn asked(&self) -> [usize; 3] {
        self.asked
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    fn count(&self, what: usize) {
        if let Some(count) = self.asked.get(what) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Lookup for Table {
    fn groups(&self, tid: Tid) -> Result<Vec<Gid>, CallerError> {
        self.count(0);
        let groups = self
            .groups
            .get(&tid.0)
            .ok_or_else(|| unknown(tid, "status"))?;
        Ok(groups.iter().copied().map(Gid).collect())
    }

    fn cgroup(&self, tid: Tid) -> Result<Cgroup, CallerError> {
        self.count(1);
        let unit = self
            .units
            .get(&tid.0)
            .ok_or_else(|| unknown(tid, "cgroup"))?;
        Ok(Cgroup {
            unit: Some((*unit).to_owned()),
            container: None,
        })
    }

    fn comm(&self, tid: Tid) -> Option<String> {
        self.count(2);
        Some(format!("thread-{tid}"))
    }
}

fn unknown(tid: Tid, file: &'static str) -> CallerError {
    CallerError::Unreadable {
        tid,
        file,
        why: "not in the table".to_owned(),
    }
}

/// A caller whose gid and thread id are its uid's, but for root's thread.
pub fn caller(uid: u32) -> Caller {
    Caller::new(Uid(uid), Gid(uid), Tid(uid.max(1)))
}
