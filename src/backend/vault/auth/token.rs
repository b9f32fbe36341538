//! A token, and how long it lives.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::backend::BackendError;

/// What the server knows us by.
pub(in super::super) struct Token {
    pub(in super::super) header: HeaderValue,
    /// Since when we have it.
    pub(super) since: Instant,
    /// How long it lived when it was got or last renewed; zero if it does not end, or nobody knows.
    pub(super) lives: Duration,
    /// Until when it is good; `None` if it does not end, or nobody knows.
    pub(super) ends: Option<Instant>,
    /// From when on it is to be renewed or replaced.
    pub(super) due: Option<Instant>,
    pub(super) renewable: bool,
    /// We signed in for it, so it is ours to end.
    pub(super) ours: bool,
    /// What it may do, by the names that the sign-in gave; sorted.
    pub(super) policies: Vec<String>,
    /// What its file was like.
    pub(super) print: Option<Print>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// No token lives longer.
const LONG: Duration = Duration::from_secs(100 * 366 * 86_400);

/// What a file is recognised by.
pub(super) type Print = (u64, i64, i64, u64);

pub(super) fn print(path: &Path) -> Option<Print> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

impl Token {
    /// A token's times, from now on, without the token.
    pub(super) fn life(now: Instant, duration: Duration, renewable: bool) -> Self {
        // A server may say anything, and a clock does not go on forever.
        let lives = (!duration.is_zero()).then_some(duration.min(LONG));
        Self {
            header: HeaderValue::from_static(""),
            since: now,
            lives: duration,
            ends: lives.map(|lives| now + lives),
            due: lives.map(|lives| now + lives.mul_f64(2.0 / 3.0).mul_f64(jitter())),
            renewable,
            ours: false,
            policies: Vec::new(),
            print: None,
        }
    }

    /// The same token after a renewal at `now`. One that gave less than the one before has come near the longest life that
    /// the token can have: it is renewed no more, and replaced when that is due if it is ours.
    pub(super) fn renewed(&self, now: Instant, duration: Duration, renewable: bool) -> Self {
        let capped = duration.saturating_add(Duration::from_secs(1)) < self.lives;
        let life = Self::life(now, duration, renewable && !capped);
        Self {
            header: self.header.clone(),
            since: self.since,
            due: life.due.filter(|_| self.ours || life.renewable),
            ours: self.ours,
            policies: self.policies.clone(),
            print: self.print,
            ..life
        }
    }
}

/// From nine tenths to one: a fleet that started together does not come again together.
fn jitter() -> f64 {
    let mut byte = [0; 1];
    // Without a random number it is none.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    let [byte] = byte;
    1.0 - f64::from(byte) / 2560.0
}

pub(super) fn header(token: &[u8]) -> Result<HeaderValue, BackendError> {
    let mut header = HeaderValue::from_bytes(token).map_err(|_| {
        BackendError::Refused("cannot sign in: the token has odd characters".into())
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// How often something may be done that may be in vain: less and less often where it is wanted all the time.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<Instant>,
    wait: Duration,
}

impl Pace {
    const FIRST: Duration = Duration::from_secs(5);
    const LAST: Duration = Duration::from_secs(600);

    /// Whether it may be done now; if so it counts as done.
    pub(super) fn may(&mut self, now: Instant) -> bool {
        let since = self
            .last
            .map(|last| now.saturating_duration_since(last))
            .unwrap_or(Duration::MAX);
        if since < self.wait {
            return false;
        }
        self.wait = match since < self.wait.saturating_mul(4) {
            true => self.wait.saturating_mul(2).min(Self::LAST),
            false => Self::FIRST,
        };
        self.last = Some(now);
        true
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            last: None,
            wait: Self::FIRST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_is_wanted_all_the_time_is_done_less_and_less_often() {
        let (clock, mut pace) = (Clock::manual(), Pace::default());
        let mut done = Vec::new();
        for second in 0..3600 {
            if pace.may(clock.now()) {
                done.push(second);
            }
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(
            done,
            [0, 5, 15, 35, 75, 155, 315, 635, 1235, 1835, 2435, 3035]
        );
        clock.advance(Pace::LAST * 4);
        assert!(pace.may(clock.now()));
        clock.advance(Pace::FIRST);
        assert!(pace.may(clock.now()));
    }

    #[test]
    fn a_token_is_due_at_two_thirds_of_its_life_or_a_little_before() {
        let now = Clock::manual().now();
        for _ in 0..100 {
            let token = Token::life(now, Duration::from_secs(90), true);
            let due = token.due.unwrap() - now;
            assert!((54.0..=60.0).contains(&due.as_secs_f64()), "{due:?}");
            assert_eq!(token.ends, Some(now + Duration::from_secs(90)));
        }
        assert_eq!(Token::life(now, Duration::ZERO, false).ends, None);
    }

    #[test]
    fn a_token_near_its_longest_life_is_replaced_and_not_renewed() {
        let now = Clock::manual().now();
        let seconds = Duration::from_secs;
        for ours in [true, false] {
            let token = Token {
                ours,
                ..Token::life(now, seconds(90), true)
            };
            let again = token.renewed(now, seconds(90), true);
            assert!(again.renewable && again.due.is_some());
            let last = again.renewed(now, seconds(30), true);
            assert!(!last.renewable);
            assert_eq!(last.due.is_some(), ours);
            assert_eq!(last.ends, Some(now + seconds(30)));
            // What is left of a token that was given says nothing of what a renewal gives.
            let given = Token::life(now, seconds(10), true);
            assert!(given.renewed(now, seconds(90), true).renewable);
        }
    }
}
