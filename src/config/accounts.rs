//! Who the users and groups in the config are: from its rules to a [`Policy`] of numbers.
//!
//! An account that is not known, for whatever reason, closes what names it and nothing else. There is no fallback.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use crate::config::subuid::{self, Subuids};
use crate::config::{Account, Config, IdSpec, RuleSpec, ServiceConfig};
use crate::policy::{IdSet, Policy, Rule, ServicePolicy};
use crate::secret::Name;
use crate::sys::{Gid, Uid};

/// Where accounts are looked up.
pub trait Accounts: Send + Sync + fmt::Debug {
    /// The user of this name. One that cannot be looked up is not known.
    fn user(&self, name: &str) -> Option<Account>;

    /// The group of this name. One that cannot be looked up is not known.
    fn group(&self, name: &str) -> Option<Gid>;

    /// The uids that are delegated to accounts.
    ///
    /// # Errors
    /// Why what the machine says of them is not to be believed, and the mend.
    fn subuids(&self) -> Result<Subuids, String>;
}

/// The machine's accounts: `/etc/passwd`, LDAP, whatever the name service switch says, and `/etc/subuid`. May block on the
/// network.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Accounts for System {
    fn user(&self, name: &str) -> Option<Account> {
        let user = nix::unistd::User::from_name(name).ok()??;
        Some(Account {
            name: user.name,
            uid: Uid(user.uid.as_raw()),
            gid: Gid(user.gid.as_raw()),
        })
    }

    fn group(&self, name: &str) -> Option<Gid> {
        let group = nix::unistd::Group::from_name(name).ok()??;
        Some(Gid(group.gid.as_raw()))
    }

    fn subuids(&self) -> Result<Subuids, String> {
        Subuids::read(Path::new(subuid::FILE))
    }
}

/// Accounts that are listed, for tests and fuzzing.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// The users.
    pub users: Vec<Account>,
    /// The groups.
    pub groups: Vec<(String, Gid)>,
    /// What is delegated to whom.
    pub subuids: Subuids,
}

impl Accounts for Listed {
    fn user(&self, name: &str) -> Option<Account> {
        self.users.iter().find(|user| user.name == name).cloned()
    }

    fn group(&self, name: &str) -> Option<Gid> {
        let mut groups = self.groups.iter();
        groups.find(|group| group.0 == name).map(|group| group.1)
    }

    fn subuids(&self) -> Result<Subuids, String> {
        Ok(self.subuids.clone())
    }
}

/// A user, a group or a user's map in the config that is not known at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Where it stands: `services.billing.allow[0].uid`.
    pub key: String,
    /// What is not known, and the mend.
    pub why: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

impl IdSpec {
    /// The user's number, if it is one user that is known.
    #[must_use]
    pub fn uid(&self, accounts: &dyn Accounts) -> Option<Uid> {
        match self {
            Self::Name(name) => accounts.user(name).map(|user| user.uid),
            Self::Range(range) => single(range).map(Uid),
        }
    }

    /// The group's number, if it is one group that is known.
    #[must_use]
    pub fn gid(&self, accounts: &dyn Accounts) -> Option<Gid> {
        match self {
            Self::Name(name) => accounts.group(name),
            Self::Range(range) => single(range).map(Gid),
        }
    }
}

fn single(range: &RangeInclusive<u32>) -> Option<u32> {
    (range.start() == range.end()).then_some(*range.start())
}

impl Config {
    /// The rules, with every name looked up, and the names that are not known.
    ///
    /// An unknown one closes the services that name it (`[defaults]` too), wherever in them it stands; in the top-level
    /// `manage` it drops its rule.
    #[must_use]
    pub fn policy(&self, accounts: &dyn Accounts) -> (Policy, Vec<Unknown>) {
        let mut resolver = Resolver {
            accounts,
            subuids: OnceCell::new(),
            unknown: Vec::new(),
        };
        let manage = if self.manage.is_empty() {
            let user = self
                .user
                .as_ref()
                .map_or_else(Uid::effective, |user| user.uid);
            vec![default_manager(user)]
        } else {
            resolver.rules("manage", &self.manage)
        };
        let mut service = |(name, service): (&Name, &ServiceConfig)| {
            (name.clone(), resolver.service(name, service))
        };
        let services: HashMap<_, _> = self.services.iter().map(&mut service).collect();
        let defaults = self.defaults.as_ref().map(|defaults| {
            let before = resolver.unknown.len();
            let allow = resolver.rules("defaults.allow", &defaults.allow);
            ServicePolicy {
                closed: resolver.since(before),
                allow,
                open_ended: true,
                ..ServicePolicy::default()
            }
        });
        let policy = Policy {
            manage,
            services,
            defaults,
        };
        (policy, resolver.unknown)
    }
}

/// Who manages where the config says nothing: root and whom the server runs as.
fn default_manager(user: Uid) -> Rule {
    Rule {
        name: Arc::from("manage (default)"),
        uids: Some(
            [Uid::ROOT, user]
                .map(|uid| uid.0..=uid.0)
                .into_iter()
                .collect(),
        ),
        gids: None,
        unit: None,
        container: None,
    }
}

struct Resolver<'a> {
    accounts: &'a dyn Accounts,
    /// Read once, and only if a rule asks for it: all rules are to go by the same.
    subuids: OnceCell<Result<Subuids, String>>,
    unknown: Vec<Unknown>,
}

impl Resolver<'_> {
    fn service(&mut self, name: &Name, service: &ServiceConfig) -> ServicePolicy {
        let before = self.unknown.len();
        let key = format!("services.{name}");
        let allow = self.rules(&format!("{key}.allow"), &service.allow);
        let manage = self.rules(&format!("{key}.manage"), &service.manage);
        let mut secrets = HashMap::new();
        for (name, secret) in &service.secrets {
            let key = format!("{key}.secrets.{name}");
            if let Some(own) = &secret.allow {
                secrets.insert(name.clone(), self.rules(&format!("{key}.allow"), own));
            }
            self.users(&format!("{key}.owner"), std::slice::from_ref(&secret.owner));
            self.groups(&format!("{key}.group"), std::slice::from_ref(&secret.group));
        }
        let open_ended = service.source.is_some() || secrets.len() < service.secrets.len();
        ServicePolicy {
            closed: self.since(before),
            allow,
            manage,
            secrets,
            open_ended,
        }
    }

    /// Why a service is closed: the names that were not known since there were `before` of them.
    fn since(&self, before: usize) -> Option<String> {
        let names: Vec<_> = self
            .unknown
            .iter()
            .skip(before)
            .map(Unknown::to_string)
            .collect();
        (!names.is_empty()).then(|| names.join("; "))
    }

    /// The rules of which every name is known.
    fn rules(&mut self, key: &str, rules: &[RuleSpec]) -> Vec<Rule> {
        let rules = rules.iter().enumerate();
        rules
            .filter_map(|(index, rule)| self.rule(format!("{key}[{index}]"), rule))
            .collect()
    }

    fn rule(&mut self, key: String, rule: &RuleSpec) -> Option<Rule> {
        let before = self.unknown.len();
        let uids = rule
            .uid
            .as_ref()
            .map(|ids| self.users(&format!("{key}.uid"), ids));
        let mapped = rule
            .uid_map
            .as_ref()
            .map(|ids| self.mapped(&format!("{key}.uid_map"), ids));
        let gids = rule
            .gid
            .as_ref()
            .map(|ids| self.groups(&format!("{key}.gid"), ids));
        (self.unknown.len() == before).then(|| Rule {
            name: Arc::from(key),
            uids: match (uids, mapped) {
                (Some(uids), Some(mapped)) => Some(uids.and(&mapped)),
                (uids, mapped) => uids.or(mapped),
            },
            gids,
            unit: rule.unit.clone(),
            container: rule.container.clone(),
        })
    }

    fn users(&mut self, key: &str, ids: &[IdSpec]) -> IdSet {
        let find = |name: &str| {
            let user = self.accounts.user(name);
            user.map(|user| user.uid.0)
                .ok_or_else(|| absent("user", name))
        };
        resolve(key, ids, find, &mut self.unknown)
    }

    fn groups(&mut self, key: &str, ids: &[IdSpec]) -> IdSet {
        let find = |name: &str| {
            let group = self.accounts.group(name);
            group.map(|gid| gid.0).ok_or_else(|| absent("group", name))
        };
        resolve(key, ids, find, &mut self.unknown)
    }

    /// The users that are delegated to any of these accounts.
    fn mapped(&mut self, key: &str, accounts: &[IdSpec]) -> IdSet {
        let mut unknown = |why: String| {
            let key = key.to_owned();
            self.unknown.push(Unknown { key, why });
        };
        let subuids = match self.subuids.get_or_init(|| self.accounts.subuids()) {
            Ok(subuids) => subuids,
            Err(why) => {
                unknown(why.clone());
                return IdSet::default();
            }
        };
        let delegated = |account: &IdSpec| match account {
            IdSpec::Name(name) => subuids.of(name, account.uid(self.accounts)),
            IdSpec::Range(number) => subuids.of(&number.start().to_string(), None),
        };
        let found = accounts.iter().map(delegated);
        found
            .filter_map(|set| set.map_err(&mut unknown).ok())
            .collect()
    }
}

/// What is said of a user or a group that is not known.
fn absent(kind: &str, name: &str) -> String {
    format!("the {kind} {name:?} is not known: `getent` must find it, or write its number")
}

fn resolve(
    key: &str,
    ids: &[IdSpec],
    find: impl Fn(&str) -> Result<u32, String>,
    unknown: &mut Vec<Unknown>,
) -> IdSet {
    let mut one = |id: &IdSpec| match id {
        IdSpec::Range(range) => Some(range.clone()),
        IdSpec::Name(name) => match find(name) {
            Ok(id) => Some(id..=id),
            Err(why) => {
                let key = key.to_owned();
                unknown.push(Unknown { key, why });
                None
            }
        },
    };
    ids.iter().filter_map(&mut one).collect()
}

#[cfg(test)]
mod tests;
