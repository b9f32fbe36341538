//! The harness itself: that the servers do what the other tests build on, and that none outlives its test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Certificate, Client, Identity};
use serde_json::{Value, json};

use crate::common::machine::{Need, has};
use crate::common::mounts::processes;
use crate::common::runtime::wait_for;
use crate::common::vault::Vault;
use crate::common::vault::release::has_events;
use crate::common::{DEADLINE, eventually};

/// What a test's own copy of this program is to do.
const HELPER: &str = "SECRETFS_TEST_HELPER";

#[test]
fn what_is_written_survives_a_kill_and_a_restart() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    assert_eq!(vault.put("billing", json!({"password": "one"})), 1);
    assert_eq!(vault.put("billing", json!({"password": "two"})), 2);
    vault.call("POST", "kv1/billing", json!({"password": "old"}));
    vault.kill();
    assert_eq!(vault.pid(), None);
    let gone = vault.call_as(
        vault.root_token(),
        "GET",
        "secret/data/billing",
        Value::Null,
    );
    assert_eq!(gone.unwrap_err().0, 0);
    let address = vault.address().to_owned();
    vault.restart();
    assert_eq!(vault.address(), address);
    let read = vault.call("GET", "secret/data/billing", Value::Null);
    assert_eq!(read["data"]["data"]["password"], "two");
    assert_eq!(read["data"]["metadata"]["version"], 2);
    let read = vault.call("GET", "kv1/billing", Value::Null);
    assert_eq!(read["data"]["password"], "old");
    vault.delete("billing");
    let deleted = vault.call_as(
        vault.root_token(),
        "GET",
        "secret/data/billing",
        Value::Null,
    );
    assert_eq!(deleted.unwrap_err().0, 404);
}

#[test]
fn it_is_sealed_and_unsealed_paused_and_resumed() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    vault.put("billing", json!({"password": "one"}));
    let read = || {
        vault.call_as(
            vault.root_token(),
            "GET",
            "secret/data/billing",
            Value::Null,
        )
    };
    vault.seal();
    assert!(vault.sealed());
    assert_eq!(read().unwrap_err().0, 503);
    vault.unseal();
    assert!(!vault.sealed());
    assert!(read().is_ok());
    vault.pause();
    assert!(!vault.sealed() && vault.health().is_none());
    vault.resume();
    assert!(read().is_ok());
}

#[test]
fn the_audit_log_has_paths_and_no_values() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    vault.put("audited/one", json!({"password": "canary-of-the-audit"}));
    let path = "secret/data/audited/one";
    assert_eq!(vault.counted("secret/data/audited/"), 1);
    let read = vault.call("GET", path, Value::Null);
    assert_eq!(read["data"]["data"]["password"], "canary-of-the-audit");
    assert_eq!(vault.counted("secret/data/audited/"), 2);
    assert_eq!(vault.counted("secret/data/other"), 0);
    let operations: Vec<Value> = vault
        .requests(path)
        .into_iter()
        .map(|mut request| request["operation"].take())
        .collect();
    assert_eq!(operations, ["create", "read"]);
    assert!(!vault.audit_log().contains("canary-of-the-audit"));
    assert!(!vault.log().contains("canary-of-the-audit"));
}

#[test]
fn tokens_and_roles_reach_as_far_as_their_policies() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    vault.put("mine/a", json!({"x": "1"}));
    vault.put("theirs/a", json!({"x": "2"}));
    vault.policy(
        "mine",
        r#"path "secret/data/mine/*" { capabilities = ["read"] }"#,
    );
    let (role, secret) = vault.approle("mine", &["mine"]);
    let login = json!({"role_id": role, "secret_id": secret});
    let made = vault.call_as("", "POST", "auth/approle/login", login);
    let signed_in = made.unwrap()["auth"]["client_token"].clone();
    let token = vault.token(&["mine"], "1m");
    for token in [&token, signed_in.as_str().unwrap()] {
        let read = |path| vault.call_as(token, "GET", path, Value::Null);
        let mine = read("secret/data/mine/a").unwrap();
        assert_eq!(mine["data"]["data"], json!({"x": "1"}));
        assert_eq!(read("secret/data/theirs/a").unwrap_err().0, 403);
    }
    let bare = vault.call_as("", "GET", "secret/data/mine/a", Value::Null);
    assert!(matches!(bare, Err((400..=403, _))), "{bare:?}");
}

#[test]
fn it_has_the_event_stream() {
    if !has(&[Need::Vault]) || !has_events() {
        return;
    }
    let vault = Vault::shared();
    // Without the upgrade to a WebSocket it is no valid request, but one to a path that exists.
    let path = "sys/events/subscribe/kv*?json=true";
    let (status, said) = vault
        .call_as(vault.root_token(), "GET", path, Value::Null)
        .unwrap_err();
    assert_eq!(status, 426, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_asked_within_a_runtime() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    assert_eq!(vault.put("within", json!({"x": "1"})), 1);
    let own = Vault::start();
    assert_eq!(own.put("within", json!({"x": "1"})), 1);
}

#[test]
fn a_client_with_a_certificate_is_known_by_it() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    let (certificate, key) = vault.authority().client("billing");
    vault.enable("auth/cert", "cert");
    let trusted = json!({
        "certificate": fs::read_to_string(vault.ca()).unwrap(),
        "allowed_common_names": "billing",
    });
    vault.call("POST", "auth/cert/certs/billing", trusted);
    let pem = [certificate, key].map(|path| fs::read(path).unwrap());
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(&fs::read(vault.ca()).unwrap()).unwrap()])
        .identity(Identity::from_pem(&pem.concat()).unwrap())
        .build()
        .unwrap();
    let login = client.post(format!("{}/v1/auth/cert/login", vault.address()));
    let answer = wait_for(async { login.send().await.unwrap().text().await.unwrap() });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["auth"]["client_token"].is_string(), "{answer}");
}

#[test]
fn postgres_has_a_user_for_as_long_as_its_lease() {
    if !has(&[Need::Vault, Need::Postgres]) {
        return;
    }
    let vault = Vault::start();
    let database = vault.database("1h", "2h");
    let lease = vault.call("GET", &database.credentials(), Value::Null);
    assert_eq!(lease["lease_duration"], 3600);
    let [user, password] = ["username", "password"].map(|key| lease["data"][key].as_str().unwrap());
    assert!(database.has(user) && database.lets_in(user, password));
    assert!(!database.lets_in(user, "guessed"));
    assert_eq!(database.users(), [user]);
    let id = json!({"lease_id": lease["lease_id"]});
    vault.call("PUT", "sys/leases/revoke", id);
    assert!(eventually(DEADLINE, || !database.has(user)));
    assert!(!database.lets_in(user, password));
    let short = vault.database("2s", "2s");
    assert_eq!(short.mount(), "database-2");
    let lease = vault.call("GET", &short.credentials(), Value::Null);
    let user = lease["data"]["username"].as_str().unwrap();
    assert!(short.has(user));
    assert!(eventually(DEADLINE, || !short.has(user)));
}

/// What the next tests start as a program of its own.
#[test]
fn helper() {
    let Ok(wanted) = std::env::var(HELPER) else {
        return;
    };
    let vault = Vault::shared();
    vault.database("1h", "1h");
    println!("\nfolder {}", vault.at("").display());
    match wanted.as_str() {
        "ends" => {}
        "panics" => panic!("as it is told"),
        "pauses" => {
            vault.pause();
            std::thread::park();
        }
        _ => std::thread::park(),
    }
}

/// A copy of this program that has started servers, and Vault's folder.
fn start_helper(wanted: &str) -> (Child, String) {
    let mut helper = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "harness::helper", "--nocapture"])
        .env(HELPER, wanted)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let folder = lines.map(|line| line.unwrap()).find_map(|line| {
        Some(
            line.strip_prefix("folder ")?
                .trim_end_matches('/')
                .to_owned(),
        )
    });
    (helper, folder.unwrap())
}

#[test]
fn no_server_outlives_the_shell_that_keeps_it() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    let pid = vault.pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let shell = Pid::from_raw(parent.unwrap().trim().parse().unwrap());
    vault.pause();
    kill(shell, Signal::SIGKILL).unwrap();
    let there = || Path::new(&format!("/proc/{pid}")).exists();
    assert!(eventually(DEADLINE, || !there()));
}

#[test]
fn no_server_outlives_the_program() {
    if !has(&[Need::Vault, Need::Postgres]) {
        return;
    }
    for wanted in ["ends", "panics", "waits", "pauses"] {
        let (mut helper, folder) = start_helper(wanted);
        if ["waits", "pauses"].contains(&wanted) {
            assert!(!processes(Path::new(&folder)).is_empty());
            helper.kill().unwrap();
        }
        let id = helper.id();
        helper.wait().unwrap();
        let prefix = format!("secretfs-server-{id}-");
        let left = || {
            let entries = fs::read_dir("/tmp").unwrap().flatten();
            let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
            let named = entries
                .map(|entry| name(&entry))
                .filter(|name| name.starts_with(&prefix));
            named.collect::<Vec<_>>()
        };
        // The folders go after the servers.
        assert!(
            eventually(DEADLINE, || left().is_empty()),
            "{wanted}: {:?}",
            left()
        );
        assert_eq!(processes(Path::new(&folder)), [0_i32; 0]);
    }
}
