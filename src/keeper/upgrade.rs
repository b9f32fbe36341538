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

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, execv};

use super::falls::{Falls, Next};
use super::mountpoint::{Mounted, Mountpoint};
use super::passing::Passing;
use super::process::{self, Process};
use super::serving::{Held, Serving};
use super::{END, KILL_DEADLINE, Keeper, KeeperError, LAST, mountinfo, runtime, signals, stores};
use crate::backend::store::identity;
use crate::clock::Clock;
use crate::config::Config;
use crate::secret::Name;
use crate::sys::SecretMemory;

/// What another release says if it could go on with what it was handed.
pub const YES: &str = "could go on";

/// How long it may take to say so.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);
/// So much of what it says otherwise is passed on.
const SAID: usize = 4096;

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
    /// What of the config cannot change.
    pub fixed: Vec<(String, OsString)>,
}

/// What of the config the mount, or what is held of it, hangs on.
fn fixed(config: &Config) -> [(&'static str, OsString); 5] {
    let user = config.user.as_ref();
    let user = user.map(|user| format!("{}:{}:{}", user.uid, user.gid, user.name));
    [
        ("config", config.file.clone().into()),
        ("mount", config.mount.clone().into()),
        ("runtime", config.runtime.clone().into()),
        ("state", config.state.clone().into()),
        ("user", user.unwrap_or_default().into()),
    ]
}

impl Handed {
    /// Whether a keeper with this config could go on with it.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, config: &Config) -> Result<(), String> {
        for (key, is) in fixed(config) {
            let was = self.fixed.iter().find(|(name, _)| name == key);
            let was = was.map(|(_, was)| was.display());
            if was.is_none_or(|was| was.to_string() != is.display().to_string()) {
                let (file, is) = (config.file.display(), is.display());
                return Err(format!(
                    "{file}: `{key}` is {is} now and was another when the daemon was started, which takes a restart: `secretfs unmount`, then `secretfs mount`"
                ));
            }
        }
        for memory in self.keys.values().chain([&self.values_key]) {
            let memory = memory.try_clone().and_then(SecretMemory::map);
            memory.map_err(|why| format!("memory for keys: {why}"))?;
        }
        for (_, path) in stores(config) {
            let path = identity::locate(path).map_err(|why| why.to_string())?;
            identity::open(&path).map_err(|why| why.to_string())?;
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
        serving.stuck = !serving.child.ends_within(KILL_DEADLINE, self.clock);
        let mut said = Vec::new();
        // Until its end, or as far as it has come.
        let _ = (&serving.word).read_to_end(&mut said);
        let has_said = |word: [u8; 1]| said.iter().any(|byte| [*byte] == word);
        if has_said(END) {
            self.clear(serving.held);
            return Ok(self.give_up());
        }
        serving.last = has_said(LAST);
        let (killed, now) = (process::End::Signal(Signal::SIGKILL), self.clock.now());
        let next = match self.hindrance(&serving, killed, now) {
            None => Next::TakeOver(Duration::ZERO),
            Some(why) => Next::Afresh(Duration::ZERO, why),
        };
        self.follow(serving, next, &mut Falls::default())
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

    fn exec(&self, serving: &mut Serving) -> Result<Infallible, String> {
        let program = program().map_err(|why| format!("the program's own file: {why}"))?;
        runtime::judge_file(&program).map_err(|why| why.to_string())?;
        let passing = self.hand_over(serving).map_err(|why| why.to_string())?;
        let mut words: Vec<&OsStr> = vec![OsStr::new("--config"), self.config.named.as_ref()];
        words.push(OsStr::new("keep"));
        words.extend(passing.options().iter().map(OsString::as_os_str));
        self.check(Command::new(&program).args(&words).arg("--check"), serving)
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
        for (key, value) in fixed(self.config) {
            let mut fixed = OsString::from(format!("{key}="));
            fixed.push(value);
            passing.say("--fixed", fixed);
        }
        Ok(passing)
    }

    /// Asks the other release whether it could. The server goes on meanwhile; its death, and who wants an end, come first.
    fn check(&self, command: &mut Command, serving: &mut Serving) -> Result<(), String> {
        let meanwhile = || {
            while let Some(signal) = self.signal().map_err(|why| why.to_string())? {
                serving.heard(signal);
            }
            match serving.stop || serving.child.ended().is_some() {
                true => Err("the daemon ends, or its server has died".to_owned()),
                false => Ok(()),
            }
        };
        match ask(command, self.clock, meanwhile)?.trim() {
            YES => Ok(()),
            _ => Err("it cannot take over: it does not say that it can".to_owned()),
        }
    }
}

/// What another release says when asked whether it could take over; `meanwhile` may end the wait for it.
fn ask(
    command: &mut Command,
    clock: &Clock,
    mut meanwhile: impl FnMut() -> Result<(), String>,
) -> Result<String, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|why| format!("it does not start: {why}"))?;
    let (yes, why) = (child.stdout.take(), child.stderr.take());
    let mut process = Process::from(child);
    let deadline = clock.now() + CHECK_DEADLINE;
    let hindrance = loop {
        if process.ended().is_some() {
            break None;
        }
        if let Err(hindrance) = meanwhile() {
            break Some(hindrance);
        }
        if clock.now() >= deadline {
            break Some("it does not say in time whether it can take over".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if let Some(hindrance) = hindrance {
        let _ = kill(process.pid(), Signal::SIGKILL);
        process.ends_within(KILL_DEADLINE, clock);
        return Err(hindrance);
    }
    if process.ended() == Some(process::End::Code(0)) {
        return Ok(yes.map(|yes| said(yes.into())).unwrap_or_default());
    }
    let why = why.map(|why| said(why.into())).unwrap_or_default();
    Err(format!(
        "it cannot take over: {}",
        why.trim().replace('\n', "; ")
    ))
}

/// The program that stands where this one was started from, if it says that its server could go on where ours ends: `mark`.
///
/// # Errors
/// Why not.
pub fn follower(config: &Path, mark: &str, clock: &Clock) -> Result<PathBuf, String> {
    let program = program().map_err(|why| format!("the program's own file: {why}"))?;
    runtime::judge_file(&program).map_err(|why| why.to_string())?;
    let mut command = Command::new(&program);
    command
        .arg("--config")
        .arg(config)
        .args(["serve", "--check"]);
    let said = ask(&mut command, clock, || Ok(()))
        .map_err(|why| format!("{}: {why}", program.display()))?;
    match said.trim() == mark {
        true => Ok(program),
        false => Err(format!(
            "{}: it has the mount, the runtime folder or the state elsewhere than the daemon that runs, or writes down differently what the kernel knows: `secretfs unmount`, then `systemctl start secretfs`",
            program.display()
        )),
    }
}

/// What a program that has ended has said. Who holds the other end still is not waited for.
pub(super) fn said(pipe: OwnedFd) -> String {
    let mut text = vec![0; SAID];
    let flags = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let read = flags.and_then(|_| nix::unistd::read(&pipe, &mut text));
    text.truncate(read.unwrap_or_default());
    String::from_utf8_lossy(&text).into_owned()
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
