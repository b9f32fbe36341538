//! Caller → policy → [`Permit`], and the audit event.
//!
//! This is the only maker of a [`Permit`], and nothing below the file system gives a value to anyone without one. The
//! caller is looked up while it waits for us, the decision is made, and how it ended is written down: a permit or a
//! [`Mandate`] that is dropped without word of its outcome is logged as an error, never forgotten.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::audit::Audit;
use crate::backend::Version;
use crate::caller::{Caller, CallerError, Evidence, Lookup};
use crate::clock::Clock;
use crate::events::{Events, What};
use crate::policy::revocation::{Revocation, Revocations, Target};
use crate::policy::{Decision, Policy, Reason, RuleName};
use crate::secret::{Name, SecretPath};
use crate::sync::Swap;
use crate::sys::Uid;

mod denied;
mod limit;
mod permit;
mod spread;
#[cfg(test)]
mod tests;

pub use denied::{Denied, Explanation, Recheck};
pub use limit::{BURST, EVERY, Limited};
pub use permit::{Mandate, Permit};
pub use spread::{DISTINCT, Spread, WINDOW};

use limit::Limiter;
use permit::Account;
use spread::Spreads;

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
    rules: Swap<Rules>,
    revocations: ArcSwap<Revocations>,
    lookup: Arc<dyn Lookup>,
    audit: Audit,
    full_detail: bool,
    fresh: Limiter,
    spread: Spreads,
    clock: Clock,
    events: Events,
}

/// A policy, and the number of the config that it is of.
#[derive(Debug)]
struct Rules {
    policy: Policy,
    edition: u64,
}

/// A yes.
#[derive(Debug)]
struct Yes {
    rule: RuleName,
    /// Of the policy that said it.
    edition: u64,
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
            rules: Swap::new(Rules { policy, edition: 0 }),
            revocations: ArcSwap::default(),
            lookup,
            audit,
            full_detail,
            fresh: Limiter::default(),
            spread: Spreads::default(),
            clock,
            events: Events::default(),
        }
    }

    /// The same, telling of denials on this bus.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// Where what happens is told.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Puts another policy in force, for every access from now on. The tree must have the places of this edition by then:
    /// it does both.
    pub fn replace_policy(&self, policy: Policy, edition: u64) {
        self.rules.store(Rules { policy, edition });
    }

    /// The number of the config that the policy in force is of.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.rules.load().edition
    }

    /// What was taken away. Those whose time is over may still be among it.
    #[must_use]
    pub fn revocations(&self) -> Arc<Revocations> {
        self.revocations.load_full()
    }

    /// True if this secret was taken away from everybody.
    #[must_use]
    pub fn is_revoked(&self, path: &SecretPath) -> bool {
        let revocations = self.revocations.load();
        let in_force = revocations.in_force(self.clock.timestamp());
        let mut targets = in_force.map(|revocation| &revocation.target);
        targets.any(|target| target.version().is_none() && target.covers(path))
    }

    /// Puts another list of revocations in force: at the start.
    pub fn replace_revocations(&self, revocations: Revocations) {
        self.revocations.store(Arc::new(revocations));
    }

    /// Takes something away, for every access from now on. Gives the revocation of the same target that it replaces.
    pub fn revoke(&self, revocation: &Revocation) -> Option<Revocation> {
        let now = self.clock.timestamp();
        let before = self
            .revocations
            .rcu(|list| list.with(revocation.clone(), now));
        before.of(&revocation.target, now).cloned()
    }

    /// Gives something back. `None` if it was not taken away.
    pub fn unrevoke(&self, target: &Target) -> Option<Revocation> {
        let now = self.clock.timestamp();
        let before = self.revocations.rcu(|list| list.without(target, now));
        before.of(target, now).cloned()
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
        let (account, edition) = self.decide(caller, action, subject, written, |caller| {
            self.may_read(caller, path, None)
        })?;
        Ok(Permit::new(path.clone(), account, edition))
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
        let Yes { rule, edition } = self.may_read(&mut caller, path, None).ok()?;
        self.audit.ready().ok()?;
        let account = self.account(caller, action, Some(path.to_string().into()), rule, started);
        Some(Permit::new(path.clone(), account, edition))
    }

    /// The permit, if what has changed since it was given would give it, too, and this version. To be asked while the caller
    /// still waits, when what the permit is for can be found by whoever checks open handles again: a handle that is added
    /// after that check would escape it. A no is in the audit log.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn still(&self, mut permit: Permit, version: &Version) -> Result<Permit, Denied> {
        match self.give(&mut permit, version) {
            Ok(()) => Ok(permit),
            Err(denied) => {
                permit.refuse(&denied, Some(version.clone()));
                Err(denied)
            }
        }
    }

    /// May the reader of an open handle still read this version? Asked at each read; only a no is in the audit log.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn read(
        &self,
        mut caller: Caller,
        path: &SecretPath,
        version: &Version,
    ) -> Result<(), Denied> {
        let started = self.clock.now();
        match self.may_read(&mut caller, path, Some(version)) {
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

    /// May what was fetched for this permit be given? When the permit was made nobody knew the version, and rules and
    /// revocations may have changed since. Whoever gets a no settles the permit with it: [`Permit::refuse_now`].
    ///
    /// # Errors
    /// [`Denied`]
    pub fn give(&self, permit: &mut Permit, version: &Version) -> Result<(), Denied> {
        if self.authority == Authority::Identity {
            return Ok(());
        }
        if self.edition() == permit.edition() {
            return self.not_revoked(permit.opener().uid, permit.path(), Some(version));
        }
        let path = permit.path().clone();
        let yes = self.may_read(permit.opener_mut(), &path, Some(version))?;
        permit.renew(yes.rule, yes.edition);
        Ok(())
    }

    /// Writes down that somebody reads from a handle that was taken away: that stays so when the rules change again.
    pub fn refuse_taken(&self, mut caller: Caller, path: &SecretPath) {
        let started = self.clock.now();
        let denied = self.may_read(&mut caller, path, None).err();
        let denied = denied.unwrap_or(Denied::Taken);
        let subject = Some(path.to_string().into());
        self.deny(caller, "read", subject, denied, started, Written::Soon);
    }

    /// May whoever opened a handle still have it, after rules or revocations have changed? Answers from what was known
    /// of the opener then, and never asks `/proc`: its thread id may be somebody else's by now.
    pub fn recheck(&self, opener: &Caller, path: &SecretPath, version: &Version) -> Recheck {
        if self.authority == Authority::Identity {
            return Recheck::Allowed;
        }
        if self.not_revoked(opener.uid, path, Some(version)).is_err() {
            return Recheck::Revoked;
        }
        match self.rules.load().policy.check(opener, path) {
            Decision::Allowed(_) => Recheck::Allowed,
            // Who the rules name is not known, for now.
            Decision::Denied(Reason::Closed(_)) | Decision::Undecided(_) => Recheck::Unsure,
            Decision::Denied(_) => Recheck::Revoked,
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
        let (account, _) = self.decide(caller, action, subject, Written::Now, |caller| {
            self.ask(caller, |p, c| p.check_manage(c, service))
        })?;
        Ok(Mandate::new(account))
    }

    /// The same question for what changes nothing and shows no value, and is not in the audit log: a status, a listing.
    #[must_use]
    pub fn may_manage(&self, mut caller: Caller, service: Option<&Name>) -> bool {
        self.ask(&mut caller, |p, c| p.check_manage(c, service))
            .is_ok()
    }

    /// May `caller` change the secrets of any service at all, and so hear of them?
    ///
    /// # Errors
    /// [`Denied`]
    pub fn manage_any(&self, caller: Caller, action: &'static str) -> Result<Mandate, Denied> {
        let (account, _) = self.decide(caller, action, None, Written::Now, |caller| {
            self.ask(caller, Policy::check_manage_any)
        })?;
        Ok(Mandate::new(account))
    }

    /// The same question, not in the audit log.
    #[must_use]
    pub fn may_manage_any(&self, mut caller: Caller) -> bool {
        self.ask(&mut caller, Policy::check_manage_any).is_ok()
    }

    /// What policy and revocations would say of `caller`, and why, also where the identity's word counts. Not an access, and not in
    /// the audit log.
    #[must_use]
    pub fn explain(&self, mut caller: Caller, path: &SecretPath) -> Explanation {
        let decision = self.may_read_by_policy(&mut caller, path, None);
        let decision = decision.map(|yes| yes.rule);
        Explanation { decision, caller }
    }

    fn decide(
        &self,
        mut caller: Caller,
        action: &'static str,
        subject: Option<Arc<str>>,
        written: Written,
        question: impl FnOnce(&mut Caller) -> Result<Yes, Denied>,
    ) -> Result<(Account, u64), Denied> {
        let started = self.clock.now();
        let answer = question(&mut caller).and_then(|yes| match self.audit.ready() {
            Ok(()) => Ok(yes),
            Err(error) => Err(Denied::Audit(error.to_string())),
        });
        match answer {
            Ok(Yes { rule, edition }) => {
                let account = self.account(caller, action, subject, rule, started);
                Ok((account, edition))
            }
            Err(denied) => Err(self.deny(caller, action, subject, denied, started, written)),
        }
    }

    fn may_read(
        &self,
        caller: &mut Caller,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<Yes, Denied> {
        match self.authority {
            Authority::Identity => Ok(self.identity()),
            Authority::Policy => self.may_read_by_policy(caller, path, version),
        }
    }

    fn may_read_by_policy(
        &self,
        caller: &mut Caller,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<Yes, Denied> {
        let yes = self.ask_policy(caller, |p, c| p.check(c, path))?;
        // Last: who is not allowed anyway learns nothing of what was taken away from others.
        self.not_revoked(caller.uid, path, version)?;
        Ok(yes)
    }

    fn not_revoked(
        &self,
        uid: Uid,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<(), Denied> {
        let revocations = self.revocations.load();
        if revocations.is_empty() {
            return Ok(());
        }
        let now = self.clock.timestamp();
        match revocations.check(uid, path, version, now) {
            Some(revocation) => Err(Denied::Revoked(Arc::new(revocation.clone()))),
            None => Ok(()),
        }
    }

    fn ask(
        &self,
        caller: &mut Caller,
        question: impl Fn(&Policy, &Caller) -> Decision,
    ) -> Result<Yes, Denied> {
        match self.authority {
            Authority::Identity => Ok(self.identity()),
            Authority::Policy => self.ask_policy(caller, question),
        }
    }

    fn identity(&self) -> Yes {
        Yes {
            rule: RuleName::from("identity"),
            edition: self.edition(),
        }
    }

    /// Asks the policy, finding out about the caller what it wants to know, until it is sure.
    fn ask_policy(
        &self,
        caller: &mut Caller,
        question: impl Fn(&Policy, &Caller) -> Decision,
    ) -> Result<Yes, Denied> {
        if caller.tid.0 == 0 {
            return Err(Denied::Caller(CallerError::Invisible));
        }
        let rules = self.rules.load();
        let edition = rules.edition;
        loop {
            match question(&rules.policy, caller) {
                Decision::Allowed(rule) => return Ok(Yes { rule, edition }),
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
        self.events
            .tell_denial(account.caller.uid, || What::Denied {
                path: account.subject.clone(),
                uid: account.caller.uid,
                gid: account.caller.gid,
                action: account.action,
                rule: Arc::clone(&account.rule),
            });
        let event = account.event(denied.outcome(), None);
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
