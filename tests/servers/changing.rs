//! Changing a server's secrets with the command line.

use serde_json::json;

use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::vault::{Vault, section};
use crate::reading::start;

const SERVICES: &str = r#"
[services.app]
allow = [{ uid = 4001 }]
[services.app.secrets]
password = "vault:secret/changing/a#password"
user = "vault:secret/changing/a#user"
record = "vault:secret/changing/a"
fixed = "vault:secret/changing/a@1"
old = "vault:kv1/changing#key"
made = "vault:sys/wrapping/lookup?token=x"
"#;

#[test]
fn put_rollback_and_rm_change_what_the_server_has() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    vault.put("changing/a", json!({ "user": "u", "password": "one" }));
    let daemon = start(vault, "changing", SERVICES);
    let mut reader = daemon.probe(&Who::uid(4001));
    let run = |words: &[&str], input: &str| daemon.secretfs(words, input.as_bytes());
    let held = reader.open(&daemon.path("app/password")).unwrap();
    assert_eq!(reader.cat(&daemon.path("app/user")).unwrap(), b"u");

    run(&["put", "app/password"], "two").expect_ok();
    assert_eq!(reader.cat(&daemon.path("app/password")).unwrap(), b"two");
    assert_eq!(reader.pread(held).unwrap(), b"one");
    assert_eq!(reader.cat(&daemon.path("app/user")).unwrap(), b"u");
    let there = vault.call("GET", "secret/data/changing/a", json!(null));
    assert_eq!(
        there["data"]["data"],
        json!({ "user": "u", "password": "two" })
    );

    run(&["put", "app/record"], r#"{"user":"v","password":"three"}"#).expect_ok();
    assert_eq!(reader.cat(&daemon.path("app/user")).unwrap(), b"v");
    run(&["rollback", "app/password", "--to", "1"], "").expect_ok();
    assert_eq!(reader.cat(&daemon.path("app/password")).unwrap(), b"one");
    assert_eq!(
        reader.cat(&daemon.path("app/user")).unwrap(),
        b"v",
        "another field stays"
    );

    let history = run(&["--json", "history", "app/password"], "").expect_ok();
    let history: Vec<serde_json::Value> = serde_json::from_slice(&history).unwrap();
    let versions: Vec<&str> = history
        .iter()
        .map(|one| one["version"].as_str().unwrap())
        .collect();
    assert_eq!(versions, ["4", "3", "2", "1"]);

    // What cannot be done says so and changes nothing.
    let batch = vault.at("batch.json");
    std::fs::write(&batch, r#"{"user":"w"}"#).unwrap();
    for (words, input, code, says) in [
        (
            &["put", "app/record"][..],
            "no object",
            1,
            "not a JSON object",
        ),
        (&["put", "app/password"], "\u{0}", 0, ""),
        (&["put", "app/fixed"], "x", 2, "a version"),
        (&["put", "app/made"], "x", 1, "cannot be written"),
        (&["rm", "app/password"], "", 1, "one of several fields"),
        (
            &["rollback", "app/password", "--to", "77"],
            "",
            3,
            "no such secret or version",
        ),
        (
            &["import", "app", "--json", batch.to_str().unwrap()],
            r#"{"user":"w"}"#,
            2,
            "kept by a server",
        ),
    ] {
        let said = run(words, input);
        assert_eq!(said.code(), code, "{words:?}: {said:?}");
        assert!(said.stderr.contains(says), "{words:?}: {said:?}");
    }

    run(&["put", "app/old"], "canary").expect_ok();
    assert_eq!(reader.cat(&daemon.path("app/old")).unwrap(), b"canary");
    run(&["rm", "app/record"], "").expect_ok();
    for name in ["password", "user", "record"] {
        let gone = reader.cat(&daemon.path("app").join(name));
        assert_eq!(gone, Err(nix::errno::Errno::ENOENT), "{name}");
    }
    let gone = vault.call_as(
        vault.root_token(),
        "GET",
        "secret/metadata/changing/a",
        json!(null),
    );
    assert_eq!(gone.unwrap_err().0, 404);
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
}

#[test]
fn what_the_server_s_policy_does_not_allow_is_denied_and_written_down() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    vault.put("denying/a", json!({ "password": "one" }));
    vault.policy(
        "denying",
        "path \"secret/data/denying/*\" { capabilities = [\"read\"] }",
    );
    let token = vault.at("token-denying");
    std::fs::write(&token, vault.token(&["denying"], "1h")).unwrap();
    let services = section(
        vault,
        &token,
        "[services.app]\nallow = [{ uid = 4001 }]\n[services.app.secrets]\npassword = \"vault:secret/denying/a#password\"\n",
    );
    let daemon = crate::common::daemon::Setup {
        services: &services,
        ..Default::default()
    }
    .start();
    let said = daemon.secretfs(&["put", "app/password"], b"canary");
    assert_eq!(said.code(), 4, "{said:?}");
    assert!(
        said.stderr.contains("its policy there must grant"),
        "{said:?}"
    );
    let log = daemon.secretfs(&["audit", "--json"], b"");
    let log = String::from_utf8(log.expect_ok()).unwrap();
    assert!(log.contains("\"refused\""), "{log}");
    assert!(!log.contains("canary"));
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("app/password")).unwrap(), b"one");
}

#[test]
fn a_record_made_anew_has_versions_of_its_own() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    for value in ["one", "two"] {
        vault.put("anew/a", json!({ "x": value }));
    }
    let services = "[cache]\nttl = \"0\"\n[services.app]\nallow = [{ uid = [0, 4001] }]\n[services.app.secrets]\nx = \"vault:secret/anew/a#x\"\n";
    let daemon = start(vault, "anew", services);
    let mut reader = daemon.probe(&Who::uid(4001));
    let path = daemon.path("app/x");
    assert_eq!(reader.cat(&path).unwrap(), b"two");
    let held = reader.open(&path).unwrap();
    vault.call("DELETE", "secret/metadata/anew/a", json!(null));
    for value in ["1st", "2nd"] {
        vault.put("anew/a", json!({ "x": value }));
    }
    // As long as the one before, and under the same number.
    assert_eq!(reader.cat(&path).unwrap(), b"2nd");
    let version = reader.getxattr(&path, "user.secretfs.version");
    assert_eq!(version.unwrap(), b"2~2");
    assert_eq!(reader.pread(held).unwrap(), b"two");
    let run = |words: &[&str]| daemon.secretfs(words, b"");
    let history = String::from_utf8(run(&["history", "app/x"]).expect_ok()).unwrap();
    assert!(
        history.contains("2~2") && history.contains("1~2"),
        "{history}"
    );
    assert_eq!(
        run(&["get", "app/x", "--version", "1~2"]).expect_ok(),
        b"1st"
    );
    // What was revoked under its name does not come back under another.
    run(&["revoke", "app/x", "--version", "1~2"]).expect_ok();
    for name in ["1~2", "1"] {
        assert_ne!(
            run(&["rollback", "app/x", "--to", name]).code(),
            0,
            "{name}"
        );
        assert_ne!(
            run(&["get", "app/x", "--version", name]).code(),
            0,
            "{name}"
        );
    }
    run(&["unrevoke", "app/x", "--version", "1~2"]).expect_ok();
    run(&["rollback", "app/x", "--to", "1~2"]).expect_ok();
    assert_eq!(reader.cat(&path).unwrap(), b"1st");
}
