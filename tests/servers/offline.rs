//! A machine that starts where no server can be reached: what it shows, what it says, and what it must not have kept.

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::vault::{Vault, section};
use crate::common::{DEADLINE, eventually};

const CANARY: &str = "canary-offline-Qm3x8";

fn file(vault: &Vault) -> PathBuf {
    vault.at("offline.age")
}

/// A daemon that keeps what it fetched.
fn start(vault: &Vault, max_age: &str) -> Daemon {
    let token = vault.at("token-offline");
    let rules = r#"path "secret/*" { capabilities = ["read", "list"] }"#;
    vault.policy("offline", rules);
    fs::write(&token, vault.token(&["offline"], "1h")).unwrap();
    let services = format!(
        r#"
[cache]
ttl = "2s"
timeout = "2s"
stale = "0"
[offline]
path = "{}"
max_age = "{max_age}"
[services.app]
allow = [{{ uid = 4001 }}]
source = "vault:secret/offline/app/"
[services.app.secrets]
password = "vault:secret/offline/db#password"
never = {{ from = "vault:secret/offline/never#x", stale = "0" }}
gone = "vault:secret/offline/gone#x"
"#,
        file(vault).display()
    );
    let services = section(vault, &token, &services);
    vault.put("offline/db", json!({ "user": "u", "password": CANARY }));
    vault.put("offline/never", json!({ "x": "of never" }));
    vault.put("offline/gone", json!({ "x": "of gone" }));
    vault.put("offline/app/listed", json!({ "value": "of listed" }));
    Setup {
        services: &services,
        ..Setup::default()
    }
    .start()
}

fn status(daemon: &Daemon) -> Value {
    let status = daemon.secretfs(&["status", "--json"], b"").expect_ok();
    serde_json::from_slice(&status).unwrap()
}

/// How many secrets the file has, once it is written.
fn kept(daemon: &Daemon) -> u64 {
    status(daemon)["offline"]["secrets"].as_u64().unwrap()
}

#[track_caller]
fn until_kept(daemon: &Daemon, secrets: u64) {
    let written = eventually(DEADLINE, || kept(daemon) == secrets);
    assert!(written, "{}", status(daemon));
}

#[test]
fn a_start_without_a_network_shows_what_was_last_known_and_says_so() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let mut daemon = start(&vault, "1h");
    let mut reader = daemon.probe(&Who::uid(4001));
    for (name, value) in [
        ("password", CANARY),
        ("never", "of never"),
        ("listed", "of listed"),
    ] {
        let read = reader.cat(&daemon.path(&format!("app/{name}"))).unwrap();
        assert_eq!(read, value.as_bytes(), "{name}");
    }
    let fresh = reader.getxattr(&daemon.path("app/password"), "user.secretfs.stale_since");
    assert_eq!(fresh, Err(Errno::ENODATA));
    until_kept(&daemon, 2);
    let bytes = fs::read(file(&vault)).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1\n"));
    assert!(
        !bytes
            .windows(CANARY.len())
            .any(|part| part == CANARY.as_bytes())
    );
    drop(reader);
    daemon.stop();
    vault.kill();

    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut names = reader.list(&daemon.path("app")).unwrap();
    names.sort();
    assert_eq!(names, ["gone", "listed", "never", "password"]);
    for (name, expected) in [
        ("password", Ok(CANARY.as_bytes().to_vec())),
        ("listed", Ok(b"of listed".to_vec())),
        ("never", Err(Errno::EIO)),
        ("gone", Err(Errno::EIO)),
    ] {
        let read = reader.cat(&daemon.path(&format!("app/{name}")));
        assert_eq!(read, expected, "{name}");
    }
    let path = daemon.path("app/password");
    let since = reader.getxattr(&path, "user.secretfs.stale_since").unwrap();
    let since: jiff::Timestamp = String::from_utf8(since).unwrap().parse().unwrap();
    assert!(since < secretfs::clock::Clock::default().timestamp());
    let listed = reader.listxattr(&path).unwrap();
    assert!(
        listed.contains(&"user.secretfs.stale_since".to_owned()),
        "{listed:?}"
    );
    let log = daemon.secretfs(&["audit", "--json"], b"").expect_ok();
    let stale = String::from_utf8(log).unwrap();
    assert!(
        stale
            .lines()
            .any(|line| line.contains("app/password") && line.contains("\"stale\""))
    );
    let mut stranger = daemon.probe(&Who::uid(4002));
    assert_eq!(stranger.cat(&path), Err(Errno::EACCES));
    let text = daemon.secretfs(&["status"], b"").expect_ok();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("2 secrets in ") && text.contains("cannot be reached"),
        "{text}"
    );

    // The server is back, and what it has now counts.
    vault.restart();
    vault.put("offline/db", json!({ "user": "u", "password": "another" }));
    let back = || reader.cat(&daemon.path("app/password")) == Ok(b"another".to_vec());
    assert!(eventually(DEADLINE, back));
    assert!(!daemon.log().contains(CANARY));
}

#[test]
fn what_is_revoked_or_deleted_leaves_the_file_at_once() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let mut daemon = start(&vault, "1h");
    let mut reader = daemon.probe(&Who::uid(4001));
    for name in ["password", "gone", "listed"] {
        reader.cat(&daemon.path(&format!("app/{name}"))).unwrap();
    }
    until_kept(&daemon, 3);
    // When the command is done, the file is.
    daemon
        .secretfs(&["revoke", "app/password"], b"")
        .expect_ok();
    assert_eq!(kept(&daemon), 2);
    daemon
        .secretfs(&["unrevoke", "app/password"], b"")
        .expect_ok();
    vault.delete("offline/gone");
    let gone = || reader.cat(&daemon.path("app/gone")) == Err(Errno::ENOENT);
    assert!(eventually(DEADLINE, gone));
    until_kept(&daemon, 1);
    drop(reader);
    daemon.stop();
    vault.kill();

    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut cat = |name: &str| reader.cat(&daemon.path(&format!("app/{name}")));
    assert_eq!(cat("listed"), Ok(b"of listed".to_vec()));
    assert_eq!(
        (cat("password"), cat("gone")),
        (Err(Errno::EIO), Err(Errno::EIO))
    );
    assert_eq!(kept(&daemon), 1);
}

#[test]
fn what_is_revoked_is_not_taken_from_an_older_file() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let mut daemon = start(&vault, "1h");
    let mut reader = daemon.probe(&Who::uid(4001));
    for name in ["password", "listed"] {
        reader.cat(&daemon.path(&format!("app/{name}"))).unwrap();
    }
    until_kept(&daemon, 2);
    let older = fs::read(file(&vault)).unwrap();
    daemon
        .secretfs(&["revoke", "app/password"], b"")
        .expect_ok();
    drop(reader);
    daemon.stop();
    vault.kill();
    fs::write(file(&vault), older).unwrap();

    daemon.start_keeper();
    until_kept(&daemon, 1);
    daemon
        .secretfs(&["unrevoke", "app/password"], b"")
        .expect_ok();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut cat = |name: &str| reader.cat(&daemon.path(&format!("app/{name}")));
    assert_eq!(cat("password"), Err(Errno::EIO));
    assert_eq!(cat("listed"), Ok(b"of listed".to_vec()));
}

#[test]
fn another_identity_opens_the_file_as_soon_as_the_store() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let mut daemon = start(&vault, "1h");
    let mut reader = daemon.probe(&Who::uid(4001));
    reader.cat(&daemon.path("app/password")).unwrap();
    until_kept(&daemon, 1);
    daemon.secretfs(&["rekey"], b"").expect_ok();
    drop(reader);
    daemon.stop();
    vault.kill();

    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    let read = reader.cat(&daemon.path("app/password"));
    assert_eq!(read, Ok(CANARY.as_bytes().to_vec()));
}

#[test]
fn what_is_too_old_or_not_ours_is_not_shown() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let mut daemon = start(&vault, "4s");
    let mut reader = daemon.probe(&Who::uid(4001));
    reader.cat(&daemon.path("app/password")).unwrap();
    until_kept(&daemon, 1);
    drop(reader);
    daemon.stop();
    vault.kill();
    let whole = fs::read(file(&vault)).unwrap();
    for (bytes, said) in [
        (b"age-encryption.org/v1\n".to_vec(), Some("is damaged")),
        (whole[..whole.len() - 1].to_vec(), Some("is damaged")),
        (whole, None),
    ] {
        fs::write(file(&vault), bytes).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(4));
        daemon.start_keeper();
        let mut reader = daemon.probe(&Who::uid(4001));
        let read = reader.cat(&daemon.path("app/password"));
        assert_eq!(read, Err(Errno::EIO));
        if let Some(said) = said {
            assert!(daemon.log().contains(said), "{}", daemon.log());
        }
        drop(reader);
        daemon.stop();
    }
}
