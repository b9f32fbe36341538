//! A tree without a mount: real policy, cache and audit log over backends, callers and a kernel out of a table.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it is part of tests"
)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secretfs::access::{Access, Authority};
use secretfs::audit::Audit;
use secretfs::backend::{Backend, Reference};
use secretfs::cache::legacy::Gap;
use secretfs::cache::{Cache, Fetch, Times};
use secretfs::caller::Caller;
use secretfs::clock::Clock;
use secretfs::config::accounts::Listed;
use secretfs::config::{Config, OnFailure};
use secretfs::fs::{
    Catalogue, Change, FsError, Ino, Kernel, Ledger, Negotiated, Opened, Renaming, Reply, Tree,
    Unfinished, Unfit, Waiter,
};
use secretfs::secret::{Name, SealedMemory, SecretPath};
use secretfs::sys::{SecretMemory, SharedMemory};
use tokio::sync::oneshot;

use crate::callers::{Table, caller};
use crate::faulty::Faulty;
use crate::log::Log;

#[allow(dead_code, reason = "each test uses its part")]
pub struct World {
    /// Asked again after each TTL.
    pub a: Arc<Faulty>,
    /// Announces its changes.
    pub b: Arc<Faulty>,
    pub clock: Clock,
    pub table: Arc<Table>,
    pub log: Log,
    pub kernel: Arc<Told>,
    pub access: Arc<Access>,
    pub cache: Arc<Cache>,
    /// Where its values are.
    pub memory: SharedMemory,
    sealed: Arc<SealedMemory>,
    pub tree: Arc<Tree>,
    /// What the keeper holds: the key to the values, and what the kernel knows.
    pub key: OwnedFd,
    pub ledger: OwnedFd,
}

/// The times that a config says.
fn times(config: &Config) -> Times {
    Times {
        ttl: config.cache.ttl,
        timeout: config.cache.timeout,
    }
}

/// A tree of this config over a cache, and who decides.
fn tree_of(
    config: &Config,
    table: &Arc<Table>,
    audit: Audit,
    cache: &Arc<Cache>,
    ledger: Arc<Ledger>,
    clock: &Clock,
) -> (Arc<Access>, Arc<Tree>) {
    let (policy, _) = config.policy(&Listed::default());
    let lookup = Arc::<Table>::clone(table);
    let access = Access::new(
        Authority::Policy,
        policy,
        lookup,
        audit,
        false,
        clock.clone(),
    );
    let access = Arc::new(access);
    let catalogue = Catalogue::new(config, &Listed::default());
    let (shared, store) = (Arc::clone(&access), Arc::clone(cache));
    let tree = Tree::new(catalogue, shared, store, ledger, clock.timestamp());
    (access, tree)
}

/// The number of a request of the kernel's.
pub fn request() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(2, Ordering::Relaxed) + 2
}

/// A kernel that has no mount to rename in, and notes what it is told.
#[derive(Debug, Default)]
pub struct Told {
    names: Mutex<Vec<String>>,
    pages: Mutex<Vec<Ino>>,
    woken: Mutex<Vec<Waiter>>,
    /// What it does not do until it is told to.
    held: Mutex<Option<Vec<Renaming>>>,
}

#[allow(dead_code, reason = "each test uses its part")]
impl Told {
    /// The names that have changed hands.
    pub fn names(&self) -> Vec<String> {
        std::mem::take(&mut self.names.lock().unwrap())
    }

    /// The inodes whose pages had to go.
    pub fn pages(&self) -> Vec<Ino> {
        std::mem::take(&mut self.pages.lock().unwrap())
    }

    /// From now on no name changes hands.
    pub fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    /// How many names are to.
    pub fn held(&self) -> usize {
        self.held.lock().unwrap().as_ref().map_or(0, Vec::len)
    }

    /// What the first of them is renamed from.
    pub fn hidden(&self) -> Option<String> {
        let held = self.held.lock().unwrap();
        held.as_ref()?.first()?.from.clone()
    }

    /// Now they do.
    pub fn let_go(&self) {
        let held = self.held.lock().unwrap().take();
        held.into_iter()
            .flatten()
            .for_each(|held| self.rename(held));
    }

    /// They never do: who asked for them is dead.
    pub fn lose(&self) {
        std::mem::forget(self.held.lock().unwrap().take());
    }

    /// Who was woken.
    pub fn woken(&self) -> Vec<Waiter> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

impl Kernel for Told {
    fn rename(&self, mut renaming: Renaming) {
        if let Some(held) = &mut *self.held.lock().unwrap() {
            held.push(renaming);
            return;
        }
        if renaming.settle() {
            self.names.lock().unwrap().push(renaming.name.to_string());
        }
    }

    fn drop_pages(&self, ino: Ino, done: oneshot::Sender<()>) {
        self.pages.lock().unwrap().push(ino);
        drop(done);
    }

    fn wake(&self, waiter: Waiter) {
        self.woken.lock().unwrap().push(waiter);
    }
}

/// The two backends, for the top of a config.
pub const BACKENDS: &str = r#"
[backends.a]
type = "store"
path = "/nowhere/a.age"
identity = { file = "/nowhere/identity.txt" }
[backends.b]
type = "store"
path = "/nowhere/b.age"
identity = { file = "/nowhere/identity.txt" }
"#;

pub fn config(services: &str) -> Config {
    let text = format!("{BACKENDS}{services}");
    let config = Config::parse_with(&text, Path::new("config.toml"), &Listed::default());
    config.expect("a config without mistakes")
}

#[allow(dead_code, reason = "each test uses its part")]
impl World {
    /// The values that `a` and `b` hold at first, and the config below the backends' sections.
    pub fn new(a: &[(&str, &str)], b: &[(&str, &str)], services: &str) -> Self {
        let world = Self::unattached(a, b, services, Clock::manual());
        world.tree.attach(Arc::<Told>::clone(&world.kernel));
        world
    }

    /// One whose tree has no kernel yet, for a real one.
    pub fn unattached(
        a: &[(&str, &str)],
        b: &[(&str, &str)],
        services: &str,
        clock: Clock,
    ) -> Self {
        let backends = (Arc::new(Faulty::new(a)), Arc::new(Faulty::announcing(b)));
        let memory = SharedMemory::new().unwrap();
        let key = SecretMemory::new().unwrap();
        let key = key.descriptor().try_clone().unwrap();
        let ledger = SharedMemory::create().unwrap();
        let kept = (memory, key, ledger);
        let log = Log::new(&clock, OnFailure::Deny);
        let (world, _) = Self::over(backends, kept, services, 1, log, clock).unwrap();
        world
    }

    /// The server is killed, and the next one goes on where it was. It has another config, perhaps.
    pub async fn killed(self, services: &str) -> Result<Self, Unfit> {
        let Self {
            a,
            b,
            clock,
            kernel,
            memory,
            key,
            ledger,
            tree,
            cache,
            ..
        } = self;
        // Who is killed wipes nothing.
        std::mem::forget((tree, cache));
        let kept = (memory, key, ledger);
        let log = Log::new(&clock, OnFailure::Deny);
        let backends = (a, b);
        let (mut world, unfinished) = Self::over(backends, kept, services, 2, log, clock)?;
        world.kernel = kernel;
        world.tree.attach(Arc::<Told>::clone(&world.kernel));
        world.tree.enforce().await;
        let unfinished = unfinished.expect("the mount is the same");
        world.tree.finish(unfinished).await;
        Ok(world)
    }

    fn over(
        (a, b): (Arc<Faulty>, Arc<Faulty>),
        (memory, key, ledger): (SharedMemory, OwnedFd, OwnedFd),
        services: &str,
        epoch: u32,
        log: Log,
        clock: Clock,
    ) -> Result<(Self, Option<Unfinished>), Unfit> {
        let config = config(services);
        let backends: [(Name, Arc<dyn Backend>); 2] = [
            ("a".parse().unwrap(), Arc::<Faulty>::clone(&a)),
            ("b".parse().unwrap(), Arc::<Faulty>::clone(&b)),
        ];
        let table = Arc::new(Table {
            groups: (0..10).map(|tid| (tid, vec![tid + 100])).collect(),
            ..Table::default()
        });
        let values = memory.descriptor().try_clone().unwrap();
        let sealed = SealedMemory::take_over(values, key.try_clone().unwrap());
        let (sealed, survivors) = sealed.unwrap();
        let cache = Cache::new(
            HashMap::from(backends),
            times(&config),
            epoch,
            Arc::clone(&sealed),
            clock.clone(),
        );
        let cache = Arc::new(cache);
        let (lines, left) = Ledger::open(ledger.try_clone().unwrap())?;
        let audit = log.audit.clone();
        let (access, tree) = tree_of(&config, &table, audit, &cache, lines, &clock);
        let values = survivors.into_iter();
        let values = values.map(|(_, value)| (value.number(), Arc::new(value)));
        let values = values.collect();
        let unfinished = left.map(|left| tree.restore(left, &values));
        tree.ledger().agreed(Negotiated {
            minor: 45,
            flags: 1 << 39,
        });
        let kernel = Arc::new(Told::default());
        let world = Self {
            a,
            b,
            clock,
            table,
            log,
            kernel,
            access,
            cache,
            memory,
            sealed,
            tree,
            key,
            ledger,
        };
        Ok((world, unfinished))
    }

    /// The server ends, and after so many seconds another one is started in its place with what the first one leaves for such a
    /// gap. Nobody has anything open any more.
    pub fn restart(&mut self, services: &str, gap: Gap, seconds: u64) {
        let config = config(services);
        let mut legacy = self.cache.legacy(gap);
        self.later(seconds);
        if gap == Gap::Unknown {
            let catalogue = self.tree.catalogue();
            let lasts = |path: &SecretPath| {
                let binding = catalogue.binding(path);
                binding.is_some_and(|binding| !binding.stale.is_zero())
            };
            // As who keeps it for long does.
            for (left, _) in &mut legacy.records {
                left.shown_by.retain(lasts);
            }
            legacy.records.retain(|(left, _)| !left.shown_by.is_empty());
        }
        let epoch = u32::try_from(self.cache.next_number() >> 32).unwrap() + 1;
        let backends = self.cache.backends().clone();
        let (sealed, clock) = (Arc::clone(&self.sealed), self.clock.clone());
        self.cache = Arc::new(Cache::new(backends, times(&config), epoch, sealed, clock));
        self.cache.inherit(legacy, gap);
        let audit = self.log.audit.clone();
        let fresh = SharedMemory::create().unwrap();
        let (ledger, _) = Ledger::open(fresh).unwrap();
        let (table, cache) = (&self.table, &self.cache);
        (self.access, self.tree) = tree_of(&config, table, audit, cache, ledger, &self.clock);
        self.tree.attach(Arc::<Told>::clone(&self.kernel));
    }

    /// What a reload does.
    pub fn reload(&self, services: &str) {
        let config = config(services);
        let (policy, _) = config.policy(&Listed::default());
        let catalogue = Catalogue::new(&config, &Listed::default());
        self.tree.put_in_force(policy, catalogue);
    }

    pub fn later(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// How often backends were asked: for values, for names.
    pub fn asked(&self) -> (usize, usize) {
        let (a, b) = (&self.a, &self.b);
        (a.reads() + b.reads(), a.lists() + b.lists())
    }

    /// Looks each part of a path up, as the kernel does, which then holds a look-up of each.
    pub async fn look_up(&self, caller: &Caller, path: &str) -> Reply<Ino> {
        let mut ino = Ino::ROOT;
        for part in path.split('/') {
            let found = self.tree.lookup(caller.clone(), ino, OsStr::new(part));
            ino = found.wait().await?.ino;
            self.tree.looked_up(ino);
        }
        Ok(ino)
    }

    /// The inode of a path, found by root.
    pub async fn ino(&self, path: &str) -> Ino {
        self.look_up(&caller(0), path)
            .await
            .expect("a path that exists")
    }

    /// Opens an inode. As the kernel does, it comes again at once where it is sent away.
    pub async fn come(&self, uid: u32, ino: Ino) -> Reply<Opened> {
        let open = || self.tree.open(caller(uid), ino, false).wait();
        let opened = match open().await {
            Err(FsError::Superseded) => open().await?,
            reply => reply?,
        };
        self.tree.given(opened.fh, request());
        Ok(opened)
    }

    /// The same, and has the kernel told what it has to be.
    pub async fn open(&self, uid: u32, ino: Ino) -> Reply<Opened> {
        let opened = self.come(uid, ino).await?;
        if let Some(tell) = opened.tell {
            self.tree.told(tell);
        }
        Ok(opened)
    }

    pub fn read(&self, uid: u32, opened: Opened) -> Reply<String> {
        self.read_part(uid, opened, 0, u32::MAX, false)
    }

    pub fn read_part(
        &self,
        uid: u32,
        opened: Opened,
        offset: u64,
        size: u32,
        paged: bool,
    ) -> Reply<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.tree
            .read(caller(uid), opened.fh, offset, size, paged, text)
    }

    /// Looks up, opens, reads and closes.
    pub async fn cat(&self, uid: u32, path: &str) -> Reply<String> {
        let ino = self.look_up(&caller(uid), path).await?;
        let opened = self.open(uid, ino).await?;
        let text = self.read(uid, opened);
        self.tree.release(opened.fh);
        text
    }

    /// Gets a value as a command does.
    pub async fn get(&self, uid: u32, path: &str) -> Fetch {
        let path = path.parse().unwrap();
        let permit = self.access.open(caller(uid), &path, "get").unwrap();
        let binding = self.tree.catalogue().binding(&path);
        let fetched = self.tree.fetch(&permit, binding).unwrap().wait().await;
        permit.waive();
        fetched
    }

    pub async fn ls(&self, uid: u32, path: &str) -> Result<Vec<String>, FsError> {
        let ino = match path {
            "" => Ino::ROOT,
            path => self.ino(path).await,
        };
        let fh = self.tree.opendir(caller(uid), ino).wait().await?;
        let entries = self.tree.readdir(caller(uid), fh).wait().await?;
        self.tree.release(fh);
        Ok(entries.iter().map(|entry| entry.name.to_string()).collect())
    }

    pub async fn size(&self, uid: u32, ino: Ino) -> u64 {
        let attr = self.tree.getattr(caller(uid), ino).wait().await;
        attr.expect("an inode that is known").size
    }

    /// A change that is announced.
    pub async fn put(&self, place: &str, value: &str) {
        let reference: Reference = place.parse().unwrap();
        let backend = match reference.backend.as_str() {
            "a" => &self.a,
            _ => &self.b,
        };
        backend.put(&reference.path, value);
        self.tree.changed([&reference], Change::Written).await;
    }
}
