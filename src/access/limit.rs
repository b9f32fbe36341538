//! How often the newest value may be asked for: a token bucket for each uid.
//!
//! What is opened below `.fresh` goes to a backend each time, so a loop around it would be a flood there. Only who the
//! policy allows to read has a bucket, and a full one is not remembered, so that there are never more than uids that
//! asked lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Access, Denied, Permit, Written};
use crate::caller::Caller;
use crate::secret::SecretPath;
use crate::sys::Uid;

/// How many fresh values a uid gets at once: enough for a program that starts again and asks for all that it uses.
pub const BURST: u32 = 10;

/// How long it takes until it gets one more: programs that try a refused password again wait longer by themselves.
pub const EVERY: Duration = Duration::from_secs(1);

/// How long an empty bucket takes to be full.
const FULL: Duration = EVERY.saturating_mul(BURST);

/// The action in the audit log.
const ACTION: &str = "open-fresh";

impl Access {
    /// May `caller` have the newest value of this secret fetched now? As [`Access::open`], and not too often.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn fresh(&self, caller: Caller, path: &SecretPath) -> Result<Permit, Denied> {
        let started = self.clock.now();
        let permit = self.open(caller.clone(), path, ACTION)?;
        match self.fresh.take(caller.uid, started) {
            Ok(()) => Ok(permit),
            Err(limited) => {
                permit.waive();
                let subject = Some(path.to_string().into());
                let denied = Denied::Limited(limited);
                Err(self.deny(caller, ACTION, subject, denied, started, Written::Soon))
            }
        }
    }
}

/// No more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
// In whole seconds: equal denials are one line with a count in the audit log.
#[error(
    "a uid gets {BURST} fresh values at once and then one every {every} s: the next is due in {} s",
    .due.as_secs() + u64::from(.due.subsec_nanos() > 0),
    every = EVERY.as_secs()
)]
pub struct Limited {
    /// When there is one more.
    pub due: Duration,
}

/// The buckets.
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// When each will be full again.
    full: HashMap<Uid, Instant>,
    /// When full ones are looked for again.
    sweep: Option<Instant>,
}

impl Limiter {
    /// Takes a token, if there is one.
    pub(super) fn take(&self, uid: Uid, now: Instant) -> Result<(), Limited> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.sweep(now);
        let full = buckets.full.get(&uid).map_or(now, |full| now.max(*full));
        let missing = full.saturating_duration_since(now) + EVERY;
        if missing > FULL {
            return Err(Limited {
                due: missing - FULL,
            });
        }
        buckets.full.insert(uid, full + EVERY);
        Ok(())
    }
}

impl Buckets {
    fn sweep(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| due <= now) {
            self.full.retain(|_, full| *full > now);
            self.sweep = Some(now + FULL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_uid_gets_ten_at_once_and_one_more_each_second() {
        let (limiter, clock) = (Limiter::default(), Clock::manual());
        let take = |uid| limiter.take(Uid(uid), clock.now());
        for _ in 0..BURST {
            take(1).unwrap();
        }
        assert_eq!(take(1), Err(Limited { due: EVERY }));
        clock.advance(EVERY - Duration::from_millis(1));
        let due = Duration::from_millis(1);
        // Asking in vain costs nothing.
        for _ in 0..100 {
            assert_eq!(take(1), Err(Limited { due }));
        }
        // Nobody takes another's.
        take(2).unwrap();
        clock.advance(due);
        take(1).unwrap();
        take(1).unwrap_err();
        clock.advance(3 * EVERY);
        for _ in 0..3 {
            take(1).unwrap();
        }
        take(1).unwrap_err();
        // However long nobody asks, a bucket holds no more.
        clock.advance(1000 * FULL);
        for _ in 0..BURST {
            take(1).unwrap();
        }
        take(1).unwrap_err();
    }

    #[test]
    fn a_full_bucket_is_not_remembered() {
        let (limiter, clock) = (Limiter::default(), Clock::manual());
        let held = || limiter.0.lock().unwrap().full.len();
        for round in 0..100 {
            for uid in 0..1000 {
                limiter.take(Uid(round * 1000 + uid), clock.now()).unwrap();
            }
            clock.advance(EVERY);
            assert!(held() <= 11_000, "{}", held());
        }
        clock.advance(FULL);
        limiter.take(Uid(1), clock.now()).unwrap();
        assert_eq!(held(), 1);
        // A sweep takes nobody's debts away.
        for _ in 1..BURST {
            limiter.take(Uid(1), clock.now()).unwrap();
        }
        clock.advance(FULL - EVERY);
        for _ in 1..BURST {
            limiter.take(Uid(1), clock.now()).unwrap();
        }
        clock.advance(EVERY);
        limiter.take(Uid(1), clock.now()).unwrap();
        limiter.take(Uid(1), clock.now()).unwrap_err();
    }

    #[test]
    fn a_denial_says_the_limit_and_the_same_for_all_within_a_second() {
        for due in [EVERY, Duration::from_millis(1)] {
            assert_eq!(
                Limited { due }.to_string(),
                "a uid gets 10 fresh values at once and then one every 1 s: the next is due in 1 s"
            );
        }
    }
}
