//! What should happen: the rules of cache, policy and tree a second time, in the simplest way there is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::core::wrapped;
use crate::language::{
    ABSENT, Answer, Asked, LEASE, LEASED, Op, PAIR, PAUSE, Policy, STALE, STALE_EITHER, Seen,
    System, TTL, UIDS, Weather,
};

mod cache;
mod changes;
mod config;
mod health;
mod leases;
mod legacy;
mod tree;

use config::{SECRETS, is_bound, places_of, split};
use health::{AtOnce, Health};
use leases::Lease;

pub struct Model {
    /// Both backends are one store, which announces its changes.
    one_store: bool,
    policy: Policy,
    now: u64,
    /// Every place's versions, the current one last; `None` where it was removed.
    places: BTreeMap<&'static str, Place>,
    weather: HashMap<char, Weather>,
    values: HashMap<&'static str, Cached>,
    /// What was read at each place, for all secrets that are bound to it.
    records: HashMap<&'static str, Record>,
    /// When nothing was found at a place.
    absences: HashMap<&'static str, u64>,
    /// What was made at [`LEASED`], by its number.
    leases: BTreeMap<u64, Lease>,
    health: HashMap<char, Health>,
    /// The backends that were too late with a list just now.
    late_lists: Vec<char>,
    /// What is asked in this very moment, if several may be asking.
    at_once: Option<AtOnce>,
    /// The secrets whose value went because another one's reader found another record.
    overtaken: BTreeSet<&'static str>,
    lists: HashMap<(char, String), (Vec<String>, Option<u64>)>,
    /// The last generation of each path that a backend gave: where it came from, and our number.
    generations: HashMap<&'static str, (&'static str, u64, usize)>,
    numbers: usize,
    /// How often a value was cut from a record.
    cuts: usize,
    nodes: Vec<Node>,
    /// For each secret that its inodes share: the newest generation that anybody was given, 0 before.
    newest: Vec<usize>,
    current: HashMap<&'static str, usize>,
    /// Who was answered ESTALE at which inode of which secret, and has not come again; and what was the newest then.
    sent_away: HashMap<(u32, usize), (usize, usize)>,
    /// The services whose folders the kernel holds, so that somebody may watch them.
    watched: BTreeSet<String>,
    handles: Vec<Handle>,
    pins: Vec<usize>,
    reads: usize,
    listings: usize,
    renewals: usize,
    revoked: Vec<String>,
    log: Vec<String>,
}

#[derive(Default)]
struct Place {
    versions: Vec<(String, u64)>,
    last: u64,
    exists: bool,
}

#[derive(Clone)]
struct Generation {
    number: usize,
    /// Of those with the same number each has its own: who has one open has not the other.
    cut: usize,
    value: String,
}

struct Cached {
    /// Number 0 of one that was inherited and that nobody has asked for yet.
    generation: Generation,
    place: &'static str,
    version: u64,
    /// When its record was read, and the oldest answer was given that it rests on.
    read: u64,
    at: u64,
    forever: bool,
    /// The machine has been off since it was found.
    old: bool,
}

#[derive(Clone)]
struct Record {
    value: String,
    version: u64,
    at: u64,
    old: bool,
    users: BTreeSet<&'static str>,
}

struct Node {
    path: &'static str,
    secret: usize,
    /// Nothing comes into the page cache while somebody holds it whose handle was taken away.
    barred: bool,
    size: u64,
    shown: Option<usize>,
}

struct Handle {
    node: usize,
    opener: u32,
    /// By a reload whose rules do not allow it.
    taken: bool,
    generation: Generation,
    checked: bool,
    paged: bool,
    /// There may be pages of its value: one of those that are, or were, open on it at the same time reads through them.
    among_paged: bool,
}

/// With whom a new handle may share its inode: with nobody who has seen another generation, with those who read past the
/// page cache, with all.
#[derive(Clone, Copy)]
enum Sharing {
    Never,
    Unpaged,
    Any,
}

#[derive(Clone, Copy, PartialEq)]
enum Still {
    Yes,
    Unsure,
    No,
}

/// Why there is no value.
#[derive(Clone, Copy, PartialEq)]
enum No {
    Absent,
    Refused,
    Down,
    Late,
    Garbled,
}

impl No {
    fn errno(self) -> i32 {
        match self {
            No::Absent => libc::ENOENT,
            No::Refused => libc::EACCES,
            No::Down | No::Garbled => libc::EIO,
            No::Late => libc::ETIMEDOUT,
        }
    }

    fn outcome(self) -> &'static str {
        match self {
            No::Absent => "absent",
            No::Refused => "refused",
            No::Down | No::Late => "unreachable",
            No::Garbled => "error",
        }
    }
}

/// A value and how it came: fresh from the cache, asked for, or old.
struct Given {
    generation: Generation,
    waited: bool,
    stale: bool,
}

impl Model {
    pub fn new(policy: &Policy, one_store: bool) -> Self {
        Self {
            one_store,
            policy: *policy,
            // Nothing is from before the beginning.
            now: TTL,
            places: BTreeMap::new(),
            weather: HashMap::from([('a', Weather::Fine), ('b', Weather::Fine)]),
            values: HashMap::new(),
            records: HashMap::new(),
            absences: HashMap::new(),
            leases: BTreeMap::new(),
            health: HashMap::new(),
            late_lists: Vec::new(),
            at_once: None,
            overtaken: BTreeSet::new(),
            lists: HashMap::new(),
            generations: HashMap::new(),
            numbers: 0,
            cuts: 0,
            nodes: Vec::new(),
            newest: Vec::new(),
            current: HashMap::new(),
            sent_away: HashMap::new(),
            watched: BTreeSet::new(),
            handles: Vec::new(),
            pins: Vec::new(),
            reads: 0,
            listings: 0,
            renewals: 0,
            revoked: Vec::new(),
            log: Vec::new(),
        }
    }

    fn backend_of(&self, place: &str) -> char {
        if self.one_store {
            return 'b';
        }
        place.chars().next().unwrap()
    }

    fn folder_of(&self, service: &str) -> char {
        if service == "app" && !self.one_store {
            'a'
        } else {
            'b'
        }
    }

    /// The paths of a backend's places that hold something.
    fn paths_in(&self, backend: char) -> impl Iterator<Item = &'static str> {
        let places = self.places.iter().filter(|(_, place)| place.exists);
        places
            .filter(move |(path, _)| self.backend_of(path) == backend)
            .map(|(path, _)| path.split_once(':').unwrap().1)
    }

    fn storm(&self, backend: char) -> Option<No> {
        match self.weather[&backend] {
            Weather::Fine | Weather::Panicking => None,
            Weather::Refusing => Some(No::Refused),
            Weather::Down => Some(No::Down),
            Weather::Silent => Some(No::Late),
            Weather::Garbled => Some(No::Garbled),
        }
    }

    fn names_in(&self, backend: char, folder: &str) -> Vec<String> {
        let start = format!("{folder}/");
        let names = self.paths_in(backend);
        let mut names: Vec<_> = names.filter_map(|path| path.strip_prefix(&start)).collect();
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect()
    }

    fn folders_in(&self, backend: char) -> Vec<String> {
        let folders = self
            .paths_in(backend)
            .map(|path| path.split_once('/').unwrap().0);
        let folders: BTreeSet<_> = folders.collect();
        folders.into_iter().map(str::to_owned).collect()
    }
}

impl System for Model {
    fn can(&self, _: &Op) -> bool {
        true
    }

    fn act(&mut self, op: &Op) -> Answer {
        let seen = self.attempt(op);
        self.all_have_answered();
        while !self.overtaken.is_empty() {
            let overtaken = std::mem::take(&mut self.overtaken);
            self.follow_all(overtaken.into_iter().collect(), false);
        }
        seen
    }

    fn asked(&self) -> Option<Asked> {
        let mut revoked = self.revoked.clone();
        revoked.sort();
        Some(Asked {
            reads: self.reads,
            lists: self.listings,
            renewals: self.renewals,
            revoked,
        })
    }

    fn log(&mut self) -> Option<Vec<String>> {
        self.log.sort();
        Some(self.log.clone())
    }
}

impl Model {
    fn attempt(&mut self, op: &Op) -> Answer {
        match op {
            Op::List { uid, folder } => return self.list_for(*uid, folder).map(Seen::Names),
            Op::Stat { uid, path } => {
                let node = self.look_up(*uid, path)?;
                return self.stat(*uid, node);
            }
            Op::Open { uid, path } => {
                let node = self.look_up(*uid, path)?;
                match self.open(*uid, node) {
                    // As the kernel does: once more from the top.
                    Err(libc::ESTALE) => {}
                    ended => return ended,
                }
                let node = self.look_up(*uid, path)?;
                return self.open(*uid, node);
            }
            Op::Pin { path } => {
                let node = self.look_up(0, path)?;
                self.pins.push(node);
            }
            Op::StatPin { uid, pin } => {
                if let Some(pin) = wrapped(&self.pins, *pin) {
                    return self.stat(*uid, self.pins[pin]);
                }
            }
            Op::OpenPin { uid, pin } => {
                if let Some(pin) = wrapped(&self.pins, *pin) {
                    match self.open(*uid, self.pins[pin]) {
                        // As the kernel does: once more, and to the same inode.
                        Err(libc::ESTALE) => {}
                        ended => return ended,
                    }
                    return self.open(*uid, self.pins[pin]);
                }
            }
            Op::Read {
                uid,
                handle,
                offset,
                size,
            } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    return self.read(*uid, handle, *offset, *size);
                }
            }
            Op::Close { handle } => {
                if let Some(handle) = wrapped(&self.handles, *handle) {
                    let node = self.handles.remove(handle).node;
                    let open = self.handles.iter().any(|handle| handle.node == node);
                    self.nodes[node].barred &= open;
                }
            }
            Op::Put {
                place,
                value,
                announced,
            } => {
                let found = self.places.entry(place).or_default();
                found.last += 1;
                found.versions.push((value.clone(), found.last));
                found.exists = true;
                self.changed(place, *announced, true);
            }
            Op::Remove { place, announced } => {
                self.places.entry(place).or_default().exists = false;
                self.changed(place, *announced, false);
            }
            Op::Rollback { place, announced } => {
                let found = self.places.entry(place).or_default();
                if let [.., before, _] = &found.versions[..] {
                    let before = before.clone();
                    found.versions.push(before);
                    found.exists = true;
                    self.changed(place, *announced, true);
                }
            }
            Op::Weather { backend, weather } => {
                self.weather.insert(*backend, *weather);
            }
            Op::Reload(policy) => {
                self.policy = *policy;
                self.enforce();
            }
            Op::Pass { seconds } => self.now += seconds,
            Op::Tend => self.tend(),
            Op::Limit { left } => self.limit(*left),
            Op::TakeAway { path } => self.take_away(path),
            Op::Off { seconds, dies } => {
                self.switch_off(*seconds);
                if *dies {
                    self.restart();
                }
            }
            Op::Die { seconds } => {
                self.now += seconds;
                self.restart();
            }
        }
        Ok(Seen::Done)
    }
}

fn length(generation: &Generation) -> u64 {
    u64::try_from(generation.value.len()).unwrap()
}
