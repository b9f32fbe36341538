//! Changes that are made on the server, and when files show them.

use std::time::Duration;

use secretfs::clock::Clock;
use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::eventually;
use crate::common::machine::{Need, needs};
use crate::common::probe::{Probe, Who};
use crate::common::vault::release::has_events;
use crate::common::vault::{Vault, section};

const LONG: Duration = Duration::from_secs(10);

/// A daemon that asks for nothing again by itself for an hour, but as `more` says.
fn daemon(vault: &Vault, name: &str, more: &str, services: &str) -> Daemon {
    let token = vault.at(&format!("token-{name}"));
    std::fs::write(&token, vault.root_token()).unwrap();
    let services = format!(
        "{}{services}\n[cache]\nttl = \"1h\"\n",
        section(vault, &token, more)
    );
    crate::common::daemon::Setup {
        services: &services,
        ..Default::default()
    }
    .start()
}

fn shows(reader: &mut Probe, daemon: &Daemon, path: &str, value: &str) -> bool {
    reader
        .cat(&daemon.path(path))
        .is_ok_and(|bytes| bytes == value.as_bytes())
}

#[test]
fn the_server_s_events_are_seen_at_once() {
    needs!(Need::Vault);
    if !has_events() {
        return;
    }
    let vault = Vault::shared();
    vault.put("signals/a", json!({ "x": "one" }));
    let services =
        "[services.app]\nallow = [{ uid = 4001 }]\nsecrets.x = \"vault:secret/signals/a#x\"\n";
    let daemon = daemon(vault, "events", "poll = \"0\"", services);
    let mut reader = daemon.probe(&Who::uid(4001));
    assert!(shows(&mut reader, &daemon, "app/x", "one"));
    assert!(eventually(LONG, || daemon
        .log()
        .contains("the server tells of changes")));
    let clock = Clock::default();
    let mut slowest = Duration::ZERO;
    for round in 0..5 {
        let value = format!("value {round}");
        vault.put("signals/a", json!({ "x": value }));
        let written = clock.now();
        assert!(
            eventually(LONG, || shows(&mut reader, &daemon, "app/x", &value)),
            "{value}"
        );
        slowest = slowest.max(clock.now() - written);
    }
    println!("an event was seen after at most {slowest:?}");
    vault.delete("signals/a");
    let gone = || reader.cat(&daemon.path("app/x")) == Err(nix::errno::Errno::ENOENT);
    assert!(eventually(LONG, gone));
}

#[test]
fn a_poll_sees_what_changed_and_what_takes_over() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    // Without a right to subscribe the poll is all there is.
    vault.policy(
        "polls",
        "path \"secret/data/polls/*\" { capabilities = [\"read\"] }\npath \"secret/metadata/polls/*\" { capabilities = [\"read\"] }",
    );
    vault.put("polls/low", json!({ "x": "low" }));
    let daemon = daemon(
        vault,
        "polls",
        "poll = \"1s\"",
        "[services.app]\nallow = [{ uid = 4001 }]\nsecrets.x = [\"vault:secret/polls/high#x\", \"vault:secret/polls/low#x\"]\n",
    );
    std::fs::write(vault.at("token-polls"), vault.token(&["polls"], "1h")).unwrap();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut seen = |value: &str| eventually(LONG, || shows(&mut reader, &daemon, "app/x", value));
    assert!(seen("low"));
    vault.put("polls/low", json!({ "x": "lower" }));
    assert!(seen("lower"));
    vault.put("polls/high", json!({ "x": "high" }));
    assert!(seen("high"));
    vault.delete("polls/high");
    assert!(seen("lower"));
    let reads = vault.counted("secret/data/polls");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        vault.counted("secret/data/polls"),
        reads,
        "polls ask for no value"
    );
}
