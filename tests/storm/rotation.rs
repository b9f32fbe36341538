//! The storm itself.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use secretfs::backend::Reference;
use secretfs::clock::Clock;
use secretfs::fs::{Change, Tree};
use tokio::time::{MissedTickBehavior, interval};

use crate::common::machine::needs;
use crate::common::{DEADLINE, eventually};
use crate::faulty::Faulty;
use crate::readers::{Numbers, Readers, SECRETS};
use crate::served::Served;
use crate::values::value;
use crate::{alone, seconds};

/// A secret for each mode.
pub(crate) const SERVICES: &str = r#"
[services.s]
source = "b:s"
allow = [{ uid = 0 }]
secrets.cached = { reads = "cached" }
"#;
/// Between two rotations of one secret: 1,000 a second of both.
const PERIOD: Duration = Duration::from_millis(2);
/// More resident memory than this after a storm, beside what there was at its beginning, is a leak.
const MEMORY: u64 = 16 << 10;

#[test]
fn a_thousand_rotations_a_second_below_32_readers() {
    needs!();
    let _alone = alone();
    let first = String::from_utf8(value(1)).unwrap();
    let values = [("s/checked", first.as_str()), ("s/cached", &first)];
    let threads_before = threads();
    let served = Served::start_in_time(&values, SERVICES);
    let folder = &served.folder;
    let readers = Readers::start(&folder.mountpoint(), folder.at("numbers"), |from, name| {
        folder.bind(from, name)
    });

    let clock = Clock::default();
    let end = Arc::new(AtomicBool::new(false));
    let start = clock.now();
    let rotations: Vec<_> = (0..SECRETS.len())
        .map(|secret| {
            let (tree, backend) = (Arc::clone(&served.world.tree), Arc::clone(&served.world.b));
            let (numbers, end) = (readers.numbers(), Arc::clone(&end));
            served
                .runtime()
                .spawn(rotate(tree, backend, secret, numbers, end))
        })
        .collect();
    let (mut inodes, mut early) = (0, 0);
    while clock.now() - start < seconds() {
        thread::sleep(Duration::from_millis(100));
        inodes = inodes.max(served.world.tree.figures().inodes);
        if early == 0 && clock.now() - start > seconds() / 4 {
            early = resident();
        }
    }
    end.store(true, Ordering::SeqCst);
    let rotations = rotations
        .into_iter()
        .map(|task| served.runtime().block_on(task).unwrap());
    let rotations: u64 = rotations.sum();
    let (reads, wrong) = readers.end();
    let late = resident();
    eprintln!(
        "{}; at most {inodes} inodes, {} MiB more than at first",
        said(rotations, reads, clock.now() - start),
        late.saturating_sub(early) / 1024
    );
    assert_eq!(wrong, Vec::<String>::new());
    assert!(reads > 1000, "{reads} reads");

    // The top, the service, and an inode for each name.
    let (handles, inodes) = (0, 2 + SECRETS.len());
    let figures = || served.world.tree.figures();
    let settled = eventually(DEADLINE, || {
        // The names and inodes that nobody uses.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        figures().handles == handles && figures().inodes <= inodes
    });
    assert!(
        settled,
        "not {handles} handles and {inodes} inodes: {:?}",
        figures()
    );
    let cache = figures().cache;
    assert_eq!((cache.values, cache.flights), (SECRETS.len(), 0));
    assert!(late < early + MEMORY, "from {early} to {late} KiB");
    drop(served);
    // The thread that changes names waits a while for more to do.
    let all_gone = eventually(DEADLINE, || threads() <= threads_before);
    assert!(all_gone, "{} threads and not {threads_before}", threads());
}

/// How many threads this process has, but for those that tests run in.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    // A test's thread has its name.
    names.filter(|name| !name.contains("::")).count()
}

/// Rotates one secret until it is told to end, and says how often it did.
async fn rotate(
    tree: Arc<Tree>,
    backend: Arc<Faulty>,
    secret: usize,
    numbers: Arc<Numbers>,
    end: Arc<AtomicBool>,
) -> u64 {
    let path = format!("s/{}", SECRETS[secret]);
    let reference: Reference = format!("b:{path}").parse().unwrap();
    let mut number = 1;
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !end.load(Ordering::SeqCst) {
        tick.tick().await;
        number += 1;
        backend.put(&path, value(number));
        backend.keep_last(&path, 2);
        tree.changed([&reference], Change::Written).await;
        // From here on every open sees it.
        numbers.acknowledge(secret, number);
    }
    number - 1
}

/// What was reached, for people.
#[allow(clippy::as_conversions, reason = "none of them is that large")]
pub(crate) fn said(rotations: u64, reads: u64, taken: Duration) -> String {
    let rate = |count: u64| count as f64 / taken.as_secs_f64();
    format!(
        "{:.0} rotations and {:.0} reads a second for {:.0} s",
        rate(rotations),
        rate(reads),
        taken.as_secs_f64()
    )
}

/// The resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}
