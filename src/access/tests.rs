//! Every access is decided and written down, once.

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::audit::Event;
use crate::audit::Outcome;
use crate::backend::Version;
use crate::config::OnFailure;
use crate::policy::Reason;
use crate::policy::{IdSet, Rule, ServicePolicy};
use crate::sys::{Gid, Tid};

#[path = "../../tests/common/callers.rs"]
mod callers;
#[path = "../../tests/common/log.rs"]
mod log;
mod revoked;

use callers::{Table, caller};
use log::Log;

/// One service, `s`: uid 1; gid 20 in any way; uid 3 in a.service. One secret in it, `own`, is for uid 1 alone.
fn policy() -> Policy {
    let ids = |id: u32| Some(IdSet::from_iter([id..=id]));
    let rule = |name: &str| Rule {
        name: Arc::from(name),
        uids: None,
        gids: None,
        unit: None,
        container: None,
    };
    let (uid, gid, unit, manager, own) = (
        Rule {
            uids: ids(1),
            ..rule("uid")
        },
        Rule {
            gids: ids(20),
            ..rule("gid")
        },
        Rule {
            uids: ids(3),
            unit: Some("a.service".to_owned()),
            ..rule("unit")
        },
        Rule {
            uids: ids(9),
            ..rule("manager")
        },
        Rule {
            uids: ids(1),
            ..rule("own")
        },
    );
    let service = ServicePolicy {
        closed: None,
        allow: vec![uid, gid, unit],
        manage: vec![manager],
        secrets: HashMap::from([(name("own"), vec![own])]),
        open_ended: true,
    };
    Policy {
        manage: Vec::new(),
        services: HashMap::from([(name("s"), service)]),
        defaults: None,
    }
}

struct Bench {
    access: Access,
    table: Arc<Table>,
    log: Log,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        Self::with(Authority::Policy, OnFailure::Deny, false)
    }

    fn with(authority: Authority, on_failure: OnFailure, full_detail: bool) -> Self {
        let clock = Clock::manual();
        let log = Log::new(&clock, on_failure);
        let table = Arc::new(Table {
            groups: HashMap::from([(2, vec![5, 20]), (3, vec![5]), (33, vec![5]), (4, vec![5])]),
            units: HashMap::from([(1, "u.service"), (3, "a.service"), (33, "b.service")]),
            ..Table::default()
        });
        let lookup = Arc::<Table>::clone(&table);
        let audit = log.audit.clone();
        let access = Access::new(
            authority,
            policy(),
            lookup,
            audit,
            full_detail,
            clock.clone(),
        );
        Self {
            access,
            table,
            log,
            clock,
        }
    }

    fn open(&self, caller: Caller) -> Result<Permit, Denied> {
        self.access.open(caller, &path(), "open")
    }

    fn manage(&self, uid: u32) -> Result<Mandate, Denied> {
        let subject = Some(Arc::from("s/x"));
        self.access
            .manage(caller(uid), Some(&name("s")), "put", subject)
    }

    fn break_log(&self) {
        let permit = self.open(caller(1)).unwrap();
        self.log.break_it(permit.event(Outcome::Allowed));
        permit.waive();
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn path() -> SecretPath {
    "s/x".parse().unwrap()
}

fn one() -> Version {
    Version::new("1")
}

/// Somebody in no group of the rules.
fn thread(uid: u32, tid: u32) -> Caller {
    Caller::new(Uid(uid), Gid(5), Tid(tid))
}

#[test]
fn evidence_is_looked_up_only_where_a_rule_needs_it() {
    // uid, thread; the rule that allows; look-ups of groups, cgroup and name
    let table = [
        (1, 1, Some("uid"), [0, 0, 0]),
        // Once /proc was read, the name comes along.
        (2, 2, Some("gid"), [1, 0, 1]),
        (3, 3, Some("unit"), [1, 1, 1]),
        // Of who is denied everything is written down that people want to know.
        (3, 33, None, [1, 1, 1]),
        (4, 4, None, [1, 1, 1]),
    ];
    for (uid, tid, rule, asked) in table {
        let bench = Bench::new();
        let permit = bench.open(thread(uid, tid));
        assert_eq!(permit.is_ok(), rule.is_some(), "{uid} {tid}");
        if let Ok(permit) = permit {
            permit.settle(Outcome::Allowed, None);
        }
        assert_eq!(bench.table.asked(), asked, "{uid} {tid}");
        let [(event, 1)] = &bench.log.read()[..] else {
            panic!("one line for {uid} {tid}");
        };
        if let Some(rule) = rule {
            assert_eq!(event.rule.as_deref(), Some(rule));
        }
        let comm = format!("thread-{tid}");
        assert_eq!(event.comm, (asked != [0; 3]).then_some(comm));
    }
}

#[test]
fn who_cannot_be_found_out_is_denied() {
    let bench = Bench::new();
    // Of thread 7 neither groups nor cgroup can be read.
    let denied = bench.open(thread(3, 7)).unwrap_err();
    assert!(matches!(
        denied,
        Denied::Caller(CallerError::Unreadable { .. })
    ));
    // A rule that needs nothing more holds all the same.
    bench.open(thread(1, 7)).unwrap().waive();
    // A thread in a pid namespace that we cannot see into is nobody, whatever its uid.
    let hidden = || Caller::new(Uid(1), Gid(20), Tid(0));
    let invisible = Denied::Caller(CallerError::Invisible);
    assert_eq!(bench.open(hidden()).unwrap_err(), invisible);
    assert_eq!(
        bench.access.read(hidden(), &path(), &one()),
        Err(invisible.clone())
    );
    assert!(bench.access.peek(hidden(), &path(), "stat").is_none());
    assert!(!bench.access.may_list(hidden(), &name("s")));
    assert!(!bench.access.may_look_up(hidden(), &name("s")));
    let manager = Caller::new(Uid(9), Gid(9), Tid(0));
    assert!(!bench.access.may_manage(manager.clone(), Some(&name("s"))));
    let denied = bench.access.manage(manager, Some(&name("s")), "put", None);
    assert_eq!(denied.unwrap_err(), invisible);
    let lines = bench.log.lines();
    let expected = [
        "1 open s/x denied",
        "1 read s/x denied",
        "3 open s/x denied",
        "9 put - denied",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn each_access_is_written_down_once_however_it_ends() {
    let bench = Bench::new();
    let later = || bench.clock.advance(Duration::from_secs(2));
    let permit = || bench.open(caller(1)).unwrap();
    for outcome in [Outcome::Allowed, Outcome::Stale, Outcome::Unreachable] {
        permit().settle(outcome, Some(Version::new("7")));
    }
    permit().settle_now(Outcome::Absent, None).unwrap();
    drop(permit());
    permit().waive();
    later();
    bench
        .access
        .peek(caller(1), &path(), "stat")
        .unwrap()
        .settle(Outcome::Allowed, None);
    drop(bench.access.peek(caller(1), &path(), "stat"));
    assert!(bench.access.peek(caller(8), &path(), "stat").is_none());
    bench.access.read(caller(1), &path(), &one()).unwrap();
    bench.access.read(caller(8), &path(), &one()).unwrap_err();
    bench
        .manage(9)
        .unwrap()
        .settle(Outcome::Allowed, None)
        .unwrap();
    drop(bench.manage(9));
    bench.manage(1).unwrap_err();
    assert!(bench.access.may_manage(caller(9), Some(&name("s"))));
    assert!(!bench.access.may_manage(caller(1), Some(&name("s"))));
    let expected = [
        "1 open s/x absent",
        "1 open s/x allowed",
        "1 open s/x error",
        "1 open s/x stale",
        "1 open s/x unreachable",
        "1 put s/x denied",
        "1 stat s/x allowed",
        "1 stat s/x error",
        "8 read s/x denied",
        "9 put s/x allowed",
        "9 put s/x error",
    ];
    assert_eq!(bench.log.lines(), expected);
}

#[test]
fn a_line_says_who_when_why_and_how_long() {
    let bench = Bench::with(Authority::Policy, OnFailure::Deny, true);
    let permit = bench.open(thread(1, 1)).unwrap();
    bench.clock.advance(Duration::from_millis(3));
    permit.settle(Outcome::Allowed, Some(Version::new("7")));
    let end = bench.clock.timestamp();
    let expected = Event {
        time: end,
        action: "open".into(),
        uid: Uid(1),
        gid: Gid(5),
        tid: Tid(1),
        path: Some("s/x".into()),
        version: Some(Version::new("7")),
        rule: Some("uid".into()),
        outcome: Outcome::Allowed,
        micros: 3000,
        comm: Some("thread-1".to_owned()),
        unit: Some("u.service".to_owned()),
        container: None,
    };
    assert_eq!(bench.log.read(), [(expected, 1)]);
}

#[test]
fn while_the_log_cannot_be_written_the_config_decides() {
    for on_failure in [OnFailure::Deny, OnFailure::Warn] {
        let bench = Bench::with(Authority::Policy, on_failure, false);
        bench.break_log();
        let deny = on_failure == OnFailure::Deny;
        assert_eq!(
            bench.access.peek(caller(1), &path(), "stat").is_none(),
            deny
        );
        match bench.open(caller(1)) {
            Ok(permit) => {
                assert!(!deny);
                // A command, which is to be written down before it is acknowledged, is told in either case.
                permit.settle_now(Outcome::Allowed, None).unwrap_err();
            }
            Err(denied) => assert!(deny && matches!(denied, Denied::Audit(_)), "{denied}"),
        }
        match bench.manage(9) {
            Ok(mandate) => drop(mandate.settle(Outcome::Allowed, None).unwrap_err()),
            Err(denied) => assert!(deny && matches!(denied, Denied::Audit(_)), "{denied}"),
        }
        // What is open stays open.
        bench.access.read(caller(1), &path(), &one()).unwrap();
    }
}

#[test]
fn root_looks_up_and_opens_nothing_without_a_rule() {
    let bench = Bench::new();
    let root = || Caller::new(Uid::ROOT, Gid(0), Tid(4));
    assert!(bench.access.may_look_up(root(), &name("s")));
    assert!(bench.access.may_look_up(root(), &name("other")));
    assert!(!bench.access.may_list(root(), &name("s")));
    let denied = bench.open(root()).unwrap_err();
    assert_eq!(denied, Denied::Policy(Reason::NoRule));
    assert!(bench.access.read(root(), &path(), &one()).is_err());
    assert!(bench.manage(0).is_err());
}

#[test]
fn a_new_policy_holds_from_the_next_question_on() {
    let bench = Bench::new();
    let own: SecretPath = "s/own".parse().unwrap();
    bench.access.read(thread(2, 2), &path(), &one()).unwrap();
    let narrowed = bench.access.read(thread(2, 2), &own, &one()).unwrap_err();
    assert_eq!(narrowed, Denied::Policy(Reason::Narrowed));
    bench.access.read(thread(1, 1), &own, &one()).unwrap();
    bench.access.replace_policy(Policy::default(), 1);
    let nobody = bench.access.read(thread(1, 1), &own, &one()).unwrap_err();
    assert_eq!(nobody, Denied::Policy(Reason::NoService));
}

#[test]
fn with_the_identity_in_hand_the_policy_is_only_explained() {
    let bench = Bench::with(Authority::Identity, OnFailure::Deny, false);
    let stranger = || thread(4, 4);
    bench
        .open(stranger())
        .unwrap()
        .settle(Outcome::Allowed, None);
    let why = bench.access.explain(stranger(), &path());
    assert_eq!(why.decision, Err(Denied::Policy(Reason::NoRule)));
    assert_eq!(why.caller.groups, Some(vec![Gid(5)]));
    let [(event, 1)] = &bench.log.read()[..] else {
        panic!("one line");
    };
    assert_eq!(event.rule.as_deref(), Some("identity"));
}

#[test]
fn every_denial_that_is_written_down_is_told_and_nothing_else_is() {
    let Bench {
        access, log: _log, ..
    } = Bench::new();
    let events = Events::default();
    let mut heard = events.subscribe();
    let access = access.with_events(events);
    assert!(access.may_manage_any(caller(9)));
    let mandate = access.manage_any(caller(9), "watch").unwrap();
    mandate.settle(Outcome::Allowed, None).unwrap();
    access.open(caller(1), &path(), "open").unwrap().waive();
    assert!(access.peek(caller(8), &path(), "stat").is_none());
    assert!(!access.may_manage(caller(8), None));
    assert!(!access.may_manage_any(caller(8)));
    drop(access.open(caller(8), &path(), "open").unwrap_err());
    drop(
        access
            .read(caller(8), &path(), &Version::new("1"))
            .unwrap_err(),
    );
    drop(access.command(caller(8), &path(), "get").unwrap_err());
    drop(access.manage(caller(8), None, "reload", None).unwrap_err());
    drop(access.manage_any(caller(8), "watch").unwrap_err());
    for (wanted, shown) in [
        ("open", Some("s/x")),
        ("read", Some("s/x")),
        ("get", Some("s/x")),
        ("reload", None),
        ("watch", None),
    ] {
        let event = heard.try_next().unwrap();
        let What::Denied {
            path,
            uid,
            action,
            rule,
            ..
        } = &event.what
        else {
            panic!("{event:?}");
        };
        assert_eq!((*action, path.as_deref(), *uid), (wanted, shown, Uid(8)));
        assert!(!rule.is_empty());
    }
    assert_eq!(heard.try_next(), None);
}

#[test]
fn who_asks_for_the_newest_too_often_is_denied_and_written_down() {
    let bench = Bench::new();
    let fresh = |uid| bench.access.fresh(caller(uid), &path());
    for _ in 0..BURST {
        fresh(1).unwrap().settle(Outcome::Allowed, None);
    }
    for _ in 0..3 {
        let denied = fresh(1).unwrap_err();
        assert_eq!(denied, Denied::Limited(Limited { due: EVERY }));
    }
    // It may open all the same, and others are not held up.
    bench.open(caller(1)).unwrap().waive();
    bench.access.fresh(thread(2, 2), &path()).unwrap().waive();
    // Who may not read hears nothing of limits, however often.
    for _ in 0..=BURST {
        let denied = fresh(4).unwrap_err();
        assert_eq!(denied, Denied::Policy(Reason::NoRule));
    }
    bench.clock.advance(EVERY);
    fresh(1).unwrap().waive();
    fresh(1).unwrap_err();
    let (mut given, mut limited, mut denied) = (0, 0, 0);
    for (event, count) in bench.log.read() {
        assert_eq!(&*event.action, "open-fresh");
        let rule = event.rule.as_deref().unwrap_or_default();
        *match (event.uid.0, event.outcome) {
            (1, Outcome::Allowed) => &mut given,
            (1, Outcome::Denied) if rule.starts_with("a uid gets 10 fresh values") => &mut limited,
            (4, Outcome::Denied) if !rule.contains("fresh values") => &mut denied,
            _ => panic!("{event:?}"),
        } += count;
    }
    assert_eq!((given, limited, denied), (10, 4, 11));
}
