//! Which backends could not be reached when they were last asked: only a change is worth a word.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::backend::BackendError;
use crate::events::{Events, What};
use crate::secret::Name;

#[derive(Debug, Default)]
pub(super) struct Health {
    down: Mutex<HashSet<Name>>,
    pub(super) events: Events,
}

impl Health {
    /// A backend has answered, or has not.
    pub(super) fn heard<T>(&self, backend: &Name, answer: &Result<T, BackendError>) {
        match answer {
            Ok(_) | Err(BackendError::Absent(_) | BackendError::Refused(_)) => self.up(backend),
            Err(error @ (BackendError::Unreachable(_) | BackendError::Timeout(_))) => {
                self.down(backend, error);
            }
            // It answered with something, and not with what was asked for: neither the one nor the other.
            Err(BackendError::Unusable(_)) => {}
        }
    }

    pub(super) fn down(&self, backend: &Name, error: &BackendError) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        // Told under the lock, which nobody waits for long: two words must not overtake each other.
        if down.insert(backend.clone()) {
            self.events.tell(|| What::BackendDown {
                backend: backend.clone(),
                why: error.to_string(),
            });
        }
    }

    /// True if it could not be reached when it was last asked.
    pub(super) fn is_down(&self, backend: &Name) -> bool {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.contains(backend)
    }

    fn up(&self, backend: &Name) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if down.remove(backend) {
            self.events.tell(|| What::BackendUp {
                backend: backend.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_change_is_told_and_of_each_backend_its_own() {
        let events = Events::default();
        let mut heard = events.subscribe();
        let health = Health {
            events,
            ..Health::default()
        };
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let why = || "gone".to_owned();
        let fine: Result<(), BackendError> = Ok(());
        health.heard(&a, &fine);
        let bad = [
            BackendError::Unreachable(why()),
            BackendError::Timeout(why()),
        ];
        let good = [BackendError::Absent(why()), BackendError::Refused(why())];
        for (error, answer) in bad.into_iter().zip(good) {
            let text = error.to_string();
            let down = |backend: &Name| What::BackendDown {
                backend: backend.clone(),
                why: text.clone(),
            };
            let up = |backend: &Name| What::BackendUp {
                backend: backend.clone(),
            };
            for _ in 0..3 {
                health.heard(&a, &Err::<(), _>(error.clone()));
            }
            health.heard(&a, &Err::<(), _>(BackendError::Unusable(why())));
            health.heard(&b, &Err::<(), _>(error.clone()));
            for _ in 0..3 {
                health.heard(&a, &Err::<(), _>(answer.clone()));
            }
            health.heard(&b, &fine);
            for expected in [down(&a), down(&b), up(&a), up(&b)] {
                assert_eq!(heard.next().await.what, expected);
            }
        }
        assert_eq!(heard.try_next(), None);
    }
}
