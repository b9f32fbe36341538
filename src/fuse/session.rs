//! A FUSE session on a descriptor that somebody else has opened and mounted, or that another server has served before.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread;

use fuser::{BackgroundSession, Config, InitFlags, SessionACL};
use tokio::runtime::Handle;

use super::Adapter;
use super::notify::{Notices, Queue};
use super::renames::{Own, Renames};
use super::takeover;
use crate::fs::{Negotiated, Tree};
use crate::sys;

/// A session that answers requests until the mount is gone.
#[derive(Debug)]
pub struct Session(BackgroundSession);

impl Session {
    /// Serves `tree` on a descriptor of `/dev/fuse` that is mounted already; `writable` is the top of a mount of it through
    /// which names can be changed. Returns when the kernel has said its first word, so that the mount works.
    ///
    /// # Errors
    /// What the kernel or the start of a thread fails with.
    pub fn start(
        tree: Arc<Tree>,
        (device, writable): (OwnedFd, Option<OwnedFd>),
        runtime: Handle,
    ) -> io::Result<Self> {
        let parts = Parts::new(&tree, runtime);
        let session = fuser::Session::from_fd(parts.adapter, device, ACL, config())?;
        if let Some(agreed) = parts.agreed.get() {
            tree.ledger().agreed(*agreed);
        }
        tell(&session, parts.own, parts.queue, writable)?;
        Ok(Self(session.spawn()?))
    }

    /// Goes on where a server has died that served the same connection, whose kernel had agreed on this with it. The tree has
    /// what it had left.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn take_over(
        tree: Arc<Tree>,
        (device, writable): (OwnedFd, Option<OwnedFd>),
        runtime: Handle,
        agreed: Negotiated,
    ) -> io::Result<Self> {
        let parts = Parts::new(&tree, runtime.clone());
        let words = takeover::first_word(agreed)?;
        let session = fuser::Session::from_fd(parts.adapter, words.theirs, ACL, config())?;
        // From now on it reads from the kernel.
        sys::replace(session.as_fd(), device)?;
        tell(&session, parts.own, parts.queue, writable)?;
        // Before anybody reads: what was taken away while nobody was there stays taken.
        let enforced = tree.enforce();
        if may_resend(agreed) {
            takeover::resend(session.as_fd())?;
        }
        let session = session.spawn()?;
        runtime.spawn(enforced);
        Ok(Self(session))
    }

    /// Waits until the mount is gone.
    ///
    /// # Errors
    /// What ended the session otherwise.
    pub fn wait(self) -> io::Result<()> {
        self.0.join()
    }
}

/// Whether the kernel sends again what the server before had not answered.
#[must_use]
pub fn may_resend(agreed: Negotiated) -> bool {
    InitFlags::from_bits_retain(agreed.flags).contains(InitFlags::FUSE_HAS_RESEND)
}

/// Starts what tells the kernel something without being asked.
fn tell(
    session: &fuser::Session<Adapter>,
    own: Own,
    queue: Queue,
    writable: Option<OwnedFd>,
) -> io::Result<()> {
    let device = session.as_fd().as_raw_fd();
    let renames = Renames::new(writable, (session.notifier(), device), own);
    queue.run((session.notifier(), device), renames)
}

/// Who may is our own question, asked at each open; the kernel lets everyone come to ask it.
const ACL: SessionACL = SessionACL::All;

fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(threads());
    config
}

/// What a session is made of.
struct Parts {
    adapter: Adapter,
    own: Own,
    queue: Queue,
    agreed: Arc<OnceLock<Negotiated>>,
}

impl Parts {
    fn new(tree: &Arc<Tree>, runtime: Handle) -> Self {
        let (notices, queue) = Notices::new();
        let (own, agreed) = (Own::default(), Arc::default());
        tree.attach(Arc::new(notices.clone()));
        let adapter = Adapter {
            tree: Arc::clone(tree),
            runtime,
            notices,
            own: own.clone(),
            agreed: Arc::clone(&agreed),
        };
        Self {
            adapter,
            own,
            queue,
            agreed,
        }
    }
}

/// Two at least, so that one slow reply never stops the others; more than eight gained nothing.
fn threads() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}
