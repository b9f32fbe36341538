//! Which parts of the memory are free.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The free runs. No two of them touch.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Where each begins, and how long it is.
    by_place: BTreeMap<usize, usize>,
    /// How long each is, and where it begins.
    by_length: BTreeSet<(usize, usize)>,
}

impl Runs {
    /// Takes so much from the run that it fits best into, and says where that is.
    pub(super) fn take(&mut self, length: usize) -> Option<usize> {
        let (whole, place) = *self.by_length.range((length, 0)..).next()?;
        self.remove(place, whole);
        self.insert(place + length..place + whole);
        Some(place)
    }

    /// Frees a run.
    pub(super) fn put(&mut self, run: Range<usize>) {
        let whole = self.take_around(run, 0..usize::MAX);
        self.insert(whole);
    }

    /// Takes what is free right before and after `run`, within `limits`. Returns all of it, with the run.
    pub(super) fn take_around(&mut self, run: Range<usize>, limits: Range<usize>) -> Range<usize> {
        let Range { mut start, mut end } = run;
        if let Some((&place, &length)) = self.by_place.range(..start).next_back()
            && place + length == start
        {
            start = place.max(limits.start);
            self.remove(place, length);
            self.insert(place..start);
        }
        if let Some(&length) = self.by_place.get(&end) {
            let (place, beyond) = (end, end + length);
            end = beyond.min(limits.end);
            self.remove(place, length);
            self.insert(end..beyond);
        }
        start..end
    }

    fn insert(&mut self, run: Range<usize>) {
        if !run.is_empty() {
            self.by_place.insert(run.start, run.len());
            self.by_length.insert((run.len(), run.start));
        }
    }

    fn remove(&mut self, place: usize, length: usize) {
        self.by_place.remove(&place);
        self.by_length.remove(&(length, place));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Runs {
        fn list(&self) -> Vec<Range<usize>> {
            let list: Vec<_> = self
                .by_place
                .iter()
                .map(|(at, len)| *at..at + len)
                .collect();
            let mut other: Vec<_> = self
                .by_length
                .iter()
                .map(|(len, at)| *at..at + len)
                .collect();
            other.sort_by_key(|run| run.start);
            assert_eq!(list, other);
            list
        }

        pub(in super::super) fn total(&self) -> usize {
            self.by_place.values().sum()
        }
    }

    #[test]
    fn what_is_free_around_a_run_is_taken_within_limits() {
        let mut runs = Runs::default();
        runs.put(0..10);
        runs.put(20..30);
        assert_eq!(runs.take_around(10..20, 5..100), 5..30);
        assert!(runs.list().iter().eq([&(0..5)]));
        assert_eq!(runs.take_around(6..8, 0..100), 6..8);
        runs.put(8..40);
        assert_eq!(runs.take_around(5..8, 4..9), 4..9);
        assert_eq!(runs.list(), [0..4, 9..40]);
    }

    proptest! {
        #[test]
        fn all_is_free_or_taken_and_neighbours_are_one(
            steps in proptest::collection::vec((any::<bool>(), 1..20_usize), 1..100)
        ) {
            const ALL: usize = 200;
            let mut runs = Runs::default();
            runs.put(0..ALL);
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (take, n) in steps {
                if take {
                    let fits = runs.list().iter().any(|run| run.len() >= n);
                    let place = runs.take(n);
                    prop_assert_eq!(place.is_some(), fits);
                    taken.extend(place.map(|place| place..place + n));
                } else if !taken.is_empty() {
                    runs.put(taken.swap_remove(n % taken.len()));
                }
                let mut expected = Vec::new();
                let mut at = 0;
                taken.sort_by_key(|run| run.start);
                for run in &taken {
                    prop_assert!(run.start >= at);
                    expected.extend((at < run.start).then_some(at..run.start));
                    at = run.end;
                }
                expected.extend((at < ALL).then_some(at..ALL));
                prop_assert_eq!(runs.list(), expected);
            }
        }
    }
}
