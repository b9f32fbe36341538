//! What a server leaves to the one that is started in its place.

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
            match shown.map(|cached| cached.at).max() {
                Some(at) => record.at = at,
                None => return false,
            }
            true
        });
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
        let Record { version, at, .. } = self.records[place];
        let number = self.number(path, place, version);
        if let Some(cached) = self.values.get_mut(path) {
            cached.generation.number = number;
            cached.at = at;
        }
    }
}
