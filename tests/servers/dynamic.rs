//! What a server makes when it is asked: users, certificates, tokens, and what it computes.

use std::time::Duration;

use secretfs::backend::vault::Vault as Client;
use secretfs::backend::{Backend, BackendError, Fetched, Lease, Reference, field};
use serde_json::{Value, json};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::asking::{client, read, settings, token_file};
use crate::common::machine::{Need, has, needs};
use crate::common::probe::Who;
use crate::common::vault::Vault;
use crate::common::{DEADLINE, eventually};
use crate::reading::start;

fn rooted(vault: &Vault, name: &str) -> Client {
    client(&settings(
        vault,
        token_file(vault, name, vault.root_token()),
    ))
}

async fn fetch(client: &Client, reference: &str) -> Result<Fetched, BackendError> {
    client.read(&reference.parse().unwrap()).await
}

fn part(fetched: &Fetched, name: &str) -> String {
    let value = field(&fetched.value, name).unwrap();
    String::from_utf8(value.expose().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_a_database_lives_as_long_as_its_lease() {
    if !has(&[Need::Vault, Need::Postgres]) {
        return;
    }
    let vault = Vault::start();
    let database = vault.database("20s", "1h");
    let client = rooted(&vault, "database");
    let reference: Reference = format!("b:{}", database.credentials()).parse().unwrap();
    let fetched = client.read(&reference).await.unwrap();
    let (user, password) = (part(&fetched, "username"), part(&fetched, "password"));
    assert!(database.lets_in(&user, &password));
    let lease = fetched.lease.clone().unwrap();
    assert_eq!(
        (lease.duration, lease.renewable),
        (Duration::from_secs(20), true)
    );
    let id = lease.id.clone().unwrap();
    assert_eq!(id.rsplit('/').next(), Some(fetched.version.as_str()));
    // Only reading tells which it would be, and each reading makes another: nothing else may read.
    assert_eq!(client.version(&reference).await.unwrap(), None);
    let previous = client.previous(&reference, &fetched.version).await;
    assert!(
        matches!(previous, Err(BackendError::Absent(_))),
        "{previous:?}"
    );
    assert_eq!(client.list(&reference.path).await.unwrap(), []);
    assert_eq!(database.users(), [user.as_str()]);
    let other = client.read(&reference).await.unwrap();
    assert_ne!(other.version, fetched.version);
    assert_ne!(part(&other, "username"), user);

    let renewed = client.renew(&lease).await.unwrap();
    assert_eq!(renewed.id, lease.id);
    assert!(
        renewed.renewable && renewed.duration >= Duration::from_secs(19),
        "{renewed:?}"
    );
    client.revoke(&renewed).await.unwrap();
    assert!(eventually(DEADLINE, || !database.lets_in(&user, &password)));
    assert!(database.has(&part(&other, "username")));
    // What has ended ends again without an error, and is not renewed.
    client.revoke(&renewed).await.unwrap();
    let error = client.renew(&renewed).await.unwrap_err();
    assert!(matches!(error, BackendError::Absent(_)), "{error}");
    let unknown = Lease {
        id: Some(format!("{}/none", database.credentials())),
        ..lease
    };
    let error = client.renew(&unknown).await.unwrap_err();
    assert!(matches!(error, BackendError::Absent(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_at_its_end_is_not_said_to_last() {
    if !has(&[Need::Vault, Need::Postgres]) {
        return;
    }
    let vault = Vault::start();
    let database = vault.database("5s", "6s");
    let client = rooted(&vault, "short");
    let fetched = fetch(&client, &format!("b:{}", database.credentials()))
        .await
        .unwrap();
    let user = part(&fetched, "username");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let renewed = client.renew(&fetched.lease.unwrap()).await.unwrap();
    assert!(renewed.duration <= Duration::from_secs(4), "{renewed:?}");
    assert!(eventually(DEADLINE, || !database.has(&user)));
    let error = client.renew(&renewed).await.unwrap_err();
    assert!(matches!(error, BackendError::Absent(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_with_its_key_and_lives_until_it_ends() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    vault.enable("mounts/pki", "pki");
    let root = json!({ "common_name": "the tests' root", "ttl": "24h" });
    vault.call("POST", "pki/root/generate/internal", root);
    let role = json!({ "allow_any_name": true, "enforce_hostnames": false, "max_ttl": "12h" });
    vault.call("POST", "pki/roles/web", role);
    let client = rooted(vault, "pki");
    let reference = "b:pki/issue/web?common_name=web.example&alt_names=a.example,b.example&ttl=2h";
    let fetched = fetch(&client, reference).await.unwrap();
    let lease = fetched.lease.clone().unwrap();
    assert_eq!((&lease.id, lease.renewable), (&None, false));
    let left = lease.duration.as_secs();
    assert!((7_100..=7_260).contains(&left), "{left}");
    assert_eq!(fetched.version.as_str(), part(&fetched, "serial_number"));
    // A server takes them together.
    let certificate = CertificateDer::from_pem_slice(part(&fetched, "certificate").as_bytes());
    let key = PrivateKeyDer::from_pem_slice(part(&fetched, "private_key").as_bytes());
    let built = ServerConfig::builder_with_provider(std::sync::Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.unwrap()], key.unwrap());
    assert!(built.is_ok(), "{built:?}");
    assert_ne!(
        fetch(&client, reference).await.unwrap().version,
        fetched.version
    );
    // It cannot be renewed, and its end needs nobody.
    let error = client.renew(&lease).await.unwrap_err();
    assert!(matches!(error, BackendError::Refused(_)), "{error}");
    client.revoke(&lease).await.unwrap();

    for (odd, says) in [
        (
            "b:pki/issue/web?ttl=1h",
            "does not take such a request (400)",
        ),
        (
            "b:pki/issue/none?common_name=x",
            "does not take such a request (400)",
        ),
        ("b:pki/issue/web", "does not take such a request (405)"),
    ] {
        let error = fetch(&client, odd).await.unwrap_err();
        assert!(matches!(error, BackendError::Unusable(_)), "{odd}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains("see the reference"),
            "{text}"
        );
    }
    let only_read = fetch(&client, "b:pki/cert/ca").await.unwrap();
    assert!(part(&only_read, "certificate").contains("BEGIN CERTIFICATE"));
    assert_eq!(only_read.lease, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_path_is_read_or_written() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    vault.enable("mounts/transit", "transit");
    vault.call("POST", "transit/keys/k", json!({ "type": "ecdsa-p256" }));
    let client = rooted(vault, "other");
    // What is only read is what it was until it changes.
    let reference = "b:transit/keys/k#latest_version";
    assert_eq!(read(&client, reference).await.unwrap(), "1");
    let (first, again) = (
        fetch(&client, reference).await.unwrap(),
        fetch(&client, reference).await.unwrap(),
    );
    assert_eq!((&first.version, first.lease), (&again.version, None));
    vault.call("POST", "transit/keys/k/rotate", Value::Null);
    assert_eq!(read(&client, reference).await.unwrap(), "2");
    assert_ne!(
        fetch(&client, reference).await.unwrap().version,
        first.version
    );

    // What is written is not made anew all the time, even where the server does not say how long it lives.
    let random = "b:transit/random?bytes=16&format=hex#random_bytes";
    let made = read(&client, random).await.unwrap();
    assert_eq!(made.len(), 32);
    let lease = fetch(&client, random).await.unwrap().lease.unwrap();
    assert_eq!(
        (lease.id, lease.duration),
        (None, Duration::from_secs(3600))
    );

    vault.policy(
        "made",
        r#"path "secret/data/made/*" { capabilities = ["read"] }"#,
    );
    vault.put("made/a", json!({ "x": "yes" }));
    let fetched = fetch(&client, "b:auth/token/create?policies=made&ttl=90s")
        .await
        .unwrap();
    let token = part(&fetched, "client_token");
    assert!(
        vault
            .call_as(&token, "GET", "secret/data/made/a", Value::Null)
            .is_ok()
    );
    assert_eq!(fetched.lease.unwrap().duration, Duration::from_secs(90));

    let error = fetch(&client, "b:secret/made/a?x=y").await.unwrap_err();
    assert!(error.to_string().contains("takes no arguments"), "{error}");
}

#[test]
fn a_whole_record_is_one_file_and_one_user() {
    needs!(Need::Vault, Need::Postgres);
    let vault = Vault::start();
    let database = vault.database("1h", "2h");
    let services = "[services.app]\nallow = [{ uid = 4001 }]\n[services.app.secrets]\ndb = \"vault:database/creds/readonly\"\n";
    let daemon = start(&vault, "record", services);
    let mut reader = daemon.probe(&Who::uid(4001));
    let first = reader.cat(&daemon.path("app/db")).unwrap();
    let record: Value = serde_json::from_slice(&first).unwrap();
    let [user, password] = ["username", "password"].map(|name| record[name].as_str().unwrap());
    assert!(database.lets_in(user, password));
    assert_eq!(reader.cat(&daemon.path("app/db")).unwrap(), first);
    assert_eq!(database.users(), [user]);
}
