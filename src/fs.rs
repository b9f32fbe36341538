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
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::access::{Access, Permit};
use crate::audit::Outcome;
use crate::backend::{BackendError, Reference};
use crate::cache::{Binding, Cache, Fetch, Generation, Served};
use crate::caller::Caller;
use crate::config::Reads;
use crate::secret::{Name, SecretPath};
use crate::sys::{Gid, Uid};

pub mod catalogue;
mod editions;
pub mod errno;
mod handles;
mod inodes;
mod names;
mod permits;
mod types;

pub use crate::cache::Answer;
pub use catalogue::{Catalogue, Look};
pub use errno::FsError;
pub use handles::Fh;
pub use inodes::{Ino, Tell};
pub use types::{Attr, DirEntry, Kernel, Kind, Opened, TreeFigures, Xattr};

use editions::Editions;
use handles::{Handles, OpenFile};
use inodes::{Inodes, Node, Occupied, SecretNode};
use names::Listing;

/// A reply: a value or an errno.
pub type Reply<T> = Result<T, FsError>;

/// How long a change waits for the kernel to hear of it. Its next open sees the new value in any case.
const KERNEL_DEADLINE: Duration = Duration::from_secs(1);

/// How long an open waits for the readers of an older value to be done with an inode that two cannot share.
const OCCUPIED: Duration = Duration::from_millis(200);

/// The file system.
#[derive(Debug)]
pub struct Tree {
    editions: Editions,
    access: Arc<Access>,
    cache: Arc<Cache>,
    inodes: Inodes,
    handles: Handles,
    listings: Mutex<HashMap<Name, Listing>>,
    kernel: OnceLock<Arc<dyn Kernel>>,
    started: Timestamp,
}

impl Tree {
    /// The tree of `catalogue`, with values from `cache` for whom `access` permits. `started` is shown as the time of
    /// what has none of its own.
    #[must_use]
    pub fn new(
        catalogue: Catalogue,
        access: Arc<Access>,
        cache: Arc<Cache>,
        started: Timestamp,
    ) -> Arc<Self> {
        Arc::new(Self {
            editions: Editions::new(catalogue, access.edition()),
            access,
            cache,
            inodes: Inodes::new(),
            handles: Handles::default(),
            listings: Mutex::default(),
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
        self.inodes.forget(ino, count);
    }

    /// `stat`. For a caller that may read the secret it fetches what was never fetched, so that the size is true.
    pub fn getattr(self: &Arc<Self>, caller: Caller, ino: Ino) -> Answer<Reply<Attr>> {
        let node = match self.inodes.get(ino) {
            Some(Node::Root | Node::Service(_)) => return Answer::Ready(Ok(self.directory(ino))),
            Some(Node::Secret(node)) => node,
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        if node.shown().is_some() {
            return Answer::Ready(Ok(self.file(&node)));
        }
        let Some((permit, binding)) = self.peek(&caller, &node, "stat") else {
            return Answer::Ready(Ok(self.file(&node)));
        };
        let tree = Arc::clone(self);
        self.fetch_quietly(permit, binding)
            .map(move |fetch| match fetch {
                Ok(served) => {
                    node.show(&served.generation);
                    Ok(tree.file(&node))
                }
                Err(BackendError::Absent(_)) => Err(FsError::Absent),
                // What cannot be fetched now has the size of what was never fetched; open(2) says what is wrong.
                Err(BackendError::Refused(_))
                | Err(
                    BackendError::Unreachable(_)
                    | BackendError::Timeout(_)
                    | BackendError::Unusable(_),
                ) => Ok(tree.file(&node)),
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

    /// Opens a secret for reading; `writing` if the flags ask for more than that.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        writing: bool,
    ) -> Answer<Reply<Opened>> {
        let node = match self.inodes.get(ino) {
            Some(Node::Root | Node::Service(_)) => return Answer::Ready(Err(FsError::IsDirectory)),
            Some(Node::Secret(node)) => node,
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        if writing {
            return Answer::Ready(Err(FsError::ReadOnly));
        }
        let permitted = self.permitted(
            || self.access.open(caller.clone(), &node.path, "open"),
            |catalogue| (node.binding(catalogue), catalogue.look(&node.path).reads),
        );
        let Ok((permit, (binding, reads))) = permitted else {
            return Answer::Ready(Err(FsError::Denied));
        };
        let tree = Arc::clone(self);
        self.fetch(&permit, binding).then(move |fetch| {
            let served = match &fetch {
                Ok(served) => Arc::clone(&served.generation),
                Err(error) => {
                    let reply = Err(FsError::from(error));
                    settle(permit, &fetch);
                    return Answer::Ready(reply);
                }
            };
            match tree.opened(&node, &served, reads) {
                Err(FsError::Superseded) => {}
                reply => return Answer::Ready(tree.give(permit, &fetch, reply)),
            }
            // Most who read through the page cache are done in a moment.
            Answer::Pending(Box::pin(async move {
                let _ = tokio::time::timeout(OCCUPIED, node.vacated(&served)).await;
                match tree.opened(&node, &served, reads) {
                    // Nothing was given. Who came by path comes again at once, to the new inode.
                    Err(FsError::Superseded) => {
                        permit.waive();
                        Err(FsError::Superseded)
                    }
                    reply => tree.give(permit, &fetch, reply),
                }
            }))
        })
    }

    /// Reads from an open secret and passes the bytes to `give`. `paged` if the read is the page cache's own, for a
    /// mapping or a splice.
    ///
    /// # Errors
    /// [`FsError::Denied`] if the reader may not (any more); [`FsError::Mixed`] rather than a page of another generation.
    pub fn read<T>(
        &self,
        caller: Caller,
        fh: Fh,
        offset: u64,
        size: u32,
        paged: bool,
        give: impl FnOnce(&[u8]) -> T,
    ) -> Reply<T> {
        let file = self.handles.file(fh).ok_or(FsError::BadHandle)?;
        if file.reads == Reads::Checked {
            self.access
                .read(caller, &file.node.path)
                .map_err(|_| FsError::Denied)?;
        }
        if paged
            && file.superseding
            && file
                .node
                .is_shared_with_another_generation(file.generation.number)
        {
            return Err(FsError::Mixed);
        }
        let bytes = file.generation.value.expose();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = start
            .saturating_add(usize::try_from(size).unwrap_or(usize::MAX))
            .min(bytes.len());
        Ok(give(bytes.get(start..end).unwrap_or_default()))
    }

    /// Closes a file or a directory.
    pub fn release(&self, fh: Fh) {
        self.handles.remove(fh);
    }

    /// Whether the kernel still has to be told what [`Opened::tell`] says. To be asked right before, by the one thread
    /// that tells: a second byte stored at the end would spoil what a first reader has in the page cache by then.
    #[must_use]
    pub fn is_untold(&self, tell: Tell) -> bool {
        match self.inodes.get(tell.ino) {
            Some(Node::Secret(node)) => node.is_untold(tell),
            Some(Node::Root | Node::Service(_)) | None => false,
        }
    }

    /// The kernel has been told what [`Opened::tell`] says.
    pub fn told(&self, tell: Tell) {
        if let Some(Node::Secret(node)) = self.inodes.get(tell.ino) {
            node.told(tell.size);
        }
    }

    /// Opens a directory: its listing is made now and stays the same until it is closed. Never fetches a value.
    pub fn opendir(self: &Arc<Self>, caller: Caller, ino: Ino) -> Answer<Reply<Fh>> {
        let tree = Arc::clone(self);
        let add = move |entries: Reply<Arc<Vec<DirEntry>>>| {
            entries.map(|entries| tree.handles.add_directory(entries))
        };
        match self.inodes.get(ino) {
            Some(Node::Root) => self.list_services(caller).map(add),
            Some(Node::Service(service)) => self.list_secrets(caller, service).map(add),
            Some(Node::Secret(_)) => Answer::Ready(Err(FsError::NotDirectory)),
            None => Answer::Ready(Err(FsError::Superseded)),
        }
    }

    /// The listing of an open directory.
    ///
    /// # Errors
    /// [`FsError::BadHandle`]
    pub fn readdir(&self, fh: Fh) -> Reply<Arc<Vec<DirEntry>>> {
        self.handles.directory(fh).ok_or(FsError::BadHandle)
    }

    /// What `stat` would show of a listing's line, without fetching; `None` if it is gone.
    #[must_use]
    pub fn attr_of(&self, entry: &DirEntry) -> Option<Attr> {
        match self.inodes.get(entry.ino)? {
            Node::Root | Node::Service(_) => Some(self.directory(entry.ino)),
            Node::Secret(node) => Some(self.file(&node)),
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
            Some(Node::Root | Node::Service(_)) => return Answer::Ready(Err(FsError::NoAttribute)),
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        let Some(wanted) = Xattr::ALL.into_iter().find(|xattr| xattr.name() == name) else {
            return Answer::Ready(Err(FsError::NoAttribute));
        };
        let Some((permit, binding)) = self.peek(&caller, &node, "getxattr") else {
            return Answer::Ready(Err(FsError::Denied));
        };
        let look = self.editions.current().look(&node.path);
        self.fetch_quietly(permit, binding).map(move |fetch| {
            let Generation {
                number,
                version,
                reference,
                description,
                ..
            } = &*fetch.map_err(|error| FsError::from(&error))?.generation;
            match wanted {
                Xattr::Version => Ok(version.to_string().into_bytes()),
                Xattr::Generation => Ok(number.to_string().into_bytes()),
                Xattr::Reference => Ok(reference.to_string().into_bytes()),
                Xattr::Description => {
                    let text = look.description.as_deref().or(description.as_deref());
                    text.map(|text| text.as_bytes().to_vec())
                        .ok_or(FsError::NoAttribute)
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
            Node::Root | Node::Service(_) => return Ok(Vec::new()),
        };
        let Some(permit) = self.access.peek(caller, &node.path, "listxattr") else {
            return Ok(Vec::new());
        };
        permit.waive();
        let catalogue = self.editions.current();
        let fetched = catalogue
            .binding(&node.path)
            .and_then(|binding| self.cache.fresh(&node.path, &binding));
        let described = catalogue.look(&node.path).description.is_some()
            || fetched.is_some_and(|generation| generation.description.is_some());
        Ok(Xattr::ALL
            .into_iter()
            .filter(|xattr| *xattr != Xattr::Description || described)
            .collect())
    }

    /// The value that a permit is for, from where [`Tree::permitted`] says. The caller settles the permit when it knows how
    /// the access ended.
    pub fn fetch(&self, permit: &Permit, binding: Option<Arc<Binding>>) -> Answer<Fetch> {
        match binding {
            Some(binding) => self.cache.get(permit.path(), &binding),
            None => Answer::Ready(Err(BackendError::Absent(format!(
                "{}: no binding and no source in the config",
                permit.path()
            )))),
        }
    }

    /// The services that `caller` may see.
    pub fn services(self: &Arc<Self>, caller: Caller) -> Answer<Reply<Vec<Name>>> {
        self.list_services(caller)
            .map(|entries| Ok(entries?.iter().map(|entry| entry.name.clone()).collect()))
    }

    /// The names of a service's secrets that `caller` may see.
    pub fn names(self: &Arc<Self>, caller: Caller, service: &Name) -> Answer<Reply<Vec<Name>>> {
        let entries = self.list_secrets(caller, service.clone());
        entries.map(|entries| Ok(entries?.iter().map(|entry| entry.name.clone()).collect()))
    }

    /// The value at a reference has changed: when the future ends, every following open sees the new one.
    pub fn changed(&self, reference: &Reference) -> BoxFuture<'static, ()> {
        self.cache.invalidate(reference);
        // Each that may show it, not only those that have: one may be on its way.
        let mut paths = self.editions.current().paths_from(reference);
        paths.retain(|path| self.inodes.supersede_path(path));
        self.forget_names(paths)
    }

    /// The same for everything that was ever fetched.
    pub fn invalidate_all(&self) -> BoxFuture<'static, ()> {
        self.cache.invalidate_all();
        self.forget_names(self.inodes.supersede_all())
    }

    /// Checks every open handle again, after rules or revocations have changed: what may not be read any more is taken
    /// away. When the future ends the kernel has dropped its pages too.
    pub fn enforce(&self) -> BoxFuture<'static, ()> {
        async {}.boxed()
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

    /// Fetches for a permit that is only worth a line in the audit log if a backend was asked.
    fn fetch_quietly(&self, permit: Permit, binding: Option<Arc<Binding>>) -> Answer<Fetch> {
        match self.fetch(&permit, binding) {
            Answer::Ready(fetch) => {
                permit.waive();
                Answer::Ready(fetch)
            }
            Answer::Pending(fetch) => Answer::Pending(Box::pin(async move {
                let fetch = fetch.await;
                settle(permit, &fetch);
                fetch
            })),
        }
    }

    fn opened(
        &self,
        node: &Arc<SecretNode>,
        generation: &Arc<Generation>,
        reads: Reads,
    ) -> Reply<Opened> {
        // A superseded inode may stand for one generation after the other: never through the page cache.
        let cached = reads == Reads::Cached && self.inodes.is_current(node);
        let pinned = node.pin(generation, cached);
        let outdates = pinned.map_or(true, |pinned| pinned.outdates);
        if outdates && self.inodes.supersede(node) {
            // Nobody waits for this: the open that found it out has its value, or comes again.
            drop(self.forget_names(vec![node.path.clone()]));
        }
        let pinned = pinned.map_err(|Occupied| FsError::Superseded)?;
        let (node, generation, superseding) =
            (Arc::clone(node), Arc::clone(generation), pinned.superseding);
        let fh = self.handles.add_file(OpenFile {
            node,
            generation,
            reads,
            superseding,
        });
        Ok(Opened {
            fh,
            direct: pinned.direct,
            keep_pages: pinned.keep_pages,
            tell: pinned.tell,
        })
    }

    /// Makes the kernel look these names up again; the future ends when it will, or after [`KERNEL_DEADLINE`].
    fn forget_names(&self, paths: Vec<SecretPath>) -> BoxFuture<'static, ()> {
        let Some(kernel) = self.kernel.get() else {
            return async {}.boxed();
        };
        let forgotten: Vec<oneshot::Receiver<()>> = paths
            .iter()
            .map(|path| {
                let (done, forgotten) = oneshot::channel();
                kernel.forget_name(self.inodes.service(&path.service), &path.name, done);
                forgotten
            })
            .collect();
        async move {
            let all = futures_util::future::join_all(forgotten);
            if tokio::time::timeout(KERNEL_DEADLINE, all).await.is_err() {
                tracing::warn!("the kernel did not take a change of names in time; opens see the new values all the same");
            }
        }
        .boxed()
    }

    fn directory(&self, ino: Ino) -> Attr {
        let (uid, gid) = (Uid::ROOT, Gid(0));
        Attr {
            ino,
            kind: Kind::Directory,
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
            size,
            mode: look.mode,
            uid: look.owner,
            gid: look.group,
            modified: modified.unwrap_or(self.started),
        }
    }
}

/// Has the outcome of a fetch written down.
fn settle(permit: Permit, fetch: &Fetch) {
    match fetch {
        Ok(Served { generation, stale }) => {
            let outcome = if *stale {
                Outcome::Stale
            } else {
                Outcome::Allowed
            };
            permit.settle(outcome, Some(generation.version.clone()));
        }
        Err(error) => permit.settle(outcome(error), None),
    }
}

/// How a backend's error stands in the audit log.
#[must_use]
pub fn outcome(error: &BackendError) -> Outcome {
    match error {
        BackendError::Absent(_) => Outcome::Absent,
        BackendError::Refused(_) => Outcome::Refused,
        BackendError::Unreachable(_) | BackendError::Timeout(_) => Outcome::Unreachable,
        BackendError::Unusable(_) => Outcome::Error,
    }
}
