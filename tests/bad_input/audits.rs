//! Audit logs that cannot be written, or are none, or were changed.

use crate::{Case, Place, case};

pub(crate) fn cases() -> Vec<Case> {
    let with = |what, words: &str, code, says: &[&str], given: fn(&Place)| {
        case(what, words, code, says).given(given)
    };
    vec![
        with(
            "an audit log that is a folder",
            "get billing/two",
            1,
            &["@/audit.jsonl", "[audit]"],
            |place| {
                place.folder("audit.jsonl");
            },
        ),
        with(
            "an audit log that is a link",
            "get billing/two",
            1,
            &["@/audit.jsonl", "not a regular file", "[audit]"],
            |place| {
                place.link("audit.jsonl", "/etc/passwd");
            },
        ),
        with(
            "an audit log that is a device",
            "get billing/two",
            1,
            &["/dev/full", "[audit]"],
            |place| {
                let path = format!("{:?}", place.at("audit.jsonl"));
                place.reconfigure(&path, "\"/dev/full\"");
            },
        ),
        with(
            "an audit log that is something else",
            "get billing/two",
            1,
            &["@/audit.jsonl", "move the file away"],
            |place| {
                place.write("audit.jsonl", "Dear diary,\n");
                place.chmod("audit.jsonl", 0o600);
            },
        ),
        with(
            "an audit log that others can write",
            "get billing/two",
            1,
            &["@/audit.jsonl", "chmod 0640"],
            |place| {
                place.chmod("audit.jsonl", 0o666);
            },
        ),
        with(
            "an audit log of somebody else",
            "get billing/two",
            1,
            &["@/audit.jsonl", "61005", "chown root"],
            |place| {
                place.chown("audit.jsonl", 61_005);
            },
        ),
        with(
            "an audit log in no folder",
            "get billing/two",
            1,
            &["@/none/audit.jsonl", "[audit]"],
            |place| {
                place.reconfigure("/audit.jsonl", "/none/audit.jsonl");
            },
        ),
        with(
            "an audit log below a file",
            "get billing/two",
            1,
            &["@/config.toml/audit.jsonl", "[audit]"],
            |place| {
                place.reconfigure("/audit.jsonl", "/config.toml/audit.jsonl");
            },
        ),
        with(
            "an audit log on a full disk",
            "get billing/canary",
            1,
            &["@/full/audit.jsonl", "No space left", "[audit]"],
            full_disk,
        ),
        with(
            "a change on a full disk for the audit log",
            "rm billing/canary",
            1,
            &["@/full/audit.jsonl", "No space left", "[audit]"],
            full_disk,
        ),
        with(
            "a daemon whose audit log is a folder",
            "mount",
            1,
            &["@/audit.jsonl", "[audit]"],
            |place| {
                place.folder("audit.jsonl");
            },
        ),
        with(
            "a line that was changed",
            "audit --denied",
            1,
            &[
                "the audit log was changed",
                "@/audit.jsonl",
                "line 2",
                "keep the files",
            ],
            |place| {
                let text = String::from_utf8(place.read("audit.jsonl")).unwrap();
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines[1] = lines[1].replacen("\"uid\":", "\"uid\":1", 1);
                place.write("audit.jsonl", lines.join("\n") + "\n");
            },
        ),
        with(
            "a line that was taken out",
            "audit --denied",
            1,
            &[
                "the audit log was changed",
                "@/audit.jsonl",
                "keep the files",
            ],
            |place| {
                let text = String::from_utf8(place.read("audit.jsonl")).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                place.write(
                    "audit.jsonl",
                    [&lines[..1], &lines[2..]].concat().join("\n") + "\n",
                );
            },
        ),
        with(
            "a state folder that is a file",
            "mount",
            1,
            &["@/state", "`state`"],
            |place| {
                place.remove("state");
                place.write("state", "");
            },
        ),
        with(
            "a count of starts that is none",
            "mount",
            1,
            &["@/state/epoch", "remove it"],
            |place| {
                place.write("state/epoch", "many\n");
            },
        ),
    ]
}

/// The log's disk has no room left for a line.
fn full_disk(place: &Place) {
    use nix::mount::{MsFlags, mount};
    place.folder("full");
    mount(
        Some("full"),
        &place.at("full"),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=4k,mode=0755"),
    )
    .unwrap();
    place.reconfigure("/audit.jsonl", "/full/audit.jsonl");
    place.write("full/filler", [0; 4096]);
}
