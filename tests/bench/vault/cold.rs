//! The first open of a secret, beside one bare request for the same record; and many readers of one.

use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use super::{Beside, Count, Figures, Scale, World, open};
use crate::load::Sample;
use crate::tree::numbered;

pub(super) const NAME: &str = "cold open+read+close from Vault";

pub(super) fn run(world: &World<'_>, scale: &Scale, figures: &mut Figures) {
    let services = "[cache]\nttl = \"1h\"\n\n[services.remote]\nsource = \"vault:secret/many/\"\nallow = [{ uid = 0 }]\n";
    // What has been opened would be polled besides, more and more of it: see `polls`.
    let served = world.serve(&["root"], "poll = \"0s\"", services);
    let many = served.daemon.root().join("remote");
    // The connection, the sign-in and where the engine is; and the names, as nobody opens what he has not seen.
    let mut names = (0..scale.many).map(numbered);
    let first = names.next().expect("a record");
    let (_, _) = (
        open(&many.join(&first), 1024, world.clock),
        world.read("many", &first),
    );
    let ways: [(&'static str, Bare); 2] = [
        ("one HTTPS request", |world, name| world.read("many", name)),
        ("… on a new connection", |world, name| {
            world.read_as_stranger("many", name)
        }),
    ];
    for (beside, bare) in ways {
        let (ours, theirs) = one_by_one(world, scale, &many, &mut names, bare);
        figures.times.push(Beside {
            what: NAME.to_owned(),
            beside,
            ours,
            theirs,
        });
    }
    at_once(world, scale, &many, &mut names, figures);
}

/// A request for a record: the length of the answer.
type Bare = fn(&World<'_>, &str) -> usize;

/// Each record is read both ways, in turn in both orders, so that neither finds the server better prepared.
fn one_by_one(
    world: &World<'_>,
    scale: &Scale,
    many: &Path,
    names: &mut impl Iterator<Item = String>,
    bare: Bare,
) -> (Vec<Sample>, Vec<Sample>) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let mut turns = [Vec::new(), Vec::new()];
        for (index, name) in names.by_ref().take(scale.cold).enumerate() {
            let mut through_us = || open(&many.join(&name), 1024, world.clock);
            let mut bare = || {
                let start = world.clock.now();
                assert!(bare(world, &name) > 1024);
                world.clock.now() - start
            };
            let each: [(usize, &mut dyn FnMut() -> Duration); 2] =
                [(0, &mut through_us), (1, &mut bare)];
            let mut each = Vec::from(each);
            if index % 2 == 1 {
                each.reverse();
            }
            for (whose, turn) in each {
                turns[whose].push(turn());
            }
        }
        let [our_turns, their_turns] = turns.map(|turns| {
            let wall = turns.iter().sum();
            Sample::of(turns, wall)
        });
        ours.push(our_turns);
        theirs.push(their_turns);
    }
    (ours, theirs)
}

/// One cold secret for all in each round, and then once more, now that it is warm.
fn at_once(
    world: &World<'_>,
    scale: &Scale,
    many: &Path,
    names: &mut impl Iterator<Item = String>,
    figures: &mut Figures,
) {
    let (mut cold, mut warm, mut most) = (Vec::new(), Vec::new(), 0);
    for name in names.take(scale.rounds) {
        let path = many.join(&name);
        let mark = world.mark();
        cold.push(together(&path, scale.readers, world));
        most = most.max(world.requests(mark, &format!("secret/data/many/{name}\"")));
        warm.push(together(&path, scale.readers, world));
    }
    let readers = scale.readers;
    figures.times.push(Beside {
        what: format!("… the same by {readers} at once"),
        beside: "the same, warm",
        ours: cold,
        theirs: warm,
    });
    figures.counts.push(Count {
        what: format!("value reads for {readers} readers of one cold secret"),
        count: most as f64,
        goal: 1.0,
    });
}

/// How long each of so many readers waits, from the moment in which all begin.
fn together(path: &Path, readers: usize, world: &World<'_>) -> Sample {
    let ready = Barrier::new(readers + 1);
    std::thread::scope(|scope| {
        let reader = |_| {
            scope.spawn(|| {
                ready.wait();
                open(path, 1024, world.clock)
            })
        };
        let threads: Vec<_> = (0..readers).map(reader).collect();
        ready.wait();
        let start = world.clock.now();
        let turns = threads
            .into_iter()
            .map(|thread| thread.join().expect("a reader"));
        let turns: Vec<Duration> = turns.collect();
        Sample::of(turns, world.clock.now() - start)
    })
}
