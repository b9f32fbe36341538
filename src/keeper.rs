//! The parent: mounts, holds the descriptors, starts the server again when it dies, unmounts at the end.
//!
//! It parses nothing but the config, has no network and no threads, and the server is its only lasting child. What it
//! holds is the descriptor of `/dev/fuse`, the listening control socket, the lock, and memory that it never reads: the
//! key of an identity that somebody had to open by hand, the values that the server has fetched, sealed, the key to them, and
//! what the kernel knows of the mount. With that the next server goes on where one was killed, and no reader notices.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sd_notify::NotifyState;

use crate::clock::Clock;
use crate::config::Config;
use crate::control;
use crate::sys::{SecretMemory, SharedMemory};

mod error;
mod falls;
mod lookout;
pub mod mountpoint;
mod passing;
pub mod premount;
mod process;
pub mod runtime;
mod serving;
pub mod stored;
pub mod upgrade;

pub use error::KeeperError;
use falls::{AGAIN, Falls, Next};
use lookout::Lookout;
use mountpoint::{Listed, MountError, Mountpoint, abort};
use process::End;
use serving::{Held, LATE, Serving};

/// What the server says when it can serve.
pub const READY: [u8; 1] = *b"r";
/// The same where the kernel sends nothing again that a dead server has not answered (Linux before 6.9).
pub const READY_WITHOUT_RESEND: [u8; 1] = *b"o";
/// What the server says when it was asked to end, by `secretfs unmount`.
pub const END: [u8; 1] = *b"e";
/// What the server says when no other can go on where it ends.
pub const LAST: [u8; 1] = *b"l";
/// What the server says when it was asked for another release to take over, by `secretfs upgrade`. The answer is why not.
pub const UPGRADE: [u8; 1] = *b"u";

/// How long the server may take to drain before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long the kernel may take for the end of a server that was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// Mounts and serves `config` in the foreground until it is told to stop. `ready` is called once, when the first
/// reader can be served.
///
/// # Errors
/// [`KeeperError`]
pub fn run(config: &Config, clock: &Clock, ready: impl FnOnce()) -> Result<(), KeeperError> {
    let signals = signals()?;
    runtime::prepare(config)?;
    runtime::make_state(config)?;
    let lock = runtime::lock(&config.runtime, clock)?;
    let mountpoint = Mountpoint::new(&config.mount, &config.file);
    if mountpoint.heal()? {
        tracing::info!(mount = %config.mount.display(), "took away the mount that an earlier daemon left behind");
    }
    let keeper = Keeper {
        config,
        clock,
        mountpoint,
        lock,
        signals,
        mountinfo: mountinfo()?,
        control: runtime::listen(&config.runtime)?,
        keys: keys(config)?,
        values: SharedMemory::create().map_err(KeeperError::Start)?,
        values_key: SecretMemory::new().map_err(KeeperError::Start)?,
    };
    keeper.keep(ready)
}

struct Keeper<'a> {
    config: &'a Config,
    clock: &'a Clock,
    mountpoint: Mountpoint,
    lock: Flock<File>,
    signals: SignalFd,
    /// `/proc/self/mountinfo`, which says when a mount comes or goes.
    mountinfo: File,
    control: UnixListener,
    /// For each store the memory in which the server leaves the key of a sealed identity for its successor.
    keys: Vec<(String, SecretMemory)>,
    /// The memory in which the server leaves its values for its successor, sealed. It is not mapped here.
    values: OwnedFd,
    /// That for the key to them.
    values_key: SecretMemory,
}

/// What ends the wait for a server.
enum Happened {
    Ready,
    Died(End),
    Stop,
}

/// What became of a mount whose server has died.
enum Taken {
    /// This one goes on with it.
    Over(Box<Serving>),
    /// Somebody wants an end, and it is gone.
    Ended,
    /// Nobody could in time, and it is gone.
    Failed,
}

impl Keeper<'_> {
    fn keep(&self, ready: impl FnOnce()) -> Result<(), KeeperError> {
        self.go_on(self.start()?, Some(ready))
    }

    /// Keeps a server; without `ready` one that was ready before.
    fn go_on(
        &self,
        mut serving: Serving,
        mut ready: Option<impl FnOnce()>,
    ) -> Result<(), KeeperError> {
        let mut falls = Falls::default();
        loop {
            match self.wait(&mut serving)? {
                Happened::Ready => {
                    if let Some(ready) = ready.take() {
                        tell_systemd(NotifyState::Ready);
                        ready();
                    }
                }
                Happened::Stop => return self.stop(serving),
                Happened::Died(status) if ready.is_some() => {
                    self.clear(serving.held);
                    return Err(match status {
                        End::Code(code) => KeeperError::NotReady(u8::try_from(code).unwrap_or(1)),
                        End::Signal(signal) => KeeperError::Start(io::Error::other(format!(
                            "it was killed by {signal}, which the kernel's log may explain"
                        ))),
                    });
                }
                Happened::Died(status) => {
                    tracing::error!(how = ?status, "the server died; starting it again");
                    match self.start_again(serving, status, &mut falls)? {
                        Some(again) => serving = again,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// Starts another server: where the one before has died, so that nobody notices; or on a fresh mount, as often as it
    /// takes: what is missing now, such as an identity that `rekey` is replacing, may be there the next time. `None` if
    /// somebody wants an end instead.
    fn start_again(
        &self,
        dead: Serving,
        status: End,
        falls: &mut Falls,
    ) -> Result<Option<Serving>, KeeperError> {
        let now = self.clock.now();
        let served = dead.served_for(now);
        let next = falls.fell(served, self.hindrance(&dead, status, now));
        self.follow(dead, next, falls)
    }

    fn follow(
        &self,
        dead: Serving,
        next: Next,
        falls: &mut Falls,
    ) -> Result<Option<Serving>, KeeperError> {
        let due = dead.due(self.clock.now());
        let Serving {
            child,
            held,
            mut before,
            ..
        } = dead;
        before.push(child);
        let mut pause = match next {
            Next::TakeOver(pause) => match self.take_over(held, pause, due)? {
                Taken::Over(serving) => return Ok(Some(serving.after(before, due))),
                Taken::Ended => return Ok(self.give_up()),
                Taken::Failed => falls.pause(),
            },
            Next::Afresh(pause, why) => {
                self.give_way(held, why);
                pause
            }
        };
        loop {
            if self.rest(pause)? {
                return Ok(self.give_up());
            }
            match self.start() {
                Ok(serving) => return Ok(Some(serving.after(before, due))),
                Err(error) => tracing::error!("the server was not started again: {error}"),
            }
            pause = falls.pause();
        }
    }

    fn give_up(&self) -> Option<Serving> {
        tell_systemd(NotifyState::Stopping);
        self.remove_socket();
        None
    }

    /// Waits. True, and at once, if somebody wants an end.
    fn rest(&self, pause: Duration) -> Result<bool, KeeperError> {
        let deadline = self.clock.now() + pause;
        loop {
            while let Some(signal) = self.signal()? {
                if ends(signal) {
                    return Ok(true);
                }
            }
            let left = deadline.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut source = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut source, timeout) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next signal, if there is one.
    fn signal(&self) -> Result<Option<Signal>, KeeperError> {
        let read = self.signals.read_signal()?;
        Ok(read
            .and_then(|signal| i32::try_from(signal.ssi_signo).ok())
            .and_then(|number| Signal::try_from(number).ok()))
    }

    /// Mounts afresh and starts a server on it.
    fn start(&self) -> Result<Serving, KeeperError> {
        let ledger = SharedMemory::create().map_err(KeeperError::Start)?;
        let mounted = self.mountpoint.mount()?;
        let held = Held::new(mounted, self.mounts(), ledger);
        self.start_server(held).map_err(|(error, held)| {
            drop(held);
            let _ = self.mountpoint.detach();
            error
        })
    }

    /// Starts a server where one has died, as often as it takes until then.
    fn take_over(
        &self,
        mut held: Held,
        mut pause: Duration,
        due: Instant,
    ) -> Result<Taken, KeeperError> {
        loop {
            if self.rest(pause)? {
                self.clear(held);
                return Ok(Taken::Ended);
            }
            let started = match held.hand_on() {
                Ok(()) => self.start_server(held),
                Err(why) => Err((KeeperError::Start(why), held)),
            };
            let error = match started {
                Ok(serving) => return Ok(Taken::Over(Box::new(serving))),
                Err((error, back)) => {
                    held = back;
                    error
                }
            };
            tracing::error!("the server was not started again: {error}");
            if self.clock.now() >= due {
                self.give_way(held, LATE);
                return Ok(Taken::Failed);
            }
            pause = AGAIN;
        }
    }

    /// False if somebody has taken the mount away: then nobody could come to it.
    fn is_there(&self) -> bool {
        let listed = self.mountpoint.listed();
        !listed.is_ok_and(|list| list.is_empty())
    }

    /// Waits until the server is ready or dead, or somebody wants an end.
    fn wait(&self, serving: &mut Serving) -> Result<Happened, KeeperError> {
        let mut lookout = Lookout::new(self.clock);
        loop {
            serving.reap();
            let mut sources = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(serving.word.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI),
            ];
            let idle = match poll(&mut sources, PollTimeout::from(lookout.pause())) {
                Ok(ready) => ready == 0,
                Err(Errno::EINTR) => false,
                Err(errno) => return Err(errno.into()),
            };
            while let Some(signal) = self.signal()? {
                serving.heard(signal);
            }
            if serving.stop {
                return Ok(Happened::Stop);
            }
            // A server that is not ready does not listen yet.
            if serving.ready.is_some() && std::mem::take(&mut serving.reload) {
                kill(serving.child.pid(), Signal::SIGHUP)?;
            }
            // First, as what it has said it has said, whatever has become of it.
            let mut byte = [0_u8; 1];
            match serving.word.read(&mut byte) {
                Ok(0) => {
                    // Its end is closed, so it is dying, and SIGCHLD follows, unless the kernel keeps it.
                    serving.closed.get_or_insert(self.clock.now());
                    lookout.hurry(self.clock);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(_) if byte == LAST => serving.last = true,
                Ok(_) if byte == END => return Ok(Happened::Stop),
                Ok(_) if byte == UPGRADE => self.upgrade(serving),
                // Only its first word of this kind counts.
                Ok(_) if serving.ready.is_some() => {}
                Ok(_) => {
                    serving.ready = Some(self.clock.now());
                    serving.held.served = true;
                    serving.held.resends = byte != READY_WITHOUT_RESEND;
                    return Ok(Happened::Ready);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It has died with something unread that it was told.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(KeeperError::Start(error)),
            }
            let stuck = lookout.sees_it_stuck(self.clock, &serving.child);
            if let Some(status) = serving.child.ended() {
                return Ok(Happened::Died(status));
            }
            if stuck {
                tracing::warn!("the kernel keeps a thread of the server");
                serving.stuck = true;
                return Ok(Happened::Died(End::Signal(Signal::SIGKILL)));
            }
            if !idle {
                self.look_after(serving);
            }
            if serving.hurry(self.clock.now()) {
                serving.stuck = true;
                return Ok(Happened::Died(End::Signal(Signal::SIGKILL)));
            }
        }
    }

    /// Ends a server whose mount somebody has taken away: it does not hear of that, because it has a mount of its own. It is
    /// started again on a fresh one.
    fn look_after(&self, serving: &mut Serving) {
        if serving.unmounted || self.is_there() {
            return;
        }
        tracing::warn!(mount = %self.config.mount.display(), "somebody has unmounted it; mounting it again");
        serving.unmounted = true;
        let _ = kill(serving.child.pid(), Signal::SIGTERM);
    }

    /// The end: nobody can come any more, then the server drains, then whoever still waits is let go.
    fn stop(&self, mut serving: Serving) -> Result<(), KeeperError> {
        tell_systemd(NotifyState::Stopping);
        let mounts = self.mounts_of(&serving.held);
        let detached = self.mountpoint.detach();
        let server = serving.child.pid();
        let _ = kill(server, Signal::SIGTERM);
        if !serving.child.ends_within(STOP_DEADLINE, self.clock) {
            tracing::warn!("the server did not end in time and is killed");
            let _ = kill(server, Signal::SIGKILL);
            serving.child.ends_within(KILL_DEADLINE, self.clock);
        }
        if !serving.has_gone() {
            tracing::warn!("the kernel keeps a server; who waits for it is let go");
            mounts.iter().for_each(abort);
        }
        drop(serving.held);
        self.remove_socket();
        detached.map_err(|why| {
            MountError::Stays {
                path: self.config.mount.clone(),
                why,
            }
            .into()
        })
    }

    /// Our mounts at the place.
    fn mounts(&self) -> Vec<Listed> {
        let mut mounts = self.mountpoint.listed().unwrap_or_default();
        mounts.retain(|mount| mount.source == self.config.file);
        mounts
    }

    /// The mounts whose connection this is. As long as we hold its top no other connection has its number, whoever has
    /// unmounted it.
    fn mounts_of(&self, held: &Held) -> Vec<Listed> {
        match &held.mounted.writable {
            Some(_) => held.listed.clone(),
            None => self.mounts(),
        }
    }

    fn remove_socket(&self) {
        let _ = fs::remove_file(self.config.runtime.join(control::SOCKET));
    }

    /// Makes room for a fresh mount, and says why.
    fn give_way(&self, held: Held, why: &str) {
        tracing::error!(%why, "mounting afresh: what is open has to be opened anew");
        self.clear(held);
    }

    /// Waiters fail at once, and the place is free for a fresh mount.
    fn clear(&self, held: Held) {
        // What is stuck of a server may still hold the connection.
        self.mounts_of(&held).iter().for_each(abort);
        drop(held);
        if let Err(error) = self.mountpoint.detach() {
            tracing::warn!(%error, mount = %self.config.mount.display(), "the dead mount would not go");
        }
    }
}

/// Where nobody asked to be told, this does nothing.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd does not hear");
    }
}

/// Whether this signal asks for an end.
fn ends(signal: Signal) -> bool {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT].contains(&signal)
}

fn stores(config: &Config) -> impl Iterator<Item = (String, Option<&Path>)> {
    let stores = config.stores();
    stores.map(|(name, store)| (name.to_string(), store.identity.as_deref()))
}

fn keys(config: &Config) -> Result<Vec<(String, SecretMemory)>, KeeperError> {
    stores(config)
        .map(|(name, _)| Ok((name, SecretMemory::new().map_err(KeeperError::Start)?)))
        .collect()
}

/// What the keeper hears of: they come as something to read.
fn signals() -> Result<SignalFd, Errno> {
    let signals: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn mountinfo() -> Result<File, KeeperError> {
    let path = Path::new("/proc/self/mountinfo");
    File::open(path).map_err(KeeperError::Start)
}
