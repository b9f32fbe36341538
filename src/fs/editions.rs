//! The catalogue of the config in force and that of the one before, so that every open finds its place by the config that
//! allowed it.
//!
//! A reload replaces rules and places, which are two things. First the new places come beside the old ones, then the new
//! rules are in force. A permit says under which edition of the rules it was given, and that is one of the two here,
//! whenever it was asked for: no lock, and nobody waits. Only who was held up between his two questions for as long as
//! two reloads take has to ask again.

use std::ops::Deref;
use std::sync::{Arc, PoisonError};

use crate::fs::Catalogue;
use crate::sync::{Guard, Mutex, Swap};

/// The catalogues that may be asked for.
#[derive(Debug)]
pub(super) struct Editions {
    kept: Swap<Kept>,
    /// Held by a reload, so that two never mix.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Kept {
    current: Arc<Catalogue>,
    previous: Option<Arc<Catalogue>>,
}

/// One of them.
pub(super) struct Edition {
    kept: Guard<Kept>,
    previous: bool,
}

impl Deref for Edition {
    type Target = Arc<Catalogue>;

    fn deref(&self) -> &Arc<Catalogue> {
        match &self.kept.previous {
            Some(previous) if self.previous => previous,
            Some(_) | None => &self.kept.current,
        }
    }
}

impl Editions {
    /// The first catalogue, of this edition.
    pub(super) fn new(mut catalogue: Catalogue, edition: u64) -> Self {
        catalogue.edition = edition;
        let kept = Kept {
            current: Arc::new(catalogue),
            previous: None,
        };
        Self {
            kept: Swap::new(kept),
            turn: Mutex::new(()),
        }
    }

    /// The newest, for what needs no permit.
    pub(super) fn current(&self) -> Edition {
        Edition {
            kept: self.kept.load(),
            previous: false,
        }
    }

    /// That of an edition of the rules; `None` if two newer ones have come since.
    pub(super) fn of(&self, edition: u64) -> Option<Edition> {
        let kept = self.kept.load();
        let previous = kept.previous.as_ref();
        let previous = match kept.current.edition == edition {
            true => false,
            false if previous.is_some_and(|previous| previous.edition == edition) => true,
            false => return None,
        };
        Some(Edition { kept, previous })
    }

    /// Puts the next catalogue beside the current one and then, by `rules`, its rules in force.
    pub(super) fn replace(&self, mut catalogue: Catalogue, rules: impl FnOnce(u64)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let current = Arc::clone(&self.current());
        let edition = current.edition.wrapping_add(1);
        catalogue.edition = edition;
        self.kept.store(Kept {
            current: Arc::new(catalogue),
            previous: Some(current),
        });
        rules(edition);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_editions_can_be_asked_for() {
        let editions = Editions::new(Catalogue::default(), 7);
        assert_eq!(editions.of(7).map(|found| found.edition), Some(7));
        for next in [8, 9] {
            let mut in_force = None;
            editions.replace(Catalogue::default(), |edition| {
                // The places are there before the rules are.
                assert!(editions.of(edition).is_some());
                in_force = Some(edition);
            });
            assert_eq!(in_force, Some(next));
            assert_eq!(editions.current().edition, next);
            assert_eq!(
                editions.of(next - 1).map(|found| found.edition),
                Some(next - 1)
            );
            assert!(editions.of(next - 2).is_none());
        }
    }
}
