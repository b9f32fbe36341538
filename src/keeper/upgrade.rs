//! Another release of the program takes the keeper's place, in the same process and with everything that it holds, and then
//! has a server of its own go on where the one before it was.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, execv};

use super::falls::{Falls, Next};
use super::mountpoint::{Mounted, Mountpoint};
use super::passing::Passing;
use super::process::{End, Process};
use super::serving::{Held, Serving};
use super::{KILL_DEADLINE, Keeper, KeeperError, mountinfo, runtime, signals, stores};
use crate::clock::Clock;
use crate::config::Config;
use crate::secret::Name;
use crate::sys::SecretMemory;

/// How long the other release may take to say whether it could.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// So much of what it says is passed on.
const SAID: u64 = 4096;

/// What the keeper of another release hands over.
#[derive(Debug)]
pub struct Handed {
    /// The server that still serves.
    pub server: i32,
    /// Servers before it that have not ended yet.
    pub before: Vec<i32>,
    /// Where the server says how it is.
    pub word: OwnedFd,
    /// `/dev/fuse`, mounted.
    pub device: OwnedFd,
    /// The top of the mount, where it can be written to.
    pub writable: Option<OwnedFd>,
    /// The memory in which it stands what the kernel knows.
    pub ledger: OwnedFd,
    /// The kernel sends again what a dead server has not answered.
    pub resends: bool,
    /// The control socket, listening.
    pub control: OwnedFd,
    /// The daemon's lock, locked.
    pub lock: OwnedFd,
    /// For each store the memory for the key of a sealed identity.
    pub keys: BTreeMap<Name, OwnedFd>,
    /// The memory for values.
    pub values: OwnedFd,
    /// That for the key to them.
    pub values_key: OwnedFd,
    /// Where the secrets appear.
    pub mount: PathBuf,
    /// The runtime folder.
    pub runtime: PathBuf,
}

impl Handed {
    /// Whether a keeper with this config could go on with it.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, config: &Config) -> Result<(), String> {
        for (key, was, is) in [
            ("mount", &self.mount, &config.mount),
            ("runtime", &self.runtime, &config.runtime),
        ] {
            if was != is {
                let (file, was, is) = (config.file.display(), was.display(), is.display());
                return Err(format!(
                    "{file}: `{key}` was {was} and is {is} now, which takes a restart: `secretfs unmount`, then `secretfs mount`"
                ));
            }
        }
        Ok(())
    }
}

/// Goes on as the keeper of `config` with what another release has handed over.
///
/// # Errors
/// As [`run`](super::run).
pub fn resume(config: &Config, clock: &Clock, mut handed: Handed) -> Result<(), KeeperError> {
    let signals = signals()?;
    let mut keys = Vec::new();
    for (name, _) in stores(config) {
        let memory = match handed.keys.remove(name.as_str()) {
            Some(memory) => SecretMemory::map(memory),
            None => SecretMemory::new(),
        };
        keys.push((name, memory.map_err(KeeperError::Start)?));
    }
    let keeper = Keeper {
        config,
        clock,
        mountpoint: Mountpoint::new(&config.mount, &config.file),
        lock: runtime::hold(File::from(handed.lock))?,
        signals,
        mountinfo: mountinfo()?,
        control: UnixListener::from(handed.control),
        keys,
        values: handed.values,
        values_key: SecretMemory::map(handed.values_key).map_err(KeeperError::Start)?,
    };
    let mounted = Mounted {
        device: handed.device,
        writable: handed.writable,
    };
    let mut held = Held::new(mounted, keeper.mounts(), handed.ledger);
    (held.served, held.resends) = (true, handed.resends);
    let process = |pid| Process::new(Pid::from_raw(pid));
    let (word, now) = (UnixStream::from(handed.word), clock.now());
    let mut serving = Serving::new(process(handed.server), word, held, now);
    serving.ready = Some(now);
    serving.before = handed.before.into_iter().map(process).collect();
    tracing::info!(
        release = env!("CARGO_PKG_VERSION"),
        "another release has taken over"
    );
    match keeper.replace(serving)? {
        Some(serving) => keeper.go_on(serving, None::<fn()>),
        None => Ok(()),
    }
}

impl Keeper<'_> {
    /// Has another server go on where this one is. `None` if somebody wants an end instead.
    fn replace(&self, mut serving: Serving) -> Result<Option<Serving>, KeeperError> {
        let _ = kill(serving.child.pid(), Signal::SIGKILL);
        serving.stuck = !self.has_ended(&mut serving.child, KILL_DEADLINE);
        self.follow(
            serving,
            Next::TakeOver(Duration::ZERO),
            &mut Falls::default(),
        )
    }

    /// Has the program that stands where this one was started from take over. Returns only if it cannot, which the server
    /// is told.
    pub(super) fn upgrade(&self, serving: &mut Serving) {
        serving.reap();
        let why = match self.exec(serving) {
            Ok(never) => match never {},
            Err(why) => why,
        };
        tracing::warn!("no other release takes over: {why}");
        let _ = serving.word.write_all(format!("{why}\n").as_bytes());
    }

    fn exec(&self, serving: &Serving) -> Result<Infallible, String> {
        let program = program().map_err(|why| format!("the program's own file: {why}"))?;
        let passing = self.hand_over(serving).map_err(|why| why.to_string())?;
        let mut words: Vec<&OsStr> = vec![OsStr::new("--config"), self.config.named.as_ref()];
        words.push(OsStr::new("keep"));
        words.extend(passing.options().iter().map(OsString::as_os_str));
        self.check(Command::new(&program).args(&words).arg("--check"))
            .map_err(|why| format!("{}: {why}", program.display()))?;
        tracing::info!(program = %program.display(), "another release takes over");
        words.insert(0, program.as_os_str());
        let words = words.into_iter().map(|word| CString::new(word.as_bytes()));
        let words: Vec<CString> = words
            .collect::<Result<_, _>>()
            .map_err(|why| why.to_string())?;
        let program =
            CString::new(program.as_os_str().as_bytes()).map_err(|why| why.to_string())?;
        // Which leaves signals blocked: none ends it before it listens.
        execv(&program, &words).map_err(|why| why.to_string())
    }

    fn hand_over(&self, serving: &Serving) -> Result<Passing, KeeperError> {
        let mut passing = Passing::default();
        passing.say("--server", serving.child.pid().to_string());
        for before in &serving.before {
            passing.say("--before", before.pid().to_string());
        }
        let held = &serving.held;
        passing.pass("--word", &serving.word)?;
        passing.pass("--device", &held.mounted.device)?;
        if let Some(writable) = &held.mounted.writable {
            passing.pass("--writable", writable)?;
        }
        passing.pass("--ledger", &held.ledger)?;
        if !held.resends {
            passing.say("--resends", "false");
        }
        passing.pass("--control", &self.control)?;
        passing.pass("--lock", &*self.lock)?;
        for (name, memory) in &self.keys {
            passing.pass_named("--key", format_args!("{name}="), memory.descriptor())?;
        }
        passing.pass("--values", &self.values)?;
        passing.pass("--values-key", self.values_key.descriptor())?;
        passing.say("--mount", &self.config.mount);
        passing.say("--runtime", &self.config.runtime);
        Ok(passing)
    }

    /// Asks the other release whether it could, while all goes on.
    fn check(&self, command: &mut Command) -> Result<(), String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|why| format!("it does not start: {why}"))?;
        let said = child.stderr.take();
        let mut process = Process::from(child);
        if !self.has_ended(&mut process, CHECK_DEADLINE) {
            let _ = kill(process.pid(), Signal::SIGKILL);
            self.has_ended(&mut process, KILL_DEADLINE);
            return Err("it does not say in time whether it can take over".to_owned());
        }
        if process.ended() == Some(End::Code(0)) {
            return Ok(());
        }
        let mut text = Vec::new();
        if let Some(said) = said {
            let _ = said.take(SAID).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        Err(format!(
            "it cannot take over: {}",
            text.trim().replace('\n', "; ")
        ))
    }
}

/// The path that this program was started from; what stands there now may be another release.
fn program() -> io::Result<PathBuf> {
    let named = std::env::args_os().next().map(PathBuf::from);
    if let Some(named) = named.filter(|named| named.is_absolute()) {
        return Ok(named);
    }
    let running = std::fs::read_link("/proc/self/exe")?;
    // What the kernel adds when the file was replaced.
    let text = running
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"));
    Ok(text.map_or_else(|| running.clone(), |text| Path::new(text).to_owned()))
}
