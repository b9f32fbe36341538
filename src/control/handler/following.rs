//! watch, wait: what lasts until something happens.
//!
//! Neither holds a thread while nothing happens: the stores read on the same threads, and there may be more who wait
//! than threads. Only what blocks (the audit log) is done on one, for a moment. Both end when their peer or the daemon
//! does, which they hear from [`Lasting::events`].

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Job, Parts, answer, backend_failure, settle, unwritten};
use crate::access::{Access, Denied, Permit};
use crate::audit::Outcome;
use crate::backend::{BackendError, Version};
use crate::cache::Binding;
use crate::caller::Caller;
use crate::control::answers::Waited;
use crate::control::{Answer, Event, Failure};
use crate::events::{Subscription, What};
use crate::fs::outcome;
use crate::secret::{Name, SecretPath};

/// How much is sent at once to a watcher who is behind.
const BATCH: usize = 32 << 10;

/// The shortest time between two looks at a secret of which no word came.
const LOOK: Duration = Duration::from_secs(1);

/// A command that may last, and the tools for what of it blocks.
pub(super) struct Lasting {
    pub(super) parts: Arc<Parts>,
    pub(super) caller: Caller,
    /// Closed when nobody listens any more.
    pub(super) events: mpsc::Sender<Event>,
}

impl Lasting {
    /// Does what blocks on a thread for that.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Job<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (parts, caller) = (Arc::clone(&self.parts), self.caller.clone());
        let (runtime, events) = (runtime::Handle::current(), self.events.clone());
        let work = spawn_blocking(move || {
            act(&Job {
                parts: &parts,
                caller,
                runtime,
                events,
            })
        });
        work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a command ended unexpectedly");
            Err(Failure::failed(
                "the command ended unexpectedly: this is a mistake in secretfs, please report it",
            ))
        })
    }

    fn access(&self) -> &Access {
        self.parts.tree.access()
    }

    pub(super) async fn watch(self) -> Result<Answer, Failure> {
        // First of all: what happens after the line in the audit log is seen.
        let mut happening = self.access().events().subscribe();
        self.blocking(|job| {
            job.daemon()?;
            job.may_watch()
        })
        .await?;
        loop {
            let event = tokio::select! {
                () = self.events.closed() => return answer(&()),
                event = happening.next() => event,
            };
            let mut lines = Vec::new();
            let mut next = Some(event);
            while let Some(event) = next {
                if self.may_hear(&event.what) {
                    serde_json::to_writer(&mut lines, &*event)
                        .map_err(|error| Failure::failed(error.to_string()))?;
                    lines.push(b'\n');
                } else if !self.access().may_manage_any(self.caller.clone()) {
                    // Asked once more for the sake of the audit log.
                    self.blocking(|job| job.may_watch()).await?;
                }
                next = (lines.len() < BATCH)
                    .then(|| happening.try_next())
                    .flatten();
            }
            if !lines.is_empty() && self.events.send(Event::Chunk(lines)).await.is_err() {
                return answer(&());
            }
        }
    }

    /// Asked for each event: the rules may have changed since the last.
    fn may_hear(&self, what: &What) -> bool {
        let manages =
            |service: Option<&Name>| self.access().may_manage(self.caller.clone(), service);
        match what {
            // It says how much of what he may hear he has not heard.
            What::Missed { .. } => self.access().may_manage_any(self.caller.clone()),
            What::Rotated { .. }
            | What::Removed { .. }
            | What::Revoked { .. }
            | What::Unrevoked { .. }
            | What::Denied { .. }
            | What::BackendDown { .. }
            | What::BackendUp { .. }
            | What::Reloaded { .. } => {
                manages(None)
                    || what
                        .service()
                        .is_some_and(|service| manages(Some(&service)))
            }
        }
    }

    /// A new generation counts from `after` or, without it, from the one that is current now.
    pub(super) async fn wait(
        self,
        path: SecretPath,
        after: Option<u64>,
    ) -> Result<Answer, Failure> {
        // Before the first look, so that no change falls between.
        let mut happening = self.access().events().subscribe();
        let (mut permit, mut binding) = self.permit(&path).await?;
        let (mut base, mut looked) = (after, false);
        loop {
            let fetching = match self.parts.tree.fetch(&permit, binding) {
                Ok(fetching) => fetching,
                Err(denied) => return self.refuse(permit, denied).await,
            };
            let fetched = fetching.wait().await;
            let mut patience = self.parts.cache.ttl().max(LOOK);
            match (fetched, base) {
                (Ok(served), Some(base)) if served.generation.number != base => {
                    let version = served.generation.version.clone();
                    let waited = Waited {
                        path,
                        generation: Some(served.generation.number),
                        version: Some(version.clone()),
                        removed: false,
                    };
                    let outcome = match served.stale {
                        true => Outcome::Stale,
                        false => Outcome::Allowed,
                    };
                    self.settle(permit, outcome, Some(version)).await?;
                    return answer(&waited);
                }
                (Ok(served), _) => base = Some(served.generation.number),
                (Err(BackendError::Absent(_)), Some(_)) => {
                    self.settle(permit, Outcome::Absent, None).await?;
                    return answer(&Waited {
                        path,
                        generation: None,
                        version: None,
                        removed: true,
                    });
                }
                // What is broken now may be mended before the secret changes.
                (Err(BackendError::Unreachable(_) | BackendError::Timeout(_)), Some(_))
                    if looked =>
                {
                    patience = LOOK;
                }
                (Err(error), _) => {
                    self.settle(permit, outcome(&error), None).await?;
                    return Err(backend_failure(&path, &error));
                }
            }
            looked = true;
            tokio::select! {
                () = self.events.closed() => {
                    // He may have gone because nothing changed in time.
                    self.settle(permit, Outcome::Allowed, None).await?;
                    return answer(&());
                }
                // Of some changes no word comes: then the cache asks again when the TTL is over.
                () = sleep(patience) => {}
                () = concerns(&mut happening, &path) => {}
            }
            (permit, binding) = self.ask_again(permit).await?;
        }
    }

    async fn permit(&self, path: &SecretPath) -> Result<Permitted, Failure> {
        let path = path.clone();
        self.blocking(move |job| {
            job.daemon()?;
            job.permit(&path, "wait")
        })
        .await
    }

    /// Whether he may still read it. One wait is one line in the audit log, or one more that says that it was denied.
    async fn ask_again(&self, permit: Permit) -> Result<Permitted, Failure> {
        let path = permit.path().clone();
        permit.waive();
        let peek = || {
            let permit = self.access().peek(self.caller.clone(), &path, "wait");
            permit.ok_or(Denied::Unsettled)
        };
        let permitted = self
            .parts
            .tree
            .permitted(peek, |places| places.binding(&path));
        match permitted {
            Ok(permitted) => Ok(permitted),
            Err(_) => self.permit(&path).await,
        }
    }

    async fn refuse(&self, permit: Permit, denied: Denied) -> Result<Answer, Failure> {
        self.blocking(move |job| {
            let mend = reading_rule(permit.path());
            permit.refuse_now(&denied, None).map_err(unwritten)?;
            Err(job.denied(&denied, &mend))
        })
        .await
    }

    async fn settle(
        &self,
        permit: Permit,
        outcome: Outcome,
        version: Option<Version>,
    ) -> Result<(), Failure> {
        self.blocking(move |_| permit.settle_now(outcome, version).map_err(unwritten))
            .await
    }
}

/// Leave to read a secret, and where it is found.
type Permitted = (Permit, Option<Arc<Binding>>);

impl Job<'_> {
    fn may_watch(&self) -> Result<(), Failure> {
        let mandate = self
            .parts
            .tree
            .access()
            .manage_any(self.caller.clone(), "watch")
            .map_err(|denied| self.denied(&denied, "a `manage` rule"))?;
        settle(mandate, Outcome::Allowed, None)
    }

    /// Leave to read a secret. A no is audited by who says it.
    pub(super) fn permit(
        &self,
        path: &SecretPath,
        action: &'static str,
    ) -> Result<Permitted, Failure> {
        let tree = &self.parts.tree;
        let ask = || tree.access().command(self.caller.clone(), path, action);
        tree.permitted(ask, |places| places.binding(path))
            .map_err(|denied| self.denied(&denied, &reading_rule(path)))
    }
}

/// The rule that is missing where somebody may not read.
pub(super) fn reading_rule(path: &SecretPath) -> String {
    format!("an `allow` rule of [services.{}]", path.service)
}

/// Ends when something has happened after which the secret may be another one, or its reader not be allowed to read it.
async fn concerns(happening: &mut Subscription, path: &SecretPath) {
    loop {
        match &happening.next().await.what {
            What::Rotated { path: other, .. } | What::Removed { path: other } => {
                if other == path {
                    return;
                }
            }
            What::Revoked { .. } | What::Reloaded { .. } | What::Missed { .. } => return,
            What::Unrevoked { .. }
            | What::Denied { .. }
            | What::BackendDown { .. }
            | What::BackendUp { .. } => {}
        }
    }
}
