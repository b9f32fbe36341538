//! The parts of an open that are ours, without a mount: the policy check, the line in the audit log, and the sealed value.

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::gettid;
use secretfs::access::{Access, Authority};
use secretfs::audit::{Audit, Outcome};
use secretfs::backend::Version;
use secretfs::caller::Caller;
use secretfs::caller::procfs::Procfs;
use secretfs::clock::Clock;
use secretfs::config::{AuditConfig, AuditTarget};
use secretfs::policy::{IdSet, Policy, Rule, ServicePolicy};
use secretfs::secret::{Kind, SealedMemory, SecretBytes, SecretPath};
use secretfs::sys::{Gid, Tid, Uid};
use serde::Serialize;

/// Microseconds of one call each: the middle of the rounds, the fastest and the slowest.
#[derive(Debug, Serialize)]
pub(crate) struct Micro {
    pub(crate) name: &'static str,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Micro {
    fn of(name: &'static str, mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            name,
            median: rounds[rounds.len() / 2],
            least: rounds[0],
            most: rounds[rounds.len() - 1],
        }
    }
}

/// Measures all of them.
pub(crate) fn run(folder: &Path, turns: usize, rounds: usize, clock: &Clock) -> Vec<Micro> {
    let log = AuditConfig {
        target: AuditTarget::File(folder.join("micro.jsonl")),
        ..AuditConfig::default()
    };
    let key = SecretBytes::new(vec![7; 32]);
    let audit = Audit::start(&log, &key, clock.clone()).expect("an audit log");
    let access = access(audit.clone(), clock);
    let path = |text: &str| -> SecretPath { text.parse().expect("a path") };
    let tid = Tid(gettid().as_raw() as u32);
    // The first group is nobody's, so that a rule of groups has to ask for the others.
    let caller = || Caller::new(Uid(0), Gid(65_534), tid);
    let measure = |name, turns: usize, turn: &mut dyn FnMut(usize)| {
        let taken = (0..rounds).map(|_| {
            let start = clock.now();
            (0..turns).for_each(&mut *turn);
            (clock.now() - start).as_secs_f64() * 1e6 / turns as f64
        });
        Micro::of(name, taken.collect())
    };

    let uid = path("uid/secret");
    let version = Version::new("1");
    let checked = measure("policy check, rule by uid", turns, &mut |_| {
        black_box(access.read(caller(), &uid, &version)).expect("may");
    });
    let groups = path("groups/secret").service;
    let by_groups = measure(
        "policy check, rule by supplementary group",
        turns / 20,
        &mut |_| {
            black_box(access.may_list(caller(), &groups));
        },
    );
    let unit = path("unit/secret").service;
    let by_unit = measure(
        "policy check, rule by systemd unit",
        turns / 20,
        &mut |_| {
            black_box(access.may_list(caller(), &unit));
        },
    );

    let open = |path: &SecretPath| {
        let permit = access.open(caller(), path, "open").expect("may");
        permit.settle(Outcome::Allowed, Some(version.clone()));
    };
    let folded = measure("check and audit, repeated open", turns, &mut |_| open(&uid));
    let each: Vec<SecretPath> = (0..1000)
        .map(|n| path(&format!("uid/secret-{n}")))
        .collect();
    let fresh = (0..rounds).map(|_| {
        // Past the second in which equal opens are one line.
        std::thread::sleep(Duration::from_millis(1300));
        let start = clock.now();
        each.iter().for_each(&open);
        (clock.now() - start).as_secs_f64() * 1e6 / each.len() as f64
    });
    let single = Micro::of("check and audit, a line for each open", fresh.collect());
    let memory = SealedMemory::new().expect("memory");
    let sizes = [
        ("showing a sealed value of 64 B", 64),
        ("showing a sealed value of 1 KiB", 1 << 10),
        ("showing a sealed value of 64 KiB", 64 << 10),
    ];
    let shown = sizes.map(|(name, size)| {
        let sealed = memory.seal(Kind::Value, &vec![b'v'; size]);
        let sealed = sealed.expect("room");
        measure(name, turns / 20, &mut |_| {
            let length = sealed.show(0, size, |bytes| black_box(bytes).len());
            assert_eq!(length, Ok(size));
        })
    });
    let mut all = vec![checked, by_groups, by_unit, folded, single];
    all.extend(shown);
    all
}

fn access(audit: Audit, clock: &Clock) -> Access {
    let rule = |uid: bool, unit: bool| {
        let everyone = IdSet::from_iter([0..=0]);
        Rule {
            name: "services.bench.allow[0]".into(),
            uids: uid.then(|| everyone.clone()),
            gids: (!uid).then_some(everyone),
            unit: unit.then(|| "bench.service".to_owned()),
            container: None,
        }
    };
    let service = |rule| ServicePolicy {
        allow: vec![rule],
        open_ended: true,
        ..ServicePolicy::default()
    };
    let services = [
        ("uid", rule(true, false)),
        ("groups", rule(false, false)),
        ("unit", rule(true, true)),
    ];
    let services = services.map(|(name, rule)| (name.parse().expect("a name"), service(rule)));
    let policy = Policy {
        services: HashMap::from(services),
        ..Policy::default()
    };
    Access::new(
        Authority::Policy,
        policy,
        Arc::new(Procfs::default()),
        audit,
        false,
        clock.clone(),
    )
}
