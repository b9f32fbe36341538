//! The server as systemd starts it, with a mount that systemd holds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;
use tokio::sync::oneshot;

use super::backends::vaults;
use super::{Holder, Inherited, RunError, serve};
use crate::clock::Clock;
use crate::config::Config;
use crate::fs::Ledger;
use crate::keeper::mountpoint::Mountpoint;
use crate::keeper::stored::{self, NotStored, Stored};
use crate::sys::Uid;

/// How long a config may be wrong that was right before.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the server of this release would go on with, if it could serve this config: where that puts things, and how the ledger is
/// written. Who says the same can go on with the same mount.
///
/// # Errors
/// [`RunError::Config`], [`RunError::User`], [`RunError::Backend`].
pub fn fits(config: &Path, clock: &Clock) -> Result<String, RunError> {
    let config = Config::load(config)?;
    check_user(&config)?;
    vaults(&config, clock)?;
    Ok(mark(&config))
}

/// The same of the config that is in force.
pub(super) fn mark(config: &Config) -> String {
    let places = [&config.file, &config.mount, &config.runtime, &config.state];
    format!("{} {places:?}", Ledger::layout())
}

fn check_user(config: &Config) -> Result<(), RunError> {
    match &config.user {
        Some(user) if user.uid != Uid::effective() => Err(RunError::User {
            file: config.file.clone(),
            user: user.name.clone(),
            is: Uid::effective(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// The config. One that is being saved while there is a mount to go on with is waited for.
fn load(config: &Path, clock: &Clock) -> Result<Config, RunError> {
    let deadline = clock.now() + PATIENCE;
    loop {
        match Config::load(config) {
            Err(_) if Stored::is_there() && clock.now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            loaded => return Ok(loaded?),
        }
    }
}

/// The server as systemd starts it: with a mount that systemd holds.
///
/// # Errors
/// As [`serve`]; [`RunError::Stored`], [`RunError::User`].
pub fn serve_stored(config: &Path, clock: &Clock) -> Result<(), RunError> {
    // First: of a config that is wrong systemd hears before anything else, and leaves it at that.
    let loaded = load(config, clock)?;
    check_user(&loaded)?;
    let stored = Stored::inherit()?;
    let inherited = Inherited::of(stored, config, mark(&loaded), clock);
    serve(config, inherited?, clock)
}

impl Inherited {
    fn of(stored: Stored, config: &Path, mark: String, clock: &Clock) -> Result<Self, NotStored> {
        let parts = || {
            Ok((
                (stored.device()?, stored.find(stored::WRITABLE)?),
                stored.get(stored::CONTROL)?,
                stored.keys()?,
                (stored.get(stored::VALUES)?, stored.get(stored::VALUES_KEY)?),
                stored.get(stored::LEDGER)?,
            ))
        };
        let parts: Result<_, NotStored> = parts();
        let ((device, writable), control, keys, (values, values_key), ledger) =
            parts.inspect_err(|_| stored.forget())?;
        Ok(Self {
            device,
            writable,
            holder: Holder::systemd(stored, config, mark, clock),
            control,
            identities: BTreeMap::new(),
            keys,
            values,
            values_key,
            ledger,
            user: None,
        })
    }
}

/// Says when somebody has taken the mount away: with a mount of its own the server does not hear of that otherwise. Where the unit
/// hides the mount from it, nothing can be said.
pub(super) fn await_unmount(mountpoint: Mountpoint) -> io::Result<oneshot::Receiver<()>> {
    let mountinfo = File::open("/proc/self/mountinfo")?;
    let path = mountpoint.path().to_owned();
    let (gone, is_gone) = oneshot::channel();
    let is_there = move || {
        let listed = mountpoint.listed();
        listed.map_or(true, |mounts| !mounts.is_empty())
    };
    // What was there when it was mounted for us is gone, or the unit hides it, and then nothing can be said.
    if !is_there() && fs::metadata(&path).is_err() {
        return Ok(is_gone);
    }
    let wait = move || {
        while is_there() {
            let mut changed = [PollFd::new(mountinfo.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut changed, PollTimeout::NONE).is_err_and(|why| why != Errno::EINTR) {
                return;
            }
        }
        // Who does not wait any more ends anyway.
        let _ = gone.send(());
    };
    thread::Builder::new()
        .name("mounts".to_owned())
        .spawn(wait)?;
    Ok(is_gone)
}

/// Waits for that, where somebody looks.
pub(super) async fn gone(unmounted: &mut Option<oneshot::Receiver<()>>) {
    if let Some(waiting) = unmounted {
        let said = waiting.await;
        *unmounted = None;
        if said.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// Tells systemd that this server is alive, as often as it wants to hear it.
pub(super) async fn watchdog() {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut turns = tokio::time::interval((within / 3).max(Duration::from_millis(10)));
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if let Err(why) = sd_notify::notify(&[NotifyState::Watchdog]) {
            tracing::warn!(%why, "systemd does not hear");
        }
    }
}
