//! Rule 10.

use super::*;

impl Bench {
    async fn version(&self, references: &[&str], version: &str) -> Fetch {
        let version = Version::new(version);
        let answer = self.cache.version(&path(), &binding(references), &version);
        answer.wait().await
    }

    async fn previous(&self, references: &[&str]) -> Fetch {
        let answer = self.cache.previous(&path(), &binding(references));
        answer.wait().await
    }
}

const X: &[&str] = &["a:s/x"];

fn generation(fetch: &Fetch) -> Arc<Generation> {
    Arc::clone(&fetch.as_ref().unwrap().generation)
}

fn is_absent(fetch: &Fetch) -> bool {
    matches!(fetch, Err(BackendError::Absent(_)))
}

#[tokio::test]
async fn rule_10_the_previous_value_is_the_one_before_what_is_shown() {
    let bench = Bench::new();
    assert!(is_absent(&bench.previous(X).await));
    bench.a.put("s/x", "two");
    bench.a.put("s/x", "three");
    // What is shown is still the first: nobody said that it changed.
    assert!(is_absent(&bench.previous(X).await));
    bench.clock.advance(TTL);
    let previous = bench.previous(X).await;
    assert_eq!(text(&previous), "two");
    assert!(!previous.as_ref().unwrap().stale);
    assert_eq!(generation(&previous).version, Version::new("2"));
    assert_eq!(generation(&previous).reference, X[0].parse().unwrap());
    bench.a.remove_version("s/x", 2);
    assert_eq!(text(&bench.previous(X).await), "one");
    // A rollback is a new version.
    bench.a.put("s/x", "one");
    bench.cache.invalidate(&X[0].parse().unwrap());
    assert_eq!(text(&bench.previous(X).await), "three");
    assert!(is_absent(&bench.previous(&["a:s/x@3"]).await));
    assert!(is_absent(&bench.previous(&["a:s/none"]).await));
}

#[tokio::test]
async fn rule_10_the_previous_value_is_looked_for_where_the_current_one_is_from() {
    let bench = Bench::new();
    bench.b.put("s/y", "second");
    let both = ["a:s/none", "b:s/y"];
    assert_eq!(text(&bench.previous(&both).await), "first");
    // Now another place has the current one, and nothing before it.
    bench.a.put("s/none", "first of its own");
    bench.clock.advance(TTL);
    assert!(is_absent(&bench.previous(&both).await));
    assert_eq!(text(&bench.get(&both).await), "first of its own");
}

#[tokio::test]
async fn rule_10_a_version_is_found_by_its_name_at_the_first_place_that_has_it() {
    let bench = Bench::new();
    bench.a.put("s/x", "two");
    assert_eq!(text(&bench.version(X, "1").await), "one");
    assert_eq!(text(&bench.version(X, "2").await), "two");
    assert!(is_absent(&bench.version(X, "3").await));
    assert!(is_absent(&bench.version(X, "latest").await));
    assert!(is_absent(&bench.version(&[], "1").await));
    for (references, version, value) in [
        (["a:s/x", "b:s/y"], "1", Some("one")),
        (["b:s/y", "a:s/x"], "1", Some("first")),
        (["b:s/y", "a:s/x"], "2", Some("two")),
        (["b:s/none", "a:s/x"], "2", Some("two")),
        // Where the config names one version, no other is this secret's.
        (["a:s/x@2", "b:s/y"], "1", Some("first")),
        (["a:s/x@2", "b:s/y"], "2", Some("two")),
        (["a:s/x@2", "b:s/y@3"], "1", None),
    ] {
        let found = bench.version(&references, version).await;
        match value {
            Some(value) => assert_eq!(text(&found), value, "{references:?} @{version}"),
            None => assert!(is_absent(&found), "{references:?} @{version}"),
        }
    }
    // Only "absent" lets the next be tried.
    bench.a.weather(Weather::Down);
    let down = bench.version(&["a:s/none", "b:s/y"], "1").await;
    assert!(matches!(down, Err(BackendError::Unreachable(_))));
    let nowhere = bench.version(&["c:x"], "1").await;
    assert!(matches!(nowhere, Err(BackendError::Unusable(_))));
}

#[tokio::test]
async fn rule_10_an_earlier_value_has_its_field_and_its_limit() {
    let bench = Bench::new();
    bench.a.put("s/x", r#"{"user":"bo"}"#);
    bench.a.put("s/x", r#"{"user":"al","pass":"p"}"#);
    bench.a.put("s/x", r#"{"user":"cy"}"#);
    let user = &["a:s/x#user"];
    assert_eq!(text(&bench.previous(user).await), "al");
    assert_eq!(text(&bench.version(user, "2").await), "bo");
    assert_eq!(
        generation(&bench.version(user, "2").await).reference,
        user[0].parse().unwrap()
    );
    assert!(is_absent(&bench.version(&["a:s/x#pass"], "2").await));
    let other = bench.version(&["a:s/x#pass", "b:s/y"], "1").await;
    assert!(matches!(other, Err(BackendError::Unusable(_))), "no record");

    bench.a.put("s/x", vec![0; MAX_VALUE + 1]);
    bench.a.put("s/x", "small");
    let large = bench.version(X, "5").await;
    assert!(matches!(large, Err(BackendError::Unusable(_))));
    bench.cache.invalidate_all();
    let large = bench.previous(X).await;
    assert!(matches!(large, Err(BackendError::Unusable(_))));
}

#[tokio::test]
async fn rule_10_nothing_earlier_is_kept_and_what_is_destroyed_is_gone() {
    let bench = Bench::new();
    bench.a.put("s/x", "two");
    bench.x().await.unwrap();
    let (figures, reads) = (bench.cache.figures(), bench.a.reads());
    let held = bench.version(X, "1").await;
    bench.previous(X).await.unwrap();
    bench.version(X, "1").await.unwrap();
    assert_eq!(bench.cache.figures(), figures);
    assert_eq!(bench.a.reads(), reads + 3);
    bench.a.remove_version("s/x", 1);
    assert!(is_absent(&bench.version(X, "1").await));
    assert!(is_absent(&bench.previous(X).await));
    assert_eq!(text(&held), "one");
    // Nor does an old value stand in while the backend cannot be reached.
    bench.a.weather(Weather::Down);
    assert!(bench.version(X, "2").await.is_err());
    assert_eq!(text(&bench.x().await), "two");
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_question_for_an_earlier_value_has_the_deadline_and_survives_the_backend() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    for weather in [Weather::Silent, Weather::Panicking, Weather::Refusing] {
        bench.a.weather(weather);
        // The second time what is current has to be asked for first, and may be stale.
        for _ in 0..2 {
            for previous in [false, true] {
                let began = tokio::time::Instant::now();
                let fetch = match previous {
                    false => bench.version(X, "1").await,
                    true => bench.previous(X).await,
                };
                match fetch.unwrap_err() {
                    BackendError::Timeout(_) => assert_eq!(weather, Weather::Silent),
                    BackendError::Unreachable(_) => assert_eq!(weather, Weather::Panicking),
                    BackendError::Refused(_) => assert_eq!(weather, Weather::Refusing),
                    error @ (BackendError::Absent(_) | BackendError::Unusable(_)) => {
                        panic!("{weather:?}: {error}")
                    }
                }
                assert!(began.elapsed() <= TIMEOUT);
            }
            bench.clock.advance(TTL);
        }
    }
}

#[tokio::test]
async fn rule_10_while_somebody_has_it_an_earlier_value_is_one_generation() {
    let bench = Bench::new();
    bench.a.put("s/x", "two");
    bench.a.put("s/x", "three");
    let current = generation(&bench.x().await);
    // The current one is what is kept, under its number.
    assert!(Arc::ptr_eq(
        &generation(&bench.version(X, "3").await),
        &current
    ));
    let first = generation(&bench.version(X, "2").await);
    assert!(Arc::ptr_eq(
        &generation(&bench.version(X, "2").await),
        &first
    ));
    assert!(Arc::ptr_eq(&generation(&bench.previous(X).await), &first));
    assert_ne!(first.number, current.number);
    assert_ne!(
        generation(&bench.version(X, "1").await).number,
        first.number
    );
    // Another reference is another generation.
    let elsewhere = generation(&bench.version(&["a:s/x@2"], "2").await);
    assert_ne!(elsewhere.number, first.number);

    // What somebody had open while it was the current one is the same afterwards.
    bench.a.put("s/x", "four");
    bench.cache.invalidate(&X[0].parse().unwrap());
    bench.x().await.unwrap();
    assert!(Arc::ptr_eq(&generation(&bench.previous(X).await), &current));
    bench.a.put("s/x", "five");
    bench.clock.advance(TTL);
    let four = generation(&bench.x().await);
    assert_eq!(text(&bench.previous(X).await), "four");
    assert!(!Arc::ptr_eq(&generation(&bench.previous(X).await), &four));
}

#[tokio::test]
async fn rule_10_a_version_that_was_made_again_is_another_generation() {
    let bench = Bench::new();
    bench.a.put("s/x", "two");
    let before = generation(&bench.version(X, "1").await);
    bench.a.put_version("s/x", "made again", 1);
    bench.a.put_version("s/x", "two", 2);
    let after = generation(&bench.version(X, "1").await);
    assert_eq!(after.value.open().unwrap().expose(), b"made again");
    assert!(after.number > before.number);
    assert!(Arc::ptr_eq(
        &generation(&bench.version(X, "1").await),
        &after
    ));
    // The current one, too, while nobody said so.
    let shown = generation(&bench.x().await);
    bench.a.put_version("s/x", "also", 2);
    let other = generation(&bench.version(X, "2").await);
    assert!(other.number > shown.number);
    assert_eq!(number(&bench.x().await), shown.number);
    // A store that was replaced is another one altogether.
    bench.cache.invalidate_all();
    let replaced = generation(&bench.version(X, "2").await);
    assert!(replaced.number > other.number);
}

#[tokio::test]
async fn rule_10_what_nobody_has_any_more_leaves_nothing_behind() {
    let bench = Bench::new();
    for round in 0..2000 {
        bench.a.put("s/x", format!("value {round}"));
    }
    let keep = generation(&bench.version(X, "7").await);
    for version in 1..2000 {
        bench.version(X, &version.to_string()).await.unwrap();
    }
    assert!(bench.cache.state().held.len() <= 64);
    assert!(Arc::ptr_eq(
        &generation(&bench.version(X, "7").await),
        &keep
    ));
}
