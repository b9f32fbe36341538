//! The system under test as a whole: the real daemon on a real mount, and real users.
//!
//! Its backends are one store, which is never down and announces everything, and its time is the machine's.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use secretfs::clock::Clock;

use crate::common::daemon::Daemon;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually};
use crate::core::wrapped;
use crate::language::{Answer, Asked, Op, Policy, Seen, System, UIDS};

pub struct Mounted {
    /// A process of each user; they end before the daemon does.
    probes: HashMap<u32, Probe>,
    daemon: Daemon,
    /// The config up to the services.
    top: String,
    handles: Vec<Descriptor>,
    pins: Vec<Descriptor>,
    /// The last listing: what it told the kernel of lengths lives for a second.
    listed: Option<Instant>,
    clock: Clock,
}

/// A descriptor's number in the process of each user who has it.
type Descriptor = HashMap<u32, i64>;

impl Mounted {
    pub fn new(policy: &Policy) -> Self {
        let services = config(policy);
        let daemon = Daemon::start(&services, &[]);
        let text = fs::read_to_string(daemon.at("config.toml")).unwrap();
        let top = text.split_once(&services).unwrap().0.to_owned();
        let probe = |uid| {
            let groups: &[u32] = if uid == 3 { &[103] } else { &[] };
            (uid, daemon.probe(&Who::new(uid, uid, groups)))
        };
        let probes = UIDS.into_iter().map(probe).collect();
        Self {
            daemon,
            top,
            probes,
            handles: Vec::new(),
            pins: Vec::new(),
            listed: None,
            clock: Clock::default(),
        }
    }

    fn probe(&mut self, uid: u32) -> &mut Probe {
        self.probes.get_mut(&uid).unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.daemon.path(path)
    }

    /// The descriptor in this user's process, who is handed it if need be.
    fn handed(&mut self, uid: u32, descriptor: &mut Descriptor) -> i64 {
        if let Some(fd) = descriptor.get(&uid) {
            return *fd;
        }
        let (owner, fd) = descriptor
            .iter()
            .next()
            .map(|(uid, fd)| (*uid, *fd))
            .unwrap();
        let mut owner = self.probes.remove_entry(&owner).unwrap();
        let door = self.daemon.door(&format!("{uid}-{}-{fd}", owner.0));
        let fd = owner.1.give(fd, self.probe(uid), &door);
        let _ = fs::remove_file(door);
        self.probes.insert(owner.0, owner.1);
        descriptor.insert(uid, fd);
        fd
    }

    /// A pin in this user's process.
    fn pin(&mut self, uid: u32, pin: usize) -> Option<i64> {
        let pin = wrapped(&self.pins, pin)?;
        let mut descriptor = std::mem::take(&mut self.pins[pin]);
        let fd = self.handed(uid, &mut descriptor);
        self.pins[pin] = descriptor;
        Some(fd)
    }

    fn open(&mut self, uid: u32, path: PathBuf) -> Answer {
        let fd = self.probe(uid).open(&path).map_err(errno)?;
        self.handles.push(HashMap::from([(uid, fd)]));
        Ok(Seen::Done)
    }

    fn attempt(&mut self, op: &Op) -> Answer {
        match op {
            Op::List { uid, folder } => {
                let path = self.path(folder);
                let names = self.probe(*uid).list(&path).map_err(errno);
                self.listed = Some(self.clock.now());
                let mut names = names?;
                names.sort();
                return Ok(Seen::Names(names));
            }
            Op::Stat { uid, path } => {
                let path = self.path(path);
                let stat = self.probe(*uid).stat(&path).map_err(errno)?;
                return Ok(Seen::Size(stat.size));
            }
            Op::Open { uid, path } => return self.open(*uid, self.path(path)),
            Op::Pin { path } => {
                let path = self.path(path);
                let fd = self.probe(0).open_with(&path, libc::O_PATH);
                self.pins.push(HashMap::from([(0, fd.map_err(errno)?)]));
            }
            Op::StatPin { uid, pin } => {
                if let Some(fd) = self.pin(*uid, *pin) {
                    let stat = self.probe(*uid).fstat(fd).map_err(errno)?;
                    return Ok(Seen::Size(stat.size));
                }
            }
            Op::OpenPin { uid, pin } => {
                if let Some(fd) = self.pin(*uid, *pin) {
                    return self.open(*uid, format!("/proc/self/fd/{fd}").into());
                }
            }
            Op::Read {
                uid,
                handle,
                offset,
                size,
            } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    let mut descriptor = std::mem::take(&mut self.handles[handle]);
                    let fd = self.handed(*uid, &mut descriptor);
                    self.handles[handle] = descriptor;
                    let bytes = self.probe(*uid).pread(fd).map_err(errno)?.into_iter();
                    let part = bytes.skip(usize::try_from(*offset).unwrap());
                    let size = usize::try_from(*size).unwrap();
                    return Ok(Seen::Bytes(part.take(size).collect()));
                }
            }
            Op::Close { handle } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    for (uid, fd) in self.handles.remove(handle) {
                        self.probe(uid).close(fd);
                    }
                    // The kernel lets the daemon know when it has time.
                    let open = self.handles.len();
                    assert!(eventually(DEADLINE, || self.handles_open() == open));
                }
            }
            Op::Put { place, value, .. } => self.daemon.put(secret(place), value.as_bytes()),
            Op::Remove { place, .. } => {
                // What is not there cannot be removed, and stays away.
                self.daemon.secretfs(&["rm", secret(place)], b"");
            }
            Op::Reload(policy) => {
                let text = format!("{}{}", self.top, config(policy));
                fs::write(self.daemon.at("config.toml"), text).unwrap();
                self.daemon.secretfs(&["reload"], b"").expect_ok();
            }
            // Time and storms are not at hand here, nor what the daemon does of itself.
            Op::Rollback { .. }
            | Op::Weather { .. }
            | Op::Pass { .. }
            | Op::Tend
            | Op::Limit { .. }
            | Op::TakeAway { .. }
            | Op::Die { .. }
            | Op::Off { .. } => {}
        }
        Ok(Seen::Done)
    }

    fn handles_open(&self) -> usize {
        let status = self.daemon.secretfs(&["--json", "status"], b"").expect_ok();
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        let handles = find(&status, "handles").and_then(serde_json::Value::as_u64);
        usize::try_from(handles.unwrap()).unwrap()
    }
}

impl System for Mounted {
    fn can(&self, op: &Op) -> bool {
        !matches!(
            op,
            Op::Rollback { .. }
                | Op::Weather { .. }
                | Op::Pass { .. }
                | Op::Tend
                | Op::Limit { .. }
                | Op::TakeAway { .. }
                | Op::Die { .. }
                | Op::Off { .. }
        )
    }

    fn act(&mut self, op: &Op) -> Answer {
        self.attempt(op)
    }

    fn agrees(&self, op: &Op, seen: &Answer, expected: &Answer) -> bool {
        let recent = |listed| self.clock.now() - listed < Duration::from_secs(2);
        match (op, seen, expected) {
            // What a listing has just said of a file holds for a second, also of one whose value is gone.
            (
                Op::Stat { .. } | Op::StatPin { .. },
                Ok(Seen::Size(_)),
                Ok(Seen::Size(_)) | Err(libc::ENOENT),
            ) if self.listed.is_some_and(recent) => true,
            // The kernel holds a name that somebody else looked up, and shows it to all.
            (Op::Stat { .. }, Ok(Seen::Size(_)), Err(libc::EACCES)) => true,
            (Op::List { .. }, Ok(Seen::Names(names)), Err(_)) => names.is_empty(),
            _ => seen == expected,
        }
    }

    fn asked(&self) -> Option<Asked> {
        None
    }

    fn log(&mut self) -> Option<Vec<String>> {
        None
    }
}

fn errno(errno: nix::errno::Errno) -> i32 {
    errno as i32
}

/// The sections with the one store in the place of both backends.
fn config(policy: &Policy) -> String {
    let text = policy.config();
    let text = text.replace("\"a:", "\"local:").replace("\"b:", "\"local:");
    text.replace("source = \"b\"", "source = \"local\"")
}

/// The secret that a value is put to so that it lands in this place.
fn secret(place: &str) -> &str {
    match place {
        "a:x/first" => "app/either",
        place => place.split_once(':').unwrap().1,
    }
}

fn find<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    let object = value.as_object()?;
    let below = || object.values().find_map(|value| find(value, key));
    object.get(key).or_else(below)
}
