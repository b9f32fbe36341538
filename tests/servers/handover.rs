//! A server that is killed: the next one goes on with what it had fetched, leased and signed in for.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::probe::{Got, Who};
use crate::common::proxy::{Mode, Proxy};
use crate::common::vault::Vault;
use crate::common::{DEADLINE, eventually};

const POLICY: &str = r#"
path "secret/*" { capabilities = ["read", "list"] }
path "database/creds/*" { capabilities = ["read"] }
path "sys/internal/ui/mounts/*" { capabilities = ["read"] }
"#;

/// A daemon that signs in by AppRole.
fn start(vault: &Vault, secrets: &str) -> Daemon {
    start_at(vault, vault.address(), secrets)
}

/// The same, and it comes to Vault by another address.
fn start_at(vault: &Vault, address: &str, secrets: &str) -> Daemon {
    vault.policy("handover", POLICY);
    let (role_id, secret_id) = vault.approle("handover", &["handover"]);
    let file = vault.at("handover-secret-id");
    std::fs::write(&file, secret_id).unwrap();
    let services = format!(
        r#"
[cache]
ttl = "30s"
timeout = "3s"
[backends.vault]
type = "vault"
address = "{}"
ca = "{}"
auth = {{ method = "approle", role_id = "{role_id}", secret_id = {{ file = "{}" }} }}
[services.app]
allow = [{{ uid = 4001 }}]
[services.app.secrets]
{secrets}
"#,
        address,
        vault.ca().display(),
        file.display()
    );
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    setup.start()
}

/// Kills the server, and waits until another one answers.
fn kill_server(daemon: &Daemon) {
    let before = daemon.server();
    kill(before, Signal::SIGKILL).unwrap();
    let another = || {
        let status = daemon.secretfs(&["status", "--json"], b"");
        status.code() == 0 && daemon.server() != before
    };
    assert!(eventually(DEADLINE, another), "{}", daemon.log());
}

fn cat(daemon: &Daemon, name: &str) -> Got<String> {
    let mut reader = daemon.probe(&Who::uid(4001));
    let read = reader.cat(&daemon.path(&format!("app/{name}")));
    read.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn the_next_server_goes_on_with_values_leases_and_the_token() {
    needs!(Need::Vault, Need::Postgres);
    let vault = Vault::start();
    vault.put("handover/a", json!({ "x": "of a" }));
    let database = vault.database("60s", "10m");
    let path = database.credentials();
    let mut daemon = start(
        &vault,
        &format!(
            "a = \"vault:secret/handover/a#x\"\nuser = \"vault:{path}#username\"\npassword = \"vault:{path}#password\""
        ),
    );
    let user = cat(&daemon, "user").unwrap();
    let password = cat(&daemon, "password").unwrap();
    assert_eq!(cat(&daemon, "a").unwrap(), "of a");
    // What a server does in its last moment is lost.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let asked = || {
        ["auth/approle/login", "secret/data/", "database/creds/"]
            .map(|prefix| vault.counted(prefix))
    };
    let before = asked();
    for _ in 0..2 {
        kill_server(&daemon);
        assert_eq!(cat(&daemon, "user").unwrap(), user);
        assert_eq!(cat(&daemon, "password").unwrap(), password);
        assert_eq!(cat(&daemon, "a").unwrap(), "of a");
        assert_eq!(asked(), before, "the server was asked for nothing again");
    }
    assert!(database.lets_in(&user, &password));

    // What was changed while nobody listened is seen.
    vault.put("handover/a", json!({ "x": "another" }));
    let seen = || cat(&daemon, "a").unwrap() == "another";
    assert!(eventually(DEADLINE * 2, seen));

    // And what it goes on with is its own to end.
    daemon.stop();
    assert!(eventually(DEADLINE, || !database.has(&user)), "{user}");
}

#[test]
fn values_outlive_the_server_while_vault_is_away_too() {
    needs!(Need::Vault);
    let vault = Vault::start();
    vault.put("handover/b", json!({ "x": "of b" }));
    vault.put("handover/gone", json!({ "x": "of gone" }));
    let mut daemon = start(
        &vault,
        "b = \"vault:secret/handover/b#x\"\ngone = \"vault:secret/handover/gone#x\"",
    );
    assert_eq!(cat(&daemon, "b").unwrap(), "of b");
    assert_eq!(cat(&daemon, "gone").unwrap(), "of gone");
    std::thread::sleep(std::time::Duration::from_millis(500));
    vault.kill();
    daemon.secretfs(&["revoke", "app/gone"], b"").expect_ok();
    daemon.secretfs(&["unrevoke", "app/gone"], b"").expect_ok();
    kill_server(&daemon);
    assert_eq!(cat(&daemon, "b").unwrap(), "of b");
    // It was wiped when it was taken away.
    assert_eq!(cat(&daemon, "gone"), Err(Errno::EIO));
    // A daemon that is stopped leaves nothing.
    daemon.stop();
    daemon.start_keeper();
    assert_eq!(cat(&daemon, "b"), Err(Errno::EIO));
}

#[test]
fn who_waits_for_an_answer_when_the_server_is_killed_gets_it_from_the_next() {
    needs!(Need::Vault);
    let vault = Vault::start();
    vault.put("handover/c", json!({ "x": "of c" }));
    let proxy = Proxy::to(vault.address());
    let secrets = "c = \"vault:secret/handover/c#x\"";
    let daemon = start_at(&vault, proxy.address(), secrets);
    proxy.set(Mode::Stall);
    let mut readers: Vec<_> = (0..3).map(|_| daemon.probe(&Who::uid(4001))).collect();
    for reader in &mut readers {
        reader.begin("cat", json!([daemon.path("app/c")]));
    }
    // The server has the opens, and waits for Vault.
    assert!(eventually(DEADLINE, || proxy.open() > 0), "nobody asks");
    let server = daemon.server();
    kill(server, Signal::SIGKILL).unwrap();
    proxy.set(Mode::Pass);
    for reader in &mut readers {
        assert_eq!(reader.bytes_of("cat"), Ok(b"of c".to_vec()));
    }
    assert_ne!(daemon.server(), server);
    // Each is open once.
    let handles = || {
        let status = daemon.secretfs(&["status", "--json"], b"").expect_ok();
        serde_json::from_slice::<Value>(&status).unwrap()["handles"].clone()
    };
    assert!(
        eventually(DEADLINE, || handles() == json!(0)),
        "{}",
        handles()
    );
}
