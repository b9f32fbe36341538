//! What becomes of a mount whose server has died.
//!
//! The next one goes on with it at once. But if servers die one right after the other, it is something that they find there
//! which kills them, perhaps a request that the kernel sends to each of them again: then there is a fresh mount, and who
//! waits is let go.

use std::time::Duration;

/// The pause before the server is started on a fresh mount, doubled each time it dies young.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause before the next try to go on with a mount, if a server could not even begin to.
pub(super) const AGAIN: Duration = Duration::from_millis(200);
/// A server that served this long did not die young.
const GROWN_UP: Duration = Duration::from_secs(60);
/// One that served this long has come further than to what the one before has died of.
const CAME_FURTHER: Duration = Duration::from_millis(100);
/// So many that did not may take over from each other.
const IN_A_ROW: u32 = 5;
/// So many that died young may, however far they came.
const YOUNG_IN_A_ROW: u32 = 300;
/// What is said of more.
const TOO_MANY: &str = "servers die of it one right after the other";

/// Servers that have died.
#[derive(Debug)]
pub(super) struct Falls {
    pause: Duration,
    /// How many were dead at once.
    in_a_row: u32,
    /// How many died young.
    young: u32,
}

/// What to do, and after which pause.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on with the mount.
    TakeOver(Duration),
    /// Mount afresh, because of this.
    Afresh(Duration, &'static str),
}

impl Default for Falls {
    fn default() -> Self {
        Self {
            pause: FIRST_PAUSE,
            in_a_row: 0,
            young: 0,
        }
    }
}

impl Falls {
    /// A server has died that had served for so long, if it came so far; the next one can go on with its mount unless there is
    /// a hindrance.
    pub(super) fn fell(
        &mut self,
        served: Option<Duration>,
        hindrance: Option<&'static str>,
    ) -> Next {
        let Some(served) = served else {
            // What it has died of it has not found on the mount.
            return match hindrance {
                None => Next::TakeOver(AGAIN),
                Some(why) => Next::Afresh(self.pause(), why),
            };
        };
        self.in_a_row = match served < CAME_FURTHER {
            true => self.in_a_row + 1,
            false => 0,
        };
        self.young = match served < GROWN_UP {
            true => self.young + 1,
            false => {
                self.pause = FIRST_PAUSE;
                0
            }
        };
        let too_many = self.in_a_row > IN_A_ROW || self.young > YOUNG_IN_A_ROW;
        let Some(why) = hindrance.or(too_many.then_some(TOO_MANY)) else {
            return Next::TakeOver(FIRST_PAUSE * self.in_a_row);
        };
        (self.in_a_row, self.young) = (0, 0);
        match served < GROWN_UP {
            true => Next::Afresh(self.pause(), why),
            false => Next::Afresh(self.pause, why),
        }
    }

    /// The pause before the next try, longer each time.
    pub(super) fn pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: &str = "it is gone";

    #[test]
    fn who_dies_is_followed_at_once_and_who_dies_at_once_not_for_ever() {
        let mut falls = Falls::default();
        let (second, moment) = (Duration::from_secs(1), Duration::from_millis(50));
        for _ in 0..20 {
            assert_eq!(
                falls.fell(Some(second), None),
                Next::TakeOver(Duration::ZERO)
            );
        }
        for count in 1..=IN_A_ROW {
            assert_eq!(
                falls.fell(Some(moment), None),
                Next::TakeOver(FIRST_PAUSE * count)
            );
        }
        assert_eq!(
            falls.fell(Some(moment), None),
            Next::Afresh(FIRST_PAUSE * 2, TOO_MANY)
        );
        assert_eq!(falls.fell(Some(moment), None), Next::TakeOver(FIRST_PAUSE));
    }

    #[test]
    fn who_dies_a_little_later_is_not_followed_for_ever_either() {
        let mut falls = Falls::default();
        for _ in 0..YOUNG_IN_A_ROW {
            assert_eq!(
                falls.fell(Some(CAME_FURTHER), None),
                Next::TakeOver(Duration::ZERO)
            );
        }
        assert_eq!(
            falls.fell(Some(CAME_FURTHER), None),
            Next::Afresh(FIRST_PAUSE * 2, TOO_MANY)
        );
        for _ in 0..2 * YOUNG_IN_A_ROW {
            assert_eq!(
                falls.fell(Some(GROWN_UP), None),
                Next::TakeOver(Duration::ZERO)
            );
        }
    }

    #[test]
    fn who_cannot_even_begin_is_followed_as_long_as_it_may_be() {
        let mut falls = Falls::default();
        for _ in 0..100 {
            assert_eq!(falls.fell(None, None), Next::TakeOver(AGAIN));
        }
        assert_eq!(
            falls.fell(None, Some(WHY)),
            Next::Afresh(FIRST_PAUSE * 2, WHY)
        );
    }

    #[test]
    fn a_fresh_mount_is_made_after_a_longer_pause_each_time() {
        let mut falls = Falls::default();
        let moment = Duration::from_millis(50);
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let pause = Duration::from_millis(pause);
            assert_eq!(
                falls.fell(Some(moment), Some(WHY)),
                Next::Afresh(pause, WHY)
            );
        }
        assert_eq!(
            falls.fell(Some(GROWN_UP), Some(WHY)),
            Next::Afresh(FIRST_PAUSE, WHY)
        );
    }
}
