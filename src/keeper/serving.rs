//! A server: how it is started on a mount, and what is handed over to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::mountpoint::{self, Listed, Mounted};
use super::passing::Passing;
use super::process::{End, Process};
use super::{KILL_DEADLINE, Keeper, KeeperError, ends, stores};
use crate::backend::store::identity;
use crate::sys;

/// How long those who read may have to wait for a server to go on where one has died, whoever dies on the way.
pub(super) const TAKE_OVER_DEADLINE: Duration = Duration::from_secs(10);
/// So many servers that the kernel keeps may be there at once.
const MOST_KEPT: usize = 3;

/// Why a mount is given up, as the log says it.
const UNMOUNTED: &str = "somebody has unmounted it";
pub(super) const LATE: &str = "no server was ready in time";

/// A server and the mount that it serves.
pub(super) struct Serving {
    pub(super) child: Process,
    /// By then it must be ready if there was one before it on the mount.
    due: Instant,
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
    /// It has said that nobody can go on where it ends.
    pub(super) last: bool,
    /// The config is to be read again as soon as it can be told so.
    pub(super) reload: bool,
    /// Somebody wants an end.
    pub(super) stop: bool,
    /// When it closed its end of the word, as who dies does.
    pub(super) closed: Option<Instant>,
    /// It is dead, and the kernel keeps it.
    pub(super) stuck: bool,
    /// Servers before it that have not ended yet: the kernel keeps one until what it waits for has happened.
    pub(super) before: Vec<Process>,
}

/// What is held of a mount, so that another server can go on where one has died.
pub(super) struct Held {
    pub(super) mounted: Mounted,
    /// The mounts of it that there were at first.
    pub(super) listed: Vec<Listed>,
    /// The memory in which it stands what the kernel knows. It is not mapped here.
    pub(super) ledger: OwnedFd,
    /// A server was ready on it.
    pub(super) served: bool,
    /// The kernel sends again what a dead server has not answered.
    pub(super) resends: bool,
}

impl Held {
    /// Of a fresh mount, with fresh memory.
    pub(super) fn new(mounted: Mounted, listed: Vec<Listed>, ledger: OwnedFd) -> Self {
        Self {
            mounted,
            listed,
            ledger,
            served: false,
            resends: true,
        }
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
    /// A server that has just been started.
    pub(super) fn new(child: Process, word: UnixStream, held: Held, now: Instant) -> Self {
        Self {
            child,
            due: now + TAKE_OVER_DEADLINE,
            ready: None,
            unmounted: false,
            word,
            held,
            late: false,
            last: false,
            reload: false,
            stop: false,
            closed: None,
            stuck: false,
            before: Vec::new(),
        }
    }

    /// Ends a server that takes too long to go on where another one has died. True if not even that ends it.
    pub(super) fn hurry(&mut self, now: Instant) -> bool {
        let late = now.saturating_duration_since(self.due);
        if late.is_zero() || !self.held.served || self.ready.is_some() {
            return false;
        }
        if !std::mem::replace(&mut self.late, true) {
            let _ = kill(self.child.pid(), Signal::SIGKILL);
        }
        late > KILL_DEADLINE
    }

    /// By when the next one must be ready on the same mount.
    pub(super) fn due(&self, now: Instant) -> Instant {
        match self.ready {
            Some(_) => now + TAKE_OVER_DEADLINE,
            // Who waits has waited already.
            None => self.due,
        }
    }

    /// It comes after these, and must be ready by then.
    pub(super) fn after(self, before: Vec<Process>, due: Instant) -> Self {
        Self {
            before,
            due,
            ..self
        }
    }

    /// The keeper was sent a signal.
    pub(super) fn heard(&mut self, signal: Signal) {
        self.stop |= ends(signal);
        self.reload |= signal == Signal::SIGHUP;
    }

    /// Forgets those before it that have ended.
    pub(super) fn reap(&mut self) {
        self.before.retain_mut(|child| child.ended().is_none());
    }

    /// True if neither it nor one before it is there any more.
    pub(super) fn has_gone(&mut self) -> bool {
        self.reap();
        self.before.is_empty() && self.child.ended().is_some()
    }

    /// How long it has served, if it was ready. One that is stuck was found out late, and may have been for as long.
    pub(super) fn served_for(&self, now: Instant) -> Option<Duration> {
        let ready = self.ready?;
        let died = match self.stuck {
            true => self.closed.unwrap_or(ready),
            false => now,
        };
        Some(died.saturating_duration_since(ready))
    }

    /// Why the next one cannot go on where this one has ended like this. One that was ready and ends by itself had
    /// nothing to go on with; one that was not may have lacked what is there in a moment. Where the kernel sends nothing
    /// again, what one that is stuck had read would wait for it for ever.
    fn hindrance(&self, status: End, now: Instant) -> Option<&'static str> {
        let ready = self.ready.is_some();
        let by_itself = ready && matches!(status, End::Code(_));
        let late = !ready && (self.late || now >= self.due);
        let keeps_all = self.stuck && !self.held.resends;
        let hindrances = [
            (self.unmounted, UNMOUNTED),
            (!self.held.served, "no server has ever served it"),
            (self.last, "the server said that no other can go on with it"),
            (by_itself, "the server ended by itself"),
            (late, LATE),
            (keeps_all, "the kernel keeps what the server had read"),
            (
                self.before.len() >= MOST_KEPT,
                "the kernel keeps dead servers",
            ),
        ];
        let mut hindrances = hindrances.into_iter();
        hindrances.find_map(|(is, why)| is.then_some(why))
    }
}

impl Keeper<'_> {
    /// Why no other server can go on where one has ended like this.
    pub(super) fn hindrance(
        &self,
        dead: &Serving,
        status: End,
        now: Instant,
    ) -> Option<&'static str> {
        match self.is_there() {
            true => dead.hindrance(status, now),
            false => Some(UNMOUNTED),
        }
    }

    pub(super) fn start_server(&self, held: Held) -> Result<Serving, (KeeperError, Held)> {
        match self.spawn(&held) {
            Ok((child, word)) => Ok(Serving::new(child, word, held, self.clock.now())),
            Err(error) => Err((error, held)),
        }
    }

    fn spawn(&self, held: &Held) -> Result<(Process, UnixStream), KeeperError> {
        let Mounted { device, writable } = &held.mounted;
        let (word, theirs) = UnixStream::pair().map_err(KeeperError::Start)?;
        word.set_nonblocking(true).map_err(KeeperError::Start)?;
        // By the running file itself: its path may lead to a newer version meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("secretfs");
        // As it was named, so that the server follows its links again at each reload.
        command
            .arg("--config")
            .arg(&self.config.named)
            .arg("serve-handed");
        let mut passing = Passing::default();
        if let Some(user) = &self.config.user {
            let user = format!("{}:{}:{}", user.uid, user.gid, user.name);
            passing.say("--user", user);
        }
        passing.pass("--device", device)?;
        if let Some(writable) = writable {
            passing.pass("--writable", writable)?;
        }
        passing.pass("--word", &theirs)?;
        passing.pass("--control", &self.control)?;
        for (name, path) in stores(self.config) {
            // Opened anew each time, because `rekey` replaces the file; unread, because that is the server's business.
            let path = identity::locate(path)?;
            let file = identity::open(&path)?;
            passing.pass_named("--identity", format_args!("{name}="), &file)?;
        }
        for (name, memory) in &self.keys {
            passing.pass_named("--key", format_args!("{name}="), memory.descriptor())?;
        }
        passing.pass("--values", &self.values)?;
        passing.pass("--values-key", self.values_key.descriptor())?;
        passing.pass("--ledger", &held.ledger)?;
        command.args(passing.options());
        let child = command.spawn().map_err(KeeperError::Start)?;
        Ok((child.into(), word))
    }
}
