//! Lists of names: cached like values, fetched by one flight at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::state::State;
use super::{Answer, Cache, wait};
use crate::backend::{Backend, BackendError};
use crate::secret::Name;

/// A folder's names, sorted.
pub type Names = Arc<Vec<Name>>;

/// What is listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Folder {
    pub(super) backend: Name,
    /// `None` is the list of folders itself.
    pub(super) folder: Option<String>,
}

/// A list, as it was fetched.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) names: Names,
    fetched: Instant,
    /// Something has changed since: it only stands in for a backend that cannot be reached.
    pub(super) outdated: bool,
}

impl Cache {
    /// The names of the secrets in a backend's folder.
    pub fn names(
        self: &Arc<Self>,
        backend: &Name,
        folder: &str,
    ) -> Answer<Result<Names, BackendError>> {
        self.list(Folder {
            backend: backend.clone(),
            folder: Some(folder.to_owned()),
        })
    }

    /// The names of a backend's folders.
    pub fn folders(self: &Arc<Self>, backend: &Name) -> Answer<Result<Names, BackendError>> {
        self.list(Folder {
            backend: backend.clone(),
            folder: None,
        })
    }

    fn list(self: &Arc<Self>, folder: Folder) -> Answer<Result<Names, BackendError>> {
        let Some(backend) = self.backends.get(&folder.backend).map(Arc::clone) else {
            let name = folder.backend.as_str();
            let error = BackendError::Unusable(format!("no backend {name:?} is running"));
            return Answer::Ready(Err(error));
        };
        let (ttl, now) = (self.times().ttl, self.clock.now());
        let young = self.state().young_list(&folder, &*backend, now, ttl);
        if let Some(names) = young {
            return Answer::Ready(Ok(names));
        }
        let cache = Arc::clone(self);
        Answer::Pending(Box::pin(async move {
            let landed = match cache.join_list(&folder, backend) {
                Joined::Young(names) => return Ok(names),
                Joined::Flight(landed) => landed,
            };
            match wait(landed, cache.times().timeout).await {
                Err(error @ (BackendError::Unreachable(_) | BackendError::Timeout(_))) => {
                    let state = cache.state();
                    let old = state.lists.get(&folder);
                    old.map(|listing| Arc::clone(&listing.names)).ok_or(error)
                }
                listed => listed,
            }
        }))
    }

    fn join_list(self: &Arc<Self>, folder: &Folder, backend: Arc<dyn Backend>) -> Joined {
        let (ttl, now) = (self.times().ttl, self.clock.now());
        let mut state = self.state();
        if let Some(names) = state.young_list(folder, &*backend, now, ttl) {
            return Joined::Young(names);
        }
        if let Some(landed) = state
            .list_flights
            .get(folder)
            .and_then(|under_way| under_way.join())
        {
            return Joined::Flight(landed);
        }
        let (flight, land) = state.begin();
        let (number, landed) = (flight.number, land.subscribe());
        state.list_flights.insert(folder.clone(), flight);
        drop(state);
        let (cache, folder) = (Arc::clone(self), folder.clone());
        tokio::spawn(async move {
            let question = async || match &folder.folder {
                Some(folder) => backend.list(folder).await,
                None => backend.folders().await,
            };
            let listed = cache.ask_in_time(&folder.backend, question).await;
            let listed = cache.land_list(&folder, number, listed);
            land.send_replace(Some(listed));
        });
        Joined::Flight(landed)
    }

    /// Takes what a flight brought, unless something changed while it was under way.
    fn land_list(
        &self,
        folder: &Folder,
        number: u64,
        listed: Result<Vec<Name>, BackendError>,
    ) -> Result<Names, BackendError> {
        let listed = match listed {
            Ok(mut names) => {
                names.sort_unstable();
                names.dedup();
                Ok(Arc::new(names))
            }
            // A folder that is not there yet is an empty one.
            Err(BackendError::Absent(_)) => Ok(Arc::default()),
            Err(error) => Err(error),
        };
        let fetched = self.clock.now();
        let mut state = self.state();
        let under_way = state.list_flights.get(folder);
        if under_way.is_some_and(|flight| flight.number == number) {
            state.list_flights.remove(folder);
            match &listed {
                Ok(names) => {
                    let names = Arc::clone(names);
                    let listing = Listing {
                        names,
                        fetched,
                        outdated: false,
                    };
                    state.lists.insert(folder.clone(), listing);
                    state.changed();
                }
                Err(BackendError::Refused(_)) => {
                    state.lists.remove(folder);
                    state.gone();
                }
                Err(
                    BackendError::Absent(_)
                    | BackendError::Unreachable(_)
                    | BackendError::Timeout(_)
                    | BackendError::Unusable(_),
                ) => {}
            }
        }
        listed
    }
}

/// What is found by who needs a list.
enum Joined {
    /// It is there by now.
    Young(Names),
    /// It is on its way.
    Flight(watch::Receiver<Option<Result<Names, BackendError>>>),
}

impl State {
    /// A list that the cache before this one had, to stand in.
    pub(super) fn inherit_list(&mut self, folder: Folder, names: Vec<Name>, now: Instant) {
        self.lists.entry(folder).or_insert_with(|| Listing {
            names: Arc::new(names),
            fetched: now,
            outdated: true,
        });
    }

    fn young_list(
        &self,
        folder: &Folder,
        backend: &dyn Backend,
        now: Instant,
        ttl: Duration,
    ) -> Option<Names> {
        let listing = self.lists.get(folder)?;
        let young =
            backend.announces_changes() || now.saturating_duration_since(listing.fetched) < ttl;
        (young && !listing.outdated).then(|| Arc::clone(&listing.names))
    }
}
