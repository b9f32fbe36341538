//! Commands without a daemon: each signs in for itself, and is signed out when it has ended.

use std::fs;

use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::vault::Vault;

/// A config without a daemon, with a secret `app/x` from this reference and a role with this policy to sign in with.
fn prepare(vault: &Vault, policy: &str, reference: &str) -> Daemon {
    vault.policy("commands", policy);
    let (role, secret) = vault.approle("commands", &["commands"]);
    let file = vault.at("secret-id");
    fs::write(&file, secret).unwrap();
    let services = format!(
        "[backends.vault]\ntype = \"vault\"\naddress = \"{}\"\nca = \"{}\"
auth = {{ method = \"approle\", role_id = \"{role}\", secret_id = {{ file = \"{}\" }} }}
[services.app]\nallow = [{{ uid = 0 }}]\nmanage = [{{ uid = 0 }}]\nsecrets.x = \"{reference}\"\n",
        vault.address(),
        vault.ca().display(),
        file.display(),
    );
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    setup.prepare()
}

/// Every token that there is, by what may be told of it.
fn tokens(vault: &Vault) -> Vec<String> {
    let listed = vault.call("LIST", "auth/token/accessors", Value::Null);
    let mut tokens: Vec<String> = serde_json::from_value(listed["data"]["keys"].clone()).unwrap();
    tokens.sort();
    tokens
}

#[test]
fn a_command_without_a_daemon_signs_out_at_its_end() {
    needs!(Need::Vault);
    let vault = Vault::start();
    vault.put("commands/a", json!({ "x": "one" }));
    let policy = "path \"secret/+/commands/*\" { capabilities = [\"create\", \"read\", \"update\", \"list\"] }";
    let daemon = prepare(&vault, policy, "vault:secret/commands/a#x");
    let before = tokens(&vault);
    let signed = |path: &str| vault.counted(path);
    let get = &["get", "app/x"][..];
    // One that only succeeds, one that changes something, and one that fails after it has signed in.
    for (count, (words, input, code, printed)) in [
        (get, "", 0, "one"),
        (&["put", "app/x"], "two", 0, ""),
        (get, "", 0, "two"),
        (&["get", "app/x", "--version", "9"], "", 3, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let ended = daemon.secretfs(words, input.as_bytes());
        assert_eq!(ended.code(), code, "{words:?}: {ended:?}");
        if words[0] == "get" {
            assert_eq!(ended.stdout, printed.as_bytes(), "{words:?}");
        }
        assert_eq!(signed("auth/approle/login"), count + 1, "{words:?}");
        assert_eq!(signed("auth/token/revoke-self"), count + 1, "{words:?}");
        assert_eq!(tokens(&vault), before, "{words:?}");
    }
    // Who asks the server for nothing does not sign in.
    daemon.secretfs(&["audit"], b"").expect_ok();
    assert_eq!(signed("auth/approle/login"), 4);
}

#[test]
fn what_a_command_printed_stays_valid_for_as_long_as_its_lease() {
    needs!(Need::Vault, Need::Postgres);
    let vault = Vault::start();
    let database = vault.database("1h", "2h");
    let path = database.credentials();
    let policy = format!("path \"{path}\" {{ capabilities = [\"read\"] }}");
    let daemon = prepare(&vault, &policy, &format!("vault:{path}"));
    let before = tokens(&vault);
    let printed = daemon.secretfs(&["get", "app/x"], b"").expect_ok();
    let record: Value = serde_json::from_slice(&printed).unwrap();
    let [user, password] = ["username", "password"].map(|name| record[name].as_str().unwrap());
    assert!(database.lets_in(user, password));
    // It would end with the token that it was leased with.
    assert_eq!(vault.counted("auth/token/revoke-self"), 0);
    assert_eq!(tokens(&vault).len(), before.len() + 1);
}
