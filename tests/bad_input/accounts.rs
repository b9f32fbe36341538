//! Users, groups, processes and times that are none; and those who are not allowed.

use crate::scratch::STRANGER;
use crate::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "a rule for nobody",
            "allow billing",
            2,
            &["--uid", "secretfs allow --help"],
        ),
        case(
            "a rule for a unit alone",
            "allow billing --unit a.service",
            2,
            &["--uid", "secretfs allow --help"],
        ),
        case(
            "a rule for everybody",
            "allow billing --uid *",
            2,
            &["--uid", "wildcards", "name the users"],
        )
        .or_served(),
        case(
            "a rule for all numbers",
            "allow billing --uid 0-4294967294",
            2,
            &["--uid", "wildcard", "name the users"],
        ),
        case(
            "a range backwards",
            "allow billing --uid 9-3",
            2,
            &["--uid", "smaller number first"],
        ),
        case(
            "a number too large",
            "allow billing --gid 4294967295",
            2,
            &["--gid", "so large a number"],
        ),
        case(
            "a user with a colon",
            "allow billing --uid a:b",
            2,
            &["--uid", "its name, its number"],
        ),
        case(
            "a range where an account is wanted",
            "allow billing --uid-map 100000-165535",
            2,
            &["the rule", "/etc/subuid", "name or number of the account"],
        ),
        case(
            "a wildcard unit",
            "allow billing --uid 5 --unit *.service",
            2,
            &["the rule", "name the unit"],
        )
        .or_served(),
        case(
            "a unit that is none",
            "allow billing --uid 5 --unit billing",
            2,
            &["the rule", "billing.service"],
        ),
        case(
            "a short container",
            "allow billing --uid 5 --container 3f4a",
            2,
            &["the rule", "64"],
        ),
        case(
            "a rule to take back that is not there",
            "disallow billing --uid 4242",
            2,
            &["@/config.toml", "no rule of billing is exactly", "4242"],
        )
        .or_served(),
        case(
            "a rule in a config that others own",
            "allow billing --uid 5",
            2,
            &["@/config.toml", "its owner"],
        )
        .uid(STRANGER),
        case(
            "an explanation for two",
            "explain billing/two --pid 1 --uid 0",
            2,
            &["cannot stand together"],
        ),
        case(
            "a process that is no number",
            "explain billing/two --pid self",
            2,
            &["--pid", "secretfs explain --help"],
        ),
        case(
            "a process that is gone",
            "explain billing/two --pid 4194304",
            1,
            &["4194304", "ps"],
        )
        .or_served(),
        case(
            "a process beyond all numbers",
            "explain billing/two --pid 99999999999",
            2,
            &["--pid", "secretfs explain --help"],
        ),
        case(
            "an unknown user",
            "explain billing/two --uid nobody-at-all",
            2,
            &["--uid", "getent passwd"],
        )
        .or_served(),
        case(
            "a user without an account or a group",
            "explain billing/two --uid 61999",
            2,
            &["--uid", "--gid"],
        )
        .or_served(),
        case(
            "a group without a user",
            "explain billing/two --gid 5",
            2,
            &["--uid", "secretfs explain --help"],
        ),
        case(
            "an unknown group",
            "explain billing/two --uid 0 --gid none-at-all",
            2,
            &["--gid", "getent group"],
        )
        .or_served(),
        case(
            "no time at all",
            "audit --since yesterday",
            2,
            &["--since", "2026-11-23"],
        )
        .or_served(),
        case(
            "a time to come",
            "audit --since=-2h",
            2,
            &["--since", "2026-11-23"],
        ),
        case(
            "a day that never was",
            "audit --since 2026-02-30",
            2,
            &["--since", "2026-11-23"],
        ),
        case(
            "an audit of an unknown user",
            "audit --uid nobody-at-all",
            2,
            &["--uid", "getent passwd"],
        )
        .or_served(),
        case(
            "an audit of no path",
            "audit --secret a/b/c",
            2,
            &["SERVICE/NAME"],
        )
        .or_served(),
        case(
            "a stranger reads",
            "get billing/canary",
            4,
            &["denied", "billing", "allow", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger writes",
            "put billing/canary",
            4,
            &["denied", "`manage`", "65533"],
        )
        .input("x")
        .uid(STRANGER)
        .served(),
        case(
            "a stranger writes what is too large",
            "put billing/canary",
            1,
            &["stdin", "1 MiB"],
        )
        .input(vec![b'x'; (1 << 20) + 1])
        .uid(STRANGER)
        .served(),
        case(
            "a stranger removes",
            "rm billing/canary",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger rolls back",
            "rollback billing/two --to 1",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger looks at versions",
            "history billing/two",
            4,
            &["denied", "allow", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger copies the store",
            "export @/run/mine.age",
            1,
            &["@/run/mine.age", "Permission denied", "run it as"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger copies the store to where it may write",
            "export /tmp/secretfs-scratch-export.age",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger fills the store",
            "restore @/config.toml",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger reloads",
            "reload",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger watches",
            "watch",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger waits",
            "wait billing/canary",
            4,
            &["denied", "billing", "allow", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "waiting for what is not there",
            "wait billing/none",
            3,
            &["billing/none", "secretfs ls"],
        )
        .served(),
        case(
            "a stranger ends the daemon",
            "unmount",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger reads the audit log",
            "audit",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger rekeys",
            "rekey",
            5,
            &["@/identity.txt", "Permission denied", "its owner"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger asks about others",
            "explain billing/two --uid 0",
            4,
            &["denied", "`manage`", "65533"],
        )
        .uid(STRANGER)
        .served(),
        case(
            "a stranger without a daemon",
            "get billing/canary",
            1,
            &["no daemon serves", "secretfs mount"],
        )
        .uid(STRANGER),
    ]
}
