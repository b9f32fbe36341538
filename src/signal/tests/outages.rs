//! Backends, and single records, that do not answer.

use super::*;

/// Records that are in use, after their first round.
async fn busy(records: usize) -> Bench {
    let bench = Bench::new();
    for index in 0..records {
        bench.uses(&format!("x{index}"), Need::Now);
    }
    bench.pass(2 * EVERY).await;
    bench
}

impl Bench {
    fn weather(&self, weather: Weather) {
        self.backend.weather(weather);
        self.house
            .down
            .store(weather != Weather::Fine, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_away_is_asked_less_and_less_and_then_for_all_at_once() {
    for weather in [Weather::Down, Weather::Silent] {
        for records in [1, 50] {
            let bench = busy(records).await;
            bench.weather(weather);
            let polled = bench.polled_in(HOUR).await;
            // 1, 2, 4, … 256, 300, 300 s, and what was on its way at first.
            assert!((15..=30).contains(&polled.len()), "{}", polled.len());
            bench.backend.put("x0", "two");
            bench.backend.weather(Weather::Fine);
            bench.pass(310 * SECOND).await;
            assert_eq!(bench.changed(), ["x0"]);
            let polled = bench.backend.polled();
            let all = (0..records).map(|index| format!("x{index}"));
            assert!(all.into_iter().all(|path| polled.contains(&path)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_answered_again_brings_the_poll_back_at_once() {
    let bench = busy(50).await;
    bench.weather(Weather::Down);
    bench.pass(HOUR).await;
    bench.backend.put("x7", "two");
    bench.weather(Weather::Fine);
    let polled = bench.polled_in(2 * SECOND).await;
    assert!(polled.len() >= 50, "{}", polled.len());
    assert_eq!(bench.changed(), ["x7"]);
    // Then each has its place in the interval, as before.
    for _ in 0..60 {
        let polled = bench.polled_in(SECOND).await;
        assert!(polled.len() <= 6, "{}", polled.len());
    }
}

#[tokio::test(start_paused = true)]
async fn one_record_that_does_not_answer_holds_up_no_other() {
    let bench = busy(50).await;
    bench.backend.mute("x0", true);
    let polled = bench.polled_in(20 * EVERY).await;
    for index in 1..50 {
        let count = count(&polled, &format!("x{index}"));
        assert!((19..=24).contains(&count), "x{index}: {count}");
    }
    assert!(count(&polled, "x0") < 12, "{}", count(&polled, "x0"));
    bench.backend.put("x0", "two");
    bench.backend.mute("x0", false);
    bench.pass(330 * SECOND).await;
    assert_eq!(bench.changed(), ["x0"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_and_goes_is_not_flooded() {
    let bench = busy(50).await;
    bench.backend.polled();
    for _ in 0..150 {
        bench.weather(Weather::Down);
        bench.pass(3 * SECOND).await;
        bench.weather(Weather::Fine);
        bench.pass(SECOND).await;
    }
    // 600 s, 20 intervals: a few times what it would be without.
    let polled = bench.backend.polled().len();
    assert!(polled < 10_000, "{polled}");
    bench.pass(2 * EVERY).await;
    bench.changed();
    bench.backend.put("x3", "two");
    bench.pass(EVERY + STEP).await;
    assert_eq!(bench.changed(), ["x3"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_sense_is_neither_news_nor_an_outage() {
    let bench = busy(2).await;
    bench.backend.weather(Weather::Garbled);
    let polled = bench.polled_in(10 * EVERY).await.len();
    assert!((20..=22).contains(&polled), "{polled}");
    assert_eq!(bench.changed(), [""; 0]);
}
