//! Rule 11.

use super::*;

const USER: &str = "a:s/x#user";
const PASS: &str = "a:s/x#pass";

impl Bench {
    /// A record with two fields at `a:s/x`.
    fn with_record() -> Self {
        let bench = Self::new();
        bench.pair("one");
        bench
    }

    fn pair(&self, text: &str) {
        let record = format!(r#"{{"user":"u-{text}","pass":"p-{text}"}}"#);
        self.a.put("s/x", record);
    }

    /// The secret `s/<name>`, bound to this reference.
    fn ask(&self, name: &str, reference: &str) -> Answer<Fetch> {
        self.cache.get(&at(name), &binding(&[reference]))
    }

    fn asking(&self, name: &str, reference: &str) -> tokio::task::JoinHandle<Fetch> {
        tokio::spawn(self.ask(name, reference).wait())
    }

    async fn user(&self) -> Fetch {
        self.ask("user", USER).wait().await
    }

    async fn pass(&self) -> Fetch {
        self.ask("pass", PASS).wait().await
    }

    async fn refresh_user(&self) -> Fetch {
        let refresh = self.cache.refresh(&at("user"), &binding(&[USER]));
        refresh.wait().await
    }
}

fn at(name: &str) -> SecretPath {
    format!("s/{name}").parse().unwrap()
}

#[tokio::test]
async fn rule_11_fields_of_a_record_are_one_fetch_and_one_version() {
    let bench = Bench::with_record();
    assert_eq!(text(&bench.user().await), "u-one");
    bench.pair("two");
    assert_eq!(text(&bench.pass().await), "p-one");
    assert_eq!(bench.a.reads(), 1);
    // The whole of it, too, and what is bound to the same field.
    let whole = bench.ask("whole", "a:s/x").wait().await;
    assert!(text(&whole).contains("u-one"));
    assert_eq!(text(&bench.ask("other", USER).wait().await), "u-one");
    assert_eq!(bench.a.reads(), 1);
    // Another query or version is another record.
    bench.ask("asked", "a:s/x?k=v#user").wait().await.unwrap();
    let named = bench.ask("named", "a:s/x#user@2").wait().await;
    assert_eq!((text(&named).as_str(), bench.a.reads()), ("u-one", 3));
}

#[tokio::test]
async fn rule_11_readers_of_all_fields_are_one_fetch() {
    let bench = Bench::with_record();
    bench.a.hold();
    let readers: Vec<_> = (0..100)
        .flat_map(|_| [bench.asking("user", USER), bench.asking("pass", PASS)])
        .collect();
    settle().await;
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (1, 2));
    bench.a.let_go(0);
    for fetch in join_all(readers).await {
        assert!(text(&fetch.unwrap()).ends_with("-one"));
    }
    assert_eq!((bench.a.reads(), bench.cache.figures().flights), (1, 0));
    assert_eq!(bench.cache.take_overtaken(), []);
}

#[tokio::test]
async fn rule_11_fields_grow_old_at_the_same_moment() {
    let bench = Bench::with_record();
    bench.user().await.unwrap();
    bench.clock.advance(TTL - SECOND);
    bench.pass().await.unwrap();
    bench.clock.advance(SECOND);
    bench.pair("two");
    assert_eq!(text(&bench.pass().await), "p-two");
    assert_eq!(text(&bench.user().await), "u-two");
    assert_eq!(bench.a.reads(), 2);
    // Read again, and the same as before: nobody is told anything.
    drop(bench.cache.take_overtaken());
    bench.clock.advance(TTL);
    let before = number(&bench.user().await);
    bench.clock.advance(TTL);
    bench.pass().await.unwrap();
    assert_eq!(number(&bench.user().await), before);
    assert_eq!(bench.a.reads(), 4);
    assert_eq!(bench.cache.take_overtaken(), []);
}

#[tokio::test]
async fn rule_11_nobody_is_shown_the_version_before_beside_the_new_one() {
    let bench = Bench::with_record();
    let before = number(&bench.pass().await);
    bench.user().await.unwrap();
    bench.ask("elsewhere", "b:s/y").wait().await.unwrap();
    bench.pair("two");
    assert_eq!(text(&bench.refresh_user().await), "u-two");
    // Who watches the other one is told, and who asked is not.
    assert_eq!(bench.cache.overtaken().await, [at("pass")]);
    let pass = bench.pass().await;
    assert_eq!((text(&pass).as_str(), bench.a.reads()), ("p-two", 2));
    assert!(number(&pass) > before && !pass.unwrap().stale);
    // Nor does the one before stand in for it.
    bench.pair("three");
    bench.refresh_user().await.unwrap();
    bench.a.weather(Weather::Down);
    bench.clock.advance(TTL);
    bench.pass().await.unwrap_err();
    assert_eq!(text(&bench.user().await), "u-three");
}

#[tokio::test]
async fn rule_11_a_version_with_other_bytes_is_another_record() {
    let bench = Bench::with_record();
    bench.pass().await.unwrap();
    bench.user().await.unwrap();
    bench
        .a
        .put_version("s/x", r#"{"user":"u-again","pass":"p-again"}"#, 1);
    assert_eq!(text(&bench.refresh_user().await), "u-again");
    assert_eq!(text(&bench.pass().await), "p-again");
}

#[tokio::test]
async fn rule_11_a_record_that_is_gone_or_refused_is_so_for_all_its_fields() {
    for refused in [true, false] {
        let bench = Bench::with_record();
        bench.user().await.unwrap();
        bench.pass().await.unwrap();
        match refused {
            true => bench.a.weather(Weather::Refusing),
            false => bench.a.remove("s/x"),
        }
        bench.refresh_user().await.unwrap_err();
        assert_eq!(bench.cache.figures().values, 0);
        assert_eq!(bench.cache.figures().bytes, 0);
        bench.a.weather(Weather::Down);
        bench.pass().await.unwrap_err();
    }
}

#[tokio::test]
async fn rule_11_a_field_that_is_not_there_is_absent_from_the_very_record() {
    let bench = Bench::with_record();
    let both = binding(&["a:s/x#none", "b:s/y"]);
    let other = || bench.cache.get(&path(), &both).wait();
    assert_eq!(text(&other().await), "first");
    assert_eq!(text(&bench.user().await), "u-one");
    assert_eq!(bench.a.reads(), 1);
    // It rests on that record, and is asked for again when that one is old.
    bench.a.put("s/x", r#"{"none":"now"}"#);
    bench.clock.advance(TTL - SECOND);
    bench.cache.invalidate(&"b:s/y".parse().unwrap());
    assert_eq!(text(&other().await), "first");
    bench.clock.advance(SECOND);
    assert_eq!(text(&other().await), "now");
}

#[tokio::test]
async fn rule_5_an_invalidation_is_final_for_every_field() {
    let bench = Bench::with_record();
    bench.user().await.unwrap();
    bench.clock.advance(TTL);
    bench.a.hold();
    let before = bench.asking("user", USER);
    settle().await;
    bench.pair("two");
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    let after = bench.asking("pass", PASS);
    settle().await;
    assert_eq!(bench.a.held(), 2);
    bench.a.let_go(0);
    assert_eq!(text(&before.await.unwrap()), "u-one");
    assert_eq!(bench.cache.figures().bytes, 0);
    bench.a.let_go(1);
    assert_eq!(text(&after.await.unwrap()), "p-two");
    bench.a.stop_holding();
    assert_eq!(text(&bench.user().await), "u-two");
    assert_eq!(bench.a.reads(), 3);
}

#[tokio::test]
async fn rule_5_what_is_taken_away_is_wiped_unless_others_show_the_record() {
    let bench = Bench::with_record();
    let is = |name: &'static str| move |path: &SecretPath| *path == at(name);
    bench.user().await.unwrap();
    bench.pass().await.unwrap();
    bench.cache.forget(is("user"));
    let record = r#"{"user":"u-one","pass":"p-one"}"#.len();
    assert_eq!(bench.cache.figures().bytes, record + "p-one".len());
    bench.pass().await.unwrap();
    assert_eq!(bench.a.reads(), 1);
    bench.cache.forget(is("pass"));
    assert_eq!(bench.cache.figures().bytes, 0);
    assert_eq!(bench.cache.state().records.len(), 0);

    // What is on its way does not come back, and does if it is for another one, too.
    for other in [false, true] {
        bench.a.hold();
        let held = bench.a.held();
        let mut readers = vec![bench.asking("user", USER)];
        settle().await;
        if other {
            readers.push(bench.asking("pass", PASS));
            settle().await;
        }
        bench.cache.forget(is("user"));
        bench.a.let_go(held);
        for reader in readers {
            assert!(text(&reader.await.unwrap()).ends_with("-one"));
        }
        assert_eq!(bench.cache.figures().bytes > 0, other);
        assert_eq!(bench.cache.figures().values, usize::from(other));
    }
}

#[tokio::test]
async fn rule_9_a_refresh_joins_no_fetch_for_another_field_that_began_before_it() {
    let bench = Bench::with_record();
    bench.a.hold();
    let older = bench.asking("pass", PASS);
    settle().await;
    bench.pair("two");
    let refresh = bench.cache.refresh(&at("user"), &binding(&[USER]));
    let refresh = tokio::spawn(refresh.wait());
    settle().await;
    // Who comes now joins the newer one.
    let later = bench.asking("later", PASS);
    settle().await;
    assert_eq!(bench.a.held(), 2);
    bench.a.stop_holding();
    bench.a.let_go(1);
    assert_eq!(text(&refresh.await.unwrap()), "u-two");
    assert_eq!(text(&later.await.unwrap()), "p-two");
    // The older one lands, and does not put its record in the place of the newer.
    bench.a.let_go(0);
    assert_eq!(text(&older.await.unwrap()), "p-two");
    assert_eq!(text(&bench.user().await), "u-two");
    assert_eq!(bench.a.reads(), 3);
}

#[tokio::test]
async fn rule_7_bytes_are_counted_once_where_they_are_shared() {
    let bench = Bench::with_record();
    let record = r#"{"user":"u-one","pass":"p-one"}"#.len();
    for name in ["x", "y"] {
        bench.ask(name, "a:s/x").wait().await.unwrap();
        assert_eq!(bench.cache.figures().bytes, record);
    }
    bench.user().await.unwrap();
    assert_eq!(bench.cache.figures().bytes, record + 5);
    // Read again, they are the same bytes.
    bench.clock.advance(TTL);
    for name in ["x", "y"] {
        bench.ask(name, "a:s/x").wait().await.unwrap();
    }
    assert_eq!(bench.cache.figures().bytes, record + 5);
    bench.get(&["b:s/y"]).await.unwrap();
    bench.cache.invalidate(&"a:s/x".parse().unwrap());
    assert_eq!(bench.cache.figures().bytes, "first".len());
    bench.cache.invalidate(&"b:s/y".parse().unwrap());
    assert_eq!(bench.cache.figures().bytes, 0);
    assert_eq!(bench.cache.state().records.len(), 0);
}

#[tokio::test]
async fn rule_7_records_without_a_secret_do_not_stay() {
    let bench = Bench::new();
    for index in 0..1000 {
        let place = format!("s/r{index}");
        bench.a.put(&place, "{}");
        let reference = format!("a:{place}#none");
        bench.ask("x", &reference).wait().await.unwrap_err();
        bench.clock.advance(SECOND);
    }
    assert!(bench.cache.state().records.len() <= 192);
}

#[tokio::test]
async fn rule_13_an_absence_is_remembered_for_five_seconds() {
    let bench = Bench::new();
    let none = "a:s/none";
    let absent = async || {
        let fetch = bench.ask("x", none).wait().await;
        matches!(fetch, Err(BackendError::Absent(_)))
    };
    assert!(absent().await);
    bench.a.put("s/none", "now");
    bench.clock.advance(5 * SECOND - Duration::from_millis(1));
    assert!(absent().await);
    assert_eq!(bench.a.reads(), 1);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(text(&bench.ask("x", none).wait().await), "now");
    assert_eq!(bench.a.reads(), 2);

    // A refresh and an invalidation go past it.
    for refresh in [true, false] {
        bench.a.remove("s/none");
        bench.cache.invalidate(&none.parse().unwrap());
        assert!(absent().await);
        bench.a.put("s/none", "again");
        match refresh {
            true => {
                let fresh = bench.cache.refresh(&at("x"), &binding(&[none]));
                assert_eq!(text(&fresh.wait().await), "again");
            }
            false => bench.cache.invalidate(&none.parse().unwrap()),
        }
        assert_eq!(text(&bench.ask("x", none).wait().await), "again");
    }
    // What rests on it is as old as it is.
    bench.a.remove("s/none");
    bench.cache.invalidate(&none.parse().unwrap());
    assert!(absent().await);
    bench.clock.advance(4 * SECOND);
    let both = [none, "a:s/x"];
    assert_eq!(text(&bench.get(&both).await), "one");
    bench.a.put("s/none", "higher up");
    bench.clock.advance(TTL - 4 * SECOND);
    assert_eq!(text(&bench.get(&both).await), "higher up");
}

#[tokio::test]
async fn rule_13_no_refusal_is_remembered_nor_what_would_be_announced() {
    let bench = Bench::new();
    bench.a.weather(Weather::Refusing);
    bench.x().await.unwrap_err();
    bench.a.weather(Weather::Fine);
    assert_eq!(text(&bench.x().await), "one");
    bench.get(&["b:s/none"]).await.unwrap_err();
    bench.b.put("s/none", "now");
    assert_eq!(text(&bench.get(&["b:s/none"]).await), "now");
    // No longer than the TTL.
    bench.cache.set_times(Times {
        ttl: SECOND,
        timeout: TIMEOUT,
    });
    bench.get(&["a:s/none"]).await.unwrap_err();
    bench.a.put("s/none", "now");
    bench.clock.advance(SECOND);
    assert_eq!(text(&bench.get(&["a:s/none"]).await), "now");
}

#[tokio::test]
async fn what_does_not_open_any_more_is_fetched_anew() {
    let bench = Bench::with_record();
    let user = bench.user().await;
    bench.cache.memory.damage();
    // The record is damaged as well, which is seen where another field of it is cut.
    let error = bench.ask("pass", PASS).wait().await.unwrap_err();
    assert!(matches!(error, BackendError::Unusable(_)), "{error}");
    assert_eq!(bench.cache.figures().values, 0);
    assert_eq!(text(&bench.ask("pass", PASS).wait().await), "p-one");
    let again = bench.user().await;
    assert_eq!((text(&again).as_str(), bench.a.reads()), ("u-one", 2));
    // The same bytes have the same number.
    assert_eq!(number(&again), number(&user));

    bench.cache.memory.damage();
    let broken = again.unwrap().generation;
    bench.cache.broke(&at("user"), &broken);
    let again = bench.user().await;
    assert_eq!((text(&again).as_str(), bench.a.reads()), ("u-one", 3));
    // Whoever still has the damaged one does no harm, however often it is tried.
    bench.cache.broke(&at("user"), &broken);
    assert_eq!(text(&bench.user().await), "u-one");
    assert_eq!(bench.a.reads(), 3);
}
