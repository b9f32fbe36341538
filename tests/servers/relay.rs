//! A server without events, whose changes are told by a relay beside it.
//!
//! The daemons may not subscribe to the events that the tests' Vault has, poll for nothing unless a test says so, and keep
//! values for an hour: what they see they were told.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secretfs::clock::Clock;
use serde_json::json;

use crate::common::authority::Authority;
use crate::common::broker::{Broker, Kind};
use crate::common::daemon::{Daemon, Setup};
use crate::common::folder::Folder;
use crate::common::machine::{Need, needs};
use crate::common::probe::{Probe, Who};
use crate::common::relay::Relay;
use crate::common::vault::{Vault, section};
use crate::common::{DEADLINE, eventually};

/// A file for a token that may read the records below a folder, and subscribe to nothing.
fn token(vault: &Vault, name: &str) -> std::path::PathBuf {
    let rules = ["data", "metadata"]
        .map(|part| format!("path \"secret/{part}/{name}/*\" {{ capabilities = [\"read\"] }}\n"));
    vault.policy(name, &rules.concat());
    let file = vault.at(&format!("token-of-{name}"));
    fs::write(&file, vault.token(&[name], "1h")).unwrap();
    file
}

/// A daemon with a secret `app/x`, which is `x` of the record `a` in the folder `name`; one that its service signs in for
/// itself to see, which is `own/x`; and their reader, who has seen both.
fn daemon(vault: &Vault, broker: &Broker, name: &str, poll: &str) -> (Daemon, Probe) {
    let token = token(vault, name);
    let services = format!(
        "{}{}\n[cache]\nttl = \"1h\"\n
[services.app]\nallow = [{{ uid = 4001 }}]\nsecrets.x = \"vault:secret/{name}/a#x\"
[services.own]\nallow = [{{ uid = 4001 }}]\nsecrets.x = \"vault:secret/{name}/a#x\"
auth = {{ method = \"token\", file = \"{}\" }}\n",
        section(vault, &token, &format!("poll = \"{poll}\"")),
        broker.section(),
        token.display(),
    );
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    let daemon = setup.start();
    let reader = daemon.probe(&Who::uid(4001));
    let connected = || daemon.log().contains("connected to the broker");
    assert!(eventually(DEADLINE, connected), "{}", daemon.log());
    (daemon, reader)
}

#[track_caller]
fn sees(daemon: &Daemon, reader: &mut Probe, value: &str) {
    for path in ["app/x", "own/x"] {
        let shows = || {
            reader
                .cat(&daemon.path(path))
                .is_ok_and(|bytes| bytes == value.as_bytes())
        };
        assert!(
            eventually(DEADLINE, shows),
            "{path}: {value}: {}",
            daemon.log()
        );
    }
}

#[test]
fn a_change_is_told_to_every_daemon_at_once() {
    tell_every_daemon(Kind::Nats, "relayed");
}

#[test]
fn a_change_is_told_by_mqtt_to_every_daemon_at_once() {
    tell_every_daemon(Kind::Mqtt, "relayed-by-mqtt");
}

fn tell_every_daemon(kind: Kind, name: &str) {
    needs!(Need::Vault, Need::Program(kind.program()));
    let (vault, broker) = (Vault::shared(), Broker::start(kind));
    let record = format!("{name}/a");
    vault.put(&record, json!({ "x": "canary one" }));
    let audit = vault.at("audit.log");
    let relay = Relay::start(vault, &broker, ["--audit-file", audit.to_str().unwrap()]);
    let mut daemons = [(); 2].map(|()| {
        let (daemon, reader) = daemon(vault, &broker, name, "0");
        // A reader goes before its daemon.
        (reader, daemon)
    });
    for (reader, daemon) in &mut daemons {
        sees(daemon, reader, "canary one");
    }
    // What each looks at after it has connected is over.
    std::thread::sleep(Duration::from_secs(3));
    let clock = Clock::default();
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        let value = format!("canary {round}");
        vault.put(&record, json!({ "x": value }));
        let written = clock.now();
        for (reader, daemon) in &mut daemons {
            sees(daemon, reader, &value);
        }
        slowest = slowest.max(clock.now() - written);
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{kind:?}: two daemons saw a change after at most {slowest:?}");
    vault.delete(&record);
    for (reader, daemon) in &mut daemons {
        let gone = || reader.cat(&daemon.path("app/x")) == Err(nix::errno::Errno::ENOENT);
        assert!(eventually(DEADLINE, gone), "{}", daemon.log());
    }
    let told = relay.log();
    let one = format!(r#"{{"backend":"vault","path":"secret/{record}","version":"2"}}"#);
    assert!(told.contains(&one), "{told}");
    assert!(!told.contains("canary") && !broker.log().contains("canary"));
    assert!(relay.runs());
}

#[test]
fn what_was_missed_while_the_broker_was_away_is_polled() {
    go_and_come(Kind::Nats, "missed");
}

#[test]
fn what_was_missed_while_the_mqtt_broker_was_away_is_polled() {
    go_and_come(Kind::Mqtt, "missed-by-mqtt");
}

fn go_and_come(kind: Kind, name: &str) {
    needs!(Need::Vault, Need::Program(kind.program()));
    let (vault, mut broker) = (Vault::shared(), Broker::start(kind));
    let record = format!("{name}/a");
    vault.put(&record, json!({ "x": "one" }));
    let audit = vault.at("audit.log");
    let relay = Relay::start(vault, &broker, ["--audit-file", audit.to_str().unwrap()]);
    let (polling, mut reader) = daemon(vault, &broker, name, "1s");
    let (silent, mut other) = daemon(vault, &broker, name, "0");
    sees(&polling, &mut reader, "one");
    sees(&silent, &mut other, "one");
    // What each looks at after it has connected is over.
    std::thread::sleep(Duration::from_secs(3));
    broker.kill();
    let lost = |log: String| log.contains("the broker cannot be reached");
    assert!(eventually(DEADLINE, || lost(silent.log()) && lost(relay.log())));
    let status = || {
        let said = silent.secretfs(&["status", "--json"], b"");
        serde_json::from_slice::<serde_json::Value>(&said.stdout).unwrap()["broker"].take()
    };
    let away = status();
    assert!(
        away["connected"].is_null() && away["trouble"].is_string(),
        "{away}"
    );
    vault.put(&record, json!({ "x": "two" }));
    sees(&polling, &mut reader, "two");
    assert_eq!(other.cat(&silent.path("app/x")).unwrap(), b"one");
    broker.run();
    sees(&silent, &mut other, "two");
    let back = status();
    assert!(
        back["connected"].is_string() && back["trouble"].is_null(),
        "{back}"
    );
    assert!(
        broker.section().contains(back["url"].as_str().unwrap()),
        "{back}"
    );
    let back = || relay.log().matches("connected to the broker").count() == 2;
    assert!(eventually(DEADLINE, back), "{}", relay.log());
    vault.put(&record, json!({ "x": "three" }));
    sees(&silent, &mut other, "three");
    for log in [silent.log(), relay.log()] {
        assert_eq!(
            log.matches("the broker cannot be reached").count(),
            1,
            "{log}"
        );
        assert_eq!(log.matches("connected to the broker").count(), 2, "{log}");
    }
}

#[test]
fn a_broker_that_lets_nobody_in_costs_nothing_but_the_poll() {
    for kind in [Kind::Nats, Kind::Mqtt] {
        needs!(Need::Vault, Need::Program(kind.program()));
        let broker = Broker::start(kind);
        let wrong = broker.at("wrong");
        fs::write(&wrong, "wrong-word").unwrap();
        let log = poll_alone("shut", &broker.section_with(&wrong, &broker.at("ca.pem")));
        assert!(!log.contains("wrong-word"), "{log}");
    }
}

#[test]
fn a_broker_of_another_authority_is_shown_nothing() {
    needs!(Need::Vault, Need::Program("mosquitto"));
    let (broker, folder) = (Broker::start(Kind::Mqtt), Folder::new());
    let other = Authority::new(folder.path());
    let signals = broker.section_with(&broker.at("word"), &other.path());
    let log = poll_alone("distrusted", &signals);
    assert!(log.contains("invalid peer certificate"), "{log}");
}

/// A daemon that cannot sign in to this broker sees changes when it polls. What it said.
fn poll_alone(name: &str, signals: &str) -> String {
    let vault = Vault::shared();
    let record = format!("{name}/a");
    vault.put(&record, json!({ "x": "one" }));
    let token = token(vault, name);
    let services = format!(
        "{}{signals}[services.app]\nallow = [{{ uid = 4001 }}]\nsecrets.x = \"vault:secret/{record}#x\"\n",
        section(vault, &token, "poll = \"1s\""),
    );
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    let daemon = setup.start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut sees = |value: &str| {
        let shows = || {
            reader
                .cat(&daemon.path("app/x"))
                .is_ok_and(|bytes| bytes == value.as_bytes())
        };
        assert!(eventually(DEADLINE, shows), "{value}: {}", daemon.log());
    };
    sees("one");
    vault.put(&record, json!({ "x": "two" }));
    sees("two");
    let said = || daemon.log().contains("lets nobody in");
    assert!(eventually(DEADLINE, said), "{}", daemon.log());
    daemon.log()
}

#[test]
fn what_is_no_message_changes_nothing() {
    needs!(
        Need::Vault,
        Need::Program("mosquitto"),
        Need::Program("mosquitto_pub")
    );
    let (vault, broker) = (Vault::shared(), Broker::start(Kind::Mqtt));
    vault.put("hostile/a", json!({ "x": "one" }));
    let (daemon, mut reader) = daemon(vault, &broker, "hostile", "0");
    sees(&daemon, &mut reader, "one");
    // What it looks at after it has connected is over.
    std::thread::sleep(Duration::from_secs(3));
    vault.put("hostile/a", json!({ "x": "two" }));
    let message = br#"{"backend":"vault","path":"secret/hostile/a"}"#;
    let topic = "secretfs/changes";
    let long = [b" ".repeat(9000), message.to_vec()].concat();
    let huge = [b" ".repeat(1 << 20), message.to_vec()].concat();
    for (topic, bytes) in [
        ("secretfs/other", &message[..]),
        (topic, b"\xff\0garbage"),
        (topic, b""),
        (topic, br#"{"backend":"vault","path":"secret/hostile/b"}"#),
        (topic, br#"{"backend":"other"}"#),
        (topic, &long),
        (topic, &huge),
    ] {
        broker.publish(topic, bytes);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(reader.cat(&daemon.path("app/x")).unwrap(), b"one");
    broker.publish(topic, message);
    sees(&daemon, &mut reader, "two");
    let log = daemon.log();
    assert_eq!(log.matches("connected to the broker").count(), 1, "{log}");
    assert!(
        !log.contains("garbage") && !log.contains("cannot be reached"),
        "{log}"
    );
}

#[test]
fn the_audit_log_may_be_rotated_and_may_be_a_socket() {
    needs!(Need::Vault, Need::Program("nats-server"));
    let (vault, broker) = (Vault::start(), Broker::start(Kind::Nats));
    vault.put("rotated/a", json!({ "x": "one" }));
    let audit = vault.at("audit.log");
    let by_file = Relay::start(&vault, &broker, ["--audit-file", audit.to_str().unwrap()]);
    let (daemon, mut reader) = daemon(&vault, &broker, "rotated", "0");
    sees(&daemon, &mut reader, "one");
    fs::rename(&audit, vault.at("audit.log.1")).unwrap();
    vault.put("rotated/a", json!({ "x": "two" }));
    sees(&daemon, &mut reader, "two");
    kill(Pid::from_raw(vault.pid().unwrap()), Signal::SIGHUP).unwrap();
    assert!(eventually(DEADLINE, || audit.exists()));
    vault.put("rotated/a", json!({ "x": "three" }));
    sees(&daemon, &mut reader, "three");
    drop(by_file);
    let socket = vault.at("audit.sock");
    let place = socket.to_str().unwrap();
    let _by_socket = Relay::start(&vault, &broker, ["--audit-socket", place]);
    let device =
        json!({ "type": "socket", "options": { "address": place, "socket_type": "unix" } });
    vault.call("PUT", "sys/audit/socket", device);
    vault.put("rotated/a", json!({ "x": "four" }));
    sees(&daemon, &mut reader, "four");
}
