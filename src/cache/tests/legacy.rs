//! Rules 17 and 18.

use super::super::legacy::{Gap, LeftLease, LeftList, LeftRecord, Legacy};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// The same, written down and read again.
fn written(legacy: Legacy) -> Legacy {
    let Legacy {
        servers,
        records,
        leases,
        lists,
    } = legacy;
    let (notes, values): (Vec<_>, Vec<_>) = records.into_iter().unzip();
    let text = serde_json::to_string(&(notes, leases, lists)).unwrap();
    let (notes, leases, lists): (Vec<LeftRecord>, Vec<LeftLease>, Vec<LeftList>) =
        serde_json::from_str(&text).unwrap();
    Legacy {
        servers,
        records: notes.into_iter().zip(values).collect(),
        leases,
        lists,
    }
}

impl Bench {
    /// The cache of a server that comes after this one.
    fn successor(self, gap: Gap) -> Self {
        let legacy = written(self.cache.legacy(gap));
        self.with(legacy, gap)
    }

    /// A cache that inherits that.
    fn with(self, legacy: Legacy, gap: Gap) -> Self {
        let backends = self.cache.backends().clone();
        let cache = Cache::new(
            backends,
            self.cache.times(),
            2,
            Arc::clone(&self.cache.memory),
            self.clock.clone(),
        );
        cache.inherit(legacy, gap);
        Self {
            cache: Arc::new(cache),
            ..self
        }
    }
}

#[tokio::test]
async fn rule_17_a_server_started_again_goes_on_where_the_one_before_it_ended() {
    let bench = Bench::new();
    bench.a.put("s/r", r#"{"user":"u","pass":"p"}"#);
    let first = bench.x().await;
    let user = bench.cache.get(&path(), &binding(&["a:s/r#user"]));
    user.wait().await.unwrap();
    bench.x().await.unwrap();
    bench.get(&["b:s/y"]).await.unwrap();
    bench.x().await.unwrap();
    let reads = (bench.a.reads(), bench.b.reads());
    bench.clock.advance(TTL / 2);
    let bench = bench.successor(Gap::Moment);
    bench.clock.advance(TTL / 2 - SECOND);
    let again = bench.x().await;
    assert_eq!(text(&again), "one");
    assert!(number(&again) > number(&first));
    assert_eq!(bench.a.reads(), reads.0, "nothing was asked for again");
    bench.clock.advance(SECOND);
    bench.a.put("s/x", "two");
    assert_eq!(text(&bench.x().await), "two", "its TTL was over");
    // What announces its changes may have changed meanwhile.
    assert_eq!(text(&bench.get(&["b:s/y"]).await), "first");
    assert_eq!(bench.b.reads(), reads.1 + 1);
}

#[tokio::test]
async fn rule_17_what_it_had_stands_in_for_a_backend_that_is_away() {
    for gap in [Gap::Moment, Gap::Unknown] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        bench.clock.advance(TTL);
        bench.a.weather(Weather::Down);
        let bench = bench.successor(gap);
        let served = bench.x().await.unwrap();
        assert!(served.stale);
        assert_eq!(served.generation.value.open().unwrap().expose(), b"one");
        bench.clock.advance(STALE);
        let late = bench.x().await.unwrap_err();
        assert!(matches!(late, BackendError::Unreachable(_)), "{late}");
    }
}

#[tokio::test]
async fn rule_17_it_is_shown_to_nobody_else_and_from_nowhere_else() {
    let bench = Bench::new();
    bench.a.put("s/z", "other");
    bench.x().await.unwrap();
    bench.clock.advance(TTL);
    let bench = bench.successor(Gap::Moment);
    bench.a.weather(Weather::Down);
    let other: SecretPath = "s/other".parse().unwrap();
    let unknown = bench.cache.get(&other, &binding(&["a:s/none", "a:s/x"]));
    assert!(
        unknown.wait().await.is_err(),
        "what is higher up is not known"
    );
    assert!(bench.get(&["a:s/z"]).await.is_err());
    assert!(bench.x().await.is_err(), "it was bound elsewhere meanwhile");
}

#[tokio::test]
async fn rule_17_what_another_server_gave_is_none_of_ours() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    let mut legacy = bench.cache.legacy(Gap::Moment);
    let server = legacy.servers.get_mut("a").unwrap();
    server.push_str("elsewhere");
    let bench = bench.with(legacy, Gap::Moment);
    assert!(bench.cache.legacy(Gap::Moment).records.is_empty());
}

#[tokio::test]
async fn rule_17_nothing_of_it_outlives_a_change_a_revocation_or_a_no() {
    type Loss = fn(&Bench);
    let losses: [Loss; 3] = [
        |bench| bench.cache.invalidate(&"a:s/x".parse().unwrap()),
        |bench| bench.cache.forget(|secret| *secret == path()),
        |bench| bench.cache.invalidate_all(),
    ];
    for lose in losses {
        let bench = Bench::new();
        bench.x().await.unwrap();
        let bench = bench.successor(Gap::Moment);
        assert_eq!(bench.cache.legacy(Gap::Unknown).records.len(), 1);
        let before = *bench.cache.revision().borrow();
        lose(&bench);
        assert!(bench.cache.revision().borrow().gone > before.gone);
        assert!(bench.cache.legacy(Gap::Unknown).records.is_empty());
        bench.a.weather(Weather::Down);
        assert!(bench.x().await.is_err());
    }
    for weather in [Weather::Refusing, Weather::Fine] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        bench.clock.advance(TTL);
        let bench = bench.successor(Gap::Unknown);
        bench.a.remove("s/x");
        bench.a.weather(weather);
        assert!(bench.x().await.is_err());
        assert!(bench.cache.legacy(Gap::Unknown).records.is_empty());
        bench.a.weather(Weather::Down);
        assert!(bench.x().await.is_err());
    }
}

#[tokio::test]
async fn rule_17_a_revocation_leaves_the_others_theirs() {
    let bench = Bench::new();
    bench.a.put("s/z", "other");
    let other: SecretPath = "s/other".parse().unwrap();
    let get = |bench: &Bench| bench.cache.get(&other, &binding(&["a:s/z"]));
    bench.x().await.unwrap();
    get(&bench).wait().await.unwrap();
    bench.clock.advance(TTL);
    let bench = bench.successor(Gap::Unknown);
    bench.cache.forget(|secret| *secret == path());
    bench.a.weather(Weather::Down);
    assert_eq!(text(&get(&bench).wait().await), "other");
}

#[tokio::test]
async fn rule_17_what_is_higher_up_by_now_is_asked_for() {
    let bench = Bench::new();
    let both = ["a:s/new", "a:s/x"];
    assert_eq!(text(&bench.get(&both).await), "one");
    bench.a.put("s/new", "two");
    let bench = bench.successor(Gap::Moment);
    assert_eq!(text(&bench.get(&both).await), "two", "its TTL is not over");

    let bench = Bench::new();
    bench.get(&both).await.unwrap();
    let bench = bench.successor(Gap::Moment);
    bench.a.weather(Weather::Down);
    assert!(bench.get(&both).await.unwrap().stale, "it stands in");
}

/// Two secrets that show one record were shown it before the server died.
async fn two_of_one_record(bench: Bench) -> (Bench, SecretPath) {
    let other: SecretPath = "s/other".parse().unwrap();
    bench.x().await.unwrap();
    let shown = bench.cache.get(&other, &binding(&["a:s/x"]));
    shown.wait().await.unwrap();
    bench.clock.advance(TTL);
    (bench.successor(Gap::Moment), other)
}

#[tokio::test]
async fn rule_17_a_no_to_one_secret_is_one_to_all_that_inherited_the_record() {
    for refresh in [false, true] {
        let (bench, other) = two_of_one_record(Bench::new()).await;
        bench.a.remove("s/x");
        let before = *bench.cache.revision().borrow();
        if refresh {
            let asked = bench.cache.refresh(&path(), &binding(&["a:s/x"]));
            assert!(asked.wait().await.is_err());
        } else {
            assert!(bench.x().await.is_err());
        }
        assert!(bench.cache.revision().borrow().gone > before.gone);
        let left = bench.cache.legacy(Gap::Unknown).records;
        assert!(left.is_empty(), "{left:?}");
        let bench = bench.successor(Gap::Unknown);
        bench.a.weather(Weather::Down);
        let shown = bench.cache.get(&other, &binding(&["a:s/x"]));
        assert!(shown.wait().await.is_err());
    }
}

#[tokio::test]
async fn rule_17_what_one_of_two_loses_the_other_keeps() {
    let (bench, other) = two_of_one_record(Bench::new()).await;
    bench.x().await.unwrap();
    bench.cache.forget(|secret| *secret == path());
    bench.a.weather(Weather::Down);
    bench.clock.advance(TTL);
    let shown = bench.cache.get(&other, &binding(&["a:s/x"]));
    assert_eq!(text(&shown.wait().await), "one");
}

#[tokio::test]
async fn rule_17_leases_go_on_and_those_to_be_revoked_still_are() {
    let bench = Bench::new();
    bench.a.lease("db/creds", HOUR.as_secs(), true);
    bench.a.lease("db/other", HOUR.as_secs(), true);
    let (user, other) = (binding(&["a:db/creds#user"]), binding(&["a:db/other#user"]));
    let gone: SecretPath = "s/gone".parse().unwrap();
    let one = bench.cache.get(&path(), &user).wait().await;
    bench.cache.get(&gone, &other).wait().await.unwrap();
    let reads = bench.a.reads();
    bench.a.weather(Weather::Down);
    bench.cache.forget(|secret| *secret == gone);
    bench.cache.tend_once().await;
    bench.a.weather(Weather::Fine);
    bench.clock.advance(HOUR / 2);

    let bench = bench.successor(Gap::Moment);
    assert_eq!(bench.cache.figures().leases, 1);
    let again = bench.cache.get(&path(), &user).wait().await;
    assert_eq!(text(&again), text(&one), "no other was made");
    bench.clock.advance(HOUR / 4);
    bench.cache.tend_once().await;
    assert_eq!((bench.a.reads(), bench.a.renewals()), (reads, 1));
    assert_eq!(bench.a.revoked().len(), 1);
    // For long it is not worth keeping: it ends with the daemon.
    assert!(bench.cache.legacy(Gap::Unknown).records.is_empty());
}

#[tokio::test]
async fn rule_17_to_set_the_clock_makes_nothing_older_or_younger() {
    let years = 100_000 * HOUR;
    for by in [
        jiff::SignedDuration::try_from(years).unwrap(),
        -jiff::SignedDuration::try_from(years).unwrap(),
    ] {
        let bench = Bench::new();
        bench.a.lease("db/creds", HOUR.as_secs(), true);
        let user = binding(&["a:db/creds#user"]);
        let leased: SecretPath = "s/leased".parse().unwrap();
        bench.cache.get(&leased, &user).wait().await.unwrap();
        bench.x().await.unwrap();
        let reads = bench.a.reads();
        let legacy = written(bench.cache.legacy(Gap::Moment));
        bench.clock.advance(TTL / 2);
        bench.clock.set(bench.clock.timestamp() + by);
        let bench = bench.with(legacy, Gap::Moment);
        assert_eq!(bench.cache.figures().leases, 1);
        bench.x().await.unwrap();
        assert_eq!(bench.a.reads(), reads, "its TTL is not over");
        bench.clock.advance(TTL - TTL / 2);
        bench.x().await.unwrap();
        assert_eq!(bench.a.reads(), reads + 1, "it is");
    }
}

#[tokio::test]
async fn rule_17_lists_stand_in_too() {
    let bench = Bench::new();
    let names = |bench: &Bench| bench.cache.names(&name("a"), "s");
    let before = names(&bench).wait().await.unwrap();
    bench.a.weather(Weather::Down);
    let bench = bench.successor(Gap::Unknown);
    assert_eq!(names(&bench).wait().await.unwrap(), before);
    bench.a.weather(Weather::Fine);
    bench.a.put("s/new", "1");
    assert_eq!(names(&bench).wait().await.unwrap().len(), before.len() + 1);
}

#[tokio::test]
async fn rule_18_after_a_gap_of_unknown_length_it_is_asked_first() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    bench.a.put("s/x", "two");
    let bench = bench.successor(Gap::Unknown);
    assert_eq!(text(&bench.x().await), "two", "though its TTL is not over");
}

#[tokio::test]
async fn rule_18_it_is_asked_first_by_the_server_after_the_next_too() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    bench.a.put("s/x", "two");
    let bench = bench.successor(Gap::Unknown).successor(Gap::Moment);
    assert_eq!(text(&bench.x().await), "two", "though its TTL is not over");
}

#[tokio::test]
async fn rule_18_what_is_never_shown_stale_is_not_left() {
    let bench = Bench::new();
    let never = Arc::new(Binding {
        references: vec!["a:s/x".parse().unwrap()],
        stale: Duration::ZERO,
    });
    bench.cache.get(&path(), &never).wait().await.unwrap();
    assert!(bench.cache.legacy(Gap::Unknown).records.is_empty());
    assert_eq!(bench.cache.legacy(Gap::Moment).records.len(), 1);
}

#[tokio::test]
async fn rule_18_a_clock_that_was_set_back_makes_nothing_younger_than_now() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    let mut legacy = bench.cache.legacy(Gap::Unknown);
    for (left, _) in &mut legacy.records {
        left.fetched = bench.clock.timestamp() + 1000 * HOUR;
    }
    let bench = bench.with(legacy, Gap::Unknown);
    bench.a.weather(Weather::Down);
    bench.clock.advance(STALE - SECOND);
    assert!(bench.x().await.unwrap().stale);
    bench.clock.advance(SECOND);
    assert!(bench.x().await.is_err());
}
