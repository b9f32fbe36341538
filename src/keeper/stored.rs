//! What systemd holds of a mount, in its descriptor store, while servers come and go. `premount` puts it there, and each
//! server is started with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sd_notify::NotifyState;

use crate::secret::Name;
use crate::sys;

/// The mounted `/dev/fuse`.
pub const DEVICE: &str = "device";
/// What serves the mount instead where the kernel had to let those go who waited.
const DEVICE_AGAIN: &str = "device-again";
/// A `/dev/fuse` that nothing was done with yet.
pub const SPARE: &str = "spare";
/// The top of the mount, where it can be written to.
pub const WRITABLE: &str = "writable";
/// The control socket, listening.
pub const CONTROL: &str = "control";
/// The daemon's lock. Nobody uses it: while it is held somewhere it is locked.
pub const LOCK: &str = "lock";
/// The memory for values.
pub const VALUES: &str = "values";
/// That for the key to them.
pub const VALUES_KEY: &str = "values-key";
/// That for what the kernel knows.
pub const LEDGER: &str = "ledger";
/// Before the name of a store: the memory for the key of its sealed identity.
pub const KEY: &str = "key-";

/// Why a server cannot begin with what systemd holds.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// systemd has not started it, or with nothing.
    #[error(
        "systemd holds no mount for it: its unit has to run `secretfs premount` first, and who has none runs `secretfs mount`"
    )]
    Nothing,
    /// Somebody has unmounted it, or aborted its connection.
    #[error("of what systemd holds `{0}` is missing, so there will be a fresh mount")]
    Missing(&'static str),
    /// The kernel refuses something.
    #[error("what systemd holds: {0}")]
    System(#[from] io::Error),
}

/// The descriptors that systemd has started this process with, under the numbers that they came by.
#[derive(Debug)]
pub struct Stored(Vec<(String, OwnedFd)>);

impl Stored {
    /// Those of this process. To be called once.
    ///
    /// # Errors
    /// [`NotStored::Nothing`], [`NotStored::System`].
    pub fn inherit() -> Result<Self, NotStored> {
        let adopt = |(number, name)| Ok((name, sys::adopt(number)?));
        let all = sd_notify::listen_fds_with_names()?.map(adopt);
        let all = all.collect::<io::Result<Vec<_>>>()?;
        match all.is_empty() {
            true => Err(NotStored::Nothing),
            false => Ok(Self(all)),
        }
    }

    /// A copy of the one that has this name.
    ///
    /// # Errors
    /// [`NotStored::Missing`], [`NotStored::System`].
    pub fn get(&self, name: &'static str) -> Result<OwnedFd, NotStored> {
        self.find(name)?.ok_or(NotStored::Missing(name))
    }

    /// The same, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn find(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let mut named = self.0.iter().filter(|(is, _)| is == name);
        named.next().map(|(_, fd)| fd.try_clone()).transpose()
    }

    /// What serves the mount.
    ///
    /// # Errors
    /// As [`Stored::get`].
    pub fn device(&self) -> Result<OwnedFd, NotStored> {
        let again = self.find(DEVICE_AGAIN)?;
        again.map_or_else(|| self.get(DEVICE), Ok)
    }

    /// The memory for the key of each store's sealed identity.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keys(&self) -> io::Result<BTreeMap<Name, OwnedFd>> {
        let key = |(name, fd): &(String, OwnedFd)| {
            let store = name.strip_prefix(KEY)?.parse().ok()?;
            Some(fd.try_clone().map(|fd| (store, fd)))
        };
        self.0.iter().filter_map(key).collect()
    }

    /// True if there is a mount to go on with.
    #[must_use]
    pub fn is_there() -> bool {
        std::env::var_os("LISTEN_FDS").is_some()
    }

    /// Another descriptor of the same connection, in place of the first: whoever waits for what the server before had read
    /// fails at once, when `device`, a copy of the first, is closed.
    ///
    /// # Errors
    /// [`NotStored::Missing`] without a spare one, [`NotStored::System`].
    pub fn renew(&mut self, device: &OwnedFd) -> Result<OwnedFd, NotStored> {
        let fresh = self.get(SPARE)?;
        sys::clone_connection(device.as_fd(), fresh.as_fd())?;
        let again = |(name, _): &(String, OwnedFd)| name == DEVICE_AGAIN;
        let (new, old) = match self.0.iter().any(again) {
            true => (DEVICE, DEVICE_AGAIN),
            false => (DEVICE_AGAIN, DEVICE),
        };
        // What systemd holds under one name it does not take under another.
        forget(SPARE)?;
        // Of a server that died here.
        forget(new)?;
        // Before the old one goes, so that whoever dies in between leaves one.
        store(new, &fresh)?;
        forget(old)?;
        for (name, fd) in &self.0 {
            if [DEVICE, DEVICE_AGAIN].contains(&name.as_str()) {
                sys::replace(fd.as_fd(), fresh.try_clone()?)?;
            }
        }
        Ok(fresh)
    }

    /// Has systemd forget them all, so that there is a fresh mount next time.
    pub fn forget(&self) {
        let stores = self.0.iter().filter_map(|(name, _)| name.strip_prefix(KEY));
        if let Err(why) = forget_all(stores) {
            tracing::warn!(%why, "systemd does not hear");
        }
    }

    /// Leaves them open for the program that this process executes next.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pass_on(&self) -> io::Result<()> {
        for (_, fd) in &self.0 {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    }
}

/// Has systemd hold a descriptor.
///
/// # Errors
/// What the socket to it says.
pub(super) fn store(name: &str, descriptor: &impl AsFd) -> io::Result<()> {
    let mut state = vec![NotifyState::FdStore, NotifyState::FdName(name)];
    // A connection that has come to its end is not held any longer. Not all of the others can be asked how they are.
    if ![DEVICE, DEVICE_AGAIN].contains(&name) {
        state.push(NotifyState::Custom("FDPOLL=0"));
    }
    sd_notify::notify_with_fds(&state, &[descriptor.as_fd()])
}

/// Has systemd forget whatever it holds of a mount with these stores.
///
/// # Errors
/// What the socket to it says.
pub(super) fn forget_all<'a>(stores: impl Iterator<Item = &'a str>) -> io::Result<()> {
    [
        DEVICE,
        DEVICE_AGAIN,
        SPARE,
        WRITABLE,
        CONTROL,
        LOCK,
        VALUES,
        VALUES_KEY,
        LEDGER,
    ]
    .into_iter()
    .try_for_each(forget)?;
    let mut keys = stores.map(|store| format!("{KEY}{store}"));
    keys.try_for_each(|key| forget(&key))
}

pub(super) fn forget(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}
