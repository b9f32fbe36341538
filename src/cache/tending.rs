//! What is done without a reader: leases are renewed, replaced and revoked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};

use super::Cache;
use super::leases::{Due, Leased};
use super::state::State;
use crate::backend::BackendError;

/// How long nothing is looked at where nothing is due.
const IDLE: Duration = Duration::from_secs(60);
/// How soon it is looked again after something was to be done.
const SOON: Duration = Duration::from_millis(100);

impl Cache {
    /// Keeps leases alive that somebody uses, has others in the place of those that end, and revokes those of what was
    /// taken away. It never ends.
    pub async fn tend(self: Arc<Self>) {
        loop {
            let next = self.tend_once().await;
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = self.tending.notified() => {}
            }
        }
    }

    /// Does what is due now, and says in how much time something may be due again.
    pub async fn tend_once(self: &Arc<Self>) -> Duration {
        let now = self.clock.now();
        let (due, ending) = {
            let mut state = self.state();
            (state.due(now), state.leases.take_ending())
        };
        let tended = !due.is_empty() || !ending.is_empty();
        let due = due.into_iter().map(|(lease, due)| self.attend(lease, due));
        let ending = ending.into_iter().map(|lease| self.give_back(lease));
        join(join_all(due), join_all(ending)).await;
        let now = self.clock.now();
        let state = self.state();
        if tended {
            state.changed();
        }
        let next = state.next_due(now).map(|next| next - now);
        drop(state);
        next.unwrap_or(IDLE).clamp(SOON, IDLE)
    }

    /// Revokes every lease that is held and signs out, because the daemon stops for good: within `deadline`, and what has
    /// no answer by then is left to end by itself.
    pub async fn end(&self, deadline: Duration) {
        let ended = async {
            self.end_leases().await;
            self.sign_out().await;
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            tracing::warn!(
                "not all leases and tokens were revoked in time; they end by themselves"
            );
        }
    }

    /// The end of a command that worked without a daemon: signs out, unless what it got is leased and ends with that.
    pub async fn leave(&self) {
        if self.state().leases.len() == 0 {
            self.sign_out().await;
        }
    }

    async fn sign_out(&self) {
        join_all(self.backends.values().map(|backend| backend.end())).await;
    }

    async fn end_leases(&self) {
        let now = self.clock.now();
        let leases = self.state().leases.take_all();
        let alive = leases.into_iter().filter(|lease| lease.is_alive(now));
        let revoked = join_all(alive.map(|lease| async move { self.revoke(&lease).await }));
        for error in revoked.await.into_iter().filter_map(Result::err) {
            tracing::warn!("a lease was not revoked and ends by itself: {error}");
        }
    }

    async fn attend(self: &Arc<Self>, lease: Arc<Leased>, due: Due) {
        if due == Due::Renewal && self.renew(&lease).await {
            return;
        }
        let replaced = self.replace(&lease.key, &lease.made_for()).await;
        if let Err(error) = replaced {
            tracing::warn!(
                "{}: no new lease in the place of one that ends: {error}",
                lease.key
            );
            lease.put_off(self.clock.now());
        }
    }

    /// Renews a lease. `false` if that cannot be, and another one is needed.
    async fn renew(&self, leased: &Leased) -> bool {
        let (Some(lease), Ok(backend)) = (leased.lease(), self.backend(&leased.key)) else {
            leased.broke();
            return false;
        };
        let began = self.clock.now();
        let renewed = self
            .ask_in_time(&leased.key.backend, || backend.renew(&lease))
            .await;
        match renewed {
            Ok(renewed) => {
                leased.renewed(&renewed, began);
                true
            }
            Err(BackendError::Unreachable(_) | BackendError::Timeout(_)) => {
                leased.put_off(self.clock.now());
                true
            }
            Err(BackendError::Absent(_) | BackendError::Refused(_) | BackendError::Unusable(_)) => {
                leased.broke();
                false
            }
        }
    }

    /// Revokes a lease, or has it tried again as long as it lives.
    async fn give_back(&self, lease: Arc<Leased>) {
        match self.revoke(&lease).await {
            Ok(()) => {}
            Err(BackendError::Unreachable(_) | BackendError::Timeout(_)) => {
                let now = self.clock.now();
                if lease.is_alive(now) {
                    lease.put_off(now);
                    self.state().leases.revoke(lease);
                }
            }
            // It has ended, or that is not for us to do.
            Err(
                error @ (BackendError::Absent(_)
                | BackendError::Refused(_)
                | BackendError::Unusable(_)),
            ) => tracing::warn!("{}: a lease was not revoked: {error}", lease.key),
        }
    }

    async fn revoke(&self, leased: &Leased) -> Result<(), BackendError> {
        let Some(lease) = leased.lease() else {
            return Ok(());
        };
        let backend = self.backend(&leased.key)?;
        let asked = || backend.revoke(&lease);
        self.ask_in_time(&leased.key.backend, asked).await
    }
}

impl State {
    /// What has to be done now. What has ended is wiped: it is of no use to anybody.
    fn due(&mut self, now: Instant) -> Vec<(Arc<Leased>, Due)> {
        if self.leases.held().is_empty() {
            return Vec::new();
        }
        for path in self.records.take_ended(now) {
            self.drop_value(&path);
        }
        self.leases.let_end(now);
        let held = self.leases.held().to_vec();
        let mut due = Vec::new();
        for lease in held {
            // One that was superseded is left to end.
            if self.records.has_lease(&lease)
                && let Some(what) = lease.due(now, self.is_open(&lease))
            {
                due.push((lease, what));
            }
        }
        due
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let next = self.leases.held().iter().map(|lease| lease.next(now));
        let next = next.min();
        match self.leases.is_ending() {
            true => Some(now + next.map_or(SOON * 10, |next| (next - now).min(SOON * 10))),
            false => next,
        }
    }

    /// Whether somebody has its value open.
    fn is_open(&self, lease: &Arc<Leased>) -> bool {
        lease.made_for().iter().any(|path| {
            let kept = self.values.peek(path);
            let kept = kept.filter(|kept| kept.is_of(lease));
            kept.is_some_and(|kept| Arc::strong_count(&kept.generation) > 1)
        })
    }
}
