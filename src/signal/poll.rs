//! One backend's records, asked for their versions as the [`Plan`] says, and the hints about them.
//!
//! One task does it, so that nothing is asked twice at once. What it waits for is asked in tasks of their own, each of which
//! ends by a deadline. While the backend cannot be reached only one record is asked now and then; when it answers again
//! all are asked at once, because changes may have been missed. The same happens after hints were.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{sleep, timeout};

use super::plan::{Plan, Verdict, pause};
use super::{Board, LATELY, Owner, part_of};
use crate::backend::hints::{Ear, Heard};
use crate::backend::{BackendError, Hint, Reference, Version};
use crate::clock::Clock;
use crate::secret::Name;

/// How many records are asked at the same time.
const ASKED_AT_ONCE: usize = 4;
/// How many changes are followed at the same time.
const TOLD_AT_ONCE: usize = 16;
/// How long a change is followed before the next one may begin in its place.
const FOLLOWED: Duration = Duration::from_secs(30);

/// Hints are gathered for up to so long, so that not all daemons that hear of a change ask at once.
const GATHER: Duration = Duration::from_millis(50);
/// The paths that may be gathered.
const GATHERED: usize = 1024;
/// The versions of one path that may be.
const VERSIONS: usize = 4;

/// The shortest and the longest interval.
const EVERY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(86400)];
/// What counts as lately where nothing is polled.
const LATELY_WITHOUT: Duration = Duration::from_secs(120);
/// The longest time in which it is not looked what is in use.
const LOOK: Duration = Duration::from_secs(10);
/// The shortest time between two rounds in which all records are asked at once.
const ROUNDS: Duration = Duration::from_secs(1);
/// How often it is looked, while the backend does not answer us, whether it answers others.
const OTHERS: Duration = Duration::from_secs(1);
/// So many failures in a row, and it is the backend.
const DOWN: u32 = 2;

type Answer = (Reference, bool, Result<Option<Version>, BackendError>);

/// The poll of one backend.
#[derive(Debug)]
pub(super) struct Poll {
    backend: Name,
    every: Option<Duration>,
    ear: Ear,
    owner: Arc<dyn Owner>,
    board: Arc<Board>,
    clock: Clock,
    plan: Plan,
    /// When it is looked next what is in use.
    look: Option<Instant>,
    asking: FuturesUnordered<BoxFuture<'static, Answer>>,
    following: FuturesUnordered<BoxFuture<'static, Reference>>,
    to_follow: VecDeque<Reference>,
    /// What is followed or is to be; true if it has changed again meanwhile.
    changed: HashMap<Reference, bool>,
    /// What was told of each path, once each: they may have come in another order than they were told in, or twice.
    hints: HashMap<String, Vec<Option<Version>>>,
    gathered: Option<Instant>,
    /// Changes may have been missed.
    missed: bool,
    last_round: Option<Instant>,
    /// Failures in a row.
    fails: u32,
    outage: Option<Outage>,
    /// Outages in a row.
    outages: u32,
    recovered: Option<Instant>,
}

/// The backend does not answer.
#[derive(Debug)]
struct Outage {
    /// Not before then it is asked again.
    until: Instant,
    /// When it is looked whether it answers others.
    others: Instant,
    probing: bool,
}

impl Poll {
    pub(super) fn new(
        backend: Name,
        every: Option<Duration>,
        ear: Ear,
        owner: Arc<dyn Owner>,
        board: Arc<Board>,
        clock: Clock,
    ) -> Self {
        let [shortest, longest] = EVERY;
        let every = every.filter(|every| !every.is_zero());
        let every = every.map(|every| every.clamp(shortest, longest));
        let plan = Plan::new(every, every.map_or(LOOK, look));
        Self {
            look: every.map(|_| clock.now()),
            backend,
            every,
            ear,
            owner,
            board,
            clock,
            plan,
            asking: FuturesUnordered::new(),
            following: FuturesUnordered::new(),
            to_follow: VecDeque::new(),
            changed: HashMap::new(),
            hints: HashMap::new(),
            gathered: None,
            missed: false,
            last_round: None,
            fails: 0,
            outage: None,
            outages: 0,
            recovered: None,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let now = self.clock.now();
            self.step(now);
            let until = self.wake(now);
            let mut woken = pin!(sleep(until.saturating_duration_since(now)));
            loop {
                tokio::select! {
                    () = &mut woken => break,
                    Some((record, probe, answer)) = self.asking.next() => {
                        self.answered(&record, probe, answer);
                        break;
                    }
                    Some(record) = self.following.next() => {
                        self.followed(record);
                        break;
                    }
                    heard = self.ear.next() => if self.heard(heard) { break },
                }
            }
        }
    }

    /// Begins what is to be done by now.
    fn step(&mut self, now: Instant) {
        if self.look.is_some_and(|look| look <= now) {
            self.look_around(now);
        }
        if self.gathered.is_some_and(|gathered| gathered <= now) {
            self.take_hints(now);
        }
        if self.is_to_ask_all(now) {
            (self.missed, self.last_round) = (false, Some(now));
            self.look_around(now);
            self.plan.hurry_all();
        }
        match &mut self.outage {
            None => {
                while self.asking.len() < ASKED_AT_ONCE
                    && let Some(record) = self.plan.next(now)
                {
                    self.ask(record, false);
                }
            }
            Some(outage) => {
                if outage.others <= now {
                    outage.others = now + OTHERS;
                    if !self.owner.is_down(&self.backend) {
                        outage.until = now;
                    }
                }
                if outage.until <= now && !outage.probing {
                    match self.plan.probe() {
                        Some(record) => {
                            outage.probing = true;
                            self.ask(record, true);
                        }
                        // Nothing is in use any more: whatever comes into use finds out for itself.
                        None if self.asking.is_empty() => self.outage = None,
                        None => outage.until = now + OTHERS,
                    }
                }
            }
        }
        while self.following.len() < TOLD_AT_ONCE
            && let Some(record) = self.to_follow.pop_front()
        {
            let following = Arc::clone(&self.owner).changed(record.clone());
            self.following.push(Box::pin(async move {
                let _ = timeout(FOLLOWED, following).await;
                record
            }));
        }
    }

    /// Until when nothing has to be done, if nothing happens.
    fn wake(&self, now: Instant) -> Instant {
        let due = match &self.outage {
            None if self.asking.len() < ASKED_AT_ONCE => self.plan.due(),
            None => None,
            Some(outage) if outage.probing => Some(outage.others),
            Some(outage) => Some(outage.until.min(outage.others)),
        };
        let round = (self.missed && self.outage.is_none()).then(|| self.next_round(now));
        let times = [self.look, self.gathered, due, round];
        let first = times.into_iter().flatten().min();
        first.unwrap_or(now + LOOK).max(now)
    }

    fn next_round(&self, now: Instant) -> Instant {
        let apart = self.every.map_or(ROUNDS, look).max(ROUNDS);
        self.last_round.map_or(now, |last| last + apart)
    }

    /// Not while it does not answer: that comes to an end with the same.
    fn is_to_ask_all(&self, now: Instant) -> bool {
        self.missed && self.outage.is_none() && self.next_round(now) <= now
    }

    /// Looks what is in use now.
    fn look_around(&mut self, now: Instant) {
        let lately = self.every.map(|every| every.saturating_mul(LATELY));
        let lately = lately.unwrap_or(LATELY_WITHOUT);
        self.plan
            .update(self.owner.used(&self.backend, lately), now);
        self.look = self.every.map(|every| now + look(every));
        self.report();
    }

    fn report(&self) {
        let (in_use, refused) = (self.plan.in_use(), self.plan.refused());
        self.board.note(&self.backend, |report| {
            (report.in_use, report.refused) = (in_use, refused);
        });
    }

    fn ask(&mut self, record: Reference, probe: bool) {
        let asking = self.owner.ask(record.clone());
        let answer = async move { (record, probe, asking.await) };
        self.asking.push(Box::pin(answer));
    }

    fn answered(
        &mut self,
        record: &Reference,
        probe: bool,
        answer: Result<Option<Version>, BackendError>,
    ) {
        let now = self.clock.now();
        match self.plan.answered(record, answer, now) {
            Verdict::Failed => return self.failed(record, probe, now),
            Verdict::Nothing => {}
            Verdict::Hinted => self.follow(record.clone()),
            Verdict::News(seen) => {
                // Somebody may have fetched it since it was looked.
                self.look_around(now);
                let followed = self.changed.contains_key(record);
                if self.plan.is_news(record, seen, followed, now) {
                    self.follow(record.clone());
                }
            }
        }
        self.fails = 0;
        if probe {
            (self.outage, self.missed, self.recovered) = (None, true, Some(now));
        }
        let time = self.clock.timestamp();
        self.board
            .note(&self.backend, |report| report.polled = Some(time));
        self.report();
    }

    fn failed(&mut self, record: &Reference, probe: bool, now: Instant) {
        if let Some(outage) = &mut self.outage {
            // What was on its way when it began says nothing new.
            if probe {
                self.outages = self.outages.saturating_add(1);
                outage.probing = false;
                outage.until = now + shorter(pause(self.outages));
            }
            return;
        }
        self.plan.failed(record, now);
        self.fails = self.fails.saturating_add(1);
        // Where there is no other record, or none has its turn, it is the only witness.
        if self.fails < DOWN && self.plan.in_use() > 1 && self.every.is_some() {
            return;
        }
        // One that comes and goes is not asked for everything each time it comes.
        let calm = self.every.unwrap_or(LATELY_WITHOUT).saturating_mul(2);
        let back = |back| now.saturating_duration_since(back) < calm;
        if !self.recovered.is_some_and(back) {
            self.outages = 0;
        }
        self.outages = self.outages.saturating_add(1);
        self.outage = Some(Outage {
            until: now + shorter(pause(self.outages)),
            others: now + OTHERS,
            probing: false,
        });
    }

    /// True if there is something new to be done.
    fn heard(&mut self, heard: Heard) -> bool {
        let first = self.gathered.is_none();
        match heard {
            Heard::Missed => {
                let time = self.clock.timestamp();
                self.board
                    .note(&self.backend, |report| report.heard = Some(time));
                !std::mem::replace(&mut self.missed, true)
            }
            Heard::Hint(Hint { path, version, .. }) => {
                if self.hints.len() >= GATHERED && !self.hints.contains_key(&path) {
                    self.missed = true;
                } else {
                    let told = self.hints.entry(path).or_default();
                    if told.len() >= VERSIONS {
                        self.missed = true;
                    } else if !told.contains(&version) {
                        told.push(version);
                    }
                }
                if first {
                    self.gathered = Some(self.clock.now() + part_of(GATHER));
                }
                first
            }
        }
    }

    fn take_hints(&mut self, now: Instant) {
        self.gathered = None;
        let hints = std::mem::take(&mut self.hints);
        let time = self.clock.timestamp();
        self.board
            .note(&self.backend, |report| report.heard = Some(time));
        self.look_around(now);
        for used in self.plan.at(|path| hints.contains_key(path)) {
            let record = used.record;
            let known = |version: &Version| used.versions.iter().all(|known| known == version);
            // One that we have says nothing against the others.
            let is_news = |told: &&Option<Version>| match told {
                Some(version) => used.absent || !known(version),
                None => true,
            };
            let mut told = hints.get(&record.path).into_iter().flatten();
            let Some(version) = told.rfind(is_news) else {
                continue;
            };
            match version {
                // It comes to an end with a round of all.
                _ if self.outage.is_some() => {}
                // What is bound to a version of its own is not what others are about.
                Some(_) if record.version.is_some() => self.plan.hurry(&record),
                Some(_) | None => {
                    if self.plan.hint(&record, version.clone()) {
                        self.follow(record);
                    }
                }
            }
        }
    }

    /// Has the owner follow a change; once more if he is at it, because what he finds may be from before.
    fn follow(&mut self, record: Reference) {
        match self.changed.get_mut(&record) {
            Some(again) => *again = true,
            None => {
                self.to_follow.push_back(record.clone());
                self.changed.insert(record, false);
            }
        }
    }

    fn followed(&mut self, record: Reference) {
        if self.changed.remove(&record) == Some(true) {
            self.follow(record);
        }
    }
}

/// How often it is looked what is in use: a record that has come into use meanwhile is asked in time all the same.
fn look(every: Duration) -> Duration {
    (every / 10).min(LOOK)
}

/// Up to a tenth shorter, so that not all daemons come back at once.
fn shorter(pause: Duration) -> Duration {
    pause.saturating_sub(part_of(pause / 10))
}
