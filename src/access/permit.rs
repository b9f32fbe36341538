//! What `access` hands out: the proof of a yes, which has its end written down.

use std::sync::Arc;
use std::time::Instant;

use super::Denied;
use crate::audit::{Audit, AuditError, Event, Outcome};
use crate::backend::Version;
use crate::caller::Caller;
use crate::clock::Clock;
use crate::policy::RuleName;
use crate::secret::SecretPath;

/// The proof that a caller may read a secret.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    path: SecretPath,
    edition: u64,
    account: Account,
    settled: bool,
}

impl Permit {
    pub(super) fn new(path: SecretPath, account: Account, edition: u64) -> Self {
        Self {
            path,
            edition,
            account,
            settled: false,
        }
    }

    /// The secret that may be read.
    #[must_use]
    pub fn path(&self) -> &SecretPath {
        &self.path
    }

    /// The number of the config whose rules allow it: the secret is to be found where that config says.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.edition
    }

    pub(super) fn opener_mut(&mut self) -> &mut Caller {
        &mut self.account.caller
    }

    /// Other rules allow it as well.
    pub(super) fn renew(&mut self, rule: RuleName, edition: u64) {
        (self.account.rule, self.edition) = (rule, edition);
    }

    /// Who it was given to, with what had to be looked up of it.
    #[must_use]
    pub fn opener(&self) -> &Caller {
        &self.account.caller
    }

    /// Has the outcome written down, off the caller's path.
    pub fn settle(mut self, outcome: Outcome, version: Option<Version>) {
        self.settled = true;
        self.account.record(outcome, version);
    }

    /// Has the outcome written down before it returns, for commands.
    ///
    /// # Errors
    /// [`AuditError`] if the log cannot be written: the value must then not be given.
    pub fn settle_now(
        mut self,
        outcome: Outcome,
        version: Option<Version>,
    ) -> Result<(), AuditError> {
        self.settled = true;
        self.account.record_now(outcome, version)
    }

    /// Has it written down, off the caller's path, that nothing was given because of `denied`.
    pub fn refuse(mut self, denied: &Denied, version: Option<Version>) {
        self.account.rule = denied.to_string().into();
        self.settle(denied.outcome(), version);
    }

    /// The same before it returns, for commands.
    ///
    /// # Errors
    /// [`AuditError`] if the log cannot be written.
    pub fn refuse_now(
        mut self,
        denied: &Denied,
        version: Option<Version>,
    ) -> Result<(), AuditError> {
        self.account.rule = denied.to_string().into();
        self.settle_now(denied.outcome(), version)
    }

    #[cfg(test)]
    pub(super) fn event(&self, outcome: Outcome) -> Event {
        self.account.event(outcome, None)
    }

    /// Nothing was given for this permit, so there is nothing to write down.
    pub fn waive(mut self) {
        self.settled = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.account.record(Outcome::Error, None);
        }
    }
}

/// The proof that a caller may change a service's secrets, or steer the daemon.
#[must_use]
#[derive(Debug)]
pub struct Mandate {
    account: Account,
    settled: bool,
}

impl Mandate {
    pub(super) fn new(account: Account) -> Self {
        Self {
            account,
            settled: false,
        }
    }

    /// Has the outcome written down before it returns.
    ///
    /// # Errors
    /// [`AuditError`] if the log cannot be written.
    pub fn settle(mut self, outcome: Outcome, version: Option<Version>) -> Result<(), AuditError> {
        self.settled = true;
        self.account.record_now(outcome, version)
    }
}

impl Drop for Mandate {
    fn drop(&mut self) {
        if !self.settled {
            self.account.record(Outcome::Error, None);
        }
    }
}

/// What the audit log will say of an access, but for how it ended.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) audit: Audit,
    pub(super) clock: Clock,
    pub(super) caller: Caller,
    pub(super) comm: Option<String>,
    pub(super) action: &'static str,
    pub(super) subject: Option<Arc<str>>,
    pub(super) rule: RuleName,
    pub(super) started: Instant,
}

impl Account {
    fn record(&self, outcome: Outcome, version: Option<Version>) {
        self.audit.record(self.event(outcome, version));
    }

    fn record_now(&self, outcome: Outcome, version: Option<Version>) -> Result<(), AuditError> {
        self.audit.record_now(self.event(outcome, version))
    }

    pub(super) fn event(&self, outcome: Outcome, version: Option<Version>) -> Event {
        let taken = self.clock.now().saturating_duration_since(self.started);
        let cgroup = self.caller.cgroup.clone().unwrap_or_default();
        Event {
            time: self.clock.timestamp(),
            action: self.action.into(),
            uid: self.caller.uid,
            gid: self.caller.gid,
            tid: self.caller.tid,
            path: self.subject.clone(),
            version,
            rule: Some(Arc::clone(&self.rule)),
            outcome,
            micros: u64::try_from(taken.as_micros()).unwrap_or(u64::MAX),
            comm: self.comm.clone(),
            unit: cgroup.unit,
            container: cgroup.container,
        }
    }
}
