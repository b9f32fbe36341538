//! What an open takes while other secrets are rotated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secretfs::clock::Clock;
use secretfs::control::client::Upload;
use secretfs::control::protocol::Request;
use secretfs::secret::SecretBytes;
use serde::Serialize;

use crate::contenders::Daemon;
use crate::load::{self, Cores, Sample, Work};
use crate::tree::{KILO, SMALL, Service, numbered};

/// Between two rotations; a disk that is slower makes them fewer.
const PERIOD: Duration = Duration::from_millis(10);

/// Which secret is rotated, while `warm/small` is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Nobody,
    SameService,
    AnotherService,
}

impl Other {
    const ALL: [Self; 3] = [Self::Nobody, Self::SameService, Self::AnotherService];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "… nothing",
            Self::SameService => "… another secret of the same service",
            Self::AnotherService => "… a secret of another service",
        }
    }

    fn path(self) -> Option<String> {
        let path = |service: Service, name: &str| format!("{}/{name}", service.name());
        match self {
            Self::Nobody => None,
            Self::SameService => Some(path(Service::Warm, KILO)),
            Self::AnotherService => Some(path(Service::Many, &numbered(0))),
        }
    }
}

/// Opens while something is rotated.
#[derive(Debug, Serialize)]
pub(crate) struct Rotation {
    pub(crate) what: &'static str,
    pub(crate) rounds: Vec<Sample>,
    /// Rotations a second that were reached.
    pub(crate) rate: f64,
}

/// The three in turn, round by round, on the server's own core; the first is the one to compare with.
pub(crate) fn run(daemon: &Daemon, turns: usize, rounds: usize, clock: &Clock) -> Vec<Rotation> {
    let mut all = Other::ALL.map(|other| Rotation {
        what: other.name(),
        rounds: Vec::new(),
        rate: 0.0,
    });
    for _ in 0..rounds {
        for (other, rotation) in Other::ALL.into_iter().zip(&mut all) {
            let (sample, rate) = round(daemon, other, turns, clock);
            rotation.rounds.push(sample);
            rotation.rate += rate / rounds as f64;
        }
    }
    all.into()
}

fn round(daemon: &Daemon, other: Other, turns: usize, clock: &Clock) -> (Sample, f64) {
    let contender = daemon.contender();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rotating = other.path().map(|path| {
            let end = &end;
            scope.spawn(move || rotate(daemon, &path, end, clock))
        });
        let work = Work::Open(Service::Warm, SMALL);
        let (root, server) = (&contender.root, contender.server);
        let sample = load::run(work, Cores::One, turns, 1, root, server, clock);
        end.store(true, Ordering::Relaxed);
        let rate = rotating.map_or(0.0, |thread| thread.join().expect("rotates"));
        (sample, rate)
    })
}

/// Rotates until told to end; the rate that it reached.
fn rotate(daemon: &Daemon, path: &str, end: &AtomicBool, clock: &Clock) -> f64 {
    let start = clock.now();
    let mut count = 0_u32;
    while !end.load(Ordering::Relaxed) {
        let due = start + PERIOD * count;
        std::thread::sleep(due.saturating_duration_since(clock.now()));
        let request = Request::Put {
            path: path.parse().expect("a path"),
        };
        let upload = Upload::Value(SecretBytes::new(vec![b'v'; 1024]));
        daemon.ask(&request, upload).expect("put");
        count += 1;
    }
    f64::from(count) / (clock.now() - start).as_secs_f64()
}
