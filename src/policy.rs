//! Pure rules: who may read which secret, and who may change it.
//!
//! A [`Policy`] is made from the config with every name resolved; it reads no file and asks nobody. Nothing allowed is
//! denied. A rule that needs something not yet known of the caller makes the answer [`Decision::Undecided`]; whoever
//! asks finds it out and asks again, so that the common rules (a uid) never pay for the expensive ones.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::caller::{Caller, Evidence};
use crate::secret::{Name, SecretPath};

pub mod revocation;

/// A rule's place in the config, for the audit log: `services.billing.allow[0]`.
pub type RuleName = Arc<str>;

/// A set of user or group numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdSet(Vec<RangeInclusive<u32>>);

impl IdSet {
    /// True if `id` is in one of the ranges.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|range| range.contains(&id))
    }

    /// The numbers that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let both = |one: &RangeInclusive<u32>, other: &RangeInclusive<u32>| {
            let (first, last) = (*one.start().max(other.start()), *one.end().min(other.end()));
            (first <= last).then_some(first..=last)
        };
        let pairs = self.0.iter().flat_map(|one| {
            let others = other.0.iter();
            others.filter_map(move |other| both(one, other))
        });
        pairs.collect()
    }

    /// True if no number is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(RangeInclusive::is_empty)
    }
}

impl FromIterator<RangeInclusive<u32>> for IdSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u32>>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl FromIterator<IdSet> for IdSet {
    fn from_iter<I: IntoIterator<Item = IdSet>>(sets: I) -> Self {
        Self(sets.into_iter().flat_map(|set| set.0).collect())
    }
}

/// What must hold of a caller: everything that is given. A rule that gives neither uid nor gid holds of nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands in the config.
    pub name: RuleName,
    /// Its uid is one of these.
    pub uids: Option<IdSet>,
    /// Its gid or one of its supplementary groups is one of these.
    pub gids: Option<IdSet>,
    /// It runs in this systemd unit.
    pub unit: Option<String>,
    /// It runs in the container with this id.
    pub container: Option<String>,
}

/// Whether a rule holds of a caller, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Perhaps(Evidence),
}

impl Rule {
    fn holds(&self, caller: &Caller) -> Holds {
        if self.uids.is_none() && self.gids.is_none() {
            return Holds::No;
        }
        if self
            .uids
            .as_ref()
            .is_some_and(|uids| !uids.contains(caller.uid.0))
        {
            return Holds::No;
        }
        let mut missing = None;
        if let Some(gids) = &self.gids
            && !gids.contains(caller.gid.0)
        {
            match &caller.groups {
                Some(groups) if groups.iter().any(|gid| gids.contains(gid.0)) => {}
                Some(_) => return Holds::No,
                None => missing = Some(Evidence::Groups),
            }
        }
        if self.unit.is_some() || self.container.is_some() {
            match &caller.cgroup {
                Some(cgroup) => {
                    let same = |wanted: &Option<String>, actual: &Option<String>| {
                        wanted.is_none() || wanted == actual
                    };
                    if !same(&self.unit, &cgroup.unit) || !same(&self.container, &cgroup.container)
                    {
                        return Holds::No;
                    }
                }
                None => missing = missing.or(Some(Evidence::Cgroup)),
            }
        }
        missing.map_or(Holds::Yes, Holds::Perhaps)
    }
}

/// The policy's answer.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, because of this rule.
    Allowed(RuleName),
    /// No.
    Denied(Reason),
    /// It depends on something that is not known of the caller yet.
    Undecided(Evidence),
}

/// Why the answer is no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Neither a section of its own nor `[defaults]`.
    #[error("no service of this name is in the config")]
    NoService,
    /// No rule holds of the caller.
    #[error("no rule allows this caller")]
    NoRule,
    /// The service's rules do, but the secret's own do not.
    #[error("the service's rules allow this caller, the secret's own rules do not")]
    Narrowed,
    /// A rule names a user or group that is not known yet.
    #[error("the service is closed: {0}")]
    Closed(String),
}

/// The rules of one service.
#[derive(Debug, Clone, Default)]
pub struct ServicePolicy {
    /// Why the service is closed, if it is.
    pub closed: Option<String>,
    /// Who may read.
    pub allow: Vec<Rule>,
    /// Who may change, beside those who may change everything.
    pub manage: Vec<Rule>,
    /// Secrets with rules of their own, which narrow `allow`.
    pub secrets: HashMap<Name, Vec<Rule>>,
    /// True if the service has secrets without rules of their own, so that who passes `allow` may read something.
    pub open_ended: bool,
}

/// All rules.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Who may change everything and steer the daemon.
    pub manage: Vec<Rule>,
    /// Services with a section of their own.
    pub services: HashMap<Name, ServicePolicy>,
    /// All others.
    pub defaults: Option<ServicePolicy>,
}

impl Policy {
    /// May `caller` read this secret?
    pub fn check(&self, caller: &Caller, path: &SecretPath) -> Decision {
        let service = match self.open_service(&path.service) {
            Ok(service) => service,
            Err(reason) => return Decision::Denied(reason),
        };
        let Some(own) = service.secrets.get(&path.name) else {
            return any(&service.allow, caller);
        };
        match (any(&service.allow, caller), any(own, caller)) {
            (Decision::Allowed(_), Decision::Allowed(rule)) => Decision::Allowed(rule),
            (Decision::Denied(reason), _) => Decision::Denied(reason),
            (_, Decision::Denied(_)) => Decision::Denied(Reason::Narrowed),
            (Decision::Undecided(evidence), _) | (_, Decision::Undecided(evidence)) => {
                Decision::Undecided(evidence)
            }
        }
    }

    /// May `caller` read anything in this service, and so see its names?
    pub fn check_listing(&self, caller: &Caller, service: &Name) -> Decision {
        let service = match self.open_service(service) {
            Ok(service) => service,
            Err(reason) => return Decision::Denied(reason),
        };
        let entered = any(&service.allow, caller);
        if service.open_ended || !matches!(entered, Decision::Allowed(_)) {
            return entered;
        }
        any(service.secrets.values().flatten(), caller)
    }

    /// May `caller` read anything in the services that have no section of their own, and so see which there are?
    pub fn check_defaults(&self, caller: &Caller) -> Decision {
        match &self.defaults {
            Some(defaults) if defaults.closed.is_none() => any(&defaults.allow, caller),
            Some(_) | None => Decision::Denied(Reason::NoService),
        }
    }

    /// May `caller` change the secrets of this service or, without one, steer the daemon?
    pub fn check_manage(&self, caller: &Caller, service: Option<&Name>) -> Decision {
        let own = service
            .and_then(|name| self.service(name))
            .filter(|service| service.closed.is_none());
        any(
            self.manage
                .iter()
                .chain(own.into_iter().flat_map(|service| &service.manage)),
            caller,
        )
    }

    /// May `caller` change the secrets of any service at all?
    pub fn check_manage_any(&self, caller: &Caller) -> Decision {
        let services = self.services.values().chain(self.defaults.as_ref());
        let open = services.filter(|service| service.closed.is_none());
        any(
            self.manage
                .iter()
                .chain(open.flat_map(|service| &service.manage)),
            caller,
        )
    }

    fn service(&self, name: &Name) -> Option<&ServicePolicy> {
        self.services.get(name).or(self.defaults.as_ref())
    }

    fn open_service(&self, name: &Name) -> Result<&ServicePolicy, Reason> {
        let service = self.service(name).ok_or(Reason::NoService)?;
        match &service.closed {
            Some(why) => Err(Reason::Closed(why.clone())),
            None => Ok(service),
        }
    }
}

/// The first rule that holds; else what has to be found out before it is sure that none does.
fn any<'a>(rules: impl IntoIterator<Item = &'a Rule>, caller: &Caller) -> Decision {
    let mut missing = None;
    for rule in rules {
        match rule.holds(caller) {
            Holds::Yes => return Decision::Allowed(Arc::clone(&rule.name)),
            Holds::No => {}
            Holds::Perhaps(evidence) => missing = missing.or(Some(evidence)),
        }
    }
    missing.map_or(Decision::Denied(Reason::NoRule), Decision::Undecided)
}

#[cfg(test)]
mod tests;
