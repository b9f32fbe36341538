//! Another client of the server's, which somebody else wrote, changes what we show: Python's hvac.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::eventually;
use crate::common::machine::{Need, hvac_python, needs};
use crate::common::probe::Who;
use crate::common::vault::{Vault, section};

/// When the last change must have been seen. It is polled each second: how late that is on a quiet machine the benchmark says.
const SEEN: Duration = Duration::from_secs(30);

const ROUNDS: &str = "6";

/// What was written as number `n`, as one open shows it: user and password of the same number.
fn number(record: &[u8]) -> u64 {
    let record: Value = serde_json::from_slice(record).unwrap();
    let [user, password] = ["user", "password"].map(|field| record[field].as_str().unwrap());
    let number = user.strip_prefix("u-").unwrap();
    assert_eq!(password.strip_prefix("hvac-canary-"), Some(number), "mixed");
    number.parse().unwrap()
}

#[test]
fn what_another_client_writes_is_read_whole_and_seen() {
    needs!(Need::Vault, Need::Hvac);
    let vault = Vault::shared();
    // It may not subscribe to events: the poll is what is tried.
    vault.policy(
        "hvac",
        r#"path "secret/+/hvac/*" { capabilities = ["read"] }
path "kv1/hvac" { capabilities = ["read"] }"#,
    );
    // What is absent at first is remembered to be.
    let first = json!({ "user": "u-0", "password": "hvac-canary-0" });
    vault.put("hvac/pair", first.clone());
    vault.call("POST", "kv1/hvac", first);
    let token = vault.at("token-hvac");
    std::fs::write(&token, vault.token(&["hvac"], "1h")).unwrap();
    let start = |ttl: &str, secret: &str| {
        let app = "[services.app]\nallow = [{ uid = 4001 }]\n";
        let more =
            format!("poll = \"1s\"\n[cache]\nttl = \"{ttl}\"\n{app}secrets.x = \"{secret}\"\n");
        let setup = Setup {
            services: &section(vault, &token, &more),
            ..Setup::default()
        };
        setup.start()
    };
    // A record of KV 1 has no version that could be polled: it is asked for again when its TTL is over.
    let daemons = [
        start("1h", "vault:secret/hvac/pair"),
        start("1s", "vault:kv1/hvac"),
    ];
    let mut readers = daemons
        .each_ref()
        .map(|daemon| daemon.probe(&Who::uid(4001)));
    let places = daemons.each_ref().map(|daemon| daemon.path("app/x"));

    let mut client = Command::new(hvac_python().unwrap())
        .args(["-I", "-c", include_str!("hvac.py"), vault.address()])
        .arg(vault.ca())
        .arg(ROUNDS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    writeln!(stdin, "{}", vault.root_token()).unwrap();
    let begun = Arc::new(AtomicU64::new(0));
    let (lines, counter) = (client.stdout.take().unwrap(), Arc::clone(&begun));
    let counting = thread::spawn(move || {
        for line in BufReader::new(lines).lines() {
            counter.store(line.unwrap().parse().unwrap(), Ordering::SeqCst);
        }
    });

    let (mut seen, mut absent) = ([const { BTreeSet::new() }; 2], 0);
    while !counting.is_finished() {
        for ((reader, path), seen) in readers.iter_mut().zip(&places).zip(&mut seen) {
            match reader.cat(path) {
                Ok(record) => {
                    let number = number(&record);
                    // Not before it was written, and nothing of what was there before any more.
                    assert!(number <= begun.load(Ordering::SeqCst), "{number}");
                    assert!(seen.last() <= Some(&number), "{number} after {seen:?}");
                    seen.insert(number);
                }
                Err(Errno::ENOENT) => absent += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    counting.join().unwrap();
    assert!(client.wait().unwrap().success());
    let last = begun.load(Ordering::SeqCst);
    for (at, expected) in [last - 1, last].into_iter().enumerate() {
        let shows = || {
            let read = readers[at].cat(&places[at]);
            read.is_ok_and(|record| number(&record) == expected)
        };
        assert!(eventually(SEEN, shows), "{expected} is not seen");
    }
    let [pairs, plain] = seen.map(|seen| seen.len());
    println!(
        "of {last} changes {pairs} and {plain} were seen, and {absent} times there was nothing"
    );
    assert!(
        pairs > 2 && plain > 2 && absent > 0,
        "{pairs} {plain} {absent}"
    );
    let quoted = |daemon: &Daemon| daemon.log().contains("hvac-canary");
    assert!(!daemons.iter().any(quoted));
}
