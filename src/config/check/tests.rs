//! Every mistake that a config can hold, and what is said about it.

use super::*;
use crate::config::{ConfigErrors, IdSpec, accounts};
use crate::sys::{Gid, Uid};

mod offline;
mod servers;
mod signals;

const STORE: &str = "[backends.local]\ntype = \"store\"\npath = \"/s/store.age\"\n";

fn accounts() -> accounts::Listed {
    let account = |name: &str, id| Account {
        name: name.to_owned(),
        uid: Uid(id),
        gid: Gid(id),
    };
    accounts::Listed {
        users: vec![account("secretfs", 990), account("billing", 1001)],
        groups: vec![("ops".to_owned(), Gid(500))],
        ..accounts::Listed::default()
    }
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse_with(text, Path::new("c.toml"), &accounts())
}

#[test]
fn a_config_of_everything() {
    let text = r#"
mount = "/mnt/secrets/"
user = "secretfs"
watch = true
manage = [{ gid = "ops" }]

[backends.local]
type = "store"
path = "/s/store.age"
identity = { file = "/s/identity.txt" }

[services.billing]
source = "local:billing"
allow = [{ uid = ["billing", 7, "8", "61184-65519"] }, { gid = "ops", unit = "debug-shell.service" },
         { uid_map = "containers" }, { uid_map = ["billing", 1001] }]

[services.billing.secrets]
other = "local:web/key#part@3"
first = ["local:a/b", "local:c/d"]
tls-key = { from = "local:web/key", mode = "0400", owner = "billing", group = 7, reads = "cached",
            description = "front end", stale = "24h", allow = [{ uid = 0 }] }

[defaults]
source = "local"
allow = [{ uid = 1000 }]

[cache]
ttl = "0"
stale = "1h 30m"
timeout = "500ms"

[audit]
path = "journal"
on_failure = "warn"
max_size = "1GiB"
keep = 3
detail = "full"
"#;
    let config = parse(text).unwrap();
    assert_eq!(config.mount, Path::new("/mnt/secrets"));
    assert_eq!(config.runtime, Path::new("/run/secretfs"));
    assert_eq!(config.user.as_ref().unwrap().uid, Uid(990));
    assert!(config.watch);
    let billing = &config.services["billing"];
    assert_eq!(
        billing.allow[0].uid,
        Some(vec![
            IdSpec::Name("billing".to_owned()),
            IdSpec::Range(7..=7),
            IdSpec::Range(8..=8),
            IdSpec::Range(61184..=65519),
        ])
    );
    assert_eq!(
        billing.allow[1].unit.as_deref(),
        Some("debug-shell.service")
    );
    let name = |name: &str| IdSpec::Name(name.to_owned());
    assert_eq!(billing.allow[2].uid_map, Some(vec![name("containers")]));
    let two = vec![name("billing"), IdSpec::Range(1001..=1001)];
    assert_eq!(billing.allow[3].uid_map, Some(two));
    assert_eq!(billing.secrets["first"].from.len(), 2);
    assert_eq!(
        billing.secrets["other"].from[0].to_string(),
        "local:web/key#part@3"
    );
    let tls = &billing.secrets["tls-key"];
    assert_eq!((tls.mode, tls.reads), (0o400, Reads::Cached));
    assert_eq!(tls.stale, Some(Duration::from_secs(86_400)));
    assert_eq!(config.cache.stale, Duration::from_secs(5_400));
    assert_eq!(config.cache.timeout, Duration::from_millis(500));
    assert_eq!(
        config.audit,
        AuditConfig {
            target: AuditTarget::Journal,
            on_failure: OnFailure::Warn,
            max_size: 1 << 30,
            keep: 3,
            full_detail: true,
        }
    );
}

#[test]
fn the_example_is_a_config_and_shows_every_key() {
    let text = include_str!("../../../config.example.toml");
    let config = parse(text).unwrap();
    // What it calls a default is one.
    assert_eq!(config.cache, CacheConfig::default());
    let defaults = AuditConfig::default();
    assert_eq!(
        config.audit,
        AuditConfig {
            full_detail: true,
            ..defaults
        }
    );
    let bare = parse("").unwrap();
    assert_eq!(
        (config.mount, config.runtime, config.state),
        (bare.mount, bare.runtime, bare.state)
    );
    assert_eq!((config.watch, bare.watch), (false, false));

    let document: toml::Table = text.parse().unwrap();
    let at = |path: &str| {
        let mut value = toml::Value::Table(document.clone());
        for part in path.split('.').filter(|part| !part.is_empty()) {
            value = value.get(part).unwrap().clone();
        }
        value
    };
    for (path, keys) in [
        ("", keys::TOP),
        ("backends.local", keys::STORE),
        ("backends.local.identity", keys::FILE),
        ("backends.vault", keys::VAULT),
        ("backends.vault.client", keys::CLIENT),
        ("backends.vault.auth.secret_id", keys::SECRET_ID),
        ("services.billing", keys::SERVICE),
        ("services.billing.secrets.tls-key", keys::SECRET),
        ("defaults", keys::DEFAULTS),
        ("cache", keys::CACHE),
        ("audit", keys::AUDIT),
    ] {
        let section = at(path);
        for key in keys {
            assert!(section.get(key).is_some(), "{path}.{key}");
        }
    }
    for key in keys::AUTH.iter().chain(keys::NATS).chain(keys::MQTT) {
        assert!(text.contains(&format!("{key} = ")), "{key}");
    }
    // One of them alone may be there.
    for key in keys::SIGNALS {
        assert!(text.contains(&format!("[signals.{key}]")), "{key}");
    }
    let rules = at("services.billing.allow");
    let rules = rules.as_array().unwrap();
    for key in keys::RULE {
        assert!(rules.iter().any(|rule| rule.get(key).is_some()), "{key}");
    }
}

/// What stands after the store, and what the error must say: line, key and mend.
const WRONG: &[(&str, &str)] = &[
    (
        "[services.a]\nsource = \"local:a\"\nallows = []",
        "c.toml:6: services.a.allows: unknown key: did you mean `allow`?",
    ),
    (
        "[cache]\nfoo = 1",
        "c.toml:5: cache.foo: unknown key: known here are `ttl`, `stale`, `timeout`",
    ),
    (
        "[rotation]\nmax = 1",
        "c.toml:4: rotation: unknown key: known here are",
    ),
    ("[cache]\n\"a b\\n\" = 1", "cache.\"a b\\n\": unknown key"),
    (
        "[backends.v]\ntype = \"vault\"\naddress = \"http://v.example\"",
        "c.toml:6: backends.v.address: `address` without TLS would send the token",
    ),
    (
        "[backends.v]\ntype = \"vault\"\ntoken = \"hvs.x\"",
        "c.toml:6: backends.v.token: unknown key",
    ),
    (
        "[backends.v]\ntype = \"vault\"\nauth = { method = \"ldap\" }",
        "backends.v.auth.method: no such way to sign in",
    ),
    (
        "[backends.v]\ntype = \"vault\"\nauth = { method = \"token\", role = \"x\" }",
        "backends.v.auth.role: method = \"token\" does not take it: it takes `file`",
    ),
    (
        "[backends.v]\ntype = \"vault\"\nauth = { method = \"approle\", role_id = \"x\" }",
        "backends.v.auth: `secret_id` is missing",
    ),
    (
        "[backends.v]\ntype = \"vault\"\nauth = { method = \"kubernetes\" }",
        "backends.v.auth: `role` is missing",
    ),
    (
        "[backends.v]\ntype = \"vault\"\nauth = { method = \"cert\" }",
        "c.toml:4: backends.v: signing in by certificate needs one",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nauth = { method = \"token\", file = \"/t\" }",
        "c.toml:6: services.a.auth: no backend is signed in to",
    ),
    (
        "[backends.v]\ntype = \"vault\"\n[services.a]\nsource = \"v:a\"\nauth = { method = \"token\" }",
        "c.toml:8: services.a.auth: `file` is missing",
    ),
    (
        "[backends.v]\ntype = \"vault\"\n[services.a]\nsource = \"v:a\"\nauth = { backend = \"w\", method = \"token\" }",
        "c.toml:8: services.a.auth.backend: no backend of type",
    ),
    (
        "[backends.v]\ntype = \"vault\"\n[defaults]\nsource = \"v\"",
        "defaults.source: only the folders of a store are services by themselves",
    ),
    ("[cache", "c.toml:4: not TOML: "),
    ("cache = 1\ncache = 2", "not TOML: duplicate key"),
    ("[services]\nb = 1", "c.toml:5: services.b: write a table"),
    (
        "[services.\".x\"]\nsource = \"local:a\"",
        "c.toml:4: services.\".x\": \".x\" is not a name",
    ),
    (
        "[services.a]\nallow = [{ uid = 1 }]",
        "c.toml:4: services.a: the service has no secrets: write source",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ unit = \"a.service\" }]",
        "c.toml:6: services.a.allow[0]: a rule must name a `uid`, a `uid_map` or a `gid`",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = []",
        "services.a.allow: the list is empty",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = { uid = 1 }",
        "services.a.allow: write a list of rules",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = [] }]",
        "services.a.allow[0].uid: the list is empty",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"*\" }]",
        "services.a.allow[0].uid: wildcards are not allowed",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"0-4294967295\" }]",
        "a range of all numbers is a wildcard",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"9-8\" }]",
        "write the smaller number first",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 4294967295 }]",
        "so large a number",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = -1 }]",
        "services.a.allow[0].uid: write a name, a number, or a range",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1.5 }]",
        "services.a.allow[0].uid: write a name, a number, or a range",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ gid = [1, \"\"] }]",
        "services.a.allow[0].gid[1]: this is not a user or group",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid_map = \"100000-165535\" }]",
        "services.a.allow[0].uid_map: the ranges stand in /etc/subuid: write the name or number",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid_map = [\"a\", \"*\"] }]",
        "services.a.allow[0].uid_map[1]: wildcards are not allowed",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid_map = [] }]",
        "services.a.allow[0].uid_map: the list is empty",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, unit = \"\" }]",
        "services.a.allow[0].unit: write the unit's whole name",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, unit = \"a\" }]",
        "as in \"billing.service\"",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, unit = \"*.service\" }]",
        "wildcards are not allowed",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, unit = \"x/a.service\" }]",
        "the unit's whole name",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, container = \"3f4a\" }]",
        "64 lower-case hexadecimal digits",
    ),
    (
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 1, exe = \"/bin/sh\" }]",
        "services.a.allow[0].exe: unknown key",
    ),
    (
        "[services.a]\nsource = \"vault:a\"",
        "c.toml:5: services.a.source: no backend of this name is defined: add a section [backends.NAME], or use one of `local`",
    ),
    (
        "[services.a]\nsource = \"a\"",
        "services.a.source: a reference starts with a backend's name",
    ),
    (
        "[services.a]\nsource = \"local:a#b\"",
        "a source is a whole folder",
    ),
    (
        "[services.a]\nsource = \"local:a/b\"",
        "a store has folders of one level",
    ),
    (
        "[services.a.secrets]\nx = \"local:a\"",
        "services.a.secrets.x: a store keeps its secrets as SERVICE/NAME",
    ),
    (
        "[services.a.secrets]\nx = \"local:a/b?c=d\"",
        "a store takes no arguments",
    ),
    (
        "[services.a.secrets]\nx = []",
        "services.a.secrets.x: the list is empty",
    ),
    (
        "[services.a.secrets]\nx = 5",
        "services.a.secrets.x: write \"BACKEND:PATH\", a list of them, or a table",
    ),
    (
        "[services.a.secrets]\nx = [\"local:a/b\", 5]",
        "services.a.secrets.x[1]: write a reference",
    ),
    (
        "[services.a.secrets]\nx = { mode = \"0400\" }",
        "services.a.secrets.x: the service has no `source`: write from",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", mode = \"0600\" }",
        "secrets are read-only",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", mode = \"04400\" }",
        "secrets are read-only",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", mode = 400 }",
        "services.a.secrets.x.mode: write a mode, as in \"0400\"",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", mode = \"u=r\" }",
        "this is not a mode",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", owner = \"1-2\" }",
        "a file has one owner",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", reads = \"never\" }",
        "write \"checked\" or \"cached\"",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", stale = \"soon\" }",
        "this is not a duration",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", allow = [] }",
        "services.a.secrets.x.allow: the list is empty",
    ),
    (
        "[services.a.secrets]\nx = { from = \"local:a/b\", description = \"a\\nb\" }",
        "write one line",
    ),
    (
        "[defaults]\nallow = [{ uid = 1 }]",
        "c.toml:4: defaults: `source` is missing: write source = \"BACKEND\"",
    ),
    (
        "[defaults]\nsource = \"local:\"",
        "write the name of a backend alone",
    ),
    (
        "[defaults]\nsource = \"other\"",
        "defaults.source: no backend of this name",
    ),
    ("[backends]\nb = 1", "c.toml:5: backends.b: write a table"),
    (
        "[backends.b]\npath = \"/x\"",
        "c.toml:4: backends.b: `type` is missing",
    ),
    (
        "[backends.b]\ntype = \"volt\"\naddress = \"x\"",
        "c.toml:5: backends.b.type: no such type of backend: known are \"store\"",
    ),
    (
        "[backends.b]\ntype = \"store\"",
        "backends.b: `path` is missing",
    ),
    (
        "[backends.b]\ntype = \"store\"\npath = \"store.age\"",
        "backends.b.path: write an absolute path",
    ),
    (
        "[backends.b]\ntype = \"store\"\npath = \"/a/../b.age\"",
        "without `..`",
    ),
    (
        "[backends.b]\ntype = \"store\"\npath = \"/b.d\"",
        "must not end in `.d`",
    ),
    (
        "[backends.b]\ntype = \"store\"\npath = \"/b.age\"\nidentity = \"/i\"",
        "backends.b.identity: write a table",
    ),
    (
        "[backends.b]\ntype = \"store\"\npath = \"/b.age\"\nidentity = { file = \"/i\", path = \"/i\" }",
        "backends.b.identity.path: unknown key",
    ),
    (
        "[cache]\nttl = 60",
        "c.toml:5: cache.ttl: write a duration, as in \"90s\"",
    ),
    ("[cache]\nttl = \"-5s\"", "this is not a duration"),
    ("[cache]\nttl = \"999999h\"", "more than ten years"),
    ("[cache]\ntimeout = \"0\"", "every request needs a deadline"),
    ("[cache]\ntimeout = \"11m\"", "write at most \"10m\""),
    (
        "[audit]\npath = \"audit.jsonl\"",
        "audit.path: write an absolute path",
    ),
    (
        "[audit]\non_failure = \"ignore\"",
        "write \"deny\" or \"warn\"",
    ),
    ("[audit]\nmax_size = \"big\"", "this is not a size"),
    ("[audit]\nmax_size = \"1B\"", "too small for a log"),
    ("[audit]\nkeep = 0", "from 1 to 10000"),
    ("[audit]\ndetail = \"some\"", "write \"full\""),
    (
        "[audit]\npath = \"/secrets/x\"",
        "`audit.path` stands inside of the mount",
    ),
];

/// What must stand before any section.
const WRONG_TOP: &[(&str, &str)] = &[
    (
        "mount = \"secrets\"",
        "c.toml:1: mount: write an absolute path",
    ),
    (
        "mount = 5",
        "c.toml:1: mount: write an absolute path; here stands a value of type integer",
    ),
    ("mount = \"/\"", "must not be the root folder"),
    (
        "runtime = \"/secrets\"",
        "`runtime` stands inside of the mount",
    ),
    (
        "state = \"/secrets/state\"",
        "`state` stands inside of the mount",
    ),
    (
        "user = \"nobody-here\"",
        "c.toml:1: user: there is no such account: make it with `useradd",
    ),
    ("manage = []", "c.toml:1: manage: the list is empty"),
    (
        "mont = \"/x\"",
        "c.toml:1: mont: unknown key: did you mean `mount`?",
    ),
];

#[test]
fn each_mistake_is_one_line_with_its_key_and_mend() {
    let after = WRONG
        .iter()
        .map(|(text, says)| (format!("{STORE}{text}\n"), says));
    let before = WRONG_TOP
        .iter()
        .map(|(text, says)| (format!("{text}\n{STORE}"), says));
    for (text, says) in after.chain(before) {
        let errors = parse(&text).expect_err(&text);
        let shown = errors.to_string();
        assert!(
            shown.contains(says),
            "{text}\nsays: {shown}\nshould say: {says}"
        );
        assert_eq!(errors.0.len(), 1, "{text}\nsays: {shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_their_order() {
    let text = "mont = 1\n[services.a]\nallow = [{ uid = \"*\" }, { unit = \"x\" }]\nsource = \"x:a\"\n[cache]\nttl = 1\n";
    let lines: Vec<_> = parse(text)
        .unwrap_err()
        .0
        .iter()
        .map(|error| error.line.unwrap())
        .collect();
    assert_eq!(lines, [1, 3, 3, 3, 4, 6]);
}

#[test]
fn no_mistake_quotes_what_stood_there() {
    // Wherever a secret may be pasted by mistake.
    for text in [
        "mount = \"canary-7f3a\"",
        "user = \"canary-7f3a\"",
        "manage = \"canary-7f3a\"",
        "mount = canary-7f3a",
        "mount = \"canary-7f3a",
        "cache = { ttl = \"canary-7f3a\", stale = \"canary 7f3a\" }",
        "audit = { max_size = \"canary-7f3a\", keep = \"canary-7f3a\", on_failure = \"canary-7f3a\" }",
        "backends.b.type = \"canary-7f3a\"",
        "backends.b = { type = \"store\", path = \"canary-7f3a\", identity = \"canary-7f3a\" }",
        "services.a = { source = \"canary-7f3a\", allow = [{ uid = \"canary:7f3a\", unit = \"canary-7f3a\" }] }",
        "services.a.secrets = { x = \"canary-7f3a\", y = { from = \"canary-7f3a:x\", mode = \"canary-7f3a\" } }",
        "defaults.source = \"canary-7f3a\"",
    ] {
        let errors = parse(&format!("{text}\n")).expect_err(text).to_string();
        assert!(!errors.contains("canary"), "{text}\n{errors}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n|[a-z]+ = |\\[|\"|\\{){0,40}") {
        let _ = parse(&text);
    }
}
