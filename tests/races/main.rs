//! Opens that race reloads, in every order that shuttle comes up with.
//!
//! What runs is the real code of [`secretfs::access`] and of the tree; where a reload and an open share something (the
//! rules, the catalogues, the turn of a reload) shuttle's types stand in for the real ones (`src/sync.rs`), and it tries
//! out who comes first. What waits (backends, the cache's flights, the audit log's writer) belongs to tokio and to real
//! threads, and is not part of it: tests/fs and tests/mounted race those.
//!
//! That these tests can fail was tried. The first one does within a few hundred orders when the rules are put in force
//! before their places are there, or when only one catalogue is kept (who is allowed by every config is denied); when the
//! place is looked for in the newest catalogue instead of the permit's (a user gets another's place); and when two
//! reloads need not take turns (the last rules have no places). The second one does when
//! [`secretfs::access::Access::still`] says yes without asking.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where it is wrong"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secretfs::access::{Access, Permit};
use secretfs::backend::Version;
use secretfs::cache::{Binding, Cache, Times};
use secretfs::clock::Clock;
use secretfs::config::accounts::Listed;
use secretfs::config::{Config, OnFailure};
use secretfs::fs::{Catalogue, Ledger, Tree};
use secretfs::secret::SecretPath;

#[path = "../common/callers.rs"]
mod callers;
#[path = "../common/log.rs"]
mod log;

use callers::{Table, caller};
use log::Log;

const BACKENDS: &str = r#"
[backends.a]
type = "store"
path = "/nowhere/a.age"
identity = { file = "/nowhere/identity.txt" }
"#;

/// How many orders are tried.
const SCHEDULES: usize = 1000;

/// Who is allowed by each config.
const ALWAYS: u32 = 9;

/// The configs: each for another user, and from another place.
fn config(number: u32) -> Config {
    let text = format!(
        "{BACKENDS}[services.s]\nsource = \"a:from-{number}\"\nallow = [{{ uid = [{number}, {ALWAYS}] }}]\n"
    );
    Config::parse_with(&text, std::path::Path::new("c.toml"), &Listed::default()).unwrap()
}

/// The parts that outlive a schedule: the log, whose writer is a real thread.
struct Bench {
    log: Log,
    clock: Clock,
    path: SecretPath,
    configs: Vec<Config>,
}

impl Bench {
    fn new() -> Arc<Self> {
        let clock = Clock::manual();
        Arc::new(Self {
            log: Log::new(&clock, OnFailure::Warn),
            clock,
            path: "s/x".parse().unwrap(),
            configs: (1..=4).map(config).collect(),
        })
    }

    /// A tree of the first config.
    fn tree(&self) -> Arc<Tree> {
        let first = &self.configs[0];
        let access = Access::new(
            secretfs::access::Authority::Policy,
            first.policy(&Listed::default()).0,
            Arc::new(Table::default()),
            self.log.audit.clone(),
            false,
            self.clock.clone(),
        );
        let times = Times {
            ttl: first.cache.ttl,
            timeout: first.cache.timeout,
        };
        let cache = Cache::new(
            std::collections::HashMap::new(),
            times,
            1,
            secretfs::secret::SealedMemory::new().unwrap(),
            self.clock.clone(),
        );
        let catalogue = Catalogue::new(first, &Listed::default());
        let started = self.clock.timestamp();
        let ledger = Ledger::nowhere();
        Tree::new(
            catalogue,
            Arc::new(access),
            Arc::new(cache),
            ledger,
            started,
        )
    }

    fn reload(&self, tree: &Tree, number: usize) {
        let config = &self.configs[number - 1];
        let (policy, _) = config.policy(&Listed::default());
        tree.put_in_force(policy, Catalogue::new(config, &Listed::default()));
    }

    /// A permit for user `uid`, and where it leads.
    fn ask(&self, tree: &Tree, uid: u32) -> Option<(Permit, Option<Arc<Binding>>)> {
        tree.permitted(
            || tree.access().open(caller(uid), &self.path, "open"),
            |catalogue| catalogue.binding(&self.path),
        )
        .ok()
    }
}

/// Runs `schedule` in many orders: by chance, and with few changes of the thread at the worst places.
fn race(schedule: impl Fn() + Send + Sync + 'static) {
    let schedule = Arc::new(schedule);
    let again = Arc::clone(&schedule);
    shuttle::check_random(move || schedule(), SCHEDULES);
    shuttle::check_pct(move || again(), SCHEDULES, 4);
}

#[test]
fn an_open_finds_its_place_by_the_config_that_allows_it() {
    let bench = Bench::new();
    let given = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&given);
    race(move || {
        let tree = bench.tree();
        let readers = [1, 2, 3].map(|uid| {
            let (bench, tree, given) = (Arc::clone(&bench), Arc::clone(&tree), Arc::clone(&given));
            shuttle::thread::spawn(move || {
                for _ in 0..2 {
                    let Some((permit, binding)) = bench.ask(&tree, uid) else {
                        continue;
                    };
                    let place = binding.unwrap().references[0].path.clone();
                    assert_eq!(place, format!("from-{uid}/x"), "allowed to uid {uid}");
                    given.store(true, Ordering::Relaxed);
                    permit.waive();
                }
            })
        });
        let always = {
            let (bench, tree) = (Arc::clone(&bench), Arc::clone(&tree));
            shuttle::thread::spawn(move || {
                let (permit, binding) = bench.ask(&tree, ALWAYS).expect("every config allows it");
                assert!(binding.is_some());
                permit.waive();
            })
        };
        // Two who reload at once, so that numbers could mix.
        let reloads = [[2, 3], [4, 1]].map(|numbers| {
            let (bench, tree) = (Arc::clone(&bench), Arc::clone(&tree));
            shuttle::thread::spawn(move || {
                for number in numbers {
                    bench.reload(&tree, number);
                }
            })
        });
        for thread in readers.into_iter().chain(reloads).chain([always]) {
            thread.join().unwrap();
        }
        // And when all is quiet the last one is in force as a whole.
        let allowed = [1, 2, 3, 4].into_iter().filter(|uid| {
            let given = bench.ask(&tree, *uid);
            given.is_some_and(|(permit, binding)| {
                permit.waive();
                binding.unwrap().references[0].path == format!("from-{uid}/x")
            })
        });
        assert_eq!(allowed.count(), 1);
    });
    assert!(seen.load(Ordering::Relaxed));
}

#[test]
fn no_handle_escapes_who_checks_them_again() {
    let bench = Bench::new();
    race(move || {
        let tree = bench.tree();
        // The handle, which the open adds, and a reload looks for afterwards.
        let handle = Arc::new(shuttle::sync::Mutex::new(false));
        let open = {
            let (bench, tree, handle) =
                (Arc::clone(&bench), Arc::clone(&tree), Arc::clone(&handle));
            shuttle::thread::spawn(move || {
                let (permit, _) = bench.ask(&tree, 1)?;
                *handle.lock().unwrap() = true;
                match tree.access().still(permit, &Version::new("1")) {
                    Ok(permit) => permit.waive(),
                    Err(_) => *handle.lock().unwrap() = false,
                }
                Some(())
            })
        };
        bench.reload(&tree, 2);
        // Uid 1 may not read any more: what is open is taken away.
        *handle.lock().unwrap() = false;
        let _ = open.join().unwrap();
        assert!(!*handle.lock().unwrap());
    });
}
