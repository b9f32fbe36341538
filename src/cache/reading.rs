//! Fetching records: one flight for each, whoever wants a field of it.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::leases::Leased;
use super::locked::Locked;
use super::records::{Answer, Content, Landing, Record, Since};
use super::{Cache, given_up, records, too_late};
use crate::backend::{Backend, BackendError, Fetched, Reference};
use crate::secret::{MAX_VALUE, Name, SecretPath};

impl Cache {
    /// What is at `reference`, for `path`. It ends by the deadline of the flight that it waits for.
    ///
    /// # Errors
    /// Any [`BackendError`] but [`BackendError::Absent`], which is a record without content.
    pub(super) async fn record(
        self: &Arc<Self>,
        reference: &Reference,
        since: Since,
        path: &SecretPath,
    ) -> Answer {
        let key = Arc::new(records::key(reference));
        let backend = Arc::clone(self.backend(&key)?);
        let mut landed = {
            let (ttl, now) = (self.times().ttl, self.clock.now());
            let mut state = self.state();
            if let Some(record) = state.records.find(&key, since, now, ttl) {
                if let Some(lease) = &record.lease {
                    lease.make_for(path);
                }
                return Ok(record);
            }
            match state.records.join(&key, since, path) {
                Some(landed) => landed,
                None => {
                    let paths = std::slice::from_ref(path);
                    self.begin_record(state, &key, backend, paths, true)
                }
            }
        };
        arrival(&mut landed).await
    }

    /// Has a new lease in the place of the one at `key`, for the secrets that show it. Who watches them is told.
    pub(super) async fn replace(
        self: &Arc<Self>,
        key: &Arc<Reference>,
        paths: &[SecretPath],
    ) -> Result<(), BackendError> {
        let backend = Arc::clone(self.backend(key)?);
        let mut landed = {
            let state = self.state();
            match state.records.under_way(key) {
                Some(landed) => landed,
                None => self.begin_record(state, key, backend, paths, false),
            }
        };
        arrival(&mut landed).await.map(drop)
    }

    /// Begins a flight, which all who want the record from now on may join.
    fn begin_record(
        self: &Arc<Self>,
        mut state: Locked<'_>,
        key: &Arc<Reference>,
        backend: Arc<dyn Backend>,
        paths: &[SecretPath],
        waiting: bool,
    ) -> watch::Receiver<Option<Answer>> {
        let (flight, land) = state.begin();
        let (number, landed) = (flight.number, land.subscribe());
        state.records.add(key, flight, paths, waiting);
        drop(state);
        let (cache, key) = (Arc::clone(self), Arc::clone(key));
        // A task of its own: it is not the question of one secret alone.
        tokio::spawn(async move {
            let answer = cache.fly_record(&key, &*backend, number).await;
            land.send_replace(Some(answer));
        });
        landed
    }

    /// Asks until what the backend gave can be taken, or the deadline passes (rule 3).
    async fn fly_record(
        &self,
        key: &Arc<Reference>,
        backend: &dyn Backend,
        mut number: u64,
    ) -> Answer {
        let timeout = self.times().timeout;
        let mut asking = false;
        let flying = async {
            loop {
                let asked = self.clock.now();
                let fetched = self
                    .ask(&key.backend, &mut asking, || backend.read(key))
                    .await;
                let forever = backend.announces_changes();
                let answer = self.recorded(key, (number, asked), forever, fetched);
                match self.land_record(key, number, answer) {
                    Ok(answer) => return answer,
                    Err(again) => number = again,
                }
            }
        };
        match tokio::time::timeout(timeout, flying).await {
            Ok(answer) => answer,
            Err(_) => {
                self.state().records.remove(key, number);
                let error = too_late(timeout);
                let late = Err(error);
                if asking {
                    self.heard(&key.backend, &late);
                }
                late
            }
        }
    }

    /// Has a backend asked, unless it is left alone, and notes how it answers. Who gives up meanwhile has to say so: then
    /// `asking` is true.
    pub(super) async fn ask<T, F>(
        &self,
        backend: &Name,
        asking: &mut bool,
        question: impl FnOnce() -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let timeout = self.times().timeout;
        let _slot = match self.slots.get(backend) {
            Some(slots) => slots.acquire().await.ok(),
            None => None,
        };
        self.health.admit(backend, self.clock.now(), timeout)?;
        *asking = true;
        let answer = question().await;
        *asking = false;
        self.heard(backend, &answer);
        answer
    }

    /// The same, within the deadline.
    pub(super) async fn ask_in_time<T, F>(
        &self,
        backend: &Name,
        question: impl FnOnce() -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let (timeout, mut asking) = (self.times().timeout, false);
        let asked = self.ask(backend, &mut asking, question);
        match tokio::time::timeout(timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                let late = Err(too_late(timeout));
                if asking {
                    self.heard(backend, &late);
                }
                late
            }
        }
    }

    pub(super) fn heard<T>(&self, backend: &Name, answer: &Result<T, BackendError>) {
        let (now, ttl) = (self.clock.now(), self.times().ttl);
        self.health.heard(backend, answer, now, ttl);
    }

    /// Takes what a flight brought, or says as which number it has to ask once more.
    fn land_record(
        &self,
        key: &Arc<Reference>,
        number: u64,
        answer: Answer,
    ) -> Result<Answer, u64> {
        let (ttl, now) = (self.times().ttl, self.clock.now());
        // Of a "no" whoever reads next hears; to have it asked for again at once would help nobody.
        let told = answer.is_ok();
        let lease = answer.as_ref().ok().and_then(|record| record.lease.clone());
        let leased = lease.is_some();
        let mut state = self.state();
        let revoked = state.records.was_revoked(number);
        match lease {
            Some(lease) if revoked => state.leases.revoke(lease),
            Some(lease) => state.leases.add(lease),
            None => {}
        }
        match state.records.land(key, number, answer) {
            Landing::Again => {
                let again = state.next_number();
                state.records.renew(key, number, again);
                Err(again)
            }
            Landing::Taken {
                answer,
                outdated,
                waiting,
            } => {
                for path in outdated {
                    state.drop_value(&path);
                    // Who waits for the record sees for himself.
                    if told && !waiting.contains(&path) {
                        state.overtaken.insert(path);
                    }
                }
                state.sweep(now, ttl);
                let some = !state.overtaken.is_empty();
                drop(state);
                if some {
                    self.overtaken.notify_one();
                }
                if leased {
                    self.tending.notify_one();
                }
                Ok(answer)
            }
        }
    }

    /// What was fetched, as a record, by a flight of this number that asked at that time. Without a time of the backend's it is as old as its fetch.
    fn recorded(
        &self,
        key: &Arc<Reference>,
        (number, asked): (u64, Instant),
        forever: bool,
        fetched: Result<Fetched, BackendError>,
    ) -> Answer {
        let mut lease = None;
        let content = match fetched {
            Ok(fetched) if fetched.value.len() > MAX_VALUE => {
                return Err(too_large(key));
            }
            Ok(fetched) => {
                let value = self.seal(key, &fetched.value)?;
                lease = fetched.lease.map(|lease| Leased::new(key, lease, asked));
                Ok(Content {
                    value,
                    version: fetched.version,
                    modified: fetched.modified.unwrap_or_else(|| self.clock.timestamp()),
                    description: fetched.description,
                })
            }
            Err(BackendError::Absent(why)) => Err(why),
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Record {
            key: Arc::clone(key),
            began: number,
            fetched: self.clock.now(),
            forever,
            share: self.share(key),
            content,
            lease,
        }))
    }

    /// For how many thousandths of the TTL the record at this place is young (rule 15).
    pub(super) fn share(&self, key: &Reference) -> u32 {
        let Some(seed) = self.jitter else {
            return 1000;
        };
        let mut hasher = DefaultHasher::new();
        (seed, key).hash(&mut hasher);
        u32::try_from(900 + hasher.finish() % 201).unwrap_or(1000)
    }

    /// The secrets whose value was overtaken since this was last asked, by a record that somebody fetched for another
    /// secret: whoever watches them has not heard of it. Waits until there is one.
    pub async fn overtaken(&self) -> Vec<SecretPath> {
        loop {
            let overtaken = self.take_overtaken();
            if !overtaken.is_empty() {
                return overtaken;
            }
            self.overtaken.notified().await;
        }
    }

    /// The same without waiting.
    #[must_use]
    pub fn take_overtaken(&self) -> Vec<SecretPath> {
        std::mem::take(&mut self.state().overtaken)
            .into_iter()
            .collect()
    }
}

/// What a flight brings, when it does.
async fn arrival(landed: &mut watch::Receiver<Option<Answer>>) -> Answer {
    match landed.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(given_up())),
        Err(_) => Err(given_up()),
    }
}

pub(super) fn too_large(reference: &Reference) -> BackendError {
    BackendError::Unusable(format!("{reference}: more than {MAX_VALUE} bytes"))
}
