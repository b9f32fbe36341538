//! What is done with hints.

use super::*;

const AT_ONCE: Duration = Duration::from_millis(100);

impl Bench {
    fn hint(&self, path: &str, version: Option<&str>) {
        self.signals.hints().tell(Hint {
            backend: name(),
            path: path.to_owned(),
            version: version.map(Version::new),
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_about_what_is_in_use_is_followed_at_once_and_others_are_not() {
    let bench = Bench::new();
    bench.uses("now", Need::Now);
    bench.uses("cached", Need::None);
    bench.misses("first");
    bench.pass(2 * EVERY).await;
    for path in ["now", "cached", "first"] {
        bench.backend.put(path, "new");
        let version = bench.backend.newest(path).unwrap().to_string();
        bench.hint(path, Some(&version));
        bench.pass(AT_ONCE).await;
        assert_eq!(bench.changed(), [path]);
        // We have it now.
        bench.hint(path, Some(&version));
        bench.hint("elsewhere", Some("7"));
        bench.hint(&format!("{path}/below"), None);
        bench.pass(AT_ONCE).await;
        assert_eq!(bench.changed(), [""; 0]);
    }
    assert_eq!(bench.backend.reads(), 0);
    assert!(bench.report().heard.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_hint_has_the_record_asked_if_it_tells() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.pass(2 * EVERY).await;
    bench.hint("x", None);
    assert_eq!(bench.polled_in(AT_ONCE).await, ["x"]);
    assert_eq!(bench.changed(), [""; 0]);
    // A wrong one takes nothing away.
    bench.hint("x", Some("777"));
    assert_eq!(bench.polled_in(AT_ONCE).await, ["x"]);
    assert_eq!(bench.changed(), [""; 0]);
    // One that comes too early is remembered.
    bench.backend.put("x", "two");
    bench.pass(SECOND).await;
    assert_eq!(bench.changed(), ["x"]);
    bench.backend.remove("x");
    bench.hint("x", None);
    bench.pass(AT_ONCE).await;
    assert_eq!(bench.changed(), ["x"]);

    for (word, changed) in [(Word::Refused, "x"), (Word::Nothing, "")] {
        for known in [true, false] {
            let bench = Bench::polled_every(if known { EVERY } else { Duration::ZERO });
            bench.uses("x", Need::Now);
            bench.backend.word(word);
            bench.pass(2 * EVERY).await;
            bench.hint("x", None);
            let asked = bench.polled_in(AT_ONCE).await.len();
            assert_eq!(asked, usize::from(!known));
            assert_eq!(bench.changed().concat(), changed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_hint_hides_another_that_comes_with_it() {
    // A version that we have, late or once more, and the same number again after a deletion.
    for told in [
        [Some("2"), Some("1")],
        [Some("1"), Some("2")],
        [None, Some("1")],
    ] {
        let bench = Bench::new();
        bench.uses("x", Need::Now);
        bench.pass(2 * EVERY).await;
        assert_eq!(bench.backend.newest("x"), Some(Version::new("1")));
        bench.backend.put("x", "two");
        for version in told {
            bench.hint("x", version);
        }
        bench.pass(AT_ONCE).await;
        assert_eq!(bench.changed(), ["x"], "{told:?}");
    }
    // Of too many different ones some are missed, and then all is asked.
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.uses("y", Need::Now);
    bench.pass(2 * EVERY).await;
    bench.backend.put("y", "two");
    for version in 10..20 {
        bench.hint("x", Some(&version.to_string()));
    }
    bench.pass(AT_ONCE).await;
    assert_eq!(bench.changed(), ["y"]);
}

#[tokio::test(start_paused = true)]
async fn a_hint_takes_nothing_away_while_the_backend_is_away() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.pass(2 * EVERY).await;
    bench.backend.weather(Weather::Down);
    // Nobody has noticed yet.
    for version in 10..20 {
        bench.hint("x", Some(&version.to_string()));
        bench.pass(SECOND).await;
    }
    assert_eq!(bench.changed(), [""; 0]);
    bench.backend.put("x", "two");
    bench.backend.weather(Weather::Fine);
    bench.pass(2 * SECOND).await;
    assert_eq!(bench.changed(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_a_change_is_followed_is_followed_once_more() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.pass(2 * EVERY).await;
    *bench.house.slow.lock().unwrap() = 2 * SECOND;
    for version in 2..20 {
        bench.backend.put("x", "new");
        bench.hint("x", Some(&version.to_string()));
        bench.pass(AT_ONCE).await;
    }
    assert_eq!(bench.changed(), ["x"]);
    bench.pass(10 * SECOND).await;
    assert_eq!(bench.changed(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_in_one_round_and_holds_nothing_up() {
    let bench = Bench::new();
    for index in 0..50 {
        bench.uses(&format!("x{index}"), Need::Now);
    }
    bench.pass(2 * EVERY).await;
    bench.backend.polled();
    for index in 0..100_000 {
        bench.hint(&format!("nobody/{index}"), Some("1"));
    }
    bench.pass(SECOND).await;
    let polled = bench.backend.polled().len();
    assert!((50..=56).contains(&polled), "{polled}");
    assert_eq!(bench.changed(), [""; 0]);
    // One that does not end costs one round now and then.
    for _ in 0..300 {
        for index in 0..2000 {
            bench.hint(&format!("nobody/{index}"), Some("1"));
        }
        bench.pass(AT_ONCE).await;
    }
    let polled = bench.backend.polled().len();
    assert!((400..=700).contains(&polled), "{polled}");
    bench.pass(SECOND).await;
    bench.backend.put("x1", "two");
    bench.hint("x1", Some("2"));
    bench.pass(AT_ONCE).await;
    assert_eq!(bench.changed(), ["x1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_good_by_one_round_at_once() {
    let bench = Bench::new();
    for index in 0..50 {
        bench.uses(&format!("x{index}"), Need::Now);
    }
    bench.pass(2 * EVERY).await;
    bench.backend.put("x1", "two");
    let before = bench.backend.polled();
    assert!(!before.is_empty());
    // As the backend says it that has connected again.
    for _ in 0..10 {
        bench.backend.hints().resync(&name());
    }
    let polled = bench.polled_in(SECOND).await;
    assert!((50..=56).contains(&polled.len()), "{}", polled.len());
    assert_eq!(bench.changed(), ["x1"]);
}
