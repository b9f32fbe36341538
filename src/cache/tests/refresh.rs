//! Rule 9.

use super::*;

#[tokio::test]
async fn rule_9_a_refresh_asks_now_and_what_it_brings_is_kept() {
    let bench = Bench::new();
    let one = number(&bench.x().await);
    // The same version is the same generation, and young again.
    bench.clock.advance(TTL - SECOND);
    assert_eq!(number(&bench.refresh().wait().await), one);
    bench.clock.advance(SECOND);
    bench.x().await.unwrap();
    assert_eq!(bench.a.reads(), 2);

    bench.a.put("s/x", "two");
    let refreshed = bench.refresh().wait().await;
    assert_eq!(
        (text(&refreshed).as_str(), number(&refreshed) > one),
        ("two", true)
    );
    assert!(!refreshed.as_ref().unwrap().stale);
    assert_eq!(number(&bench.x().await), number(&refreshed));
    assert_eq!(bench.a.reads(), 3);

    // Of a backend that announces its changes, too.
    bench.get(&["b:s/y"]).await.unwrap();
    bench.b.put("s/y", "second");
    let refreshed = bench.cache.refresh(&path(), &binding(&["b:s/y"]));
    assert_eq!(text(&refreshed.wait().await), "second");
    assert_eq!(text(&bench.get(&["b:s/y"]).await), "second");
    assert_eq!(bench.b.reads(), 2);
}

#[tokio::test]
async fn rule_9_a_refresh_joins_no_flight_that_began_before_it() {
    let bench = Bench::new();
    bench.a.hold();
    let older = bench.reader();
    settle().await;
    bench.a.put("s/x", "two");
    let refresh = bench.refresher();
    settle().await;
    // Who comes now joins the newer one.
    let later = bench.reader();
    settle().await;
    assert_eq!((bench.a.held(), bench.cache.figures().flights), (2, 2));
    bench.a.let_go(1);
    let refreshed = refresh.await.unwrap();
    assert_eq!((text(&refreshed).as_str(), bench.a.reads()), ("two", 2));
    assert_eq!(number(&later.await.unwrap()), number(&refreshed));

    // The older one lands, and does not put its value in the place of the newer.
    assert!(!older.is_finished());
    bench.a.stop_holding();
    bench.a.let_go(0);
    assert_eq!(number(&older.await.unwrap()), number(&refreshed));
    assert_eq!(number(&bench.x().await), number(&refreshed));
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (3, 0));
}

#[tokio::test]
async fn rule_9_of_refreshes_that_cross_none_puts_an_older_value_in_the_place_of_a_newer() {
    // In whatever order they land, and whichever saw the newer value.
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        bench.a.hold();
        let mut refreshers = Vec::new();
        for text in ["two", "three", "four"] {
            bench.a.put("s/x", text);
            refreshers.push(Some(bench.refresher()));
            settle().await;
        }
        assert_eq!((bench.a.held(), bench.cache.figures().flights), (3, 3));
        bench.a.stop_holding();
        let mut last = 0;
        for index in order {
            bench.a.let_go(index);
            let fetch = refreshers[index].take().unwrap().await.unwrap();
            assert!(number(&fetch) >= last, "{order:?}");
            last = number(&fetch);
            let shown = bench.x().await;
            assert_eq!(number(&shown), last, "{order:?}");
        }
        assert_eq!(text(&bench.x().await), "four", "{order:?}");
        assert_eq!(bench.cache.figures().flights, 0);
    }
}

#[tokio::test]
async fn rule_9_refreshes_that_bring_the_same_are_one_generation() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    bench.a.put("s/x", "two");
    bench.a.hold();
    let mut refreshers = Vec::new();
    for _ in 0..5 {
        refreshers.push(bench.refresher());
        settle().await;
    }
    // Those that begin at once are one question: no fetch of theirs began before any of them.
    for _ in 0..5 {
        refreshers.push(bench.refresher());
    }
    settle().await;
    assert_eq!(bench.a.held(), 6);
    for index in (0..6).rev() {
        bench.a.let_go(index);
        settle().await;
    }
    let numbers: Vec<u64> = join_all(refreshers)
        .await
        .iter()
        .map(|fetch| number(fetch.as_ref().unwrap()))
        .collect();
    assert!(numbers.iter().all(|number| *number == numbers[0]));
    assert_eq!(bench.a.reads(), 7, "and none asked twice");
}

#[tokio::test]
async fn rule_9_a_value_from_before_an_absence_does_not_come_back() {
    let bench = Bench::new();
    bench.a.hold();
    let older = bench.reader();
    settle().await;
    bench.a.remove("s/x");
    let refresh = bench.refresher();
    settle().await;
    bench.a.stop_holding();
    bench.a.let_go(1);
    let absent = refresh.await.unwrap().unwrap_err();
    assert!(matches!(absent, BackendError::Absent(_)));
    bench.a.let_go(0);
    let absent = older.await.unwrap().unwrap_err();
    assert!(matches!(absent, BackendError::Absent(_)));
    assert_eq!(bench.cache.figures().values, 0);
}

#[tokio::test(start_paused = true)]
async fn rule_9_no_old_value_stands_in_for_a_refresh_and_others_keep_what_they_have() {
    for weather in [
        Weather::Down,
        Weather::Silent,
        Weather::Panicking,
        Weather::Garbled,
    ] {
        let bench = Bench::new();
        let one = number(&bench.x().await);
        bench.a.weather(weather);
        let began = tokio::time::Instant::now();
        let error = bench.refresh().wait().await.unwrap_err();
        match error {
            BackendError::Timeout(_) => {
                assert_eq!(weather, Weather::Silent);
                assert_eq!(began.elapsed().as_secs(), TIMEOUT.as_secs());
            }
            BackendError::Unusable(_) => assert_eq!(weather, Weather::Garbled),
            BackendError::Unreachable(_) => {}
            BackendError::Absent(_) | BackendError::Refused(_) => panic!("{weather:?}: {error}"),
        }
        let served = bench.x().await.unwrap();
        assert!(served.generation.number == one && !served.stale);
        bench.clock.advance(TTL);
        let served = bench.x().await;
        assert_eq!(served.is_ok(), weather != Weather::Garbled, "{weather:?}");
        if let Ok(served) = served {
            assert!(served.generation.number == one && served.stale);
        }
        tokio::time::sleep(TIMEOUT + SECOND).await;
        bench.a.weather(Weather::Fine);
        bench.x().await.unwrap();
        settle().await;
        assert_eq!(bench.cache.figures().flights, 0, "{weather:?}");
    }
}

#[tokio::test]
async fn rule_9_after_a_no_the_value_is_gone_for_all() {
    for refused in [true, false] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        if refused {
            bench.a.weather(Weather::Refusing);
        } else {
            bench.a.remove("s/x");
        }
        bench.refresh().wait().await.unwrap_err();
        assert_eq!(bench.cache.figures().values, 0);
        bench.x().await.unwrap_err();
    }
}

#[tokio::test]
async fn rule_9_an_invalidation_is_final_for_a_refresh_too() {
    let bench = Bench::new();
    bench.a.hold();
    let refresh = bench.refresher();
    settle().await;
    bench.a.put("s/x", "two");
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    bench.a.let_go(0);
    bench.a.stop_holding();
    assert_eq!(text(&refresh.await.unwrap()), "one");
    assert_eq!(text(&bench.x().await), "two");
}
