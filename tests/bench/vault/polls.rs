//! How often the server is asked while nothing changes.

use std::fs::{self, File};
use std::time::Duration;

use super::{Count, Figures, Scale, World};
use crate::load::list;
use crate::tree::numbered;

pub(super) const NAME: &str = "requests to Vault while nothing changes";

/// The records in use.
const USED: usize = 100;

/// What the bar is for.
const POLL: Duration = Duration::from_secs(30);

/// All names are known, and of these some are in use: first because somebody has them open, then because somebody opens
/// each of them twice in an interval, with a TTL of two intervals, which is 60 s where the interval is 30 s.
pub(super) fn run(world: &World<'_>, scale: &Scale, figures: &mut Figures) {
    let (poll, many) = (scale.poll, scale.many);
    let seconds = poll.as_secs();
    for opened_again in [false, true] {
        let ttl = if opened_again { 2 * seconds } else { 3600 };
        let services = format!(
            "[cache]\nttl = \"{ttl}s\"\n\n[services.remote]\nsource = \"vault:secret/many/\"\nallow = [{{ uid = 0 }}]\n"
        );
        let keys = format!("poll = \"{seconds}s\"");
        let served = world.serve(&["root"], &keys, &services);
        let folder = served.daemon.root().join("remote");
        list(&folder);
        let paths: Vec<_> = (0..USED)
            .map(|index| folder.join(numbered(index)))
            .collect();
        let mut open = Vec::new();
        for path in &paths {
            let _ = fs::read(path).expect("reads");
            if !opened_again {
                open.push(File::open(path).expect("opens"));
            }
        }
        // Until each has its place in the interval, and the events' connection has been made.
        std::thread::sleep(poll + Duration::from_secs(2));
        let (mark, start) = (world.mark(), world.clock.now());
        while world.clock.now() - start < poll * scale.polls {
            std::thread::sleep(poll / 2);
            if opened_again {
                for path in &paths {
                    let _ = fs::read(path).expect("reads");
                }
            }
        }
        let wall = (world.clock.now() - start).as_secs_f64();
        let requests = world.requests(mark, "");
        // The same requests in the interval that the bar is for.
        let scaled = poll.as_secs_f64() / POLL.as_secs_f64();
        let how = match opened_again {
            false => "open",
            true => "opened again and again, ttl = \"60s\"",
        };
        figures.counts.push(Count {
            what: format!("requests a second at poll = \"30s\", {USED} of {many} {how}"),
            count: requests as f64 / wall * scaled,
            goal: 3.5,
        });
    }
}
