//! The system under test without a mount.

use std::time::Duration;

use secretfs::backend::Reference;
use secretfs::cache::legacy::Gap;
use secretfs::fs::{Change, FsError, Ino, Opened};
use tokio::runtime::Runtime;

use crate::callers::caller;
use crate::faulty::Faulty;
use crate::language::{Answer, Asked, LEASE, LEASED, Op, Policy, Seen, System};
use crate::world::World;

pub struct Core {
    runtime: Runtime,
    world: World,
    /// The config that is in force.
    config: String,
    handles: Vec<Opened>,
    pins: Vec<Ino>,
    /// What each place held, to go back to.
    before: std::collections::HashMap<&'static str, Vec<(String, u64)>>,
}

impl Core {
    pub fn new(policy: &Policy) -> Self {
        // Deadlines pass in no time.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let world = {
            let _inside = runtime.enter();
            World::new(&[], &[], &policy.config())
        };
        let (_, leased) = LEASED.split_once(':').unwrap();
        world.a.lease(leased, LEASE, true);
        Self {
            runtime,
            world,
            config: policy.config(),
            handles: Vec::new(),
            pins: Vec::new(),
            before: Default::default(),
        }
    }

    fn backend(&self, name: char) -> &Faulty {
        match name {
            'a' => &self.world.a,
            _ => &self.world.b,
        }
    }

    fn changed(&mut self, place: &'static str, announced: bool, change: Change) {
        if announced || place.starts_with('b') {
            let reference: Reference = place.parse().unwrap();
            self.runtime
                .block_on(async { self.world.tree.changed([&reference], change).await });
        }
    }

    fn restart(&mut self, gap: Gap, seconds: u64) {
        self.handles.clear();
        self.pins.clear();
        let _inside = self.runtime.enter();
        self.world.restart(&self.config, gap, seconds);
    }

    fn look_up(&self, uid: u32, path: &str) -> Result<Ino, FsError> {
        self.runtime
            .block_on(self.world.look_up(&caller(uid), path))
    }

    fn stat(&self, uid: u32, ino: Ino) -> Result<Seen, FsError> {
        let attr = self.world.tree.getattr(caller(uid), ino);
        Ok(Seen::Size(self.runtime.block_on(attr.wait())?.size))
    }

    fn open(&mut self, uid: u32, ino: Ino) -> Result<Seen, FsError> {
        // One request of the kernel's: it comes again by itself, by the name or to the inode.
        let opening = self.world.tree.open(caller(uid), ino, false);
        let opened = self.runtime.block_on(opening.wait())?;
        if let Some(tell) = opened.tell {
            self.world.tree.told(tell);
        }
        self.handles.push(opened);
        Ok(Seen::Done)
    }

    fn attempt(&mut self, op: &Op) -> Result<Seen, FsError> {
        match op {
            Op::List { uid, folder } => {
                let ino = match *folder {
                    "" => Ino::ROOT,
                    folder => self.look_up(*uid, folder)?,
                };
                let fh = self.world.tree.opendir(caller(*uid), ino);
                let fh = self.runtime.block_on(fh.wait())?;
                let entries = self
                    .runtime
                    .block_on(self.world.tree.readdir(caller(*uid), fh).wait())?;
                self.world.tree.release(fh);
                let names = entries.iter().map(|entry| entry.name.to_string());
                return Ok(Seen::Names(names.collect()));
            }
            Op::Stat { uid, path } => {
                let ino = self.look_up(*uid, path)?;
                return self.stat(*uid, ino);
            }
            Op::Open { uid, path } => {
                let ino = self.look_up(*uid, path)?;
                match self.open(*uid, ino) {
                    // As the kernel does: once more from the top.
                    Err(FsError::Superseded) => {}
                    ended => return ended,
                }
                let ino = self.look_up(*uid, path)?;
                return self.open(*uid, ino);
            }
            Op::Pin { path } => {
                let ino = self.look_up(0, path)?;
                self.pins.push(ino);
            }
            Op::StatPin { uid, pin } => {
                if let Some(ino) = wrapped(&self.pins, *pin) {
                    return self.stat(*uid, self.pins[ino]);
                }
            }
            Op::OpenPin { uid, pin } => {
                if let Some(ino) = wrapped(&self.pins, *pin) {
                    let ino = self.pins[ino];
                    match self.open(*uid, ino) {
                        // As the kernel does: once more, and to the same inode.
                        Err(FsError::Superseded) => {}
                        ended => return ended,
                    }
                    return self.open(*uid, ino);
                }
            }
            Op::Read {
                uid,
                handle,
                offset,
                size,
            } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    let opened = self.handles[handle];
                    let part = self
                        .world
                        .read_part(*uid, opened, *offset, *size, !opened.direct);
                    return part.map(|text| Seen::Bytes(text.into_bytes()));
                }
            }
            Op::Close { handle } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    self.world.tree.release(self.handles.remove(handle).fh);
                }
            }
            Op::Put {
                place,
                value,
                announced,
            } => {
                let (backend, path) = place.split_once(':').unwrap();
                let backend = backend.chars().next().unwrap();
                self.backend(backend).put(path, value);
                let versions = self.before.entry(place).or_default();
                let version = versions.iter().map(|(_, version)| *version).max();
                versions.push((value.clone(), version.unwrap_or(0) + 1));
                self.changed(place, *announced, Change::Written);
            }
            Op::Remove { place, announced } => {
                let (backend, path) = place.split_once(':').unwrap();
                let backend = backend.chars().next().unwrap();
                self.backend(backend).remove(path);
                self.changed(place, *announced, Change::Perhaps);
            }
            Op::Rollback { place, announced } => {
                let (backend, path) = place.split_once(':').unwrap();
                let backend = backend.chars().next().unwrap();
                let versions = self.before.entry(place).or_default();
                if let [.., before, _] = &versions[..] {
                    let before = before.clone();
                    self.backend(backend).put_version(path, &before.0, before.1);
                    self.before.entry(place).or_default().push(before);
                    self.changed(place, *announced, Change::Written);
                }
            }
            Op::Weather { backend, weather } => self.backend(*backend).weather(*weather),
            Op::Reload(policy) => {
                self.config = policy.config();
                self.world.reload(&self.config);
                self.runtime
                    .block_on(async { self.world.tree.enforce().await });
            }
            Op::Pass { seconds } => self.world.later(*seconds),
            Op::Tend => {
                self.runtime.block_on(self.world.cache.tend_once());
            }
            Op::Limit { left } => {
                let last = format!("l{}", self.world.a.made());
                self.world.a.limit(&last, *left);
            }
            Op::TakeAway { path } => {
                let gone = path.parse().unwrap();
                self.world.cache.forget(|path| *path == gone);
            }
            Op::Off { seconds, dies } => {
                self.runtime
                    .block_on(self.world.cache.end(Duration::from_secs(2)));
                self.restart(Gap::Unknown, *seconds);
                if *dies {
                    self.restart(Gap::Moment, 0);
                }
            }
            Op::Die { seconds } => self.restart(Gap::Moment, *seconds),
        }
        Ok(Seen::Done)
    }
}

impl System for Core {
    fn can(&self, _: &Op) -> bool {
        true
    }

    fn act(&mut self, op: &Op) -> Answer {
        let seen = self.attempt(op).map_err(FsError::errno);
        // A flight ends a moment after those who waited for it; who joins it meanwhile is too late with it. What a change
        // sets off goes on for as long as a backend may take.
        let (cache, tree) = (&self.world.cache, &self.world.tree);
        self.runtime.block_on(async {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                let overtaken = cache.take_overtaken();
                if overtaken.is_empty() {
                    break;
                }
                tree.catch_up(overtaken).await;
            }
        });
        seen
    }

    fn asked(&self) -> Option<Asked> {
        let (reads, lists) = self.world.asked();
        let mut revoked = self.world.a.revoked();
        revoked.sort();
        Some(Asked {
            reads,
            lists,
            renewals: self.world.a.renewals(),
            revoked,
        })
    }

    fn log(&mut self) -> Option<Vec<String>> {
        Some(self.world.log.lines())
    }
}

/// Numbers beyond the end begin again.
pub fn wrapped<T>(things: &[T], index: usize) -> Option<usize> {
    index.checked_rem(things.len())
}
