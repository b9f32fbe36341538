//! The network between a client and a server, and servers that are not what they should be: that both break as they are told.

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use reqwest::{Certificate, Client};
use serde_json::{Value, json};

use crate::common::authority::Authority;
use crate::common::folder::Folder;
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::{Need, has};
use crate::common::proxy::{Mode, Proxy};
use crate::common::runtime::wait_for;
use crate::common::vault::{Vault, api};
use crate::common::{DEADLINE, eventually};

/// How long a client waits that is not to be answered.
const SHORT: Duration = Duration::from_millis(1_500);

/// An authority and who trusts it.
struct Trust {
    authority: Authority,
    client: Client,
    _folder: Folder,
}

impl Trust {
    fn new() -> Self {
        let folder = Folder::new();
        let authority = Authority::new(folder.path());
        let client = api::client(&authority.pem());
        Self {
            authority,
            client,
            _folder: folder,
        }
    }

    fn impostor(&self, answer: Answer) -> Impostor {
        Impostor::start(&self.authority, answer)
    }

    fn get(&self, address: &str, within: Duration) -> Result<String, reqwest::Error> {
        get(&self.client, address, within)
    }
}

fn get(client: &Client, address: &str, within: Duration) -> Result<String, reqwest::Error> {
    let request = client
        .get(format!("{address}/v1/secret/data/billing"))
        .header("X-Vault-Token", "a-token")
        .timeout(within);
    wait_for(async { request.send().await?.text().await })
}

fn large() -> Answer {
    Answer::json(200, &json!({"data": "x".repeat(20_000)}))
}

#[test]
fn a_proxy_passes_on_and_refuses() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let ca = std::fs::read_to_string(vault.ca()).unwrap();
    let client = api::client(&ca);
    let proxy = Proxy::to(vault.address());
    let ask = || get(&client, proxy.address(), DEADLINE);
    assert!(ask().unwrap().contains("errors"));
    assert_eq!(proxy.accepted(), 1);
    assert!(eventually(DEADLINE, || proxy.open() == 0));
    assert!(proxy.answered() > 500);
    let mut connected = TcpStream::connect(proxy.address().trim_start_matches("https://")).unwrap();
    assert!(eventually(DEADLINE, || proxy.open() == 1));
    proxy.set(Mode::Refuse);
    let reset = connected.read(&mut [0]).unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(ask().unwrap_err().is_connect());
    proxy.set(Mode::Pass);
    assert!(ask().unwrap().contains("errors"));
}

#[test]
fn a_proxy_stalls() {
    let trust = Trust::new();
    let server = trust.impostor(large());
    let proxy = Proxy::to(server.address());
    proxy.set(Mode::Stall);
    assert!(trust.get(proxy.address(), SHORT).unwrap_err().is_timeout());
    assert_eq!((proxy.accepted(), proxy.answered()), (1, 0));
    assert_eq!(server.requests().len(), 0);
    // Who is patient gets an answer.
    let answer = thread::scope(|scope| {
        let patient = scope.spawn(|| trust.get(proxy.address(), DEADLINE));
        assert!(eventually(DEADLINE, || proxy.accepted() == 2));
        proxy.set(Mode::Pass);
        patient.join().unwrap()
    });
    assert!(answer.unwrap().contains("xxx"));
}

#[test]
fn a_proxy_cuts_an_answer() {
    let trust = Trust::new();
    let server = trust.impostor(large());
    let proxy = Proxy::to(server.address());
    proxy.set(Mode::Cut(5_000));
    let request = trust.client.get(proxy.address()).timeout(DEADLINE);
    let (status, body) = wait_for(async {
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await)
    });
    assert_eq!(status, 200);
    let error = body.unwrap_err();
    assert!(!error.is_timeout(), "{error:?}");
    assert_eq!(server.requests().len(), 1);
    proxy.set(Mode::Cut(1_000_000));
    assert!(trust.get(proxy.address(), DEADLINE).is_ok());
}

#[test]
fn a_proxy_drips() {
    let trust = Trust::new();
    let server = trust.impostor(large());
    let proxy = Proxy::to(server.address());
    proxy.set(Mode::Drip);
    let long = Duration::from_millis(2_500);
    assert!(trust.get(proxy.address(), long).unwrap_err().is_timeout());
    assert!((1..=4).contains(&proxy.answered()), "{}", proxy.answered());
}

#[test]
fn an_impostor_answers_as_told_and_notes_what_it_is_asked() {
    let trust = Trust::new();
    let server = trust.impostor(Answer::json(200, &json!({"data": "of no use"})));
    server.answer("/v1/auth/", Answer::Reply(403, Vec::new(), "no".to_owned()));
    let answer = trust.get(server.address(), DEADLINE).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, json!({"data": "of no use"}));
    let login = format!("{}/v1/auth/approle/login", server.address());
    let login = trust.client.post(login).body("{}");
    let status = wait_for(async { login.send().await.unwrap().status() });
    assert_eq!(status, 403);
    let [read, login] = &server.requests()[..] else {
        panic!("{:?}", server.requests());
    };
    assert_eq!(
        (&*read.method, &*read.path),
        ("GET", "/v1/secret/data/billing")
    );
    assert_eq!(read.header("x-vault-token"), Some("a-token"));
    assert_eq!((&*login.method, &*login.body), ("POST", "{}"));
    assert_eq!(login.header("x-vault-token"), None);
}

#[test]
fn an_impostor_sends_its_clients_to_another() {
    let trust = Trust::new();
    let other = trust.impostor(large());
    let server = trust.impostor(Answer::redirect(&format!("{}/elsewhere", other.address())));
    assert_eq!(trust.get(server.address(), DEADLINE).unwrap(), "");
    assert_eq!(other.requests().len(), 0);
    // What is to be feared: who follows takes the token along.
    let pem = trust.authority.pem();
    let follows = Client::builder()
        .tls_certs_only([Certificate::from_pem(pem.as_bytes()).unwrap()])
        .build()
        .unwrap();
    assert!(get(&follows, server.address(), DEADLINE).is_ok());
    let requests = other.requests();
    assert_eq!(requests[0].path, "/elsewhere");
    assert_eq!(requests[0].header("X-Vault-Token"), Some("a-token"));
}

#[test]
fn an_impostor_has_no_end() {
    let trust = Trust::new();
    let server = trust.impostor(Answer::Endless);
    let request = trust.client.get(server.address());
    let taken = wait_for(async {
        let mut answer = request.send().await.unwrap();
        let mut taken = 0;
        while taken < 1_000_000 {
            taken += answer.chunk().await.unwrap().unwrap().len();
        }
        taken
    });
    let so_far = || {
        let before = server.sent();
        thread::sleep(SHORT);
        (before, server.sent())
    };
    // It stops when nobody takes any more.
    assert!(eventually(DEADLINE, || {
        let (before, now) = so_far();
        before == now
    }));
    let sent = server.sent();
    assert!(
        sent >= u64::try_from(taken).unwrap() && sent < 100_000_000,
        "{sent}"
    );
}

#[test]
fn an_impostor_talks_garbage_or_not_at_all() {
    let trust = Trust::new();
    let garbage = trust.impostor(Answer::Garbage);
    let error = trust.get(garbage.address(), DEADLINE).unwrap_err();
    assert!(!error.is_timeout() && !error.is_connect(), "{error:?}");
    for answer in [Answer::SlowHeaders, Answer::Silence] {
        let server = trust.impostor(answer);
        assert!(trust.get(server.address(), SHORT).unwrap_err().is_timeout());
        assert_eq!(server.requests().len(), 1);
    }
}
