//! Rule 12.

use super::*;

const HOUR: u64 = 3600;
const MINUTE: Duration = Duration::from_secs(60);
const USER: &str = "a:db/creds#user";
const PASS: &str = "a:db/creds#pass";

impl Bench {
    /// A backend that makes users who live for an hour.
    fn lessor(renewable: bool) -> Self {
        let bench = Self::new();
        bench.a.lease("db/creds", HOUR, renewable);
        bench
    }

    async fn leased_user(&self) -> Fetch {
        let user = self.cache.get(&at("user"), &binding(&[USER]));
        user.wait().await
    }

    async fn leased_pass(&self) -> Fetch {
        let pass = self.cache.get(&at("pass"), &binding(&[PASS]));
        pass.wait().await
    }

    async fn later(&self, by: Duration) {
        self.clock.advance(by);
        self.cache.tend_once().await;
    }
}

fn at(name: &str) -> SecretPath {
    format!("s/{name}").parse().unwrap()
}

#[tokio::test]
async fn rule_12_no_poll_and_no_ttl_makes_another_value() {
    let bench = Bench::lessor(false);
    let one = bench.leased_user().await;
    assert_eq!(text(&one), "u1");
    for minute in 1..51 {
        bench.later(MINUTE).await;
        assert_eq!(text(&bench.leased_user().await), "u1", "{minute}");
        assert_eq!(text(&bench.leased_pass().await), "p1", "{minute}");
    }
    assert_eq!((bench.a.reads(), bench.a.renewals()), (1, 0));
    // Without a field it is the same lease.
    let whole = bench.get(&["a:db/creds"]).await;
    assert_eq!(text(&whole), r#"{"user":"u1","pass":"p1"}"#);
    assert_eq!(bench.a.reads(), 1);
}

#[tokio::test]
async fn rule_12_a_lease_is_renewed_while_anybody_reads_and_only_then() {
    let bench = Bench::lessor(true);
    let leases = |backend: &str| bench.cache.leases(&backend.parse().unwrap());
    assert_eq!(leases("a"), (0, None));
    let one = number(&bench.leased_user().await);
    bench.later(39 * MINUTE).await;
    assert_eq!(bench.a.renewals(), 0);
    assert_eq!(leases("a"), (1, Some(21 * MINUTE)));
    bench.later(MINUTE).await;
    assert_eq!(bench.a.renewals(), 1);
    assert_eq!(leases("a"), (1, Some(60 * MINUTE)));
    assert_eq!(leases("b"), (0, None));
    // Somebody who asks, and then somebody who only has it open.
    bench.later(20 * MINUTE).await;
    let open = bench.leased_user().await.unwrap();
    bench.later(20 * MINUTE).await;
    assert_eq!(bench.a.renewals(), 2);
    for renewals in 3..6 {
        bench.later(40 * MINUTE).await;
        assert_eq!(bench.a.renewals(), renewals);
    }
    assert_eq!(open.generation.number, one);
    drop(open);
    // Nobody: until somebody comes, in time.
    bench.later(45 * MINUTE).await;
    assert_eq!(bench.a.renewals(), 5);
    assert_eq!(text(&bench.leased_user().await), "u1");
    let told = tokio::time::timeout(SECOND, bench.cache.tending.notified());
    told.await.unwrap();
    bench.later(Duration::ZERO).await;
    assert_eq!((bench.a.renewals(), bench.a.reads()), (6, 1));
    // Or too late.
    bench.later(59 * MINUTE).await;
    assert_eq!(bench.a.renewals(), 6);
    bench.later(MINUTE).await;
    assert_eq!(bench.cache.figures().leases, 0);
    assert_eq!(bench.cache.figures().values, 0, "it is wiped");
    assert_eq!(text(&bench.leased_user().await), "u2");
}

#[tokio::test]
async fn rule_12_what_cannot_be_renewed_is_replaced_not_before_85_percent() {
    for issued in [true, false] {
        let bench = Bench::lessor(false);
        if issued {
            bench.a.issue("db/creds", HOUR);
        }
        let one = bench.leased_user().await.unwrap();
        bench.leased_pass().await.unwrap();
        bench.later(51 * MINUTE - SECOND).await;
        assert_eq!(text(&bench.leased_user().await), "u1");
        bench.later(SECOND).await;
        // It is open: nobody had to ask. Whoever shows it is told.
        assert_eq!(bench.a.reads(), 2);
        let mut told = bench.cache.overtaken().await;
        told.sort();
        assert_eq!(told, [at("pass"), at("user")]);
        let two = bench.leased_user().await;
        assert_eq!(
            (
                text(&two).as_str(),
                text(&bench.leased_pass().await).as_str()
            ),
            ("u2", "p2")
        );
        assert!(number(&two) > one.generation.number);
        assert_eq!((bench.a.reads(), bench.a.renewals()), (2, 0));
        // What was superseded is left to end.
        assert_eq!(bench.cache.figures().leases, 2);
        bench.later(9 * MINUTE).await;
        assert_eq!(bench.cache.figures().leases, 1);
        assert_eq!(bench.a.revoked(), [""; 0]);
    }
}

#[tokio::test]
async fn rule_12_where_nobody_has_it_open_the_next_reader_has_it_replaced() {
    let bench = Bench::lessor(true);
    bench.leased_user().await.unwrap();
    bench.later(40 * MINUTE).await;
    bench.later(55 * MINUTE).await;
    assert_eq!((bench.a.renewals(), bench.a.reads()), (1, 1));
    assert_eq!(text(&bench.leased_user().await), "u2");
    assert_eq!(text(&bench.leased_pass().await), "p2");
    assert_eq!(bench.a.reads(), 2);
}

#[tokio::test]
async fn rule_12_what_is_not_renewed_for_its_whole_time_is_replaced_before_it_ends() {
    // What is left of its longest time; that it has come to it.
    for left in [Some(600), None] {
        let bench = Bench::lessor(true);
        let _open = bench.leased_user().await.unwrap();
        bench.a.limit("l1", left);
        bench.later(40 * MINUTE).await;
        assert_eq!(bench.a.renewals(), 1);
        if left.is_some() {
            assert_eq!(text(&bench.leased_user().await), "u1");
            bench.later(8 * MINUTE).await;
            assert_eq!(text(&bench.leased_user().await), "u1");
            bench.later(MINUTE).await;
        }
        assert_eq!(text(&bench.leased_user().await), "u2");
        assert_eq!((bench.a.renewals(), bench.a.reads()), (1, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn rule_12_in_an_outage_it_is_served_until_it_ends_and_not_after() {
    for weather in [Weather::Down, Weather::Silent] {
        let bench = Bench::lessor(true);
        let _open = bench.leased_user().await.unwrap();
        bench.a.weather(weather);
        bench.later(45 * MINUTE).await;
        let served = bench.leased_user().await.unwrap();
        assert!(!served.stale, "it is not due for another one yet");
        bench.later(10 * MINUTE).await;
        let served = bench.leased_user().await;
        assert_eq!(text(&served), "u1");
        assert!(served.unwrap().stale);
        bench.later(5 * MINUTE - SECOND).await;
        assert_eq!(text(&bench.leased_user().await), "u1");
        bench.later(SECOND).await;
        let error = bench.leased_user().await.unwrap_err();
        assert!(
            matches!(
                error,
                BackendError::Unreachable(_) | BackendError::Timeout(_)
            ),
            "{error}"
        );
        bench.a.weather(Weather::Fine);
        tokio::time::sleep(TIMEOUT).await;
        bench.clock.advance(MINUTE);
        assert_eq!(text(&bench.leased_user().await), "u2");
    }
}

#[tokio::test]
async fn rule_12_a_renewal_that_failed_is_tried_again() {
    let bench = Bench::lessor(true);
    let _open = bench.leased_user().await.unwrap();
    bench.a.weather(Weather::Down);
    bench.later(40 * MINUTE).await;
    bench.later(SECOND).await;
    assert_eq!(bench.a.renewals(), 1, "not at once");
    bench.a.weather(Weather::Fine);
    bench.later(5 * SECOND).await;
    assert_eq!(bench.a.renewals(), 2);
    bench.later(39 * MINUTE).await;
    assert_eq!((bench.a.renewals(), bench.a.reads()), (2, 1));
}

#[tokio::test]
async fn rule_12_a_refresh_asks_for_a_new_lease_and_the_old_one_is_left_to_end() {
    let bench = Bench::lessor(true);
    let one = number(&bench.leased_user().await);
    bench.leased_pass().await.unwrap();
    let refresh = || bench.cache.refresh(&at("user"), &binding(&[USER]));
    let fresh = refresh().wait().await;
    assert_eq!(text(&fresh), "u2");
    assert!(number(&fresh) > one);
    assert_eq!(text(&bench.leased_pass().await), "p2");
    assert_eq!(bench.cache.figures().leases, 2);
    // Only what is shown is renewed.
    bench.later(40 * MINUTE).await;
    assert_eq!((bench.a.renewals(), bench.a.revoked().len()), (1, 0));

    // Refreshes that cross make no more leases than they ask for; the one asked for last is shown.
    for order in [[0, 1], [1, 0]] {
        let bench = Bench::lessor(true);
        bench.a.hold();
        let mut refreshers = Vec::new();
        for _ in 0..2 {
            let refresh = bench.cache.refresh(&at("user"), &binding(&[USER]));
            refreshers.push(tokio::spawn(refresh.wait()));
            settle().await;
        }
        for index in order {
            bench.a.let_go(index);
            settle().await;
        }
        for refresher in refreshers {
            refresher.await.unwrap().unwrap();
        }
        assert_eq!(text(&bench.leased_user().await), "u2", "{order:?}");
        assert_eq!((bench.a.reads(), bench.cache.figures().leases), (2, 2));
    }
}

#[tokio::test]
async fn rule_12_leases_of_what_is_taken_away_are_revoked() {
    let bench = Bench::lessor(true);
    let is = |name: &'static str| move |path: &SecretPath| *path == at(name);
    bench.leased_user().await.unwrap();
    bench.leased_pass().await.unwrap();
    let refresh = bench.cache.refresh(&at("user"), &binding(&[USER]));
    refresh.wait().await.unwrap();
    bench.leased_pass().await.unwrap();
    bench.later(Duration::ZERO).await;
    // The other one shows it, too.
    bench.cache.forget(is("user"));
    bench.later(Duration::ZERO).await;
    assert_eq!(bench.a.revoked(), [""; 0]);
    bench.a.weather(Weather::Down);
    bench.cache.forget(is("pass"));
    bench.later(Duration::ZERO).await;
    assert_eq!(bench.a.revoked(), [""; 0]);
    // It is tried again, also for the one that was superseded.
    bench.a.weather(Weather::Fine);
    bench.later(SECOND).await;
    assert_eq!(bench.a.revoked(), ["l1", "l2"]);
    bench.later(SECOND).await;
    assert_eq!(bench.a.revoked().len(), 2);

    // One that is on its way.
    bench.a.hold();
    let reader = tokio::spawn(bench.cache.get(&at("user"), &binding(&[USER])).wait());
    settle().await;
    bench.cache.forget(is("user"));
    bench.a.stop_holding();
    bench.a.let_go(bench.a.held() - 1);
    reader.await.unwrap().unwrap();
    bench.later(Duration::ZERO).await;
    assert_eq!(bench.a.revoked(), ["l1", "l2", "l3"]);
    // An invalidation takes nothing away.
    bench.leased_user().await.unwrap();
    bench.cache.invalidate(&USER.parse().unwrap());
    bench.cache.invalidate_all();
    assert_eq!(text(&bench.leased_user().await), "u5");
    bench.later(Duration::ZERO).await;
    assert_eq!(
        (bench.a.revoked().len(), bench.cache.figures().leases),
        (3, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn rule_12_at_the_end_all_leases_are_revoked_within_the_deadline() {
    let bench = Bench::lessor(true);
    bench.a.lease("db/other", HOUR, false);
    bench.a.issue("pki/issue", HOUR);
    bench.leased_user().await.unwrap();
    for reference in ["a:db/other", "a:pki/issue", "a:s/x"] {
        bench.get(&[reference]).await.unwrap();
    }
    bench.cache.end(2 * SECOND).await;
    let mut revoked = bench.a.revoked();
    revoked.sort();
    assert_eq!(revoked, ["l1", "l2"]);

    let bench = Bench::lessor(true);
    bench.leased_user().await.unwrap();
    bench.a.weather(Weather::Silent);
    let began = tokio::time::Instant::now();
    bench.cache.end(2 * SECOND).await;
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn rule_12_an_earlier_value_is_not_made_anew() {
    let bench = Bench::lessor(true);
    bench.leased_user().await.unwrap();
    let version = Version::new("made-1");
    let earlier = bench
        .cache
        .version(&at("user"), &binding(&[USER]), &version);
    let error = earlier.wait().await.unwrap_err();
    assert!(matches!(error, BackendError::Absent(_)), "{error}");
    bench.later(Duration::ZERO).await;
    assert_eq!(bench.a.revoked(), ["l2"]);
    assert_eq!(text(&bench.leased_user().await), "u1");
}
