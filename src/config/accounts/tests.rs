//! Who is known, who is not, and what an unknown one closes.

use super::*;
use crate::caller::{Caller, Cgroup};
use crate::policy::{Decision, Reason};
use crate::sys::Tid;
use std::path::Path;

const CONFIG: &str = r#"
user = "secretfs"
manage = [{ uid = "late" }, { gid = ["ops", "late"] }, { uid = 5 }]
[backends.local]
type = "store"
path = "/s/store.age"
[services.good]
source = "local:good"
allow = [{ uid = 1 }, { uid = "billing", gid = "ops" }, { gid = "61184-65519", unit = "a.service" }]
manage = [{ uid = 2 }]
[services.by-rule]
source = "local:x"
allow = [{ uid = 1 }, { uid = "late" }]
[services.by-group]
source = "local:x"
allow = [{ uid = 1 }, { uid = 1, gid = ["ops", "late"] }]
[services.by-manage]
source = "local:x"
allow = [{ uid = 1 }]
manage = [{ uid = 2 }, { uid = "late" }]
[services.by-secret]
source = "local:x"
allow = [{ uid = 1 }]
[services.by-secret.secrets]
key = { allow = [{ uid = "late" }] }
[services.by-owner]
source = "local:x"
allow = [{ uid = 1 }]
[services.by-owner.secrets]
key = { owner = "late" }
[services.bound]
allow = [{ uid = 1 }]
[services.bound.secrets]
key = { from = "local:x/key", allow = [{ uid = 1 }] }
[defaults]
source = "local"
allow = [{ uid = 1 }]
"#;

fn accounts() -> Listed {
    let account = |name: &str, id| Account {
        name: name.to_owned(),
        uid: Uid(id),
        gid: Gid(id),
    };
    Listed {
        users: vec![account("secretfs", 990), account("billing", 1001)],
        groups: vec![("ops".to_owned(), Gid(500))],
        subuids: Subuids::parse(b"containers:100000:65536\nbilling:200000:10\n1001:300000:10\n"),
    }
}

fn config(text: &str) -> Config {
    Config::parse_with(text, Path::new("c.toml"), &accounts()).unwrap()
}

fn caller(uid: u32, gid: u32) -> Caller {
    Caller {
        groups: Some(Vec::new()),
        cgroup: Some(Cgroup {
            unit: Some("a.service".to_owned()),
            container: None,
        }),
        ..Caller::new(Uid(uid), Gid(gid), Tid(1))
    }
}

fn allowed(decision: Decision) -> Option<String> {
    match decision {
        Decision::Allowed(rule) => Some(rule.to_string()),
        Decision::Denied(_) => None,
        Decision::Undecided(evidence) => panic!("{evidence:?} is known"),
    }
}

#[test]
fn names_become_numbers_and_rules_get_names() {
    let (policy, _) = config(CONFIG).policy(&accounts());
    let check =
        |path: &str, uid, gid| allowed(policy.check(&caller(uid, gid), &path.parse().unwrap()));
    let table = [
        ("good/x", 1, 1, Some("services.good.allow[0]")),
        ("good/x", 1001, 500, Some("services.good.allow[1]")),
        ("good/x", 1001, 1001, None),
        ("good/x", 9, 61184, Some("services.good.allow[2]")),
        ("good/x", 9, 65520, None),
        (
            "bound/key",
            1,
            1,
            Some("services.bound.secrets.key.allow[0]"),
        ),
        ("other/x", 1, 1, Some("defaults.allow[0]")),
    ];
    for (path, uid, gid, rule) in table {
        assert_eq!(check(path, uid, gid).as_deref(), rule, "{path} {uid} {gid}");
    }
    assert!(policy.services["good"].open_ended);
    assert!(!policy.services["bound"].open_ended);
}

#[test]
fn an_unknown_name_closes_what_names_it_and_nothing_else() {
    let config = config(CONFIG);
    let (policy, unknown) = config.policy(&accounts());
    for service in ["by-rule", "by-group", "by-manage", "by-secret", "by-owner"] {
        let path = format!("{service}/key").parse().unwrap();
        let decision = policy.check(&caller(1, 1), &path);
        let Decision::Denied(Reason::Closed(why)) = decision else {
            panic!("{service}: {decision:?}");
        };
        assert!(
            why.contains(&format!("services.{service}.")) && why.contains("\"late\""),
            "{why}"
        );
        // Those who may change it by its own rules cannot either.
        let name = service.parse().unwrap();
        assert_eq!(
            allowed(policy.check_manage(&caller(2, 2), Some(&name))),
            None
        );
    }
    let keys: Vec<_> = unknown.iter().map(|unknown| unknown.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "manage[0].uid",
            "manage[1].gid",
            "services.by-group.allow[1].gid",
            "services.by-manage.manage[1].uid",
            "services.by-owner.secrets.key.owner",
            "services.by-rule.allow[1].uid",
            "services.by-secret.secrets.key.allow[0].uid",
        ]
    );
    // A rule of many names, one of them unknown, is dropped as a whole: the mend is the same, and it is never wider.
    assert_eq!(allowed(policy.check_manage(&caller(9, 500), None)), None);
    assert_eq!(
        allowed(policy.check_manage(&caller(5, 5), None)).as_deref(),
        Some("manage[2]")
    );

    let mut later = accounts();
    later.users.push(Account {
        name: "late".to_owned(),
        uid: Uid(77),
        gid: Gid(77),
    });
    later.groups.push(("late".to_owned(), Gid(77)));
    let (policy, unknown) = config.policy(&later);
    assert_eq!(unknown, []);
    let path = "by-rule/key".parse().unwrap();
    assert_eq!(
        allowed(policy.check(&caller(77, 1), &path)).as_deref(),
        Some("services.by-rule.allow[1]")
    );
}

const MAPS: &str = r#"
[backends.local]
type = "store"
path = "/s/store.age"
[services.map]
source = "local:x"
allow = [{ uid_map = "containers" }]
[services.two]
source = "local:x"
allow = [{ uid_map = ["billing", "containers"], unit = "a.service" }]
[services.number]
source = "local:x"
allow = [{ uid_map = 1001 }]
[services.both]
source = "local:x"
allow = [{ uid = [100001, "200005-300005", 7], uid_map = ["containers", "billing"] }]
[services.none]
source = "local:x"
allow = [{ uid = 1 }, { uid_map = ["late", "containers"] }]
"#;

#[test]
fn a_map_is_the_uids_that_are_delegated_and_narrows_a_uid() {
    let config = config(MAPS);
    let (policy, unknown) = config.policy(&accounts());
    let check = |service: &str, uid| {
        let path = format!("{service}/x").parse().unwrap();
        allowed(policy.check(&caller(uid, 1), &path)).is_some()
    };
    let table: [(&str, &[u32], &[u32]); 4] = [
        (
            "map",
            &[100_000, 165_535],
            &[0, 1, 1001, 99_999, 165_536, 200_000],
        ),
        (
            "two",
            &[100_000, 200_000, 200_009, 300_009],
            &[200_010, 1001],
        ),
        ("number", &[300_000, 300_009], &[200_000, 1001]),
        (
            "both",
            &[100_001, 200_005, 300_005],
            &[7, 100_000, 200_004, 250_000, 300_006],
        ),
    ];
    for (service, inside, outside) in table {
        for uid in inside {
            assert!(check(service, *uid), "{service} {uid}");
        }
        for uid in outside {
            assert!(!check(service, *uid), "{service} {uid}");
        }
    }
    // To whom nothing is delegated is as one who is not known.
    let closed = policy.check(&caller(1, 1), &"none/x".parse().unwrap());
    assert!(matches!(closed, Decision::Denied(Reason::Closed(_))));
    let [unknown] = &unknown[..] else {
        panic!("{unknown:?}");
    };
    let said = unknown.to_string();
    assert!(
        said.starts_with("services.none.allow[1].uid_map: /etc/subuid delegates no uids to \"late\": `usermod --add-subuids"),
        "{said}"
    );

    let mut later = accounts();
    later.subuids = Subuids::parse(b"late:5:1\ncontainers:100000:65537\n");
    let (policy, unknown) = config.policy(&later);
    let keys: Vec<_> = unknown.iter().map(|unknown| unknown.key.as_str()).collect();
    let of = |service| format!("services.{service}.allow[0].uid_map");
    assert_eq!(keys, ["both", "number", "two"].map(of));
    let check = |uid| allowed(policy.check(&caller(uid, 1), &"none/x".parse().unwrap()));
    for (uid, rule) in [
        (1, Some("services.none.allow[0]")),
        (5, Some("services.none.allow[1]")),
        (165_536, Some("services.none.allow[1]")),
        (6, None),
    ] {
        assert_eq!(check(uid).as_deref(), rule, "{uid}");
    }
}

#[test]
fn a_file_of_maps_that_is_not_believed_closes_what_goes_by_it() {
    #[derive(Debug)]
    struct Refused;
    impl Accounts for Refused {
        fn user(&self, name: &str) -> Option<Account> {
            accounts().user(name)
        }
        fn group(&self, name: &str) -> Option<Gid> {
            accounts().group(name)
        }
        fn subuids(&self) -> Result<Subuids, String> {
            Err("why".to_owned())
        }
    }
    let uid = "[services.uid]\nsource = \"local:x\"\nallow = [{ uid = 1 }]\n";
    let (policy, unknown) = config(&format!("{MAPS}{uid}")).policy(&Refused);
    let said: Vec<_> = unknown.iter().map(ToString::to_string).collect();
    let keys = [
        "both.allow[0]",
        "map.allow[0]",
        "none.allow[1]",
        "number.allow[0]",
        "two.allow[0]",
    ];
    assert_eq!(said, keys.map(|key| format!("services.{key}.uid_map: why")));
    for (service, open) in [("none", false), ("map", false), ("uid", true)] {
        let path = format!("{service}/x").parse().unwrap();
        let decision = policy.check(&caller(1, 1), &path);
        assert_eq!(allowed(decision).is_some(), open, "{service}");
    }
}

#[test]
fn defaults_close_too() {
    let text = "[backends.local]\ntype = \"store\"\npath = \"/s.age\"\n[defaults]\nsource = \"local\"\nallow = [{ uid = 1 }, { gid = \"late\" }]\n";
    let (policy, unknown) = config(text).policy(&accounts());
    assert_eq!(unknown.len(), 1);
    let decision = policy.check(&caller(1, 1), &"any/x".parse().unwrap());
    assert!(
        matches!(decision, Decision::Denied(Reason::Closed(_))),
        "{decision:?}"
    );
}

#[test]
fn root_and_user_manage_where_nothing_is_said() {
    let (policy, _) = config("user = \"secretfs\"\n").policy(&accounts());
    for (uid, manages) in [(0, true), (990, true), (1001, false)] {
        let rule = allowed(policy.check_manage(&caller(uid, 990), None));
        assert_eq!(
            rule.as_deref() == Some("manage (default)"),
            manages,
            "{uid}"
        );
    }
    let (policy, _) = config("").policy(&accounts());
    let us = Uid::effective().0;
    assert!(allowed(policy.check_manage(&caller(us, us), None)).is_some());
}
