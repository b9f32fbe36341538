//! Each rule of the cache, as the list at the top of `cache.rs` has it.

use std::time::Duration;

use futures_util::future::join_all;

use super::*;
use crate::backend::tests::faulty::{Faulty, Weather};
use crate::events::What;
use crate::secret::{MAX_VALUE, SealedMemory};

mod budget;
mod earlier;
mod leases;
mod legacy;
mod outages;
mod records;
mod refresh;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(60);
const STALE: Duration = Duration::from_secs(600);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A cache over two backends, `a` (asked after a TTL) and `b` (announces its changes), with its time in hand.
struct Bench {
    a: Arc<Faulty>,
    b: Arc<Faulty>,
    clock: Clock,
    cache: Arc<Cache>,
}

impl Bench {
    fn new() -> Self {
        let a = Arc::new(Faulty::new(&[("s/x", "one")]));
        let b = Arc::new(Faulty::announcing(&[("s/y", "first")]));
        let backends: [(Name, Arc<dyn Backend>); 2] = [
            (name("a"), Arc::<Faulty>::clone(&a)),
            (name("b"), Arc::<Faulty>::clone(&b)),
        ];
        let times = Times {
            ttl: TTL,
            timeout: TIMEOUT,
        };
        let clock = Clock::manual();
        let cache = Cache::new(
            HashMap::from(backends),
            times,
            1,
            SealedMemory::new().unwrap(),
            clock.clone(),
        );
        Self {
            a,
            b,
            clock,
            cache: Arc::new(cache),
        }
    }

    async fn get(&self, references: &[&str]) -> Fetch {
        self.cache.get(&path(), &binding(references)).wait().await
    }

    async fn x(&self) -> Fetch {
        self.get(&["a:s/x"]).await
    }

    fn refresh(&self) -> Answer<Fetch> {
        self.cache.refresh(&path(), &binding(&["a:s/x"]))
    }

    /// A refresh that waits, from now on.
    fn refresher(&self) -> tokio::task::JoinHandle<Fetch> {
        tokio::spawn(self.refresh().wait())
    }

    /// A reader who waits, from now on.
    fn reader(&self) -> tokio::task::JoinHandle<Fetch> {
        tokio::spawn(self.cache.get(&path(), &binding(&["a:s/x"])).wait())
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn path() -> SecretPath {
    "s/x".parse().unwrap()
}

fn binding(references: &[&str]) -> Arc<Binding> {
    let references = references.iter().map(|text| text.parse().unwrap());
    Arc::new(Binding {
        references: references.collect(),
        stale: STALE,
    })
}

fn text(fetch: &Fetch) -> String {
    let value = fetch.as_ref().unwrap().generation.value.open().unwrap();
    String::from_utf8(value.expose().to_vec()).unwrap()
}

fn number(fetch: &Fetch) -> u64 {
    fetch.as_ref().unwrap().generation.number
}

/// Lets every task run as far as it can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn each_rule_has_its_tests() {
    let rules = include_str!("../cache.rs");
    let tests = [
        include_str!("tests.rs"),
        include_str!("tests/earlier.rs"),
        include_str!("tests/leases.rs"),
        include_str!("tests/legacy.rs"),
        include_str!("tests/outages.rs"),
        include_str!("tests/records.rs"),
        include_str!("tests/refresh.rs"),
    ]
    .concat();
    let stated = |number: u32| rules.contains(&format!("\n//! {number}. "));
    let count = (1..).take_while(|number| stated(*number)).count();
    assert_eq!(count, 18);
    for number in 1..=count {
        assert!(
            tests.contains(&format!("fn rule_{number}_")),
            "rule {number}"
        );
    }
}

#[tokio::test]
async fn rule_1_a_value_is_asked_for_again_after_the_ttl_or_an_announcement() {
    let bench = Bench::new();
    assert_eq!(text(&bench.x().await), "one");
    bench.a.put("s/x", "two");
    bench.clock.advance(TTL - Duration::from_millis(1));
    assert_eq!(text(&bench.x().await), "one");
    assert_eq!(bench.a.reads(), 1);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(text(&bench.x().await), "two");
    assert_eq!(bench.a.reads(), 2);

    let y = ["b:s/y"];
    assert_eq!(text(&bench.get(&y).await), "first");
    bench.b.put("s/y", "second");
    bench.clock.advance(1000 * TTL);
    assert_eq!(text(&bench.get(&y).await), "first");
    bench.cache.invalidate(&y[0].parse().unwrap());
    assert_eq!(text(&bench.get(&y).await), "second");
    assert_eq!(bench.b.reads(), 2);
}

#[tokio::test]
async fn rule_1_no_announcement_comes_from_who_makes_none_and_had_nothing_yet() {
    let bench = Bench::new();
    bench.a.remove("s/x");
    let both = ["a:s/x", "b:s/y"];
    assert_eq!(text(&bench.get(&both).await), "first");
    bench.a.put("s/x", "mine");
    assert_eq!(text(&bench.get(&both).await), "first");
    bench.clock.advance(TTL);
    assert_eq!(text(&bench.get(&both).await), "mine");
}

#[tokio::test]
async fn rule_2_a_thousand_readers_are_one_fetch() {
    let bench = Bench::new();
    bench.a.hold();
    let readers: Vec<_> = (0..1000).map(|_| bench.reader()).collect();
    settle().await;
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (1, 1));
    bench.a.let_go(0);
    for fetch in join_all(readers).await {
        assert_eq!(text(&fetch.unwrap()), "one");
    }
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (1, 0));
}

#[tokio::test]
async fn rule_2_who_was_told_to_wait_and_comes_late_takes_what_has_landed() {
    let bench = Bench::new();
    let late = bench.cache.get(&path(), &binding(&["a:s/x"]));
    assert!(matches!(late, Answer::Pending(_)));
    assert_eq!(text(&bench.x().await), "one");
    assert_eq!(text(&late.wait().await), "one");
    assert_eq!(bench.a.reads(), 1);
}

#[tokio::test]
async fn rule_2_one_reader_who_gives_up_does_not_take_the_answer_away() {
    let bench = Bench::new();
    bench.a.hold();
    let (first, second) = (bench.reader(), bench.reader());
    settle().await;
    first.abort();
    bench.a.let_go(0);
    assert_eq!(text(&second.await.unwrap()), "one");
    assert_eq!(bench.a.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_3_nobody_waits_longer_than_the_deadline() {
    let bench = Bench::new();
    bench.a.weather(Weather::Silent);
    let began = tokio::time::Instant::now();
    let late = bench.x().await.unwrap_err();
    assert!(matches!(late, BackendError::Timeout(_)), "{late}");
    assert_eq!(began.elapsed().as_secs(), TIMEOUT.as_secs());
    // The flight ends as well, so that the next reader asks anew.
    tokio::time::sleep(SECOND).await;
    assert_eq!(bench.cache.figures().flights, 0);
    bench.a.weather(Weather::Fine);
    assert_eq!(text(&bench.x().await), "one");
}

#[tokio::test(start_paused = true)]
async fn rule_4_an_old_value_stands_in_only_for_who_cannot_be_reached() {
    for (weather, stale) in [
        (Weather::Down, true),
        (Weather::Silent, true),
        (Weather::Panicking, true),
        (Weather::Refusing, false),
        (Weather::Garbled, false),
    ] {
        let bench = Bench::new();
        let one = number(&bench.x().await);
        bench.clock.advance(TTL);
        bench.a.weather(weather);
        let served = bench.x().await;
        assert_eq!(served.is_ok(), stale, "{weather:?}");
        if let Ok(served) = served {
            assert!(served.stale && served.generation.number == one);
        }
    }
}

#[tokio::test]
async fn rule_4_an_old_value_is_not_served_longer_than_the_config_says() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    bench.a.weather(Weather::Down);
    bench.clock.advance(TTL + STALE - Duration::from_millis(1));
    assert!(bench.x().await.unwrap().stale);
    bench.clock.advance(Duration::from_millis(1));
    assert!(matches!(bench.x().await, Err(BackendError::Unreachable(_))));

    let never = Arc::new(Binding {
        stale: Duration::ZERO,
        ..Binding::clone(&binding(&["a:s/x"]))
    });
    bench.a.weather(Weather::Fine);
    bench.x().await.unwrap();
    bench.a.weather(Weather::Down);
    bench.clock.advance(TTL);
    assert!(bench.cache.get(&path(), &never).wait().await.is_err());
    // Another `stale` makes it no other value.
    assert!(bench.x().await.unwrap().stale);
}

#[tokio::test]
async fn rule_4_after_a_no_the_old_value_is_gone() {
    for refused in [true, false] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        bench.clock.advance(TTL);
        if refused {
            bench.a.weather(Weather::Refusing);
        } else {
            bench.a.remove("s/x");
        }
        bench.x().await.unwrap_err();
        assert_eq!(bench.cache.figures().values, 0);
        bench.clock.advance(5 * SECOND);
        bench.a.weather(Weather::Down);
        assert!(matches!(bench.x().await, Err(BackendError::Unreachable(_))));
    }
}

#[tokio::test]
async fn rule_5_no_fetch_from_before_an_invalidation_answers_who_came_after_it() {
    for everything in [false, true] {
        let bench = Bench::new();
        bench.a.hold();
        let before = bench.reader();
        settle().await;
        bench.a.put("s/x", "two");
        if everything {
            bench.cache.invalidate_all();
        } else {
            bench.cache.invalidate(&"a:s/x".parse().unwrap());
        }
        let after = bench.reader();
        settle().await;
        assert_eq!(bench.a.held(), 2);
        bench.a.let_go(0);
        assert_eq!(text(&before.await.unwrap()), "one");
        settle().await;
        assert!(!after.is_finished());
        assert_eq!(bench.cache.figures().values, 0);
        bench.a.let_go(1);
        assert_eq!(text(&after.await.unwrap()), "two");
        assert_eq!(text(&bench.x().await), "two");
    }
}

#[tokio::test]
async fn rule_5_what_is_taken_away_is_wiped_and_no_fetch_from_before_brings_it_back() {
    let bench = Bench::new();
    let other: SecretPath = "s/y".parse().unwrap();
    let elsewhere = bench.cache.get(&other, &binding(&["b:s/y"])).wait().await;
    bench.x().await.unwrap();
    let is_x = |shown: &SecretPath| *shown == path();
    assert_eq!(bench.cache.figures().values, 2);
    bench.cache.forget(is_x);
    let figures = bench.cache.figures();
    assert_eq!((figures.values, figures.bytes), (1, text(&elsewhere).len()));
    bench.a.hold();
    let waiting = bench.reader();
    settle().await;
    bench.cache.forget(is_x);
    assert_eq!(bench.cache.figures().flights, 0);
    bench.a.let_go(0);
    // Who waits is told, and asks once more whether it may have it.
    assert_eq!(text(&waiting.await.unwrap()), "one");
    assert_eq!(bench.cache.figures().values, 1);
    assert!(bench.cache.has_shown(is_x));
    assert!(!bench.cache.has_shown(|shown| shown.name.as_str() == "z"));
}

#[tokio::test]
async fn rule_5_an_invalidation_drops_what_it_is_about_and_nothing_else() {
    let bench = Bench::new();
    bench.a.put("s/z", "other");
    let z = bench
        .cache
        .get(&"s/z".parse().unwrap(), &binding(&["a:s/z"]));
    z.wait().await.unwrap();
    // One that could come first now counts as much as the one that was found.
    bench.get(&["a:s/none", "a:s/x"]).await.unwrap();
    bench.cache.invalidate(&"a:s/none".parse().unwrap());
    assert_eq!(bench.cache.figures().values, 1);
    bench.cache.invalidate(&"b:s/z".parse().unwrap());
    assert_eq!(bench.cache.figures().values, 1);
    // A version or a field of a record is that record.
    bench.cache.invalidate(&"a:s/z#f@7".parse().unwrap());
    let figures = bench.cache.figures();
    assert_eq!((figures.values, figures.bytes), (0, 0));
}

#[tokio::test]
async fn rule_6_numbers_only_grow_and_stay_with_their_version() {
    let bench = Bench::new();
    let first = number(&bench.x().await);
    assert!(first > 1 << 32, "the epoch counts");
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    assert_eq!(number(&bench.x().await), first);
    bench.a.put("s/x", "two");
    bench.clock.advance(TTL);
    let second = number(&bench.x().await);
    assert!(second > first);
    // Back to the version before: shown anew.
    bench.a.put_version("s/x", "one", 1);
    bench.clock.advance(TTL);
    let third = number(&bench.x().await);
    assert!(third > second);
    // The same version from another place is another generation.
    bench.a.put_version("s/w", "one", 1);
    let fourth = number(&bench.get(&["a:s/w"]).await);
    assert!(fourth > third);
    // After a restore a version may be another value.
    bench.a.put_version("s/w", "restored", 1);
    bench.cache.invalidate_all();
    assert!(number(&bench.get(&["a:s/w"]).await) > fourth);
}

#[tokio::test]
async fn rule_6_an_overtaken_fetch_is_older_however_late_it_lands() {
    let bench = Bench::new();
    let one = number(&bench.x().await);
    bench.clock.advance(TTL);
    bench.a.put("s/x", "two");
    bench.a.hold();
    let overtaken = bench.reader();
    settle().await;
    bench.a.put("s/x", "three");
    bench.a.stop_holding();
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    let newest = bench.x().await;
    bench.a.let_go(0);
    let overtaken = overtaken.await.unwrap();
    assert_eq!(
        (text(&overtaken).as_str(), text(&newest).as_str()),
        ("two", "three")
    );
    assert!(one < number(&overtaken) && number(&overtaken) < number(&newest));
    // It leaves no trace.
    assert_eq!(number(&bench.x().await), number(&newest));
    bench.clock.advance(TTL);
    assert_eq!(number(&bench.x().await), number(&newest));
}

#[tokio::test]
async fn rule_8_only_what_is_absent_lets_the_next_be_tried() {
    let both = ["a:s/x", "b:s/y"];
    let bench = Bench::new();
    assert_eq!(text(&bench.get(&both).await), "one");
    assert_eq!(bench.b.reads(), 0);
    for weather in [Weather::Refusing, Weather::Down, Weather::Garbled] {
        let bench = Bench::new();
        bench.a.weather(weather);
        bench.get(&both).await.unwrap_err();
        assert_eq!(bench.b.reads(), 0, "{weather:?}");
    }
    bench.a.put("s/x", r#"{"user":"bo"}"#);
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    let field = bench.get(&["a:s/x#pass", "b:s/y"]).await;
    assert_eq!(text(&field), "first");
    let field = bench.get(&["a:s/x#user", "b:s/y"]).await;
    assert_eq!(text(&field), "bo");
    let found = &field.unwrap().generation.reference;
    assert_eq!(found.to_string(), "a:s/x#user");
    let nowhere = bench.get(&["a:s/none", "b:s/none"]).await.unwrap_err();
    assert_eq!(nowhere, BackendError::Absent("b:s/none".to_owned()));
    assert!(matches!(
        bench.get(&["c:x"]).await,
        Err(BackendError::Unusable(_))
    ));
}

#[tokio::test]
async fn a_flight_whose_task_dies_is_replaced() {
    let bench = Bench::new();
    bench.a.weather(Weather::Panicking);
    bench.a.hold();
    let readers = [bench.reader(), bench.reader()];
    settle().await;
    bench.a.let_go(0);
    for reader in readers {
        assert!(matches!(
            reader.await.unwrap(),
            Err(BackendError::Unreachable(_))
        ));
    }
    bench.a.stop_holding();
    bench.a.weather(Weather::Fine);
    assert_eq!(text(&bench.x().await), "one");
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (2, 0));
}

#[tokio::test]
async fn a_value_that_is_too_large_is_not_shown() {
    let bench = Bench::new();
    bench.a.put("s/x", vec![0; MAX_VALUE + 1]);
    assert!(matches!(bench.x().await, Err(BackendError::Unusable(_))));
}

#[tokio::test(start_paused = true)]
async fn lists_have_their_ttl_single_flight_deadline_and_stand_in() {
    let bench = Bench::new();
    let (a, b) = (name("a"), name("b"));
    bench.a.put("t/z", "");
    let names = async |folder: &str| bench.cache.names(&a, folder).wait().await;
    bench.a.hold();
    let readers = (0..100).map(|_| tokio::spawn(bench.cache.names(&a, "s").wait()));
    let readers: Vec<_> = readers.collect();
    settle().await;
    assert_eq!(bench.a.lists(), 1);
    bench.a.let_go(0);
    for names in join_all(readers).await {
        assert_eq!(*names.unwrap().unwrap(), [name("x")]);
    }
    bench.a.stop_holding();
    bench.a.put("s/a", "");
    assert_eq!(names("s").await.unwrap().len(), 1);
    bench.clock.advance(TTL);
    assert_eq!(*names("s").await.unwrap(), [name("a"), name("x")]);
    assert_eq!(bench.a.lists(), 2);
    let folders = bench.cache.folders(&a).wait().await.unwrap();
    assert_eq!(*folders, [name("s"), name("t")]);
    assert!(names("none").await.unwrap().is_empty());

    bench.clock.advance(TTL);
    for weather in [Weather::Down, Weather::Silent] {
        bench.a.weather(weather);
        // Also after a change: there may be other names by now, but none at all would be worse.
        bench.cache.invalidate(&"a:s/x".parse().unwrap());
        assert_eq!(names("s").await.unwrap().len(), 2, "{weather:?}");
    }
    assert!(matches!(names("t").await, Err(BackendError::Timeout(_))));
    bench.a.weather(Weather::Refusing);
    assert!(matches!(names("s").await, Err(BackendError::Refused(_))));
    bench.a.weather(Weather::Down);
    assert!(names("s").await.is_err());

    bench.b.put("s/a", "");
    assert_eq!(bench.cache.names(&b, "s").wait().await.unwrap().len(), 2);
    bench.clock.advance(1000 * TTL);
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    bench.cache.names(&b, "s").wait().await.unwrap();
    assert_eq!(bench.b.lists(), 1);
    bench.cache.invalidate(&"b:s/x".parse().unwrap());
    bench.cache.names(&b, "s").wait().await.unwrap();
    assert_eq!(bench.b.lists(), 2);
    assert!(bench.cache.names(&name("c"), "s").wait().await.is_err());
}

#[tokio::test]
async fn no_list_from_before_an_invalidation_answers_who_came_after_it() {
    let bench = Bench::new();
    bench.a.hold();
    let ask = || tokio::spawn(bench.cache.names(&name("a"), "s").wait());
    let before = ask();
    settle().await;
    bench.a.put("s/new", "");
    bench.cache.invalidate(&"a:s/new".parse().unwrap());
    let after = ask();
    settle().await;
    bench.a.let_go(1);
    assert_eq!(after.await.unwrap().unwrap().len(), 2);
    bench.a.let_go(0);
    assert_eq!(before.await.unwrap().unwrap().len(), 1);
    assert_eq!(ask().await.unwrap().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_and_comes_is_told_once_each_time() {
    let events = Events::default();
    let mut heard = events.subscribe();
    let mut bench = Bench::new();
    let cache = Arc::into_inner(bench.cache).unwrap();
    bench.cache = Arc::new(cache.with_events(events));
    for weather in [Weather::Down, Weather::Silent] {
        bench.a.weather(weather);
        // All of them ask one flight, and so do the names.
        let readers = join_all([bench.reader(), bench.reader(), bench.reader()]).await;
        assert!(readers.iter().all(|fetch| fetch.as_ref().unwrap().is_err()));
        assert!(bench.cache.names(&name("a"), "s").wait().await.is_err());
        let event = heard.next().await;
        assert!(
            matches!(&event.what, What::BackendDown { backend, .. } if *backend == name("a")),
            "{event:?}"
        );
        bench.a.weather(Weather::Fine);
        assert!(bench.x().await.is_ok());
        let backend = name("a");
        assert_eq!(heard.next().await.what, What::BackendUp { backend });
        bench.cache.invalidate_all();
    }
    assert_eq!(heard.try_next(), None);
}
