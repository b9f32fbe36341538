//! Whom we trust: a server whose certificate we do not is not asked for anything, and the error says what is to be done.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use secretfs::backend::BackendError;
use secretfs::backend::vault::settings::Method;
use serde_json::{Value, json};

use crate::asking::{at, client, read};
use crate::common::authority::Authority;
use crate::common::daemon::{Daemon, Setup};
use crate::common::folder::Folder;
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};

const REFERENCE: &str = "b:secret/a#x";

fn answer() -> Answer {
    Answer::json(404, &json!({ "errors": [] }))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_certificate_is_told_with_its_mend() {
    let (folder, other) = (Folder::new(), Folder::new());
    let (authority, stranger) = (Authority::new(folder.path()), Authority::new(other.path()));
    let token = folder.at("token");
    fs::write(&token, "t-1").unwrap();
    let auth = Method::Token { file: Some(token) };
    for (served, says) in [
        (stranger.served(), "write ca = "),
        (
            authority.served_as(&["vault.example"], [-1, 1]),
            "is for other names: write `address`",
        ),
        (
            authority.served_as(&["127.0.0.1"], [-3, -2]),
            "has expired: renew it",
        ),
        (
            authority.served_as(&["127.0.0.1"], [2, 3]),
            "is not valid yet: see to the clocks",
        ),
    ] {
        let server = Impostor::with(served, answer());
        let client = client(&at(server.address(), authority.path(), auth.clone()));
        let error = read(&client, REFERENCE).await.unwrap_err();
        assert!(matches!(error, BackendError::Unreachable(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains(server.address()),
            "{text}"
        );
        assert_eq!(server.requests().len(), 0, "{says}");
    }
    // It is trusted as soon as it is what it should be.
    let server = Impostor::with(authority.served_as(&["127.0.0.1"], [-1, 1]), answer());
    let client = client(&at(server.address(), authority.path(), auth));
    let error = read(&client, REFERENCE).await.unwrap_err();
    assert!(matches!(error, BackendError::Absent(_)), "{error}");
}

/// A daemon with this section, on a machine without any certificates.
fn start(section: &str) -> Daemon {
    let setup = Setup {
        services: section,
        values: &[("local/a", b"of the store")],
        env: &[
            ("SSL_CERT_FILE", "/nonexistent"),
            ("SSL_CERT_DIR", "/nonexistent"),
        ],
        ..Setup::default()
    };
    setup.start()
}

const SERVICES: &str = "[services.local]\nsource = \"local:local\"\nallow = [{ uid = [0, 4001] }]
[services.app]\nallow = [{ uid = 4001 }]\nsecrets.x = \"vault:secret/a#x\"\n";

fn section(address: &str, more: &str) -> String {
    format!("[backends.vault]\ntype = \"vault\"\naddress = \"{address}\"\n{more}\n{SERVICES}")
}

/// What the daemon says of the server: in `status`, and in `doctor`, which fails by it.
#[track_caller]
fn trouble(daemon: &Daemon) -> String {
    let status = daemon.secretfs(&["--json", "status"], b"").expect_ok();
    let status: Value = serde_json::from_slice(&status).unwrap();
    let backends = status["backends"].as_array().unwrap();
    let named = |name: &str| backends.iter().find(|backend| backend["name"] == name);
    assert_eq!(named("local").unwrap()["trouble"], Value::Null);
    let trouble = named("vault").unwrap()["trouble"].as_str().unwrap();
    let doctor = daemon.secretfs(&["doctor"], b"");
    let said = String::from_utf8(doctor.stdout.clone()).unwrap();
    assert!(
        doctor.code() == 1 && said.contains(trouble),
        "{trouble}: {said}"
    );
    trouble.to_owned()
}

#[test]
fn a_machine_without_certificates_needs_ours_alone() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let there = "https://127.0.0.1:1";
    let ca = |ca: &Path| format!("ca = \"{}\"", ca.display());
    let daemon = start(&section(there, ""));
    let said = trouble(&daemon);
    assert!(
        said.contains("backends.vault: TLS cannot be set up"),
        "{said}"
    );
    assert!(
        said.contains("ca-certificates") && said.contains("write ca = "),
        "{said}"
    );
    let daemon = start(&section(there, &ca(&authority.path())));
    assert!(trouble(&daemon).contains("Connection refused"));
    let daemon = start(&section("http://127.0.0.1:1", ""));
    assert!(trouble(&daemon).contains("Connection refused"));
}

#[test]
fn a_file_that_is_missing_is_the_trouble_of_its_server_alone_until_it_is_there() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let server = Impostor::start(&authority, answer());
    let (ca, token) = (folder.at("late.pem"), folder.at("token"));
    fs::write(&token, "t-1").unwrap();
    let more = format!(
        "ca = \"{}\"\nauth = {{ method = \"token\", file = \"{}\" }}",
        ca.display(),
        token.display()
    );
    let daemon = start(&section(server.address(), &more));
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(
        reader.cat(&daemon.path("local/a")).unwrap(),
        b"of the store"
    );
    for (content, says) in [
        (None, "late.pem: No such file or directory"),
        (
            Some("no certificate\n"),
            "late.pem: no certificates in PEM form",
        ),
    ] {
        if let Some(content) = content {
            fs::write(&ca, content).unwrap();
        }
        assert_eq!(reader.cat(&daemon.path("app/x")), Err(Errno::EIO));
        let said = trouble(&daemon);
        assert!(
            said.contains(says) && said.contains("or change `backends.vault.ca`"),
            "{said}"
        );
    }
    assert_eq!(server.requests().len(), 0);
    fs::copy(authority.path(), &ca).unwrap();
    let absent = || reader.cat(&daemon.path("app/x")) == Err(Errno::ENOENT);
    assert!(eventually(DEADLINE, absent), "{}", daemon.log());
}

#[test]
fn a_command_for_the_store_reads_no_server_s_files() {
    needs!();
    let own =
        "client = { certificate = \"/nonexistent/client.pem\", key = \"/nonexistent/client.key\" }
auth = { method = \"cert\" }";
    for (more, says) in [
        (
            "ca = \"/nonexistent/ca.pem\"",
            ["/nonexistent/ca.pem: ", "`backends.vault.ca`"],
        ),
        (
            own,
            ["/nonexistent/client.pem: ", "`backends.vault.client`"],
        ),
    ] {
        let services = section("https://127.0.0.1:1", more);
        let setup = Setup {
            services: &services,
            values: &[("local/a", b"of the store")],
            env: &[("VAULT_TOKEN", "t-1")],
            ..Setup::default()
        };
        let daemon = setup.prepare();
        let got = daemon.secretfs(&["get", "local/a"], b"").expect_ok();
        assert_eq!(got, b"of the store");
        daemon.put("local/b", b"new");
        // And who asks the server is told.
        let got = daemon.secretfs(&["get", "app/x"], b"");
        assert_eq!(got.code(), 5, "{got:?}");
        assert!(
            says.iter().all(|part| got.stderr.contains(part)),
            "{}",
            got.stderr
        );
    }
}
