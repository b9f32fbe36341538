//! Time, as an argument.
//!
//! Everything that waits, expires or stamps takes a [`Clock`], so that tests can let an hour pass in no time.
//! This is the only module that reads the machine's clocks (`.clippy.toml` sees to it).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

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
    running: Duration,
    wall: Timestamp,
}

impl Clock {
    /// A clock that stands still until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual() -> Self {
        let reading = Reading {
            monotonic: machine_instant(),
            running: machine_running(),
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

    /// Both at once, to tell the time of one by the other.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            now: self.now(),
            wall: self.timestamp(),
        }
    }

    /// The same with a time of day that begins with the machine and that nobody sets: for what goes to another process of
    /// this machine, before its next start.
    #[must_use]
    pub fn running(&self) -> Moment {
        let (now, running) = match &self.0 {
            Source::Machine => (machine_instant(), machine_running()),
            Source::Manual(reading) => {
                let reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
                (reading.monotonic, reading.running)
            }
        };
        let wall = Timestamp::UNIX_EPOCH.saturating_add(running);
        Moment {
            now,
            wall: wall.unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// Sets the time of day of a manual clock.
    #[cfg(test)]
    pub fn set(&self, wall: Timestamp) {
        if let Source::Manual(reading) = &self.0 {
            reading.lock().unwrap_or_else(PoisonError::into_inner).wall = wall;
        }
    }

    /// Moves a manual clock forward. The machine's clock ignores it.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(reading) = &self.0 {
            let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
            reading.monotonic += by;
            reading.running += by;
            reading.wall = reading.wall.saturating_add(by).unwrap_or(reading.wall);
        }
    }
}

/// The two clocks at one moment: what outlives a process is written down by the time of day.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic time.
    pub now: Instant,
    /// The time of day.
    pub wall: Timestamp,
}

impl Moment {
    /// What the time of day is or was at `then`.
    #[must_use]
    pub fn wall(self, then: Instant) -> Timestamp {
        let left = then.saturating_duration_since(self.now);
        let ago = self.now.saturating_duration_since(then);
        let wall = self.wall.saturating_sub(ago);
        let wall = wall.and_then(|wall| wall.saturating_add(left));
        wall.unwrap_or(self.wall)
    }

    /// When it was that time of day. If that is still to come the clock was set back, and it is now.
    #[must_use]
    pub fn instant(self, then: Timestamp) -> Instant {
        let ago = Duration::try_from(self.wall.duration_since(then)).unwrap_or_default();
        // Linux counts beyond its start.
        self.now.checked_sub(ago).unwrap_or(self.now)
    }

    /// How much time is left until then.
    #[must_use]
    pub fn until(self, then: Timestamp) -> Duration {
        Duration::try_from(then.duration_since(self.wall)).unwrap_or_default()
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

/// For how long the machine has run, by the clock that an [`Instant`] is of.
fn machine_running() -> Duration {
    let running = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    // Linux has this clock; without it what was left would look older than it is.
    running.unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_tells_one_clock_by_the_other() {
        let clock = Clock::manual();
        let start = clock.now();
        clock.advance(Duration::from_secs(60));
        let at = clock.moment();
        let (before, after) = (at.wall(start), at.wall(at.now + Duration::from_secs(5)));
        assert_eq!(at.wall.as_second() - before.as_second(), 60);
        assert_eq!(
            (at.instant(before), at.until(before)),
            (start, Duration::ZERO)
        );
        assert_eq!(at.until(after), Duration::from_secs(5));
        assert_eq!(at.instant(after), at.now, "the clock was set back");
        // Before the machine was started.
        let long = Timestamp::UNIX_EPOCH;
        assert_eq!(at.wall(at.instant(long)).as_second(), 0);
    }

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
