//! How much is kept: rule 7.

use super::*;
use crate::secret::{Kind, Sealed};

#[tokio::test]
async fn rule_7_what_was_used_longest_ago_goes_first_and_keeps_its_number() {
    let bench = Bench::new();
    let count = BUDGET / MAX_VALUE + 2;
    let get = async |index: usize| {
        let path: SecretPath = format!("s/v{index}").parse().unwrap();
        let binding = binding(&[&format!("a:s/v{index}")]);
        number(&bench.cache.get(&path, &binding).wait().await)
    };
    let mut numbers = Vec::new();
    for index in 0..count {
        bench.a.put(&format!("s/v{index}"), vec![0; MAX_VALUE]);
        numbers.push(get(index).await);
        get(0).await;
    }
    let figures = bench.cache.figures();
    assert_eq!((figures.bytes, figures.values), (BUDGET, count - 2));
    let reads = bench.a.reads();
    assert_eq!(get(0).await, numbers[0]);
    assert_eq!(bench.a.reads(), reads, "used all the time");
    assert_eq!(get(1).await, numbers[1]);
    assert_eq!(bench.a.reads(), reads + 1, "used longest ago");
}

#[tokio::test]
async fn rule_7_where_the_memory_is_full_what_was_used_longest_ago_makes_room() {
    let bench = Bench::new();
    let note = vec![0; MAX_VALUE];
    let notes = std::iter::from_fn(|| bench.cache.memory.seal(Kind::Note, &note).ok());
    let mut notes: Vec<Sealed> = notes.collect();
    notes.truncate(notes.len() - 2);
    let get = async |index: usize| {
        bench.a.put(&format!("s/v{index}"), vec![7; MAX_VALUE]);
        let path: SecretPath = format!("s/v{index}").parse().unwrap();
        let binding = binding(&[&format!("a:s/v{index}")]);
        bench.cache.get(&path, &binding).wait().await
    };
    get(0).await.unwrap();
    get(1).await.unwrap();
    get(2).await.unwrap();
    assert_eq!(bench.cache.figures().values, 2);
    let open = [get(2).await.unwrap(), get(1).await.unwrap()];
    for served in &open {
        let value = served.generation.value.open().unwrap();
        assert!(value.expose() == vec![7; MAX_VALUE]);
    }
    let error = get(3).await.unwrap_err();
    assert!(matches!(error, BackendError::Unusable(_)), "{error}");
    drop(open);
    get(3).await.unwrap();
}

#[tokio::test]
async fn what_is_dropped_is_wiped_when_nobody_waits_for_the_lock() {
    let bench = Bench::new();
    let served = bench.x().await.unwrap();
    let value = Arc::downgrade(&served.generation.value);
    drop(served);
    let mut state = bench.cache.state();
    state.drop_value(&path());
    assert_eq!((state.values.len(), state.bytes()), (0, 0));
    assert!(value.strong_count() > 0);
    drop(state);
    assert_eq!(value.strong_count(), 0);
}

#[tokio::test]
async fn what_a_refresh_brings_that_is_there_already_takes_no_room() {
    let bench = Bench::new();
    let first = bench.x().await.unwrap();
    let again = bench.refresh().wait().await.unwrap();
    let values = [first, again].map(|served| Arc::clone(&served.generation.value));
    assert!(Arc::ptr_eq(&values[0], &values[1]));
    let state = bench.cache.state();
    assert!(state.records.dropped.is_empty());
}
