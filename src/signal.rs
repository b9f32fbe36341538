//! What tells the cache that something changed, where nobody announces it.
//!
//! For each backend that does not announce its changes, the records that are in use are asked for their version, never for
//! their value (`poll`), and what the backend itself or a broker says of changes is heard ([`Hints`]). Either
//! way the [`Owner`] of the values is told, who asks for them again. Nothing here knows a value, a file or a caller.
//!
//! What counts as in use is the owner's word ([`Need`]):
//!
//! | a secret's value is in the cache, and | its record is |
//! |---|---|
//! | somebody asked for it in the last [`LATELY`] intervals, or has it open | polled once per interval |
//! | nobody did, but somebody may watch its file or its folder | polled too, but only as many per interval as leave the whole within [`ROUND`] records, or a fortieth more than those above |
//! | neither | not polled; a hint counts all the same |
//!
//! A record is a reference without its field: many secrets bound to fields of one record cost one request. Of an ordered
//! binding the places before the one that was found are records in use, too: what appears there takes over.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::backend::hints::Ear;
use crate::backend::{Backend, BackendError, Reference, Version};
use crate::clock::Clock;
use crate::secret::Name;

pub mod broker;
pub mod message;
mod mqtt;
mod nats;
pub mod outbox;
mod plan;
mod poll;
#[cfg(test)]
mod tests;
mod tls;

pub use crate::backend::{Hint, Hints};

/// For how many intervals a secret is in use that somebody has asked for.
pub const LATELY: u32 = 4;

/// How many records are polled per interval before those that somebody only may watch have to wait for their turn.
pub const ROUND: usize = 100;

/// How much it matters that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its value is in the cache, and whoever asks for it next finds out when the TTL is over.
    None,
    /// Somebody may watch for it: nobody can tell.
    Perhaps,
    /// Somebody has asked for it lately, or has it open.
    Now,
}

/// A record whose value, or whose absence, decides what is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The record: a reference without a field.
    pub record: Reference,
    /// The versions that the cache has of it: mostly one.
    pub versions: Vec<Version>,
    /// Somebody looked here before he found his value elsewhere.
    pub absent: bool,
    /// When it was last fetched.
    pub fetched: Instant,
    /// How much it matters.
    pub need: Need,
}

/// Who has the values that may change.
pub trait Owner: Send + Sync + std::fmt::Debug {
    /// The records of a backend that values in the cache depend on. What was asked for within `lately` is still in use.
    fn used(&self, backend: &Name, lately: Duration) -> Vec<Used>;

    /// The version that a record has now. Ends by a deadline, also if the backend panics.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn ask(&self, record: Reference) -> BoxFuture<'static, Result<Option<Version>, BackendError>>;

    /// A record may have another value. The future ends when that can be seen.
    fn changed(self: Arc<Self>, record: Reference) -> BoxFuture<'static, ()>;

    /// True if the backend could not be reached when it was last asked, for whatever.
    fn is_down(&self, backend: &Name) -> bool;
}

/// Of one backend, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// When a record was last asked for its version, and there was an answer.
    pub polled: Option<Timestamp>,
    /// When the backend or a broker last said something.
    pub heard: Option<Timestamp>,
    /// How many records are in use.
    pub in_use: usize,
    /// How many of them cannot be polled, because we may not see what is said about them: the TTL alone counts.
    pub refused: usize,
}

/// Of the broker, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerReport {
    /// Scheme, host and port.
    pub url: String,
    /// Since when we are connected; `None` while we try again.
    pub connected: Option<Timestamp>,
    /// Why we are not, if that is known.
    pub trouble: Option<String>,
}

/// Where hints are told, and how it goes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Signals {
    hints: Hints,
    board: Arc<Board>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Board {
    backends: Mutex<BTreeMap<Name, Report>>,
    broker: Mutex<Option<BrokerReport>>,
}

impl Board {
    fn note(&self, backend: &Name, change: impl FnOnce(&mut Report)) {
        let mut reports = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(report) = reports.get_mut(backend) {
            change(report);
        }
    }
}

/// What has to run for as long as the server does.
#[derive(Debug)]
pub struct Listening {
    signals: Signals,
    heard: Vec<(Name, Arc<dyn Backend>, Ear)>,
    clock: Clock,
}

impl Signals {
    /// For those of the backends that do not announce their changes.
    #[must_use]
    pub fn new(backends: &HashMap<Name, Arc<dyn Backend>>, clock: Clock) -> (Self, Listening) {
        let silent = backends
            .iter()
            .filter(|(_, backend)| !backend.announces_changes());
        let (hints, mut ears) = Hints::new(silent.clone().map(|(name, _)| name.clone()));
        let reports = silent
            .clone()
            .map(|(name, _)| (name.clone(), Report::default()));
        let signals = Self {
            hints,
            board: Arc::new(Board {
                backends: Mutex::new(reports.collect()),
                broker: Mutex::default(),
            }),
            clock: clock.clone(),
        };
        let heard = silent.filter_map(|(name, backend)| {
            let ear = ears.remove(name)?;
            Some((name.clone(), Arc::clone(backend), ear))
        });
        let listening = Listening {
            heard: heard.collect(),
            signals: signals.clone(),
            clock,
        };
        (signals, listening)
    }

    /// Where a broker tells of changes, of whichever backend.
    #[must_use]
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// How it goes with a backend; `None` if it announces its changes, or there is none of this name.
    #[must_use]
    pub fn report(&self, backend: &Name) -> Option<Report> {
        let reports = self.board.backends.lock();
        let reports = reports.unwrap_or_else(PoisonError::into_inner);
        reports.get(backend).cloned()
    }

    /// How it goes with the broker; `None` if there is none.
    #[must_use]
    pub fn broker(&self) -> Option<BrokerReport> {
        self.broker_report().clone()
    }

    /// We are connected to the broker, or why not.
    fn note_broker(&self, url: &str, trouble: Result<(), Option<&str>>) {
        *self.broker_report() = Some(BrokerReport {
            url: url.to_owned(),
            connected: trouble.is_ok().then(|| self.clock.timestamp()),
            trouble: trouble.err().flatten().map(str::to_owned),
        });
    }

    fn broker_report(&self) -> MutexGuard<'_, Option<BrokerReport>> {
        let report = self.board.broker.lock();
        report.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listening {
    /// Polls and listens. Never ends; dropped, it stops.
    pub async fn run(self, owner: Arc<dyn Owner>) {
        let mut tasks = JoinSet::new();
        for (name, backend, ear) in self.heard {
            let poll = poll::Poll::new(
                name,
                backend.poll(),
                ear,
                Arc::clone(&owner),
                Arc::clone(&self.signals.board),
                self.clock.clone(),
            );
            tasks.spawn(poll.run());
            let hints = self.signals.hints.clone();
            tasks.spawn(async move {
                if let Some(listening) = backend.listen(hints) {
                    listening.await;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "changes at a backend are not noticed any more before the TTL is over: restart the daemon");
            }
        }
        std::future::pending().await
    }
}

/// A random part of `whole`.
fn part_of(whole: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness it is always the same part, which is no worse than an awkward moment.
    let _ = aws_lc_rs::rand::fill(&mut random);
    whole.mul_f64(f64::from(u16::from_ne_bytes(random)) / 65536.0)
}
