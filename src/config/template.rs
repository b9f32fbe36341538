//! What `init` writes: where things stand on a machine, and a first config that says so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml_edit::Value;

use crate::config::ConfigErrors;
use crate::sys::Uid;

/// Where everything stands. All paths are absolute and UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The config.
    pub config: PathBuf,
    /// The age identity that opens the store.
    pub identity: PathBuf,
    /// The store's index; the values stand in `store.d` beside it.
    pub store: PathBuf,
    /// The audit log.
    pub audit: PathBuf,
    /// The control socket's folder.
    pub runtime: PathBuf,
    /// What must outlive a restart.
    pub state: PathBuf,
    /// The mountpoint.
    pub mount: PathBuf,
}

impl Places {
    /// Everything in one folder, for trying things out. `folder` is canonical.
    ///
    /// # Errors
    /// [`ConfigErrors`] for a path that is not absolute or not UTF-8, which no config can name.
    pub fn below(folder: &Path) -> Result<Self, ConfigErrors> {
        let at = |name: &str| folder.join(name);
        Self {
            config: at("config.toml"),
            identity: at("identity.txt"),
            store: at("store.age"),
            audit: at("audit.jsonl"),
            runtime: at("run"),
            state: at("state"),
            mount: at("secrets"),
        }
        .checked()
    }

    /// Where the other commands look by default: the system's places for root, the user's own for anybody else.
    ///
    /// # Errors
    /// [`ConfigErrors`] for a user without a home, and for a home that is not absolute or not UTF-8.
    pub fn standard() -> Result<Self, ConfigErrors> {
        standard(Uid::effective(), |name| std::env::var_os(name))
    }

    /// The folder of the values: `store.d`.
    #[must_use]
    pub fn values(&self) -> PathBuf {
        self.store.with_extension("d")
    }

    fn checked(self) -> Result<Self, ConfigErrors> {
        for path in [&self.config, &self.store] {
            if !path.is_absolute() || path.to_str().is_none() {
                let problem =
                    "a config can only name absolute paths in UTF-8: choose another folder";
                return Err(ConfigErrors::one(path, problem));
            }
        }
        Ok(self)
    }
}

fn standard(user: Uid, env: impl Fn(&str) -> Option<OsString>) -> Result<Places, ConfigErrors> {
    if user == Uid::ROOT {
        let etc = Path::new("/etc/secretfs");
        let var = Path::new("/var/lib/secretfs");
        return Ok(Places {
            config: etc.join("config.toml"),
            identity: etc.join("identity.txt"),
            store: var.join("store.age"),
            audit: PathBuf::from("/var/log/secretfs/audit.jsonl"),
            runtime: PathBuf::from("/run/secretfs"),
            state: var.to_owned(),
            mount: PathBuf::from("/secrets"),
        });
    }
    let config = super::user_folder(&env, "XDG_CONFIG_HOME", ".config")?;
    let data = super::user_folder(&env, "XDG_DATA_HOME", ".local/share")?;
    Places {
        config: config.join("config.toml"),
        identity: config.join("identity.txt"),
        store: data.join("store.age"),
        audit: data.join("audit.jsonl"),
        // Not $XDG_RUNTIME_DIR: it goes when the last session ends, the daemon need not.
        runtime: data.join("run"),
        state: data.join("state"),
        mount: data.join("secrets"),
    }
    .checked()
}

/// A first config: an encrypted store, and `reader` may read what is in it.
///
/// `user` is the account that the server becomes, which must exist. A blank line ends each section.
#[must_use]
pub fn text(places: &Places, user: Option<&str>, reader: Uid) -> String {
    let quoted = |path: &Path| quote(&path.to_string_lossy());
    let user = user.map(|name| {
        let name = quote(name);
        format!("# Whom the daemon becomes once it has mounted.\nuser = {name}\n")
    });
    format!(
        r#"# secretfs: which secrets appear as files, and who may read them.
# `secretfs doctor` checks this file; `secretfs reload` lets a running daemon read it again.

# Where the secrets appear, as SERVICE/NAME.
mount = {mount}
# The daemon's control socket and its lock.
runtime = {runtime}
# What must outlive a restart; never a value.
state = {state}
{user}
# Where values come from: here, a store on this machine, encrypted to the identity.
# Whoever has the identity and the store has the secrets; without the identity they are lost. Keep a copy elsewhere.
[backends.local]
type = "store"
path = {store}
identity = {{ file = {identity} }}

# Each folder of the store is a service, with these rules, until it has a section of its own as below.
[defaults]
source = "local"
allow = [{{ uid = {reader} }}]

# Who opened what, when, and which rule allowed or denied it. It never holds a value.
[audit]
path = {audit}

# A service with rules of its own (`secretfs allow` writes such a section):
# [services.billing]
# source = "local:billing"
# allow = [{{ uid = "billing" }}, {{ gid = "ops", unit = "debug-shell.service" }}]

"#,
        mount = quoted(&places.mount),
        runtime = quoted(&places.runtime),
        state = quoted(&places.state),
        user = user.unwrap_or_default(),
        store = quoted(&places.store),
        identity = quoted(&places.identity),
        audit = quoted(&places.audit),
    )
}

fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Account, AuditTarget, BackendConfig, Config, IdSpec, StoreConfig, accounts::Listed,
    };
    use crate::sys::Gid;

    fn parse(text: &str) -> Config {
        let accounts = Listed {
            users: vec![Account {
                name: "secretfs".to_owned(),
                uid: Uid(990),
                gid: Gid(990),
            }],
            ..Listed::default()
        };
        Config::parse_with(text, Path::new("/c.toml"), &accounts).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_whatever_the_folder_is_called() {
        for folder in [
            "/srv/x",
            "/srv/two words",
            "/srv/it's \"quoted\"",
            "/srv/back\\slash",
            "/srv/größe/秘密",
            "/srv/#hash = 1]",
            "/srv/tab\tand\nnewline",
            "/srv/'''\"\"\"",
        ] {
            let places = Places::below(Path::new(folder)).unwrap();
            let config = parse(&text(&places, Some("secretfs"), Uid(1000)));
            assert_eq!(config.mount, places.mount);
            assert_eq!(config.runtime, places.runtime);
            assert_eq!(config.state, places.state);
            assert_eq!(config.audit.target, AuditTarget::File(places.audit));
            let store = StoreConfig {
                path: places.store,
                identity: Some(places.identity),
            };
            assert_eq!(config.backends["local"], BackendConfig::Store(store));
            assert_eq!(config.user.unwrap().uid, Uid(990));
            let defaults = config.defaults.unwrap();
            assert_eq!(
                defaults.allow[0].uid,
                Some(vec![IdSpec::Range(1000..=1000)])
            );
        }
    }

    #[test]
    fn a_blank_line_ends_each_section_and_none_stands_inside_of_one() {
        let places = Places::below(Path::new("/x")).unwrap();
        for user in [None, Some("secretfs")] {
            let text = text(&places, user, Uid(0));
            assert_eq!(parse(&text).user.is_some(), user.is_some());
            assert!(text.ends_with("\n\n") && !text.contains("\n\n\n"), "{text}");
            let paragraphs: Vec<_> = text.split_terminator("\n\n").collect();
            assert_eq!(paragraphs.len(), 6, "{text}");
            for section in ["[backends.local]", "[defaults]", "[audit]"] {
                let found = paragraphs
                    .iter()
                    .filter(|paragraph| paragraph.contains(section));
                assert_eq!(found.count(), 1, "{section}");
            }
        }
    }

    #[test]
    fn everybody_has_places_of_their_own() {
        let env = |name: &str| (name == "HOME").then(|| OsString::from("/home/alice"));
        let alice = standard(Uid(1000), env).unwrap();
        assert_eq!(
            alice.config,
            Path::new("/home/alice/.config/secretfs/config.toml")
        );
        assert_eq!(
            alice.values(),
            Path::new("/home/alice/.local/share/secretfs/store.d")
        );
        let root = standard(Uid(0), env).unwrap();
        assert_eq!(root.config, Path::new("/etc/secretfs/config.toml"));
        assert_eq!(root.values(), Path::new("/var/lib/secretfs/store.d"));
        assert!(standard(Uid(1000), |_| None).is_err());
    }

    #[test]
    fn a_folder_that_no_config_can_name_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        assert!(Places::below(Path::new("relative")).is_err());
        let latin1 = PathBuf::from(OsString::from_vec(b"/srv/gr\xf6sse".to_vec()));
        assert!(Places::below(&latin1).is_err());
    }
}
