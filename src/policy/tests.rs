//! Tables of what the policy must say, and a naive second opinion on everything else.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::caller::Cgroup;
use crate::sys::{Gid, Tid, Uid};

fn set(ids: &[u32]) -> Option<IdSet> {
    Some(ids.iter().map(|id| *id..=*id).collect())
}

fn rule(name: &str, uids: Option<IdSet>, gids: Option<IdSet>, unit: Option<&str>) -> Rule {
    Rule {
        name: Arc::from(name),
        uids,
        gids,
        unit: unit.map(str::to_owned),
        container: None,
    }
}

fn policy(service: ServicePolicy) -> Policy {
    Policy {
        services: HashMap::from([("web".parse().unwrap(), service)]),
        ..Policy::default()
    }
}

/// A caller of whom everything is known.
fn known(uid: u32, gid: u32, groups: &[u32], unit: Option<&str>) -> Caller {
    Caller {
        groups: Some(groups.iter().copied().map(Gid).collect()),
        cgroup: Some(Cgroup {
            unit: unit.map(str::to_owned),
            container: None,
        }),
        ..Caller::new(Uid(uid), Gid(gid), Tid(1))
    }
}

fn path(text: &str) -> SecretPath {
    text.parse().unwrap()
}

fn says(decision: &Decision) -> String {
    match decision {
        Decision::Allowed(rule) => rule.to_string(),
        Decision::Denied(reason) => format!("{reason:?}"),
        Decision::Undecided(evidence) => format!("{evidence:?}?"),
    }
}

#[test]
fn a_rule_holds_if_all_that_it_names_holds() {
    let allow = vec![
        rule("uid", set(&[1]), None, None),
        rule("gid", None, set(&[20]), None),
        rule("both", set(&[2]), set(&[30]), None),
        rule("unit", set(&[3]), None, Some("a.service")),
        // Holds of nobody, however it came here.
        rule("nobody", None, None, Some("b.service")),
        rule("empty", set(&[]), None, None),
    ];
    let policy = policy(ServicePolicy {
        allow,
        open_ended: true,
        ..ServicePolicy::default()
    });
    let new = |uid, gid| Caller::new(Uid(uid), Gid(gid), Tid(1));
    let a = Some("a.service");
    let table = [
        (new(1, 1), "uid"),
        (new(9, 20), "gid"),
        (new(9, 9), "Groups?"),
        (known(9, 9, &[], None), "NoRule"),
        (known(9, 9, &[8, 20], None), "gid"),
        (known(2, 9, &[], None), "NoRule"),
        (known(2, 30, &[], None), "both"),
        (known(2, 9, &[30], None), "both"),
        (known(9, 30, &[], None), "NoRule"),
        (known(3, 9, &[], a), "unit"),
        (known(3, 9, &[], Some("a.service.evil")), "NoRule"),
        (known(3, 9, &[], Some("b.service")), "NoRule"),
        (known(3, 9, &[], None), "NoRule"),
        (known(9, 9, &[], Some("b.service")), "NoRule"),
        // Root gets nothing without a rule.
        (known(0, 0, &[], a), "NoRule"),
    ];
    for (caller, expected) in table {
        assert_eq!(
            says(&policy.check(&caller, &path("web/x"))),
            expected,
            "{caller:?}"
        );
    }
}

#[test]
fn a_container_rule_wants_that_container() {
    let id = "a".repeat(64);
    let mut inside = rule("container", set(&[1]), None, None);
    inside.container = Some(id.clone());
    let policy = policy(ServicePolicy {
        allow: vec![inside],
        open_ended: true,
        ..ServicePolicy::default()
    });
    let mut caller = Caller::new(Uid(1), Gid(1), Tid(1));
    assert_eq!(says(&policy.check(&caller, &path("web/x"))), "Cgroup?");
    for (container, expected) in [
        (None, "NoRule"),
        (Some("b".repeat(64)), "NoRule"),
        (Some(id), "container"),
    ] {
        caller.cgroup = Some(Cgroup {
            unit: None,
            container,
        });
        assert_eq!(says(&policy.check(&caller, &path("web/x"))), expected);
    }
}

#[test]
fn a_secrets_own_rules_narrow() {
    let service = ServicePolicy {
        allow: vec![rule("service", set(&[1, 2]), None, None)],
        secrets: HashMap::from([(
            "key".parse().unwrap(),
            vec![rule("own", set(&[2, 3]), None, None)],
        )]),
        open_ended: true,
        ..ServicePolicy::default()
    };
    let policy = policy(service);
    let table = [
        (1, "web/key", "Narrowed"),
        (2, "web/key", "own"),
        (3, "web/key", "NoRule"),
        (1, "web/other", "service"),
        (3, "web/other", "NoRule"),
        (1, "none/key", "NoService"),
    ];
    for (uid, secret, expected) in table {
        assert_eq!(
            says(&policy.check(&known(uid, 1, &[], None), &path(secret))),
            expected,
            "{uid} {secret}"
        );
    }
}

#[test]
fn a_closed_service_is_closed_to_all_but_those_who_manage_everything() {
    let everybody = || {
        vec![rule(
            "everybody",
            Some([0..=u32::MAX].into_iter().collect()),
            None,
            None,
        )]
    };
    let policy = Policy {
        manage: vec![rule("manage", set(&[5]), None, None)],
        ..policy(ServicePolicy {
            closed: Some("ldap".to_owned()),
            allow: everybody(),
            manage: everybody(),
            secrets: HashMap::from([("key".parse().unwrap(), everybody())]),
            open_ended: true,
        })
    };
    let web = "web".parse().unwrap();
    for uid in [0, 1] {
        let caller = known(uid, 0, &[], None);
        for decision in [
            policy.check(&caller, &path("web/key")),
            policy.check(&caller, &path("web/x")),
            policy.check_listing(&caller, &web),
        ] {
            assert_eq!(says(&decision), "Closed(\"ldap\")");
        }
        assert_eq!(says(&policy.check_manage(&caller, Some(&web))), "NoRule");
    }
    assert_eq!(
        says(&policy.check_manage(&known(5, 5, &[], None), Some(&web))),
        "manage"
    );
}

#[test]
fn managing_a_service_is_not_steering_the_daemon() {
    let service = ServicePolicy {
        manage: vec![rule("web", set(&[1]), None, None)],
        ..ServicePolicy::default()
    };
    let policy = Policy {
        manage: vec![rule("all", set(&[2]), None, None)],
        ..policy(service)
    };
    let (web, api): (Name, Name) = ("web".parse().unwrap(), "api".parse().unwrap());
    for (uid, service, expected) in [
        (1, Some(&web), "web"),
        (1, Some(&api), "NoRule"),
        (1, None, "NoRule"),
        (2, Some(&web), "all"),
        (2, Some(&api), "all"),
        (2, None, "all"),
    ] {
        assert_eq!(
            says(&policy.check_manage(&known(uid, 1, &[], None), service)),
            expected
        );
    }
    for (uid, expected) in [(1, "web"), (2, "all"), (3, "NoRule")] {
        let caller = known(uid, 1, &[], None);
        assert_eq!(says(&policy.check_manage_any(&caller)), expected);
    }
    // Managing is not reading.
    assert_eq!(
        says(&policy.check(&known(2, 1, &[], None), &path("web/x"))),
        "NoRule"
    );
}

/// The second opinion: what a person would say who knows everything about the caller.
mod naive {
    use super::*;

    pub(super) fn holds(rule: &Rule, caller: &Caller) -> bool {
        let groups: BTreeSet<u32> = std::iter::once(caller.gid.0)
            .chain(caller.groups.as_ref().unwrap().iter().map(|gid| gid.0))
            .collect();
        let cgroup = caller.cgroup.as_ref().unwrap();
        let mut holds = rule.uids.is_some() || rule.gids.is_some();
        if let Some(uids) = &rule.uids {
            holds = holds && uids.contains(caller.uid.0);
        }
        if let Some(gids) = &rule.gids {
            holds = holds && groups.iter().any(|gid| gids.contains(*gid));
        }
        if let Some(unit) = &rule.unit {
            holds = holds && cgroup.unit.as_ref() == Some(unit);
        }
        if let Some(container) = &rule.container {
            holds = holds && cgroup.container.as_ref() == Some(container);
        }
        holds
    }

    pub(super) fn may_read(policy: &Policy, caller: &Caller, path: &SecretPath) -> bool {
        let Some(service) = policy
            .services
            .get(&path.service)
            .or(policy.defaults.as_ref())
        else {
            return false;
        };
        let own = service.secrets.get(&path.name);
        service.closed.is_none()
            && service.allow.iter().any(|rule| holds(rule, caller))
            && own.is_none_or(|own| own.iter().any(|rule| holds(rule, caller)))
    }

    pub(super) fn may_manage(policy: &Policy, caller: &Caller, service: &Name) -> bool {
        let everything = policy.manage.iter().any(|rule| holds(rule, caller));
        let service = policy.services.get(service).or(policy.defaults.as_ref());
        let own = service.is_some_and(|service| {
            service.closed.is_none() && service.manage.iter().any(|rule| holds(rule, caller))
        });
        everything || own
    }
}

/// Asks as `access` does: what is missing is found out, one thing at a time. Fails if an answer is given too early, and
/// if something is asked for twice.
fn ask_lazily(full: &Caller, check: impl Fn(&Caller) -> Decision) -> Result<bool, TestCaseError> {
    let mut caller = Caller::new(full.uid, full.gid, full.tid);
    for _ in 0..3 {
        match check(&caller) {
            Decision::Allowed(_) => return Ok(true),
            Decision::Denied(_) => return Ok(false),
            Decision::Undecided(Evidence::Groups) if caller.groups.is_none() => {
                caller.groups.clone_from(&full.groups);
            }
            Decision::Undecided(Evidence::Cgroup) if caller.cgroup.is_none() => {
                caller.cgroup.clone_from(&full.cgroup);
            }
            Decision::Undecided(evidence) => {
                return Err(TestCaseError::fail(format!(
                    "{evidence:?} was asked for twice"
                )));
            }
        }
    }
    Err(TestCaseError::fail("no answer with everything known"))
}

const UNITS: [&str; 2] = ["a.service", "b.service"];

/// Small numbers, so that rules often hold.
fn ids() -> impl Strategy<Value = Option<IdSet>> {
    let range = (0_u32..4, 0_u32..2).prop_map(|(first, more)| first..=first + more);
    let ids = proptest::collection::vec(range, 0..3).prop_map(IdSet::from_iter);
    proptest::option::of(ids)
}

fn place() -> impl Strategy<Value = Option<String>> {
    proptest::option::weighted(
        0.3,
        proptest::sample::select(&UNITS[..]).prop_map(str::to_owned),
    )
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (ids(), ids(), place(), place()).prop_map(|(uids, gids, unit, container)| Rule {
        name: Arc::from("rule"),
        uids,
        gids,
        unit,
        container,
    });
    proptest::collection::vec(rule, 0..4)
}

/// A service whose secrets are `s0` to `s2`, of which some have rules of their own.
fn service() -> impl Strategy<Value = ServicePolicy> {
    let secrets = proptest::collection::vec(proptest::option::of(rules()), 0..3);
    let closed = proptest::option::weighted(0.1, Just("closed".to_owned()));
    (closed, rules(), rules(), secrets).prop_map(|(closed, allow, manage, secrets)| {
        let open_ended = secrets.len() != 3 || secrets.iter().any(Option::is_none);
        let secrets = secrets.into_iter().enumerate();
        ServicePolicy {
            closed,
            allow,
            manage,
            secrets: secrets
                .filter_map(|(index, rules)| Some((format!("s{index}").parse().unwrap(), rules?)))
                .collect(),
            open_ended,
        }
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (
        rules(),
        proptest::option::of(service()),
        proptest::option::of(service()),
    )
        .prop_map(|(manage, web, defaults)| Policy {
            manage,
            services: web
                .map(|web| ("web".parse().unwrap(), web))
                .into_iter()
                .collect(),
            defaults,
        })
}

fn any_caller() -> impl Strategy<Value = Caller> {
    let groups = proptest::collection::vec(0_u32..6, 0..3);
    (0_u32..6, 0_u32..6, groups, place(), place()).prop_map(
        |(uid, gid, groups, unit, container)| Caller {
            groups: Some(groups.into_iter().map(Gid).collect()),
            cgroup: Some(Cgroup { unit, container }),
            ..Caller::new(Uid(uid), Gid(gid), Tid(1))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn asking_lazily_gives_the_naive_answer(policy in any_policy(), caller in any_caller()) {
        for service in ["web", "other"] {
            let service: Name = service.parse().unwrap();
            let mut readable = false;
            for name in ["s0", "s1", "s2"] {
                let path = SecretPath { service: service.clone(), name: name.parse().unwrap() };
                let naive = naive::may_read(&policy, &caller, &path);
                readable |= naive;
                let lazy = ask_lazily(&caller, |caller| policy.check(caller, &path))?;
                prop_assert_eq!(lazy, naive, "{}", path);
            }
            let listed = ask_lazily(&caller, |caller| policy.check_listing(caller, &service))?;
            prop_assert_eq!(listed, readable, "listing {}", service);
            let manages = ask_lazily(&caller, |caller| policy.check_manage(caller, Some(&service)))?;
            prop_assert_eq!(manages, naive::may_manage(&policy, &caller, &service), "managing {}", service);
        }
    }

    /// More evidence never turns an answer round: what was allowed or denied stays so.
    #[test]
    fn an_answer_is_final(policy in any_policy(), full in any_caller(), groups in proptest::bool::ANY, cgroup in proptest::bool::ANY) {
        let partly = Caller {
            groups: full.groups.clone().filter(|_| groups),
            cgroup: full.cgroup.clone().filter(|_| cgroup),
            ..full.clone()
        };
        let path = path("web/s0");
        match policy.check(&partly, &path) {
            Decision::Allowed(_) => prop_assert!(naive::may_read(&policy, &full, &path)),
            Decision::Denied(_) => prop_assert!(!naive::may_read(&policy, &full, &path)),
            Decision::Undecided(_) => {}
        }
    }
}
