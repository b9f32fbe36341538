//! What edits leave as it was, and what they refuse.

use super::*;
use crate::config::accounts::Listed;
use crate::config::{IdSpec, template};
use crate::sys::{Gid, Uid};

fn rule(uid: &str) -> RuleSpec {
    let uids = vec![uid.parse().unwrap()];
    RuleSpec::new(uids, Vec::new(), Vec::new(), None, None).unwrap()
}

fn run(text: &str, change: &Change<'_>) -> Result<(String, Edited), ConfigErrors> {
    edit(text, Path::new("/c.toml"), &Listed::default(), change)
}

fn allowed(text: &str, service: &str, rule: &RuleSpec) -> String {
    let (text, edited) = run(text, &Change::Allow(&service.parse().unwrap(), rule)).unwrap();
    assert!(edited.changed);
    text
}

fn disallowed(text: &str, service: &str, rule: &RuleSpec) -> (String, Vec<String>) {
    let change = &Change::Disallow(&service.parse().unwrap(), rule);
    let (text, edited) = run(text, change).unwrap();
    assert!(edited.changed);
    (text, edited.notes)
}

const HEAD: &str =
    "# Mine.\n[backends.local]   # of course\ntype = 'store'\npath = \"/s/store.age\"\n\n";

/// The list before, and with a rule for uid 9 after, in the layout that it had.
const LAYOUTS: &[(&str, &str)] = &[
    ("[{ uid = 1 }]", "[{ uid = 1 }, { uid = 9 }]"),
    ("[ {uid=1}, {uid=2} ]", "[ {uid=1}, {uid=2}, { uid = 9 } ]"),
    (
        "[\n    { uid = 1 }, # one\n    # two:\n    { uid = 2 },\n]",
        "[\n    { uid = 1 }, # one\n    # two:\n    { uid = 2 },\n    { uid = 9 },\n]",
    ),
    (
        "[\n  { uid = 1 } # one\n]",
        "[\n  { uid = 1 }, # one\n  { uid = 9 },\n]",
    ),
    (
        "[\n  { uid = 1 }, # one\n  # no more\n  ]",
        "[\n  { uid = 1 }, # one\n  # no more\n  { uid = 9 },\n  ]",
    ),
    (
        "[ # who\n  { uid = 1 }, { uid = 2 },\n]",
        "[ # who\n  { uid = 1 }, { uid = 2 },\n    { uid = 9 },\n]",
    ),
];

#[test]
fn a_rule_comes_in_the_layout_of_its_list() {
    let service = |list: &str| {
        format!(
            "{HEAD}[services.web] # the front\nsource = \"local:web\"\nallow = {list} # end\n\n# Last words.\n"
        )
    };
    for (before, after) in LAYOUTS {
        assert_eq!(allowed(&service(before), "web", &rule("9")), service(after));
    }
}

/// The list before and without the rule for uid 9 after.
const REMOVALS: &[(&str, &str)] = &[
    ("[{ uid = 1 }, { uid = 9 }]", "[{ uid = 1 }]"),
    ("[{ uid = 9 }, { uid = 1 }]", "[{ uid = 1 }]"),
    (
        "[{ uid = 1 }, { uid = 9 }, { uid = 2 }]",
        "[{ uid = 1 }, { uid = 2 }]",
    ),
    (
        "[\n    # one:\n    { uid = 1 }, # one\n    # nine:\n    { uid = 9 }, # nine\n    { uid = 2 }, # two\n]",
        "[\n    # one:\n    { uid = 1 }, # one\n    { uid = 2 }, # two\n]",
    ),
    (
        "[\n    { uid = 1 }, # one\n    { uid = 9 }, # nine\n    # no more\n]",
        "[\n    { uid = 1 }, # one\n    # no more\n]",
    ),
    (
        "[ # who\n    { uid = 9 }, # nine\n    { uid = 1 }\n]",
        "[ # who\n    { uid = 1 }\n]",
    ),
];

#[test]
fn a_rule_goes_with_its_own_comments_and_no_others() {
    let service =
        |list: &str| format!("{HEAD}[services.web]\nsource = \"local:web\"\nallow = {list}\n");
    for (before, after) in REMOVALS {
        let (text, notes) = disallowed(&service(before), "web", &rule("9"));
        assert_eq!(text, service(after));
        assert_eq!(notes, <[String; 0]>::default());
    }
    let (text, notes) = disallowed(&service("[{ uid = 9 }]"), "web", &rule("9"));
    assert_eq!(
        text,
        format!("{HEAD}[services.web]\nsource = \"local:web\"\n")
    );
    assert_eq!(notes, ["web has no rule left: nobody may read it"]);
}

#[test]
fn sections_in_other_forms_are_edited_too() {
    for services in [
        "services.web.source = \"local:web\"\n",
        "services = { web = { source = \"local:web\" } }\n",
        "services.web = { source = \"local:web\", allow = [{ uid = 1 }] }\n",
        "[services]\nweb.source = \"local:web\"\n[services.web.secrets]\nx = \"local:y/x\"\n",
        "[services]\nweb = { source = \"local:web\" }\n",
        "[services.web]\nsource = \"local:web\"\n[[services.web.allow]]\nuid = 1\n",
    ] {
        // Keys of the top come before any section.
        let text = match services.starts_with('[') {
            true => format!("{HEAD}{services}"),
            false => format!("{services}{HEAD}"),
        };
        let granted = allowed(&text, "web", &rule("9"));
        assert!(granted.contains("uid = 9"), "{granted}");
        let (taken, _) = disallowed(&granted, "web", &rule("9"));
        assert!(!taken.contains('9'), "{taken}");
    }
}

#[test]
fn a_first_section_keeps_what_the_defaults_gave() {
    let places = template::Places::below(Path::new("/x")).unwrap();
    let text = template::text(&places, None, Uid(1000));
    let text = allowed(&text, "web", &rule("billing"));
    let end = "# allow = [{ uid = \"billing\" }, { gid = \"ops\", unit = \"debug-shell.service\" }]\n\n[services.web]\nsource = \"local:web\"\nallow = [{ uid = 1000 }, { uid = \"billing\" }]\n\n";
    assert!(text.ends_with(end), "{text}");

    let ops = RuleSpec::new(
        Vec::new(),
        Vec::new(),
        vec![IdSpec::Range(7..=9)],
        Some("a.service".to_owned()),
        None,
    )
    .unwrap();
    let change = Change::Allow(&"api".parse().unwrap(), &ops);
    let (text, edited) = run(&text, &change).unwrap();
    assert_eq!(edited.notes.len(), 1);
    assert!(
        edited.notes[0].contains("rules of [defaults] copied"),
        "{edited:?}"
    );
    let end = "[services.web]\nsource = \"local:web\"\nallow = [{ uid = 1000 }, { uid = \"billing\" }]\n\n[services.api]\nsource = \"local:api\"\nallow = [{ uid = 1000 }, { gid = \"7-9\", unit = \"a.service\" }]\n\n";
    assert!(text.ends_with(end), "{text}");

    let (text, notes) = disallowed(&text, "other", &rule("1000"));
    assert!(
        text.contains("[services.other]\nsource = \"local:other\"\n"),
        "{text}"
    );
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn without_defaults_the_only_backend_counts() {
    let text = allowed(HEAD, "web", &rule("9"));
    assert_eq!(
        text,
        format!("{HEAD}[services.web]\nsource = \"local:web\"\nallow = [{{ uid = 9 }}]\n\n")
    );
    let two = format!("{HEAD}[backends.b]\ntype = \"store\"\npath = \"/b.age\"\n");
    let error = run(&two, &Change::Allow(&"web".parse().unwrap(), &rule("9"))).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("write [services.web] with source"),
        "{error}"
    );
}

#[test]
fn what_is_so_already_is_left_alone() {
    let text =
        format!("{HEAD}[services.web]\nsource = \"local:web\"\nallow = [{{ uid = \"9\" }}]\n");
    let same = run(&text, &Change::Allow(&"web".parse().unwrap(), &rule("9"))).unwrap();
    assert_eq!(same, (text, Edited::default()));
}

#[test]
fn taking_away_tells_of_what_is_left() {
    let text = format!(
        "{HEAD}[services.web]\nsource = \"local:web\"\nallow = [{{ uid = [8, 9] }}, {{ uid = 9 }}, {{ uid = 1 }}, {{ uid = \"5-20\" }}]\n"
    );
    let (_, notes) = disallowed(&text, "web", &rule("9"));
    assert_eq!(
        notes,
        [
            "services.web.allow[0] still names some of them: { uid = [8, 9] }",
            "services.web.allow[2] still names some of them: { uid = \"5-20\" }",
        ]
    );
    let error = run(
        &text,
        &Change::Disallow(&"web".parse().unwrap(), &rule("8")),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no rule of web is exactly { uid = 8 }: it has { uid = [8, 9] }, "),
        "{error}"
    );
}

/// A config in a folder that nobody else can write.
fn on_disk(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    (folder, file)
}

#[test]
fn the_file_is_replaced_and_keeps_owner_and_mode() {
    let (folder, file) = on_disk(HEAD);
    let owner = if Uid::effective() == Uid::ROOT {
        fs::File::open(&file)
            .and_then(|file| fchown(file, None, Some(7)))
            .unwrap();
        (0, 7)
    } else {
        (Uid::effective().0, Gid::effective().0)
    };
    let link = folder.path().join("link.toml");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    // What a crash left behind.
    fs::write(folder.path().join(".config.toml.new"), "junk").unwrap();
    let before = fs::metadata(&file).unwrap().ino();
    let web = "web".parse().unwrap();
    assert!(allow(&link, &web, &rule("9")).unwrap().changed);
    let after = fs::metadata(&file).unwrap();
    assert_ne!(after.ino(), before);
    assert_eq!((after.uid(), after.gid()), owner);
    assert_eq!(after.mode() & 0o7777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!folder.path().join(".config.toml.new").exists());
    assert_eq!(
        Config::load(&file).unwrap().services["web"].allow,
        [rule("9")]
    );

    let before = fs::metadata(&file).unwrap().ino();
    assert!(!allow(&file, &web, &rule("9")).unwrap().changed);
    assert_eq!(fs::metadata(&file).unwrap().ino(), before);
    assert!(disallow(&file, &web, &rule("9")).unwrap().changed);
    assert_eq!(Config::load(&file).unwrap().services["web"].allow, []);
}

#[test]
fn a_map_is_an_account_and_is_still_named_by_what_is_left() {
    let map = |account: &str, unit: Option<&str>| {
        let maps = vec![account.parse().unwrap()];
        let unit = unit.map(str::to_owned);
        RuleSpec::new(Vec::new(), maps, Vec::new(), unit, None)
    };
    let alone = map("containers", None).unwrap();
    let in_unit = map("containers", Some("a.service")).unwrap();
    let text = allowed(&allowed(HEAD, "web", &alone), "web", &in_unit);
    let rules = "allow = [{ uid_map = \"containers\" }, { uid_map = \"containers\", unit = \"a.service\" }]\n";
    assert!(text.contains(rules), "{text}");
    let (_, notes) = disallowed(&text, "web", &alone);
    assert!(notes[0].contains("still names some of them"), "{notes:?}");
    let range = map("100000-165535", None).unwrap_err().to_string();
    assert!(range.contains("/etc/subuid"), "{range}");
}

#[test]
fn a_wrong_config_is_not_touched() {
    let text = format!("{HEAD}[cache]\nttl = 1\n");
    let (_folder, file) = on_disk(&text);
    let error = allow(&file, &"web".parse().unwrap(), &rule("9")).unwrap_err();
    assert!(error.to_string().contains("cache.ttl"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn edits_at_the_same_time_lose_nothing() {
    let (_folder, file) = on_disk(HEAD);
    let web: Name = "web".parse().unwrap();
    std::thread::scope(|scope| {
        for uid in 0..8 {
            let (file, web) = (&file, &web);
            scope.spawn(move || allow(file, web, &rule(&uid.to_string())).unwrap());
        }
    });
    assert_eq!(Config::load(&file).unwrap().services["web"].allow.len(), 8);
}

proptest::proptest! {
    #[test]
    fn any_rule_comes_and_goes(
        uids in proptest::collection::vec("[a-z_][a-z0-9_.-]{0,8}|[0-9]{1,6}|1[0-9]{1,3}-2[0-9]{4}|[\"'\\\\#é]{1,3}", 1..3),
        maps in proptest::collection::vec("[a-z_][a-z0-9_.-]{0,8}|[0-9]{1,6}", 0..3),
        unit in proptest::option::of("[a-z@:.\\\\-]{1,9}\\.service"),
    ) {
        let ids = |ids: Vec<String>| ids.iter().map(|id| id.parse().unwrap()).collect();
        let rule = RuleSpec::new(ids(uids), ids(maps), Vec::new(), unit, None).unwrap();
        let text = format!("{HEAD}[services.web]\nsource = \"local:web\"\nallow = [{{ gid = 1 }}]\n");
        let granted = allowed(&text, "web", &rule);
        proptest::prop_assert_eq!(disallowed(&granted, "web", &rule).0, text);
    }
}
