//! A reference model: random operations by random callers, and after each the system must show what the model shows:
//! the core without a mount, and the real daemon on a real one.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[path = "../common/callers.rs"]
mod callers;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/faulty.rs"]
mod faulty;
#[path = "../common/log.rs"]
mod log;
#[path = "../common/world.rs"]
mod world;

mod core;
mod language;
mod model;
mod mounted;

use crate::common::machine::needs;
use crate::common::patience;
use crate::core::Core;
use language::{Op, Policy, System, ops, policies};
use model::Model;
use mounted::Mounted;

/// Does the same to both, and compares.
fn compare(system: &mut impl System, model: &mut Model, ops: &[Op]) -> Result<(), TestCaseError> {
    for (step, op) in ops.iter().enumerate() {
        if !system.can(op) {
            continue;
        }
        let (seen, expected) = (system.act(op), model.act(op));
        prop_assert!(
            system.agrees(op, &seen, &expected),
            "step {step}: {op:?}: {seen:?} and not {expected:?}"
        );
        if let Some(asked) = system.asked() {
            prop_assert_eq!(Some(asked), model.asked(), "step {}: {:?}", step, op);
        }
    }
    if let Some(log) = system.log() {
        prop_assert_eq!(Some(log), model.log());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512 * patience(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_the_model_does(policy in policies(), ops in ops()) {
        compare(&mut Core::new(&policy), &mut Model::new(&policy, false), &ops)?;
    }
}

/// What random operations found once, and find only seldom: pages outlive the handle that they were read through.
#[test]
fn an_inode_is_not_shared_while_there_may_be_pages_of_an_older_value() {
    let policy = |cached| Policy {
        services: [[true; 4]; 3],
        narrow: [true; 4],
        cached,
    };
    let put = |value: &str| Op::Put {
        place: "b:web/k1",
        value: value.to_owned(),
        announced: true,
    };
    let open = || Op::OpenPin { uid: 1, pin: 0 };
    let ops = [
        put("the older one"),
        Op::Pin { path: "web/k1" },
        open(),
        Op::Reload(policy(true)),
        open(),
        put("newer"),
        open(),
        Op::Close { handle: 1 },
        open(),
        Op::Close { handle: 0 },
        open(),
    ];
    let (mut core, mut model) = (Core::new(&policy(false)), Model::new(&policy(false), false));
    compare(&mut core, &mut model, &ops).unwrap();
}

/// What random operations come to only seldom: a lease that is renewed for less than its whole time, and one that takes the
/// place of another that only one of its two secrets was asked for since the server died.
#[test]
fn leases_do_what_the_model_says_where_chance_seldom_leads() {
    let policy = Policy {
        services: [[true; 4]; 3],
        narrow: [true; 4],
        cached: false,
    };
    let open = |path| Op::Open { uid: 1, path };
    let pass = |seconds| Op::Pass { seconds };
    let limited = [
        open("app/login"),
        Op::Limit { left: Some(600) },
        pass(2400),
        Op::Tend,
        pass(400),
        Op::Tend,
        pass(110),
        Op::Tend,
    ];
    let replaced = [
        open("app/login"),
        open("app/token"),
        Op::Die { seconds: 0 },
        open("app/login"),
        pass(3060),
        Op::Tend,
        Op::TakeAway { path: "app/login" },
        Op::Tend,
    ];
    for ops in [limited, replaced] {
        let (mut core, mut model) = (Core::new(&policy), Model::new(&policy, false));
        compare(&mut core, &mut model, &ops).unwrap();
    }
}

#[test]
fn a_mount_does_what_the_model_does() {
    needs!();
    let config = ProptestConfig {
        cases: 8 * patience(),
        max_shrink_iters: 60,
        failure_persistence: None,

        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&(policies(), ops()), |(policy, ops)| {
        compare(
            &mut Mounted::new(&policy),
            &mut Model::new(&policy, true),
            &ops,
        )
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// What random operations found once in some thousands: of two secrets that are cut from one record, one is asked for again
/// before the first of two servers dies, and the other only after the second.
#[test]
fn what_was_inherited_twice_is_as_old_as_it_was_last_found() {
    let policy = Policy {
        services: [[true; 4]; 3],
        narrow: [true; 4],
        cached: false,
    };
    let put = |place: &'static str, announced| Op::Put {
        place,
        value: place.to_owned(),
        announced,
    };
    let ops = [
        put("a:x/first", false),
        put("a:x/last", false),
        Op::Open {
            uid: 1,
            path: "app/either",
        },
        Op::Pass { seconds: 3600 },
        Op::Open {
            uid: 1,
            path: "app/second",
        },
        Op::Weather {
            backend: 'a',
            weather: faulty::Weather::Down,
        },
        Op::Die { seconds: 0 },
        put("a:x/last", true),
        Op::Die { seconds: 0 },
        Op::Stat {
            uid: 1,
            path: "app/either",
        },
    ];
    let (mut core, mut model) = (Core::new(&policy), Model::new(&policy, false));
    compare(&mut core, &mut model, &ops).unwrap();
}
