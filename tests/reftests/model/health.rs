//! Which backends are asked at all.

use super::*;

/// How a backend is that did not answer.
#[derive(Default)]
pub(super) struct Health {
    pub(super) down: bool,
    failures: u32,
    /// Until when it is left alone, and how long that was.
    alone: Option<(u64, u64)>,
    probing: bool,
}

/// What is asked in one moment.
#[derive(Default)]
pub(super) struct AtOnce {
    /// What failed: those who ask for the same are one question.
    pub(super) failed: HashMap<&'static str, Result<(), No>>,
    /// The backends of whom it is not known yet that they will be too late.
    late: Vec<char>,
}

impl Model {
    /// Whether a backend may be asked.
    pub(super) fn admits(&mut self, backend: char) -> bool {
        let alone = self.is_alone(backend);
        let health = self.health.entry(backend).or_default();
        if health.alone.is_none() {
            return true;
        }
        !alone && !std::mem::replace(&mut health.probing, true)
    }

    pub(super) fn is_alone(&self, backend: char) -> bool {
        let alone = self.health.get(&backend).and_then(|health| health.alone);
        alone.is_some_and(|(until, _)| self.now < until)
    }

    pub(super) fn is_down(&self, backend: char) -> bool {
        self.health.get(&backend).is_some_and(|health| health.down)
    }

    /// A backend has answered so.
    pub(super) fn hear(&mut self, backend: char, storm: Option<No>) {
        match (&mut self.at_once, storm) {
            (Some(at_once), Some(No::Late)) => at_once.late.push(backend),
            _ => self.heard(backend, storm),
        }
    }

    /// The same of a list. Who waited for it goes on in the very moment in which the backend is found to be too late.
    pub(super) fn hear_of_list(&mut self, backend: char, storm: Option<No>) {
        match (&self.at_once, storm) {
            (None, Some(No::Late)) => self.late_lists.push(backend),
            _ => self.hear(backend, storm),
        }
    }

    /// A moment later.
    pub(super) fn hear_of_late_lists(&mut self) {
        for backend in std::mem::take(&mut self.late_lists) {
            self.heard(backend, Some(No::Late));
        }
    }

    fn heard(&mut self, backend: char, storm: Option<No>) {
        let now = self.now;
        let alone = self.is_alone(backend);
        let health = self.health.entry(backend).or_default();
        let down = match storm {
            Some(No::Down | No::Late) => {
                health.down = true;
                health.probing = false;
                health.failures += 1;
                if health.failures >= 5 && !alone {
                    let pause = health.alone.map_or(1, |(_, pause)| (2 * pause).min(30));
                    health.alone = Some((now + pause, pause));
                }
                return;
            }
            Some(No::Garbled) => health.down,
            Some(No::Refused | No::Absent) | None => false,
        };
        *health = Health {
            down,
            ..Health::default()
        };
    }

    /// The moment is over.
    pub(super) fn all_have_answered(&mut self) {
        self.hear_of_late_lists();
        let late = self.at_once.take().map(|at_once| at_once.late);
        for backend in late.into_iter().flatten() {
            self.heard(backend, Some(No::Late));
        }
    }
}
