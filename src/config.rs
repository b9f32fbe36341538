//! The config: rich types, every one of them checked.
//!
//! [`Config::load`] opens the file by [`open`] (only a file that nobody else can change counts), reads it by `file` (the
//! raw form) and `check` (every mistake in it at once). Who the users and groups in the rules are is looked up by
//! [`Config::policy`], again and again, because accounts come and go while the daemon runs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::{Reference, WHOLE, vault};
use crate::secret::Name;
use crate::signal::broker::Broker;
use crate::sys::{Gid, Uid};

pub mod accounts;
pub mod changes;
mod check;
pub mod edit;
mod file;
pub mod open;
pub mod subuid;
pub mod template;
mod values;

pub use accounts::{Accounts, Unknown};
pub use values::{ValueError, duration};

/// The whole config, checked: whoever holds one need not check anything again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from, without links in its path.
    pub file: PathBuf,
    /// How it was named: the path that is followed again when the config is read again, because a link in it may lead
    /// to another file by then.
    pub named: PathBuf,
    /// Where the secrets appear.
    pub mount: PathBuf,
    /// Where the control socket and the daemon's lock stand.
    pub runtime: PathBuf,
    /// What must outlive a restart; never a value.
    pub state: PathBuf,
    /// Whom the server becomes when root starts it.
    pub user: Option<Account>,
    /// Whether the daemon reads the config again by itself when the file changes.
    pub watch: bool,
    /// Who may change everything and steer the daemon. Root and `user` where the config says nothing.
    pub manage: Vec<RuleSpec>,
    /// Where values come from.
    pub backends: BTreeMap<Name, BackendConfig>,
    /// The services with a section of their own.
    pub services: BTreeMap<Name, ServiceConfig>,
    /// The section for all others.
    pub defaults: Option<DefaultsConfig>,
    /// How long values are kept.
    pub cache: CacheConfig,
    /// What is kept for a start without a network, if anything is.
    pub offline: Option<OfflineConfig>,
    /// Where accesses are written down.
    pub audit: AuditConfig,
    /// Where changes are heard beside the backends themselves.
    pub signals: Option<Broker>,
}

impl Config {
    /// Reads a config file that nobody but root and this process's user can change.
    ///
    /// # Errors
    /// [`ConfigErrors`]: why the file cannot be trusted, or every mistake in it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let opened = open::open(path)?;
        let config = Self::parse(&opened.text, &opened.path)?;
        let named = std::path::absolute(path).unwrap_or_else(|_| opened.path.clone());
        Ok(Self { named, ..config })
    }

    /// Reads a config from its text. `file` is what errors call it.
    ///
    /// # Errors
    /// [`ConfigErrors`]: every mistake in it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        Self::parse_with(text, file, &accounts::System)
    }

    /// [`Config::parse`], with other accounts than the machine's.
    ///
    /// # Errors
    /// [`ConfigErrors`]: every mistake in it.
    pub fn parse_with(
        text: &str,
        file: &Path,
        accounts: &dyn Accounts,
    ) -> Result<Self, ConfigErrors> {
        check::config(text, file, accounts)
    }

    /// The embedded stores.
    pub fn stores(&self) -> impl Iterator<Item = (&Name, &StoreConfig)> {
        self.backends
            .iter()
            .filter_map(|(name, backend)| match backend {
                BackendConfig::Store(store) => Some((name, store)),
                BackendConfig::Vault(_) => None,
            })
    }

    /// Where the config stands if nobody says otherwise: `$SECRETFS_CONFIG`, else `/etc/secretfs/config.toml` for root,
    /// else `$XDG_CONFIG_HOME/secretfs/config.toml`.
    ///
    /// # Errors
    /// [`ConfigErrors`] for a user without a home.
    pub fn default_path() -> Result<PathBuf, ConfigErrors> {
        default_path(Uid::effective(), |name| std::env::var_os(name))
    }
}

fn default_path(
    user: Uid,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, ConfigErrors> {
    if let Some(path) = env("SECRETFS_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    if user == Uid::ROOT {
        return Ok(PathBuf::from("/etc/secretfs/config.toml"));
    }
    Ok(user_folder(&env, "XDG_CONFIG_HOME", ".config")?.join("config.toml"))
}

/// A user's own folder: `$<variable>/secretfs`, else `$HOME/<below>/secretfs`.
fn user_folder(
    env: &impl Fn(&str) -> Option<OsString>,
    variable: &str,
    below: &str,
) -> Result<PathBuf, ConfigErrors> {
    let absolute = |name| {
        env(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute(variable)
        .or_else(|| absolute("HOME").map(|home| home.join(below)))
        .map(|folder| folder.join("secretfs"))
        .ok_or_else(|| {
            let problem = format!(
                "neither ${variable} nor $HOME is an absolute path: set $HOME, or name the config with --config FILE"
            );
            ConfigErrors::one(Path::new("config.toml"), problem)
        })
}

/// Everything that is wrong with a config: at least one thing. It prints one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    fn one(file: &Path, problem: impl Into<String>) -> Self {
        Self(vec![ConfigError {
            file: file.to_owned(),
            line: None,
            key: None,
            problem: problem.into(),
        }])
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{error}")?;
        }
        Ok(())
    }
}

/// One mistake: where, what, and what to do about it. It never quotes a value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    /// The config.
    pub file: PathBuf,
    /// The line, from 1, where it is one line's mistake.
    pub line: Option<usize>,
    /// The dotted key, as in `services.billing.allow[0].uid`, where it is one key's mistake.
    pub key: Option<String>,
    /// What is wrong and what to do about it.
    pub problem: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    /// One line, whatever the file is called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.file.display().to_string();
        if let Some(number) = self.line {
            line.push_str(&format!(":{number}"));
        }
        if let Some(key) = &self.key {
            line.push_str(&format!(": {key}"));
        }
        line.push_str(&format!(": {}", self.problem));
        for c in line.chars() {
            match c {
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A user account that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: Uid,
    /// Its first group.
    pub gid: Gid,
}

/// One backend. A variant for each `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendConfig {
    /// `type = "store"`: the embedded store.
    Store(StoreConfig),
    /// `type = "vault"`: HashiCorp Vault or OpenBao.
    Vault(vault::Settings),
}

/// The embedded store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The index; the values stand in the folder of the same name that ends in `.d`.
    pub path: PathBuf,
    /// The age identity. Left out, it must come as the systemd credential `secretfs-identity`, which wins in any case.
    pub identity: Option<PathBuf>,
}

/// Where the secrets of a whole service come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The backend.
    pub backend: Name,
    /// The folder in it, or the record.
    pub folder: String,
    /// What is in it.
    pub shape: Shape,
}

/// What the secrets of a source are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Values of a folder.
    Secrets,
    /// Records of a folder: shown raw where `value` is the only field, else as JSON.
    Records,
    /// Fields of one record.
    Fields,
}

impl Source {
    /// The reference of one of its secrets.
    #[must_use]
    pub fn reference(&self, name: &Name) -> Reference {
        let folder = self.folder.trim_end_matches('/');
        let below = || Reference::new(self.backend.clone(), format!("{folder}/{name}"));
        match self.shape {
            Shape::Secrets => below(),
            Shape::Records => Reference {
                field: Some(WHOLE.to_owned()),
                ..below()
            },
            Shape::Fields => Reference {
                field: Some(name.to_string()),
                ..Reference::new(self.backend.clone(), folder)
            },
        }
    }
}

/// One `[services.X]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Where its secrets come from; without it there are only those that are bound one by one.
    pub source: Option<Source>,
    /// Who may read.
    pub allow: Vec<RuleSpec>,
    /// Who may change, beside [`Config::manage`].
    pub manage: Vec<RuleSpec>,
    /// Secrets that are bound or described one by one.
    pub secrets: BTreeMap<Name, SecretConfig>,
}

impl ServiceConfig {
    /// Has it ask the backend `of` as `own`, which is signed in to for it alone.
    fn sign_in(&mut self, of: &Name, own: &Name) {
        let sources = self.source.iter_mut().map(|source| &mut source.backend);
        let bound = self
            .secrets
            .values_mut()
            .flat_map(|secret| &mut secret.from);
        let bound = bound.map(|reference| &mut reference.backend);
        for backend in sources.chain(bound).filter(|backend| *backend == of) {
            *backend = own.clone();
        }
    }
}

/// `[defaults]`: each folder of a backend is a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultsConfig {
    /// The backend.
    pub source: Name,
    /// Who may read.
    pub allow: Vec<RuleSpec>,
}

/// One secret of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretConfig {
    /// Where it is found, in this order; empty: in the service's source.
    pub from: Vec<Reference>,
    /// The permission bits that `stat` shows.
    pub mode: u16,
    /// The owner that `stat` shows.
    pub owner: IdSpec,
    /// The group that `stat` shows.
    pub group: IdSpec,
    /// How it is read.
    pub reads: Reads,
    /// For people.
    pub description: Option<String>,
    /// Instead of [`CacheConfig::stale`].
    pub stale: Option<Duration>,
    /// Rules that narrow those of the service.
    pub allow: Option<Vec<RuleSpec>>,
}

impl Default for SecretConfig {
    fn default() -> Self {
        Self {
            from: Vec::new(),
            mode: 0o440,
            owner: IdSpec::Range(0..=0),
            group: IdSpec::Range(0..=0),
            reads: Reads::Checked,
            description: None,
            stale: None,
            allow: None,
        }
    }
}

/// Who is asked at a read.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Reads {
    /// The reader is checked at each read; nothing is kept in the page cache.
    #[default]
    Checked,
    /// Only the open is checked; the page cache answers the reads.
    Cached,
}

/// A rule as it is written, with the names of users and groups not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Any of these users.
    pub uid: Option<Vec<IdSpec>>,
    /// Any of the users that are delegated to any of these accounts.
    pub uid_map: Option<Vec<IdSpec>>,
    /// Any of these groups.
    pub gid: Option<Vec<IdSpec>>,
    /// In this unit.
    pub unit: Option<String>,
    /// In the container with this id.
    pub container: Option<String>,
}

/// A user or a group, or several that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdSpec {
    /// An account's name.
    Name(String),
    /// Numbers, also those without an account.
    Range(RangeInclusive<u32>),
}

/// `[cache]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// How long a value is served without asking again.
    pub ttl: Duration,
    /// How long past that while the backend cannot be reached.
    pub stale: Duration,
    /// The deadline of a request that waits for a backend.
    pub timeout: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            stale: Duration::from_secs(600),
            timeout: Duration::from_secs(5),
        }
    }
}

/// `[offline]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineConfig {
    /// The file, sealed.
    pub path: PathBuf,
    /// How long past its TTL a value is served while the backend cannot be reached, also after the machine was off; where a
    /// secret has no `stale` of its own.
    pub max_age: Duration,
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// Where lines go.
    pub target: AuditTarget,
    /// What following opens get when a line cannot be written.
    pub on_failure: OnFailure,
    /// The size in bytes at which the file is rotated.
    pub max_size: u64,
    /// How many rotated files are kept.
    pub keep: usize,
    /// Look comm, unit and container up for each open (`detail = "full"`).
    pub full_detail: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            target: AuditTarget::File(PathBuf::from("/var/log/secretfs/audit.jsonl")),
            on_failure: OnFailure::Deny,
            max_size: 100 << 20,
            keep: 10,
            full_detail: false,
        }
    }
}

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTarget {
    /// To a file of JSON lines.
    File(PathBuf),
    /// To systemd's journal.
    Journal,
}

/// What opens get while the audit log cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are denied.
    #[default]
    Deny,
    /// They go on, and the log of the daemon warns.
    Warn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_path_follows_environment_and_user() {
        let path = |user, env: &[(&str, &str)]| {
            let find = |name: &str| {
                env.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, v)| v.into())
            };
            default_path(Uid(user), find)
                .map(|path| path.display().to_string())
                .ok()
        };
        type Row = (
            u32,
            &'static [(&'static str, &'static str)],
            Option<&'static str>,
        );
        let table: [Row; 6] = [
            (0, &[("HOME", "/root")], Some("/etc/secretfs/config.toml")),
            (
                7,
                &[("HOME", "/h")],
                Some("/h/.config/secretfs/config.toml"),
            ),
            (
                7,
                &[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")],
                Some("/x/secretfs/config.toml"),
            ),
            (
                7,
                &[("HOME", "/h"), ("XDG_CONFIG_HOME", "x")],
                Some("/h/.config/secretfs/config.toml"),
            ),
            (0, &[("SECRETFS_CONFIG", "c.toml")], Some("c.toml")),
            (7, &[], None),
        ];
        for (user, env, expected) in table {
            assert_eq!(path(user, env).as_deref(), expected, "{env:?}");
        }
    }

    #[test]
    fn a_file_name_with_a_newline_makes_no_second_line() {
        let error = ConfigErrors::one(Path::new("a\nb"), "x");
        assert_eq!(error.to_string(), "a\\nb: x");
    }
}
