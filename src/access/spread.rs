//! How many different secrets are fetched for a uid: so many within a minute.
//!
//! One secret is fetched once for all who want it, however often they ask. But who may read a whole folder could have a
//! backend asked for each name in it, and for each that it makes up. What is here already is read without limit.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Access, Denied, Permit};
use crate::secret::SecretPath;
use crate::sys::Uid;

/// How many different secrets a uid has fetched from backends within a [`WINDOW`].
pub const DISTINCT: usize = 1000;

/// A minute, from the first of them.
pub const WINDOW: Duration = Duration::from_secs(60);

impl Access {
    /// May a backend be asked for the secret of this permit?
    ///
    /// # Errors
    /// [`Denied::Spread`]
    pub fn may_fetch(&self, permit: &Permit) -> Result<(), Denied> {
        let (uid, now) = (permit.opener().uid, self.clock.now());
        Ok(self.spread.count(uid, permit.path(), now)?)
    }
}

/// No more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
// Without how long it takes: equal denials are one line with a count in the audit log.
#[error("a uid has {DISTINCT} different secrets a minute fetched from backends, and no more")]
pub struct Spread;

/// What was fetched for whom.
#[derive(Debug, Default)]
pub(super) struct Spreads(Mutex<Windows>);

#[derive(Debug, Default)]
struct Windows {
    open: HashMap<Uid, (Instant, HashSet<SecretPath>)>,
    /// When those that are over are looked for again.
    sweep: Option<Instant>,
}

impl Spreads {
    fn count(&self, uid: Uid, path: &SecretPath, now: Instant) -> Result<(), Spread> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.sweep(now);
        let (began, paths) = windows.open.entry(uid).or_insert((now, HashSet::new()));
        if now.saturating_duration_since(*began) >= WINDOW {
            (*began, *paths) = (now, HashSet::new());
        }
        if paths.contains(path) {
            return Ok(());
        }
        if paths.len() >= DISTINCT {
            return Err(Spread);
        }
        paths.insert(path.clone());
        Ok(())
    }
}

impl Windows {
    fn sweep(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| due <= now) {
            let over = |began: &Instant| now.saturating_duration_since(*began) >= WINDOW;
            self.open.retain(|_, (began, _)| !over(began));
            self.sweep = Some(now + WINDOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn path(number: usize) -> SecretPath {
        format!("s/x{number}").parse().unwrap()
    }

    #[test]
    fn a_uid_has_so_many_different_secrets_fetched_within_a_minute() {
        let (spreads, clock) = (Spreads::default(), Clock::manual());
        let count = |uid, number| spreads.count(Uid(uid), &path(number), clock.now());
        for number in 0..DISTINCT {
            count(1, number).unwrap();
        }
        assert_eq!(count(1, DISTINCT), Err(Spread));
        // The same ones again, and another's.
        count(1, 0).unwrap();
        count(2, DISTINCT).unwrap();
        clock.advance(WINDOW - Duration::from_millis(1));
        assert_eq!(count(1, DISTINCT), Err(Spread));
        clock.advance(Duration::from_millis(1));
        for number in DISTINCT..2 * DISTINCT {
            count(1, number).unwrap();
        }
        assert_eq!(count(1, 0), Err(Spread));
    }

    #[test]
    fn nobody_is_remembered_for_long() {
        let (spreads, clock) = (Spreads::default(), Clock::manual());
        for uid in 0..1000 {
            spreads.count(Uid(uid), &path(0), clock.now()).unwrap();
        }
        clock.advance(WINDOW);
        spreads.count(Uid(1), &path(0), clock.now()).unwrap();
        assert_eq!(spreads.0.lock().unwrap().open.len(), 1);
    }
}
