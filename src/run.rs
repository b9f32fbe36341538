//! The composition root: load, harden, wire, serve, drain.
//!
//! [`serve`] is the server, which the keeper starts. [`direct`] wires the same parts into a command that works on the
//! store itself because no daemon serves the config.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::access::{Access, Authority};
use crate::audit::{Audit, AuditError};
use crate::backend::Backend;
use crate::backend::store::identity::{self, Identity, IdentityError, Prompt};
use crate::backend::store::{Store, StoreError};
use crate::cache::{Cache, Times};
use crate::caller::procfs::Procfs;
use crate::clock::Clock;
use crate::config::accounts::System;
use crate::config::{Config, ConfigErrors, OfflineConfig, StoreConfig};
use crate::control::handler::{Handler, Parts};
use crate::control::server::{self, Limits};
use crate::events::Events;
use crate::fs::{Catalogue, Ledger, Tree, Unfit};
use crate::fuse::{Session, may_resend};
use crate::keeper;
use crate::secret::{Name, SealedMemory, SecretBytes};
use crate::signal::Signals;
use crate::sys;

mod backends;
mod daemon;
mod handover;
mod offline;
mod revocations;
mod state;
mod watch;

use backends::{open_stores, vaults};
use daemon::Running;
use handover::{Handover, Survived};
use offline::Offline;
pub use revocations::read as kept_revocations;
use watch::Print;

/// How long the end may take: what is under way is answered, the audit log is written out.
const DRAIN: Duration = Duration::from_secs(2);
/// What the threads are called on which tasks run.
const TASKS: &str = "task";
/// How often users and groups are looked up that were not known.
const ACCOUNTS: Duration = Duration::from_secs(60);
/// How often it is looked whether the machine's own users and groups have changed, while some are not known.
const ACCOUNT_FILES: Duration = Duration::from_secs(1);

/// Why the parts could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The identity of a store cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another backend cannot be set up.
    #[error("{}: backends.{name}: {why}", .file.display())]
    Backend {
        /// The config.
        file: PathBuf,
        /// Which.
        name: Name,
        /// Why, and what to do about it.
        why: String,
    },
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A file of the daemon's own.
    #[error("{}: {why}: see `state` in the config", .path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// The server cannot go on where the one before it has died.
    #[error(
        "what the server before has left of open files is of no use: {0}: they have to be opened anew"
    )]
    Unfit(#[from] Unfit),
    /// The kernel refuses something that the server cannot do without.
    #[error("the server: {what}: {why}")]
    System {
        /// What it wanted.
        what: &'static str,
        /// Why not.
        why: io::Error,
    },
}

impl RunError {
    /// The exit code for it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Backend { .. } => 2,
            Self::Identity(_)
            | Self::Store(_)
            | Self::Audit(_)
            | Self::File { .. }
            | Self::Unfit(_)
            | Self::System { .. } => 1,
        }
    }

    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |why| Self::System { what, why }
    }
}

/// What the server inherits from the keeper.
#[derive(Debug)]
pub struct Inherited {
    /// `/dev/fuse`, mounted.
    pub device: OwnedFd,
    /// The top of the mount, by way of one that can be written to.
    pub writable: Option<OwnedFd>,
    /// Where the server tells the keeper how it is.
    pub word: OwnedFd,
    /// The control socket, listening.
    pub control: OwnedFd,
    /// The identity file of each store, unread.
    pub identities: BTreeMap<Name, OwnedFd>,
    /// For each store the memory for the key of a sealed identity.
    pub keys: BTreeMap<Name, OwnedFd>,
    /// What the server before this one left of values, sealed.
    pub values: OwnedFd,
    /// The memory for the key to them.
    pub values_key: OwnedFd,
    /// What the server before this one left of what the kernel knows, if there was one on this mount.
    pub ledger: OwnedFd,
    /// Whom to become.
    pub user: Option<sys::User>,
}

/// The server: serves until the keeper or the kernel ends it.
///
/// # Errors
/// [`RunError`], before the server is ready or when the mount is lost.
pub fn serve(config: &Path, inherited: Inherited, clock: &Clock) -> Result<(), RunError> {
    // The keeper blocks the signals that it reads, and a child inherits that.
    SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| RunError::system("unblocking signals")(errno.into()))?;
    // The kernel named this process after the link that it was started by.
    nix::sys::prctl::set_name(c"secretfs")
        .map_err(|errno| RunError::system("its name")(errno.into()))?;
    // First of all, before anything is read that somebody else wrote.
    sys::renounce(inherited.user.as_ref()).map_err(RunError::system("giving up privileges"))?;
    sys::forbid_dumps().map_err(RunError::system("forbidding core dumps"))?;
    sys::die_with_parent().map_err(RunError::system("dying with the keeper"))?;
    contain_panics();
    Procfs::default()
        .check()
        .map_err(RunError::system("/proc"))?;

    let file = Print::of(config);
    let config = Config::load(config)?;
    let stores = open_stores(&config, inherited.identities, inherited.keys, clock)?;
    let (ledger, known) = Ledger::open(inherited.ledger).inspect_err(|_| {
        let _ = nix::unistd::write(&inherited.word, &keeper::LAST);
    })?;
    let taken_over = SealedMemory::take_over(inherited.values, inherited.values_key);
    let (memory, left) = taken_over.map_err(RunError::system("the memory for values"))?;
    let epoch = state::next_epoch(&config.state)?;
    let revocations = revocations::read(&config.state)?;
    let kept = (memory, ledger);
    let wired = Wired::new(&config, stores, Authority::Policy, epoch, kept, clock)?;
    wired.tree.access().replace_revocations(revocations);
    let mut word = UnixStream::from(inherited.word);
    let ending = word
        .try_clone()
        .map_err(RunError::system("the keeper's socket"))?;
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let broker = config.signals.clone();
    let (signals, listening) = Signals::new(wired.cache.backends(), clock.clone());
    let heard = signals.clone();
    let handover = Arc::new(Handover::new(&wired));
    let mut left = Survived::of(left);
    handover.take_up(&mut left, &wired.tree.catalogue());
    let taken_over = known.map(|known| {
        let agreed = known.negotiated;
        (agreed, wired.tree.restore(known, left.values()))
    });
    // What nobody has taken up is wiped.
    drop(left);
    let offline = wired.offline(config.offline.as_ref());
    if let Some(offline) = &offline {
        offline.load();
    }
    // The server before may have died before it had wiped what it was told to, and an older file can be put back.
    let access = wired.tree.access();
    wired.cache.forget(|path| access.is_revoked(path));
    let kept = offline.clone();
    let running = Running::new(config, file, &wired, signals, kept, (ending, handle), clock);
    let running = Arc::new(running);

    let tree = Arc::clone(&wired.tree);
    let mount = (inherited.device, inherited.writable);
    let session = match taken_over {
        None => Session::start(tree, mount, runtime.handle().clone()),
        Some((agreed, unfinished)) => {
            let tasks = runtime.handle().clone();
            Session::take_over(Arc::clone(&tree), mount, tasks, agreed)
                .inspect(|_| drop(runtime.spawn(tree.finish(unfinished))))
        }
    };
    let session = session.map_err(RunError::system("the FUSE session"))?;
    let agreed = wired.tree.ledger().agreed_on();
    let ready = match agreed.is_some_and(may_resend) {
        true => keeper::READY,
        false => keeper::READY_WITHOUT_RESEND,
    };
    let audit = wired.audit.clone();
    let lookup = Arc::new(Procfs::default());
    let (tree, cache) = (Arc::clone(&wired.tree), Arc::clone(&wired.cache));
    let handler = Arc::new(wired.handler(Some(running.clone())));
    let listener = UnixListener::from(inherited.control);
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        // Ctrl-C reaches the whole foreground group; the keeper answers it and ends us in order.
        let mut interrupt = signal(SignalKind::interrupt())?;
        // So does Ctrl-Z, which would leave every reader waiting. Who listens for a signal is not stopped by it.
        let _deaf = signal(SignalKind::from_raw(libc::SIGTSTP))?;
        let (end, ended) = oneshot::channel::<()>();
        let shutdown = async { drop(ended.await) };
        let control = tokio::spawn(server::serve(
            listener,
            handler,
            lookup,
            Limits::default(),
            shutdown,
        ));
        let (watching, looking) = (Arc::clone(&running), Arc::clone(&running));
        tokio::spawn(async move {
            watch::run(&watching.file(), watching.watched(), || looking.look()).await;
        });
        tokio::spawn(Arc::clone(&tree).keep_up());
        let tending = tokio::spawn(Arc::clone(&cache).tend());
        let listening = tokio::spawn(listening.run(tree));
        let broker = tokio::spawn(async move {
            if let Some(broker) = broker {
                broker.listen(&heard).await;
            }
        });
        let handing = tokio::spawn(Arc::clone(&handover).run());
        if let Some(offline) = &offline {
            tokio::spawn(Arc::clone(offline).run());
        }
        let mut lost = await_end(session)?;
        let mut accounts = tokio::time::interval(ACCOUNT_FILES);
        accounts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        word.write_all(&ready)?;
        let why = loop {
            tokio::select! {
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => running.reload_in_background(),
                _ = accounts.tick() => running.look_up_accounts_in_background(),
                ended = &mut lost => break ended.map_err(io::Error::other).flatten(),
            }
        };
        // What there was goes now.
        let _ = word.write_all(&keeper::LAST);
        listening.abort();
        broker.abort();
        drop(end);
        tending.abort();
        handing.abort();
        // Nothing is written after what is forgotten below.
        drop(handing.await);
        if let Some(offline) = offline {
            // It says itself why it fails.
            let last = tokio::task::spawn_blocking(move || drop(offline.write()));
            drop(tokio::time::timeout(DRAIN, last).await);
        }
        let control = tokio::time::timeout(DRAIN, control);
        let (_, ()) = tokio::join!(control, cache.end(DRAIN));
        handover.forget();
        why
    });
    if let Err(error) = audit.close(DRAIN) {
        tracing::error!(%error, "the audit log was not written to its end");
    }
    runtime.shutdown_timeout(DRAIN);
    served.map_err(RunError::system("serving"))
}

/// Says when the mount is gone. On a thread of its own: the runtime's end would wait for one of its own.
fn await_end(session: Session) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (lost, gone) = oneshot::channel();
    let wait = move || drop(lost.send(session.wait()));
    thread::Builder::new()
        .name("session".to_owned())
        .spawn(wait)?;
    Ok(gone)
}

/// The parts of a command that works on the store itself. The caller holds the config's lock.
///
/// # Errors
/// [`RunError`]
pub fn direct(config: &Config, prompt: &Prompt, clock: &Clock) -> Result<Handler, RunError> {
    let open = |(name, store): (&Name, &StoreConfig)| {
        let identity = Identity::load(&identity::locate(store.identity.as_deref())?, prompt)?;
        Ok((
            name.clone(),
            Store::open(&store.path, identity, clock.clone())?,
        ))
    };
    let stores = config.stores().map(open).collect::<Result<_, RunError>>()?;
    let memory = SealedMemory::new().map_err(RunError::system("the memory for values"))?;
    let kept = (memory, Ledger::nowhere());
    // No generation that a command sees outlives it, so it counts from the start.
    let wired = Wired::new(config, stores, Authority::Identity, 0, kept, clock)?;
    // Nothing is denied by them here, but `status` and `explain` show them. What the daemon could not start with is no
    // reason not to: `doctor` names it.
    if let Ok(revocations) = revocations::read(&config.state) {
        wired.tree.access().replace_revocations(revocations);
    }
    Ok(wired.handler(None))
}

/// A runtime for what waits: backends, the control socket. What can be answered at once never comes near it.
///
/// # Errors
/// [`RunError::System`]
pub fn runtime() -> Result<Runtime, RunError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .thread_name(TASKS)
        .enable_all()
        .build()
        .map_err(RunError::system("starting threads"))
}

/// The parts, put together.
struct Wired {
    memory: Arc<SealedMemory>,
    cache: Arc<Cache>,
    tree: Arc<Tree>,
    stores: BTreeMap<Name, Store>,
    audit: Audit,
    parts: AuditParts,
    unknown: Vec<String>,
    clock: Clock,
}

struct AuditParts {
    target: crate::config::AuditTarget,
    key: SecretBytes,
}

impl Wired {
    fn new(
        config: &Config,
        stores: BTreeMap<Name, Store>,
        authority: Authority,
        epoch: u32,
        (memory, ledger): (Arc<SealedMemory>, Arc<Ledger>),
        clock: &Clock,
    ) -> Result<Self, RunError> {
        let key = match stores.values().next() {
            Some(store) => store.audit_key(),
            None => state::audit_key(&config.state)?,
        };
        let audit = Audit::start(&config.audit, &key, clock.clone())?;
        let (policy, unknown) = config.policy(&System);
        let lookup = Arc::new(Procfs::default());
        let full = config.audit.full_detail;
        let events = Events::new(clock.clone());
        let access = Access::new(
            authority,
            policy,
            lookup,
            audit.clone(),
            full,
            clock.clone(),
        );
        let access = Arc::new(access.with_events(events.clone()));
        let backend = |(name, store): (&Name, &Store)| -> (Name, Arc<dyn Backend>) {
            (name.clone(), Arc::new(store.clone()))
        };
        let mut backends: HashMap<Name, Arc<dyn Backend>> = stores.iter().map(backend).collect();
        for (name, vault) in vaults(config, clock)? {
            backends.insert(name, Arc::new(vault));
        }
        let cache = Cache::new(
            backends,
            times(config),
            epoch,
            Arc::clone(&memory),
            clock.clone(),
        );
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed)
            .map_err(|_| RunError::system("randomness")(io::Error::other("there is none")))?;
        let cache = cache.with_jitter(u64::from_ne_bytes(seed));
        let cache = Arc::new(cache.with_events(events));
        let catalogue = Catalogue::new(config, &System);
        let tree = Tree::new(
            catalogue,
            access,
            Arc::clone(&cache),
            ledger,
            clock.timestamp(),
        );
        let parts = AuditParts {
            target: config.audit.target.clone(),
            key,
        };
        let unknown = unknown.iter().map(ToString::to_string).collect();
        Ok(Self {
            memory,
            cache,
            tree,
            stores,
            audit,
            parts,
            unknown,
            clock: clock.clone(),
        })
    }

    fn offline(&self, config: Option<&OfflineConfig>) -> Option<Arc<Offline>> {
        let (config, store) = (config?, self.stores.values().next()?);
        Some(Arc::new(Offline::new(config, store.clone(), self)))
    }

    fn handler(self, daemon: Option<Arc<dyn crate::control::handler::Daemon>>) -> Handler {
        Handler::new(Parts {
            tree: self.tree,
            cache: self.cache,
            stores: self.stores,
            audit: self.audit,
            audit_target: self.parts.target,
            audit_key: self.parts.key,
            lookup: Arc::new(Procfs::default()),
            daemon,
            clock: self.clock,
        })
    }
}

fn times(config: &Config) -> Times {
    Times {
        ttl: config.cache.ttl,
        timeout: config.cache.timeout,
    }
}

/// A panic ends one task, whose request fails. That of any other thread ends the server, which the keeper starts again:
/// half of it alive would be worse. The message is not printed, only the place, because it could quote anything.
fn contain_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(
            place,
            "the server panicked; this is a mistake in secretfs, please report it"
        );
        if thread::current().name() != Some(TASKS) {
            std::process::abort();
        }
    }));
}
