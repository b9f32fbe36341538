//! What OpenBao does otherwise than Vault, as its documentation has it: there is no such server to test against here.
//!
//! It has no events, namespaces in every edition, a version of its own in `sys/health`, and its variables are called
//! `BAO_…`.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::authority::Authority;
use crate::common::daemon::{Daemon, Setup};
use crate::common::eventually;
use crate::common::folder::Folder;
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::needs;
use crate::common::probe::Who;

const POLL: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(4);
const EVENTS: &str = "/v1/sys/events/subscribe/";
const TOKEN: &str = "s.canary-of-openbao";

fn data(body: Value) -> Answer {
    Answer::json(200, &json!({ "request_id": "x", "data": body }))
}

/// Has a record with this many versions.
fn put(server: &Impostor, versions: u64) {
    let version = |number: u64| json!({ "version": number, "created_time": "2026-01-01T00:00:00.5Z", "deletion_time": "", "destroyed": false });
    let all: serde_json::Map<_, _> = (1..=versions)
        .map(|number| (number.to_string(), version(number)))
        .collect();
    let record = json!({ "data": { "password": format!("value {versions}") }, "metadata": version(versions) });
    server.answer("/v1/secret/data/folder/a", data(record));
    let metadata = json!({ "current_version": versions, "oldest_version": 0, "max_versions": 0, "versions": all });
    server.answer("/v1/secret/metadata/folder/a", data(metadata));
}

/// A server that has no events, and says so with this status.
fn start(authority: &Authority, no_events: u16) -> Impostor {
    let none = json!({ "errors": ["no handler for route \"sys/events/subscribe\". route entry not found."] });
    let server = Impostor::start(authority, Answer::json(404, &json!({ "errors": [] })));
    server.answer(EVENTS, Answer::json(no_events, &none));
    let health = json!({
        "initialized": true, "sealed": false, "standby": false, "version": "2.4.1",
        "cluster_name": "openbao-cluster-1", "cluster_id": "x", "server_time_utc": 1_767_225_600,
    });
    server.answer("/v1/sys/health", Answer::json(200, &health));
    let mount = json!({ "path": "secret/", "type": "kv", "options": { "version": "2" } });
    server.answer("/v1/sys/internal/ui/mounts/", data(mount));
    let token = json!({ "ttl": 0, "id": TOKEN });
    server.answer("/v1/auth/token/lookup-self", data(token));
    server.answer("/v1/secret/metadata/folder", data(json!({ "keys": ["a"] })));
    put(&server, 1);
    server
}

/// A daemon that knows the server from its environment alone.
fn daemon(authority: &Authority, server: &Impostor) -> Daemon {
    let ca = authority.path();
    let setup = Setup {
        services: "[backends.vault]\ntype = \"vault\"\npoll = \"1s\"\n[cache]\nttl = \"1h\"\n\
                   [services.app]\nallow = [{ uid = 4001 }]\nsource = \"vault:secret/folder/\"\n\
                   secrets.password = \"vault:secret/folder/a#password\"\n",
        env: &[
            ("BAO_ADDR", server.address()),
            ("BAO_CACERT", ca.to_str().unwrap()),
            ("BAO_NAMESPACE", "team-a"),
            ("BAO_TOKEN", TOKEN),
        ],
        ..Setup::default()
    };
    setup.start()
}

#[test]
fn a_server_without_events_is_polled_and_said_nothing_of() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    for no_events in [404, 405, 400] {
        let server = start(&authority, no_events);
        let daemon = daemon(&authority, &server);
        let mut reader = daemon.probe(&Who::uid(4001));
        let mut shows = |value: &str| {
            let read = reader.cat(&daemon.path("app/password"));
            read.is_ok_and(|bytes| bytes == value.as_bytes())
        };
        assert!(shows("value 1"), "{}", daemon.log());
        for versions in [2, 3] {
            put(&server, versions);
            let value = format!("value {versions}");
            assert!(eventually(POLL + LATER, || shows(&value)), "{value}");
        }
        // It is not asked again for what it does not have.
        sleep(2 * POLL);
        let requests = server.requests();
        let asked = requests
            .iter()
            .filter(|request| request.path.starts_with(EVENTS));
        assert_eq!(asked.count(), 1, "{no_events}");
        for noise in ["events", "WARN", "ERROR", TOKEN] {
            assert!(!daemon.log().contains(noise), "{noise}: {}", daemon.log());
        }
    }
}

#[test]
fn its_variables_stand_for_what_the_config_leaves_out() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let server = start(&authority, 404);
    let daemon = daemon(&authority, &server);
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut names = reader.list(&daemon.path("app")).unwrap();
    names.sort();
    assert_eq!(names, ["a", "password"]);
    assert_eq!(
        reader.cat(&daemon.path("app/password")).unwrap(),
        b"value 1"
    );
    let requests = server.requests();
    let signed = |path: &str| {
        let mut to = requests
            .iter()
            .filter(|request| request.path.starts_with(path));
        let request = to.next().unwrap_or_else(|| panic!("{path} is not asked"));
        (
            request.header("X-Vault-Token").map(str::to_owned),
            request.header("X-Vault-Namespace").map(str::to_owned),
        )
    };
    let both = (Some(TOKEN.to_owned()), Some("team-a".to_owned()));
    assert_eq!(signed("/v1/secret/data/folder/a"), both);
    assert_eq!(signed("/v1/secret/metadata/folder"), both);
    let doctor = daemon.secretfs(&["doctor"], b"");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("vault"), "{doctor:?}");
    assert!(!said.contains(TOKEN));
}
