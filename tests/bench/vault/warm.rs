//! What is cached costs the same, wherever it came from.

use super::{Beside, Figures, Scale, World};
use crate::load::{Cores, cores, drive, opens};
use crate::tree::{SMALL, Service};

pub(super) const NAME: &str = "warm open+read+close 64 B from Vault";

/// The two in turn, through one daemon with its default settings.
pub(super) fn run(world: &World<'_>, scale: &Scale, figures: &mut Figures) {
    let services = "[services.remote]\nsource = \"vault:secret/warm/\"\nallow = [{ uid = 0 }]\n";
    let served = world.serve(&["root"], "", services);
    let contender = served.daemon.contender();
    let paths =
        ["remote", Service::Warm.name()].map(|service| contender.root.join(service).join(SMALL));
    let where_to = match cores() {
        1 => vec![Cores::One],
        _ => vec![Cores::One, Cores::Two],
    };
    for cores in where_to {
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..scale.rounds {
            for (path, rounds) in paths.iter().zip(&mut rounds) {
                let of_client = |_| opens(path.clone(), 64, world.clock);
                let server = contender.server;
                rounds.push(drive(cores, scale.turns, server, world.clock, of_client));
            }
        }
        let [ours, theirs] = rounds;
        figures.times.push(Beside {
            what: format!("{NAME}, {}", cores.name()),
            beside: "from the store",
            ours,
            theirs,
        });
    }
}
