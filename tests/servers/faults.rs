//! What readers see of a server that is broken, gone or not what it should be; how long they wait; what is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::errno::Errno;
use secretfs::backend::Backend;
use secretfs::backend::vault::settings::Method;
use secretfs::clock::Clock;
use serde_json::{Value, json};

use crate::asking::{at, client};
use crate::common::authority::Authority;
use crate::common::daemon::{Daemon, Setup};
use crate::common::folder::Folder;
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::{Need, needs};
use crate::common::probe::{Got, Probe, Who};
use crate::common::proxy::{Mode, Proxy};
use crate::common::vault::Vault;
use crate::common::{DEADLINE, eventually};

/// What a server says that nobody is to see again.
const BODY: &str = "canary-of-a-body-Vx7q9Zt2";
/// And what we say to it.
const TOKEN: &str = "canary-of-a-token-Lw4kP8";

/// How long a reader waits for a backend at most, and how much later it must have an answer on a busy machine.
const CACHE: &str = "[cache]\nttl = \"1s\"\ntimeout = \"2s\"\nstale = \"10m\"\n";
const LATEST: Duration = Duration::from_secs(6);

fn section(address: &str, ca: &Path, token: &Path) -> String {
    format!(
        "{CACHE}[backends.vault]\ntype = \"vault\"\naddress = \"{address}\"\nca = \"{}\"\nauth = {{ method = \"token\", file = \"{}\" }}\n[services.app]\nallow = [{{ uid = 4001 }}]\n[services.app.secrets]\n",
        ca.display(),
        token.display(),
    )
}

/// Reads a secret, which must not take too long.
#[track_caller]
fn cat(reader: &mut Probe, daemon: &Daemon, name: &str) -> Got<String> {
    let clock = Clock::default();
    let start = clock.now();
    let read = reader.cat(&daemon.path("app").join(name));
    let took = clock.now() - start;
    assert!(took < LATEST, "{name}: {took:?}");
    read.map(|bytes| String::from_utf8(bytes).unwrap())
}

/// The outcomes of the opens of each secret, and how often the server was asked is not said.
fn outcomes(daemon: &Daemon) -> BTreeMap<String, BTreeSet<String>> {
    let log = daemon.secretfs(&["audit", "--json"], b"").expect_ok();
    let mut outcomes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8(log).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let (Some(path), Some("open")) = (line["path"].as_str(), line["action"].as_str()) {
            let outcome = line["outcome"].as_str().unwrap().to_owned();
            let name = path.trim_start_matches("app/").to_owned();
            outcomes.entry(name).or_default().insert(outcome);
        }
    }
    outcomes
}

/// Fails if text is quoted anywhere in these, in any of the forms in which programs write bytes down.
#[track_caller]
fn assert_unquoted(text: &str, places: &[(&str, &[u8])]) {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", text.as_bytes());
    let encoded = STANDARD.encode(text);
    let forms = [
        text,
        &hex,
        list.trim_matches(['[', ']']),
        &encoded[..encoded.len() - 4],
    ];
    for (name, bytes) in places {
        for form in forms {
            let found = memchr::memmem::find(bytes, form.as_bytes());
            assert!(found.is_none(), "{name} quotes {form}");
        }
    }
}

#[test]
fn a_server_that_is_none_shows_nothing_and_hears_nothing() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let json = |status, body| Answer::json(status, &body);
    let elsewhere = Impostor::start(&authority, json(200, json!({ "data": BODY })));
    let server = Impostor::start(&authority, json(404, json!({ "errors": [] })));
    let mount =
        json!({ "data": { "path": "secret/", "type": "kv", "options": { "version": "2" } } });
    server.answer("/v1/sys/internal/ui/mounts/", json(200, mount));
    let token = json!({ "data": { "ttl": 0, "id": TOKEN } });
    server.answer("/v1/auth/token/lookup-self", json(200, token));
    let text = |status, text: &str| Answer::Reply(status, Vec::new(), text.to_owned());
    let errors = json!({ "errors": [BODY] });
    let metadata = json!({ "version": 1, "created_time": "2026-01-01T00:00:00Z" });
    let late = Err(Errno::ETIMEDOUT);
    let broken = Err(Errno::EIO);
    let good = json!({ "data": { "data": { "x": "yes" }, "metadata": metadata } });
    let cases: Vec<(&str, Answer, Got<&str>, &str)> = vec![
        ("good", json(200, good), Ok("yes"), "allowed"),
        ("endless", Answer::Endless, broken, "error"),
        ("garbage", Answer::Garbage, broken, "unreachable"),
        ("slow", Answer::SlowHeaders, late, "unreachable"),
        ("silence", Answer::Silence, late, "unreachable"),
        ("empty", text(200, ""), broken, "error"),
        ("no-content", text(204, ""), broken, "error"),
        ("text", text(200, BODY), broken, "error"),
        (
            "cut",
            text(200, &format!("{{\"data\":{{\"data\":{{\"x\":\"{BODY}")),
            broken,
            "error",
        ),
        ("shape", json(200, json!({ "data": BODY })), broken, "error"),
        ("list", json(200, json!([BODY])), broken, "error"),
        ("depth", text(200, &"[".repeat(100_000)), broken, "error"),
        (
            "string",
            json(
                200,
                json!({ "data": { "data": BODY, "metadata": metadata } }),
            ),
            broken,
            "error",
        ),
        (
            "null",
            json(
                200,
                json!({ "data": { "data": null, "metadata": metadata } }),
            ),
            Err(Errno::ENOENT),
            "absent",
        ),
        (
            "other-field",
            json(
                200,
                json!({ "data": { "data": { "y": BODY }, "metadata": metadata } }),
            ),
            Err(Errno::ENOENT),
            "absent",
        ),
        (
            "version",
            json(
                200,
                json!({ "data": { "data": { "x": BODY }, "metadata": { "version": BODY } } }),
            ),
            broken,
            "error",
        ),
        (
            "away",
            Answer::redirect(&format!("{}/v1/secret/data/away", elsewhere.address())),
            broken,
            "unreachable",
        ),
        ("bad-request", json(400, errors.clone()), broken, "error"),
        (
            "unauthorized",
            json(401, errors.clone()),
            Err(Errno::EACCES),
            "refused",
        ),
        (
            "forbidden",
            json(403, errors.clone()),
            Err(Errno::EACCES),
            "refused",
        ),
        (
            "not-found",
            json(404, errors.clone()),
            Err(Errno::ENOENT),
            "absent",
        ),
        ("behind", json(412, errors.clone()), broken, "unreachable"),
        ("too-many", json(429, errors.clone()), broken, "unreachable"),
        ("trouble", json(500, errors.clone()), broken, "unreachable"),
        (
            "gateway",
            text(502, &format!("<html>{BODY}</html>")),
            broken,
            "unreachable",
        ),
        ("sealed", json(503, errors), broken, "unreachable"),
    ];
    let file = folder.at("token");
    fs::write(&file, TOKEN).unwrap();
    let mut services = section(server.address(), &authority.path(), &file);
    for (name, answer, _, _) in &cases {
        server.answer(&format!("/v1/secret/data/{name}"), answer.clone());
        services.push_str(&format!("{name} = \"vault:secret/{name}#x\"\n"));
    }
    let setup = Setup {
        services: &services,
        env: &[("SECRETFS_LOG", "trace"), ("RUST_BACKTRACE", "full")],
        ..Setup::default()
    };
    let mut daemon = setup.start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for (name, _, expected, _) in &cases {
        let read = cat(&mut reader, &daemon, name);
        assert_eq!(read, expected.map(str::to_owned), "{name}");
    }
    let written = outcomes(&daemon);
    for (name, _, _, outcome) in &cases {
        let expected = BTreeSet::from([(*outcome).to_owned()]);
        assert_eq!(written.get(*name), Some(&expected), "{name}");
    }
    // What other commands say of it.
    let mut said = String::new();
    for words in [
        &["status", "--json"][..],
        &["doctor"],
        &["ls", "app"],
        &["explain", "app/text"],
    ] {
        let output = daemon.secretfs(words, b"");
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&output.stderr);
    }
    for (name, ..) in &cases {
        let output = daemon.secretfs(&["get", &format!("app/{name}")], b"");
        said.push_str(&output.stderr);
    }
    // The token went to the one server alone, and to that it did go.
    assert_eq!(elsewhere.requests().len(), 0);
    let sent =
        |request: &crate::common::impostor::Request| request.header("x-vault-token") == Some(TOKEN);
    assert!(server.requests().iter().any(sent));
    drop(reader);
    daemon.stop();
    let log = daemon.log();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the log says little: {log}"
    );
    let audit = fs::read(daemon.at("log/audit.jsonl")).unwrap();
    let places: [(&str, &[u8]); 3] = [
        ("the log", log.as_bytes()),
        ("the audit log", &audit),
        ("what commands say", said.as_bytes()),
    ];
    assert_unquoted(BODY, &places);
    assert_unquoted(TOKEN, &places);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_s_health_is_told_with_its_mend() {
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let file = folder.at("token");
    fs::write(&file, TOKEN).unwrap();
    let auth = Method::Token { file: Some(file) };
    for (status, says) in [
        (200, None),
        (429, None),
        (472, None),
        (473, None),
        (501, Some("not initialised: run `vault operator init`")),
        (503, Some("sealed: run `vault operator unseal`")),
        (500, Some("a trouble of its own (500)")),
        (307, Some("write the address of the active server")),
        (404, Some("does not answer as Vault or OpenBao do")),
    ] {
        let none = json!({ "errors": [BODY] });
        let server = Impostor::start(&authority, Answer::json(403, &none));
        server.answer("/v1/sys/health", Answer::json(status, &none));
        let client = client(&at(server.address(), authority.path(), auth.clone()));
        let said = client.check().await.err().map(|error| error.to_string());
        assert_eq!(said.is_some(), says.is_some(), "{status}: {said:?}");
        if let (Some(said), Some(says)) = (said, says) {
            assert!(
                said.contains(says) && said.contains(server.address()),
                "{status}: {said}"
            );
        }
    }
}

/// A way to be away, and back again.
type Trouble<'a> = (&'a str, Errno, Box<dyn Fn() + 'a>, Box<dyn Fn() + 'a>);

#[test]
fn who_reads_while_a_server_is_away_gets_what_was_there_or_an_error_in_time() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let (kill, restart) = (|| vault.kill(), || vault.restart());
    let (seal, unseal) = (|| vault.seal(), || vault.unseal());
    let (pause, resume) = (|| vault.pause(), || vault.resume());
    let troubles: [Trouble<'_>; 3] = [
        ("kill", Errno::EIO, Box::new(kill), Box::new(restart)),
        ("seal", Errno::EIO, Box::new(seal), Box::new(unseal)),
        ("pause", Errno::ETIMEDOUT, Box::new(pause), Box::new(resume)),
    ];
    read_through(&vault, vault.address(), &troubles);
}

#[test]
fn who_reads_while_the_network_is_broken_gets_what_was_there_or_an_error_in_time() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    let proxy = Proxy::to(vault.address());
    let set = |mode| {
        let proxy = &proxy;
        move || proxy.set(mode)
    };
    let trouble = |name, errno, mode| -> Trouble<'_> {
        (name, errno, Box::new(set(mode)), Box::new(set(Mode::Pass)))
    };
    let troubles = [
        trouble("refuse", Errno::EIO, Mode::Refuse),
        trouble("stall", Errno::ETIMEDOUT, Mode::Stall),
        trouble("cut", Errno::EIO, Mode::Cut(300)),
        trouble("drip", Errno::ETIMEDOUT, Mode::Drip),
    ];
    read_through(vault, proxy.address(), &troubles);
}

/// Reads what is new, what was read before and what must not be old, in each trouble and after it.
#[track_caller]
fn read_through(vault: &Vault, address: &str, troubles: &[Trouble<'_>]) {
    let token = vault.at("token-away");
    fs::write(&token, vault.root_token()).unwrap();
    let mut services = section(address, &vault.ca(), &token);
    services.push_str("warm = \"vault:secret/away/warm#x\"\n");
    services.push_str("strict = { from = \"vault:secret/away/strict#x\", stale = \"0\" }\n");
    for (name, ..) in troubles {
        vault.put(&format!("away/cold-{name}"), json!({ "x": "cold" }));
        services.push_str(&format!("{name} = \"vault:secret/away/cold-{name}#x\"\n"));
    }
    for name in ["warm", "strict"] {
        vault.put(&format!("away/{name}"), json!({ "x": "0" }));
    }
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    let daemon = setup.start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut current = "0".to_owned();
    for (number, (name, errno, away, back)) in troubles.iter().enumerate() {
        for warm in ["warm", "strict"] {
            assert_eq!(
                cat(&mut reader, &daemon, warm).as_ref(),
                Ok(&current),
                "{name}"
            );
        }
        away();
        sleep(Duration::from_millis(1_200));
        let cold = cat(&mut reader, &daemon, name);
        assert_eq!(cold, Err(*errno), "{name}");
        for _ in 0..3 {
            assert_eq!(
                cat(&mut reader, &daemon, "warm").as_ref(),
                Ok(&current),
                "{name}"
            );
        }
        // After five failures, of which a poll may bring several at once, the server is left alone: that is EIO.
        let strict = cat(&mut reader, &daemon, "strict").expect_err(name);
        assert!([*errno, Errno::EIO].contains(&strict), "{name}: {strict}");
        back();
        current = (number + 1).to_string();
        for warm in ["warm", "strict"] {
            vault.put(&format!("away/{warm}"), json!({ "x": current }));
        }
        let mut is = |name: &str, expected: &str| {
            let mut last = Err(Errno::EAGAIN);
            let good = eventually(DEADLINE, || {
                last = cat(&mut reader, &daemon, name);
                last.as_deref() == Ok(expected)
            });
            assert!(good, "{name}: {last:?}");
        };
        is(name, "cold");
        is("warm", &current);
        is("strict", &current);
    }
    let written = outcomes(&daemon);
    let has = |name: &str| -> Vec<&str> { written[name].iter().map(String::as_str).collect() };
    for (name, ..) in troubles {
        assert_eq!(has(name), ["allowed", "unreachable"], "{name}");
    }
    assert_eq!(has("warm"), ["allowed", "stale"]);
    assert_eq!(has("strict"), ["allowed", "unreachable"]);
}

#[test]
fn nothing_stands_in_for_what_was_refused_or_deleted() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    let proxy = Proxy::to(vault.address());
    for name in ["refused", "deleted"] {
        vault.put(&format!("gone/{name}"), json!({ "x": "yes" }));
    }
    let rules =
        |name| format!("path \"secret/data/gone/{name}\" {{ capabilities = [\"read\"] }}\n");
    vault.policy("gone", &(rules("refused") + &rules("deleted")));
    let token = vault.at("token-gone");
    fs::write(&token, vault.token(&["gone"], "1h")).unwrap();
    let mut services = section(proxy.address(), &vault.ca(), &token);
    for name in ["refused", "deleted"] {
        services.push_str(&format!("{name} = \"vault:secret/gone/{name}#x\"\n"));
    }
    let setup = Setup {
        services: &services,
        ..Setup::default()
    };
    let daemon = setup.start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for name in ["refused", "deleted"] {
        assert_eq!(
            cat(&mut reader, &daemon, name).as_deref(),
            Ok("yes"),
            "{name}"
        );
    }
    vault.policy("gone", &rules("deleted"));
    vault.delete("gone/deleted");
    sleep(Duration::from_millis(1_200));
    assert_eq!(cat(&mut reader, &daemon, "refused"), Err(Errno::EACCES));
    assert_eq!(cat(&mut reader, &daemon, "deleted"), Err(Errno::ENOENT));
    proxy.set(Mode::Refuse);
    sleep(Duration::from_millis(1_200));
    for name in ["refused", "deleted"] {
        assert_eq!(cat(&mut reader, &daemon, name), Err(Errno::EIO), "{name}");
    }
    let written = outcomes(&daemon);
    let has = |name: &str| -> Vec<&str> { written[name].iter().map(String::as_str).collect() };
    assert_eq!(has("refused"), ["allowed", "refused", "unreachable"]);
    assert_eq!(has("deleted"), ["absent", "allowed", "unreachable"]);
}
