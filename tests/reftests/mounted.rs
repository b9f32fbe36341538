//! The system under test with everything: the program, the kernel, and callers who are other processes.
//!
//! What cannot be done to it is left out: weather, the passing of hours, versions that a backend brings back under
//! their old number, and calls whose end depends on which names the kernel still holds.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;
use secretfs::clock::Clock;
use serde_json::{Value, json};

use crate::common::daemon::{Bind, Daemon, Setup};
use crate::common::probe::{Probe, Who};
use crate::core::wrapped;
use crate::language::{Answer, Op, Policy, Seen, System, UIDS};

/// What a listing told the kernel of lengths holds for so long.
const LISTED: Duration = Duration::from_millis(1100);

pub struct Mounted {
    // Before the daemon, so that they are gone when it ends.
    probes: HashMap<u32, Probe>,
    pins: Vec<Bind>,
    handles: Vec<(u32, i64)>,
    daemon: Daemon,
    policy: Policy,
    clock: Clock,
    listed: Option<Instant>,
    doors: usize,
}

impl Mounted {
    pub fn new(policy: &Policy) -> Self {
        let setup = Setup {
            services: &policy.config(),
            stores: &["a", "b"],
            ..Setup::default()
        };
        let daemon = setup.start();
        let probe = |uid: u32| {
            let groups: &[u32] = if uid == 3 { &[103] } else { &[] };
            (uid, daemon.probe(&Who::new(uid, 64_000, groups)))
        };
        Self {
            probes: UIDS.map(probe).into(),
            pins: Vec::new(),
            handles: Vec::new(),
            policy: *policy,
            clock: Clock::default(),
            listed: None,
            doors: 0,
            daemon,
        }
    }

    fn probe(&mut self, uid: u32) -> &mut Probe {
        self.probes.get_mut(&uid).unwrap()
    }

    /// Whether `uid` gets past the names of a service whatever the kernel holds.
    fn enters(&self, uid: u32, path: &str) -> bool {
        let rules = match path.split('/').next() {
            Some("app") => self.policy.services[0],
            Some("web") => self.policy.services[1],
            _ => self.policy.services[2],
        };
        let named = UIDS.into_iter().zip(rules);
        uid == 0 || named.into_iter().any(|(who, named)| who == uid && named)
    }

    fn stat(&mut self, uid: u32, path: PathBuf) -> Result<Seen, Errno> {
        if let Some(listed) = self.listed.take() {
            let passed = self.clock.now().saturating_duration_since(listed);
            thread::sleep(LISTED.saturating_sub(passed));
        }
        self.probe(uid)
            .stat(&path)
            .map(|stat| Seen::Size(stat.size))
    }

    fn open(&mut self, uid: u32, path: PathBuf) -> Result<Seen, Errno> {
        let fd = self.probe(uid).open(&path)?;
        self.handles.push((uid, fd));
        Ok(Seen::Done)
    }

    fn read(&mut self, uid: u32, handle: usize, offset: u64, size: u32) -> Result<Seen, Errno> {
        let (owner, fd) = self.handles[handle];
        let args = |fd: i64| json!([fd, size, offset]);
        if owner == uid {
            return self.probe(uid).bytes("pread", args(fd)).map(Seen::Bytes);
        }
        self.doors += 1;
        let door = self.daemon.door(&self.doors.to_string());
        let mut other = self.probes.remove(&uid).unwrap();
        let passed = self.probe(owner).give(fd, &mut other, &door);
        let read = other.bytes("pread", args(passed));
        other.close(passed);
        self.probes.insert(uid, other);
        read.map(Seen::Bytes)
    }

    fn attempt(&mut self, op: &Op) -> Result<Seen, Errno> {
        match op {
            Op::List { uid, folder } => {
                let path = self.daemon.path(folder);
                self.listed = Some(self.clock.now());
                return self.probe(*uid).list(&path).map(Seen::Names);
            }
            Op::Stat { uid, path } => return self.stat(*uid, self.daemon.path(path)),
            Op::Open { uid, path } => return self.open(*uid, self.daemon.path(path)),
            Op::Pin { path } => {
                let at = self.daemon.at(&format!("pin-{}", self.pins.len()));
                File::create(&at).unwrap();
                let from = self.daemon.path(path);
                let none = None::<&str>;
                nix::mount::mount(Some(&from), &at, none, MsFlags::MS_BIND, none)?;
                self.pins.push(Bind::at(at));
            }
            Op::StatPin { uid, pin } => {
                if let Some(pin) = wrapped(&self.pins, *pin) {
                    return self.stat(*uid, self.pins[pin].path().to_owned());
                }
            }
            Op::OpenPin { uid, pin } => {
                if let Some(pin) = wrapped(&self.pins, *pin) {
                    return self.open(*uid, self.pins[pin].path().to_owned());
                }
            }
            Op::Read {
                uid,
                handle,
                offset,
                size,
            } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    return self.read(*uid, handle, *offset, *size);
                }
            }
            Op::Close { handle } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    let (owner, fd) = self.handles.remove(handle);
                    self.probe(owner).close(fd);
                    // RELEASE comes a little after close(2).
                    let closed = crate::common::eventually(Duration::from_secs(5), || {
                        self.open_files() == self.handles.len()
                    });
                    assert!(closed, "a closed handle stays open");
                }
            }
            Op::Put { place, value, .. } => self.daemon.put(secret(place), value.as_bytes()),
            Op::Remove { place, .. } => {
                // 3: there is no such secret.
                let removed = self.daemon.secretfs(&["rm", "--force", secret(place)], b"");
                assert!([0, 3].contains(&removed.code()), "{removed:?}");
            }
            Op::Reload(policy) => {
                self.daemon.configure(&policy.config());
                self.daemon.secretfs(&["reload"], b"").expect_ok();
                self.policy = *policy;
            }
            Op::Rollback { .. } | Op::Weather { .. } | Op::Pass { .. } => {
                unreachable!("left out by `can`")
            }
        }
        Ok(Seen::Done)
    }

    /// How many files the daemon says are open.
    fn open_files(&self) -> usize {
        let status = self.daemon.secretfs(&["--json", "status"], b"").expect_ok();
        let status: Value = serde_json::from_slice(&status).unwrap();
        usize::try_from(find(&status, "handles").and_then(Value::as_u64).unwrap()).unwrap()
    }
}

/// The first member of this name, wherever it stands.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(name)
        .or_else(|| object.values().find_map(|value| find(value, name)))
}

/// Under which path a place can be changed.
fn secret(place: &str) -> &str {
    place.split_once(':').unwrap().1
}

impl System for Mounted {
    fn can(&self, op: &Op) -> bool {
        match op {
            // Which folders of a backend there are the kernel may remember differently.
            Op::List { uid, folder } => match *folder {
                "" => true,
                "app" | "web" => self.enters(*uid, folder),
                _ => false,
            },
            Op::Stat { uid, path } | Op::Open { uid, path } => self.enters(*uid, path),
            Op::Pin { .. } | Op::StatPin { .. } | Op::OpenPin { .. } | Op::Close { .. } => true,
            // The kernel answers for nothing by itself.
            Op::Read { size, .. } => *size > 0,
            // No service leads there.
            Op::Put { place, .. } | Op::Remove { place, .. } => *place != "a:x/first",
            Op::Reload(_) => true,
            Op::Rollback { .. } | Op::Weather { .. } | Op::Pass { .. } => false,
        }
    }

    fn act(&mut self, op: &Op) -> Answer {
        self.attempt(op).map_err(|errno| errno as i32)
    }

    fn asked(&self) -> Option<(usize, usize)> {
        None
    }

    fn log(&mut self) -> Vec<String> {
        self.probes.clear();
        self.pins.clear();
        self.daemon.stop();
        let text = fs::read_to_string(self.daemon.at("log/audit.jsonl")).unwrap();
        let mut lines = Vec::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let part = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            if !["open", "read", "stat"].contains(&part("action").as_str()) {
                continue;
            }
            let entry = format!(
                "{} {} {} {}",
                line["uid"],
                part("action"),
                part("path"),
                part("outcome")
            );
            let count = line["count"].as_u64().unwrap_or(1);
            lines.extend((0..count).map(|_| entry.clone()));
        }
        lines.sort();
        lines
    }
}
