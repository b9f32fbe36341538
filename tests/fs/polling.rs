//! Changes that nobody announces: a poll finds them, or a hint tells of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secretfs::backend::{Backend, Hint, Version};
use secretfs::events::What;
use secretfs::fs::{FsError, Opened, Waiter};
use secretfs::secret::Name;
use secretfs::signal::{LATELY, Report, Signals};
use tokio::task::JoinSet;

use crate::faulty::{Weather, Word};
use crate::world::World;

const EVERY: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);
const AT_ONCE: Duration = Duration::from_millis(100);

/// A world whose backend `a` is polled.
struct Polled {
    world: World,
    signals: Signals,
    /// Ends when it is dropped.
    _running: JoinSet<()>,
}

const SERVICES: &str = r#"
[services.app]
allow = [{ uid = 1 }]
[services.app.secrets]
plain = "a:x/plain"
user = "a:x/record#user"
pass = "a:x/record#pass"
either = ["a:node/token", "b:shared/token"]
both = ["a:node/token#t", "a:x/record#user"]
[services.other]
source = "a:other"
allow = [{ uid = 1 }]
[cache]
ttl = "1h"
"#;

fn polled() -> Polled {
    let a = [
        ("x/plain", "plain"),
        ("x/record", r#"{"user":"bo","pass":"s3"}"#),
        ("other/one", "1"),
    ];
    let world = World::new(&a, &[("shared/token", "shared")], SERVICES);
    world.a.poll_every(EVERY);
    let backends: HashMap<Name, Arc<dyn Backend>> = world.cache.backends().clone();
    let (signals, listening) = Signals::new(&backends, world.clock.clone());
    let mut running = JoinSet::new();
    running.spawn(listening.run(Arc::<secretfs::fs::Tree>::clone(&world.tree)));
    Polled {
        world,
        signals,
        _running: running,
    }
}

impl Polled {
    /// Time passes, by both clocks.
    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(STEP);
            left -= step;
            self.world.clock.advance(step);
            tokio::time::sleep(step).await;
        }
    }

    /// The time in which a poll finds a change, whatever was asked when.
    async fn poll(&self) {
        self.pass(EVERY + 2 * STEP).await;
    }

    /// Somebody has it open and polls the handle.
    async fn watch(&self, path: &str) -> Opened {
        let ino = self.world.ino(path).await;
        let opened = self.world.open(1, ino).await.unwrap();
        let ready = self.world.tree.poll(opened.fh, Some(Waiter(opened.fh.0)));
        assert!(!ready.unwrap().outdated);
        opened
    }

    fn is_outdated(&self, opened: Opened) -> bool {
        self.world.tree.poll(opened.fh, None).unwrap().outdated
    }

    fn report(&self) -> Report {
        self.signals.report(&name("a")).unwrap()
    }

    fn hint(&self, path: &str, version: Option<&str>) {
        self.signals.hints().tell(Hint {
            backend: name("a"),
            path: path.to_owned(),
            version: version.map(Version::new),
        });
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_poll_rotates_for_whoever_watches() {
    let polled = polled();
    let world = &polled.world;
    let opened = polled.watch("app/plain").await;
    let old = world.ino("app/plain").await;
    polled.poll().await;
    assert_eq!(world.kernel.names(), [""; 0]);
    for value in ["second", "third"] {
        world.a.put("x/plain", value);
        polled.poll().await;
        // Nobody but the poll has asked.
        assert_eq!(world.kernel.names(), ["plain"]);
        assert_ne!(world.ino("app/plain").await, old);
        assert!(polled.is_outdated(opened));
        assert_eq!(world.read(1, opened).unwrap(), "plain");
    }
    assert_eq!(world.kernel.woken(), [Waiter(opened.fh.0)]);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "third");
    // Each was fetched once.
    assert_eq!(world.a.reads(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_is_not_polled_and_the_fields_of_a_record_cost_one_request() {
    let polled = polled();
    let world = &polled.world;
    polled.poll().await;
    assert_eq!(world.a.polls(), 0);
    for path in ["app/user", "app/pass"] {
        world.cat(1, path).await.unwrap();
    }
    for _ in 0..10 {
        world.a.polled();
        polled.pass(EVERY).await;
        let asked = world.a.polled();
        assert!(asked.iter().all(|path| path == "x/record"), "{asked:?}");
        assert!((1..=2).contains(&asked.len()), "{asked:?}");
    }
    // b announces its changes.
    assert_eq!(world.b.polls(), 0);
    assert_eq!(polled.signals.report(&name("b")), None);
    assert_eq!(polled.report().in_use, 1);
    world.a.put("x/record", r#"{"user":"al","pass":"s4"}"#);
    polled.poll().await;
    let mut names = world.kernel.names();
    names.sort_unstable();
    // "both" was never asked for, and its name is given a new inode to be on the safe side.
    assert_eq!(names, ["both", "pass", "user"]);
    assert_eq!(world.cat(1, "app/user").await.unwrap(), "al");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_lately_is_in_use_and_so_is_what_is_open_or_may_be_watched() {
    let polled = polled();
    let world = &polled.world;
    let (app, plain) = (world.ino("app").await, world.ino("app/plain").await);
    let opened = world.open(1, plain).await.unwrap();
    let asked = async || {
        polled.pass((LATELY + 1) * EVERY).await;
        world.a.polled();
        polled.pass(2 * EVERY).await;
        world.a.polled().len()
    };
    // Its folder may be watched, as far as anybody can tell.
    world.tree.release(opened.fh);
    assert!(asked().await >= 2);
    // The kernel does not hold the folder, but what is open in it.
    let opened = world.open(1, plain).await.unwrap();
    world.tree.forget(app, u64::MAX);
    assert!(asked().await >= 2, "it is open");
    world.tree.release(opened.fh);
    world.tree.forget(plain, u64::MAX);
    assert_eq!(asked().await, 0);
    let opened = world.open(1, plain).await.unwrap();
    world.tree.release(opened.fh);
    polled.pass(2 * EVERY).await;
    assert!(!world.a.polled().is_empty(), "it was asked for lately");
    assert_eq!(asked().await, 0);
    assert_eq!(polled.report().in_use, 0);
    // Who listens for all that happens may be waiting for it.
    let listener = world.access.events().subscribe();
    assert!(asked().await >= 2);
    drop(listener);
    assert_eq!(asked().await, 0);
    // It is in the cache all the same, so a hint counts.
    world.a.put("x/plain", "second");
    polled.hint("x/plain", Some("2"));
    polled.pass(AT_ONCE).await;
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_appears_higher_up_takes_over_and_its_deletion_gives_the_lower_one_back() {
    let polled = polled();
    let world = &polled.world;
    let cat = async || world.cat(1, "app/either").await.unwrap();
    assert_eq!(cat().await, "shared");
    let mut numbers = Vec::new();
    for round in 0..3 {
        let opened = polled.watch("app/either").await;
        world.a.put("node/token", format!("own {round}"));
        polled.poll().await;
        assert!(polled.is_outdated(opened));
        assert_eq!(world.kernel.names(), ["both", "either"]);
        assert_eq!(cat().await, format!("own {round}"));
        let opened = polled.watch("app/either").await;
        world.a.remove("node/token");
        polled.poll().await;
        assert!(polled.is_outdated(opened));
        assert!(world.kernel.names().contains(&"either".to_owned()));
        assert_eq!(cat().await, "shared");
        let binding = world
            .tree
            .catalogue()
            .binding(&"app/either".parse().unwrap());
        let path = "app/either".parse().unwrap();
        let generation = world.cache.fresh(&path, &binding.unwrap()).unwrap();
        numbers.push(generation.number);
    }
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_record_higher_up_without_the_field_leaves_the_lower_one_where_it_is() {
    let polled = polled();
    let world = &polled.world;
    assert_eq!(world.cat(1, "app/both").await.unwrap(), "bo");
    let opened = polled.watch("app/both").await;
    world.a.put("node/token", r#"{"other":"1"}"#);
    polled.pass(10 * EVERY).await;
    assert!(!polled.is_outdated(opened));
    // Once, and not at each poll.
    assert!(world.a.reads() <= 6, "{}", world.a.reads());
    world.a.put("node/token", r#"{"t":"mine"}"#);
    polled.poll().await;
    assert!(polled.is_outdated(opened));
    assert_eq!(world.cat(1, "app/both").await.unwrap(), "mine");
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_gone_for_watchers_and_so_is_known_what_comes_back() {
    let polled = polled();
    let world = &polled.world;
    let mut events = world.access.events().subscribe();
    for path in ["app/plain", "other/one"] {
        let (service, name) = path.split_once('/').unwrap();
        let place = if service == "app" {
            "x/plain"
        } else {
            "other/one"
        };
        world.cat(1, path).await.unwrap();
        world.a.remove(place);
        polled.poll().await;
        assert_eq!(world.kernel.names(), [name]);
        assert_eq!(world.cat(1, path).await, Err(FsError::Absent));
        let path = path.parse().unwrap();
        assert_eq!(events.next().await.what, What::Removed { path });
        polled.pass(5 * EVERY).await;
        assert_eq!(world.kernel.names(), [""; 0]);
        world.a.put(place, "again");
        polled.poll().await;
        assert_eq!(world.kernel.names(), [name]);
        assert!(matches!(events.next().await.what, What::Rotated { .. }));
        assert_eq!(
            world.cat(1, &format!("{service}/{name}")).await.unwrap(),
            "again"
        );
        assert_eq!(events.try_next(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn where_versions_are_not_for_us_the_ttl_alone_counts_and_it_is_known() {
    let polled = polled();
    let world = &polled.world;
    world.a.word(Word::Refused);
    let opened = polled.watch("app/plain").await;
    world.cat(1, "app/user").await.unwrap();
    polled.poll().await;
    assert_eq!((polled.report().in_use, polled.report().refused), (2, 2));
    world.a.put("x/plain", "second");
    polled.pass(10 * EVERY).await;
    assert!(!polled.is_outdated(opened));
    assert_eq!(world.a.polls(), 2);
    world.later(3601);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "second");
    assert!(polled.is_outdated(opened));
}

#[tokio::test(start_paused = true)]
async fn an_outage_shows_what_there_was_and_ends_with_what_has_changed_meanwhile() {
    let polled = polled();
    let world = &polled.world;
    let opened = polled.watch("app/plain").await;
    polled.poll().await;
    world.a.weather(Weather::Down);
    world.a.put("x/plain", "second");
    // A hint is not followed into nothing.
    polled.hint("x/plain", Some("2"));
    polled.pass(10 * EVERY).await;
    polled.hint("x/plain", Some("2"));
    polled.pass(10 * EVERY).await;
    assert!(!polled.is_outdated(opened));
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    world.a.weather(Weather::Fine);
    // Somebody else is answered, and then it goes fast.
    world.cat(1, "app/user").await.unwrap();
    polled.pass(Duration::from_secs(2)).await;
    assert!(polled.is_outdated(opened));
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_seen_at_once() {
    let polled = polled();
    let world = &polled.world;
    let opened = polled.watch("app/plain").await;
    polled.poll().await;
    world.a.put("x/plain", "second");
    polled.hint("x/plain", Some("2"));
    polled.pass(AT_ONCE).await;
    assert!(polled.is_outdated(opened));
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "second");
    // We have it; and what nobody has asked for is not fetched.
    let reads = world.a.reads();
    polled.hint("x/plain", Some("2"));
    polled.hint("x/record", Some("2"));
    polled.pass(AT_ONCE).await;
    assert_eq!((world.a.reads(), reads), (2, 2));
    // Higher up.
    let opened = polled.watch("app/either").await;
    world.a.put("node/token", "own");
    polled.hint("node/token", Some("1"));
    polled.pass(AT_ONCE).await;
    assert!(polled.is_outdated(opened));
    // From the backend itself.
    world.a.remove("node/token");
    world.a.hints().resync(&name("a"));
    polled.pass(AT_ONCE).await;
    assert_eq!(world.cat(1, "app/either").await.unwrap(), "shared");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_when_it_is_asked_is_one_that_does_not_answer() {
    let polled = polled();
    let world = &polled.world;
    let opened = polled.watch("app/plain").await;
    world.a.weather(Weather::Panicking);
    polled.pass(4 * EVERY).await;
    world.a.weather(Weather::Fine);
    world.a.put("x/plain", "second");
    polled.pass(10 * EVERY).await;
    assert!(polled.is_outdated(opened));
}

#[tokio::test(start_paused = true)]
async fn what_another_config_finds_elsewhere_is_not_polled_any_more() {
    let polled = polled();
    let world = &polled.world;
    polled.watch("app/plain").await;
    polled.poll().await;
    let moved = SERVICES.replace("a:x/plain", "b:shared/token");
    world.reload(&moved);
    polled.poll().await;
    world.a.polled();
    polled.pass(5 * EVERY).await;
    assert_eq!(world.a.polled(), [""; 0]);
}
