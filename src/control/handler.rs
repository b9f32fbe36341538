//! What every command means: once, for the daemon and for the command line without one.
//!
//! In the daemon the policy decides: reading needs the read rules, changing and steering the `manage` rules. In a
//! command that opened the store itself the identity is authority enough. Either way what was read or changed is in the
//! audit log before it is acknowledged, and every following open sees what was changed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::access::{Denied, Mandate};
use crate::audit::{Audit, AuditError, Outcome};
use crate::backend::store::{Store, StoreError};
use crate::backend::{BackendError, Reference, Version, Writer};
use crate::cache::Cache;
use crate::caller::{Caller, Lookup};
use crate::clock::Clock;
use crate::config::AuditTarget;
use crate::control::answers::{OfflineStatus, Reloaded};
use crate::control::protocol::Request;
use crate::control::{Answer, Body, Commands, Event, Exchange, Failure, Kind};
use crate::fs::{Change, Tree};
use crate::policy::Reason;
use crate::secret::{Name, SecretBytes, SecretPath};
use crate::signal::{BrokerReport, Report};

/// How long a server may take over a change.
const PATIENCE: Duration = Duration::from_secs(30);

mod copies;
mod following;
mod import;
mod reports;
mod revoke;
#[cfg(test)]
mod tests;
mod values;

use following::Lasting;

/// What commands work on.
#[derive(Debug)]
pub struct Parts {
    /// The tree, with who decides.
    pub tree: Arc<Tree>,
    /// Its cache.
    pub cache: Arc<Cache>,
    /// The backends that can be written to.
    pub stores: BTreeMap<Name, Store>,
    /// The log.
    pub audit: Audit,
    /// Where it stands.
    pub audit_target: AuditTarget,
    /// The key of its chain.
    pub audit_key: SecretBytes,
    /// Where processes are looked up for `explain --pid`.
    pub lookup: Arc<dyn Lookup>,
    /// The daemon that this is part of, if it is one.
    pub daemon: Option<Arc<dyn Daemon>>,
    /// The time.
    pub clock: Clock,
}

/// What of the daemon can be steered and shown. The methods may block.
pub trait Daemon: Send + Sync + fmt::Debug {
    /// Reads the config again: all or nothing. When it returns, open handles are checked again, too.
    ///
    /// # Errors
    /// What is wrong with the config.
    fn reload(&self) -> Result<Reloaded, String>;

    /// Writes the revocations that are in force to the state folder, so that they outlive a restart.
    ///
    /// # Errors
    /// Why they will not.
    fn keep_revocations(&self) -> Result<(), String>;

    /// Has nothing of what is revoked in what is kept for a start without a network, and has it sealed as the store is.
    ///
    /// # Errors
    /// Why what was there before may be there still.
    fn renew_offline(&self) -> Result<(), String>;

    /// Has the program that stands where this one was started from take over. The server does not outlive that, so this returns
    /// only if it fails.
    ///
    /// # Errors
    /// Why everything goes on as before.
    fn upgrade(&self) -> Result<(), String>;

    /// Begins the end: of the server, the keeper and the mount. Returns at once.
    fn stop(&self);

    /// Users and groups in the config that are not known.
    fn unknown(&self) -> Vec<String>;

    /// How changes at this backend are noticed, unless it announces them.
    fn signals(&self, backend: &Name) -> Option<Report>;

    /// What is kept for a start without a network, if anything is.
    fn offline(&self) -> Option<OfflineStatus>;

    /// How it goes with the broker, if there is one.
    fn broker(&self) -> Option<BrokerReport>;

    /// Where the secrets appear.
    fn mount(&self) -> String;

    /// Since when it runs.
    fn since(&self) -> Timestamp;
}

/// Carries commands out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handler(Arc<Parts>);

impl Handler {
    /// A handler over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The end of a command without a daemon: signs out of every server.
    pub async fn end(&self) {
        self.0.cache.leave().await;
    }
}

impl Commands for Handler {
    fn handle(
        &self,
        caller: Caller,
        request: Request,
        exchange: Exchange,
    ) -> BoxFuture<'_, Result<Answer, Failure>> {
        let lasting = Lasting {
            parts: Arc::clone(&self.0),
            caller,
            events: exchange.events,
        };
        let body = exchange.body;
        Box::pin(async move {
            if let Request::Watch {} = request {
                return lasting.watch().await;
            }
            if let Request::Wait { path, after } = request {
                return lasting.wait(path, after).await;
            }
            // Disks, the audit log and accounts block; what is asynchronous is waited for from there.
            lasting.blocking(move |job| job.run(request, body)).await
        })
    }
}

/// One command of one caller.
struct Job<'a> {
    parts: &'a Parts,
    caller: Caller,
    runtime: runtime::Handle,
    events: mpsc::Sender<Event>,
}

impl Job<'_> {
    fn run(&self, request: Request, body: Body) -> Result<Answer, Failure> {
        match (request, body) {
            (Request::Put { path }, Body::Value(value)) => self.put(&path, &value),
            (Request::Import { service }, Body::Value(batch)) => self.import(&service, &batch),
            (Request::Get { path, version }, _) => self.get(&path, version),
            (Request::List { service }, _) => self.list(service.as_ref()),
            (Request::History { path }, _) => self.history(&path),
            (Request::Remove { path, version }, _) => self.remove(&path, version),
            (Request::Rollback { path, to }, _) => self.roll_back(&path, &to),
            (Request::Export { backend }, _) => self.export(backend.as_ref()),
            (Request::Restore { backend, replace }, Body::Stream(copy)) => {
                self.restore(backend.as_ref(), replace, copy)
            }
            (
                Request::Rekey {
                    backend,
                    recipients,
                },
                Body::Value(identity),
            ) => self.rekey(backend.as_ref(), &recipients, &identity),
            (Request::Status {}, _) => self.status(),
            (Request::Explain { path, subject }, _) => self.explain(&path, subject),
            (Request::Reload {}, _) => self.reload(),
            (Request::Revoke { target, seconds }, _) => self.revoke(target, seconds),
            (Request::Unrevoke { target }, _) => self.unrevoke(&target),
            (Request::Unmount {}, _) => self.unmount(),
            (Request::Upgrade {}, _) => self.upgrade(),
            (Request::Doctor {}, _) => self.doctor(),
            (Request::Audit(query), _) => self.audit(query),
            // Handled before it comes to a thread.
            (Request::Watch {} | Request::Wait { .. }, _) => {
                Err(Failure::failed("this command takes no thread"))
            }
            (
                Request::Put { .. }
                | Request::Import { .. }
                | Request::Restore { .. }
                | Request::Rekey { .. },
                _,
            ) => Err(Failure::usage(
                "the request came without what belongs to it",
            )),
        }
    }

    fn reload(&self) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "reload", None)?;
        let daemon = self.daemon()?;
        match daemon.reload() {
            Ok(reloaded) => {
                settle(mandate, Outcome::Allowed, None)?;
                answer(&reloaded)
            }
            Err(error) => {
                settle(mandate, Outcome::Error, None)?;
                Err(Failure::usage(error))
            }
        }
    }

    fn unmount(&self) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "unmount", None)?;
        let daemon = self.daemon()?;
        settle(mandate, Outcome::Allowed, None)?;
        daemon.stop();
        answer(&())
    }

    fn upgrade(&self) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "upgrade", None)?;
        let daemon = self.daemon()?;
        settle(mandate, Outcome::Allowed, None)?;
        daemon.upgrade().map_err(Failure::failed)?;
        answer(&())
    }

    fn daemon(&self) -> Result<&dyn Daemon, Failure> {
        self.parts.daemon.as_deref().ok_or_else(|| {
            Failure::failed("no daemon serves this config: start it with `secretfs mount`")
        })
    }

    /// Leave to change a service's secrets or to steer. A no is audited by who says it.
    fn mandate(
        &self,
        service: Option<&Name>,
        action: &'static str,
        subject: Option<&SecretPath>,
    ) -> Result<Mandate, Failure> {
        let what = subject.map(|path| Arc::from(path.to_string()));
        self.parts
            .tree
            .access()
            .manage(self.caller.clone(), service, action, what)
            .map_err(|denied| self.denied(&denied, "a `manage` rule"))
    }

    fn denied(&self, denied: &Denied, mend: &str) -> Failure {
        // The log's own error says which file it is, and why.
        if let (Denied::Audit(_), Some(error)) = (denied, self.parts.audit.failure()) {
            return Failure::failed(format!(
                "denied, because it could not be written down: {error}"
            ));
        }
        let mend = match denied {
            Denied::Policy(Reason::Closed(_)) => "see `secretfs doctor`".to_owned(),
            Denied::Policy(Reason::NoService | Reason::NoRule | Reason::Narrowed) => {
                format!("{mend} in the config must name uid {}", self.caller.uid)
            }
            Denied::Caller(_) => "ask from where the daemon can see you".to_owned(),
            Denied::Audit(_) => "see `secretfs doctor`".to_owned(),
            // It says itself what lifts it.
            Denied::Revoked(_) | Denied::Taken => {
                return Failure::new(Kind::Denied, format!("denied: {denied}"));
            }
            Denied::Unsettled => "ask again".to_owned(),
            Denied::Limited(_) => "try again then".to_owned(),
            Denied::Spread(_) => "try again in a minute".to_owned(),
        };
        Failure::new(Kind::Denied, format!("denied: {denied}: {mend}"))
    }

    /// Tells of progress; a listener that is busy misses a step.
    fn progress(&self, done: usize, total: Option<usize>) {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        let progress = Event::Progress {
            done: number(done),
            total: total.map_or(0, number),
        };
        let _ = self.events.try_send(progress);
    }

    /// The store of this name, or the only one.
    fn store(&self, name: Option<&Name>) -> Result<(&Name, &Store), Failure> {
        let stores = &self.parts.stores;
        match (name, stores.len()) {
            (Some(name), _) => stores
                .get_key_value(name)
                .ok_or_else(|| Failure::usage("--backend: no store of this name is in the config")),
            (None, 1) => stores.first_key_value().ok_or_else(no_store),
            (None, 0) => Err(no_store()),
            (None, _) => {
                let names: Vec<&str> = stores.keys().map(Name::as_str).collect();
                Err(Failure::usage(format!(
                    "the config has several stores: add --backend with one of {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// Where a secret is written: what its binding names first.
    fn place(&self, path: &SecretPath) -> Result<Place<'_>, Failure> {
        let catalogue = self.parts.tree.catalogue();
        let Some(reference) = catalogue
            .binding(path)
            .and_then(|binding| binding.references.first().cloned())
        else {
            let service = &path.service;
            let mend = if catalogue.has_service(service) {
                format!(
                    "give [services.{service}] a `source`, or bind it below [services.{service}.secrets]"
                )
            } else {
                format!("`secretfs allow {service} --uid USER` makes [services.{service}]")
            };
            return Err(Failure::usage(format!(
                "{path}: the config has no place for it: {mend}"
            )));
        };
        if reference.version.is_some() {
            return Err(Failure::usage(format!(
                "{path}: is a version of {reference}, which never changes: change the secret under a binding without `@…`"
            )));
        }
        let Some(store) = self.parts.stores.get(&reference.backend) else {
            let backend = self.parts.cache.backends().get(&reference.backend);
            let writer = backend
                .and_then(|backend| backend.writer())
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "{path}: comes from {reference}, which secretfs only reads: change it there"
                    ))
                })?;
            return Ok(Place {
                keeper: Keeper::Server(writer),
                reference,
            });
        };
        if reference.field.is_some() {
            return Err(Failure::usage(format!(
                "{path}: is a part of {reference}: change the whole record under a binding of its own"
            )));
        }
        let place = reference.path.parse().map_err(|_| {
            Failure::usage(format!(
                "{path}: {reference} is no place in a store: its path must be SERVICE/NAME"
            ))
        })?;
        Ok(Place {
            keeper: Keeper::Store(store, place),
            reference,
        })
    }

    /// Waits for a server that is asked to change something.
    fn server<T>(
        &self,
        asked: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let in_time = async { timeout(PATIENCE, asked).await };
        self.runtime
            .block_on(in_time)
            .unwrap_or_else(|_| Err(BackendError::Timeout(format!("{PATIENCE:?}"))))
    }

    /// Has every following open see what changed, and whoever watches hear of it.
    fn changed<'a>(&self, references: impl IntoIterator<Item = &'a Reference>, change: Change) {
        let changed = async { self.parts.tree.changed(references, change).await };
        self.runtime.block_on(changed);
    }
}

/// Where a secret is kept.
struct Place<'a> {
    keeper: Keeper<'a>,
    reference: Reference,
}

/// Who keeps it, and changes it for us.
enum Keeper<'a> {
    /// A store, under this name.
    Store(&'a Store, SecretPath),
    /// A server.
    Server(&'a dyn Writer),
}

fn no_store() -> Failure {
    Failure::usage("the config has no backend of type \"store\"")
}

fn answer(json: &impl serde::Serialize) -> Result<Answer, Failure> {
    Ok(Answer {
        json: serde_json::to_value(json).map_err(|error| Failure::failed(error.to_string()))?,
        value: None,
    })
}

fn settle(mandate: Mandate, outcome: Outcome, version: Option<Version>) -> Result<(), Failure> {
    mandate.settle(outcome, version).map_err(unwritten)
}

fn unwritten(error: AuditError) -> Failure {
    Failure::failed(format!("done, but not written down: {error}"))
}

/// Writes down that a change failed, and says why.
fn failed(mandate: Mandate, failure: Failure) -> Failure {
    let outcome = match failure.kind {
        Kind::Absent => Outcome::Absent,
        Kind::Denied => Outcome::Refused,
        Kind::Unavailable => Outcome::Unreachable,
        Kind::Failed | Kind::Busy | Kind::Usage => Outcome::Error,
    };
    match mandate.settle(outcome, None) {
        Ok(()) => failure,
        Err(unwritten) => Failure::new(failure.kind, format!("{failure}; {unwritten}")),
    }
}

fn store_failure(error: &StoreError) -> Failure {
    let kind = match error {
        StoreError::Absent(_) => Kind::Absent,
        StoreError::Missing(_)
        | StoreError::Io { .. }
        | StoreError::Identity(_)
        | StoreError::WrongIdentity(_)
        | StoreError::Format { .. }
        | StoreError::Locked(_) => Kind::Unavailable,
        StoreError::Damaged { .. }
        | StoreError::TooLarge(_)
        | StoreError::Description(_)
        | StoreError::Exists(_)
        | StoreError::NotEmpty(_)
        | StoreError::Archive(_)
        | StoreError::NeedsPassphrase
        | StoreError::Export(_)
        | StoreError::Random => Kind::Failed,
    };
    if let StoreError::Absent(what) = error
        && let Some((path, _)) = what.split_once('@')
    {
        let message = format!("no such version of {path}: see `secretfs history {path}`");
        return Failure::new(kind, message);
    }
    Failure::new(kind, error.to_string())
}

/// Why a server did not change a secret.
fn writing_failure(path: &SecretPath, error: &BackendError) -> Failure {
    match error {
        BackendError::Absent(what) => Failure::new(
            Kind::Absent,
            format!("{path}: no such secret or version: {what}: see `secretfs history {path}`"),
        ),
        BackendError::Refused(what) => Failure::new(
            Kind::Denied,
            format!(
                "{path}: the server does not let secretfs change {what}: its policy there must grant read, create, update and delete, or change it there"
            ),
        ),
        BackendError::Unreachable(_) | BackendError::Timeout(_) => Failure::new(
            Kind::Unavailable,
            format!(
                "{path}: {error}: whether it was changed is not known: see `secretfs history {path}`"
            ),
        ),
        BackendError::Unusable(why) => Failure::failed(format!("{path}: {why}")),
    }
}

fn backend_failure(path: &SecretPath, error: &BackendError) -> Failure {
    let kind = match error {
        BackendError::Absent(_) => {
            let message = format!("no such secret: {path}: see `secretfs ls {}`", path.service);
            return Failure::new(Kind::Absent, message);
        }
        BackendError::Refused(_) => Kind::Denied,
        BackendError::Unreachable(_) | BackendError::Timeout(_) => Kind::Unavailable,
        BackendError::Unusable(_) => Kind::Failed,
    };
    Failure::new(
        kind,
        format!("{path}: {error}: see `secretfs doctor` and `secretfs explain {path}`"),
    )
}
