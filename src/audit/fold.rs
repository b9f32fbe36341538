//! Equal accesses within a second become one line with a count, before they reach the queue.
//!
//! The first is written at once, so that nothing waits to be seen; the repeats are counted here and leave as one line
//! when the second is over. Nothing is allocated for a repeat. The table is keyed by a hash with a random seed, and
//! what it finds is compared in full: a collision costs a line, never a count.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Event;
use super::line::Entry;

/// How long equal events are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// Fewer than this many threads meet at one lock.
const SHARDS: usize = 16;

/// What one shard remembers at most. Beyond it events are written one by one.
const PER_SHARD: usize = 256;

/// The open windows.
#[derive(Debug)]
pub(super) struct Folds {
    shards: [Mutex<HashMap<u64, Window, RandomState>>; SHARDS],
    hasher: RandomState,
}

#[derive(Debug)]
struct Window {
    until: Instant,
    /// The latest of them.
    event: Event,
    /// How many were not written yet.
    repeats: u64,
    /// When the first of these ended.
    first: Timestamp,
}

impl Window {
    fn add(&mut self, event: Event, count: u64, first: Timestamp) {
        let micros = if self.repeats == 0 {
            self.first = first;
            event.micros
        } else {
            self.first = self.first.min(first);
            self.event.micros.max(event.micros)
        };
        self.event = event;
        self.event.micros = micros;
        self.repeats = self.repeats.saturating_add(count);
    }

    fn take(&mut self) -> Option<Entry> {
        (self.repeats > 0).then(|| Entry {
            event: self.event.clone(),
            count: std::mem::take(&mut self.repeats),
            first: Some(self.first),
        })
    }
}

impl Folds {
    pub(super) fn new() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
        }
    }

    /// Counts one event. What has to be written now comes back: the repeats of a window that is over, and the event
    /// itself if it is not a repeat.
    pub(super) fn add(&self, event: Event, now: Instant) -> (Option<Entry>, Option<Entry>) {
        let hash = self.hash(&event);
        let mut shard = self.shard(hash);
        let full = shard.len() >= PER_SHARD;
        match shard.get_mut(&hash) {
            Some(window) if !same(&window.event, &event) => (None, Some(Entry::single(event))),
            Some(window) if now < window.until => {
                let time = event.time;
                window.add(event, 1, time);
                (None, None)
            }
            Some(window) => {
                let repeats = window.take();
                window.until = now + WINDOW;
                window.event = event.clone();
                (repeats, Some(Entry::single(event)))
            }
            None if full => (None, Some(Entry::single(event))),
            None => {
                let window = Window {
                    until: now + WINDOW,
                    first: event.time,
                    event: event.clone(),
                    repeats: 0,
                };
                shard.insert(hash, window);
                (None, Some(Entry::single(event)))
            }
        }
    }

    /// Counts what found no place in the queue, to be written later; `false` if it finds no place here either.
    pub(super) fn put_back(&self, entry: Entry, now: Instant) -> bool {
        let hash = self.hash(&entry.event);
        let mut shard = self.shard(hash);
        let first = entry.first.unwrap_or(entry.event.time);
        let full = shard.len() >= PER_SHARD;
        match shard.get_mut(&hash) {
            Some(window) if same(&window.event, &entry.event) => {
                window.add(entry.event, entry.count, first);
                true
            }
            Some(_) => false,
            None if full => false,
            None => {
                shard.insert(
                    hash,
                    Window {
                        until: now + WINDOW,
                        event: entry.event,
                        repeats: entry.count,
                        first,
                    },
                );
                true
            }
        }
    }

    /// Closes the windows that are over at `now`, or all of them, and moves their repeats to `into`. Returns how many
    /// windows stay open.
    pub(super) fn sweep(&self, now: Option<Instant>, into: &mut impl Extend<Entry>) -> usize {
        let mut open = 0;
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, window| {
                let keep = now.is_some_and(|now| now < window.until);
                if !keep {
                    into.extend(window.take());
                }
                keep
            });
            open += shard.len();
        }
        open
    }

    fn hash(&self, event: &Event) -> u64 {
        self.hasher.hash_one(identity(event))
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashMap<u64, Window, RandomState>> {
        let index = usize::try_from(hash >> 60).unwrap_or_default();
        let [first, ..] = &self.shards;
        lock(self.shards.get(index).unwrap_or(first))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn same(one: &Event, other: &Event) -> bool {
    identity(one) == identity(other)
}

/// What equal events have in common. Not the time, the thread, its name and how long it took.
fn identity(event: &Event) -> impl Hash + Eq + '_ {
    (
        (event.uid, event.gid, event.outcome),
        (&event.action, &event.path, &event.version, &event.rule),
        (&event.unit, &event.container),
    )
}
