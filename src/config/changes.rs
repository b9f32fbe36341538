//! What is different in another config: said to who had it read again, and to the log.
//!
//! It names sections, keys and secrets, and the times of the cache. What a key says is not repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{CacheConfig, Config, DefaultsConfig, SecretConfig, ServiceConfig};
use crate::secret::Name;

/// What a reload from `old` to `new` puts in force, a line for each section: the top first, then services by name.
/// What needs a restart is not in it, because a reload refuses to change that.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    if old.watch != new.watch {
        changes.push(format!("watch {} → {}", old.watch, new.watch));
    }
    if old.manage != new.manage {
        changes.push("manage changed".to_owned());
    }
    changes.extend(cache(&old.cache, &new.cache));
    changes.extend(defaults(old.defaults.as_ref(), new.defaults.as_ref()));
    let services = each(&old.services, &new.services, service);
    changes.extend(services.map(|(name, change)| {
        let change = match change {
            Change::Added => "added".to_owned(),
            Change::Removed => "removed".to_owned(),
            Change::In(keys) => format!("changed: {}", keys.join(", ")),
        };
        format!("[services.{name}] {change}")
    }));
    changes
}

enum Change {
    Added,
    Removed,
    /// In these keys.
    In(Vec<String>),
}

/// What happened to each member of a section, by name; nothing of those that are as before.
fn each<'c, T: PartialEq>(
    old: &'c BTreeMap<Name, T>,
    new: &'c BTreeMap<Name, T>,
    keys: impl Fn(&T, &T) -> Vec<String> + 'c,
) -> impl Iterator<Item = (&'c Name, Change)> {
    let mut names: Vec<&Name> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(move |name| {
        let change = match (old.get(name), new.get(name)) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (Some(old), Some(new)) if old == new => return None,
            (Some(old), Some(new)) => Change::In(keys(old, new)),
        };
        Some((name, change))
    })
}

fn cache(old: &CacheConfig, new: &CacheConfig) -> Vec<String> {
    let time = |key: &str, old: Duration, new: Duration| {
        (old != new).then(|| format!("[cache] {key} {old:?} → {new:?}"))
    };
    let times = [
        time("ttl", old.ttl, new.ttl),
        time("stale", old.stale, new.stale),
        time("timeout", old.timeout, new.timeout),
    ];
    times.into_iter().flatten().collect()
}

fn defaults(old: Option<&DefaultsConfig>, new: Option<&DefaultsConfig>) -> Option<String> {
    match (old, new) {
        (None, None) => None,
        (None, Some(_)) => Some("[defaults] added".to_owned()),
        (Some(_), None) => Some("[defaults] removed".to_owned()),
        (Some(old), Some(new)) => {
            let keys = different(&[
                ("source", old.source != new.source),
                ("allow", old.allow != new.allow),
            ]);
            (!keys.is_empty()).then(|| format!("[defaults] changed: {}", keys.join(", ")))
        }
    }
}

fn service(old: &ServiceConfig, new: &ServiceConfig) -> Vec<String> {
    let mut keys = different(&[
        ("source", old.source != new.source),
        ("allow", old.allow != new.allow),
        ("manage", old.manage != new.manage),
    ]);
    let secrets = each(&old.secrets, &new.secrets, secret);
    keys.extend(secrets.map(|(name, change)| match change {
        Change::Added => format!("secrets.{name} added"),
        Change::Removed => format!("secrets.{name} removed"),
        Change::In(keys) => format!("secrets.{name} ({})", keys.join(", ")),
    }));
    keys
}

fn secret(old: &SecretConfig, new: &SecretConfig) -> Vec<String> {
    different(&[
        ("from", old.from != new.from),
        ("mode", old.mode != new.mode),
        ("owner", old.owner != new.owner),
        ("group", old.group != new.group),
        ("reads", old.reads != new.reads),
        ("description", old.description != new.description),
        ("stale", old.stale != new.stale),
        ("allow", old.allow != new.allow),
    ])
}

fn different(keys: &[(&str, bool)]) -> Vec<String> {
    let different = keys.iter().filter(|(_, different)| *different);
    different.map(|(key, _)| (*key).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::accounts::Listed;

    const BEFORE: &str = r#"
[backends.local]
type = "store"
path = "/s.age"
[services.a]
source = "local:a"
allow = [{ uid = 1 }]
[services.a.secrets]
key = { from = "local:a/key", mode = "0400", owner = 1, description = "canary" }
old = "local:a/old"
[services.b]
source = "local:b"
[defaults]
source = "local"
allow = [{ uid = 1 }]
"#;

    fn config(text: &str) -> Config {
        Config::parse_with(text, Path::new("c.toml"), &Listed::default()).unwrap()
    }

    #[test]
    fn each_change_is_named_and_nothing_else() {
        let top = |line: &str| format!("{line}\n{BEFORE}");
        let end = |lines: &str| format!("{BEFORE}{lines}");
        let in_place = |old: &str, new: &str| BEFORE.replacen(old, new, 1);
        let table: &[(String, &[&str])] = &[
            (top("# a comment"), &[]),
            (top("watch = true"), &["watch false → true"]),
            (top("manage = [{ uid = 5 }]"), &["manage changed"]),
            (
                end("[cache]\nttl = \"30s\"\ntimeout = \"5s\"\nstale = \"0\""),
                &["[cache] ttl 60s → 30s", "[cache] stale 600s → 0ns"],
            ),
            (
                in_place("[defaults]\nsource = \"local\"\nallow = [{ uid = 1 }]", ""),
                &["[defaults] removed"],
            ),
            (
                in_place("\"local\"\nallow = [{ uid = 1 }]", "\"local\""),
                &["[defaults] changed: allow"],
            ),
            (
                in_place(
                    "[services.b]\nsource = \"local:b\"",
                    "[services.c]\nsource = \"local:c\"",
                ),
                &["[services.b] removed", "[services.c] added"],
            ),
            (
                in_place("local:b", "local:a"),
                &["[services.b] changed: source"],
            ),
            (
                in_place(
                    "source = \"local:a\"\nallow = [{ uid = 1 }]",
                    "source = \"local:a\"\nmanage = [{ uid = 1 }]",
                ),
                &["[services.a] changed: allow, manage"],
            ),
            (
                in_place("old = \"local:a/old\"", "new = \"local:a/old\""),
                &["[services.a] changed: secrets.new added, secrets.old removed"],
            ),
            (
                in_place(
                    "owner = 1, description = \"canary\"",
                    "group = 1, reads = \"cached\", stale = \"1s\", allow = [{ uid = 1 }]",
                ),
                &[
                    "[services.a] changed: secrets.key (owner, group, reads, description, stale, allow)",
                ],
            ),
            (
                in_place("\"local:a/key\", mode = \"0400\"", "\"local:a/old\""),
                &["[services.a] changed: secrets.key (from, mode)"],
            ),
        ];
        let before = config(BEFORE);
        for (text, expected) in table {
            let after = config(text);
            assert_eq!(changes(&before, &after), *expected, "{text}");
            assert_eq!(changes(&after, &before).len(), expected.len(), "{text}");
        }
        assert_eq!(changes(&config(""), &before).len(), 3);
    }
}
