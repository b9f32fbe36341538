//! What can happen to a file system of secrets, and what a program sees of it.
//!
//! Nothing here knows how the system is made: the same operations run through the core and through a real mount.

use proptest::prelude::*;

pub use crate::faulty::Weather;

/// Seconds that the config's `[cache]` says, and those of single secrets.
pub const TTL: u64 = 60;
pub const STALE: u64 = 600;
/// How long it is remembered that nothing is there.
pub const ABSENT: u64 = 5;
pub const STALE_EITHER: u64 = 3600;

/// How long a lease lasts, at first and where it is not renewed for its whole time; and the least time between two attempts.
pub const LEASE: u64 = 3600;
const LIMITED: u64 = 600;
pub const PAUSE: u64 = 5;

/// The callers: root, and three users of whom the last is named by its group.
pub const UIDS: [u32; 4] = [0, 1, 2, 3];

/// Every path that is tried, some more often, so that much happens to them. `app/either`, `app/second`, `app/alias`, `app/user`, `app/pass`, `app/login`
/// and `app/token` are bound; the others come from folders.
pub const PATHS: [&str; 21] = [
    "app/k1",
    "app/k1",
    "app/k1",
    "app/either",
    "app/either",
    "app/second",
    "web/k1",
    "app/alias",
    "app/k2",
    "app/user",
    "app/user",
    "app/pass",
    "app/pass",
    "app/pair",
    "app/login",
    "app/login",
    "app/token",
    "app/none",
    "web/second",
    "free/k1",
    "none/k1",
];

/// Every directory that is tried; "" is the top.
pub const FOLDERS: [&str; 5] = ["", "app", "web", "free", "none"];

/// Where a record is, whose fields `app/user` and `app/pass` show.
pub const PAIR: &str = "a:app/pair";

/// Where each read makes another record, under a lease. `app/login` and `app/token` show fields of it.
pub const LEASED: &str = "a:db/creds";

/// Every place that values are put to. Backend `b` announces its changes.
pub const PLACES: [&str; 8] = [
    PAIR,
    "a:app/k1",
    "a:app/k2",
    "a:x/first",
    "a:x/last",
    "b:web/k1",
    "b:web/second",
    "b:free/k1",
];

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whom the rules of `app`, `web` and `[defaults]` name, by their place in [`UIDS`].
    pub services: [[bool; 4]; 3],
    /// Whom the rules of `app/k2` itself name.
    pub narrow: [bool; 4],
    /// Whether `web/k1` is read through the page cache.
    pub cached: bool,
}

impl Policy {
    /// The sections of the config.
    pub fn config(&self) -> String {
        let [app, web, defaults] = self.services.map(rules);
        let narrow = rules(self.narrow);
        let reads = if self.cached { "cached" } else { "checked" };
        format!(
            r#"
[services.app]
source = "a:app"
allow = {app}
[services.app.secrets]
k2 = {{ allow = {narrow} }}
either = {{ from = ["a:x/first", "b:web/second"], stale = "{STALE_EITHER}s" }}
second = {{ from = ["a:x/first", "a:x/last"] }}
alias = {{ from = "a:app/k1", stale = "0s" }}
user = {{ from = "{PAIR}#user" }}
pass = {{ from = "{PAIR}#pass" }}
login = {{ from = "{LEASED}#user" }}
token = {{ from = "{LEASED}#pass" }}
[services.web]
source = "b:web"
allow = {web}
[services.web.secrets]
k1 = {{ reads = "{reads}" }}
[defaults]
source = "b"
allow = {defaults}
[cache]
ttl = "{TTL}s"
stale = "{STALE}s"
"#
        )
    }
}

/// uid 3 is named by one of its supplementary groups. uid 8 is nobody here.
fn rules(named: [bool; 4]) -> String {
    let mut rules = vec!["{ uid = 8 }".to_owned()];
    for (uid, named) in UIDS.into_iter().zip(named) {
        match uid {
            3 if named => rules.push("{ gid = 103 }".to_owned()),
            uid if named => rules.push(format!("{{ uid = {uid} }}")),
            _ => {}
        }
    }
    format!("[{}]", rules.join(", "))
}

/// One thing that happens. Handles and pins are numbered as they were made, and wrap around.
#[derive(Debug, Clone)]
pub enum Op {
    List {
        uid: u32,
        folder: &'static str,
    },
    Stat {
        uid: u32,
        path: &'static str,
    },
    Open {
        uid: u32,
        path: &'static str,
    },
    /// Root takes hold of what a path leads to now, as a bind mount of the file does.
    Pin {
        path: &'static str,
    },
    StatPin {
        uid: u32,
        pin: usize,
    },
    OpenPin {
        uid: u32,
        pin: usize,
    },
    Read {
        uid: u32,
        handle: usize,
        offset: u64,
        size: u32,
    },
    Close {
        handle: usize,
    },
    /// A new version, with or without word of it. `b` always gives word.
    Put {
        place: &'static str,
        value: String,
        announced: bool,
    },
    Remove {
        place: &'static str,
        announced: bool,
    },
    /// Back to the version before, under its own number.
    Rollback {
        place: &'static str,
        announced: bool,
    },
    Weather {
        backend: char,
        weather: Weather,
    },
    Reload(Policy),
    Pass {
        seconds: u64,
    },
    /// Leases are renewed, replaced and revoked that are due for it.
    Tend,
    /// From now on the lease that was made last is renewed for no longer than so many seconds, or not at all.
    Limit {
        left: Option<u64>,
    },
    /// What was fetched for a secret is taken away, as a revocation does.
    TakeAway {
        path: &'static str,
    },
    /// The server dies, and so soon another one is started.
    Die {
        seconds: u64,
    },
    /// The daemon ends for good and the machine is off for so long, and then both are started. The server may die at once.
    Off {
        seconds: u64,
        dies: bool,
    },
}

pub fn policies() -> impl Strategy<Value = Policy> {
    // Mostly yes, or nothing much happens.
    let named = || prop::array::uniform4(prop::bool::weighted(0.85));
    let policy = (prop::array::uniform3(named()), named(), any::<bool>());
    policy.prop_map(|(mut services, mut narrow, cached)| {
        for rules in services.iter_mut().chain([&mut narrow]) {
            // Root rarely has a rule.
            rules[0] &= rules[1] && rules[2] && !rules[3];
        }
        Policy {
            services,
            narrow,
            cached,
        }
    })
}

pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Most of it by one caller, so that something comes of it.
    let uid = || prop::sample::select(vec![1, 1, 1, 1, 1, 1, 0, 2, 3, 3]);
    let path = || prop::sample::select(&PATHS[..]);
    let place = || prop::sample::select(&PLACES[..]);
    let weathers = [
        Weather::Fine,
        Weather::Fine,
        Weather::Fine,
        Weather::Down,
        Weather::Silent,
        Weather::Refusing,
        Weather::Garbled,
    ];
    let op = prop_oneof![
        2 => (uid(), prop::sample::select(&FOLDERS[..])).prop_map(|(uid, folder)| Op::List { uid, folder }),
        3 => (uid(), path()).prop_map(|(uid, path)| Op::Stat { uid, path }),
        6 => (uid(), path()).prop_map(|(uid, path)| Op::Open { uid, path }),
        1 => path().prop_map(|path| Op::Pin { path }),
        2 => (uid(), 0..3_usize).prop_map(|(uid, pin)| Op::StatPin { uid, pin }),
        3 => (uid(), 0..3_usize).prop_map(|(uid, pin)| Op::OpenPin { uid, pin }),
        4 => (uid(), 0..16_usize, 0..12_u64, 0..20_u32)
            .prop_map(|(uid, handle, offset, size)| Op::Read { uid, handle, offset, size }),
        1 => (0..16_usize).prop_map(|handle| Op::Close { handle }),
        5 => (place(), "[a-z]{0,10}", any::<bool>())
            .prop_map(|(place, text, announced)| Op::Put { place, value: content(place, &text), announced }),
        1 => (place(), any::<bool>()).prop_map(|(place, announced)| Op::Remove { place, announced }),
        1 => (place(), any::<bool>()).prop_map(|(place, announced)| Op::Rollback { place, announced }),
        2 => (prop::sample::select(vec!['a', 'b']), prop::sample::select(weathers.to_vec()))
            .prop_map(|(backend, weather)| Op::Weather { backend, weather }),
        1 => policies().prop_map(Op::Reload),
        2 => prop::sample::select(vec![1, ABSENT - 1, ABSENT, TTL - 1, TTL, TTL, STALE, STALE_EITHER])
            .prop_map(|seconds| Op::Pass { seconds }),
        4 => prop::sample::select([marks(LEASE), marks(LIMITED), [1, PAUSE, TTL]].concat())
            .prop_map(|seconds| Op::Pass { seconds }),
        4 => Just(Op::Tend),
        1 => prop::sample::select(vec![None, Some(LIMITED), Some(LEASE)]).prop_map(|left| Op::Limit { left }),
        1 => path().prop_map(|path| Op::TakeAway { path }),
        1 => prop::sample::select(vec!["app/login", "app/token"]).prop_map(|path| Op::TakeAway { path }),
        2 => prop::sample::select(vec![0, 1, TTL - 1, TTL]).prop_map(|seconds| Op::Die { seconds }),
        1 => (prop::sample::select(vec![1, 1, TTL, STALE - 1, STALE]), any::<bool>())
            .prop_map(|(seconds, dies)| Op::Off { seconds, dies }),
    ];
    let first = PLACES.map(|place| Op::Put {
        place,
        value: content(place, place),
        announced: false,
    });
    prop::collection::vec(op, 1..150).prop_map(move |ops| [first.to_vec(), ops].concat())
}

/// From the beginning of a lease to when it is renewed, from there to when it is replaced, and from there to its end.
fn marks(lasts: u64) -> [u64; 3] {
    let (renewed, replaced) = (lasts * 2 / 3, lasts * 85 / 100);
    [renewed, replaced - renewed, lasts - replaced]
}

/// What is put to a place: text, or mostly a record, of which mostly no field is missing.
fn content(place: &str, text: &str) -> String {
    match text.chars().next() {
        _ if place != PAIR => text.to_owned(),
        Some('y' | 'z') => text.to_owned(),
        Some('s'..='x') => format!(r#"{{"user":"{text}"}}"#),
        _ => format!(r#"{{"user":"{text}","pass":"of {text}"}}"#),
    }
}

/// What a program sees of an operation: an errno, or this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Done,
    Names(Vec<String>),
    Size(u64),
    Bytes(Vec<u8>),
}

/// How often backends were asked for a value, for names, and for more time of a lease; and which leases they were told to end,
/// sorted.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub reads: usize,
    pub lists: usize,
    pub renewals: usize,
    pub revoked: Vec<String>,
}

pub type Answer = Result<Seen, i32>;

/// A file system that all this can be done to.
pub trait System {
    /// Whether this system can do that at all; what it cannot is left out.
    fn can(&self, op: &Op) -> bool;

    /// Does it.
    fn act(&mut self, op: &Op) -> Answer;

    /// What backends were asked, where that can be known.
    fn asked(&self) -> Option<Asked>;

    /// Whether what was seen is what was to be expected, as far as this system can tell.
    fn agrees(&self, _: &Op, seen: &Answer, expected: &Answer) -> bool {
        seen == expected
    }

    /// The audit log at the end, as sorted lines of `uid action path outcome`, where it can be known.
    fn log(&mut self) -> Option<Vec<String>>;
}
