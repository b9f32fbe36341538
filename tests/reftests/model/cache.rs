//! The rules of the cache: what is asked for, for whom, and what is shown meanwhile.

use super::config::{field_of, stale_of};
use super::*;

impl Model {
    /// `folder` "" is the list of folders.
    pub(super) fn list(&mut self, backend: char, folder: &str) -> Result<Vec<String>, No> {
        let key = (backend, folder.to_owned());
        if let Some((names, at)) = self.lists.get(&key)
            && at.is_some_and(|at| backend == 'b' || self.now - at < TTL)
        {
            return Ok(names.clone());
        }
        self.hear_of_late_lists();
        let admitted = self.admits(backend);
        let storm = match admitted {
            true => self.storm(backend),
            false => Some(No::Down),
        };
        if admitted {
            self.listings += 1;
            self.hear_of_list(backend, storm);
        }
        let no = match storm {
            None => {
                let names = match folder {
                    "" => self.folders_in(backend),
                    folder => self.names_in(backend, folder),
                };
                self.lists.insert(key, (names.clone(), Some(self.now)));
                return Ok(names);
            }
            Some(no) => no,
        };
        if no == No::Refused {
            self.lists.remove(&key);
        }
        match self.lists.get(&key) {
            Some((names, _)) if matches!(no, No::Down | No::Late) => Ok(names.clone()),
            _ => Err(no),
        }
    }

    pub(super) fn fetch(&mut self, path: &'static str) -> Result<Given, No> {
        self.claim(path);
        if let Some(generation) = self.fresh(path) {
            return Ok(Given {
                generation,
                waited: false,
                stale: false,
            });
        }
        if let Some(old) = self.old(path) {
            let stale = |waited| {
                Ok(Given {
                    generation: old.clone(),
                    waited,
                    stale: true,
                })
            };
            let asked = self.backends_asked(path);
            let down = asked.iter().any(|backend| self.is_down(*backend));
            if asked.iter().any(|backend| self.is_alone(*backend)) {
                return stale(false);
            }
            if down {
                self.hear_of_late_lists();
                // It is asked all the same, and nobody waits for it.
                self.at_once.get_or_insert_default();
                match self.ask(path) {
                    Ok(new) if new.number == old.number => {}
                    Ok(_) => drop(self.overtaken.insert(path)),
                    Err(No::Absent) => {
                        self.forget(path);
                        self.overtaken.insert(path);
                    }
                    Err(No::Refused) => self.forget(path),
                    Err(No::Down | No::Late | No::Garbled) => {}
                }
                return stale(true);
            }
        }
        self.hear_of_late_lists();
        match self.ask(path) {
            Ok(generation) => Ok(Given {
                generation,
                waited: true,
                stale: false,
            }),
            Err(no) => {
                if matches!(no, No::Absent | No::Refused) {
                    self.forget(path);
                }
                match self.old(path) {
                    Some(generation) if matches!(no, No::Down | No::Late) => Ok(Given {
                        generation,
                        waited: true,
                        stale: true,
                    }),
                    _ => Err(no),
                }
            }
        }
    }

    /// What is shown without asking anybody. A lease is in use by this.
    fn fresh(&mut self, path: &'static str) -> Option<Generation> {
        let now = self.now;
        let cached = self.values.get(path)?;
        let young = cached.forever || !cached.old && now - cached.at < TTL;
        let (generation, place, version) =
            (cached.generation.clone(), cached.place, cached.version);
        let young = match self.lease_of(place, version) {
            Some(lease) => {
                lease.asked = true;
                lease.is_current(now)
            }
            None => young,
        };
        young.then_some(generation)
    }

    /// What may stand in for a value that cannot be had.
    fn old(&mut self, path: &'static str) -> Option<Generation> {
        let now = self.now;
        let old = self.values.get(path)?;
        let (generation, place, version) = (old.generation.clone(), old.place, old.version);
        let ttl = if old.old { 0 } else { TTL };
        let not_too_old = now - old.at < ttl + stale_of(path);
        let may = match self.lease_of(place, version) {
            Some(lease) => lease.is_alive(now),
            None => not_too_old,
        };
        may.then_some(generation)
    }

    /// Who has to be asked until the value is found that is held.
    fn backends_asked(&self, path: &'static str) -> Vec<char> {
        let held = self.values[path].place;
        let places = places_of(path);
        let last = places.iter().position(|place| *place == held).unwrap();
        let asked = places[..=last].iter();
        asked
            .filter(|place| !self.is_known(place))
            .map(|place| self.backend_of(place))
            .collect()
    }

    /// Whether it was found out lately, for whomever, what is at a place.
    fn is_known(&self, place: &str) -> bool {
        self.young_record(place).is_some()
            || self
                .absences
                .get(place)
                .is_some_and(|at| self.now - at < ABSENT)
    }

    fn young_record(&self, place: &str) -> Option<&Record> {
        let record = self.records.get(place)?;
        let lease = self.leases.get(&record.version);
        let young = match lease.filter(|_| place == LEASED) {
            Some(lease) => lease.is_current(self.now),
            None => self.backend_of(place) == 'b' || !record.old && self.now - record.at < TTL,
        };
        young.then_some(record)
    }

    fn ask(&mut self, path: &'static str) -> Result<Generation, No> {
        let mut forever = true;
        let mut at = self.now;
        for place in places_of(path) {
            forever &= self.backend_of(place) == 'b';
            let Some(record) = self.record(place, Some(path))? else {
                at = at.min(*self.absences.get(place).unwrap_or(&at));
                continue;
            };
            let Record {
                value,
                version,
                at: read,
                ..
            } = record;
            at = at.min(read);
            let Some(value) = cut(value, field_of(path))? else {
                continue;
            };
            let number = self.number(path, place, version);
            self.cuts += 1;
            let generation = Generation {
                number,
                cut: self.cuts,
                value,
            };
            if let Some(lease) = self.lease_of(place, version) {
                lease.asked = true;
            }
            let cached = Cached {
                generation: generation.clone(),
                place,
                version,
                read,
                at,
                forever,
                old: false,
            };
            self.values.insert(path, cached);
            self.leave(path, Some(place));
            if let Some(record) = self.records.get_mut(place) {
                record.users.insert(path);
            }
            return Ok(generation);
        }
        Err(No::Absent)
    }

    /// Our number for a version of a secret: the one that it was last shown under, or another one.
    pub(super) fn number(
        &mut self,
        path: &'static str,
        place: &'static str,
        version: u64,
    ) -> usize {
        match self.generations.get(path) {
            Some((from, same, number)) if *from == place && *same == version => *number,
            _ => {
                self.numbers += 1;
                self.generations
                    .insert(path, (place, version, self.numbers));
                self.numbers
            }
        }
    }

    /// What is at a place, for a secret: read now, if it was not read lately.
    pub(super) fn record(
        &mut self,
        place: &'static str,
        path: Option<&'static str>,
    ) -> Result<Option<Record>, No> {
        let backend = self.backend_of(place);
        if let Some(record) = self.young_record(place).cloned() {
            if let Some(lease) = self.lease_of(place, record.version) {
                lease.made_for.extend(path);
            }
            return Ok(Some(record));
        }
        if let Some(at) = self.absences.get(place)
            && self.now - at < ABSENT
        {
            return Ok(None);
        }
        let storm = self.storm(backend);
        // Two ask for the second place at the same time only if neither asked elsewhere first, or it takes that long.
        let before = self.at_once.as_ref().map(|at_once| &at_once.failed);
        let elsewhere = before.is_some_and(|failed| failed.contains_key("a:x/first"));
        let at_once = place != "b:web/second" || !elsewhere || storm == Some(No::Late);
        let failed = before.and_then(|failed| failed.get(place));
        if let Some(failed) = failed.filter(|_| at_once) {
            return failed.map(|()| None);
        }
        if !self.admits(backend) {
            return Err(No::Down);
        }
        self.hear(backend, storm);
        self.reads += 1;
        let found = match storm {
            None => self.read_at(place),
            Some(_) => None,
        };
        let failed = match (storm, found) {
            (None, Some((value, version))) => {
                if let Some(lease) = self.lease_of(place, version) {
                    lease.made_for.extend(path);
                }
                let mut users = BTreeSet::new();
                match self.records.remove(place) {
                    Some(same) if same.version == version => users = same.users,
                    Some(other) => self.overtake(other, path),
                    None => {}
                }
                let at = self.now;
                let record = Record {
                    value,
                    version,
                    at,
                    old: false,
                    users,
                };
                self.absences.remove(place);
                self.records.insert(place, record.clone());
                return Ok(Some(record));
            }
            (None, None) => {
                if let Some(gone) = self.records.remove(place) {
                    self.overtake(gone, path);
                }
                if backend == 'a' {
                    self.absences.insert(place, self.now);
                }
                Ok(())
            }
            (Some(no), _) => {
                if no == No::Refused {
                    self.absences.remove(place);
                    // Who reads next finds out.
                    self.drop_record(place);
                }
                Err(no)
            }
        };
        if let Some(at_once) = &mut self.at_once {
            at_once.failed.insert(place, failed);
        }
        failed.map(|()| None)
    }

    /// What a backend has at a place.
    fn read_at(&mut self, place: &str) -> Option<(String, u64)> {
        if place == LEASED && !self.one_store {
            return Some(self.make());
        }
        let found = self.places.get(place).filter(|found| found.exists)?;
        found.versions.last().cloned()
    }

    /// There is another record now, and who asked for it knows.
    fn overtake(&mut self, record: Record, by: Option<&'static str>) {
        for user in record.users {
            self.values.remove(user);
            if Some(user) != by {
                self.overtaken.insert(user);
            }
        }
    }

    /// Drops a record, and what was cut from it.
    pub(super) fn drop_record(&mut self, place: &str) {
        let gone = self.records.remove(place);
        for user in gone.into_iter().flat_map(|gone| gone.users) {
            self.values.remove(user);
        }
    }

    /// Drops a value, and its record if no other was cut from it.
    pub(super) fn forget(&mut self, path: &'static str) {
        self.values.remove(path);
        self.leave(path, None);
    }

    /// A secret shows nothing of the records at other places. They go with their last user.
    fn leave(&mut self, path: &'static str, place: Option<&'static str>) {
        self.records.retain(|at, record| {
            Some(*at) == place || !record.users.remove(path) || !record.users.is_empty()
        });
    }
}

/// What a secret shows of a record, if that has the field.
fn cut(record: String, field: Option<&str>) -> Result<Option<String>, No> {
    let Some(field) = field else {
        return Ok(Some(record));
    };
    let fields: HashMap<String, String> = serde_json::from_str(&record).map_err(|_| No::Garbled)?;
    Ok(fields.get(field).cloned())
}
