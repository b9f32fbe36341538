//! A reference model: random operations by random callers, and after each the system must show what the model shows.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

use proptest::prelude::*;

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

use crate::core::Core;
use language::{Op, System, ops, policies};
use model::Model;
use mounted::Mounted;

/// Does the same to both, and compares.
fn compare(system: &mut impl System, model: &mut Model, ops: &[Op]) -> Result<(), TestCaseError> {
    for (step, op) in ops.iter().enumerate() {
        if !system.can(op) {
            continue;
        }
        let (seen, expected) = (system.act(op), model.act(op));
        prop_assert_eq!(seen, expected, "step {}: {:?}", step, op);
        if let Some(asked) = system.asked() {
            prop_assert_eq!(Some(asked), model.asked(), "step {}: {:?}", step, op);
        }
    }
    prop_assert_eq!(system.log(), model.log());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_the_model_does(policy in policies(), ops in ops()) {
        compare(&mut Core::new(&policy), &mut Model::new(&policy), &ops)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_real_mount_does_what_the_model_does(policy in policies(), ops in ops()) {
        if !common::machine::has(&common::machine::MOUNT) {
            return Ok(());
        }
        // The store announces every change.
        let ops: Vec<Op> = ops.into_iter().map(announced).collect();
        compare(&mut Mounted::new(&policy), &mut Model::new(&policy), &ops)?;
    }
}

fn announced(mut op: Op) -> Op {
    if let Op::Put { announced, .. } | Op::Remove { announced, .. } = &mut op {
        *announced = true;
    }
    op
}
