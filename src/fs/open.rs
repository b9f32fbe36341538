//! Open files: opened, read, polled, closed.

use std::sync::Arc;
use std::time::Duration;

use crate::access::{Denied, Permit};
use crate::audit::Outcome;
use crate::backend::BackendError;
use crate::cache::{Answer, Binding, Fetch, Generation, Served};
use crate::caller::Caller;
use crate::config::Reads;
use crate::fs::handles::{Open, OpenFile, Pin};
use crate::fs::inodes::Node;
use crate::fs::node::{Occupied, SecretNode, Sent, Sharing, View};
use crate::fs::{Fh, FsError, Ino, Opened, Readiness, Reply, Tell, Tree, Waiter};
use crate::secret::Sealed;

/// How long an open waits for the readers of an older value to be done with the inode.
const OCCUPIED: Duration = Duration::from_millis(200);

/// How often an open fetches again that was overtaken by another one.
const OVERTAKEN: usize = 8;

/// How many bytes are read at once at most.
pub const MAX_READ: usize = Sealed::MAX_SHOWN;

/// What is opened, as the config says that allows it.
struct Place {
    node: Arc<SecretNode>,
    binding: Option<Arc<Binding>>,
    reads: Reads,
}

impl Place {
    /// What every open gets while the name is on its way to another inode.
    fn kept(&self) -> Option<Arc<Generation>> {
        if self.node.view != View::Current {
            return None;
        }
        let generation = self.node.secret.kept_for_now()?;
        let references = &self.binding.as_ref()?.references;
        references
            .contains(&generation.reference)
            .then_some(generation)
    }
}

/// How an attempt to open ended.
enum Attempt {
    /// With this reply.
    Ended(Reply<Opened>),
    /// Another generation is in the way.
    Occupied(Box<Permit>, Served),
}

impl Tree {
    /// Opens a secret for reading; `writing` if the flags ask for more than that.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        ino: Ino,
        writing: bool,
    ) -> Answer<Reply<Opened>> {
        let node = match self.inodes.get(ino) {
            Some(Node::Root | Node::Service(_) | Node::Hidden(..)) => {
                return Answer::Ready(Err(FsError::IsDirectory));
            }
            Some(Node::Secret(node)) => node,
            None => return Answer::Ready(Err(FsError::Superseded)),
        };
        if writing {
            return Answer::Ready(Err(FsError::ReadOnly));
        }
        let permitted = self.permitted(
            || self.ask(caller.clone(), &node),
            |catalogue| (node.binding(catalogue), catalogue.look(&node.path).reads),
        );
        let Ok((permit, (binding, reads))) = permitted else {
            return Answer::Ready(Err(FsError::Denied));
        };
        let tid = permit.opener().tid;
        let back = node.came_back(tid);
        if back.is_none() && node.is_outdated() {
            permit.waive();
            node.send_away(tid);
            return Answer::Ready(Err(FsError::Superseded));
        }
        let (tree, place) = (
            Arc::clone(self),
            Place {
                node,
                binding,
                reads,
            },
        );
        let fetching = match self.fetch_at(&permit, &place) {
            Ok(fetching) => fetching,
            Err(denied) => {
                permit.refuse(&denied, None);
                return Answer::Ready(Err(FsError::Denied));
            }
        };
        fetching.then(
            move |fetch| match tree.attempt(&place, permit, fetch, Sharing::Never) {
                Attempt::Ended(reply) => Answer::Ready(reply),
                Attempt::Occupied(permit, served) => Answer::Pending(Box::pin(async move {
                    tree.attempt_later(&place, *permit, served, back).await
                })),
            },
        )
    }

    /// Opens an inode that has shown another generation, or shows one to somebody else.
    ///
    /// Whoever came by path belongs at the new inode of the name, where there is nobody else; whoever came by the inode, at
    /// this one. Which of them it is the kernel says: sent away with ESTALE it comes again, by the name or to the inode.
    async fn attempt_later(
        self: Arc<Self>,
        place: &Place,
        mut permit: Permit,
        served: Served,
        back: Option<Sent>,
    ) -> Reply<Opened> {
        let node = &place.node;
        let (tid, number) = (permit.opener().tid, served.generation.number);
        let sharing = match (&node.view, back) {
            (View::Current, None) => {
                node.moved(OCCUPIED).await;
                Sharing::Never
            }
            (View::Current, Some(from)) if from.ino == node.ino && node.is_superseded() => {
                node.free_for(number, OCCUPIED).await;
                Sharing::Unpaged
            }
            // By path, and the name has moved on again, or the kernel takes its time to move it.
            (View::Current, Some(from)) => {
                if let Some(generation) = node.own(from.newest) {
                    let own = Served {
                        generation,
                        stale: false,
                    };
                    match self.attempt(place, permit, Ok(own), Sharing::Never) {
                        Attempt::Ended(reply) => return reply,
                        Attempt::Occupied(again, _) => permit = *again,
                    }
                }
                node.free_for(number, OCCUPIED).await;
                Sharing::Any
            }
            (View::Fresh | View::Previous | View::Version(_), _) => {
                node.free_for(number, OCCUPIED).await;
                Sharing::Any
            }
        };
        let mut last = served;
        for _ in 0..OVERTAKEN {
            let number = last.generation.number;
            let fetch = if node.view == View::Current && node.secret.outdates(number) {
                match self.fetch_at(&permit, place) {
                    Ok(fetching) => fetching.wait().await,
                    Err(denied) => {
                        permit.refuse(&denied, None);
                        return Err(FsError::Denied);
                    }
                }
            } else {
                Ok(last)
            };
            match self.attempt(place, permit, fetch, sharing) {
                Attempt::Ended(reply) => return reply,
                Attempt::Occupied(again, served) => (permit, last) = (*again, served),
            }
            // Another open has shown a newer one between the fetch and the attempt.
            if !node.is_beyond(last.generation.number) {
                break;
            }
        }
        permit.waive();
        if back.is_none() {
            node.send_away(tid);
        }
        Err(FsError::Superseded)
    }

    /// Gives what was fetched, if the inode is free for it, and has it written down.
    fn attempt(
        self: &Arc<Self>,
        place: &Place,
        permit: Permit,
        fetch: Fetch,
        sharing: Sharing,
    ) -> Attempt {
        let served = match fetch {
            Ok(served) => served,
            Err(error) => {
                let reply = Err(FsError::from(&error));
                settle(permit, &Err(error));
                return Attempt::Ended(reply);
            }
        };
        let served = self.for_now(place, served);
        match self.opened(place, &served.generation, permit.opener(), sharing) {
            Ok(opened) => Attempt::Ended(self.give(permit, served, opened)),
            Err(Occupied) => Attempt::Occupied(Box::new(permit), served),
        }
    }

    /// May `caller` open what stands here?
    fn ask(&self, caller: Caller, node: &SecretNode) -> Result<Permit, Denied> {
        let path = &node.path;
        match &node.view {
            View::Current => self.access.open(caller, path, "open"),
            View::Fresh => self.access.fresh(caller, path),
            View::Previous => self.access.open(caller, path, "open-previous"),
            View::Version(_) => self.access.open(caller, path, "open-version"),
        }
    }

    fn fetch_at(&self, permit: &Permit, place: &Place) -> Result<Answer<Fetch>, Denied> {
        match place.kept() {
            Some(generation) => Ok(Answer::Ready(Ok(Served {
                generation,
                stale: false,
            }))),
            None => self.fetch_view(permit, place.binding.clone(), &place.node.view),
        }
    }

    /// What is given for what was fetched: nobody gets a newer generation than the one that is kept meanwhile. First it is
    /// said that there is a newer one, upon which none is kept any more; so that either we see it here, or it is not kept.
    fn for_now(self: &Arc<Self>, place: &Place, served: Served) -> Served {
        self.noticed(&place.node, &served.generation);
        match place.kept() {
            Some(generation) if generation.number < served.generation.number => Served {
                generation,
                stale: false,
            },
            Some(_) | None => served,
        }
    }

    fn opened(
        self: &Arc<Self>,
        place: &Place,
        generation: &Arc<Generation>,
        opener: &Caller,
        sharing: Sharing,
    ) -> Result<Opened, Occupied> {
        let Place { node, reads, .. } = place;
        let pinned = node.pin(generation, *reads == Reads::Cached, sharing)?;
        let pin = Arc::new(Pin {
            node: Arc::clone(node),
            number: generation.number,
        });
        let file = OpenFile {
            pin,
            generation: Arc::clone(generation),
            reads: *reads,
            opener: opener.clone(),
            superseding: pinned.superseding,
        };
        let fh = self.handles.add_file(file, !pinned.direct);
        Ok(Opened {
            fh,
            direct: pinned.direct,
            keep_pages: pinned.keep_pages,
            tell: pinned.tell,
        })
    }

    /// Somebody was given this generation. If it is news, whoever watches hears of it.
    pub(super) fn noticed(self: &Arc<Self>, node: &SecretNode, generation: &Generation) {
        if node.view.follows() && node.secret.notice(generation.number) {
            self.wake(&node.secret);
            self.tell_rotated(&node.path, generation);
            // Nobody waits for this: whoever found it out has its value, or comes again.
            drop(self.rotate(&node.path, Some(generation)));
        }
    }

    /// Reads from an open secret and passes the bytes to `give`, at most [`MAX_READ`] of them. `paged` if the read is the page cache's own, for a
    /// mapping or a splice.
    ///
    /// # Errors
    /// [`FsError::Denied`] if the reader may not (any more), or the handle was taken away; [`FsError::Mixed`] rather than
    /// a page of another generation; [`FsError::Superseded`] for a page that somebody could see whose handle was taken;
    /// [`FsError::Broken`].
    pub fn read<T>(
        &self,
        caller: Caller,
        fh: Fh,
        offset: u64,
        size: u32,
        paged: bool,
        give: impl FnOnce(&[u8]) -> T,
    ) -> Reply<T> {
        let file = match self.handles.get(fh).ok_or(FsError::BadHandle)? {
            Open::File(file) => file,
            Open::Taken(pin) => {
                self.access.refuse_taken(caller, &pin.node.path);
                return Err(FsError::Denied);
            }
            Open::Directory(_) | Open::Unlisted(_) => return Err(FsError::BadHandle),
            Open::Lost(lost) => {
                if lost.reads == Reads::Checked {
                    self.access
                        .read(caller, &lost.pin.node.path, &lost.version)
                        .map_err(|_| FsError::Denied)?;
                }
                return Err(FsError::Superseded);
            }
        };
        let node = &file.pin.node;
        if file.reads == Reads::Checked {
            self.access
                .read(caller, &node.path, &file.generation.version)
                .map_err(|_| FsError::Denied)?;
        }
        if paged {
            if node.is_barred() {
                return Err(FsError::Superseded);
            }
            if file.superseding && node.is_shared_with_another_generation(file.pin.number) {
                return Err(FsError::Mixed);
            }
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let shown = file.generation.value.show(offset, size, give);
        shown.map_err(|broken| {
            tracing::error!(secret = %node.path, "{broken}: its memory was damaged");
            self.cache.broke(&node.path, &file.generation);
            FsError::Broken
        })
    }

    /// How an open file is. If that changes, `waiter` is woken.
    ///
    /// # Errors
    /// [`FsError::BadHandle`]
    pub fn poll(&self, fh: Fh, waiter: Option<Waiter>) -> Reply<Readiness> {
        let open = self.handles.get(fh).ok_or(FsError::BadHandle)?;
        let Pin { node, number } = &**open.pin().ok_or(FsError::BadHandle)?;
        if let Some(waiter) = waiter {
            // First, so that what happens meanwhile wakes it.
            node.secret.wait(fh, waiter);
            self.handles.polled(fh, waiter);
        }
        // As long as an open gets the same one, it is no news.
        let kept = node.secret.kept_for_now();
        let same = kept.is_some_and(|kept| kept.number == *number);
        Ok(Readiness {
            outdated: node.view.follows() && node.secret.outdates(*number) && !same,
            taken: matches!(self.handles.get(fh), Some(Open::Taken(_))),
        })
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
            Some(Node::Root | Node::Service(_) | Node::Hidden(..)) | None => false,
        }
    }

    /// The kernel has been told what [`Opened::tell`] says.
    pub fn told(&self, tell: Tell) {
        if let Some(Node::Secret(node)) = self.inodes.get(tell.ino) {
            node.told(tell.size);
        }
    }
}

/// Has the outcome of a fetch written down.
pub(super) fn settle(permit: Permit, fetch: &Fetch) {
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
