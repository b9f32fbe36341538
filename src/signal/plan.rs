//! Which record is asked for its version when, and what is news of what it answers.
//!
//! Each record keeps its place in the interval, so that polling is spread evenly and none waits longer than the interval,
//! whatever comes and goes. What is urgent is asked besides, and moves no record from its place.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Need, ROUND, Used, part_of};
use crate::backend::{BackendError, Reference, Version};

/// For how long a record is not asked that we may not see, unless its value is fetched anew before.
pub(super) const REFUSED: Duration = Duration::from_secs(3600);

/// For how long a record is still asked that is gone: whoever watched it waits for it to come back.
pub(super) const GONE: Duration = Duration::from_secs(3600);

/// How often the same answer is news. Where versions and values never agree, each poll would be another fetch.
const TOLD: u32 = 3;

/// This part of each interval is jitter: it only ever gets shorter.
const JITTER: u32 = 50;

/// No record waits longer for its turn.
const LONGEST_PERIOD: Duration = Duration::from_secs(86400);

/// The longest pause of a record, or a backend, that does not answer.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The first one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A record that fails so often while others answer is left out when all are asked at once.
const STUBBORN: u32 = 3;

/// What a poll sees of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Version(Version),
    Absent,
}

/// What becomes of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is as it was, or cannot be told.
    Nothing,
    /// It looks like news: [`Plan::is_news`] says, once it is known what is in use a moment later.
    News(Seen),
    /// It is not for us, and somebody has said that it has changed.
    Hinted,
    /// There was none.
    Failed,
}

/// One record.
#[derive(Debug)]
struct Entry {
    used: Used,
    /// False if nothing depends on it any more: it is gone, or was being asked meanwhile.
    listed: bool,
    /// When it is asked next; `None` if it is not in use.
    due: Option<Instant>,
    asking: bool,
    urgent: bool,
    /// The last answer.
    seen: Option<Seen>,
    /// How often in a row that was told as news.
    told: u32,
    fails: u32,
    /// It does not tell its version: when the value was fetched of which that is known.
    mute: Option<Instant>,
    /// Because we are not allowed to see it.
    refused: bool,
    /// Somebody said that it has changed, and perhaps to what.
    hint: Option<Option<Version>>,
    /// Until then it is asked although nothing depends on it.
    gone: Option<Instant>,
}

/// All records of one backend.
#[derive(Debug)]
pub(super) struct Plan {
    every: Option<Duration>,
    /// How long after a record came into use the plan may hear of it.
    late: Duration,
    entries: HashMap<Reference, Entry>,
    urgent: VecDeque<Reference>,
    /// How many intervals those have to wait that somebody only may watch.
    turns: u32,
}

impl Plan {
    pub(super) fn new(every: Option<Duration>, late: Duration) -> Self {
        Self {
            every,
            late,
            entries: HashMap::new(),
            urgent: VecDeque::new(),
            turns: 1,
        }
    }

    /// What is in use now.
    pub(super) fn update(&mut self, used: Vec<Used>, now: Instant) {
        let mut before = std::mem::take(&mut self.entries);
        for used in used {
            let entry = match before.remove(&used.record) {
                Some(entry) => Entry {
                    used,
                    listed: true,
                    ..entry
                },
                None => Entry::new(used),
            };
            self.entries.insert(entry.used.record.clone(), entry);
        }
        for (record, mut entry) in before {
            let gone = entry.gone.is_some_and(|until| now < until);
            if gone || entry.asking {
                entry.used.versions.clear();
                entry.used.absent = true;
                entry.used.need = if gone { Need::Perhaps } else { Need::None };
                entry.listed = false;
                self.entries.insert(record, entry);
            }
        }
        self.place(now);
    }

    /// Gives each record its place.
    fn place(&mut self, now: Instant) {
        let count = |need| {
            self.entries
                .values()
                .filter(|e| e.used.need == need)
                .count()
        };
        let (sure, perhaps) = (count(Need::Now), count(Need::Perhaps));
        let share = ROUND.saturating_sub(sure).max(sure / 40).max(3);
        self.turns = u32::try_from(perhaps.div_ceil(share).max(1)).unwrap_or(u32::MAX);
        if self.every.is_none() {
            return;
        }
        let (sure, perhaps) = (self.period(1), self.period(self.turns));
        let mut new: [Vec<&mut Entry>; 2] = [Vec::new(), Vec::new()];
        let [new_sure, new_perhaps] = &mut new;
        for entry in self.entries.values_mut() {
            let period = match entry.used.need {
                Need::None => {
                    entry.due = None;
                    continue;
                }
                Need::Now => sure,
                Need::Perhaps => perhaps,
            };
            if entry
                .mute
                .is_some_and(|fetched| fetched < entry.used.fetched)
            {
                (entry.mute, entry.due) = (None, None);
            }
            // It was of less use, or there were more of its kind.
            let late = entry.due.is_some_and(|due| due > now + period);
            if late && entry.mute.is_none() && entry.fails == 0 {
                entry.due = None;
            }
            match entry.due {
                Some(_) => {}
                None if entry.used.need == Need::Now => new_sure.push(entry),
                None => new_perhaps.push(entry),
            }
        }
        for (new, period) in new.into_iter().zip([sure, perhaps]) {
            let count = u32::try_from(new.len()).unwrap_or(u32::MAX).max(1);
            let each = period.saturating_sub(self.late) / count;
            let mut place = now;
            for entry in new {
                entry.due = Some(place + part_of(each));
                place += each;
            }
        }
    }

    /// How long a record waits that has one turn in so many.
    fn period(&self, turns: u32) -> Duration {
        let every = self.every.unwrap_or(LONGEST_PERIOD);
        every.saturating_mul(turns).min(LONGEST_PERIOD)
    }

    fn turns_of(&self, record: &Reference) -> u32 {
        let need = self.entries.get(record).map(|entry| entry.used.need);
        match need {
            Some(Need::Now) => 1,
            Some(Need::Perhaps | Need::None) | None => self.turns,
        }
    }

    /// The record that is to be asked now, if there is one. It has to be [`Plan::answered`] then.
    pub(super) fn next(&mut self, now: Instant) -> Option<Reference> {
        let record = self.next_urgent().or_else(|| self.next_due(now))?;
        let turns = self.turns_of(&record);
        let period = self.period(turns);
        let entry = self.entries.get_mut(&record)?;
        (entry.urgent, entry.asking) = (false, true);
        if let Some(due) = entry.due.filter(|due| *due <= now) {
            let next = due + period.saturating_sub(part_of(period / JITTER));
            // After a long time in which nothing could be asked it is given another place.
            entry.due = Some(next).filter(|next| *next > now);
        }
        Some(record)
    }

    fn next_urgent(&mut self) -> Option<Reference> {
        while let Some(record) = self.urgent.pop_front() {
            let entry = self.entries.get(&record);
            // While it is asked already it waits: that answer may be from before.
            if entry.is_some_and(|entry| entry.urgent && !entry.asking) {
                return Some(record);
            }
        }
        None
    }

    fn next_due(&self, now: Instant) -> Option<Reference> {
        let idle = self.entries.iter().filter(|(_, entry)| !entry.asking);
        let due = idle.filter_map(|(record, entry)| Some((entry.due?, record)));
        let (due, record) = due.min_by_key(|(due, _)| *due)?;
        (due <= now).then(|| record.clone())
    }

    /// Any record, to see whether the backend answers: one that has failed least. It has to be [`Plan::answered`] then.
    pub(super) fn probe(&mut self) -> Option<Reference> {
        let idle = self.entries.values_mut();
        let idle = idle.filter(|e| !e.asking && e.mute.is_none() && e.used.need > Need::None);
        let probe = idle.min_by_key(|entry| (entry.fails, entry.due))?;
        probe.asking = true;
        Some(probe.used.record.clone())
    }

    /// When something is to be asked next, once [`Plan::next`] gave nothing any more.
    pub(super) fn due(&self) -> Option<Instant> {
        let idle = self.entries.values().filter(|entry| !entry.asking);
        idle.filter_map(|entry| entry.due).min()
    }

    /// All that is in use is to be asked now.
    pub(super) fn hurry_all(&mut self) {
        let used = self.entries.values().filter(|entry| {
            entry.used.need > Need::None && entry.mute.is_none() && entry.fails < STUBBORN
        });
        let records: Vec<Reference> = used.map(|entry| entry.used.record.clone()).collect();
        records.iter().for_each(|record| self.hurry(record));
    }

    /// This record is to be asked now.
    pub(super) fn hurry(&mut self, record: &Reference) {
        if let Some(entry) = self.entries.get_mut(record)
            && !std::mem::replace(&mut entry.urgent, true)
            && !entry.asking
        {
            self.urgent.push_back(record.clone());
        }
    }

    /// Somebody says that the record has changed, and perhaps to what. It is asked now, so that a wrong word, or one that came
    /// while the backend is away, takes nothing from anybody. True if it cannot be asked: then the word has to do.
    pub(super) fn hint(&mut self, record: &Reference, version: Option<Version>) -> bool {
        let Some(entry) = self.entries.get_mut(record) else {
            return false;
        };
        if entry.mute.is_some() {
            // Where only reading tells, as of a dynamic value, reading would make another one.
            return entry.refused;
        }
        entry.hint = Some(version);
        self.hurry(record);
        false
    }

    /// A record has answered, or has not.
    pub(super) fn answered(
        &mut self,
        record: &Reference,
        answer: Result<Option<Version>, BackendError>,
        now: Instant,
    ) -> Verdict {
        let Some(entry) = self.entries.get_mut(record) else {
            return Verdict::Nothing;
        };
        entry.asking = false;
        if entry.urgent {
            self.urgent.push_back(record.clone());
        }
        // Of one that came while it was being asked, the next answer is.
        let hint = (!entry.urgent).then(|| entry.hint.take()).flatten();
        let seen = match answer {
            Ok(Some(version)) => Seen::Version(version),
            Err(BackendError::Absent(_)) => Seen::Absent,
            Ok(None) | Err(BackendError::Refused(_)) => {
                entry.refused = answer.is_err();
                entry.fails = 0;
                entry.mute = Some(entry.used.fetched);
                entry.due = self.every.map(|_| now + REFUSED);
                return match hint {
                    Some(_) if entry.refused => Verdict::Hinted,
                    Some(_) | None => Verdict::Nothing,
                };
            }
            // What cannot be understood is no news, and no reason to ask less.
            Err(BackendError::Unusable(_)) => return Verdict::Nothing,
            Err(BackendError::Unreachable(_) | BackendError::Timeout(_)) => return Verdict::Failed,
        };
        (entry.refused, entry.mute, entry.fails) = (false, None, 0);
        if entry.differs(&seen) {
            return Verdict::News(seen);
        }
        let early = hint.flatten().map(Seen::Version);
        if early.is_some_and(|hint| hint != seen) {
            // It may be that not all of the backend knows yet.
            let soon = now + FIRST_PAUSE;
            entry.due = entry.due.map(|due| due.min(soon));
        }
        (entry.seen, entry.told) = (Some(seen), 0);
        Verdict::Nothing
    }

    /// A record has not answered, and others may have.
    pub(super) fn failed(&mut self, record: &Reference, now: Instant) {
        if let Some(entry) = self.entries.get_mut(record) {
            entry.fails = entry.fails.saturating_add(1);
            let pause = pause(entry.fails);
            entry.due = entry.due.map(|due| match entry.fails {
                0..STUBBORN => due.min(now + pause),
                _ => now + pause,
            });
        }
    }

    /// Whether what a record answered is news, after [`Plan::update`]. Not if that is what is `followed` already.
    pub(super) fn is_news(
        &mut self,
        record: &Reference,
        seen: Seen,
        followed: bool,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(record) else {
            return false;
        };
        let same = entry.seen.as_ref() == Some(&seen);
        if same && followed {
            return false;
        }
        let differs = entry.differs(&seen);
        entry.told = match (differs, same) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => entry.told.saturating_add(1),
        };
        let had = !entry.used.versions.is_empty();
        entry.gone = match seen {
            Seen::Absent if had => Some(now + GONE),
            Seen::Absent => entry.gone,
            Seen::Version(_) => None,
        };
        entry.seen = Some(seen);
        differs && entry.told <= TOLD
    }

    /// The records at these paths, and what of them is known.
    pub(super) fn at(&self, is_meant: impl Fn(&str) -> bool) -> Vec<Used> {
        let used = self.entries.values().map(|entry| &entry.used);
        used.filter(|used| is_meant(&used.record.path))
            .cloned()
            .collect()
    }

    /// How many records are in use.
    pub(super) fn in_use(&self) -> usize {
        self.used().count()
    }

    /// How many of them we may not see.
    pub(super) fn refused(&self) -> usize {
        self.used().filter(|entry| entry.refused).count()
    }

    fn used(&self) -> impl Iterator<Item = &Entry> {
        let used = self.entries.values();
        used.filter(|entry| entry.used.need > Need::None && entry.listed)
    }
}

impl Entry {
    fn new(used: Used) -> Self {
        Self {
            used,
            listed: true,
            due: None,
            asking: false,
            urgent: false,
            seen: None,
            told: 0,
            fails: 0,
            mute: None,
            refused: false,
            hint: None,
            gone: None,
        }
    }

    /// Whether what is seen is not what is shown.
    fn differs(&self, seen: &Seen) -> bool {
        match seen {
            Seen::Version(version) => {
                self.used.versions.iter().any(|known| known != version)
                    // The record may well be there, and have no such field: then it is no news until it changes.
                    || (self.used.absent && self.seen.as_ref() != Some(seen))
            }
            Seen::Absent => !self.used.versions.is_empty(),
        }
    }
}

/// How long to wait after so many failures in a row.
pub(super) fn pause(fails: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << fails.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE)
}
