//! Whom we trust: a server whose certificate we do not is not asked for anything, and the error says what is to be done.

use std::fs;
use std::path::Path;

use secretfs::backend::BackendError;
use secretfs::backend::vault::settings::Method;
use serde_json::json;

use crate::asking::{at, client, read};
use crate::common::authority::Authority;
use crate::common::daemon::Setup;
use crate::common::folder::Folder;
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::needs;

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

/// What a daemon with this section says as it starts, on a machine without any certificates.
fn start(section: &str) -> Result<(), String> {
    let setup = Setup {
        services: section,
        env: &[
            ("SSL_CERT_FILE", "/nonexistent"),
            ("SSL_CERT_DIR", "/nonexistent"),
        ],
        ..Setup::default()
    };
    let mut daemon = setup.prepare();
    match daemon.try_start() {
        Ok(()) => Ok(()),
        Err(status) => {
            assert_eq!(status.code(), Some(2), "{}", daemon.log());
            Err(daemon.log())
        }
    }
}

#[test]
fn a_machine_without_certificates_needs_ours_alone() {
    needs!();
    let folder = Folder::new();
    let authority = Authority::new(folder.path());
    let section = |address: &str, ca: Option<&Path>| {
        let ca = ca.map_or_else(String::new, |ca| format!("ca = \"{}\"\n", ca.display()));
        format!("[backends.vault]\ntype = \"vault\"\naddress = \"{address}\"\n{ca}")
    };
    let there = "https://127.0.0.1:1";
    let said = start(&section(there, None)).unwrap_err();
    assert!(
        said.contains("backends.vault: TLS cannot be set up"),
        "{said}"
    );
    assert!(
        said.contains("ca-certificates") && said.contains("write ca = "),
        "{said}"
    );
    start(&section(there, Some(&authority.path()))).unwrap();
    start(&section("http://127.0.0.1:1", None)).unwrap();
    let empty = folder.at("empty.pem");
    fs::write(&empty, "no certificate\n").unwrap();
    let said = start(&section(there, Some(&empty))).unwrap_err();
    assert!(
        said.contains("empty.pem: no certificates in PEM form"),
        "{said}"
    );
}
