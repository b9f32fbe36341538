//! Which number stands for what.
//!
//! The root, the services and the hidden folders keep their numbers. A secret's number stands for one generation of its
//! value: when a new one comes, a new inode is renamed over the old one, which lives on for those who hold it (open
//! files, bind mounts of the file) until the kernel forgets it. No number is used twice.
//!
//! A name changes hands only when the kernel says so, by the rename or unlink that we asked for ourselves: it holds the
//! directory's lock meanwhile, so no look-up can come between, and what it has cached is always what stands here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use crate::backend::Version;
use crate::fs::ledger::lines::{Facts, InodeLine, Line, Number, What};
use crate::fs::ledger::{Entry, Ledger};
use crate::fs::node::{Secret, SecretNode, View};
use crate::secret::{Name, SecretPath};

mod pending;
mod restored;

use pending::NEXT;
pub(super) use pending::Pending;

/// An inode's number.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Ino(pub u64);

impl Ino {
    /// The top of the tree.
    pub const ROOT: Self = Self(1);
}

/// A folder below a service that no listing shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) enum Hidden {
    /// `.versions`, which has a folder for each version.
    Versions,
    /// One in which each secret stands in another view.
    Of(View),
}

/// What a number stands for.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// The top of the tree.
    Root,
    /// A service.
    Service(Name),
    /// A hidden folder of a service.
    Hidden(Name, Hidden),
    /// A secret.
    Secret(Arc<SecretNode>),
}

/// All inodes.
#[derive(Debug)]
pub(super) struct Inodes(RwLock<Table>);

#[derive(Debug)]
struct Table {
    ledger: Arc<Ledger>,
    next: u64,
    nodes: HashMap<Ino, Node>,
    services: HashMap<Name, Ino>,
    hidden: HashMap<(Name, Hidden), Ino>,
    secrets: HashMap<SecretPath, Known>,
    /// Secrets in hidden folders.
    views: HashMap<(SecretPath, View), Ino>,
    /// Changes of names that are under way, the first one first.
    pending: HashMap<SecretPath, Vec<Pending>>,
    /// Whose name a change of this number is about.
    changing: HashMap<u64, SecretPath>,
    /// How many look-ups the kernel holds of each.
    lookups: HashMap<Ino, u64>,
    /// The lines of the folders among them.
    folders: HashMap<Ino, Entry>,
    /// How often a name has lost its inode.
    superseded: u64,
    /// The requests to change names that an earlier server had begun to make.
    made: HashSet<u64>,
}

#[derive(Debug)]
struct Known {
    secret: Arc<Secret>,
    /// The inode that the name leads to now.
    current: Ino,
}

impl Inodes {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self(RwLock::new(Table {
            ledger,
            next: Ino::ROOT.0 + 1,
            nodes: HashMap::from([(Ino::ROOT, Node::Root)]),
            services: HashMap::new(),
            hidden: HashMap::new(),
            secrets: HashMap::new(),
            views: HashMap::new(),
            pending: HashMap::new(),
            changing: HashMap::new(),
            lookups: HashMap::new(),
            folders: HashMap::new(),
            superseded: 0,
            made: HashSet::new(),
        }))
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Node> {
        self.table().nodes.get(&ino).cloned()
    }

    pub(super) fn service(&self, name: &Name) -> Ino {
        if let Some(ino) = self.table().services.get(name) {
            return *ino;
        }
        self.table_mut().service(name)
    }

    pub(super) fn hidden(&self, service: &Name, hidden: Hidden) -> Ino {
        let mut table = self.table_mut();
        let key = (service.clone(), hidden);
        if let Some(ino) = table.hidden.get(&key) {
            return *ino;
        }
        let ino = table.number();
        let node = Node::Hidden(key.0.clone(), key.1.clone());
        table.nodes.insert(ino, node);
        table.hidden.insert(key, ino);
        ino
    }

    /// The inode that a secret's name leads to now.
    pub(super) fn secret(&self, path: &SecretPath) -> Arc<SecretNode> {
        let known = {
            let table = self.table();
            table.current(path)
        };
        known.unwrap_or_else(|| self.table_mut().secret(path))
    }

    /// The same for many at once.
    pub(super) fn secrets(&self, service: &Name, names: &[Name]) -> Vec<Ino> {
        let mut table = self.table_mut();
        let ino = |name: &Name| {
            table
                .secret(&SecretPath {
                    service: service.clone(),
                    name: name.clone(),
                })
                .ino
        };
        names.iter().map(ino).collect()
    }

    /// The inode of a secret in another view than the current one.
    pub(super) fn view(&self, path: &SecretPath, view: View) -> Arc<SecretNode> {
        let mut table = self.table_mut();
        let key = (path.clone(), view);
        if let Some(ino) = table.views.get(&key)
            && let Some(Node::Secret(node)) = table.nodes.get(ino)
        {
            return Arc::clone(node);
        }
        let secret = Arc::clone(&table.secret(path).secret);
        let node = table.node(&key.0, key.1.clone(), secret);
        table
            .nodes
            .insert(node.ino, Node::Secret(Arc::clone(&node)));
        table.views.insert(key, node.ino);
        node
    }

    /// The inode that this name leads to, if it has one.
    pub(super) fn current(&self, path: &SecretPath) -> Option<Arc<SecretNode>> {
        self.table().current(path)
    }

    /// The same, if the kernel holds it.
    pub(super) fn held(&self, path: &SecretPath) -> Option<Arc<SecretNode>> {
        let table = self.table();
        let node = table.current(path)?;
        table.lookups.contains_key(&node.ino).then_some(node)
    }

    /// The inode of a name that is about to go. The kernel need not hold it, nor anybody have asked for it: there has to be
    /// something to unlink for whoever watches the folder to hear of it.
    pub(super) fn leaving(&self, path: &SecretPath) -> Option<Arc<SecretNode>> {
        let leaves = |table: &Table| {
            let first = table.pending.get(path).and_then(|all| all.first());
            first.is_some_and(|pending| pending.replacement.is_none())
        };
        if !leaves(&self.table()) {
            return None;
        }
        let mut table = self.table_mut();
        leaves(&table).then(|| table.secret(path))
    }

    /// True if somebody could watch for changes in this service: the kernel holds its folder.
    pub(super) fn is_watchable(&self, service: &Name) -> bool {
        let table = self.table();
        let ino = table.services.get(service);
        ino.is_some_and(|ino| table.lookups.contains_key(ino))
    }

    /// Every secret whose name has an inode.
    pub(super) fn known(&self) -> Vec<SecretPath> {
        self.table().secrets.keys().cloned().collect()
    }

    /// Every secret's inode, of whatever age.
    pub(super) fn files(&self) -> Vec<Arc<SecretNode>> {
        let table = self.table();
        let files = table.nodes.values().filter_map(|node| match node {
            Node::Secret(node) => Some(Arc::clone(node)),
            Node::Root | Node::Service(_) | Node::Hidden(..) => None,
        });
        files.collect()
    }

    /// The kernel holds one more look-up of this inode.
    pub(super) fn looked_up(&self, ino: Ino) {
        let mut table = self.table_mut();
        let count = table.lookups.entry(ino).or_default();
        *count += 1;
        let count = *count;
        table.write_down(ino, count);
    }

    /// The kernel gives look-ups back. What nobody finds by a name any more is gone with the last of them. True if that was
    /// the last one.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut table = self.table_mut();
        let Some(held) = table.lookups.get_mut(&ino) else {
            return false;
        };
        *held = held.saturating_sub(count);
        let held = *held;
        table.write_down(ino, held);
        if held > 0 {
            return false;
        }
        table.lookups.remove(&ino);
        table.drop_unnamed(ino);
        true
    }

    /// Begins to give the name a new inode, or none; what is to be dropped when that is done comes along. Not if the same
    /// is under way already, and nobody has seen yet what it leads to: it will do for this change, too.
    pub(super) fn begin(
        &self,
        path: &SecretPath,
        replace: bool,
    ) -> (Pending, Option<watch::Sender<()>>) {
        let mut table = self.table_mut();
        let last = table.pending.get(path).and_then(|pending| pending.last());
        if let Some(pending) = last
            && pending.replacement.is_some() == replace
            && !pending.seen
        {
            return (pending.clone(), None);
        }
        let number = table.number().0;
        let replacement = replace.then(|| {
            let secret = table.shared(path);
            let node = table.node(path, View::Current, secret);
            node.without_name()
        });
        let (done, made) = watch::channel(());
        let pending = Pending {
            number,
            replacement,
            made,
            line: Pending::line(path, &table.ledger),
            seen: false,
        };
        table.changing.insert(number, path.clone());
        let all = table.pending.entry(path.clone()).or_default();
        all.push(pending.clone());
        (pending, Some(done))
    }

    /// The inode that is about to be renamed from this name.
    pub(super) fn replacement(&self, service: &Name, hidden: &str) -> Option<Arc<SecretNode>> {
        let number = hidden.strip_prefix(NEXT)?.parse().ok()?;
        let mut table = self.table_mut();
        let path = table.changing.get(&number)?.clone();
        if path.service != *service {
            return None;
        }
        let mut all = table.pending.get_mut(&path)?.iter_mut();
        let pending = all.find(|pending| pending.number == number)?;
        pending.seen = true;
        let node = pending.replacement.clone()?;
        // The kernel holds it from now on, whatever becomes of the rename.
        let entry = Node::Secret(Arc::clone(&node));
        table.nodes.insert(node.ino, entry);
        Some(node)
    }

    /// The name changes hands now, if this change is still the one that is wanted; in answer to this request, if the kernel
    /// makes it.
    pub(super) fn commit(
        &self,
        path: &SecretPath,
        request: Option<u64>,
        wanted: impl Fn(&Pending) -> bool,
    ) -> bool {
        let mut table = self.table_mut();
        let Some(all) = table.pending.get_mut(path) else {
            return false;
        };
        let Some(at) = all.iter().position(wanted) else {
            return false;
        };
        let pending = all.remove(at);
        if all.is_empty() {
            table.pending.remove(path);
        }
        table.changing.remove(&pending.number);
        let before = table.secrets.get(path).map(|known| known.current);
        if let Some(request) = request {
            pending.write_down(before, request);
        }
        // Never two at once, not even in the ledger.
        table.secrets.remove(path);
        if let Some(Node::Secret(node)) = before.and_then(|ino| table.nodes.get(&ino)) {
            node.supersede();
            node.secret.let_go();
        }
        if let Some(node) = pending.replacement {
            let (secret, current) = (Arc::clone(&node.secret), node.ino);
            node.name();
            table.nodes.insert(current, Node::Secret(node));
            let known = Known { secret, current };
            table.secrets.insert(path.clone(), known);
        }
        table.superseded += 1;
        if let Some(before) = before {
            table.drop_unnamed(before);
        }
        true
    }

    /// As long as this number stays, so does the inode of each name.
    pub(super) fn superseded(&self) -> u64 {
        self.table().superseded
    }

    pub(super) fn len(&self) -> usize {
        self.table().nodes.len()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&mut self) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        self.ledger.count(self.next);
        ino
    }

    /// A new inode of a secret.
    fn node(&mut self, path: &SecretPath, view: View, secret: Arc<Secret>) -> Arc<SecretNode> {
        let (ino, ledger) = (self.number(), Arc::clone(&self.ledger));
        SecretNode::new(ino, path.clone(), view, secret, ledger)
    }

    /// Has the ledger say how many look-ups the kernel holds.
    fn write_down(&mut self, ino: Ino, count: u64) {
        let what = match self.nodes.get(&ino) {
            Some(Node::Secret(node)) => return node.held(count),
            Some(Node::Service(name)) => What::Service(name.clone()),
            Some(Node::Hidden(service, hidden)) => What::Hidden(service.clone(), hidden.clone()),
            // The root needs no line.
            Some(Node::Root) | None => return,
        };
        if count == 0 {
            self.folders.remove(&ino);
            return;
        }
        match self.folders.get(&ino) {
            Some(entry) => entry.set(Number::Lookups, count),
            None => {
                let facts = Facts::default();
                let line = InodeLine { ino, what, facts };
                let entry = self.ledger.write(&Line::Inode(line), [count, 0, 0]);
                self.folders.extend(entry.map(|entry| (ino, entry)));
            }
        }
    }

    fn service(&mut self, name: &Name) -> Ino {
        if let Some(ino) = self.services.get(name) {
            return *ino;
        }
        let ino = self.number();
        self.nodes.insert(ino, Node::Service(name.clone()));
        self.services.insert(name.clone(), ino);
        ino
    }

    fn current(&self, path: &SecretPath) -> Option<Arc<SecretNode>> {
        match self.nodes.get(&self.secrets.get(path)?.current)? {
            Node::Secret(node) => Some(Arc::clone(node)),
            Node::Root | Node::Service(_) | Node::Hidden(..) => None,
        }
    }

    fn secret(&mut self, path: &SecretPath) -> Arc<SecretNode> {
        if let Some(node) = self.current(path) {
            return node;
        }
        let secret = self.shared(path);
        let node = self.node(path, View::Current, Arc::clone(&secret));
        let current = node.ino;
        self.nodes.insert(current, Node::Secret(Arc::clone(&node)));
        let known = Known { secret, current };
        self.secrets.insert(path.clone(), known);
        node
    }

    /// What the inodes of a secret share. A name that was gone and comes again is followed by its file in `.fresh`, which the
    /// kernel may have held all the time.
    fn shared(&self, path: &SecretPath) -> Arc<Secret> {
        if let Some(known) = self.secrets.get(path) {
            return Arc::clone(&known.secret);
        }
        let fresh = self.views.get(&(path.clone(), View::Fresh));
        match fresh.and_then(|ino| self.nodes.get(ino)) {
            Some(Node::Secret(node)) => Arc::clone(&node.secret),
            Some(Node::Root | Node::Service(_) | Node::Hidden(..)) | None => Arc::default(),
        }
    }

    /// Drops an inode that the kernel does not hold and that no name leads to.
    fn drop_unnamed(&mut self, ino: Ino) {
        if self.lookups.contains_key(&ino) {
            return;
        }
        match self.nodes.get(&ino) {
            Some(Node::Secret(node)) => match &node.view {
                View::Current => {
                    let known = self.secrets.get(&node.path);
                    if known.is_some_and(|known| known.current == ino) {
                        return;
                    }
                }
                view @ (View::Fresh | View::Previous | View::Version(_)) => {
                    let place = (node.path.clone(), view.clone());
                    if self.views.get(&place) == Some(&ino) {
                        self.views.remove(&place);
                    }
                }
            },
            Some(Node::Hidden(service, hidden)) => {
                self.hidden.remove(&(service.clone(), hidden.clone()));
            }
            Some(Node::Root | Node::Service(_)) | None => return,
        }
        self.nodes.remove(&ino);
    }
}

impl Hidden {
    /// The hidden folder of this name right below a service.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            ".fresh" => Some(Self::Of(View::Fresh)),
            ".previous" => Some(Self::Of(View::Previous)),
            ".versions" => Some(Self::Versions),
            _ => None,
        }
    }

    /// The folder of this version in `.versions`, if it can be one's name.
    pub(super) fn version(name: &str) -> Option<Self> {
        let printable =
            !name.is_empty() && !name.starts_with('.') && !name.contains(char::is_control);
        printable.then(|| Self::Of(View::Version(Version::new(name))))
    }
}
