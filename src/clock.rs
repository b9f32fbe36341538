//! Time, as an argument.
//!
//! Everything that waits, expires or stamps takes a [`Clock`], so that tests can let an hour pass in no time.
//! This is the only module that reads the machine's clocks (`.clippy.toml` sees to it).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Where the time comes from: the machine, or a test.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    Machine,
    Manual(Arc<Mutex<Reading>>),
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    monotonic: Instant,
    wall: Timestamp,
}

impl Clock {
    /// A clock that stands still until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual() -> Self {
        let reading = Reading {
            monotonic: machine_instant(),
            wall: machine_timestamp(),
        };
        Self(Source::Manual(Arc::new(Mutex::new(reading))))
    }

    /// The monotonic time, for ages and deadlines.
    #[must_use]
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::Machine => machine_instant(),
            Source::Manual(reading) => {
                reading
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .monotonic
            }
        }
    }

    /// The time of day, for the audit log and for people.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        match &self.0 {
            Source::Machine => machine_timestamp(),
            Source::Manual(reading) => reading.lock().unwrap_or_else(PoisonError::into_inner).wall,
        }
    }

    /// Moves a manual clock forward. The machine's clock ignores it.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(reading) = &self.0 {
            let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
            reading.monotonic += by;
            reading.wall = reading.wall.saturating_add(by).unwrap_or(reading.wall);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "this module is the clock")]
fn machine_instant() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "this module is the clock")]
fn machine_timestamp() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual();
        let (start, wall) = (clock.now(), clock.timestamp());
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(60));
        assert_eq!(clock.now() - start, Duration::from_secs(60));
        assert_eq!(clock.timestamp().as_second() - wall.as_second(), 60);
    }
}
