//! Whom a command works with: the daemon that serves the config or, when none does, the stores themselves.
//!
//! Never both: whoever works on the stores holds the daemon's lock meanwhile.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::backend::store::Prompt;
use crate::caller::Caller;
use crate::cli::output::{Output, Progress};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::client::{Client, Upload};
use crate::control::handler::Handler;
use crate::control::protocol::MAX_CHUNK;
use crate::control::{
    Answer, Body, Commands, Event, Exchange, Failure, Interrupted, Kind, Request, SOCKET,
};
use crate::keeper::runtime;
use crate::run::{self, RunError};
use crate::sys::{Gid, Tid, Uid};

/// How long a command waits for a daemon that starts.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a command waits for others that are at work.
const QUEUE: Duration = Duration::from_secs(60);

/// The lock that commands queue at, below the runtime folder.
const QUEUED: &str = "commands.lock";

/// How long signing out may take.
const SIGN_OUT: Duration = Duration::from_secs(2);

/// Everything that a command needs.
#[derive(Debug)]
pub struct Session {
    /// The config.
    pub config: Config,
    /// How to print.
    pub output: Output,
    /// The time.
    pub clock: Clock,
    runtime: Runtime,
    peer: Option<Peer>,
}

#[derive(Debug)]
enum Peer {
    Daemon(Box<Client>),
    Stores {
        handler: Handler,
        caller: Caller,
        _locks: [Flock<fs::File>; 2],
    },
}

/// Bytes of a long answer, as they come.
pub type Sink<'a> = &'a mut dyn FnMut(Vec<u8>) -> Result<(), Failure>;

impl Session {
    /// A session that has not spoken with anybody yet.
    ///
    /// # Errors
    /// When the system has no resources.
    pub fn new(config: Config, output: Output, clock: Clock) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
        Ok(Self {
            config,
            output,
            clock,
            runtime,
            peer: None,
        })
    }

    /// Has a request carried out that brings nothing along but its answer.
    ///
    /// # Errors
    /// The command's [`Failure`].
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, Failure> {
        self.send(request, Upload::Empty)
    }

    /// The same, with something that goes along.
    ///
    /// # Errors
    /// The command's [`Failure`].
    pub fn send<T: DeserializeOwned>(
        &mut self,
        request: Request,
        upload: Upload,
    ) -> Result<T, Failure> {
        let answer = self.call(request, upload, &mut |_| Ok(()))?;
        understand(answer.json)
    }

    /// The whole of it: progress is shown on a terminal, chunks go to `sink`.
    ///
    /// # Errors
    /// The command's [`Failure`], or the sink's.
    pub fn call(
        &mut self,
        request: Request,
        upload: Upload,
        sink: Sink<'_>,
    ) -> Result<Answer, Failure> {
        let progress = Progress::new(&self.clock);
        let mut events = |event| match event {
            Event::Progress { done, total } => {
                progress.set(done, total);
                Ok(())
            }
            Event::Chunk(bytes) => sink(bytes),
        };
        let peer = match self.peer.take() {
            Some(peer) => peer,
            None => self.connect()?,
        };
        match self.peer.insert(peer) {
            Peer::Daemon(client) => {
                self.runtime
                    .block_on(client.call(&request, upload, &mut events))
            }
            Peer::Stores {
                handler, caller, ..
            } => {
                let carried = carry_out(handler, caller.clone(), request, upload, &mut events);
                self.runtime.block_on(carried)
            }
        }
    }

    /// The same as [`Session::ask`] for as long as `patience` lasts; `None` when it is over.
    ///
    /// # Errors
    /// The command's [`Failure`].
    pub fn ask_within<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        patience: Option<Duration>,
    ) -> Result<Option<T>, Failure> {
        let mut peer = match self.peer.take() {
            Some(Peer::Daemon(client)) => client,
            Some(Peer::Stores { .. }) | None => {
                return Err(Failure::failed("only a daemon is waited for"));
            }
        };
        let asked = self.runtime.block_on(async {
            let mut ignored = |_| Ok(());
            let asked = peer.call(request, Upload::Empty, &mut ignored);
            match patience {
                Some(patience) => tokio::time::timeout(patience, asked).await.ok(),
                None => Some(asked.await),
            }
        });
        // When it was not answered the connection is of no further use: the daemon hears of it by its end.
        asked
            .map(|answer| answer.and_then(|answer| understand(answer.json)))
            .transpose()
    }

    /// The daemon that serves the config, if one does, and nothing else.
    ///
    /// # Errors
    /// When somebody listens there who cannot be spoken with.
    pub fn daemon(&mut self) -> Result<bool, Failure> {
        if let Some(Peer::Daemon(_)) = self.peer {
            return Ok(true);
        }
        // Whoever listens there is told values.
        runtime::judge(&self.config.runtime).map_err(|error| Failure::failed(error.to_string()))?;
        let client = self.runtime.block_on(Client::connect(&self.socket()))?;
        let found = client.is_some();
        if let Some(client) = client {
            self.peer = Some(Peer::Daemon(Box::new(client)));
        }
        Ok(found)
    }

    /// Takes the lock that a daemon holds all its life. `None` while somebody has it.
    ///
    /// # Errors
    /// When the lock's file cannot be opened.
    pub fn try_lock(&self) -> Result<Option<Flock<fs::File>>, Failure> {
        self.try_take(runtime::LOCK)
    }

    fn try_take(&self, name: &str) -> Result<Option<Flock<fs::File>>, Failure> {
        let path = self.config.runtime.join(name);
        let fails = |error: io::Error| {
            let mend = match error.kind() == io::ErrorKind::PermissionDenied {
                true => "start it with `secretfs mount`, or be its owner",
                false => "set `runtime` to a folder that can be written",
            };
            Failure::failed(format!(
                "no daemon serves {}, and without one you cannot work on it ({}: {error}): {mend}",
                self.config.file.display(),
                path.display()
            ))
        };
        fs::create_dir_all(&self.config.runtime).map_err(fails)?;
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Whoever could open it could hold it, and keep every daemon from starting.
            .mode(0o600)
            .open(&path)
            .map_err(fails)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(fails(errno.into())),
        }
    }

    fn connect(&mut self) -> Result<Peer, Failure> {
        let started = self.clock.now();
        // Commands queue among themselves first. So whoever stands at the head of the queue and finds the daemon's lock
        // held knows that it is a daemon that holds it.
        let mut head = None;
        let mut deadline = started + QUEUE;
        loop {
            match self.daemon() {
                Ok(true) => {
                    if let Some(peer) = self.peer.take() {
                        return Ok(peer);
                    }
                }
                Ok(false) => {}
                Err(failure) if failure.kind == Kind::Busy => {
                    if self.clock.now() >= started + PATIENCE {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
            if head.is_none() {
                head = self.try_take(QUEUED)?;
                if head.is_some() {
                    deadline = self.clock.now() + PATIENCE;
                }
            }
            if let Some(queue) = head.take() {
                match self.try_lock()? {
                    Some(lock) => return self.open([queue, lock]),
                    None => head = Some(queue),
                }
            }
            if self.clock.now() >= deadline {
                return Err(Failure::failed(format!(
                    "{}: held all the time, and nobody answers at {}: a daemon or another command is stuck: see `ps`, and end it",
                    self.config.runtime.join(runtime::LOCK).display(),
                    self.socket().display()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn open(&self, locks: [Flock<fs::File>; 2]) -> Result<Peer, Failure> {
        let _context = self.runtime.enter();
        let handler = run::direct(&self.config, &Prompt::terminal(), &self.clock)
            .map_err(|error| run_failure(&error))?;
        Ok(Peer::Stores {
            handler,
            caller: Caller::new(Uid::effective(), Gid::effective(), Tid(std::process::id())),
            _locks: locks,
        })
    }

    /// Where a daemon listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.config.runtime.join(SOCKET)
    }
}

impl Drop for Session {
    /// What the command signed in for at a server ends with it.
    fn drop(&mut self) {
        if let Some(Peer::Stores { handler, .. }) = &self.peer {
            let ended = async { tokio::time::timeout(SIGN_OUT, handler.end()).await };
            if self.runtime.block_on(ended).is_err() {
                tracing::warn!("a token was not revoked, and ends by itself");
            }
        }
    }
}

/// Reads an answer as what the command expects.
///
/// # Errors
/// When the daemon says something else.
pub fn understand<T: DeserializeOwned>(json: serde_json::Value) -> Result<T, Failure> {
    serde_json::from_value(json)
        .map_err(|_| Failure::failed("the daemon is of another release: restart it"))
}

/// Why the parts could not be put together, with its exit code.
#[must_use]
pub fn run_failure(error: &RunError) -> Failure {
    let kind = match error {
        RunError::Config(_) | RunError::Backend { .. } | RunError::User { .. } => Kind::Usage,
        RunError::Identity(_) | RunError::Store(_) => Kind::Unavailable,
        RunError::Audit(_)
        | RunError::File { .. }
        | RunError::Unfit(_)
        | RunError::Stored(_)
        | RunError::System { .. } => Kind::Failed,
    };
    Failure::new(kind, error.to_string())
}

/// Does in this process what the daemon's server does for a connection.
async fn carry_out(
    handler: &Handler,
    caller: Caller,
    request: Request,
    upload: Upload,
    events: &mut dyn FnMut(Event) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let (sender, mut happening) = mpsc::channel(8);
    let body = match upload {
        Upload::Empty => Body::Empty,
        Upload::Value(value) => Body::Value(value),
        Upload::Stream(mut input) => {
            let (parts, stream) = mpsc::channel(4);
            std::thread::spawn(move || {
                let mut chunk = vec![0; MAX_CHUNK];
                loop {
                    let part = match input.read(&mut chunk) {
                        Ok(0) => break,
                        Ok(size) => Ok(chunk.get(..size).unwrap_or_default().to_vec()),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => Err(Interrupted),
                    };
                    let ended = part.is_err();
                    if parts.blocking_send(part).is_err() || ended {
                        break;
                    }
                }
            });
            Body::Stream(stream)
        }
    };
    let exchange = Exchange {
        body,
        events: sender,
    };
    let running = handler.handle(caller, request, exchange);
    tokio::pin!(running);
    let mut refused = None;
    loop {
        tokio::select! {
            biased;
            Some(event) = happening.recv() => {
                if refused.is_none() && let Err(failure) = events(event) {
                    // The command learns of it by its next word, and comes to its end.
                    refused = Some(failure);
                    happening.close();
                }
            }
            result = &mut running => {
                while let Ok(event) = happening.try_recv() {
                    if refused.is_none() {
                        refused = events(event).err();
                    }
                }
                return match refused {
                    Some(failure) => Err(failure),
                    None => result,
                };
            }
        }
    }
}
