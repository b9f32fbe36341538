//! The composition root: load, harden, wire, serve, drain.
//!
//! [`serve`] is the server, which the keeper starts. [`direct`] wires the same parts into a command that works on the
//! store itself because no daemon serves the config.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::access::Authority;
use crate::audit::AuditError;
use crate::backend::store::identity::{self, Identity, IdentityError, Prompt};
use crate::backend::store::{Store, StoreError};
use crate::caller::procfs::Procfs;
use crate::clock::Clock;
use crate::config::{Config, ConfigErrors, StoreConfig};
use crate::control::handler::Handler;
use crate::control::server::{self, Limits};
use crate::fs::{Ledger, Unfit};
use crate::fuse::Session;
use crate::keeper::mountpoint::Mountpoint;
use crate::keeper::stored::NotStored;
use crate::secret::{Name, SealedMemory};
use crate::signal::Signals;
use crate::sys;

mod backends;
mod daemon;
mod handover;
mod holder;
mod offline;
mod revocations;
mod state;
mod stored;
mod watch;
mod wired;

use backends::open_stores;
use daemon::Running;
use handover::{Handover, Survived};
pub use holder::Holder;
use holder::Wish;
pub use revocations::read as kept_revocations;
use stored::{await_unmount, gone, watchdog};
pub use stored::{fits, serve_stored};
use watch::Print;
use wired::{Wired, times};

/// How long the end may take: what is under way is answered, the audit log is written out.
const DRAIN: Duration = Duration::from_secs(2);
/// Whatever the server before has died of, one that serves this long has come further.
const CAME_FURTHER: Duration = Duration::from_millis(500);
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
    /// What systemd holds is of no use.
    #[error(transparent)]
    Stored(#[from] NotStored),
    /// It runs as somebody else than the config says.
    #[error(
        "{}: `user` is {user}, and systemd has started the server as uid {is}: name the same user with `User=` in a drop-in (`systemctl edit secretfs`)", .file.display()
    )]
    User {
        /// The config.
        file: PathBuf,
        /// Whom it names.
        user: String,
        /// Who it is.
        is: sys::Uid,
    },
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
            Self::Config(_) | Self::Backend { .. } | Self::User { .. } => 2,
            Self::Identity(_)
            | Self::Store(_)
            | Self::Audit(_)
            | Self::File { .. }
            | Self::Unfit(_)
            | Self::Stored(_)
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
    /// Who holds the mount, and hears how the server is.
    pub holder: Holder,
    /// The control socket, listening.
    pub control: OwnedFd,
    /// The identity file of each store, unread, where the server may not open it itself.
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

/// The server: serves until the keeper, systemd or the kernel ends it.
///
/// # Errors
/// [`RunError`], before the server is ready or when the mount is lost.
pub fn serve(config: &Path, inherited: Inherited, clock: &Clock) -> Result<(), RunError> {
    let mut holder = inherited.holder;
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
    if !holder.is_systemd() {
        sys::die_with_parent().map_err(RunError::system("dying with the keeper"))?;
    }
    contain_panics();
    Procfs::default()
        .check()
        .map_err(RunError::system("/proc"))?;

    let file = Print::of(config);
    let config = Config::load(config)?;
    let mountpoint = Mountpoint::new(&config.mount, &config.file);
    let stores = open_stores(&config, inherited.identities, inherited.keys, clock)?;
    let opened = Ledger::open(inherited.ledger);
    let (ledger, known) = opened.inspect_err(|_| holder.last())?;
    if holder.is_systemd() {
        ledger.may_be_followed().inspect_err(|_| holder.last())?;
    }
    let device = match &known {
        None => inherited.device,
        Some(known) => holder.renew(inherited.device, known.negotiated)?,
    };
    let holder = Arc::new(holder);
    let taken_over = SealedMemory::take_over(inherited.values, inherited.values_key);
    let (memory, left) = taken_over.map_err(RunError::system("the memory for values"))?;
    let epoch = state::next_epoch(&config.state)?;
    let revocations = revocations::read(&config.state)?;
    let kept = (memory, ledger);
    let wired = Wired::new(&config, stores, Authority::Policy, epoch, kept, clock)?;
    wired.tree.access().replace_revocations(revocations);
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
    let running = Running::new(
        config,
        file,
        &wired,
        signals,
        kept,
        (Arc::clone(&holder), handle),
        clock,
    );
    let running = Arc::new(running);

    let tree = Arc::clone(&wired.tree);
    let mount = (device, inherited.writable);
    let session = match taken_over {
        None => Session::start(tree, mount, runtime.handle().clone()),
        Some((agreed, unfinished)) => {
            let tasks = runtime.handle().clone();
            Session::take_over(Arc::clone(&tree), mount, tasks, agreed)
                .inspect(|_| drop(runtime.spawn(tree.finish(unfinished))))
        }
    };
    let session = session.map_err(RunError::system("the FUSE session"))?;
    let ledger = Arc::clone(wired.tree.ledger());
    let audit = wired.audit.clone();
    let lookup = Arc::new(Procfs::default());
    let (tree, cache) = (Arc::clone(&wired.tree), Arc::clone(&wired.cache));
    let handler = Arc::new(wired.handler(Some(running.clone())));
    let listener = UnixListener::from(inherited.control);
    let served: io::Result<End> = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        // Ctrl-C reaches the whole foreground group; the keeper answers it and ends us in order.
        let mut interrupt = signal(SignalKind::interrupt())?;
        // So does Ctrl-Z, which would leave every reader waiting. Who listens for a signal is not stopped by it.
        let _deaf = signal(SignalKind::from_raw(libc::SIGTSTP))?;
        let (shutdown, shut) = oneshot::channel::<()>();
        let shut = async { drop(shut.await) };
        let control = tokio::spawn(server::serve(
            listener,
            handler,
            lookup,
            Limits::default(),
            shut,
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
        let mut unmounted = None;
        if holder.is_systemd() {
            unmounted = Some(await_unmount(mountpoint)?);
            tokio::spawn(watchdog());
            let ledger = Arc::clone(&ledger);
            ledger.begins();
            tokio::spawn(async move {
                tokio::time::sleep(CAME_FURTHER).await;
                ledger.goes_well();
            });
        }
        let mut accounts = tokio::time::interval(ACCOUNT_FILES);
        accounts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        holder.ready(ledger.agreed_on())?;
        let end = loop {
            tokio::select! {
                // Whoever restarts it wants what there is to go on; whoever does not leaves nobody to go on with it.
                _ = terminate.recv() => break match holder.is_systemd() {
                    true => End::Here,
                    false => End::ForGood(Ok(())),
                },
                wish = holder.wish() => break match wish {
                    Wish::End => End::ForGood(Ok(())),
                    Wish::Restart => End::Here,
                    Wish::Become(program) => End::As(program),
                },
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => running.reload_in_background(),
                _ = accounts.tick() => running.look_up_accounts_in_background(),
                () = gone(&mut unmounted) => break End::ForGood(holder.judge(Ok(()))),
                ended = &mut lost => break End::ForGood(holder.judge(ended.map_err(io::Error::other).flatten())),
            }
        };
        if let End::ForGood(_) = end {
            // What there was goes now.
            holder.last();
        }
        listening.abort();
        broker.abort();
        drop(shutdown);
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
        if let End::ForGood(_) = end {
            let (_, ()) = tokio::join!(control, cache.end(DRAIN));
            handover.forget();
        } else {
            drop(control.await);
            handover.write();
            ledger.goes_well();
        }
        Ok(end)
    });
    let end = served.unwrap_or_else(|why| End::ForGood(Err(why)));
    if let End::ForGood(why) = end {
        if let Err(error) = audit.close(DRAIN) {
            tracing::error!(%error, "the audit log was not written to its end");
        }
        runtime.shutdown_timeout(DRAIN);
        return why.map_err(RunError::system("serving"));
    }
    // Readers are answered until the very end. Whom that meets is answered by the next one.
    if let Err(error) = audit.flush(DRAIN) {
        tracing::error!(%error, "the audit log was not written to its end");
    }
    if let End::As(program) = end {
        let why = holder.become_program(&program);
        tracing::error!(program = %program.display(), "no other release takes over: {why}");
    }
    // At once: whoever waits for an answer is not given another one on the way.
    Err(RunError::system("ending")(sys::die_of(Signal::SIGTERM)))
}

/// How a server ends.
enum End {
    /// Nobody goes on where it ends.
    ForGood(io::Result<()>),
    /// Another one may.
    Here,
    /// This program does, in its place.
    As(PathBuf),
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
