//! What is cached and old, while the server is away, beside the same before.

use std::path::PathBuf;
use std::time::Duration;

use super::{Beside, Figures, Scale, World, open};
use crate::load::{Cores, Sample, drive, opens};
use crate::tree::SMALL;

pub(super) const NAME: &str = "warm opens while Vault is away";

/// How the server goes away.
type Leave = fn(&World<'_>);

/// One who reads now and then.
const PACE: Duration = Duration::from_millis(10);

pub(super) fn run(world: &World<'_>, scale: &Scale, figures: &mut Figures) {
    let ttl = scale.outage_ttl;
    let services = format!(
        "[cache]\nttl = \"{}s\"\nstale = \"1h\"\n\n[services.remote]\nsource = \"vault:secret/warm/\"\nallow = [{{ uid = 0 }}]\n",
        ttl.as_secs()
    );
    let vault = &world.vault;
    let away: [(&str, Leave); 2] = [
        ("stopped", |world| world.vault.pause()),
        ("killed", |world| world.vault.kill()),
    ];
    for (how, leave) in away {
        let served = world.serve(&["root"], "", &services);
        let contender = served.daemon.contender();
        let reader = Reader {
            path: contender.root.join("remote").join(SMALL),
            server: contender.server,
        };
        let _ = open(&reader.path, 64, world.clock);
        let before = reader.read(scale, world);
        leave(world);
        std::thread::sleep(ttl + ttl / 5);
        let after = reader.read(scale, world);
        match how {
            "stopped" => vault.resume(),
            _ => vault.restart(),
        }
        for (pace, ours, theirs) in [
            ("one after the other", after.at_once, before.at_once),
            ("one each 10 ms", after.paced, before.paced),
        ] {
            figures.times.push(Beside {
                what: format!("{NAME}, {how}, {pace}"),
                beside: "before",
                ours,
                theirs,
            });
        }
    }
}

struct Reader {
    path: PathBuf,
    server: Option<u32>,
}

/// By who opens as fast as he can, and by who opens now and then.
struct Read {
    at_once: Vec<Sample>,
    paced: Vec<Sample>,
}

impl Reader {
    /// The two in turn, for as long as the outage is looked at. The very first open is one of those that are paced.
    fn read(&self, scale: &Scale, world: &World<'_>) -> Read {
        let (mut at_once, mut paced) = (Vec::new(), Vec::new());
        let wall = scale.outage / u32::try_from(scale.rounds).expect("a few");
        for _ in 0..scale.rounds {
            paced.push(self.paced(wall, world));
            let of_client = |_| opens(self.path.clone(), 64, world.clock);
            let (turns, server) = (scale.turns, self.server);
            at_once.push(drive(Cores::One, turns, server, world.clock, of_client));
        }
        Read { at_once, paced }
    }

    /// Begins an open every so often, or as soon as the one before is done.
    fn paced(&self, wall: Duration, world: &World<'_>) -> Sample {
        let start = world.clock.now();
        let mut turns = Vec::new();
        while turns.is_empty() || world.clock.now() - start < wall {
            let turn = open(&self.path, 64, world.clock);
            turns.push(turn);
            std::thread::sleep(PACE.saturating_sub(turn));
        }
        Sample::of(turns, wall)
    }
}
