//! Rules 14 to 16: a backend's peace.

use super::*;

#[tokio::test]
async fn rule_14_a_backend_that_fails_again_and_again_is_left_alone_for_a_while() {
    let bench = Bench::new();
    bench.a.weather(Weather::Down);
    for _ in 0..5 {
        bench.x().await.unwrap_err();
    }
    assert_eq!(bench.a.reads(), 5);
    let alone = |error: BackendError| {
        let text = error.to_string();
        assert!(matches!(error, BackendError::Unreachable(_)), "{text}");
        assert!(text.contains("is not asked again for"), "{text}");
    };
    alone(bench.x().await.unwrap_err());
    alone(bench.refresh().wait().await.unwrap_err());
    let version = Version::new("1");
    let earlier = bench.cache.version(&path(), &binding(&["a:s/x"]), &version);
    alone(earlier.wait().await.unwrap_err());
    alone(bench.cache.names(&name("a"), "s").wait().await.unwrap_err());
    assert_eq!((bench.a.reads(), bench.a.lists()), (5, 0));
    // The other one has nothing to do with it.
    assert_eq!(text(&bench.get(&["b:s/y"]).await), "first");
    bench.clock.advance(SECOND);
    bench.x().await.unwrap_err();
    assert_eq!(bench.a.reads(), 6);
    bench.a.weather(Weather::Fine);
    bench.clock.advance(SECOND);
    alone(bench.x().await.unwrap_err());
    bench.clock.advance(SECOND);
    assert_eq!(text(&bench.x().await), "one");
    assert_eq!(text(&bench.refresh().wait().await), "one");
}

#[tokio::test(start_paused = true)]
async fn rule_14_in_an_outage_nobody_waits_who_may_have_an_old_value() {
    let bench = Bench::new();
    let one = number(&bench.x().await);
    bench.clock.advance(TTL);
    bench.a.weather(Weather::Silent);
    let began = tokio::time::Instant::now();
    // Who comes first cannot know.
    assert!(bench.x().await.unwrap().stale);
    assert_eq!(began.elapsed(), TIMEOUT);
    let mut reads = bench.a.reads();
    for round in 0..20 {
        let began = tokio::time::Instant::now();
        for served in join_all((0..100).map(|_| bench.x())).await {
            let served = served.unwrap();
            assert!(served.stale && served.generation.number == one);
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "{round}");
        // All of them are one question at most.
        assert!(bench.a.reads() <= reads + 1, "{round}");
        // Who comes while it is under way, or while the server is left alone, is answered on the spot.
        assert!(bench.x().await.unwrap().stale);
        let answer = bench.cache.get(&path(), &binding(&["a:s/x"]));
        assert!(
            matches!(answer, Answer::Ready(Ok(served)) if served.stale),
            "{round}"
        );
        reads = bench.a.reads();
        tokio::time::sleep(TIMEOUT + SECOND).await;
        bench.clock.advance(SECOND);
    }
    // When it is back the one who asked is not waited for, and whoever watches is told.
    bench.a.put("s/x", "two");
    bench.a.weather(Weather::Fine);
    bench.clock.advance(31 * SECOND);
    assert_eq!(text(&bench.x().await), "one");
    assert_eq!(bench.cache.overtaken().await, [path()]);
    assert_eq!(text(&bench.x().await), "two");
}

#[tokio::test]
async fn rule_14_no_longer_than_rule_4_allows_nor_after_a_no() {
    let bench = Bench::new();
    bench.x().await.unwrap();
    bench.clock.advance(TTL);
    bench.a.weather(Weather::Down);
    for _ in 0..7 {
        assert!(bench.x().await.unwrap().stale);
        settle().await;
    }
    assert_eq!(bench.a.reads(), 6);
    bench.clock.advance(STALE);
    bench.x().await.unwrap_err();

    for refused in [true, false] {
        let bench = Bench::new();
        bench.x().await.unwrap();
        bench.clock.advance(TTL);
        bench.a.weather(Weather::Down);
        assert!(bench.x().await.unwrap().stale);
        match refused {
            true => bench.a.weather(Weather::Refusing),
            false => {
                bench.a.weather(Weather::Fine);
                bench.a.remove("s/x");
            }
        }
        // This is the question by which it is found out.
        assert!(bench.x().await.unwrap().stale);
        settle().await;
        bench.a.weather(Weather::Down);
        bench.x().await.unwrap_err();
        let told = bench.cache.take_overtaken();
        assert_eq!(told.contains(&path()), !refused);
    }
}

#[tokio::test]
async fn rule_15_ttls_vary_by_a_tenth_and_always_the_same() {
    let ends = async |seed| {
        let mut bench = Bench::new();
        let cache = Arc::into_inner(bench.cache).unwrap();
        bench.cache = Arc::new(cache.with_jitter(seed));
        let paths: Vec<SecretPath> = (0..100)
            .map(|index| format!("s/v{index}").parse().unwrap())
            .collect();
        let fresh = |path: &SecretPath| {
            let binding = binding(&[&format!("a:{path}")]);
            bench.cache.fresh(path, &binding).is_some()
        };
        for path in &paths {
            bench.a.put(&path.to_string(), "v");
            let binding = binding(&[&format!("a:{path}")]);
            bench.cache.get(path, &binding).wait().await.unwrap();
        }
        let mut ends = vec![0; paths.len()];
        for second in 1..=70 {
            bench.clock.advance(SECOND);
            for (path, end) in paths.iter().zip(&mut ends) {
                if *end == 0 && !fresh(path) {
                    *end = second;
                }
            }
        }
        ends
    };
    let one = ends(1).await;
    assert!(one.iter().all(|end| (54..=66).contains(end)), "{one:?}");
    let mut moments = one.clone();
    moments.sort_unstable();
    moments.dedup();
    assert!(moments.len() >= 10, "{moments:?}");
    assert_eq!(one, ends(1).await);
    assert_ne!(one, ends(2).await);
}

#[tokio::test(start_paused = true)]
async fn rule_16_no_backend_is_asked_more_at_the_same_time() {
    let bench = Bench::new();
    let count = SLOTS + 10;
    bench.a.hold();
    let readers: Vec<_> = (0..count)
        .map(|index| {
            let place = format!("s/v{index}");
            bench.a.put(&place, "v");
            let binding = binding(&[&format!("a:{place}")]);
            tokio::spawn(bench.cache.get(&place.parse().unwrap(), &binding).wait())
        })
        .collect();
    settle().await;
    assert_eq!(bench.a.reads(), SLOTS);
    // Another backend has its own.
    assert_eq!(text(&bench.get(&["b:s/y"]).await), "first");
    bench.a.let_go(0);
    settle().await;
    assert_eq!(bench.a.reads(), SLOTS + 1);
    // Who waits for his turn waits no longer than for an answer.
    let ended = join_all(readers).await;
    let answered = ended.iter().filter(|fetch| fetch.as_ref().unwrap().is_ok());
    assert_eq!(answered.count(), 1);
    assert!(bench.a.reads() <= count);
}
