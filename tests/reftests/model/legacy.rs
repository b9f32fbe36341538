//! What a server leaves to the one that is started in its place.

use super::config::stale_of;
use super::*;

impl Model {
    /// The server ends. Nobody has anything open any more, and what is left is what secrets show.
    pub(super) fn restart(&mut self) {
        self.forget_tree();
        self.inherit_leases();
        self.generations.clear();
        self.absences.clear();
        self.health.clear();
        // Who announces changes was not listened to meanwhile.
        self.values
            .retain(|_, cached| cached.place.starts_with('a'));
        self.lists.retain(|(backend, _), _| *backend == 'a');
        for (_, at) in self.lists.values_mut() {
            *at = None;
        }
        for cached in self.values.values_mut() {
            cached.generation.number = 0;
        }
        // What several secrets show is as old as one of them last found it.
        let values = &self.values;
        self.records.retain(|_, record| {
            let shown = record.users.iter().filter_map(|user| values.get(user));
            let Some(last) = shown.max_by_key(|cached| cached.read) else {
                return false;
            };
            (record.at, record.old) = (last.read, last.old);
            true
        });
        // So is each of them, whether or not anybody has come for it before the next server ends.
        for cached in self.values.values_mut() {
            let record = &self.records[cached.place];
            (cached.read, cached.old) = (record.at, record.old);
        }
    }

    /// The daemon ends for good, and so do the leases. What is kept meanwhile only stands in for a backend that cannot be
    /// reached: nothing leased, and nothing of what is never shown stale.
    pub(super) fn switch_off(&mut self, seconds: u64) {
        self.end_leases();
        self.drop_record(LEASED);
        self.now += seconds;
        self.restart();
        for path in SECRETS.into_iter().filter(|path| stale_of(path) == 0) {
            self.forget(path);
        }
        for cached in self.values.values_mut() {
            cached.old = true;
        }
        for record in self.records.values_mut() {
            record.old = true;
        }
    }

    fn forget_tree(&mut self) {
        self.nodes.clear();
        self.newest.clear();
        self.current.clear();
        self.sent_away.clear();
        self.watched.clear();
        self.handles.clear();
        self.pins.clear();
    }

    /// A secret is shown what it was shown before, if that was inherited.
    pub(super) fn claim(&mut self, path: &'static str) {
        let inherited = self.values.get(path);
        let Some(inherited) = inherited.filter(|value| value.generation.number == 0) else {
            return;
        };
        let place = inherited.place;
        let Record {
            version, at, old, ..
        } = self.records[place];
        let number = self.number(path, place, version);
        // What is higher up by now nobody knows: it only stands in.
        let older = match places_of(path)[0] == place || old {
            true => 0,
            false => TTL,
        };
        if let Some(cached) = self.values.get_mut(path) {
            cached.generation.number = number;
            cached.read = at;
            cached.at = at - older;
            cached.old = old;
        }
    }
}
