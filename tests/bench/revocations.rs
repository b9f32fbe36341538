//! From `secretfs revoke` to the last read of a program that polls an open file, beside a command that changes nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use secretfs::clock::Clock;

use crate::contenders::Daemon;
use crate::load::Sample;
use crate::tree::{SMALL, Service};

/// Both with the program's own start.
pub(crate) struct Revocations {
    /// From the start of the program to the last read that succeeded.
    pub(crate) last_read: Sample,
    /// `secretfs status`, from start to end.
    pub(crate) status: Sample,
}

/// Takes a secret away from its reader and gives it back, `count` times.
pub(crate) fn run(daemon: &Daemon, count: usize, clock: &Clock) -> Revocations {
    let path = format!("{}/{SMALL}", Service::Warm.name());
    let (mut reads, mut statuses) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let file = File::open(daemon.root().join(&path)).expect("opens");
        let poller = std::thread::spawn({
            let clock = clock.clone();
            move || poll(&file, &clock)
        });
        let start = clock.now();
        daemon.command(&["revoke", &path]);
        let last = poller.join().expect("the reader");
        reads.push(last.saturating_duration_since(start));
        daemon.command(&["unrevoke", &path]);
        let start = clock.now();
        daemon.command(&["status"]);
        statuses.push(clock.now() - start);
    }
    let sample = |turns: Vec<Duration>| {
        let wall = turns.iter().sum();
        Sample::of(turns, wall)
    };
    Revocations {
        last_read: sample(reads),
        status: sample(statuses),
    }
}

/// Reads until that is refused, and says when it last was not.
fn poll(file: &File, clock: &Clock) -> Instant {
    let mut buffer = [0_u8; 64];
    let mut last = clock.now();
    loop {
        match file.read_at(&mut buffer, 0) {
            Ok(_) => last = clock.now(),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
                return last;
            }
        }
    }
}
