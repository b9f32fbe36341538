//! The running server as commands see it: what can be reloaded, ended and shown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::holder::Holder;
use super::offline::Offline;
use super::watch::Print;
use super::{ACCOUNTS, Wired, revocations, times};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::accounts::System;
use crate::config::changes::changes;
use crate::config::subuid;
use crate::control::answers::{OfflineStatus, Reloaded};
use crate::control::handler::Daemon;
use crate::fs::{Catalogue, Tree};
use crate::secret::Name;
use crate::signal::{BrokerReport, Report, Signals};

/// How long a reload waits until open handles are checked again. New opens and reads follow the new rules in any case.
const ENFORCED: Duration = Duration::from_secs(2);

/// Where `useradd` and its like leave their traces.
const ACCOUNT_FILES: [&str; 3] = ["/etc/passwd", "/etc/group", subuid::FILE];

/// The running server.
#[derive(Debug)]
pub(super) struct Running {
    cache: Arc<Cache>,
    tree: Arc<Tree>,
    signals: Signals,
    /// Held while a config or accounts are read and put in force, so that two never mix.
    turn: Mutex<Turn>,
    config: Mutex<Arc<Config>>,
    unknown: Mutex<Vec<String>>,
    /// Whether the config asks for its file to be watched.
    watched: watch::Sender<bool>,
    holder: Arc<Holder>,
    /// Held while another release is asked whether it can take over.
    upgrading: Mutex<()>,
    state: PathBuf,
    /// What is kept for a start without a network.
    offline: Option<Arc<Offline>>,
    /// Held while revocations are written, so that what is written last is what is in force.
    keeping: Mutex<()>,
    runtime: Handle,
    clock: Clock,
    since: Timestamp,
}

/// What was last read, and when.
#[derive(Debug)]
struct Turn {
    /// The config file, whether it could be used or not.
    file: Print,
    /// The files of accounts.
    accounts: [Print; 3],
    /// When accounts were last looked up.
    looked_up: Instant,
}

impl Running {
    /// `file` is what the config file was like before `config` was read from it. `runtime` is where what takes a while is
    /// waited for.
    pub(super) fn new(
        config: Config,
        file: Print,
        wired: &Wired,
        signals: Signals,
        offline: Option<Arc<Offline>>,
        (holder, runtime): (Arc<Holder>, Handle),
        clock: &Clock,
    ) -> Self {
        Self {
            cache: Arc::clone(&wired.cache),
            tree: Arc::clone(&wired.tree),
            signals,
            state: config.state.clone(),
            offline,
            keeping: Mutex::default(),
            turn: Mutex::new(Turn {
                file,
                accounts: account_files(),
                looked_up: clock.now(),
            }),
            watched: watch::Sender::new(config.watch),
            config: Mutex::new(Arc::new(config)),
            unknown: Mutex::new(wired.unknown.clone()),
            holder,
            upgrading: Mutex::default(),
            runtime,
            clock: clock.clone(),
            since: clock.timestamp(),
        }
    }

    /// The config that is in force.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the config file is.
    pub(super) fn file(&self) -> PathBuf {
        self.config().named.clone()
    }

    /// Whether the config file is to be watched, now and from now on.
    pub(super) fn watched(&self) -> watch::Receiver<bool> {
        self.watched.subscribe()
    }

    pub(super) fn reload_in_background(self: &Arc<Self>) {
        let running = Arc::clone(self);
        tokio::task::spawn_blocking(move || report(running.read_again(running.turn())));
    }

    /// Reads the config again if its file is not what it was when it was last read.
    pub(super) async fn look(self: &Arc<Self>) {
        let running = Arc::clone(self);
        let look = move || {
            let turn = running.turn();
            if turn.file != Print::of(&running.file()) {
                report(running.read_again(turn));
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(look).await {
            tracing::error!(%error, "the config file was not looked at");
        }
    }

    /// Looks accounts up again that were not known, off the threads that serve: at once when the machine's own have
    /// changed, and from time to time because those of a directory service leave no trace here.
    pub(super) fn look_up_accounts_in_background(self: &Arc<Self>) {
        if self.unknown().is_empty() {
            return;
        }
        let running = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            // A look-up that hangs must not gather others behind it, and a reload looks accounts up itself.
            let mut turn = match running.turn.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let (files, now) = (account_files(), running.clock.now());
            if files == turn.accounts && now.saturating_duration_since(turn.looked_up) < ACCOUNTS {
                return;
            }
            (turn.accounts, turn.looked_up) = (files, now);
            let config = running.config();
            let before = running.unknown();
            if running.apply(&config, |unknown| *unknown != before) {
                let unknown = running.unknown();
                tracing::info!(
                    still_unknown = unknown.len(),
                    "users or groups became known"
                );
                drop(turn);
                running.enforce();
            }
        });
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the config again: all or nothing. Says each mistake in it.
    fn read_again(&self, mut turn: MutexGuard<'_, Turn>) -> Result<Reloaded, Vec<String>> {
        let old = self.config();
        // Before it is read: what changes meanwhile is another change.
        turn.file = Print::of(&old.named);
        let new = Config::load(&old.named)
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let fixed = fixed(&old, &new);
        if !fixed.is_empty() {
            let (file, fixed) = (old.file.display(), fixed.join(", "));
            return Err(vec![format!(
                "{file}: {fixed} cannot change while the daemon runs: restart it"
            )]);
        }
        (turn.accounts, turn.looked_up) = (account_files(), self.clock.now());
        let changes = changes(&old, &new);
        self.apply(&new, |_| true);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        let reloaded = Reloaded {
            changes,
            unknown: self.unknown(),
        };
        let changes = match &reloaded.changes[..] {
            [] => "nothing has changed in it".to_owned(),
            changes => changes.join("; "),
        };
        tracing::info!("the config was read again: {changes}");
        drop(turn);
        self.enforce();
        // What the config does not show any more goes; a failure is said by whoever meets it.
        if let Some(offline) = &self.offline {
            drop(offline.write());
        }
        Ok(reloaded)
    }

    /// Puts a config in force, if what is not known of its accounts is as `wanted`. In a turn, so that two never mix.
    fn apply(&self, config: &Config, wanted: impl Fn(&Vec<String>) -> bool) -> bool {
        // Both are made before either is put in force: looking accounts up may take long, and meanwhile the new rules
        // would be those of the old places.
        let (policy, unknown) = config.policy(&System);
        let unknown = unknown.iter().map(ToString::to_string).collect();
        if !wanted(&unknown) {
            return false;
        }
        let catalogue = Catalogue::new(config, &System);
        self.tree.put_in_force(policy, catalogue);
        self.cache.set_times(times(config));
        *self.unknown.lock().unwrap_or_else(PoisonError::into_inner) = unknown;
        self.watched.send_if_modified(|watched| {
            let before = std::mem::replace(watched, config.watch);
            before != config.watch
        });
        true
    }

    /// Has every open handle checked again, and waits for it. Not on a thread that serves.
    fn enforce(&self) {
        let enforced = self.tree.enforce();
        let enforced = async { tokio::time::timeout(ENFORCED, enforced).await };
        if self.runtime.block_on(enforced).is_err() {
            tracing::warn!("open files are still being checked by the new rules");
        }
    }
}

/// Says of a reload that nobody waits for how it ended. What it changed is said in any case.
fn report(reloaded: Result<Reloaded, Vec<String>>) {
    for mistake in reloaded.err().into_iter().flatten() {
        tracing::error!("the config was read again and is not used: {mistake}");
    }
}

fn account_files() -> [Print; 3] {
    ACCOUNT_FILES.map(|file| Print::of(Path::new(file)))
}

impl Daemon for Running {
    fn reload(&self) -> Result<Reloaded, String> {
        self.read_again(self.turn())
            .map_err(|mistakes| mistakes.join("\n"))
    }

    fn keep_revocations(&self) -> Result<(), String> {
        let _turn = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        revocations::write(&self.state, &self.tree.access().revocations())
            .map_err(|error| error.to_string())
    }

    fn renew_offline(&self) -> Result<(), String> {
        self.offline
            .as_ref()
            .map_or(Ok(()), |offline| offline.renew())
    }

    fn upgrade(&self) -> Result<(), String> {
        let _turn = self
            .upgrading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.holder.upgrade()
    }

    fn stop(&self) {
        if let Err(error) = self.holder.end() {
            tracing::error!(%error, "the keeper does not hear");
        }
    }

    fn unknown(&self) -> Vec<String> {
        self.unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn signals(&self, backend: &Name) -> Option<Report> {
        self.signals.report(backend)
    }

    fn offline(&self) -> Option<OfflineStatus> {
        self.offline.as_ref().map(|offline| offline.status())
    }

    fn broker(&self) -> Option<BrokerReport> {
        self.signals.broker()
    }

    fn mount(&self) -> String {
        self.config().mount.display().to_string()
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
        (
            "[backends] or a service's `auth`",
            old.backends != new.backends,
        ),
        ("[audit]", old.audit != new.audit),
        ("[offline]", old.offline != new.offline),
        ("[signals]", old.signals != new.signals),
    ];
    changed
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
}
