//! init, allow, disallow, status, explain, doctor, reload, watch, wait, unmount, audit, completions, man.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::Demo;

#[test]
fn init_makes_everything_once() {
    let demo = Demo::new();
    let folder = demo.folder.path().to_str().unwrap();
    let before = fs::read(demo.path("identity.txt")).unwrap();
    let again = demo.bare(&["--json", "init", folder], b"").done();
    let made: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(made.as_array().unwrap().len(), 5);
    assert!(
        made.as_array()
            .unwrap()
            .iter()
            .all(|one| one["made"] == false)
    );
    assert_eq!(fs::read(demo.path("identity.txt")).unwrap(), before);
    for name in [
        "config.toml",
        "store.age",
        "store.d",
        "audit.jsonl",
        "run",
        "state",
        "secrets",
    ] {
        assert!(demo.path(name).exists(), "{name}");
    }
    demo.run(&["init", folder]).failed(2, "--config");
}

#[test]
fn rules_come_and_go_and_comments_stay() {
    let demo = Demo::new();
    let comments = |text: &str| text.matches('#').count();
    let before = fs::read_to_string(demo.path("config.toml")).unwrap();
    let allowed = demo.json(&[
        "allow",
        "billing",
        "--uid",
        "4711",
        "--unit",
        "billing.service",
    ]);
    assert_eq!(
        (&allowed["changed"], &allowed["reloaded"]),
        (&true.into(), &false.into())
    );
    let after = fs::read_to_string(demo.path("config.toml")).unwrap();
    assert!(
        after.contains("4711") && after.contains("billing.service"),
        "{after}"
    );
    assert_eq!(comments(&after), comments(&before));
    demo.run(&["disallow", "billing", "--uid", "4711"])
        .failed(2, "billing");
    demo.run(&[
        "disallow",
        "billing",
        "--uid",
        "4711",
        "--unit",
        "billing.service",
    ])
    .done();
    let gone = fs::read_to_string(demo.path("config.toml")).unwrap();
    assert!(!gone.contains("4711"), "{gone}");

    let map = ["billing", "--uid-map", "containers", "--unit", "a.service"];
    let rule = "{ uid_map = \"containers\", unit = \"a.service\" }";
    for (command, there) in [("allow", true), ("disallow", false)] {
        demo.run(&[&[command], &map[..]].concat()).done();
        let text = fs::read_to_string(demo.path("config.toml")).unwrap();
        assert_eq!(text.contains(rule), there, "{text}");
    }

    demo.run(&["allow", "billing"]).failed(2, "--uid");
    demo.run(&["allow", "billing", "--uid", "9-1"])
        .failed(2, "--uid");
    demo.run(&["allow", "../x", "--uid", "1"])
        .failed(2, "a name is");
}

#[test]
fn explain_says_which_rule_decides() {
    let demo = Demo::new();
    demo.put("billing/pw", b"canary-7f3a");
    demo.run(&["allow", "billing", "--uid", "4711"]).done();
    let explain = |uid: &str| demo.json(&["explain", "billing/pw", "--uid", uid, "--gid", "1"]);
    let yes = explain("4711");
    assert_eq!(yes["allowed"], true);
    assert!(
        yes["reason"]
            .as_str()
            .unwrap()
            .starts_with("services.billing.allow")
    );
    assert_eq!(yes["references"][0], "local:billing/pw");
    assert_eq!(explain("4712")["allowed"], false);

    let pid = std::process::id().to_string();
    let own = demo.json(&["explain", "billing/pw", "--pid", &pid]);
    assert_eq!(own["uid"], nix::unistd::geteuid().as_raw());
    assert_eq!(own["allowed"], true);
    let text = demo.run(&["explain", "billing/pw"]).done();
    assert!(text.text().contains("allowed"), "{}", text.text());
    demo.run(&["explain", "billing/pw", "--pid", "4194305"])
        .failed(1, "--pid");
    demo.run(&["explain", "billing/pw", "--uid", "no-such-user-here"])
        .failed(2, "--uid");
}

#[test]
fn status_without_a_daemon_says_so() {
    let demo = Demo::new();
    demo.put("billing/pw", b"canary-7f3a");
    let status = demo.json(&["status"]);
    assert_eq!(status["daemon"], Value::Null);
    assert_eq!(status["backends"][0]["name"], "local");
    assert_eq!(status["backends"][0]["secrets"], 1);
    let text = demo.run(&["status"]).done();
    assert!(text.text().contains("secretfs mount"), "{}", text.text());
    assert!(!text.text().contains('\x1b'), "no colours in a pipe");
}

#[test]
fn doctor_names_what_is_wrong_and_how_to_mend_it() {
    let demo = Demo::new();
    let well = demo.json(&["doctor"]);
    assert!(
        well.as_array()
            .unwrap()
            .iter()
            .all(|check| check["state"] != "wrong"),
        "{well}"
    );
    let warns = |word: &str| {
        well.as_array().unwrap().iter().any(|check| {
            check["state"] == "warning" && check["detail"].as_str().unwrap().contains(word)
        })
    };
    assert!(warns("age -p"), "{well}");
    assert!(warns("secretfs allow"), "{well}");

    let identity = demo.path("identity.txt");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o644)).unwrap();
    let sick = demo.run(&["doctor"]);
    assert_eq!(sick.code, 1);
    assert!(sick.text().contains("chmod 0600"), "{}", sick.text());
    demo.run(&["get", "billing/pw"]).failed(5, "chmod 0600");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o600)).unwrap();

    demo.edit("config.toml", |text| {
        text + "\nnonsense = 1\n[services.x]\nsource = \"local:x\"\nallow = [{ uid = \"no-such-user-here\" }]\n"
    });
    let sick = demo.run(&["doctor"]);
    assert_eq!(sick.code, 1);
    assert!(sick.text().contains("nonsense"), "{}", sick.text());
    demo.run(&["ls"]).failed(2, "config.toml");
}

#[test]
fn what_is_missing_is_named() {
    let demo = Demo::new();
    demo.bare(&["--config", &demo.arg("nosuch.toml"), "ls"], b"")
        .failed(2, "nosuch.toml");
    fs::rename(demo.path("store.age"), demo.path("away")).unwrap();
    demo.run(&["ls"]).failed(5, "store.age");
    fs::rename(demo.path("away"), demo.path("store.age")).unwrap();
    fs::remove_file(demo.path("identity.txt")).unwrap();
    demo.run(&["ls"]).failed(5, "identity.txt");
}

#[test]
fn the_daemons_own_commands_without_one() {
    let demo = Demo::new();
    demo.run(&["reload"]).failed(1, "secretfs mount");
    demo.run(&["audit", "--follow"]).failed(1, "secretfs mount");
    for what in [
        &["billing"][..],
        &["billing/pw"],
        &["billing/pw", "--version", "1"],
        &["--uid", "0"],
        &["--all"],
    ] {
        for command in ["revoke", "unrevoke"] {
            let words: Vec<&str> = [command].iter().chain(what).copied().collect();
            demo.run(&words).failed(1, "secretfs mount");
        }
    }
    demo.run(&["watch"]).failed(1, "secretfs mount");
    demo.run(&["wait", "billing/pw"])
        .failed(1, "secretfs mount");
    // Whatever is wrong with the arguments is said first.
    demo.run(&["watch", "--path", "../canary-7f3a"])
        .failed(2, "PATH");
    demo.run(&["watch", "--path", "billing", "--path", "-canary-7f3a"])
        .failed(2, "--help");
    demo.run(&["wait", "billing"]).failed(2, "SERVICE/NAME");
    demo.run(&["wait", "billing/pw", "--timeout", "canary-7f3a"])
        .failed(2, "--timeout");
    demo.run(&["wait", "billing/pw", "--after", "canary-7f3a"])
        .failed(2, "--after");
    let unmount = demo.json(&["unmount"]);
    assert_eq!(
        (&unmount["ended"], &unmount["dead"]),
        (&false.into(), &false.into())
    );
}

#[test]
fn what_to_revoke_is_named_in_one_way() {
    let demo = Demo::new();
    for (words, word) in [
        (&["revoke"][..], "--all"),
        (&["unrevoke"], "--all"),
        (&["revoke", "a/b", "--all"], "cannot stand together"),
        (&["revoke", "billing", "--version", "1"], "SERVICE/NAME"),
        (&["revoke", "--all", "--version", "1"], "--version"),
        (&["revoke", "../canary-7f3a"], "PATH"),
        (&["revoke", "canary 7f3a"], "SERVICE"),
        (&["revoke", "--uid", "no-such-user-here"], "--uid"),
        (&["revoke", "a/b", "--for", "canary-7f3a"], "--for"),
        (&["revoke", "a/b", "--for", "0"], "--for"),
        (&["revoke", "a/b", "--for", "-1h"], "revoke --help"),
        (
            &["unrevoke", "a/b", "--for", "1h"],
            "secretfs unrevoke --help",
        ),
    ] {
        demo.run(words).failed(2, word);
    }
}

#[test]
fn a_damaged_list_of_revocations_is_named_and_no_reason_not_to_read() {
    let demo = Demo::new();
    demo.put("billing/pw", b"canary-7f3a");
    fs::write(demo.path("state/revocations.json"), "[{").unwrap();
    let sick = demo.run(&["doctor"]);
    assert_eq!(sick.code, 1);
    assert!(
        sick.text().contains("state/revocations.json"),
        "{}",
        sick.text()
    );
    // With the identity in hand there is nothing that could be kept from its holder.
    assert_eq!(demo.get("billing/pw"), b"canary-7f3a");
    let kept = r#"[{"target":{"secret":"billing/pw"},"since":"2026-11-25T16:00:00Z","by":0}]"#;
    fs::write(demo.path("state/revocations.json"), kept).unwrap();
    let status = demo.json(&["status"]);
    assert_eq!(status["revoked"][0]["target"]["secret"], "billing/pw");
    let text = demo.run(&["status"]).done();
    assert!(
        text.text().contains("until it is unrevoked"),
        "{}",
        text.text()
    );
    demo.get("billing/pw");
}

#[test]
fn a_held_lock_is_waited_for_and_then_named() {
    let demo = Demo::new();
    fs::create_dir_all(demo.path("run")).unwrap();
    let file = fs::File::create(demo.path("run/lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    demo.run(&["ls"]).failed(1, "run/lock");
    drop(lock);
    demo.run(&["ls"]).done();
}

#[test]
fn the_log_shows_every_command_and_whether_it_was_changed() {
    let demo = Demo::new();
    demo.put("billing/pw", b"canary-7f3a");
    demo.get("billing/pw");
    demo.run(&["get", "web/none"]).failed(3, "web/none");
    let log = demo.run(&["audit"]).done();
    for line in [
        "put billing/pw",
        "get billing/pw",
        "absent get web/none",
        "by identity",
    ] {
        assert!(log.text().contains(line), "{line}: {}", log.text());
    }
    assert!(log.stderr.contains("unbroken"), "{}", log.stderr);
    assert!(!log.text().contains("canary"));

    let only = demo
        .run(&["audit", "--secret", "billing/pw", "--since", "1h", "--json"])
        .done();
    let lines: Vec<Value> = only
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{}", only.text());
    assert!(
        lines[..2]
            .iter()
            .all(|line| line["path"] == "billing/pw" && line["verified"] == true)
    );
    assert_eq!(lines[2]["broken"], Value::Null);
    assert_eq!(demo.run(&["audit", "--denied"]).done().text(), "");
    assert_eq!(demo.run(&["audit", "--uid", "4711"]).done().text(), "");
    demo.run(&["audit", "--since", "canary-7f3a"])
        .failed(2, "--since");

    demo.edit("audit.jsonl", |text| text.replacen("\"get\"", "\"put\"", 1));
    let broken = demo.run(&["audit"]);
    assert_eq!(broken.code, 1);
    assert!(broken.stderr.contains("audit.jsonl"), "{}", broken.stderr);
    assert_eq!(demo.run(&["doctor"]).code, 1);
}

#[test]
fn completions_and_man_pages_come_from_the_grammar() {
    let demo = Demo::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = demo.bare(&["completions", shell], b"").done();
        assert!(script.text().contains("rollback"), "{shell}");
    }
    let page = demo.bare(&["man"], b"").done();
    assert!(page.text().contains(".TH"), "{}", page.text());
    fs::create_dir(demo.path("man")).unwrap();
    demo.bare(&["man", &demo.arg("man")], b"").done();
    assert!(demo.path("man/secretfs-put.1").exists());
    let help = demo.bare(&["put", "--help"], b"").done();
    assert!(help.text().contains("Examples:") && help.text().contains("Exit codes:"));
    demo.bare(&["nosuch"], b"").failed(2, "--help");
}
