//! What the tree means: `/<service>/<name>`, for exactly those who may.
//!
//! This is the file system without a mount. Each call takes the caller and gives a reply as a value: at once when the
//! cache can answer ([`Answer::Ready`]), else as a future that ends by the configured deadline. Nothing here knows FUSE;
//! the adapter in [`crate::fuse`] decodes, calls and replies, and decides nothing.
//!
//! What each call promises stands in `docs/semantics.md`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, OnceLock};

use jiff::Timestamp;

use crate::access::{Access, Denied, Permit};
use crate::backend::{BackendError, Version};
use crate::cache::{Binding, Cache, Fetch, Generation, Served};
use crate::caller::Caller;
use crate::secret::{Name, SecretPath};
use crate::sys::{Gid, Uid};

pub mod catalogue;
mod change;
mod editions;
pub mod errno;
mod handles;
mod inodes;
mod ledger;
mod names;
mod node;
mod open;
mod permits;
mod restore;
mod types;
mod used;

pub use crate::cache::Answer;
pub use catalogue::{Catalogue, Look};
pub use change::{Change, Doubt};
pub use errno::FsError;
pub use handles::Fh;
pub use inodes::Ino;
pub use ledger::{Ledger, Left, Negotiated, Unfit};
pub use node::Tell;
pub use open::{MAX_READ, outcome};
pub use restore::{Unfinished, Values};
pub use types::{
    Attr, DirEntry, Kernel, Kind, Opened, Readiness, Renaming, TreeFigures, Waiter, Xattr,
};

use editions::Editions;
use handles::{Handles, Open};
use inodes::{Inodes, Node};
use names::Listing;
use node::{SecretNode, View};

/// A reply: a value or an errno.
pub type Reply<T> = Result<T, FsError>;

/// The file system.
#[derive(Debug)]
pub struct Tree {
    editions: Editions,
    access: Arc<Access>,
    cache: Arc<Cache>,
    inodes: Inodes,
    handles: Handles,
    listings: Mutex<HashMap<Name, Listing>>,
    ledger: Arc<Ledger>,
    kernel: OnceLock<Arc<dyn Kernel>>,
    started: Timestamp,
}

impl Tree {
    /// The tree of `catalogue`, with values from `cache` for whom `access` permits. What the kernel is told of it stands in
    /// `ledger`. `started` is shown as the time of what has none of its own.
    #[must_use]
    pub fn new(
        catalogue: Catalogue,
        access: Arc<Access>,
        cache: Arc<Cache>,
        ledger: Arc<Ledger>,
        started: Timestamp,
    ) -> Arc<Self> {
        // Above all that an earlier server has given.
        let first = cache.next_number();
        Arc::new(Self {
            editions: Editions::new(catalogue, access.edition()),
            access,
            cache,
            inodes: Inodes::new(Arc::clone(&ledger)),
            handles: Handles::new(Arc::clone(&ledger), first),
            listings: Mutex::default(),
            ledger,
            kernel: OnceLock::new(),
            started,
        })
    }

    /// Names the kernel that has to hear of changes. Only the first call counts.
    pub fn attach(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.kernel.set(kernel);
    }

    /// The tree as configured.
    #[must_use]
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.editions.current())
    }

    /// What the next server gets.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Who decides.
    #[must_use]
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// Looks a name up in a directory. Never fetches a value.
    pub fn lookup(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
    ) -> Answer<Reply<Attr>> {
        match self.inodes.get(parent) {
            Some(Node::Root) => self.look_up_service(caller, name),
            Some(Node::Service(service)) => self.look_up_secret(caller, service, name),
            Some(Node::Hidden(service, hidden)) => {
                self.look_up_hidden(caller, service, &hidden, name)
            }
            Some(Node::Secret(_)) => Answer::Ready(Err(FsError::NotDirectory)),
            None => Answer::Ready(Err(FsError::Superseded)),
        }
    }

    /// The kernel holds a look-up of what was just replied; pairs with [`Tree::forget`].
    pub fn looked_up(&self, ino: Ino) {
        self.inodes.looked_up(ino);
    }

    /// The kernel gives `count` look-ups back.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.inodes.forget(ino, count) {
            self.handles.given_up(ino);
        }
    }

    /// `stat`. For a caller that may read the secret it fetches what was never fetched, so that the size is true.
    pub fn getattr(self: &Arc<Self>, caller: Caller, ino: Ino) -> Answer<Reply<Attr>> {
        let node = match self.inodes.get(ino) {
            Some(Node::Root | Node::Service(_) | Node::Hidden(..)) => {
                return Answer::Ready(Ok(self.directory(ino)));
            }
            Some(Node::Secret(node)) => node,
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        if node.has_shown() {
            return Answer::Ready(Ok(self.file(&node)));
        }
        let Some((permit, binding)) = self.peek(&caller, &node, "stat") else {
            return Answer::Ready(Ok(self.file(&node)));
        };
        let tree = Arc::clone(self);
        let fetching = self.fetch_quietly(permit, binding, &node.view);
        fetching.map(move |fetch| match fetch {
            Ok(served) => {
                node.show(&served.generation);
                tree.noticed(&node, &served.generation);
                Ok(tree.file(&node))
            }
            Err(FsError::Absent) => Err(FsError::Absent),
            // What cannot be fetched now has the size of what was never fetched; open(2) says what is wrong.
            Err(_) => Ok(tree.file(&node)),
        })
    }

    /// `access(2)`: `read` and `write` as asked for, `execute` for directories only.
    ///
    /// # Errors
    /// [`FsError::Denied`] and [`FsError::ReadOnly`].
    pub fn access_mode(
        &self,
        caller: Caller,
        ino: Ino,
        read: bool,
        write: bool,
        execute: bool,
    ) -> Reply<()> {
        let node = self.inodes.get(ino).ok_or(FsError::Superseded)?;
        if write {
            return Err(FsError::ReadOnly);
        }
        let Node::Secret(node) = node else {
            return Ok(());
        };
        if execute {
            return Err(FsError::Denied);
        }
        if read {
            self.access
                .peek(caller, &node.path, "access")
                .ok_or(FsError::Denied)?
                .waive();
        }
        Ok(())
    }

    /// Opens a directory: its listing is made now and stays the same until it is closed. Never fetches a value.
    pub fn opendir(self: &Arc<Self>, caller: Caller, ino: Ino) -> Answer<Reply<Fh>> {
        let tree = Arc::clone(self);
        let listing = self.list(caller, ino);
        listing.map(move |entries| Ok(tree.handles.add_directory(ino, entries?)))
    }

    fn list(self: &Arc<Self>, caller: Caller, ino: Ino) -> Answer<Reply<Arc<Vec<DirEntry>>>> {
        match self.inodes.get(ino) {
            Some(Node::Root) => self.all_services(self.sees_defaults(&caller)),
            Some(Node::Service(service)) => self.list_secrets(caller, service),
            // What is in them is known by name only.
            Some(Node::Hidden(..)) => Answer::Ready(Ok(Arc::default())),
            Some(Node::Secret(_)) => Answer::Ready(Err(FsError::NotDirectory)),
            None => Answer::Ready(Err(FsError::Superseded)),
        }
    }

    /// The listing of an open directory. One that an earlier server opened is made anew, for whoever reads it.
    ///
    /// # Errors
    /// [`FsError::BadHandle`], or that the names are not at hand.
    pub fn readdir(self: &Arc<Self>, caller: Caller, fh: Fh) -> Answer<Reply<Arc<Vec<DirEntry>>>> {
        let ino = match self.handles.get(fh) {
            Some(Open::Directory(entries)) => return Answer::Ready(Ok(entries)),
            Some(Open::Unlisted(ino)) => ino,
            Some(Open::File(_) | Open::Taken(_) | Open::Lost(_)) | None => {
                return Answer::Ready(Err(FsError::BadHandle));
            }
        };
        self.list(caller, ino)
    }

    /// What `stat` would show of a line in the listing of `parent`, without fetching; `None` if it is gone. A name that has
    /// got a new inode since the listing was opened has the new one here: the kernel learns names from this.
    #[must_use]
    pub fn attr_of(&self, parent: Ino, entry: &DirEntry) -> Option<Attr> {
        match self.inodes.get(parent)? {
            Node::Root => Some(self.directory(entry.ino)),
            Node::Service(service) => {
                let name = entry.name.clone();
                let node = self.inodes.current(&SecretPath { service, name })?;
                Some(self.file(&node))
            }
            Node::Hidden(..) | Node::Secret(_) => None,
        }
    }

    /// An extended attribute, for those who may read the secret.
    pub fn getxattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        name: &OsStr,
    ) -> Answer<Reply<Vec<u8>>> {
        let node = match self.inodes.get(ino) {
            Some(Node::Secret(node)) => node,
            Some(Node::Root | Node::Service(_) | Node::Hidden(..)) => {
                return Answer::Ready(Err(FsError::NoAttribute));
            }
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        let Some(wanted) = Xattr::ALL.into_iter().find(|xattr| xattr.name() == name) else {
            return Answer::Ready(Err(FsError::NoAttribute));
        };
        let Some((permit, binding)) = self.peek(&caller, &node, "getxattr") else {
            return Answer::Ready(Err(FsError::Denied));
        };
        let look = self.editions.current().look(&node.path);
        let follows = node.view.follows();
        let (cache, path) = (Arc::clone(&self.cache), node.path.clone());
        let fetching = self.fetch_quietly(permit, binding, &node.view);
        fetching.map(move |fetch| {
            let Served { generation, stale } = fetch?;
            let Generation {
                number,
                version,
                reference,
                description,
                ..
            } = &*generation;
            match wanted {
                Xattr::Version => Ok(version.to_string().into_bytes()),
                // An earlier value's number is not known any more.
                Xattr::Generation if !follows => Err(FsError::NoAttribute),
                Xattr::Generation => Ok(number.to_string().into_bytes()),
                Xattr::Reference => Ok(reference.to_string().into_bytes()),
                Xattr::Description => {
                    let text = look.description.as_deref().or(description.as_deref());
                    text.map(|text| text.as_bytes().to_vec())
                        .ok_or(FsError::NoAttribute)
                }
                Xattr::StaleSince => {
                    let since = cache.stale_since(&path).filter(|_| stale);
                    let since = since.ok_or(FsError::NoAttribute)?;
                    Ok(format!("{since:.0}").into_bytes())
                }
            }
        })
    }

    /// The names of the extended attributes that the caller could read.
    ///
    /// # Errors
    /// [`FsError::Superseded`]
    pub fn listxattr(&self, caller: Caller, ino: Ino) -> Reply<Vec<Xattr>> {
        let node = match self.inodes.get(ino).ok_or(FsError::Superseded)? {
            Node::Secret(node) => node,
            Node::Root | Node::Service(_) | Node::Hidden(..) => return Ok(Vec::new()),
        };
        let Some(permit) = self.access.peek(caller, &node.path, "listxattr") else {
            return Ok(Vec::new());
        };
        permit.waive();
        let catalogue = self.editions.current();
        let binding = catalogue.binding(&node.path);
        let fetched = binding
            .as_ref()
            .and_then(|binding| self.cache.fresh(&node.path, binding));
        let follows = node.view.follows();
        let stale = fetched.is_none() && node.view == View::Current;
        let stale =
            stale && binding.is_some_and(|binding| self.cache.has_stand_in(&node.path, &binding));
        let described = catalogue.look(&node.path).description.is_some()
            || fetched.is_some_and(|generation| generation.description.is_some());
        Ok(Xattr::ALL
            .into_iter()
            .filter(|xattr| *xattr != Xattr::Description || described)
            .filter(|xattr| *xattr != Xattr::Generation || follows)
            .filter(|xattr| *xattr != Xattr::StaleSince || stale)
            .collect())
    }

    /// The value that a permit is for, from where [`Tree::permitted`] says. The caller settles the permit when it knows how
    /// the access ended.
    ///
    /// # Errors
    /// [`Denied`] if a backend would have to be asked, and was for too many other secrets.
    pub fn fetch(
        self: &Arc<Self>,
        permit: &Permit,
        binding: Option<Arc<Binding>>,
    ) -> Result<Answer<Fetch>, Denied> {
        let (tree, path) = (Arc::clone(self), permit.path().clone());
        let fetching = self.fetch_view(permit, binding, &View::Current)?;
        Ok(fetching.map(move |fetch| {
            if let (Ok(served), Some(node)) = (&fetch, tree.inodes.current(&path)) {
                tree.noticed(&node, &served.generation);
            }
            fetch
        }))
    }

    /// A version of it, which may be another than the one that is shown.
    ///
    /// # Errors
    /// As [`Tree::fetch`].
    pub fn fetch_version(
        &self,
        permit: &Permit,
        binding: Option<Arc<Binding>>,
        version: &Version,
    ) -> Result<Answer<Fetch>, Denied> {
        self.fetch_view(permit, binding, &View::Version(version.clone()))
    }

    /// What a view shows.
    fn fetch_view(
        &self,
        permit: &Permit,
        binding: Option<Arc<Binding>>,
        view: &View,
    ) -> Result<Answer<Fetch>, Denied> {
        let path = permit.path();
        let Some(binding) = binding else {
            return Ok(Answer::Ready(Err(BackendError::Absent(format!(
                "{path}: no binding and no source in the config"
            )))));
        };
        // Nothing is asked before it is waited for.
        let fetching = match view {
            View::Current => self.cache.get(path, &binding),
            View::Fresh => return Ok(self.cache.refresh(path, &binding)),
            View::Previous => self.cache.previous(path, &binding),
            View::Version(version) => self.cache.version(path, &binding, version),
        };
        if matches!(fetching, Answer::Pending(_)) && self.cache.asks_elsewhere(&binding) {
            self.access.may_fetch(permit)?;
        }
        Ok(fetching)
    }

    /// The same for a question that is no access of its own: only worth a line in the audit log if a backend was asked.
    fn fetch_quietly(
        &self,
        permit: Permit,
        binding: Option<Arc<Binding>>,
        view: &View,
    ) -> Answer<Reply<Served>> {
        // Only an open asks for the newest.
        let view = match view {
            View::Fresh => &View::Current,
            view @ (View::Current | View::Previous | View::Version(_)) => view,
        };
        match self.fetch_view(&permit, binding, view) {
            Err(denied) => {
                permit.refuse(&denied, None);
                Answer::Ready(Err(FsError::Denied))
            }
            Ok(Answer::Ready(fetch)) => {
                permit.waive();
                Answer::Ready(fetch.map_err(|error| FsError::from(&error)))
            }
            Ok(Answer::Pending(fetch)) => Answer::Pending(Box::pin(async move {
                let fetch = fetch.await;
                open::settle(permit, &fetch);
                fetch.map_err(|error| FsError::from(&error))
            })),
        }
    }

    /// The services that `caller` may see.
    pub fn services(self: &Arc<Self>, caller: Caller) -> Answer<Reply<Vec<Name>>> {
        self.all_services(self.sees_defaults(&caller))
            .map(|entries| Ok(entries?.iter().map(|entry| entry.name.clone()).collect()))
    }

    /// The names of a service's secrets that `caller` may see.
    pub fn names(self: &Arc<Self>, caller: Caller, service: &Name) -> Answer<Reply<Vec<Name>>> {
        let entries = self.list_secrets(caller, service.clone());
        entries.map(|entries| Ok(entries?.iter().map(|entry| entry.name.clone()).collect()))
    }

    /// How much there is of everything.
    #[must_use]
    pub fn figures(&self) -> TreeFigures {
        TreeFigures {
            cache: self.cache.figures(),
            handles: self.handles.len(),
            inodes: self.inodes.len(),
        }
    }

    fn directory(&self, ino: Ino) -> Attr {
        let (uid, gid) = (Uid::ROOT, Gid(0));
        Attr {
            ino,
            kind: Kind::Directory,
            links: 2,
            size: 0,
            mode: 0o555,
            uid,
            gid,
            modified: self.started,
        }
    }

    fn file(&self, node: &SecretNode) -> Attr {
        let look = self.editions.current().look(&node.path);
        let (size, modified) = node.tell();
        Attr {
            ino: node.ino,
            kind: Kind::File,
            // As of a file that another was renamed over: what tells its watchers that it is gone.
            links: u32::from(!node.is_superseded()),
            size,
            mode: look.mode,
            uid: look.owner,
            gid: look.group,
            modified: modified.unwrap_or(self.started),
        }
    }
}
