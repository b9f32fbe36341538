//! What becomes of names and inodes when values change.

use super::*;

impl Model {
    pub(super) fn changed(&mut self, place: &'static str, announced: bool, written: bool) {
        if !announced && self.backend_of(place) == 'a' {
            return;
        }
        let changed = self.backend_of(place);
        let lists = self.lists.iter_mut();
        for (_, (_, at)) in lists.filter(|((backend, _), _)| *backend == changed) {
            *at = None;
        }
        let shows = |path: &&'static str| places_of(path).contains(&place);
        self.records.remove(place);
        self.absences.remove(place);
        for path in SECRETS.into_iter().filter(shows) {
            self.forget(path);
        }
        self.follow_all(SECRETS.into_iter().filter(shows).collect(), written);
    }

    /// The same for several, all at once.
    pub(super) fn follow_all(&mut self, mut paths: Vec<&'static str>, written: bool) {
        // It asks elsewhere first.
        paths.sort_by_key(|path| *path == "app/either");
        self.at_once = Some(AtOnce::default());
        for path in paths {
            self.follow(path, written);
        }
        self.all_have_answered();
    }

    /// What the daemon does of itself when a value has changed.
    fn follow(&mut self, path: &'static str, written: bool) {
        let secret = self.current.get(path).map(|node| self.nodes[*node].secret);
        match secret.filter(|secret| self.newest[*secret] > 0) {
            Some(secret) => match self.fetch(path) {
                Ok(given) if given.generation.number <= self.newest[secret] => {}
                Ok(given) => self.replace(path, Some(&given.generation)),
                Err(No::Absent) => {
                    self.numbers += 1;
                    self.newest[secret] = self.numbers;
                    self.remove(path);
                }
                Err(_) => self.replace(path, None),
            },
            None if !self.watched.contains(split(path).0) => {}
            None if written || self.exists(path) => self.replace(path, None),
            None => self.remove(path),
        }
    }

    fn exists(&mut self, path: &'static str) -> bool {
        let (service, name) = split(path);
        is_bound(path)
            || self
                .list(self.folder_of(service), service)
                .map_or(true, |names| names.iter().any(|known| known == name))
    }

    /// The name leads to another inode from now on.
    pub(super) fn replace(&mut self, path: &'static str, generation: Option<&Generation>) {
        let before = self.current.get(path).map(|node| self.nodes[*node].secret);
        let secret = before.unwrap_or_else(|| {
            self.newest.push(0);
            self.newest.len() - 1
        });
        if let Some(generation) = generation {
            self.newest[secret] = self.newest[secret].max(generation.number);
        }
        self.current.insert(path, self.nodes.len());
        self.nodes.push(Node {
            path,
            secret,
            barred: false,
            size: generation.map_or(0, length),
            shown: generation.map(|generation| generation.number),
        });
    }

    pub(super) fn remove(&mut self, path: &'static str) {
        if is_bound(path) {
            self.replace(path, None);
        } else {
            self.current.remove(path);
        }
    }

    /// Somebody was given this generation through this inode.
    pub(super) fn noticed(&mut self, node: usize, generation: &Generation) {
        let Node { path, secret, .. } = self.nodes[node];
        let before = self.newest[secret];
        self.newest[secret] = before.max(generation.number);
        if before != 0 && before < generation.number {
            self.replace(path, Some(generation));
        }
    }
}
