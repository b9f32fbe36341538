//! What is to be told to a broker: a bounded list of paths that have changed.
//!
//! A path stands in it once. Of more than it holds the oldest are forgotten, and it is noted that something was: then the
//! broker is told that anything may have changed.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tokio::sync::Notify;

use crate::backend::Version;
use crate::secret::Name;
use crate::signal::message::{Message, is_path};

/// How many paths wait at most.
const WAITING: NonZeroUsize = match NonZeroUsize::new(1024) {
    Some(number) => number,
    None => NonZeroUsize::MIN,
};

/// The paths of one backend that have changed.
#[derive(Debug)]
pub struct Outbox {
    backend: Name,
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug)]
struct State {
    paths: LruCache<String, Option<Version>>,
    missed: bool,
}

impl Outbox {
    /// For a backend, by its name in the config.
    #[must_use]
    pub fn new(backend: Name) -> Self {
        Self {
            backend,
            state: Mutex::new(State {
                paths: LruCache::new(WAITING),
                missed: false,
            }),
            filled: Notify::new(),
        }
    }

    /// This path has changed. Never waits.
    pub fn put(&self, path: String, version: Option<Version>) {
        if !is_path(&path) {
            return;
        }
        {
            let mut state = self.state();
            // A version stands for all that happened only if all of it is known.
            let version = match state.paths.peek(&path) {
                Some(None) => None,
                Some(Some(_)) | None => version,
            };
            let before = state.paths.push(path.clone(), version);
            state.missed |= before.is_some_and(|(other, _)| other != path);
        }
        self.filled.notify_one();
    }

    /// Something has changed, and it is not known what.
    pub fn miss(&self) {
        self.state().missed = true;
        self.filled.notify_one();
    }

    /// Takes all that waits, the oldest first.
    #[must_use]
    pub fn take(&self) -> Vec<Message> {
        let mut state = self.state();
        let message = |path, version| Message {
            backend: self.backend.clone(),
            path,
            version,
        };
        let missed = std::mem::take(&mut state.missed).then(|| message(None, None));
        let mut messages: Vec<_> = missed.into_iter().collect();
        while let Some((path, version)) = state.paths.pop_lru() {
            messages.push(message(Some(path), version));
        }
        messages
    }

    /// Ends when something waits.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new("vault".parse().unwrap())
    }

    fn taken(outbox: &Outbox) -> Vec<(Option<String>, Option<String>)> {
        let messages = outbox.take().into_iter();
        messages
            .map(|message| {
                (
                    message.path,
                    message.version.map(|version| version.to_string()),
                )
            })
            .collect()
    }

    #[test]
    fn a_path_waits_once_and_with_the_version_that_is_sure() {
        let outbox = outbox();
        let version = |text: &str| Some(Version::new(text));
        outbox.put("a".into(), version("1"));
        outbox.put("b".into(), None);
        outbox.put("a".into(), version("2"));
        outbox.put("b".into(), version("2"));
        outbox.put(String::new(), None);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(taken(&outbox), [(some("a"), some("2")), (some("b"), None)]);
        assert_eq!(taken(&outbox), []);
    }

    #[test]
    fn of_too_many_the_last_are_kept_and_the_rest_is_known_to_be_missing() {
        let outbox = outbox();
        for number in 0..5000 {
            outbox.put(format!("{number}"), None);
        }
        let taken = taken(&outbox);
        assert_eq!(taken.len(), 1 + WAITING.get());
        assert_eq!(taken[0], (None, None));
        assert_eq!(taken.last().unwrap().0.as_deref(), Some("4999"));
        outbox.miss();
        assert_eq!(outbox.take().len(), 1);
    }
}
