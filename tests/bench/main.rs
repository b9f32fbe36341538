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
    reason = "a program for developers, which may end where something is not as it should be"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use secretfs::clock::Clock;
use secretfs::sys::Uid;
use tempfile::TempDir;

mod bare;
mod contenders;
mod events;
mod load;
mod micro;
mod puts;
mod report;
mod revocations;
mod rotation;
mod tree;

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
    many: usize,
}

const FULL: Scale = Scale {
    rounds: 9,
    turns: 3000,
    listings: 10,
    puts: 300,
    revocations: 50,
    many: 10_000,
};

const QUICK: Scale = Scale {
    rounds: 2,
    turns: 100,
    listings: 2,
    puts: 5,
    revocations: 2,
    many: 200,
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
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let folder = folder.path();
    let micro = micro::run(folder, scale.turns * 20, scale.rounds, &clock);
    eprintln!("making {} secrets", scale.many);
    let daemon = Daemon::start(folder, scale.many, &clock);
    let ours = daemon.contender();
    let server = ours.server.expect("a server");

    let idle = memory(server, "VmRSS");
    let many = daemon.root().join(Service::Many.name());
    load::list(&many);
    let fetched_by_listing = daemon.status().cached;
    for index in 0..scale.many {
        let _ = std::fs::read(many.join(numbered(index))).expect("reads");
    }
    let memory = Memory {
        idle,
        cached: memory(server, "VmRSS"),
        values: daemon.status().cached,
        fetched_by_listing,
    };

    let (tmpfs, bare) = (
        Tmpfs::new(scale.many),
        Bare::start(folder, scale.many, &clock),
    );
    let contenders = [tmpfs.contender(), bare.contender(), ours];
    let rows = rows().into_iter().filter_map(|(work, cores)| {
        let name = work.name(scale.many);
        name.contains(filter).then(|| {
            eprintln!("{name}, {}", cores.name());
            row(work, cores, scale, &contenders, &clock)
        })
    });
    let rows = rows.collect();
    eprintln!("put");
    let puts = puts::run(&daemon, folder, scale.puts, scale.many, &clock);
    eprintln!("events");
    let put = events::put(&daemon, scale.puts, &clock);
    let renamed = events::rename(&tmpfs.contender().root, scale.puts, &clock);
    eprintln!("revocations");
    let revoked = revocations::run(&daemon, scale.revocations, &clock);
    let wait = |what, of| Wait { what, of };
    let waits = vec![
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
    ];
    eprintln!("opens during rotation");
    let rotation = rotation::run(&daemon, scale.turns * 30, scale.rounds, &clock);
    Report {
        machine: machine(),
        rows,
        puts: PutRow {
            secrets: scale.many,
            put: puts.put,
            disk: puts.disk,
        },
        waits,
        rotation,
        micro,
        memory,
    }
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
