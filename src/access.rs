//! Caller → policy → [`Permit`], and the audit event.
//!
//! This is the only maker of a [`Permit`], and nothing below the file system gives a value to anyone without one. The
//! caller is looked up while it waits for us, the decision is made, and how it ended is written down: a permit or a
//! [`Mandate`] that is dropped without word of its outcome is logged as an error, never forgotten.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::audit::{Audit, AuditError, Event, Outcome};
use crate::backend::Version;
use crate::caller::{Caller, CallerError, Evidence, Lookup};
use crate::clock::Clock;
use crate::policy::{Decision, Policy, Reason, RuleName};
use crate::secret::{Name, SecretPath};
use crate::sys::Uid;

mod limit;
#[cfg(test)]
mod tests;

use limit::Limiter;
pub use limit::{BURST, EVERY, Limited};

/// On whose word accesses are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The policy's: the daemon.
    Policy,
    /// The identity's: a command that opened the store itself and could as well decrypt it with `age`.
    Identity,
}

/// Decides over every access, and has it written down.
#[derive(Debug)]
pub struct Access {
    authority: Authority,
    policy: ArcSwap<Policy>,
    lookup: Arc<dyn Lookup>,
    audit: Audit,
    full_detail: bool,
    fresh: Limiter,
    clock: Clock,
}

impl Access {
    /// Access under `policy`, with callers looked up in `lookup`. `full_detail` looks unit and name of each caller up
    /// for the audit log, also where no rule needs them.
    #[must_use]
    pub fn new(
        authority: Authority,
        policy: Policy,
        lookup: Arc<dyn Lookup>,
        audit: Audit,
        full_detail: bool,
        clock: Clock,
    ) -> Self {
        Self {
            authority,
            policy: ArcSwap::from_pointee(policy),
            lookup,
            audit,
            full_detail,
            fresh: Limiter::default(),
            clock,
        }
    }

    /// Puts another policy in force, for every access from now on.
    pub fn replace_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// May `caller` read this secret? A no is in the audit log when this returns; a yes will be, when the permit is
    /// settled.
    ///
    /// # Errors
    /// [`Denied`], also when the audit log cannot be written and the config says that this denies.
    pub fn open(
        &self,
        caller: Caller,
        path: &SecretPath,
        action: &'static str,
    ) -> Result<Permit, Denied> {
        self.permit(caller, path, action, Written::Soon)
    }

    /// The same for a command that reads a value: a no is on the disk when this returns, as everything about commands is.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn command(
        &self,
        caller: Caller,
        path: &SecretPath,
        action: &'static str,
    ) -> Result<Permit, Denied> {
        self.permit(caller, path, action, Written::Now)
    }

    fn permit(
        &self,
        caller: Caller,
        path: &SecretPath,
        action: &'static str,
        written: Written,
    ) -> Result<Permit, Denied> {
        let subject = Some(path.to_string().into());
        let account = self.decide(caller, action, subject, written, |p, c| p.check(c, path))?;
        Ok(Permit {
            path: path.clone(),
            account: Some(account),
        })
    }

    /// The same question for what is not an access of its own and not in the audit log when refused: a `stat` that
    /// wants the length, a look at the extended attributes.
    #[must_use]
    pub fn peek(
        &self,
        mut caller: Caller,
        path: &SecretPath,
        action: &'static str,
    ) -> Option<Permit> {
        let started = self.clock.now();
        let rule = self.ask(&mut caller, |p, c| p.check(c, path)).ok()?;
        self.audit.ready().ok()?;
        let account = self.account(caller, action, Some(path.to_string().into()), rule, started);
        Some(Permit {
            path: path.clone(),
            account: Some(account),
        })
    }

    /// May the reader of an open handle still read? Asked at each read; only a no is in the audit log.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn read(&self, mut caller: Caller, path: &SecretPath) -> Result<(), Denied> {
        let started = self.clock.now();
        match self.ask(&mut caller, |p, c| p.check(c, path)) {
            Ok(_) => Ok(()),
            Err(denied) => Err(self.deny(
                caller,
                "read",
                Some(path.to_string().into()),
                denied,
                started,
                Written::Soon,
            )),
        }
    }

    /// May `caller` see the names of this service?
    #[must_use]
    pub fn may_list(&self, mut caller: Caller, service: &Name) -> bool {
        self.ask(&mut caller, |p, c| p.check_listing(c, service))
            .is_ok()
    }

    /// May `caller` see which services there are beside those with a section of their own?
    #[must_use]
    pub fn may_list_defaults(&self, mut caller: Caller) -> bool {
        caller.uid == Uid::ROOT || self.ask(&mut caller, Policy::check_defaults).is_ok()
    }

    /// May `caller` look up and stat names in this service? Root may, because container engines bind files as root.
    #[must_use]
    pub fn may_look_up(&self, caller: Caller, service: &Name) -> bool {
        caller.uid == Uid::ROOT || self.may_list(caller, service)
    }

    /// May `caller` change the secrets of this service or, without one, steer the daemon? `subject` is what the audit
    /// log shows as the path.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn manage(
        &self,
        caller: Caller,
        service: Option<&Name>,
        action: &'static str,
        subject: Option<Arc<str>>,
    ) -> Result<Mandate, Denied> {
        let account = self.decide(caller, action, subject, Written::Now, |p, c| {
            p.check_manage(c, service)
        })?;
        Ok(Mandate {
            account: Some(account),
        })
    }

    /// The same question for what changes nothing and shows no value, and is not in the audit log: a status, a listing.
    #[must_use]
    pub fn may_manage(&self, mut caller: Caller, service: Option<&Name>) -> bool {
        self.ask(&mut caller, |p, c| p.check_manage(c, service))
            .is_ok()
    }

    /// What the policy would say of `caller`, and why, also where the identity's word counts. Not an access, and not in
    /// the audit log.
    #[must_use]
    pub fn explain(&self, mut caller: Caller, path: &SecretPath) -> Explanation {
        let decision = self.ask_policy(&mut caller, |p, c| p.check(c, path));
        Explanation { decision, caller }
    }

    fn decide(
        &self,
        mut caller: Caller,
        action: &'static str,
        subject: Option<Arc<str>>,
        written: Written,
        question: impl Fn(&Policy, &Caller) -> Decision,
    ) -> Result<Account, Denied> {
        let started = self.clock.now();
        let answer = self
            .ask(&mut caller, question)
            .and_then(|rule| match self.audit.ready() {
                Ok(()) => Ok(rule),
                Err(error) => Err(Denied::Audit(error.to_string())),
            });
        match answer {
            Ok(rule) => Ok(self.account(caller, action, subject, rule, started)),
            Err(denied) => Err(self.deny(caller, action, subject, denied, started, written)),
        }
    }

    fn ask(
        &self,
        caller: &mut Caller,
        question: impl Fn(&Policy, &Caller) -> Decision,
    ) -> Result<RuleName, Denied> {
        match self.authority {
            Authority::Identity => Ok(RuleName::from("identity")),
            Authority::Policy => self.ask_policy(caller, question),
        }
    }

    /// Asks the policy, finding out about the caller what it wants to know, until it is sure.
    fn ask_policy(
        &self,
        caller: &mut Caller,
        question: impl Fn(&Policy, &Caller) -> Decision,
    ) -> Result<RuleName, Denied> {
        if caller.tid.0 == 0 {
            return Err(Denied::Caller(CallerError::Invisible));
        }
        let policy = self.policy.load();
        loop {
            match question(&policy, caller) {
                Decision::Allowed(rule) => return Ok(rule),
                Decision::Denied(reason) => return Err(Denied::Policy(reason)),
                // Each turn fills in one of two unknowns, so there are at most three.
                Decision::Undecided(evidence) => caller
                    .find_out(evidence, &*self.lookup)
                    .map_err(Denied::Caller)?,
            }
        }
    }

    fn account(
        &self,
        mut caller: Caller,
        action: &'static str,
        subject: Option<Arc<str>>,
        rule: RuleName,
        started: Instant,
    ) -> Account {
        // A rule that read /proc for its answer has paid already; the name comes along for people.
        let known = caller.groups.is_some() || caller.cgroup.is_some();
        let comm = if self.full_detail || known {
            self.describe(&mut caller, self.full_detail)
        } else {
            None
        };
        Account {
            audit: self.audit.clone(),
            clock: self.clock.clone(),
            caller,
            comm,
            action,
            subject,
            rule,
            started,
        }
    }

    fn deny(
        &self,
        mut caller: Caller,
        action: &'static str,
        subject: Option<Arc<str>>,
        denied: Denied,
        started: Instant,
        written: Written,
    ) -> Denied {
        let comm = self.describe(&mut caller, true);
        let rule = RuleName::from(denied.to_string());
        let (audit, clock) = (self.audit.clone(), self.clock.clone());
        let account = Account {
            audit,
            clock,
            caller,
            comm,
            action,
            subject,
            rule,
            started,
        };
        let event = account.event(Outcome::Denied, None);
        match written {
            Written::Soon => self.audit.record(event),
            // A no stays a no, also when it cannot be written down; then it waits like the others, or is counted as lost.
            Written::Now => {
                if self.audit.record_now(event.clone()).is_err() {
                    self.audit.record(event);
                }
            }
        }
        denied
    }

    /// The caller's name for itself and, if `cgroup` is wanted, its unit: for people, so failures do not matter.
    fn describe(&self, caller: &mut Caller, cgroup: bool) -> Option<String> {
        if cgroup {
            let _ = caller.find_out(Evidence::Cgroup, &*self.lookup);
        }
        self.lookup.comm(caller.tid)
    }
}

/// When a denial has to be on the disk.
#[derive(Debug, Clone, Copy)]
enum Written {
    /// Off the caller's path, equal ones counted: file accesses.
    Soon,
    /// Before anybody hears of it: commands.
    Now,
}

/// The proof that a caller may read a secret.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    path: SecretPath,
    account: Option<Account>,
}

impl Permit {
    /// The secret that may be read.
    #[must_use]
    pub fn path(&self) -> &SecretPath {
        &self.path
    }

    /// Has the outcome written down, off the caller's path.
    pub fn settle(mut self, outcome: Outcome, version: Option<Version>) {
        if let Some(account) = self.account.take() {
            account.audit.record(account.event(outcome, version));
        }
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
        self.account.take().map_or(Ok(()), |account| {
            account.audit.record_now(account.event(outcome, version))
        })
    }

    /// Nothing was given for this permit, so there is nothing to write down.
    pub fn waive(mut self) {
        self.account = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            account.audit.record(account.event(Outcome::Error, None));
        }
    }
}

/// The proof that a caller may change a service's secrets, or steer the daemon.
#[must_use]
#[derive(Debug)]
pub struct Mandate {
    account: Option<Account>,
}

impl Mandate {
    /// Has the outcome written down before it returns.
    ///
    /// # Errors
    /// [`AuditError`] if the log cannot be written.
    pub fn settle(mut self, outcome: Outcome, version: Option<Version>) -> Result<(), AuditError> {
        self.account.take().map_or(Ok(()), |account| {
            account.audit.record_now(account.event(outcome, version))
        })
    }
}

impl Drop for Mandate {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            account.audit.record(account.event(Outcome::Error, None));
        }
    }
}

/// What the audit log will say of an access, but for how it ended.
#[derive(Debug)]
struct Account {
    audit: Audit,
    clock: Clock,
    caller: Caller,
    comm: Option<String>,
    action: &'static str,
    subject: Option<Arc<str>>,
    rule: RuleName,
    started: Instant,
}

impl Account {
    fn event(&self, outcome: Outcome, version: Option<Version>) -> Event {
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

/// Why an access was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// By the policy.
    #[error(transparent)]
    Policy(#[from] Reason),
    /// What a rule needs to know of the caller cannot be found out.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// It could not have been written down.
    #[error("the audit log cannot be written: {0}")]
    Audit(String),
    /// The policy allows it, but the caller's uid asked for the newest too often.
    #[error(transparent)]
    Limited(#[from] Limited),
}

/// What the policy says of a caller, with everything that it wanted to know.
#[derive(Debug)]
pub struct Explanation {
    /// The rule that allows, or why none does.
    pub decision: Result<RuleName, Denied>,
    /// The caller, as far as it was found out.
    pub caller: Caller,
}
