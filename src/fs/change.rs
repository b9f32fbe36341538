//! What happens to the tree: values that change, names that change hands, handles that are taken away.
//!
//! A new generation gets an inode of its own, which the kernel renames over the old one at our request, so that whoever
//! watches hears of it, and opens get the value from before until that is done. Everything here is safe without that
//! rename: who waits for the kernel waits for [`KERNEL_DEADLINE`] at most, and then an open asks for the current value
//! whatever inode it comes by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join, join_all};
use tokio::sync::{oneshot, watch};

use crate::access::Recheck;
use crate::backend::{BackendError, Reference, Version};
use crate::cache::Generation;
use crate::config::Reads;
use crate::events::What;
use crate::fs::inodes::Pending;
use crate::fs::ledger::Entry;
use crate::fs::ledger::lines::{ChangeLine, Line};
use crate::fs::node::{Secret, SecretNode, View};
use crate::fs::{Attr, FsError, Ino, Node, Renaming, Reply, Tree};
use crate::secret::{Name, SecretPath};

/// How long a change waits for the kernel to hear of it.
const KERNEL_DEADLINE: Duration = Duration::from_secs(1);

/// A change of a name that is under way, to be waited for.
#[derive(Debug)]
pub(super) struct Made(watch::Receiver<()>);

impl Made {
    /// Waits until the kernel has made it, or has been asked to look the name up again.
    async fn wait(mut self) {
        // Nothing is ever sent: it ends when the other end is dropped.
        while self.0.changed().await.is_ok() {}
    }
}

/// What is known of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There is a value now.
    Written,
    /// Something happened: there may be another value, none, or the same as before.
    Perhaps,
    /// It was under way when an earlier server died: nobody knows how far it came, so it is made once more.
    Again,
}

/// While this is there the next server takes no value for what it was by its version.
#[derive(Debug)]
pub struct Doubt {
    _lines: Vec<Entry>,
}

impl Tree {
    /// The values at these references have changed. When the future ends, every following open sees the new ones, by any
    /// way, and whoever watches has heard of it, unless the kernel took longer than a second for that. Until then
    /// an open may still see the old one: it changes in the moment in which the kernel gives the name to another inode.
    pub fn changed<'a>(
        self: &Arc<Self>,
        references: impl IntoIterator<Item = &'a Reference>,
        change: Change,
    ) -> BoxFuture<'static, ()> {
        let catalogue = self.editions.current();
        let mut paths = Vec::new();
        let references: Vec<&Reference> = references.into_iter().collect();
        for reference in &references {
            // Each that may show it, not only those that have: one may be on its way.
            paths.extend(catalogue.paths_from(reference));
            let services = catalogue.services_from(reference);
            if !services.is_empty() {
                let mut known = self.inodes.known();
                known.retain(|path| services.contains(&&path.service) && !catalogue.is_bound(path));
                paths.append(&mut known);
            }
        }
        let shown = paths.iter().filter_map(|path| self.shown(path)).collect();
        for reference in references {
            self.cache.invalidate(reference);
        }
        self.follow(paths, shown, change)
    }

    /// To be called before a store gets other values under the versions that it has.
    #[must_use]
    pub fn doubt(&self, store: &Name) -> Doubt {
        let catalogue = self.catalogue();
        let known = self.inodes.known().into_iter().filter(|path| {
            let binding = catalogue.binding(path);
            binding
                .is_some_and(|binding| binding.references.iter().any(|one| one.backend == *store))
        });
        let lines = known.filter_map(|path| {
            let line = Line::Change(ChangeLine { path });
            self.ledger.write(&line, [0; 3])
        });
        Doubt {
            _lines: lines.collect(),
        }
    }

    /// The values of everything that was ever fetched may have changed: see [`Tree::changed`].
    pub fn invalidate_all(self: &Arc<Self>) -> BoxFuture<'static, ()> {
        self.cache.invalidate_all();
        self.follow(self.inodes.known(), Vec::new(), Change::Perhaps)
    }

    /// The cache found out by itself that these secrets may have other values: who watches them hears of it.
    pub fn catch_up(self: &Arc<Self>, paths: Vec<SecretPath>) -> BoxFuture<'static, ()> {
        self.follow(paths, Vec::new(), Change::Perhaps)
    }

    /// Does so whenever the cache finds something out. It never ends.
    pub async fn keep_up(self: Arc<Self>) {
        loop {
            let paths = self.cache.overtaken().await;
            self.catch_up(paths).await;
        }
    }

    /// The generation that opens of this secret get, if it has one.
    fn shown(&self, path: &SecretPath) -> Option<(Arc<SecretNode>, Arc<Generation>)> {
        // Also for one that nobody has looked up: by this the cache learns where else it could be found, and drops what it
        // inherited for it when that place has changed.
        let binding = self.editions.current().binding(path)?;
        let generation = self.cache.fresh(path, &binding)?;
        Some((self.inodes.current(path)?, generation))
    }

    fn follow(
        self: &Arc<Self>,
        paths: Vec<SecretPath>,
        shown: Vec<(Arc<SecretNode>, Arc<Generation>)>,
        change: Change,
    ) -> BoxFuture<'static, ()> {
        let tree = Arc::clone(self);
        let each = paths.into_iter().map(move |path| {
            let tree = Arc::clone(&tree);
            async move { tree.follow_one(&path, change).await }
        });
        let tree = Arc::clone(self);
        async move {
            let keep = |(node, generation): (Arc<SecretNode>, _)| {
                node.secret.keep(generation);
                node
            };
            let keeping: Vec<_> = shown.into_iter().map(keep).collect();
            // In tasks of their own: they go on when nobody waits for them any more.
            let work = tokio::spawn(join_all(each));
            let end = tokio::spawn(async move {
                let in_time = tokio::time::timeout(KERNEL_DEADLINE, work).await.is_ok();
                // Mostly the kernel has been there before.
                for node in keeping {
                    if node.secret.let_go() {
                        tree.wake(&node.secret);
                    }
                }
                in_time
            });
            if !end.await.unwrap_or_default() {
                tracing::warn!("the kernel did not take a change of names in time; opens see the new values all the same");
            }
        }
        .boxed()
    }

    /// What happened is told when an open sees it: when the name has changed hands.
    pub(super) async fn follow_one(self: &Arc<Self>, path: &SecretPath, change: Change) {
        let current = self.inodes.current(path);
        let used = current.filter(|node| node.secret.is_in_use());
        // Where the kernel does not hold the folder, nobody watches it there.
        let watchable = self.inodes.is_watchable(&path.service);
        let (made, told) = match &used {
            // Its values are not to come back into memory.
            Some(_) if self.access.is_revoked(path) => {
                (self.rotate(path, None), Some(rotated(path, None)))
            }
            Some(node) => match self.newest(path).await {
                Ok(generation) => {
                    let news = node.secret.notice(generation.number);
                    let due = self.is_to_rotate(path, generation.number);
                    if !news && !due && change != Change::Again {
                        return;
                    }
                    // Also if somebody has found it out, and told of it, before: then it is under way.
                    let made = self.rotate(path, Some(&generation));
                    (made, news.then(|| rotated(path, Some(&generation))))
                }
                Err(BackendError::Absent(_)) => {
                    node.secret.notice(self.cache.next_number());
                    (self.remove(path), Some(removed(path)))
                }
                // Whoever opens it next finds out.
                Err(_) => (self.rotate(path, None), Some(rotated(path, None))),
            },
            None if change == Change::Again => match self.exists(path).await {
                true => (self.rotate(path, None), None),
                false => (self.remove(path), None),
            },
            None if !watchable && !self.access.events().is_watched() => return,
            None if change == Change::Written || self.exists(path).await => match watchable {
                true => (self.rotate(path, None), Some(rotated(path, None))),
                false => return self.tell(rotated(path, None)),
            },
            None => match watchable {
                true => (self.remove(path), Some(removed(path))),
                false => return self.tell(removed(path)),
            },
        };
        let _ = tokio::time::timeout(KERNEL_DEADLINE, made.wait()).await;
        if let Some(node) = used {
            node.secret.let_go();
            // Also who was woken when somebody found it out, and slept on because an open still gave the old value.
            self.wake(&node.secret);
        }
        if let Some(told) = told {
            self.tell(told);
        }
    }

    fn tell(&self, what: What) {
        self.access.events().tell(|| what);
    }

    /// True if the name leads to an inode that was made for an older generation.
    fn is_to_rotate(&self, path: &SecretPath, number: u64) -> bool {
        let current = self.inodes.current(path);
        current.is_some_and(|node| node.is_older_than(number))
    }

    pub(super) fn tell_rotated(&self, path: &SecretPath, generation: &Generation) {
        self.access
            .events()
            .tell(|| rotated(path, Some(generation)));
    }

    /// The value that is current now, for nobody: so that its new inode has its size.
    async fn newest(&self, path: &SecretPath) -> Result<Arc<Generation>, BackendError> {
        let binding = self.editions.current().binding(path);
        let binding = binding.ok_or_else(|| BackendError::Absent(path.to_string()))?;
        let served = self.cache.get(path, &binding).wait().await?;
        Ok(served.generation)
    }

    /// Whether there is a secret of this name, as far as can be found out.
    async fn exists(&self, path: &SecretPath) -> bool {
        let catalogue = self.catalogue();
        if catalogue.is_bound(path) {
            return true;
        }
        let Some(folder) = catalogue.folder(&path.service) else {
            return false;
        };
        let names = self.cache.names(&folder.backend, &folder.folder);
        let names = names.wait().await;
        names.map_or(true, |names| names.binary_search(&path.name).is_ok())
    }

    /// Has a new inode renamed over the current one, unless that is under way already.
    pub(super) fn rotate(
        self: &Arc<Self>,
        path: &SecretPath,
        generation: Option<&Generation>,
    ) -> Made {
        let (pending, begun) = self.inodes.begin(path, true);
        if let (Some(node), Some(generation)) = (&pending.replacement, generation) {
            node.make_for(generation);
            node.secret.notice(generation.number);
        }
        self.rename(path, pending, begun)
    }

    /// Has the name unlinked or, where the config itself names it, lead to a new inode.
    fn remove(self: &Arc<Self>, path: &SecretPath) -> Made {
        if self.editions.current().is_bound(path) {
            return self.rotate(path, None);
        }
        let (pending, begun) = self.inodes.begin(path, false);
        self.rename(path, pending, begun)
    }

    fn rename(
        self: &Arc<Self>,
        path: &SecretPath,
        pending: Pending,
        begun: Option<watch::Sender<()>>,
    ) -> Made {
        let made = Made(pending.made.clone());
        let Some(done) = begun else {
            return made;
        };
        let (tree, subject, number) = (Arc::clone(self), path.clone(), pending.number);
        let settle = move || {
            let wanted = |pending: &Pending| pending.number == number;
            tree.inodes.commit(&subject, None, wanted)
        };
        let mut renaming = Renaming {
            service: path.service.clone(),
            folder: self.inodes.service(&path.service),
            from: pending.hidden(),
            name: path.name.clone(),
            settle: Some(Box::new(settle)),
            _done: done,
            _line: pending.line,
        };
        match self.kernel.get() {
            Some(kernel) => kernel.rename(renaming),
            None => {
                renaming.settle();
            }
        }
        made
    }

    /// A look-up by the thread that renames: it finds the new inode under its hidden name and, under the name itself,
    /// what the kernel has there and nothing newer. A name that is to go is found in any case.
    ///
    /// # Errors
    /// [`FsError::Absent`]
    pub fn own_lookup(&self, parent: Ino, name: &str) -> Reply<Attr> {
        match self.inodes.get(parent) {
            Some(Node::Root) => {
                let service: Name = name.parse().map_err(|_| FsError::Absent)?;
                Ok(self.directory(self.inodes.service(&service)))
            }
            Some(Node::Service(service)) => {
                let node = match name.parse() {
                    Ok(name) => {
                        let path = SecretPath { service, name };
                        self.inodes
                            .leaving(&path)
                            .or_else(|| self.inodes.held(&path))
                    }
                    Err(_) => self.inodes.replacement(&service, name),
                };
                node.map(|node| self.file(&node)).ok_or(FsError::Absent)
            }
            Some(Node::Hidden(..) | Node::Secret(_)) | None => Err(FsError::Absent),
        }
    }

    /// The rename that the kernel was asked for: from here on the name leads to the new inode.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] for any other.
    pub fn own_rename(&self, parent: Ino, from: &str, to: &str, request: u64) -> Reply<()> {
        self.own_change(parent, to, request, |pending| {
            pending.hidden().as_deref() == Some(from)
        })
    }

    /// The same for an unlink.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] for any other.
    pub fn own_unlink(&self, parent: Ino, name: &str, request: u64) -> Reply<()> {
        self.own_change(parent, name, request, |pending| {
            pending.replacement.is_none()
        })
    }

    fn own_change(
        &self,
        parent: Ino,
        name: &str,
        request: u64,
        wanted: impl Fn(&Pending) -> bool,
    ) -> Reply<()> {
        let (Some(Node::Service(service)), Ok(name)) = (self.inodes.get(parent), name.parse())
        else {
            return Err(FsError::ReadOnly);
        };
        let path = SecretPath { service, name };
        let made = self.inodes.commit(&path, Some(request), wanted);
        made.then_some(()).ok_or(FsError::ReadOnly)
    }

    /// Wakes who polls a handle of this secret.
    pub(super) fn wake(&self, secret: &Secret) {
        let waiters = secret.wake();
        if let Some(kernel) = self.kernel.get() {
            waiters.into_iter().for_each(|waiter| kernel.wake(waiter));
        }
    }

    /// True if somebody has this version open.
    #[must_use]
    pub fn has_open(&self, path: &SecretPath, version: &Version) -> bool {
        let files = self.handles.files();
        files
            .iter()
            .any(|(_, file)| file.generation.version == *version && file.pin.node.path == *path)
    }

    /// Checks every open handle again, after rules or revocations have changed: what may not be read any more is taken
    /// away. When the future ends the kernel has dropped its pages too, or had a second for it.
    pub fn enforce(self: &Arc<Self>) -> BoxFuture<'static, ()> {
        let mut drop_pages: HashMap<Ino, Arc<SecretNode>> = HashMap::new();
        for (fh, file) in self.handles.files() {
            let node = &file.pin.node;
            let version = &file.generation.version;
            let still = self.access.recheck(&file.opener, &node.path, version);
            let taken = match (still, file.reads) {
                (Recheck::Allowed, _) => continue,
                (Recheck::Revoked, _) | (Recheck::Unsure, Reads::Cached) => true,
                // Who reads is asked at each read, with everything that is true of it then.
                (Recheck::Unsure, Reads::Checked) => false,
            };
            drop_pages.insert(node.ino, Arc::clone(node));
            // Nobody asks who looks at pages that others have brought in. First, so that none come in between.
            node.bar();
            if taken {
                self.handles.take(fh);
                self.wake(&node.secret);
            }
        }
        let files = self.inodes.files();
        files.iter().for_each(|node| {
            node.secret.let_go();
        });
        // What nobody has open may still lie in the page cache.
        let cached = files.iter().filter(|node| node.drop_pages());
        drop_pages.extend(cached.map(|node| (node.ino, Arc::clone(node))));
        let mut waits: Vec<oneshot::Receiver<()>> = Vec::new();
        if let Some(kernel) = self.kernel.get() {
            for ino in drop_pages.into_keys() {
                let (done, dropped) = oneshot::channel();
                kernel.drop_pages(ino, done);
                waits.push(dropped);
            }
        }
        // Whoever may still read it gets an inode that nobody else holds.
        let current = files
            .iter()
            .filter(|node| node.view == View::Current && node.is_barred() && !node.is_superseded());
        let renamed: Vec<Made> = current.map(|node| self.rotate(&node.path, None)).collect();
        async move {
            let renamed = join_all(renamed.into_iter().map(Made::wait));
            if tokio::time::timeout(KERNEL_DEADLINE, join(join_all(waits), renamed))
                .await
                .is_err()
            {
                tracing::warn!(
                    "the kernel did not drop all pages in time; reads are refused all the same"
                );
            }
        }
        .boxed()
    }
}

fn rotated(path: &SecretPath, generation: Option<&Generation>) -> What {
    What::Rotated {
        path: path.clone(),
        generation: generation.map(|generation| generation.number),
        version: generation.map(|generation| generation.version.clone()),
    }
}

fn removed(path: &SecretPath) -> What {
    What::Removed { path: path.clone() }
}
