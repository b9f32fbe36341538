//! What everyone but the writer holds: events go in, and whether the log can be written comes out.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::chain::Key;
use super::fold::Folds;
use super::journal;
use super::line::Entry;
use super::writer::Writer;
use super::{AuditError, Event, Trouble};
use crate::clock::Clock;
use crate::config::{AuditConfig, OnFailure};
use crate::secret::SecretBytes;

/// How many lines may wait in the queue, and as many again in the writer.
pub(super) const QUEUE: usize = 8192;

/// How long a command waits for its line.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

/// How long dropping the last handle waits.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

pub(super) const OK: u8 = 0;
pub(super) const UNWRITABLE: u8 = 1;
const FULL: u8 = 2;

/// What goes through the queue.
pub(super) enum Message {
    Access(Entry),
    Command(Event, SyncSender<Result<(), AuditError>>),
    /// Nothing to write but what is folded, at once.
    Flush(SyncSender<Result<(), AuditError>>),
    /// Nothing to write, but look around: the log is to be closed.
    Wake,
}

/// What the writer and everyone else see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folds: Folds,
    /// [`OK`], [`UNWRITABLE`] or [`FULL`].
    pub(super) state: AtomicU8,
    /// How many events found no place, until the writer has said so.
    pub(super) lost: AtomicU64,
    /// The number of the last line.
    pub(super) last: AtomicU64,
    pub(super) closing: AtomicBool,
    pub(super) failure: Mutex<Option<AuditError>>,
    pub(super) clock: Clock,
}

/// What [`super::Audit`] shares.
#[derive(Debug)]
pub(super) struct Handle {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    on_failure: OnFailure,
    thread: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    ended: Receiver<Result<(), AuditError>>,
}

impl Handle {
    pub(super) fn start(
        config: &AuditConfig,
        key: &SecretBytes,
        clock: Clock,
    ) -> Result<Self, AuditError> {
        Self::start_with(config, key, clock, Path::new(journal::SOCKET))
    }

    pub(super) fn start_with(
        config: &AuditConfig,
        key: &SecretBytes,
        clock: Clock,
        journal: &Path,
    ) -> Result<Self, AuditError> {
        let key = Key::new(key).ok_or(AuditError::Key)?;
        let shared = Arc::new(Shared {
            folds: Folds::new(),
            state: AtomicU8::new(OK),
            lost: AtomicU64::new(0),
            last: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            failure: Mutex::new(None),
            clock,
        });
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let writer = Writer::open(Arc::clone(&shared), messages, key, config, journal)?;
        let (ended, has_ended) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                let _ = ended.send(writer.run());
            })
            .map_err(|why| AuditError::Unusable {
                target: "writer".to_owned(),
                why: why.to_string(),
            })?;
        Ok(Self {
            shared,
            queue,
            on_failure: config.on_failure,
            thread: Mutex::new(Some(Running {
                thread,
                ended: has_ended,
            })),
        })
    }

    pub(super) fn record(&self, event: Event) {
        let now = self.shared.clock.now();
        let (repeats, first) = self.shared.folds.add(event, now);
        for entry in [repeats, first].into_iter().flatten() {
            let rejected = match self.queue.try_send(Message::Access(entry)) {
                Ok(()) => continue,
                Err(TrySendError::Full(rejected)) => rejected,
                Err(TrySendError::Disconnected(rejected)) => {
                    self.shared.state.store(UNWRITABLE, Ordering::Relaxed);
                    rejected
                }
            };
            let Message::Access(entry) = rejected else {
                continue;
            };
            // A full queue is no trouble yet: until the table is full too, the log is late, but complete.
            let count = entry.count;
            if !self.shared.folds.put_back(entry, now) {
                self.shared.lost.fetch_add(count, Ordering::Relaxed);
                // Never over UNWRITABLE, which the writer alone takes back.
                let _ = self.shared.state.compare_exchange(
                    OK,
                    FULL,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
        }
    }

    pub(super) fn record_now(&self, event: Event) -> Result<(), AuditError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let (done, answer) = mpsc::sync_channel(1);
        match self.queue.try_send(Message::Command(event, done)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(AuditError::Slow),
            Err(TrySendError::Disconnected(_)) => return Err(AuditError::Closed),
        }
        answered(&answer, COMMAND_DEADLINE)
    }

    pub(super) fn flush(&self, deadline: Duration) -> Result<(), AuditError> {
        let (done, answer) = mpsc::sync_channel(1);
        match self.queue.try_send(Message::Flush(done)) {
            Ok(()) => answered(&answer, deadline),
            Err(TrySendError::Full(_)) => Err(AuditError::Slow),
            Err(TrySendError::Disconnected(_)) => Err(AuditError::Closed),
        }
    }

    pub(super) fn ready(&self) -> Result<(), Trouble> {
        match self.on_failure {
            OnFailure::Deny => self.healthy(),
            OnFailure::Warn => Ok(()),
        }
    }

    pub(super) fn healthy(&self) -> Result<(), Trouble> {
        match self.shared.state.load(Ordering::Relaxed) {
            OK => Ok(()),
            FULL => Err(Trouble::Full),
            _ => Err(Trouble::Unwritable),
        }
    }

    pub(super) fn failure(&self) -> Option<AuditError> {
        lock(&self.shared.failure).clone()
    }

    pub(super) fn last_line(&self) -> u64 {
        self.shared.last.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self, deadline: Duration) -> Result<(), AuditError> {
        self.shared.closing.store(true, Ordering::Release);
        let Some(running) = lock(&self.thread).take() else {
            return Ok(());
        };
        let _ = self.queue.try_send(Message::Wake); // a full queue wakes the writer just as well
        running.thread.thread().unpark();
        match running.ended.recv_timeout(deadline) {
            Ok(result) => {
                let _ = running.thread.join();
                result
            }
            Err(RecvTimeoutError::Timeout) => Err(AuditError::Slow),
            Err(RecvTimeoutError::Disconnected) => Err(AuditError::Closed),
        }
    }
}

fn answered(
    answer: &Receiver<Result<(), AuditError>>,
    deadline: Duration,
) -> Result<(), AuditError> {
    match answer.recv_timeout(deadline) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(AuditError::Slow),
        Err(RecvTimeoutError::Disconnected) => Err(AuditError::Closed),
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.close(DROP_DEADLINE);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
