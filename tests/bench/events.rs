//! From a `put` to whoever watches the folder, beside a file in tmpfs that is renamed over another.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use secretfs::clock::Clock;
use secretfs::control::client::Upload;
use secretfs::control::protocol::Request;
use secretfs::secret::SecretBytes;

use crate::contenders::Daemon;
use crate::load::Sample;
use crate::tree::{KILO, Service};

const DEADLINE: Duration = Duration::from_secs(10);

/// How long until the watcher had read its event.
pub(crate) struct Events {
    /// From the moment in which the change was asked for.
    pub(crate) asked: Sample,
    /// From the moment in which it had returned; nothing where the event was there before.
    pub(crate) returned: Sample,
}

/// Puts `count` new values of a secret that readers have.
pub(crate) fn put(daemon: &Daemon, count: usize, clock: &Clock) -> Events {
    let folder = daemon.root().join(Service::Warm.name());
    let path = format!("{}/{KILO}", Service::Warm.name());
    measure(&folder, count, clock, || {
        let path = path.parse().expect("a path");
        let value = SecretBytes::new(vec![b'v'; 1024]);
        let upload = Upload::Value(value);
        daemon.ask(&Request::Put { path }, upload).expect("put");
    })
}

/// The same with plain files.
pub(crate) fn rename(folder: &Path, count: usize, clock: &Clock) -> Events {
    let folder = folder.join(Service::Warm.name());
    let new = folder.join("new");
    measure(&folder, count, clock, || {
        fs::write(&new, [b'v'; 1024]).expect("writes");
        fs::rename(&new, folder.join(KILO)).expect("renames");
    })
}

fn measure(folder: &Path, count: usize, clock: &Clock, mut change: impl FnMut()) -> Events {
    let events = watch(folder, count, clock.clone());
    let (mut asked, mut returned) = (Vec::new(), Vec::new());
    let begin = clock.now();
    for _ in 0..count {
        // As a reader has it, and then watches for the next one.
        let _ = fs::read(folder.join(KILO)).expect("reads");
        let start = clock.now();
        change();
        let end = clock.now();
        let event = events.recv_timeout(DEADLINE).expect("an event");
        asked.push(event - start);
        returned.push(event.saturating_duration_since(end));
    }
    let wall = clock.now() - begin;
    Events {
        asked: Sample::of(asked, wall),
        returned: Sample::of(returned, wall),
    }
}

/// A watcher of a folder, which says when it has read each of `count` events about a name that was replaced.
fn watch(folder: &Path, count: usize, clock: Clock) -> Receiver<Instant> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    let moved = AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, moved).expect("a watch");
    let (heard, events) = channel();
    std::thread::spawn(move || {
        let mut left = count;
        while left > 0 {
            let read = inotify.read_events().expect("events");
            let now = clock.now();
            for _ in read.iter().filter(|event| event.name == Some(KILO.into())) {
                left = left.saturating_sub(1);
                let _ = heard.send(now);
            }
        }
    });
    events
}
