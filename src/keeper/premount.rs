//! What systemd's unit runs as root before the server: it mounts, hands everything to systemd's descriptor store, and ends.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};

use super::mountpoint::{Mountpoint, device};
use super::process::Process;
use super::serving::TAKE_OVER_DEADLINE;
use super::stored::{
    CONTROL, DEVICE, KEY, LEDGER, LOCK, SPARE, VALUES, VALUES_KEY, WRITABLE, forget, forget_all,
    store,
};
use super::{KeeperError, keys, runtime};
use crate::clock::Clock;
use crate::config::Config;
use crate::sys::{SecretMemory, SharedMemory};

/// How long systemd may take to say what it holds.
const ANSWER: Duration = Duration::from_secs(10);

/// Mounts where everyone sees it, and has systemd hold the mount for `unit`, whose server is started next. What systemd holds
/// already is left alone.
///
/// # Errors
/// [`KeeperError`]
pub fn premount(config: &Config, unit: &str, clock: &Clock) -> Result<(), KeeperError> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Err(KeeperError::NoUnit);
    }
    join_everyone().map_err(KeeperError::Start)?;
    let mountpoint = Mountpoint::new(&config.mount, &config.file);
    let keys = keys(config)?;
    runtime::prepare(config)?;
    let waiting = Waiting::of(config);
    if count(unit, clock).map_err(KeeperError::Systemd)? > 0 {
        // Nobody has unmounted it meanwhile, and what is held is of this runtime folder, not of one that the config named before.
        let is_there = mountpoint.listed().is_ok_and(|mounts| !mounts.is_empty());
        if is_there && runtime::is_locked(&config.runtime)? && !waiting.is_too_long()? {
            let spare = || {
                forget(SPARE)?;
                store(SPARE, &device()?)
            };
            let spare = (!resends()).then(spare);
            spare.transpose().map_err(KeeperError::Systemd)?;
            return Ok(());
        }
        let stores = keys.iter().map(|(name, _)| name.as_str());
        forget_all(stores).map_err(KeeperError::Systemd)?;
    }
    waiting.ends()?;
    // Dropped it would be unlocked, for systemd's copy of it as well.
    let lock = ManuallyDrop::new(runtime::lock(&config.runtime, clock)?);
    if mountpoint.heal()? {
        tracing::info!(mount = %config.mount.display(), "took away the mount that an earlier daemon left behind");
    }
    let control = runtime::listen(&config.runtime)?;
    let memory = || SharedMemory::create().map_err(KeeperError::Start);
    let (values, ledger) = (memory()?, memory()?);
    let values_key = SecretMemory::new().map_err(KeeperError::Start)?;
    let mounted = mountpoint.mount()?;
    let stored = || -> io::Result<()> {
        store(LOCK, &**lock)?;
        store(CONTROL, &control)?;
        store(VALUES, &values)?;
        store(VALUES_KEY, values_key.descriptor())?;
        store(LEDGER, &ledger)?;
        for (name, memory) in &keys {
            store(&format!("{KEY}{name}"), memory.descriptor())?;
        }
        if let Some(writable) = &mounted.writable {
            store(WRITABLE, writable)?;
        }
        store(DEVICE, &mounted.device)
    };
    stored().map_err(|why| {
        let _ = mountpoint.detach();
        KeeperError::Systemd(why)
    })
}

/// A server is ready: nobody waits any more.
///
/// # Errors
/// [`KeeperError::File`]
pub fn served(config: &Config) -> Result<(), KeeperError> {
    Waiting::of(config).ends()
}

/// Since when readers may have waited for a server, in a file below the runtime folder.
struct Waiting(PathBuf);

impl Waiting {
    fn of(config: &Config) -> Self {
        Self(config.runtime.join("waiting"))
    }

    /// True if they have waited longer than they should; begins to count if nobody has.
    fn is_too_long(&self) -> Result<bool, KeeperError> {
        let now = uptime().map_err(KeeperError::Start)?;
        let since = fs::read_to_string(&self.0).ok();
        match since.and_then(|since| since.trim().parse::<f64>().ok()) {
            Some(since) => Ok(now - since >= TAKE_OVER_DEADLINE.as_secs_f64()),
            None => {
                fs::write(&self.0, now.to_string()).map_err(|why| self.fails(why))?;
                Ok(false)
            }
        }
    }

    fn ends(&self) -> Result<(), KeeperError> {
        match fs::remove_file(&self.0) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(self.fails(why)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn fails(&self, why: io::Error) -> KeeperError {
        KeeperError::File {
            path: self.0.clone(),
            key: "runtime",
            why,
        }
    }
}

/// How long the machine has been running, in seconds.
fn uptime() -> io::Result<f64> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds = uptime
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok());
    seconds.ok_or_else(|| io::Error::other("/proc/uptime says something else"))
}

/// Goes where the first process of the machine, or of the container, is: a unit has mounts of its own, which nobody else sees.
fn join_everyone() -> io::Result<()> {
    let everyone = File::open("/proc/1/ns/mnt")?;
    Ok(setns(everyone, CloneFlags::CLONE_NEWNS)?)
}

/// Whether the kernel may send again what a dead server has not answered: since Linux 6.9. The server knows for sure, and does
/// without what it does not need.
fn resends() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// How many descriptors systemd holds for a unit.
fn count(unit: &str, clock: &Clock) -> io::Result<usize> {
    let mut child = Command::new("systemctl")
        .args(["show", "--property=NFileDescriptorStore", "--value", "--"])
        .arg(unit)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|why| io::Error::new(why.kind(), format!("systemctl: {why}")))?;
    let said = child.stdout.take().map(OwnedFd::from);
    let mut child = Process::from(child);
    if !child.ends_within(ANSWER, clock) {
        kill(child.pid(), Signal::SIGKILL)?;
        return Err(io::Error::other("`systemctl show` does not answer in time"));
    }
    let said = said.map(super::upgrade::said).unwrap_or_default();
    let count = said.trim().parse();
    count.map_err(|_| {
        io::Error::other(format!(
            "`systemctl show {unit}` does not say how much it holds"
        ))
    })
}
