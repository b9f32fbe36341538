//! From the raw form to [`Config`]: every section, key and value, and how they fit together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::backend::Reference;
use crate::config::accounts::Accounts;
use crate::config::check::backends::{backend, identities};
use crate::config::check::rules::{rules, single_id};
use crate::config::file::{Item, Report, Section};
use crate::config::values::{self, ValueError};
use crate::config::{
    Account, AuditConfig, AuditTarget, BackendConfig, CacheConfig, Config, ConfigErrors,
    DefaultsConfig, OnFailure, Reads, SecretConfig, ServiceConfig, Shape, Source,
};
use crate::secret::{Name, SecretPath};

mod backends;
mod offline;
mod rules;
mod signals;

/// The longest deadline: a reader that waits cannot be killed meanwhile.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// Below this, nearly each line would rotate the audit log.
const MIN_AUDIT_SIZE: u64 = 4096;

/// The keys that each section may have. `config.example.toml` shows every one of them.
mod keys {
    pub(super) const TOP: &[&str] = &[
        "mount", "runtime", "state", "user", "watch", "manage", "backends", "services", "defaults",
        "cache", "offline", "audit", "signals",
    ];
    pub(super) const STORE: &[&str] = &["type", "path", "identity"];
    pub(super) const FILE: &[&str] = &["file"];
    pub(super) const VAULT: &[&str] = &[
        "type",
        "address",
        "ca",
        "client",
        "namespace",
        "poll",
        "auth",
    ];
    pub(super) const CLIENT: &[&str] = &["certificate", "key"];
    /// Without the backend, which a section of its own has around it.
    pub(super) const AUTH: &[&str] = match SERVICE_AUTH {
        [_backend, method @ ..] => method,
        [] => &[],
    };
    pub(super) const SECRET_ID: &[&str] = &["file", "wrapped"];
    pub(super) const SERVICE: &[&str] = &["source", "allow", "manage", "auth", "secrets"];
    pub(super) const SERVICE_AUTH: &[&str] = &[
        "backend",
        "method",
        "mount",
        "file",
        "role_id",
        "secret_id",
        "role",
        "jwt",
    ];
    pub(super) const SECRET: &[&str] = &[
        "from",
        "mode",
        "owner",
        "group",
        "reads",
        "description",
        "stale",
        "allow",
    ];
    pub(super) const RULE: &[&str] = &["uid", "uid_map", "gid", "unit", "container"];
    pub(super) const DEFAULTS: &[&str] = &["source", "allow"];
    pub(super) const SIGNALS: &[&str] = &["nats", "mqtt"];
    pub(super) const NATS: &[&str] = &["url", "subject", "ca", "credentials", "token"];
    pub(super) const MQTT: &[&str] = &["url", "topic", "ca", "client", "user", "password"];
    pub(super) const CACHE: &[&str] = &["ttl", "stale", "timeout"];
    pub(super) const OFFLINE: &[&str] = &["path", "max_age"];
    pub(super) const AUDIT: &[&str] = &["path", "on_failure", "max_size", "keep", "detail"];
}

/// Reads the whole config from its text.
pub(super) fn config(
    text: &str,
    file: &Path,
    accounts: &dyn Accounts,
) -> Result<Config, ConfigErrors> {
    let report = Report::new(file, text);
    let document = report.document()?;
    let top = Item::top(&report, &document);
    let top = top.section(keys::TOP);
    report.finish(top.map(|top| sections(&top, file, accounts)))
}

fn sections(top: &Section<'_>, file: &Path, accounts: &dyn Accounts) -> Config {
    let members = |key| top.get(key).map(|item| item.members()).unwrap_or_default();
    let backends: BTreeMap<_, _> = members("backends")
        .iter()
        .map(|(name, item)| (name.clone(), backend(item)))
        .collect();
    let items = members("services");
    let services = items
        .iter()
        .map(|(name, item)| (name.clone(), service(item, &backends)))
        .collect();
    let (services, backends) = identities(services, backends, &items);
    let config = Config {
        file: file.to_owned(),
        named: file.to_owned(),
        mount: path_or(top, "mount", "/secrets"),
        runtime: path_or(top, "runtime", "/run/secretfs"),
        state: path_or(top, "state", "/var/lib/secretfs"),
        user: top.get("user").and_then(|item| user(&item, accounts)),
        watch: top
            .get("watch")
            .and_then(|item| item.yes_or_no())
            .unwrap_or_default(),
        manage: rules(top, "manage").unwrap_or_default(),
        services,
        defaults: top
            .get("defaults")
            .and_then(|item| defaults(&item, &backends)),
        cache: top
            .get("cache")
            .map(|item| cache(&item))
            .unwrap_or_default(),
        offline: top
            .get("offline")
            .and_then(|item| offline::offline(&item, &backends)),
        backends: backends
            .into_iter()
            .filter_map(|(name, backend)| Some((name, backend?)))
            .collect(),
        audit: top
            .get("audit")
            .map(|item| audit(&item))
            .unwrap_or_default(),
        signals: top.get("signals").and_then(|item| signals::signals(&item)),
    };
    places(top, &config);
    config
}

fn user(item: &Item<'_>, accounts: &dyn Accounts) -> Option<Account> {
    let name = item.text("an account's name, as in \"secretfs\"")?;
    let account = accounts.user(name);
    if account.is_none() {
        item.fail(
            "there is no such account: make it with `useradd --system --no-create-home NAME`, or leave `user` out to serve as who starts the daemon",
        );
    }
    account
}

/// Nothing that the daemon itself needs may stand in the mount, where it would wait for itself.
fn places(top: &Section<'_>, config: &Config) {
    let mount = config.mount.as_path();
    if mount.parent().is_none() {
        top.fail(
            "`mount` must not be the root folder: write a folder of its own, as in \"/secrets\"",
        );
        return;
    }
    let mut needed = vec![
        ("the config itself".to_owned(), config.file.as_path()),
        ("`runtime`".to_owned(), &config.runtime),
        ("`state`".to_owned(), &config.state),
    ];
    for (name, backend) in &config.backends {
        needed.extend(
            backends::files(backend)
                .into_iter()
                .map(|(key, path)| (format!("`backends.{name}.{key}`"), path)),
        );
    }
    if let Some(broker) = &config.signals {
        let signals = signals::files(broker).into_iter();
        needed.extend(signals.map(|(key, path)| (format!("`signals.{key}`"), path)));
    }
    if let Some(offline) = &config.offline {
        needed.push(("`offline.path`".to_owned(), &offline.path));
    }
    if let AuditTarget::File(path) = &config.audit.target {
        needed.push(("`audit.path`".to_owned(), path));
    }
    for (what, path) in needed {
        if path.starts_with(mount) {
            let problem =
                format!("{what} stands inside of the mount: choose another place for one of them");
            match top.get("mount") {
                Some(item) => item.fail(problem),
                None => top.fail(problem),
            }
        }
    }
}

/// What is defined, and as what.
type Backends = BTreeMap<Name, Option<BackendConfig>>;

fn service(item: &Item<'_>, backends: &Backends) -> ServiceConfig {
    let Some(section) = item.section(keys::SERVICE) else {
        return ServiceConfig::default();
    };
    let source = section.get("source");
    let secrets = section.get("secrets");
    if source.is_none() && secrets.is_none() {
        section.fail(
            "the service has no secrets: write source = \"BACKEND:FOLDER\", or bind them one by one under `secrets`",
        );
    }
    let has_source = source.is_some();
    let secret = |(name, item): (Name, Item<'_>)| {
        let secret = secret(&item, backends);
        if secret.from.is_empty() && !has_source && item.is_table() && item.peek("from").is_none() {
            item.fail("the service has no `source`: write from = \"BACKEND:PATH\"");
        }
        (name, secret)
    };
    ServiceConfig {
        source: source.and_then(|item| folder(&item, backends)),
        allow: rules(&section, "allow").unwrap_or_default(),
        manage: rules(&section, "manage").unwrap_or_default(),
        secrets: secrets
            .map(|item| item.members())
            .unwrap_or_default()
            .into_iter()
            .map(secret)
            .collect(),
    }
}

fn folder(item: &Item<'_>, backends: &Backends) -> Option<Source> {
    let reference = reference(item)?;
    if !reference.query.is_empty() || reference.field.is_some() || reference.version.is_some() {
        item.fail("a source is a whole folder: leave `?…`, `#…` and `@…` out");
    }
    let folder = reference.path.trim_end_matches('/');
    let store = is_store(item, &reference.backend, backends);
    if store && folder.parse::<Name>().is_err() {
        item.fail("a store has folders of one level: write \"BACKEND:FOLDER\" with a service's name as folder");
    }
    let shape = match (store, reference.path.ends_with('/')) {
        (true, _) => Shape::Secrets,
        (false, true) => Shape::Records,
        (false, false) => Shape::Fields,
    };
    Some(Source {
        backend: reference.backend,
        folder: reference.path,
        shape,
    })
}

const SECRET: &str = "\"BACKEND:PATH\", a list of them, or a table as in { from = \"BACKEND:PATH\", mode = \"0400\" }";

fn secret(item: &Item<'_>, backends: &Backends) -> SecretConfig {
    let mut secret = SecretConfig::default();
    if !item.is_table() {
        secret.from = references(item, SECRET, backends);
        return secret;
    }
    let Some(section) = item.section(keys::SECRET) else {
        return secret;
    };
    if let Some(item) = section.get("from") {
        secret.from = references(&item, "\"BACKEND:PATH\" or a list of them", backends);
    }
    if let Some(mode) = value(&section, "mode", "a mode, as in \"0400\"", values::mode) {
        secret.mode = mode;
    }
    for (key, place) in [("owner", &mut secret.owner), ("group", &mut secret.group)] {
        if let Some(id) = section.get(key).and_then(|item| single_id(&item)) {
            *place = id;
        }
    }
    if let Some(item) = section.get("reads") {
        match item.text("\"checked\" or \"cached\"") {
            Some("checked") => secret.reads = Reads::Checked,
            Some("cached") => secret.reads = Reads::Cached,
            Some(_) => item.fail("write \"checked\" or \"cached\""),
            None => {}
        }
    }
    secret.description = value(&section, "description", "a string", description);
    secret.stale = value(&section, "stale", DURATION, values::duration);
    secret.allow = rules(&section, "allow");
    secret
}

fn description(text: &str) -> Result<String, ValueError> {
    if text.len() > 1024 || text.contains(char::is_control) {
        return Err(ValueError("write one line of at most 1024 bytes"));
    }
    Ok(text.to_owned())
}

fn references(item: &Item<'_>, example: &str, backends: &Backends) -> Vec<Reference> {
    let items = match item.as_list() {
        Some(_) => item.list(example).unwrap_or_default(),
        None if item.as_text().is_some() => vec![item.clone()],
        None => {
            item.text(example);
            Vec::new()
        }
    };
    let one = |item: Item<'_>| {
        let reference = reference(&item)?;
        if is_store(&item, &reference.backend, backends) {
            if reference.path.parse::<SecretPath>().is_err() {
                item.fail(
                    "a store keeps its secrets as SERVICE/NAME: write \"BACKEND:SERVICE/NAME\"",
                );
            }
            if !reference.query.is_empty() {
                item.fail("a store takes no arguments: leave `?…` out");
            }
        }
        Some(reference)
    };
    items.into_iter().filter_map(one).collect()
}

fn reference(item: &Item<'_>) -> Option<Reference> {
    let text = item.text("a reference, as in \"BACKEND:PATH\"")?;
    let parsed = Reference::from_str(text);
    parsed.map_err(|error| item.fail(error.to_string())).ok()
}

/// True for a store. A backend that is not defined is a mistake of `item`.
fn is_store(item: &Item<'_>, name: &Name, backends: &Backends) -> bool {
    match backends.get(name) {
        Some(Some(BackendConfig::Store(_))) => true,
        Some(Some(BackendConfig::Vault(_)) | None) => false,
        None => {
            item.fail(no_backend(backends));
            false
        }
    }
}

fn no_backend(backends: &Backends) -> String {
    let known: Vec<_> = backends.keys().map(Name::as_str).collect();
    if known.is_empty() {
        return "no backend of this name is defined: add a section [backends.NAME]".to_owned();
    }
    format!(
        "no backend of this name is defined: add a section [backends.NAME], or use one of `{}`",
        known.join("`, `")
    )
}

fn defaults(item: &Item<'_>, backends: &Backends) -> Option<DefaultsConfig> {
    let section = item.section(keys::DEFAULTS)?;
    let allow = rules(&section, "allow").unwrap_or_default();
    let source = section.need("source", "\"BACKEND\", the name of a backend")?;
    let name = source.text("the name of a backend, as in \"local\"")?;
    match name.parse() {
        Ok(name) => {
            if !is_store(&source, &name, backends) && matches!(backends.get(&name), Some(Some(_))) {
                source.fail("only the folders of a store are services by themselves: give each service of another backend a section [services.NAME] with a `source`");
            }
            Some(DefaultsConfig {
                source: name,
                allow,
            })
        }
        Err(_) => {
            source.fail("write the name of a backend alone, as in \"local\": each of its folders is a service");
            None
        }
    }
}

const DURATION: &str = "a duration, as in \"90s\", \"10m\" or \"0\"";

fn cache(item: &Item<'_>) -> CacheConfig {
    let mut cache = CacheConfig::default();
    let Some(section) = item.section(keys::CACHE) else {
        return cache;
    };
    for (key, place) in [("ttl", &mut cache.ttl), ("stale", &mut cache.stale)] {
        if let Some(duration) = value(&section, key, DURATION, values::duration) {
            *place = duration;
        }
    }
    let timeout = |text: &str| match values::duration(text)? {
        Duration::ZERO => Err(ValueError(
            "every request needs a deadline: write one, as in \"5s\"",
        )),
        long if long > MAX_TIMEOUT => Err(ValueError(
            "a reader cannot be killed while it waits: write at most \"10m\"",
        )),
        duration => Ok(duration),
    };
    if let Some(duration) = value(&section, "timeout", DURATION, timeout) {
        cache.timeout = duration;
    }
    cache
}

fn audit(item: &Item<'_>) -> AuditConfig {
    let mut audit = AuditConfig::default();
    let Some(section) = item.section(keys::AUDIT) else {
        return audit;
    };
    let target = |text: &str| match text {
        "journal" => Ok(AuditTarget::Journal),
        path => values::path(path).map(AuditTarget::File),
    };
    if let Some(target) = value(&section, "path", "a path or \"journal\"", target) {
        audit.target = target;
    }
    let on_failure = |text: &str| match text {
        "deny" => Ok(OnFailure::Deny),
        "warn" => Ok(OnFailure::Warn),
        _ => Err(ValueError("write \"deny\" or \"warn\"")),
    };
    if let Some(choice) = value(&section, "on_failure", "\"deny\" or \"warn\"", on_failure) {
        audit.on_failure = choice;
    }
    let max_size = |text: &str| match values::size(text)? {
        MIN_AUDIT_SIZE.. => values::size(text),
        _ => Err(ValueError("too small for a log: write at least \"4KiB\"")),
    };
    if let Some(size) = value(&section, "max_size", "a size, as in \"100MiB\"", max_size) {
        audit.max_size = size;
    }
    if let Some(item) = section.get("keep") {
        match item.as_number().and_then(|keep| usize::try_from(keep).ok()) {
            Some(keep @ 1..=10_000) => audit.keep = keep,
            _ => {
                item.fail("write how many rotated files are kept, from 1 to 10000, as in keep = 10")
            }
        }
    }
    let detail = |text: &str| match text {
        "full" => Ok(true),
        _ => Err(ValueError("write \"full\", or leave the key out")),
    };
    audit.full_detail = value(&section, "detail", "\"full\"", detail).unwrap_or_default();
    audit
}

fn path(item: &Item<'_>) -> Option<PathBuf> {
    let parsed = values::path(item.text("an absolute path")?);
    parsed.map_err(|error| item.fail(error.to_string())).ok()
}

fn path_or(section: &Section<'_>, key: &'static str, default: &str) -> PathBuf {
    let given = section.get(key).and_then(|item| path(&item));
    given.unwrap_or_else(|| PathBuf::from(default))
}

/// What stands under `key`, parsed.
fn value<T>(
    section: &Section<'_>,
    key: &'static str,
    example: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Option<T> {
    let item = section.get(key)?;
    let parsed = parse(item.text(example)?);
    parsed.map_err(|error| item.fail(error.to_string())).ok()
}

#[cfg(test)]
mod tests;
