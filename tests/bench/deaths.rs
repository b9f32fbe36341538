//! From the death of the server to the next answer, and how long a reader waits while another release takes over.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secretfs::clock::Clock;

use crate::contenders::Daemon;
use crate::load::Sample;
use crate::tree::{SMALL, Service};

/// A server that dies sooner than this after another one has died died at once, and is not followed for ever.
const BETWEEN: Duration = Duration::from_millis(200);

pub(crate) struct Deaths {
    /// From SIGKILL to the end of the next open, read and close.
    pub(crate) killed: Sample,
    /// The longest of the reads while `secretfs upgrade` ran.
    pub(crate) upgraded: Sample,
}

/// Kills the server `count` times, and has the same program take over as often.
pub(crate) fn run(daemon: &Daemon, count: usize, clock: &Clock) -> Deaths {
    let path = daemon.root().join(Service::Warm.name()).join(SMALL);
    let read = || drop(fs::read(&path).expect("reads"));
    let (mut killed, mut upgraded) = (Vec::new(), Vec::new());
    for _ in 0..count {
        read();
        std::thread::sleep(BETWEEN);
        let server = daemon.contender().server.expect("a server");
        let server = Pid::from_raw(i32::try_from(server).expect("a pid"));
        let start = clock.now();
        kill(server, Signal::SIGKILL).expect("kills");
        read();
        killed.push(clock.now() - start);
    }
    for _ in 0..count {
        let end = AtomicBool::new(false);
        upgraded.push(std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !end.load(Ordering::Relaxed) {
                    let start = clock.now();
                    read();
                    longest = longest.max(clock.now() - start);
                }
                longest
            });
            daemon.command(&["upgrade"]);
            end.store(true, Ordering::Relaxed);
            reader.join().expect("the reader")
        }));
    }
    let sample = |turns: Vec<Duration>| {
        let wall = turns.iter().sum();
        Sample::of(turns, wall)
    };
    Deaths {
        killed: sample(killed),
        upgraded: sample(upgraded),
    }
}
