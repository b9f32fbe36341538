//! A FUSE session on a descriptor that somebody else has opened and mounted.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use fuser::{BackgroundSession, Config, SessionACL};
use tokio::runtime::Handle;

use super::Adapter;
use super::notify::Notices;
use super::renames::{Own, Renames};
use crate::fs::Tree;

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
        device: OwnedFd,
        writable: Option<OwnedFd>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let (notices, queue) = Notices::new();
        let own = Own::default();
        tree.attach(Arc::new(notices.clone()));
        let mut config = Config::default();
        config.n_threads = Some(threads());
        // Who may is our own question, asked at each open; the kernel lets everyone come to ask it.
        let acl = SessionACL::All;
        let session = fuser::Session::from_fd(
            Adapter {
                tree,
                runtime,
                notices,
                own: own.clone(),
            },
            device,
            acl,
            config,
        )?
        .spawn()?;
        let renames = Renames::new(writable, session.notifier(), own);
        queue.run(session.notifier(), renames)?;
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

/// Two at least, so that one slow reply never stops the others; more than eight gained nothing.
fn threads() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}
