//! Looks for a server that is dead of which nobody says so.
//!
//! A thread that hangs in the kernel, waiting for a folder that somebody else holds or for an answer of its own process, keeps
//! a killed one from ending: it answers nobody, and nobody is told of its death.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::Process;
use crate::clock::Clock;

/// Two looks that find the same are believed: one may have met a server that is about to end as it should.
#[derive(Debug)]
pub(super) struct Lookout {
    next: Instant,
    stuck: bool,
}

impl Lookout {
    /// How long there is between two looks, in milliseconds, and before one that should find it dead.
    const PAUSE: u16 = 500;
    const SHORT_PAUSE: u16 = 50;

    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            next: clock.now() + Duration::from_millis(Self::PAUSE.into()),
            stuck: false,
        }
    }

    /// How long there is until the next look at most, in milliseconds.
    pub(super) fn pause(&self) -> u16 {
        match self.stuck {
            true => Self::SHORT_PAUSE,
            false => Self::PAUSE,
        }
    }

    /// It is dying, and should have ended by the next look.
    pub(super) fn hurry(&mut self, clock: &Clock) {
        let soon = clock.now() + Duration::from_millis(Self::SHORT_PAUSE.into());
        self.next = self.next.min(soon);
    }

    /// Looks, if it is time to. To be asked whatever else happens: on a busy machine somebody always mounts something, and
    /// it is never quiet.
    pub(super) fn sees_it_stuck(&mut self, clock: &Clock, child: &Process) -> bool {
        let now = clock.now();
        if now < self.next {
            return false;
        }
        let before = self.stuck;
        self.stuck = is_stuck(child);
        self.next = now + Duration::from_millis(self.pause().into());
        before && self.stuck
    }
}

/// True of a server whose first thread is dead while others are not, and none of those can run: on a busy machine one may take
/// its time to die, and could still take a request along.
fn is_stuck(child: &Process) -> bool {
    let process = PathBuf::from(format!("/proc/{}", child.pid()));
    let threads = fs::read_dir(process.join("task"));
    let mut threads = threads.into_iter().flatten().flatten();
    state(&process) == Some('Z')
        && threads.all(|thread| matches!(state(&thread.path()), None | Some('Z' | 'X' | 'D')))
}

/// The letter for the state of a process or a thread.
fn state(process: &Path) -> Option<char> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name before it is in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.chars().next()
}
