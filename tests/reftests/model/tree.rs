//! The rules of the tree: names, inodes, handles, and what becomes of them when something changes.

use super::config::BOUND;
use super::*;

impl Model {
    pub(super) fn look_up_service(&mut self, uid: u32, service: &str) -> Result<(), i32> {
        if matches!(service, "app" | "web") {
            self.watched.insert(service.to_owned());
            return Ok(());
        }
        if uid != 0 && !self.in_service(uid, service) {
            return Err(libc::EACCES);
        }
        let folders = self.list('b', "").map_err(No::errno)?;
        let known = folders.iter().any(|folder| folder == service);
        if known {
            self.watched.insert(service.to_owned());
        }
        known.then_some(()).ok_or(libc::ENOENT)
    }

    pub(super) fn look_up(&mut self, uid: u32, path: &'static str) -> Result<usize, i32> {
        let (service, name) = split(path);
        self.look_up_service(uid, service)?;
        if uid != 0 && !self.in_service(uid, service) {
            return Err(libc::EACCES);
        }
        if !is_bound(path) {
            let names = self
                .list(self.folder_of(service), service)
                .map_err(No::errno)?;
            if !names.iter().any(|known| known == name) {
                return Err(libc::ENOENT);
            }
        }
        if !self.current.contains_key(path) {
            self.replace(path, None);
        }
        Ok(self.current[path])
    }

    pub(super) fn list_for(&mut self, uid: u32, folder: &str) -> Result<Vec<String>, i32> {
        if folder.is_empty() {
            let mut services = vec!["app".to_owned(), "web".to_owned()];
            if uid == 0 || self.in_service(uid, "free") {
                services.extend(self.list('b', "").map_err(No::errno)?);
            }
            services.sort();
            services.dedup();
            return Ok(services);
        }
        self.look_up_service(uid, folder)?;
        if !self.in_service(uid, folder) {
            return Ok(Vec::new());
        }
        let mut names = self
            .list(self.folder_of(folder), folder)
            .map_err(No::errno)?;
        if folder == "app" {
            names.extend(BOUND.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn note(&mut self, uid: u32, action: &str, path: &str, outcome: &str) {
        self.log.push(format!("{uid} {action} {path} {outcome}"));
    }

    pub(super) fn stat(&mut self, uid: u32, node: usize) -> Answer {
        let Node {
            path, size, shown, ..
        } = self.nodes[node];
        if shown.is_some() || !self.may_read(uid, path) {
            return Ok(Seen::Size(size));
        }
        match self.fetch(path) {
            Ok(given) => {
                if given.waited {
                    self.note(
                        uid,
                        "stat",
                        path,
                        if given.stale { "stale" } else { "allowed" },
                    );
                }
                let size = length(&given.generation);
                self.nodes[node].size = size;
                self.nodes[node].shown = Some(given.generation.number);
                self.noticed(node, &given.generation);
                Ok(Seen::Size(size))
            }
            Err(no) => {
                self.note(uid, "stat", path, no.outcome());
                match no {
                    No::Absent => Err(libc::ENOENT),
                    _ => Ok(Seen::Size(size)),
                }
            }
        }
    }

    pub(super) fn open(&mut self, uid: u32, node: usize) -> Answer {
        let Node { path, secret, .. } = self.nodes[node];
        if !self.may_read(uid, path) {
            self.note(uid, "open", path, "denied");
            return Err(libc::EACCES);
        }
        // Who was sent away from an inode and comes back to it did not come by its name.
        let back = self.sent_away.remove(&(uid, secret));
        let superseded = self.current.get(path) != Some(&node);
        if back.is_none() && superseded && !self.is_at(node, self.newest[secret]) {
            self.sent_away
                .insert((uid, secret), (node, self.newest[secret]));
            return Err(libc::ESTALE);
        }
        let mut given = self.fetch(path).map_err(|no| self.refused(uid, path, no))?;
        if self.pin(uid, node, &given.generation, Sharing::Never) {
            return self.opened(uid, path, &given);
        }
        let superseded = self.current.get(path) != Some(&node);
        let sharing = match back {
            None => Sharing::Never,
            Some((from, _)) if from == node && superseded => Sharing::Unpaged,
            Some((_, least)) => {
                if let Some(own) = self.own(node, least)
                    && self.pin(uid, node, &own, Sharing::Never)
                {
                    self.note(uid, "open", path, "allowed");
                    return Ok(Seen::Done);
                }
                Sharing::Any
            }
        };
        if self.newest[secret] > given.generation.number {
            // What is current after a while.
            given = self.fetch(path).map_err(|no| self.refused(uid, path, no))?;
        }
        if self.pin(uid, node, &given.generation, sharing) {
            return self.opened(uid, path, &given);
        }
        if back.is_none() {
            self.sent_away
                .insert((uid, secret), (node, self.newest[secret]));
        }
        Err(libc::ESTALE)
    }

    /// Whether an inode shows this generation, or a newer one, to all who have it open.
    pub(super) fn is_at(&self, node: usize, newest: usize) -> bool {
        let mut open = self.handles.iter().filter(|handle| handle.node == node);
        let shown = self.nodes[node].shown;
        shown.is_none_or(|shown| shown >= newest)
            && open.all(|open| open.generation.number >= newest)
    }

    /// What an inode shows to whoever has it open.
    pub(super) fn own(&self, node: usize, least: usize) -> Option<Generation> {
        let number = self.nodes[node].shown.filter(|shown| *shown >= least)?;
        let mut open = self
            .handles
            .iter()
            .filter(|handle| handle.node == node && !handle.taken);
        let own = open.find(|handle| handle.generation.number == number)?;
        Some(own.generation.clone())
    }

    pub(super) fn refused(&mut self, uid: u32, path: &str, no: No) -> i32 {
        self.note(uid, "open", path, no.outcome());
        no.errno()
    }

    pub(super) fn opened(&mut self, uid: u32, path: &str, given: &Given) -> Answer {
        let outcome = if given.stale { "stale" } else { "allowed" };
        self.note(uid, "open", path, outcome);
        Ok(Seen::Done)
    }

    /// Takes open files from whom the rules do not allow to have them any more.
    pub(super) fn enforce(&mut self) {
        for handle in 0..self.handles.len() {
            let Handle {
                node,
                opener,
                taken,
                checked,
                ..
            } = self.handles[handle];
            let path = self.nodes[node].path;
            let still = self.still(opener, path);
            if !taken && still != Still::Yes {
                // Who reads is asked at each read, if reads are checked.
                self.handles[handle].taken = still == Still::No || !checked;
                self.nodes[node].barred = true;
                if self.current.get(path) == Some(&node) {
                    self.replace(path, None);
                }
            }
        }
    }

    /// Opens a handle on this generation, if the inode can be shared with those that are open.
    pub(super) fn pin(
        &mut self,
        uid: u32,
        node: usize,
        generation: &Generation,
        sharing: Sharing,
    ) -> bool {
        let path = self.nodes[node].path;
        let others = || {
            let handles = self.handles.iter();
            handles
                .filter(|other| other.node == node && other.generation.number != generation.number)
        };
        let older = others().next().is_some();
        let paged = others().any(|other| other.among_paged);
        let is_current = self.current.get(path) == Some(&node);
        let checked = path != "web/k1" || !self.policy.cached;
        let inode = &mut self.nodes[node];
        let barred = inode.barred;
        let another = inode.shown.is_some_and(|shown| shown != generation.number);
        let newer = inode.shown.is_none_or(|shown| shown < generation.number);
        let behind = another && !newer;
        let occupied = match sharing {
            Sharing::Never => another || older,
            Sharing::Unpaged => paged,
            Sharing::Any => false,
        };
        if !occupied {
            inode.size = if older || behind {
                inode.size.max(length(generation))
            } else {
                length(generation)
            };
            if newer {
                inode.shown = Some(generation.number);
            }
            let paged =
                !checked && length(generation) > 0 && is_current && !older && !another && !barred;
            self.handles.push(Handle {
                node,
                opener: uid,
                taken: false,
                generation: generation.clone(),
                checked,
                paged,
                among_paged: false,
            });
            let same = |other: &&mut Handle| {
                other.node == node && other.generation.number == generation.number
            };
            let together: Vec<&mut Handle> = self.handles.iter_mut().filter(same).collect();
            let among_paged = paged || together.iter().any(|handle| handle.among_paged);
            for handle in together {
                handle.among_paged = among_paged;
            }
        }
        self.noticed(node, generation);
        !occupied
    }

    pub(super) fn read(&mut self, uid: u32, handle: usize, offset: u64, size: u32) -> Answer {
        let Handle {
            node,
            generation,
            checked,
            paged,
            taken,
            ..
        } = &self.handles[handle];
        let Node { path, barred, .. } = self.nodes[*node];
        let allowed = self.may_read(uid, path);
        if *taken || (*checked && !allowed) {
            self.note(
                uid,
                "read",
                path,
                if allowed { "revoked" } else { "denied" },
            );
            return Err(libc::EACCES);
        }
        if *paged && barred {
            return Err(libc::ESTALE);
        }
        let bytes = generation
            .value
            .bytes()
            .skip(usize::try_from(offset).unwrap());
        Ok(Seen::Bytes(
            bytes.take(usize::try_from(size).unwrap()).collect(),
        ))
    }
}
