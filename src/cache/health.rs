//! Which backends could not be reached when they were last asked: rule 14.
//!
//! Only a change is worth a word. A backend that failed several times in a row is left alone for a while: then who asks is
//! told so at once, and where an old value may stand in it does.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::BackendError;
use crate::events::{Events, What};
use crate::secret::Name;

/// After so many failures in a row a backend is left alone.
const FAILURES: u32 = 5;
/// For how long at first; then for twice as long each time.
const FIRST: Duration = Duration::from_secs(1);
/// And never for longer.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Health {
    backends: Mutex<HashMap<Name, State>>,
    pub(super) events: Events,
}

/// How a backend is that did not answer.
#[derive(Debug, Default)]
struct State {
    /// It has been told that it cannot be reached.
    down: bool,
    /// In a row.
    failures: u32,
    /// Until when it is left alone, and for how long that is.
    alone: Option<(Instant, Duration)>,
    /// Somebody asks whether it is back, since then.
    probing: Option<Instant>,
}

impl Health {
    /// Whether a backend may be asked. When it has been left alone long enough one question is let through, and the
    /// others wait for how it ends, or for `patience`.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`]
    pub(super) fn admit(
        &self,
        backend: &Name,
        now: Instant,
        patience: Duration,
    ) -> Result<(), BackendError> {
        let mut backends = self.backends();
        let Some(state) = backends.get_mut(backend) else {
            return Ok(());
        };
        let Some((until, _)) = state.alone else {
            return Ok(());
        };
        let left = until.saturating_duration_since(now);
        if !left.is_zero() {
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            return Err(BackendError::Unreachable(format!(
                "{backend} failed {FAILURES} times in a row and is not asked again for {seconds} s"
            )));
        }
        let lost = |since: Instant| now.saturating_duration_since(since) > patience;
        if state.probing.is_some_and(|since| !lost(since)) {
            return Err(BackendError::Unreachable(format!(
                "{backend} failed {FAILURES} times in a row and is being asked whether it is back"
            )));
        }
        state.probing = Some(now);
        Ok(())
    }

    /// True if a backend is left alone now.
    pub(super) fn is_alone(&self, backend: &Name, now: Instant) -> bool {
        let backends = self.backends();
        let alone = backends.get(backend).and_then(|state| state.alone);
        alone.is_some_and(|(until, _)| now < until)
    }

    /// True if a backend could not be reached when it was last asked.
    pub(super) fn is_down(&self, backend: &Name) -> bool {
        self.backends().get(backend).is_some_and(|state| state.down)
    }

    /// A backend has answered, or has not. It is never left alone for longer than `longest`.
    pub(super) fn heard<T>(
        &self,
        backend: &Name,
        answer: &Result<T, BackendError>,
        now: Instant,
        longest: Duration,
    ) {
        // What is told is told under the lock, which nobody waits for long: two words must not overtake each other.
        let mut backends = self.backends();
        match answer {
            Ok(_) | Err(BackendError::Absent(_) | BackendError::Refused(_)) => {
                if backends.remove(backend).is_some_and(|state| state.down) {
                    self.events.tell(|| What::BackendUp {
                        backend: backend.clone(),
                    });
                }
            }
            // It answered with something, and not with what was asked for: it is there, and yet of no use.
            Err(BackendError::Unusable(_)) => {
                if let Some(state) = backends.get_mut(backend) {
                    *state = State {
                        down: state.down,
                        ..State::default()
                    };
                }
            }
            Err(error @ (BackendError::Unreachable(_) | BackendError::Timeout(_))) => {
                let state = backends.entry(backend.clone()).or_default();
                state.fail(now, longest.min(LONGEST));
                if !state.down {
                    state.down = true;
                    self.events.tell(|| What::BackendDown {
                        backend: backend.clone(),
                        why: error.to_string(),
                    });
                }
            }
        }
    }

    fn backends(&self) -> MutexGuard<'_, HashMap<Name, State>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, now: Instant, longest: Duration) {
        self.probing = None;
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return;
        }
        let pause = match self.alone {
            // It was asked before it was left alone.
            Some((until, _)) if now < until => return,
            Some((_, pause)) => pause.saturating_mul(2).min(longest),
            None => FIRST.min(longest),
        };
        self.alone = Some((now + pause, pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[tokio::test]
    async fn only_a_change_is_told_and_of_each_backend_its_own() {
        let events = Events::default();
        let mut heard = events.subscribe();
        let health = Health {
            events,
            ..Health::default()
        };
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let now = Clock::manual().now();
        let hear = |backend: &Name, answer: &Result<(), BackendError>| {
            health.heard(backend, answer, now, LONGEST);
        };
        let why = || "gone".to_owned();
        let fine: Result<(), BackendError> = Ok(());
        hear(&a, &fine);
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
                hear(&a, &Err(error.clone()));
            }
            hear(&a, &Err(BackendError::Unusable(why())));
            hear(&b, &Err(error.clone()));
            for _ in 0..3 {
                hear(&a, &Err(answer.clone()));
            }
            hear(&b, &fine);
            for expected in [down(&a), down(&b), up(&a), up(&b)] {
                assert_eq!(heard.next().await.what, expected);
            }
        }
        assert_eq!(heard.try_next(), None);
    }

    #[test]
    fn who_fails_five_times_in_a_row_is_left_alone_longer_each_time() {
        const SECOND: Duration = Duration::from_secs(1);
        let (health, clock) = (Health::default(), Clock::manual());
        let a: Name = "a".parse().unwrap();
        let admit = || health.admit(&a, clock.now(), 5 * SECOND);
        let longest = 10 * SECOND;
        let hear = |answer: Result<(), BackendError>| {
            health.heard(&a, &answer, clock.now(), longest);
        };
        let fail = || hear(Err(BackendError::Timeout("5 s".to_owned())));
        for _ in 0..3 {
            for _ in 0..4 {
                admit().unwrap();
                fail();
            }
            assert!(health.is_down(&a));
            // It was not in a row.
            admit().unwrap();
            hear(Err(BackendError::Refused("no".to_owned())));
            assert!(!health.is_down(&a));
        }
        for _ in 0..5 {
            admit().unwrap();
            fail();
        }
        // Those that were under way do not count.
        fail();
        fail();
        for seconds in [1, 2, 4, 8, 10, 10] {
            let error = admit().unwrap_err().to_string();
            let word = format!("a failed 5 times in a row and is not asked again for {seconds} s");
            assert!(error.ends_with(&word), "{error}");
            assert!(health.is_alone(&a, clock.now()));
            clock.advance(seconds * SECOND - Duration::from_millis(1));
            admit().unwrap_err();
            clock.advance(Duration::from_millis(1));
            assert!(!health.is_alone(&a, clock.now()));
            // One asks whether it is back.
            admit().unwrap();
            admit().unwrap_err();
            fail();
        }
        // Who asked and was never heard of again is not waited for.
        clock.advance(10 * SECOND);
        admit().unwrap();
        clock.advance(6 * SECOND);
        admit().unwrap();
        admit().unwrap_err();
        for back in [Ok(()), Err(BackendError::Unusable("garbled".to_owned()))] {
            hear(back);
            for _ in 0..5 {
                admit().unwrap();
                fail();
            }
            admit().unwrap_err();
            clock.advance(SECOND);
            admit().unwrap();
        }
    }
}
