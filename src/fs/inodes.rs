//! Which number stands for what, and what the kernel was told of each.
//!
//! The root and the services keep their numbers. A secret's number stands for one generation of its value: when a new
//! one comes, the name gets a new number and the old one lives on for those who hold it (open files, bind mounts of
//! the file) until the kernel forgets it. No number is used twice.

use std::collections::HashMap;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use jiff::Timestamp;

use crate::cache::{Binding, Generation};
use crate::fs::Catalogue;
use crate::secret::{Name, SecretPath};

/// An inode's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The top of the tree.
    pub const ROOT: Self = Self(1);
}

/// What a number stands for.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// The top of the tree.
    Root,
    /// A service.
    Service(Name),
    /// A secret.
    Secret(Arc<SecretNode>),
}

/// A secret's inode.
#[derive(Debug)]
pub(super) struct SecretNode {
    pub(super) ino: Ino,
    pub(super) path: SecretPath,
    state: Mutex<SecretState>,
}

#[derive(Debug, Default)]
struct SecretState {
    /// The size that everyone sees: 0 until a value was fetched.
    size: u64,
    /// The size that the kernel has.
    told: u64,
    /// The generation that this inode last gave to anyone.
    shown: Option<Shown>,
    /// Open handles, by generation.
    open: Vec<Pins>,
    /// The generation whose pages the page cache may hold.
    pages: Option<u64>,
    /// Where it is found, and which catalogue said so.
    binding: Option<(Weak<Catalogue>, Arc<Binding>)>,
}

/// The open handles on one generation.
#[derive(Debug)]
struct Pins {
    number: u64,
    count: usize,
    /// One of them was opened to read through the page cache.
    paged: bool,
}

#[derive(Debug)]
struct Shown {
    number: u64,
    modified: Timestamp,
}

/// What has to happen so that a new handle sees its own generation and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pinned {
    /// The size the kernel must be told of before the open is answered.
    pub(super) tell: Option<Tell>,
    /// A handle on another generation is open.
    pub(super) superseding: bool,
    /// The inode has shown an older generation, so that its name has to lead to a new inode.
    pub(super) outdates: bool,
    /// No page cache for this one.
    pub(super) direct: bool,
    /// The page cache holds pages of this very generation.
    pub(super) keep_pages: bool,
}

/// Why a handle cannot be opened on an inode: another generation is read there through the page cache, and is shorter.
/// There is one size for both, so that the older one would come with zeros at its end, or this one without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupied;

/// What the kernel must hear about an inode before an open of it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tell {
    /// The inode.
    pub ino: Ino,
    /// Its size from now on.
    pub size: u64,
    /// The size it has grown from; the kernel believes in growth only when a byte is stored at the end.
    pub grown: bool,
}

impl SecretNode {
    fn new(ino: Ino, path: SecretPath) -> Arc<Self> {
        Arc::new(Self {
            ino,
            path,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, SecretState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the secret is found. Asked at every open, so it is remembered as long as `catalogue` is the same.
    pub(super) fn binding(&self, catalogue: &Arc<Catalogue>) -> Option<Arc<Binding>> {
        let mut state = self.state();
        // Not even a catalogue that is gone has its address given to another while we hold the weak pointer.
        if let Some((from, binding)) = &state.binding
            && from.as_ptr() == Arc::as_ptr(catalogue)
        {
            return Some(Arc::clone(binding));
        }
        let binding = catalogue.binding(&self.path)?;
        state.binding = Some((Arc::downgrade(catalogue), Arc::clone(&binding)));
        Some(binding)
    }

    /// The size and time to show now; the caller passes them on to the kernel.
    pub(super) fn tell(&self) -> (u64, Option<Timestamp>) {
        let mut state = self.state();
        state.told = state.size;
        (state.size, state.shown.as_ref().map(|shown| shown.modified))
    }

    /// The kernel has been told this size.
    pub(super) fn told(&self, size: u64) {
        self.state().told = size;
    }

    /// The number of the generation that was last shown here.
    pub(super) fn shown(&self) -> Option<u64> {
        self.state().shown.as_ref().map(|shown| shown.number)
    }

    /// A `stat` has fetched this generation. An inode that has shown one already keeps its size.
    pub(super) fn show(&self, generation: &Generation) {
        let mut state = self.state();
        if state.shown.is_none() {
            state.size = length(generation);
            state.shown = Some(Shown::of(generation));
        }
    }

    /// A handle is opened on this generation; `cached` if its reads may go through the page cache.
    pub(super) fn pin(&self, generation: &Generation, cached: bool) -> Result<Pinned, Occupied> {
        let (number, length) = (generation.number, length(generation));
        let mut state = self.state();
        let others = || state.open.iter().filter(|pins| pins.number != number);
        let superseding = others().next().is_some();
        if length > state.size && others().any(|pins| pins.paged) {
            return Err(Occupied);
        }
        let last = state.shown.as_ref().map(|shown| shown.number);
        let outdates = last.is_some_and(|last| last < number);
        // What an overtaken fetch brought to an inode that has shown a newer generation by now.
        let behind = last.is_some_and(|last| last > number);
        let taken_over = outdates && !superseding;
        // The size is the inode's: while another handle lives it must not shrink under its mappings.
        state.size = if superseding || behind {
            state.size.max(length)
        } else {
            length
        };
        if outdates || last.is_none() {
            state.shown = Some(Shown::of(generation));
        }
        let paged = cached && !superseding && !outdates && !behind;
        match state.open.iter_mut().find(|pins| pins.number == number) {
            Some(pins) => {
                pins.count += 1;
                pins.paged |= paged;
            }
            None => state.open.push(Pins {
                number,
                count: 1,
                paged,
            }),
        }
        let keep_pages = paged && state.pages == Some(number);
        // A handle past the page cache fills it all the same where it is mapped.
        state.pages = paged.then_some(number);
        let tell = (state.told != state.size || taken_over).then_some(Tell {
            ino: self.ino,
            size: state.size,
            grown: state.told < state.size,
        });
        Ok(Pinned {
            tell,
            superseding,
            outdates,
            direct: !paged,
            keep_pages,
        })
    }

    /// Whether the kernel still has to be told this: of two opens that both had to, the first has done it for both.
    pub(super) fn is_untold(&self, tell: Tell) -> bool {
        !tell.grown || self.state().told < tell.size
    }

    /// A handle on this generation is closed.
    pub(super) fn unpin(&self, number: u64) {
        let mut state = self.state();
        if let Some(pins) = state.open.iter_mut().find(|pins| pins.number == number) {
            pins.count = pins.count.saturating_sub(1);
        }
        state.open.retain(|pins| pins.count > 0);
    }

    /// True while a handle on another generation is open.
    pub(super) fn is_shared_with_another_generation(&self, number: u64) -> bool {
        self.state().open.iter().any(|pins| pins.number != number)
    }
}

impl Shown {
    fn of(generation: &Generation) -> Self {
        Self {
            number: generation.number,
            modified: generation.modified,
        }
    }
}

fn length(generation: &Generation) -> u64 {
    u64::try_from(generation.value.len()).unwrap_or(u64::MAX)
}

/// All inodes.
#[derive(Debug)]
pub(super) struct Inodes(RwLock<Table>);

#[derive(Debug)]
struct Table {
    next: u64,
    nodes: HashMap<Ino, Node>,
    services: HashMap<Name, Ino>,
    /// The inode that a name leads to now.
    secrets: HashMap<SecretPath, Ino>,
    /// How many look-ups the kernel holds of each.
    lookups: HashMap<Ino, u64>,
    /// How often a name has lost its inode.
    superseded: u64,
}

impl Inodes {
    pub(super) fn new() -> Self {
        Self(RwLock::new(Table {
            next: Ino::ROOT.0 + 1,
            nodes: HashMap::from([(Ino::ROOT, Node::Root)]),
            services: HashMap::new(),
            secrets: HashMap::new(),
            lookups: HashMap::new(),
            superseded: 0,
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

    /// The inode that a secret's name leads to now.
    pub(super) fn secret(&self, path: &SecretPath) -> Arc<SecretNode> {
        let known = {
            let table = self.table();
            table
                .secrets
                .get(path)
                .and_then(|ino| table.nodes.get(ino))
                .cloned()
        };
        match known {
            Some(Node::Secret(node)) => node,
            Some(Node::Root | Node::Service(_)) | None => self.table_mut().secret(path),
        }
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

    /// The kernel holds one more look-up of this inode.
    pub(super) fn looked_up(&self, ino: Ino) {
        *self.table_mut().lookups.entry(ino).or_default() += 1;
    }

    /// The kernel gives look-ups back. A superseded inode is gone with the last of them.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        let mut table = self.table_mut();
        let Some(held) = table.lookups.get_mut(&ino) else {
            return;
        };
        *held = held.saturating_sub(count);
        if *held > 0 {
            return;
        }
        table.lookups.remove(&ino);
        if let Some(Node::Secret(node)) = table.nodes.get(&ino)
            && table.secrets.get(&node.path) != Some(&ino)
        {
            table.nodes.remove(&ino);
        }
    }

    /// The next look-up of this secret gets a new inode. False if it has none yet.
    pub(super) fn supersede_path(&self, path: &SecretPath) -> bool {
        self.table_mut().supersede(path)
    }

    /// The same for every secret; gives those that had one.
    pub(super) fn supersede_all(&self) -> Vec<SecretPath> {
        let mut table = self.table_mut();
        let paths: Vec<SecretPath> = table.secrets.keys().cloned().collect();
        for path in &paths {
            table.supersede(path);
        }
        paths
    }

    /// True if this is the inode that its secret's name leads to now.
    pub(super) fn is_current(&self, node: &SecretNode) -> bool {
        self.table().secrets.get(&node.path) == Some(&node.ino)
    }

    /// The next look-up of this secret gets a new inode. False if this inode was not the current one any more.
    pub(super) fn supersede(&self, node: &SecretNode) -> bool {
        let mut table = self.table_mut();
        table.secrets.get(&node.path) == Some(&node.ino) && table.supersede(&node.path)
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
        ino
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

    fn secret(&mut self, path: &SecretPath) -> Arc<SecretNode> {
        if let Some(ino) = self.secrets.get(path)
            && let Some(Node::Secret(node)) = self.nodes.get(ino)
        {
            return Arc::clone(node);
        }
        let node = SecretNode::new(self.number(), path.clone());
        self.nodes.insert(node.ino, Node::Secret(Arc::clone(&node)));
        self.secrets.insert(path.clone(), node.ino);
        node
    }

    fn supersede(&mut self, path: &SecretPath) -> bool {
        let Some(ino) = self.secrets.remove(path) else {
            return false;
        };
        self.superseded += 1;
        if !self.lookups.contains_key(&ino) {
            self.nodes.remove(&ino);
        }
        true
    }
}
