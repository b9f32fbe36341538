//! From a write on the server to the first open that shows it, by each way to hear of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Beside, Figures, Scale, World};
use crate::common::broker::{Broker, Kind};
use crate::common::machine::{Need, has};
use crate::common::relay::Relay;
use crate::contenders::{Daemon, wait_for};
use crate::load::Sample;

pub(super) const NAME: &str = "from a write in Vault to the first open that shows it";

/// What is written.
const RECORD: &str = "changing";

/// Longer than any of them may take.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn run(world: &World<'_>, scale: &Scale, figures: &mut Figures) {
    let rules = ["data", "metadata"]
        .map(|part| format!("path \"secret/{part}/warm/*\" {{ capabilities = [\"read\"] }}\n"));
    // Who may not subscribe hears of nothing.
    world.vault.policy("deaf", &rules.concat());
    let services = format!(
        "[cache]\nttl = \"1h\"\n\n[services.app]\nallow = [{{ uid = 0 }}]\nsecrets.{RECORD} = \"vault:secret/warm/{RECORD}#value\"\n"
    );
    let mut measure = |how: &str, daemon: &Daemon, hears: bool, writes: usize| {
        world.write("warm", RECORD, b"0");
        let path = daemon.root().join("app").join(RECORD);
        let _ = fs::read(&path).expect("reads");
        if hears {
            wait_for("who hears of changes", world.clock, || heard(daemon));
        }
        figures.times.push(waits(world, how, &path, writes));
    };
    let served = world.serve(&["root"], "poll = \"0s\"", &services);
    measure("events", &served.daemon, true, scale.writes);
    drop(served);
    let served = world.serve(&["deaf"], "poll = \"1s\"", &services);
    measure(
        "poll = \"1s\" alone",
        &served.daemon,
        false,
        scale.writes.div_ceil(3),
    );
    drop(served);
    if has(&[Need::Program("nats-server")]) {
        let broker = Broker::start(Kind::Nats);
        let audit = world.vault.at("audit.log");
        let log = ["--audit-file", audit.to_str().expect("text")];
        let _relay = Relay::start(&world.vault, &broker, log);
        let sections = broker.section() + &services;
        let served = world.serve(&["deaf"], "poll = \"0s\"", &sections);
        measure("the relay over NATS", &served.daemon, true, scale.writes);
    }
}

/// Whether what tells of changes is connected.
fn heard(daemon: &Daemon) -> bool {
    let backends = daemon.status().backends;
    let mut signals = backends.into_iter().filter_map(|backend| backend.signals);
    signals.any(|signals| signals.heard.is_some())
}

/// From the beginning of each write, beside how long it takes until the server says that it is done.
fn waits(world: &World<'_>, how: &str, path: &Path, writes: usize) -> Beside {
    let (mut shown, mut written) = (Vec::new(), Vec::new());
    for turn in 0..writes {
        let value = format!("{how} {turn}");
        // At another place in the interval of a poll each time.
        std::thread::sleep(Duration::from_millis(100 + (turn as u64 * 367) % 1000));
        let start = world.clock.now();
        world.write("warm", RECORD, value.as_bytes());
        written.push(world.clock.now() - start);
        while fs::read(path).expect("reads") != value.as_bytes() {
            let waited = world.clock.now() - start;
            assert!(waited < DEADLINE, "{how}: a change was not seen");
            std::thread::sleep(Duration::from_micros(500));
        }
        shown.push(world.clock.now() - start);
    }
    let sample = |turns: Vec<Duration>| {
        let wall = turns.iter().sum();
        vec![Sample::of(turns, wall)]
    };
    Beside {
        what: format!("{NAME}: {how}"),
        beside: "the write itself",
        ours: sample(shown),
        theirs: sample(written),
    }
}
