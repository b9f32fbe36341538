//! Which life of a record a version is of.
//!
//! KV 2 counts from 1 again when a record was deleted with all that it had and made anew: its version 1 then is another
//! value than its version 1 before. Their times tell them apart. So a record that is seen to have begun again calls its
//! versions `1~2`, `2~2`, …: the first and second of its second life. `1` is still asked for as whatever the server has
//! under that number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::mounts::Place;
use crate::backend::Version;

/// The records that were seen.
#[derive(Debug, Default)]
pub(super) struct Lives(Mutex<HashMap<Place, Life>>);

#[derive(Debug)]
struct Life {
    /// Which it is; the first is 1.
    count: u64,
    /// The newest version that was seen of it, and when that was made.
    newest: u64,
    made: Timestamp,
}

impl Lives {
    /// What this version of a record is called, and whether it is the record's current one.
    pub(super) fn name(
        &self,
        place: &Place,
        number: u64,
        made: Option<Timestamp>,
        current: bool,
    ) -> Version {
        let mut lives = self.lives();
        let Some(made) = made else {
            return called(number, lives.get(place).map_or(1, |life| life.count));
        };
        let life = lives.entry(place.clone()).or_insert(Life {
            count: 1,
            newest: number,
            made,
        });
        let same_number = number == life.newest;
        if same_number && made < life.made {
            // An answer that was long on its way, from before the record was made anew.
            return called(number, life.count.saturating_sub(1).max(1));
        }
        // Another first version, or fewer versions than there were.
        let anew = made > life.made && (same_number || current && number < life.newest);
        if anew {
            life.count = life.count.saturating_add(1);
        }
        if anew || number > life.newest {
            (life.newest, life.made) = (number, made);
        }
        called(number, life.count)
    }

    /// The number of a version that is called like this; `None` if it is of another life, or no version's name.
    pub(super) fn number(&self, place: &Place, version: &Version) -> Option<u64> {
        let (number, count) = match version.as_str().split_once('~') {
            None => (version.as_str(), None),
            Some((number, count)) => (number, Some(count.parse::<u64>().ok()?)),
        };
        let number = number.parse().ok().filter(|number| *number > 0)?;
        let now = self.lives().get(place).map_or(1, |life| life.count);
        count.is_none_or(|count| count == now).then_some(number)
    }

    /// The number of the version that is called exactly like this: what a change goes by. A version that was revoked under
    /// its name must not come back under another.
    pub(super) fn exactly(&self, place: &Place, version: &Version) -> Option<u64> {
        let number = self.number(place, version)?;
        let now = self.lives().get(place).map_or(1, |life| life.count);
        (called(number, now) == *version).then_some(number)
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<Place, Life>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn called(number: u64, life: u64) -> Version {
    match life {
        1 => Version::new(number.to_string()),
        life => Version::new(format!("{number}~{life}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mounts::Engine;
    use super::*;

    #[test]
    fn a_record_that_begins_again_has_other_versions() {
        let lives = Lives::default();
        let place = Place {
            engine: Engine::Versioned,
            mount: "secret".to_owned(),
            path: "a".to_owned(),
        };
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        // A version, when it was made, whether it is current, and its name.
        for (number, made, current, name) in [
            (1, at(10), true, "1"),
            (1, at(10), true, "1"),
            (2, at(20), true, "2"),
            (1, at(10), false, "1"),
            // Made anew, and an answer from before.
            (1, at(30), true, "1~2"),
            (1, at(10), true, "1"),
            (1, at(30), true, "1~2"),
            (2, at(40), true, "2~2"),
            (1, at(30), false, "1~2"),
            // Made anew twice before we looked again.
            (2, at(60), true, "2~3"),
            (2, None, true, "2~3"),
        ] {
            let named = lives.name(&place, number, made, current);
            assert_eq!(named.as_str(), name, "{number} {made:?}");
        }
        for (name, number) in [
            ("2~3", Some(2)),
            ("1", Some(1)),
            ("7", Some(7)),
            ("2~2", None),
            ("0", None),
            ("latest", None),
            ("2~", None),
        ] {
            assert_eq!(lives.number(&place, &Version::new(name)), number, "{name}");
            let exact = number.filter(|_| name == "2~3");
            assert_eq!(lives.exactly(&place, &Version::new(name)), exact, "{name}");
        }
    }
}
