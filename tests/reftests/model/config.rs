//! What the config says: where each secret is found, and who may read it.

use super::*;

pub(super) fn places_of(path: &'static str) -> Vec<&'static str> {
    match path {
        "app/k1" | "app/alias" => vec!["a:app/k1"],
        "app/k2" => vec!["a:app/k2"],
        "app/pair" | "app/user" | "app/pass" => vec![PAIR],
        "app/login" | "app/token" => vec![LEASED],
        "app/either" => vec!["a:x/first", "b:web/second"],
        "app/second" => vec!["a:x/first", "a:x/last"],
        "web/k1" => vec!["b:web/k1"],
        "web/second" => vec!["b:web/second"],
        "free/k1" => vec!["b:free/k1"],
        _ => vec![],
    }
}

/// Every secret that there can be.
pub(super) const SECRETS: [&str; 13] = [
    "app/k1",
    "app/alias",
    "app/k2",
    "app/either",
    "app/second",
    "app/pair",
    "app/user",
    "app/pass",
    "app/login",
    "app/token",
    "web/k1",
    "web/second",
    "free/k1",
];

/// The secrets of `app` that the config itself names.
pub(super) const BOUND: [&str; 7] = [
    "alias", "either", "second", "user", "pass", "login", "token",
];

pub(super) fn is_bound(path: &str) -> bool {
    let name = path.strip_prefix("app/");
    name.is_some_and(|name| BOUND.contains(&name))
}

/// The field that a secret shows of the record at its place.
pub(super) fn field_of(path: &str) -> Option<&'static str> {
    match path {
        "app/user" | "app/login" => Some("user"),
        "app/pass" | "app/token" => Some("pass"),
        _ => None,
    }
}

pub(super) fn stale_of(path: &str) -> u64 {
    match path {
        "app/alias" => 0,
        "app/either" => STALE_EITHER,
        _ => STALE,
    }
}

pub(super) fn split(path: &'static str) -> (&'static str, &'static str) {
    path.split_once('/').unwrap()
}

impl Model {
    fn rules_of(&self, service: &str) -> [bool; 4] {
        match service {
            "app" => self.policy.services[0],
            "web" => self.policy.services[1],
            _ => self.policy.services[2],
        }
    }

    pub(super) fn in_service(&self, uid: u32, service: &str) -> bool {
        named(self.rules_of(service), uid)
    }

    pub(super) fn may_read(&self, uid: u32, path: &'static str) -> bool {
        let narrowed = path != "app/k2" || named(self.policy.narrow, uid);
        self.in_service(uid, split(path).0) && narrowed
    }

    /// Whether who opened a file may still have it, as far as is known: a group is looked up only where no rule before it
    /// says yes, which is uid 3's alone.
    pub(super) fn still(&self, opener: u32, path: &'static str) -> Still {
        let by = |rules: [bool; 4]| match named(rules, opener) {
            true => Still::Yes,
            false if rules[3] && opener != 3 => Still::Unsure,
            false => Still::No,
        };
        let service = by(self.rules_of(split(path).0));
        let own = match path {
            "app/k2" => by(self.policy.narrow),
            _ => Still::Yes,
        };
        match (service, own) {
            (Still::No, _) | (_, Still::No) => Still::No,
            (Still::Yes, Still::Yes) => Still::Yes,
            (Still::Unsure, _) | (_, Still::Unsure) => Still::Unsure,
        }
    }
}

fn named(rules: [bool; 4], uid: u32) -> bool {
    UIDS.into_iter()
        .zip(rules)
        .any(|(who, named)| who == uid && named)
}
