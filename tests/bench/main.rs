//! What secretfs costs: `cargo bench`, as root, with `/dev/fuse`. See docs/benchmarks.md.
//!
//! The real daemon is measured against tmpfs and against a bare fuser file system that answers the same requests and
//! checks nothing, in turn, round by round, with clients and servers on the same cores. Nothing is asserted of times:
//! what is printed is for people, who know what else the machine was doing.
#![allow(
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for developers, which may end where something is not as it should be"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use secretfs::clock::Clock;
use secretfs::sys::Uid;
use tempfile::TempDir;

#[path = "../common/mod.rs"]
mod common;

mod bare;
mod contenders;
mod deaths;
mod events;
mod load;
mod micro;
mod puts;
mod report;
mod revocations;
mod rotation;
mod tree;
mod vault;

use contenders::{Bare, Contender, Daemon, Tmpfs, memory};
use load::{Cores, Work};
use report::{Memory, PutRow, Report, Row, Wait};
use tree::{KILO, SMALL, Service, numbered};

#[derive(Debug, Parser)]
struct Options {
    /// A smoke run of a few seconds; its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Every round of everything as JSON
    #[arg(long)]
    json: bool,
    /// Only the rows whose name contains this
    filter: Option<String>,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the bare file system, here
    #[arg(long, hide = true)]
    bare: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 10_000)]
    secrets: usize,
}

/// How much of everything.
struct Scale {
    rounds: usize,
    turns: usize,
    listings: usize,
    puts: usize,
    revocations: usize,
    deaths: usize,
    many: usize,
    vault: vault::Scale,
}

const FULL: Scale = Scale {
    rounds: 9,
    turns: 3000,
    listings: 10,
    puts: 300,
    revocations: 50,
    deaths: 50,
    many: 10_000,
    vault: vault::Scale {
        rounds: 9,
        turns: 3000,
        many: 10_000,
        // In all rounds together fewer than a uid has fetched in a minute.
        cold: 50,
        readers: 1000,
        writes: 100,
        poll: Duration::from_secs(30),
        polls: 3,
        outage: Duration::from_secs(36),
        outage_ttl: Duration::from_secs(10),
    },
};

/// What is measured besides the rows, as the filter names it.
const PARTS: &str = "parts of an open";
const PUT: &str = "put";
const WAITS: &str = "put and revoke, how long others wait";
const ROTATION: &str = "open+read+close 64 B while one rotates";

const QUICK: Scale = Scale {
    rounds: 2,
    turns: 100,
    listings: 2,
    puts: 5,
    revocations: 2,
    deaths: 2,
    many: 200,
    vault: vault::Scale {
        rounds: 2,
        turns: 100,
        many: 200,
        cold: 10,
        readers: 100,
        writes: 3,
        poll: Duration::from_secs(1),
        polls: 3,
        outage: Duration::from_secs(1),
        outage_ttl: Duration::from_secs(1),
    },
};

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(folder) = &options.bare {
        bare::serve(folder, options.secrets);
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = missing() {
        eprintln!("SKIPPED: the benchmark needs {missing}");
        let required = std::env::var_os("SECRETFS_REQUIRE_ALL").is_some_and(|all| !all.is_empty());
        return ExitCode::from(u8::from(required));
    }
    let scale = if options.quick { QUICK } else { FULL };
    let report = measure(&scale, options.filter.as_deref().unwrap_or_default());
    if options.json {
        let json = serde_json::to_string_pretty(&report);
        println!("{}", json.expect("plain numbers"));
    } else {
        report.print();
    }
    ExitCode::SUCCESS
}

fn missing() -> Option<&'static str> {
    if Uid::effective() != Uid::ROOT {
        return Some("root");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse");
    }
    (!Path::new("/dev/shm").is_dir()).then_some("/dev/shm")
}

fn measure(scale: &Scale, filter: &str) -> Report {
    let clock = Clock::default();
    let wanted = |name: &str| name.contains(filter);
    let mut report = Report {
        machine: machine(),
        ..Report::default()
    };
    alone(scale, &wanted, &mut report, &clock);
    report.vault = vault::run(&scale.vault, &wanted, &clock);
    report
}

/// Without any server: the store is on the disk.
fn alone(scale: &Scale, wanted: &dyn Fn(&str) -> bool, report: &mut Report, clock: &Clock) {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let folder = folder.path();
    if wanted(PARTS) {
        report.micro = micro::run(folder, scale.turns * 20, scale.rounds, clock);
    }
    let rows: Vec<_> = rows()
        .into_iter()
        .filter(|(work, _)| wanted(&work.name(scale.many)))
        .collect();
    if rows.is_empty() && ![PUT, WAITS, ROTATION].into_iter().any(wanted) {
        return;
    }
    eprintln!("making {} secrets", scale.many);
    let daemon = Daemon::start(folder, scale.many, "", clock);
    let ours = daemon.contender();
    // What has been read for it is cached from now on.
    report.memory = Some(measure_memory(&daemon, &ours, scale.many));
    let (tmpfs, bare) = (
        Tmpfs::new(scale.many),
        Bare::start(folder, scale.many, clock),
    );
    let contenders = [tmpfs.contender(), bare.contender(), ours];
    let rows = rows.into_iter().map(|(work, cores)| {
        eprintln!("{}, {}", work.name(scale.many), cores.name());
        row(work, cores, scale, &contenders, clock)
    });
    report.rows = rows.collect();
    if wanted(PUT) {
        eprintln!("{PUT}");
        let puts = puts::run(&daemon, folder, scale.puts, scale.many, clock);
        report.puts = Some(PutRow {
            secrets: scale.many,
            put: puts.put,
            disk: puts.disk,
        });
    }
    if wanted(WAITS) {
        eprintln!("{WAITS}");
        report.waits = waits(&daemon, &tmpfs, scale, clock);
    }
    if wanted(ROTATION) {
        eprintln!("{ROTATION}");
        report.rotation = rotation::run(&daemon, scale.turns * 30, scale.rounds, clock);
    }
}

fn measure_memory(daemon: &Daemon, ours: &Contender, values: usize) -> Memory {
    let server = ours.server.expect("a server");
    let idle = memory(server, "VmRSS");
    let many = daemon.root().join(Service::Many.name());
    load::list(&many);
    let fetched_by_listing = daemon.status().cached;
    for index in 0..values {
        let _ = std::fs::read(many.join(numbered(index))).expect("reads");
    }
    Memory {
        idle,
        cached: memory(server, "VmRSS"),
        values: daemon.status().cached,
        fetched_by_listing,
    }
}

fn waits(daemon: &Daemon, tmpfs: &Tmpfs, scale: &Scale, clock: &Clock) -> Vec<Wait> {
    let put = events::put(daemon, scale.puts, clock);
    let renamed = events::rename(&tmpfs.contender().root, scale.puts, clock);
    let revoked = revocations::run(daemon, scale.revocations, clock);
    let died = deaths::run(daemon, scale.deaths, clock);
    let wait = |what, of| Wait { what, of };
    vec![
        wait("put, from its return to the watcher's event", put.returned),
        wait("put, from its start to the watcher's event", put.asked),
        wait(
            "tmpfs write + rename, from its return to the event",
            renamed.returned,
        ),
        wait(
            "tmpfs write + rename, from its start to the event",
            renamed.asked,
        ),
        wait(
            "`secretfs revoke`, from its start to the last read",
            revoked.last_read,
        ),
        wait("`secretfs status`, from start to end", revoked.status),
        wait(
            "SIGKILL to the server, from then to the next read",
            died.killed,
        ),
        wait(
            "`secretfs upgrade`, the longest read meanwhile",
            died.upgraded,
        ),
    ]
}

fn rows() -> Vec<(Work, Cores)> {
    use Service::{Paged, Warm};
    let work = [
        (Work::Open(Warm, SMALL), vec![2, 8]),
        (Work::Open(Warm, KILO), vec![2, 8]),
        (Work::OpenEach, vec![8]),
        (Work::Open(Paged, SMALL), vec![8]),
        (Work::Open(Paged, KILO), vec![]),
        (Work::Stat, vec![2, 8]),
        (Work::Access, vec![2, 8]),
        (Work::Pread, vec![2, 8]),
        (Work::ReadDir, vec![8]),
        (Work::ColdList, vec![]),
    ];
    let mut rows = Vec::new();
    for (work, clients) in work {
        // `ls` is a process of its own, and the kernel forgets for everyone at once.
        if work == Work::ColdList {
            rows.push((work, Cores::All(1)));
            continue;
        }
        rows.push((work, Cores::One));
        if load::cores() > 1 {
            rows.push((work, Cores::Two));
        }
        rows.extend(
            clients
                .into_iter()
                .map(|clients| (work, Cores::All(clients))),
        );
    }
    rows
}

fn row(work: Work, cores: Cores, scale: &Scale, contenders: &[Contender; 3], clock: &Clock) -> Row {
    let turns = match work {
        Work::Open(..) | Work::OpenEach | Work::Stat | Work::Access | Work::Pread => scale.turns,
        Work::ReadDir => scale.listings,
        Work::ColdList => 1,
    };
    let turns = turns.div_ceil(cores.clients());
    let mut rounds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..scale.rounds {
        for (contender, rounds) in contenders.iter().zip(&mut rounds) {
            let Contender { root, server, .. } = contender;
            rounds.push(load::run(
                work, cores, turns, scale.many, root, *server, clock,
            ));
        }
    }
    Row {
        work: work.name(scale.many),
        clients: cores.name(),
        rounds,
    }
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "));
    format!(
        "secretfs {}, Linux {}, {} × {}, load {}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/sys/kernel/osrelease").trim(),
        load::cores(),
        model.unwrap_or("unknown processor"),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}
