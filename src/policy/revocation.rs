//! What was taken away, and may be read by nobody until it is given back, whatever the rules say.
//!
//! Pure like the rules: whoever asks says what time it is. A list is never changed but replaced by another one, so that
//! each question is answered by one list.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backend::Version;
use crate::secret::{Name, SecretPath};
use crate::sys::Uid;

/// What can be taken away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Target {
    /// Everything, from everybody: the emergency stop.
    All,
    /// All secrets of a service.
    Service(Name),
    /// One secret.
    Secret(SecretPath),
    /// One value of a secret: the others stay readable.
    Version(SecretPath, Version),
    /// Whatever this user could read.
    User(Uid),
}

impl Target {
    /// The service that it is a part of, or is.
    #[must_use]
    pub fn service(&self) -> Option<&Name> {
        match self {
            Self::Service(service) => Some(service),
            Self::Secret(path) | Self::Version(path, _) => Some(&path.service),
            Self::All | Self::User(_) => None,
        }
    }

    /// What the audit log shows as the path. No service and no secret is called like the other two.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::All => "--all".to_owned(),
            Self::Service(service) => service.to_string(),
            Self::Secret(path) | Self::Version(path, _) => path.to_string(),
            Self::User(uid) => format!("--uid {uid}"),
        }
    }

    /// The version, if it is only one.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Version(_, version) => Some(version),
            Self::All | Self::Service(_) | Self::Secret(_) | Self::User(_) => None,
        }
    }

    /// True if the values of this secret are, or may be, among what is taken away from everybody.
    #[must_use]
    pub fn covers(&self, path: &SecretPath) -> bool {
        match self {
            Self::All => true,
            Self::Service(service) => *service == path.service,
            Self::Secret(secret) | Self::Version(secret, _) => secret == path,
            Self::User(_) => false,
        }
    }

    /// What `revoke` and `unrevoke` are told.
    #[must_use]
    pub fn words(&self) -> String {
        match self.version() {
            Some(version) => format!("{} --version {version}", self.subject()),
            None => self.subject(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Service(service) => write!(f, "service {service}"),
            Self::Secret(path) => write!(f, "{path}"),
            Self::Version(path, version) => write!(f, "version {version} of {path}"),
            Self::User(uid) => write!(f, "user {uid}"),
        }
    }
}

/// Something that was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// What.
    pub target: Target,
    /// Since when.
    pub since: Timestamp,
    /// Until when; until it is given back where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// By whom.
    pub by: Uid,
}

impl Revocation {
    /// False once its time is over.
    #[must_use]
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is revoked since {:.0}", self.target, self.since)?;
        if let Some(until) = self.until {
            write!(f, " until {until:.0}")?;
        }
        write!(f, ": `secretfs unrevoke {}` lifts it", self.target.words())
    }
}

/// All that was taken away: one revocation for each target at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Revocation>", into = "Vec<Revocation>")]
pub struct Revocations(BTreeMap<Target, Revocation>);

impl Revocations {
    /// True if nothing was taken away.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What keeps this user from this secret, or from this version of it; the widest where several do.
    #[must_use]
    pub fn check(
        &self,
        uid: Uid,
        path: &SecretPath,
        version: Option<&Version>,
        now: Timestamp,
    ) -> Option<&Revocation> {
        // Mostly there is nothing, and every open and read asks.
        if self.0.is_empty() {
            return None;
        }
        let in_force = |target: &Target| {
            let found = self.0.get(target);
            found.filter(|revocation| revocation.is_in_force(now))
        };
        in_force(&Target::All)
            .or_else(|| in_force(&Target::User(uid)))
            .or_else(|| in_force(&Target::Service(path.service.clone())))
            .or_else(|| in_force(&Target::Secret(path.clone())))
            .or_else(|| in_force(&Target::Version(path.clone(), version?.clone())))
    }

    /// The revocation of exactly this target.
    #[must_use]
    pub fn of(&self, target: &Target, now: Timestamp) -> Option<&Revocation> {
        let found = self.0.get(target);
        found.filter(|revocation| revocation.is_in_force(now))
    }

    /// Those whose time is not over.
    pub fn in_force(&self, now: Timestamp) -> impl Iterator<Item = &Revocation> {
        self.0
            .values()
            .filter(move |revocation| revocation.is_in_force(now))
    }

    /// The same with one more, which replaces an older one of the same target; without those whose time is over.
    #[must_use]
    pub fn with(&self, revocation: Revocation, now: Timestamp) -> Self {
        let rest = self.in_force(now).cloned();
        rest.chain([revocation]).collect()
    }

    /// The same without this target, and without those whose time is over.
    #[must_use]
    pub fn without(&self, target: &Target, now: Timestamp) -> Self {
        let rest = self.in_force(now);
        rest.filter(|revocation| revocation.target != *target)
            .cloned()
            .collect()
    }
}

impl FromIterator<Revocation> for Revocations {
    fn from_iter<I: IntoIterator<Item = Revocation>>(revocations: I) -> Self {
        let named = |revocation: Revocation| (revocation.target.clone(), revocation);
        Self(revocations.into_iter().map(named).collect())
    }
}

impl From<Vec<Revocation>> for Revocations {
    fn from(revocations: Vec<Revocation>) -> Self {
        revocations.into_iter().collect()
    }
}

impl From<Revocations> for Vec<Revocation> {
    fn from(revocations: Revocations) -> Self {
        revocations.0.into_values().collect()
    }
}

#[cfg(test)]
mod tests;
