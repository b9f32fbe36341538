//! A server: how it is started on a mount, and what is handed over to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::mountpoint::{self, Mounted, pass_on};
use super::{Keeper, KeeperError, pid, stores};
use crate::backend::store::identity;
use crate::sys::{self, SharedMemory};

/// How long a server may take to go on where another one has died. Who reads waits for it.
const TAKE_OVER_DEADLINE: Duration = Duration::from_secs(10);

/// A server and the mount that it serves.
pub(super) struct Serving {
    pub(super) child: Child,
    pub(super) started: Instant,
    /// When it has said [`READY`](super::READY).
    pub(super) ready: Option<Instant>,
    /// Somebody has taken the mount away, and the server was told to end.
    pub(super) unmounted: bool,
    /// The server says here how it is.
    pub(super) word: UnixStream,
    /// What it serves.
    pub(super) held: Held,
    /// It took too long to go on where another one had died.
    late: bool,
    /// It is dead, and the kernel keeps it.
    pub(super) stuck: bool,
    /// Servers before it that have not ended yet: the kernel keeps one until what it waits for has happened.
    pub(super) before: Vec<Child>,
}

/// What is held of a mount, so that another server can go on where one has died.
pub(super) struct Held {
    pub(super) mounted: Mounted,
    /// The memory in which it stands what the kernel knows. It is not mapped here.
    ledger: OwnedFd,
    /// A server was ready on it.
    pub(super) served: bool,
    /// The kernel sends again what a dead server has not answered.
    pub(super) resends: bool,
}

impl Held {
    /// Of a fresh mount.
    pub(super) fn new(mounted: Mounted) -> Result<Self, KeeperError> {
        Ok(Self {
            mounted,
            ledger: SharedMemory::create().map_err(KeeperError::Start)?,
            served: false,
            resends: true,
        })
    }

    /// Makes it ready for the next server. Where the kernel does not send again what is not answered, who waits for that
    /// is let go.
    pub(super) fn hand_on(&mut self) -> io::Result<()> {
        if self.resends {
            return Ok(());
        }
        let fresh = OwnedFd::from(mountpoint::device()?);
        sys::clone_connection(self.mounted.device.as_fd(), fresh.as_fd())?;
        self.mounted.device = fresh;
        Ok(())
    }
}

impl Serving {
    /// Ends a server that takes too long to go on where another one has died.
    pub(super) fn hurry(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.started) > TAKE_OVER_DEADLINE;
        if late && self.held.served && self.ready.is_none() {
            self.late = true;
            let _ = kill(pid(&self.child), Signal::SIGKILL);
        }
    }

    /// It comes after these.
    pub(super) fn after(self, before: Vec<Child>) -> Self {
        Self { before, ..self }
    }

    /// Forgets those before it that have ended.
    pub(super) fn reap(&mut self) {
        self.before
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// True if neither it nor one before it is there any more.
    pub(super) fn has_gone(&mut self) -> bool {
        self.reap();
        self.before.is_empty() && !matches!(self.child.try_wait(), Ok(None))
    }

    /// How long it has served.
    pub(super) fn served_for(&self, now: Instant) -> Duration {
        let since = self.ready.map(|ready| now.saturating_duration_since(ready));
        since.unwrap_or_default()
    }

    /// Whether the next one can go on with the mount, now that it has ended like this. One that ends by itself could not, so
    /// no other can. Where the kernel sends nothing again, what one that is stuck had read would wait for it for ever.
    pub(super) fn can_be_followed(&self, status: ExitStatus) -> bool {
        let lets_go = self.held.resends || !self.stuck;
        let killed = status.signal().is_some();
        self.held.served && !self.unmounted && !self.late && killed && lets_go
    }
}

impl Keeper<'_> {
    pub(super) fn start_server(&self, held: Held) -> Result<Serving, (KeeperError, Held)> {
        match self.spawn(&held) {
            Ok((child, word)) => Ok(Serving {
                child,
                started: self.clock.now(),
                ready: None,
                unmounted: false,
                late: false,
                stuck: false,
                word,
                held,
                before: Vec::new(),
            }),
            Err(error) => Err((error, held)),
        }
    }

    fn spawn(&self, held: &Held) -> Result<(Child, UnixStream), KeeperError> {
        let Mounted { device, writable } = &held.mounted;
        let (word, theirs) = UnixStream::pair().map_err(KeeperError::Start)?;
        word.set_nonblocking(true).map_err(KeeperError::Start)?;
        // By the running file itself: its path may lead to a newer version meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("secretfs");
        // As it was named, so that the server follows its links again at each reload.
        command.arg("--config").arg(&self.config.named).arg("serve");
        if let Some(user) = &self.config.user {
            command
                .arg("--user")
                .arg(format!("{}:{}:{}", user.uid, user.gid, user.name));
        }
        let mut passed = Vec::new();
        let mut pass = |command: &mut Command,
                        option: &str,
                        name: &str,
                        descriptor: &OwnedFd|
         -> Result<(), KeeperError> {
            let copy = pass_on(descriptor).map_err(KeeperError::Start)?;
            command
                .arg(option)
                .arg(format!("{name}{}", copy.as_raw_fd()));
            passed.push(copy);
            Ok(())
        };
        pass(&mut command, "--device", "", device)?;
        if let Some(writable) = writable {
            pass(&mut command, "--writable", "", writable)?;
        }
        pass(&mut command, "--word", "", &theirs.into())?;
        let control = self.control.try_clone().map_err(KeeperError::Start)?;
        pass(&mut command, "--control", "", &control.into())?;
        for (name, path) in stores(self.config) {
            // Opened anew each time, because `rekey` replaces the file; unread, because that is the server's business.
            let path = identity::locate(path)?;
            let file = identity::open(&path)?;
            let name = format!("{name}=");
            pass(&mut command, "--identity", &name, &file.into())?;
        }
        for (name, memory) in &self.keys {
            let name = format!("{name}=");
            pass(&mut command, "--key", &name, memory.descriptor())?;
        }
        pass(&mut command, "--values", "", &self.values)?;
        let key = self.values_key.descriptor();
        pass(&mut command, "--values-key", "", key)?;
        pass(&mut command, "--ledger", "", &held.ledger)?;
        let child = command.spawn().map_err(KeeperError::Start)?;
        Ok((child, word))
    }
}
