//! The config: rich types, every one of them checked.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::backend::Reference;
use crate::secret::Name;
use crate::sys::{Gid, Uid};

/// The whole config, checked: whoever holds one need not check anything again.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// Where the secrets appear.
    pub mount: PathBuf,
    /// Where the control socket and the daemon's lock stand.
    pub runtime: PathBuf,
    /// What must outlive a restart; never a value.
    pub state: PathBuf,
    /// Whom the server becomes when root starts it.
    pub user: Option<Account>,
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
    /// Where accesses are written down.
    pub audit: AuditConfig,
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
    /// The folder in it.
    pub folder: String,
}

impl Source {
    /// The reference of one of its secrets.
    #[must_use]
    pub fn reference(&self, name: &Name) -> Reference {
        let folder = self.folder.trim_end_matches('/');
        Reference::new(self.backend.clone(), format!("{folder}/{name}"))
    }
}

/// One `[services.X]`.
#[derive(Debug, Clone, Default)]
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

/// `[defaults]`: each folder of a backend is a service.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
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
