//! When records are asked, and what is told of what they answer; and the hints.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::FutureExt;

use super::*;
use crate::backend::tests::faulty::{Faulty, Weather, Word};

mod hints;
mod outages;

const EVERY: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Somebody who has values: which versions, the test says.
#[derive(Debug)]
struct House {
    backend: Arc<Faulty>,
    used: Mutex<Vec<Used>>,
    changed: Mutex<Vec<String>>,
    /// Whether he fetches what has changed.
    fetches: AtomicBool,
    down: AtomicBool,
    /// What he takes his time for.
    slow: Mutex<Duration>,
    clock: Clock,
}

impl Owner for House {
    fn used(&self, _: &Name, _: Duration) -> Vec<Used> {
        self.used.lock().unwrap().clone()
    }

    fn ask(&self, record: Reference) -> BoxFuture<'static, Result<Option<Version>, BackendError>> {
        let backend = Arc::clone(&self.backend);
        async move {
            let answer = tokio::time::timeout(5 * SECOND, backend.version(&record)).await;
            answer.unwrap_or_else(|_| Err(BackendError::Timeout("test".to_owned())))
        }
        .boxed()
    }

    fn changed(self: Arc<Self>, record: Reference) -> BoxFuture<'static, ()> {
        self.changed.lock().unwrap().push(record.path.clone());
        let slow = *self.slow.lock().unwrap();
        async move {
            tokio::time::sleep(slow).await;
            if self.fetches.load(Ordering::SeqCst) {
                self.fetch(&record.path);
            }
        }
        .boxed()
    }

    fn is_down(&self, _: &Name) -> bool {
        self.down.load(Ordering::SeqCst)
    }
}

impl House {
    /// What is at this place is fetched; what is absent is in the cache no more, but it was looked for.
    fn fetch(&self, path: &str) {
        let newest = self.backend.newest(path);
        let mut used = self.used.lock().unwrap();
        match newest {
            None => used.retain(|used| used.record.path != path || used.absent),
            Some(version) => {
                for used in used.iter_mut().filter(|used| used.record.path == path) {
                    used.versions = vec![version.clone()];
                    (used.absent, used.fetched) = (false, self.clock.now());
                }
            }
        }
    }
}

struct Bench {
    backend: Arc<Faulty>,
    house: Arc<House>,
    clock: Clock,
    signals: Signals,
    /// Ends when it is dropped.
    _running: JoinSet<()>,
}

fn name() -> Name {
    "a".parse().unwrap()
}

fn record(path: &str) -> Reference {
    Reference::new(name(), path)
}

impl Bench {
    fn new() -> Self {
        Self::polled_every(EVERY)
    }

    fn polled_every(every: Duration) -> Self {
        let (backend, clock) = (Arc::new(Faulty::default()), Clock::manual());
        backend.poll_every(every);
        let house = Arc::new(House {
            backend: Arc::clone(&backend),
            used: Mutex::default(),
            changed: Mutex::default(),
            fetches: AtomicBool::new(true),
            down: AtomicBool::new(false),
            slow: Mutex::default(),
            clock: clock.clone(),
        });
        let mut backends: HashMap<Name, Arc<dyn Backend>> = HashMap::new();
        backends.insert(name(), Arc::<Faulty>::clone(&backend));
        let (signals, listening) = Signals::new(&backends, clock.clone());
        let mut running = JoinSet::new();
        running.spawn(listening.run(Arc::<House>::clone(&house)));
        Self {
            backend,
            house,
            clock,
            signals,
            _running: running,
        }
    }

    /// A record that is in use as much as this.
    fn uses(&self, path: &str, need: Need) {
        self.backend.put(path, "one");
        self.house.used.lock().unwrap().push(Used {
            record: record(path),
            versions: self.backend.newest(path).into_iter().collect(),
            absent: false,
            fetched: self.clock.now(),
            need,
        });
    }

    /// Somebody looks here first, and there is nothing.
    fn misses(&self, path: &str) {
        self.house.used.lock().unwrap().push(Used {
            record: record(path),
            versions: Vec::new(),
            absent: true,
            fetched: self.clock.now(),
            need: Need::Now,
        });
    }

    async fn pass(&self, time: Duration) {
        pass(&self.clock, time).await;
    }

    /// What was asked in this time, in order.
    async fn polled_in(&self, time: Duration) -> Vec<String> {
        self.backend.polled();
        self.pass(time).await;
        self.backend.polled()
    }

    /// What has changed, since the last time.
    fn changed(&self) -> Vec<String> {
        std::mem::take(&mut *self.house.changed.lock().unwrap())
    }

    fn report(&self) -> Report {
        self.signals.report(&name()).unwrap()
    }
}

/// Time passes, by both clocks.
async fn pass(clock: &Clock, time: Duration) {
    let mut left = time;
    let long = STEP.max(time / 5000);
    while !left.is_zero() {
        let step = left.min(long);
        left -= step;
        clock.advance(step);
        tokio::time::sleep(step).await;
    }
}

fn count(paths: &[String], path: &str) -> usize {
    paths.iter().filter(|polled| *polled == path).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_asked_once_per_interval_and_nothing_else_is() {
    let bench = Bench::new();
    bench.uses("now", Need::Now);
    bench.uses("perhaps", Need::Perhaps);
    bench.uses("unused", Need::None);
    let polled = bench.polled_in(20 * EVERY).await;
    for path in ["now", "perhaps"] {
        let count = count(&polled, path);
        assert!((20..=22).contains(&count), "{path}: {count}");
    }
    assert_eq!(count(&polled, "unused"), 0);
    assert_eq!(bench.backend.reads(), 0);
    assert_eq!(bench.changed(), [""; 0]);
    let report = bench.report();
    assert_eq!((report.in_use, report.refused), (2, 0));
    assert!(report.polled.is_some() && report.heard.is_none());
    // It goes out of use.
    bench.house.used.lock().unwrap().clear();
    bench.pass(EVERY).await;
    assert_eq!(bench.polled_in(4 * EVERY).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_records_cost_three_and_a_half_requests_a_second_however_many_are_known() {
    let bench = Bench::new();
    for index in 0..100 {
        bench.uses(&format!("now{index}"), Need::Now);
    }
    for index in 0..2000 {
        let need = [Need::Perhaps, Need::None][index % 2];
        bench.uses(&format!("other{index}"), need);
    }
    bench.pass(EVERY).await;
    let mut last: HashMap<String, u32> = HashMap::new();
    let mut asked = 0;
    for second in 0..300 {
        let polled = bench.polled_in(SECOND).await;
        // Evenly: never a burst.
        assert!(polled.len() <= 12, "{} in second {second}", polled.len());
        asked += polled.len();
        for path in polled.into_iter().filter(|path| path.starts_with("now")) {
            let before = last.insert(path.clone(), second).unwrap_or(0);
            assert!(second - before <= 31, "{path}: {before} and {second}");
        }
    }
    assert_eq!(last.len(), 100);
    assert!((1000..=1050).contains(&asked), "{asked} in 300 s");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_once_within_the_interval() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.uses("y", Need::Now);
    for round in 0..20_u32 {
        // At whichever moment.
        bench.pass(EVERY.mul_f64(f64::from(round) / 20.0)).await;
        bench.backend.put("x", "new");
        bench.pass(EVERY + STEP).await;
        assert_eq!(bench.changed(), ["x"], "{round}");
        bench.pass(3 * EVERY).await;
        assert_eq!(bench.changed(), [""; 0]);
    }
    // A value that comes into use is asked for in time from then on.
    bench.uses("z", Need::Now);
    bench.backend.put("z", "new");
    bench.pass(EVERY + STEP).await;
    assert_eq!(bench.changed(), ["z"]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_has_fetched_meanwhile_is_no_news() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.pass(2 * EVERY).await;
    for _ in 0..20 {
        bench.backend.put("x", "new");
        bench.house.fetch("x");
        bench.pass(SECOND).await;
    }
    bench.pass(2 * EVERY).await;
    assert_eq!(bench.changed(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_one_thing_and_gives_another_is_not_read_at_every_poll() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.house.fetches.store(false, Ordering::SeqCst);
    bench.backend.put("x", "two");
    bench.pass(20 * EVERY).await;
    assert_eq!(bench.changed(), ["x"; 3]);
    bench.backend.put("x", "three");
    bench.pass(20 * EVERY).await;
    assert_eq!(bench.changed(), ["x"; 3]);
}

#[tokio::test(start_paused = true)]
async fn what_goes_is_told_and_so_is_what_comes_back() {
    let bench = Bench::new();
    bench.uses("x", Need::Now);
    bench.pass(EVERY).await;
    for _ in 0..3 {
        bench.backend.remove("x");
        bench.pass(EVERY + STEP).await;
        assert_eq!(bench.changed(), ["x"]);
        bench.pass(EVERY).await;
        assert_eq!(bench.report().in_use, 0);
        // It is asked for a while longer, for those who watched it.
        bench.pass(10 * EVERY).await;
        assert_eq!(bench.changed(), [""; 0]);
        bench.uses("x", Need::Now);
        // Nobody has it yet: it is only there.
        bench.house.used.lock().unwrap().clear();
        bench.pass(EVERY + STEP).await;
        assert_eq!(bench.changed(), ["x"]);
        bench.uses("x", Need::Now);
        bench.pass(EVERY).await;
        bench.changed();
    }
    bench.backend.remove("x");
    bench.pass(HOUR + 2 * EVERY).await;
    assert_eq!(bench.polled_in(HOUR).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_appears_before_the_place_that_was_found_is_told() {
    let bench = Bench::new();
    bench.misses("first");
    bench.uses("second", Need::Now);
    let polled = bench.polled_in(10 * EVERY).await;
    assert!(count(&polled, "first") >= 9);
    assert_eq!(bench.changed(), [""; 0]);
    bench.backend.put("first", "one");
    bench.pass(EVERY + STEP).await;
    assert_eq!(bench.changed(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn a_record_without_the_field_is_news_only_when_it_changes() {
    let bench = Bench::new();
    bench.misses("first");
    bench.house.fetches.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        bench.backend.put("first", "has no such field");
        bench.pass(10 * EVERY).await;
        assert_eq!(bench.changed(), ["first"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_we_may_not_see_is_left_alone_until_it_is_fetched_again_or_an_hour_has_passed() {
    for word in [Word::Refused, Word::Nothing] {
        let bench = Bench::new();
        bench.backend.word(word);
        bench.uses("x", Need::Now);
        bench.uses("y", Need::Now);
        assert_eq!(bench.polled_in(EVERY).await.len(), 2);
        assert_eq!(bench.polled_in(100 * EVERY).await, [""; 0]);
        let refused = if word == Word::Refused { 2 } else { 0 };
        assert_eq!(
            (bench.report().in_use, bench.report().refused),
            (2, refused)
        );
        bench.house.fetch("x");
        assert_eq!(bench.polled_in(2 * EVERY).await, ["x"]);
        assert_eq!(bench.report().refused, refused);
        // A round of all leaves them alone, too.
        bench.signals.hints().resync(&name());
        assert_eq!(bench.polled_in(2 * EVERY).await, [""; 0]);
        bench.backend.word(Word::Plain);
        bench.house.fetch("y");
        let polled = bench.polled_in(EVERY).await;
        assert!(count(&polled, "y") > 0 && count(&polled, "x") == 0);
        assert_eq!(bench.report().refused, refused / 2);
        assert!(count(&bench.polled_in(HOUR).await, "x") >= 1);
        assert_eq!(bench.report().refused, 0);
        assert_eq!(bench.changed(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn few_are_asked_at_once_and_none_twice_at_once() {
    let bench = Bench::new();
    for index in 0..20 {
        bench.uses(&format!("x{index}"), Need::Now);
    }
    bench.backend.hold();
    bench.signals.hints().resync(&name());
    bench.pass(2 * SECOND).await;
    assert_eq!(bench.backend.polls(), 4);

    let bench = Bench::polled_every(SECOND);
    bench.uses("x", Need::Now);
    bench.backend.hold();
    bench.pass(10 * SECOND).await;
    assert!(bench.backend.polls() <= 3);
}

#[tokio::test(start_paused = true)]
async fn zero_is_off_and_so_is_an_answer_that_nobody_waits_for() {
    let bench = Bench::polled_every(Duration::ZERO);
    bench.uses("x", Need::Now);
    bench.backend.put("x", "two");
    assert_eq!(bench.polled_in(HOUR).await, [""; 0]);
    // Hints count all the same, and so does what was missed of them.
    bench.signals.hints().resync(&name());
    assert_eq!(bench.polled_in(SECOND).await, ["x"]);
    assert_eq!(bench.changed(), ["x"]);
    assert!(bench.report().heard.is_some());
}
