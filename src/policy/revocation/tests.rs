//! What a revocation keeps from whom, and how it is written down.

use super::*;

fn path(text: &str) -> SecretPath {
    text.parse().unwrap()
}

fn version(text: &str) -> Version {
    Version::new(text)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn revocation(target: Target, until: Option<i64>) -> Revocation {
    Revocation {
        target,
        since: at(10),
        until: until.map(at),
        by: Uid(7),
    }
}

fn every_target() -> [Target; 5] {
    [
        Target::All,
        Target::Service("s".parse().unwrap()),
        Target::Secret(path("s/x")),
        Target::Version(path("s/x"), version("3")),
        Target::User(Uid(1)),
    ]
}

#[test]
fn each_target_keeps_away_what_it_names_and_nothing_else() {
    // Who asks for what, and whether All, Service s, Secret s/x, Version 3 of it, User 1 keep him from it.
    let table = [
        (1, "s/x", Some("3"), [true, true, true, true, true]),
        (1, "s/x", Some("4"), [true, true, true, false, true]),
        // Before anything was fetched nobody knows the version.
        (1, "s/x", None, [true, true, true, false, true]),
        (2, "s/x", Some("3"), [true, true, true, true, false]),
        (2, "s/y", Some("3"), [true, true, false, false, false]),
        (2, "t/x", Some("3"), [true, false, false, false, false]),
        (1, "t/x", None, [true, false, false, false, true]),
        (0, "s/x", None, [true, true, true, false, false]),
    ];
    for (uid, asked, number, kept) in table {
        let number = number.map(version);
        for (target, kept) in every_target().into_iter().zip(kept) {
            let list = Revocations::from_iter([revocation(target.clone(), None)]);
            let found = list.check(Uid(uid), &path(asked), number.as_ref(), at(20));
            assert_eq!(
                found.map(|found| &found.target),
                kept.then_some(&target),
                "{uid} {asked} {number:?}"
            );
        }
        let nothing = Revocations::default();
        assert_eq!(
            nothing.check(Uid(uid), &path(asked), number.as_ref(), at(20)),
            None
        );
    }
}

#[test]
fn of_several_the_widest_is_named() {
    let mut list: Revocations = every_target()
        .into_iter()
        .map(|target| revocation(target, None))
        .collect();
    let order = [0, 4, 1, 2, 3].map(|index| every_target()[index].clone());
    for target in order {
        let found = list.check(Uid(1), &path("s/x"), Some(&version("3")), at(20));
        assert_eq!(found.unwrap().target, target);
        list = list.without(&target, at(20));
    }
    assert_eq!(list, Revocations::default());
}

#[test]
fn what_is_over_does_not_count_and_is_dropped_with_the_next_change() {
    let target = Target::Secret(path("s/x"));
    let list = Revocations::default().with(revocation(target.clone(), Some(30)), at(10));
    for (now, kept) in [(10, true), (29, true), (30, false), (31, false)] {
        let found = list.check(Uid(1), &path("s/x"), None, at(now));
        assert_eq!(found.is_some(), kept, "{now}");
        assert_eq!(list.of(&target, at(now)).is_some(), kept, "{now}");
        assert_eq!(list.in_force(at(now)).count(), usize::from(kept), "{now}");
    }
    let other = || revocation(Target::User(Uid(2)), None);
    assert_eq!(Vec::from(list.with(other(), at(29))).len(), 2);
    assert_eq!(Vec::from(list.with(other(), at(30))), [other()]);
    let emptied = list.without(&Target::All, at(30));
    assert_eq!(emptied, Revocations::default());
}

#[test]
fn a_second_one_for_a_target_replaces_the_first() {
    for target in every_target() {
        let first = Revocations::default().with(revocation(target.clone(), Some(30)), at(10));
        let longer = revocation(target.clone(), None);
        assert_eq!(
            Vec::from(first.with(longer.clone(), at(20))),
            [longer],
            "{target}"
        );
    }
}

#[test]
fn a_list_reads_as_it_was_written_and_nothing_else_is_one() {
    let list: Revocations = every_target()
        .into_iter()
        .zip([None, Some(30), None, Some(40), Some(50)])
        .map(|(target, until)| revocation(target, until))
        .collect();
    let text = serde_json::to_string(&list).unwrap();
    assert_eq!(serde_json::from_str::<Revocations>(&text).unwrap(), list);
    let whole = r#"{"target":"all","since":"2026-11-25T16:00:00Z","by":0}"#;
    assert!(serde_json::from_str::<Revocations>(&format!("[{whole}]")).is_ok());
    for bad in [
        "",
        "{}",
        "[1]",
        r#"[{"target":"all","since":"2026-11-25T16:00:00Z"}]"#,
        r#"[{"target":"everything","since":"2026-11-25T16:00:00Z","by":0}]"#,
        r#"[{"target":{"secret":"../x"},"since":"2026-11-25T16:00:00Z","by":0}]"#,
        r#"[{"target":{"user":-1},"since":"2026-11-25T16:00:00Z","by":0}]"#,
        r#"[{"target":"all","since":"2026-11-25T16:00:00Z","by":0,"x":1}]"#,
        r#"[{"target":"all","since":"2026-11-25T16:00:00Z","by":0}"#,
    ] {
        assert!(serde_json::from_str::<Revocations>(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_revocation_says_what_since_when_and_how_it_ends() {
    let texts = [
        (
            Target::All,
            None,
            "everything is revoked since 1970-01-01T00:00:10Z: `secretfs unrevoke --all` lifts it",
        ),
        (
            Target::User(Uid(1)),
            Some(30),
            "user 1 is revoked since 1970-01-01T00:00:10Z until 1970-01-01T00:00:30Z: `secretfs unrevoke --uid 1` lifts it",
        ),
        (
            Target::Version(path("s/x"), version("3")),
            None,
            "version 3 of s/x is revoked since 1970-01-01T00:00:10Z: `secretfs unrevoke s/x --version 3` lifts it",
        ),
    ];
    for (target, until, text) in texts {
        assert_eq!(revocation(target, until).to_string(), text);
    }
}
