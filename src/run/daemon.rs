//! The running server as commands see it: what can be reloaded, ended and shown.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::{Wired, revocations, times};
use crate::access::Access;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::accounts::System;
use crate::control::handler::Daemon;
use crate::fs::{Catalogue, Tree};
use crate::keeper;

/// The running server.
#[derive(Debug)]
pub(super) struct Running {
    access: Arc<Access>,
    cache: Arc<Cache>,
    tree: Arc<Tree>,
    /// Held while a reload is under way, so that two never mix.
    config: Mutex<Config>,
    unknown: Mutex<Vec<String>>,
    ending: Mutex<UnixStream>,
    state: PathBuf,
    /// Held while revocations are written, so that what is written last is what is in force.
    keeping: Mutex<()>,
    since: Timestamp,
}

impl Running {
    pub(super) fn new(config: Config, wired: &Wired, ending: UnixStream, clock: &Clock) -> Self {
        Self {
            access: Arc::clone(&wired.access),
            cache: Arc::clone(&wired.cache),
            tree: Arc::clone(&wired.tree),
            state: config.state.clone(),
            keeping: Mutex::default(),
            config: Mutex::new(config),
            unknown: Mutex::new(wired.unknown.clone()),
            ending: Mutex::new(ending),
            since: clock.timestamp(),
        }
    }

    pub(super) fn reload_in_background(self: &Arc<Self>) {
        let running = Arc::clone(self);
        tokio::task::spawn_blocking(move || match running.reload() {
            Ok(_) => tracing::info!("the config was read again"),
            Err(error) => tracing::error!("the config was read again and is not used: {error}"),
        });
    }

    /// Looks accounts up again that were not known, off the threads that serve.
    pub(super) fn look_up_accounts_in_background(self: &Arc<Self>) {
        if self.unknown().is_empty() {
            return;
        }
        let running = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let config = running
                .config
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            running.apply(&config);
        });
    }

    fn apply(&self, config: &Config) {
        // Both are made before either is put in force: looking accounts up may take long, and meanwhile the new rules
        // would be those of the old places.
        let (policy, unknown) = config.policy(&System);
        let catalogue = Catalogue::new(config, &System);
        self.access.replace_policy(policy);
        self.tree.replace_catalogue(catalogue);
        self.cache.set_times(times(config));
        let unknown = unknown.iter().map(ToString::to_string).collect();
        *self.unknown.lock().unwrap_or_else(PoisonError::into_inner) = unknown;
    }
}

impl Daemon for Running {
    fn reload(&self) -> Result<Vec<String>, String> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Config::load(&config.file).map_err(|errors| errors.to_string())?;
        let fixed = fixed(&config, &new);
        if !fixed.is_empty() {
            let file = config.file.display();
            return Err(format!(
                "{file}: {} cannot change while the daemon runs: restart it",
                fixed.join(", ")
            ));
        }
        self.apply(&new);
        *config = new;
        Ok(self.unknown())
    }

    fn keep_revocations(&self) -> Result<(), String> {
        let _turn = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        revocations::write(&self.state, &self.access.revocations())
            .map_err(|error| error.to_string())
    }

    fn stop(&self) {
        let mut keeper = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = keeper.write_all(&keeper::END) {
            tracing::error!(%error, "the keeper does not hear");
        }
    }

    fn unknown(&self) -> Vec<String> {
        self.unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn mount(&self) -> String {
        self.config
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .mount
            .display()
            .to_string()
    }

    fn since(&self) -> Timestamp {
        self.since
    }
}

/// What a reload cannot change and yet would.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("mount", old.mount != new.mount),
        ("runtime", old.runtime != new.runtime),
        ("state", old.state != new.state),
        ("user", old.user != new.user),
        ("[backends]", old.backends != new.backends),
        ("[audit]", old.audit != new.audit),
    ];
    changed
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
}
