//! What was taken away: refused, written down, and given back.

use super::*;

fn revocation(target: Target, seconds: Option<u64>, now: jiff::Timestamp) -> Revocation {
    Revocation {
        target,
        since: now,
        until: seconds.map(|seconds| now + Duration::from_secs(seconds)),
        by: Uid(9),
    }
}

impl Bench {
    fn revoke(&self, target: Target, seconds: Option<u64>) -> Option<Revocation> {
        let now = self.clock.timestamp();
        self.access.revoke(&revocation(target, seconds, now))
    }
}

#[test]
fn what_is_revoked_is_neither_opened_nor_read_and_the_log_says_revoked() {
    let bench = Bench::new();
    let mut held = bench.open(caller(1)).unwrap();
    let target = Target::Secret(path());
    assert_eq!(bench.revoke(target.clone(), None), None);
    let denied = bench.open(caller(1)).unwrap_err();
    assert!(matches!(denied, Denied::Revoked(_)), "{denied}");
    assert!(denied.to_string().contains("secretfs unrevoke s/x"));
    let read = bench.access.read(caller(1), &path(), &one()).unwrap_err();
    assert_eq!(read, denied);
    let command = bench.access.command(caller(1), &path(), "get").unwrap_err();
    assert_eq!(command, denied);
    assert!(bench.access.peek(caller(1), &path(), "stat").is_none());
    // What was let in before, and comes with a value now.
    let denied = bench.access.give(&mut held, &one()).unwrap_err();
    held.refuse(&denied, Some(one()));
    let why = bench.access.explain(caller(1), &path()).decision;
    assert_eq!(why.unwrap_err(), denied);
    // Others are not affected, listings are not, and who manages the service can lift it.
    bench
        .access
        .open(caller(1), &"s/own".parse().unwrap(), "open")
        .unwrap()
        .waive();
    assert!(bench.access.may_list(caller(1), &name("s")));
    bench
        .manage(9)
        .unwrap()
        .settle(Outcome::Allowed, None)
        .unwrap();
    // Who may not read it anyway is denied by the rules, and does not hear of it.
    let stranger = bench.open(thread(4, 4)).unwrap_err();
    assert_eq!(stranger, Denied::Policy(Reason::NoRule));
    let lifted = bench.access.unrevoke(&target);
    assert_eq!(lifted.unwrap().target, target);
    assert_eq!(bench.access.unrevoke(&target), None);
    bench.open(caller(1)).unwrap().waive();
    let expected = [
        "1 get s/x revoked",
        "1 open s/x revoked",
        "1 open s/x revoked",
        "1 read s/x revoked",
        "4 open s/x denied",
        "9 put s/x allowed",
    ];
    assert_eq!(bench.log.lines(), expected);
}

#[test]
fn a_revoked_version_is_refused_once_it_is_known_and_the_others_are_not() {
    let bench = Bench::new();
    bench.revoke(Target::Version(path(), one()), None);
    let mut permit = bench.open(caller(1)).unwrap();
    bench.access.give(&mut permit, &Version::new("2")).unwrap();
    let denied = bench.access.give(&mut permit, &one()).unwrap_err();
    permit.refuse_now(&denied, Some(one())).unwrap();
    assert!(bench.access.read(caller(1), &path(), &one()).is_err());
    let newer = Version::new("2");
    bench.access.read(caller(1), &path(), &newer).unwrap();
    let lines = bench.log.lines();
    assert_eq!(lines, ["1 open s/x revoked", "1 read s/x revoked"]);
}

#[test]
fn a_revocation_ends_by_itself_and_a_second_one_replaces_the_first() {
    let bench = Bench::new();
    let open = || bench.open(caller(1)).map(Permit::waive).is_ok();
    bench.revoke(Target::All, Some(60));
    assert!(!open());
    bench.clock.advance(Duration::from_secs(59));
    assert!(!open());
    let first = bench.revoke(Target::All, Some(10)).unwrap();
    assert_eq!(
        first.until.unwrap().duration_since(first.since).as_secs(),
        60
    );
    bench.clock.advance(Duration::from_secs(10));
    assert!(open());
    assert_eq!(bench.access.unrevoke(&Target::All), None, "it was over");
    bench.revoke(Target::User(Uid(1)), None);
    assert!(!open());
    bench.open(thread(2, 2)).unwrap().waive();
    assert_eq!(
        bench
            .access
            .revocations()
            .in_force(bench.clock.timestamp())
            .count(),
        1
    );
}

#[test]
fn an_open_handle_is_checked_again_by_what_was_known_of_its_opener() {
    let bench = Bench::new();
    let opener = |caller| {
        let permit = bench.open(caller).unwrap();
        let opener = permit.opener().clone();
        permit.waive();
        opener
    };
    let by_uid = opener(thread(1, 1));
    let by_group = opener(thread(2, 2));
    let by_unit = opener(thread(3, 3));
    let recheck = |opener: &Caller| bench.access.recheck(opener, &path(), &one());
    let asked = bench.table.asked();
    for opener in [&by_uid, &by_group, &by_unit] {
        assert_eq!(recheck(opener), Recheck::Allowed);
    }
    bench.revoke(Target::User(Uid(2)), Some(60));
    assert_eq!(recheck(&by_group), Recheck::Revoked);
    assert_eq!(recheck(&by_uid), Recheck::Allowed);
    bench.clock.advance(Duration::from_secs(60));
    bench.revoke(Target::Version(path(), one()), Some(60));
    assert_eq!(recheck(&by_uid), Recheck::Revoked);
    bench.clock.advance(Duration::from_secs(60));
    // Rules that ask for more than was known, and rules that allow nobody.
    let mut narrower = policy();
    let service = narrower.services.get_mut("s").unwrap();
    service.allow.remove(0);
    bench.access.replace_policy(narrower, 1);
    assert_eq!(recheck(&by_uid), Recheck::Unsure);
    assert_eq!(recheck(&by_group), Recheck::Allowed);
    bench.access.replace_policy(Policy::default(), 2);
    for opener in [&by_uid, &by_group, &by_unit] {
        assert_eq!(recheck(opener), Recheck::Revoked);
    }
    assert_eq!(bench.table.asked(), asked, "/proc was asked again");
}

#[test]
fn what_was_fetched_under_rules_that_are_gone_is_given_only_by_those_in_force() {
    let bench = Bench::new();
    let mut permit = bench.open(caller(1)).unwrap();
    bench.access.replace_policy(Policy::default(), 1);
    let denied = bench.access.give(&mut permit, &one()).unwrap_err();
    assert_eq!(denied, Denied::Policy(Reason::NoService));
    permit.refuse_now(&denied, Some(one())).unwrap();
    assert_eq!(bench.log.lines(), ["1 open s/x denied"]);
}

#[test]
fn with_the_identity_in_hand_revocations_are_only_explained() {
    let bench = Bench::with(Authority::Identity, OnFailure::Deny, false);
    bench.revoke(Target::All, None);
    let mut permit = bench.open(caller(1)).unwrap();
    bench.access.give(&mut permit, &one()).unwrap();
    assert_eq!(
        bench.access.recheck(permit.opener(), &path(), &one()),
        Recheck::Allowed
    );
    permit.waive();
    bench.access.read(caller(1), &path(), &one()).unwrap();
    let why = bench.access.explain(caller(1), &path()).decision;
    assert!(matches!(why, Err(Denied::Revoked(_))), "{why:?}");
}
