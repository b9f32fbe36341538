//! Signing in with tokens and roles, and staying signed in.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use secretfs::backend::vault::settings::{Method, Settings};
use secretfs::backend::{Backend, BackendError};
use secretfs::clock::Clock;
use serde_json::{Value, json};

use crate::asking::{client, client_at, client_in, keep, read, settings, token_file};
use crate::common::daemon::Setup;
use crate::common::machine::{Need, has, needs};
use crate::common::probe::Who;
use crate::common::vault::Vault;

/// What is read.
pub(crate) const REFERENCE: &str = "b:secret/signing/a#x";
const FORBIDDEN: &str = "b:secret/forbidden/a#x";

/// Makes what is read, and a policy `signing` that allows it.
#[track_caller]
pub(crate) fn prepare(vault: &Vault) {
    vault.put("signing/a", json!({ "x": "yes" }));
    let rules = r#"path "secret/data/signing/*" { capabilities = ["read"] }"#;
    vault.policy("signing", rules);
}

/// An AppRole at a mount of its own, so that its sign-ins can be counted.
struct Role<'a> {
    vault: &'a Vault,
    mount: String,
    role_id: String,
    secret_id: PathBuf,
}

impl<'a> Role<'a> {
    #[track_caller]
    fn new(vault: &'a Vault, mount: &str, role: Value) -> Self {
        prepare(vault);
        vault.enable(&format!("auth/{mount}"), "approle");
        let place = format!("auth/{mount}/role/app");
        vault.call("POST", &place, role);
        let id = vault.call("GET", &format!("{place}/role-id"), Value::Null);
        let secret = vault.call("POST", &format!("{place}/secret-id"), Value::Null);
        let file = vault.at(&format!("secret-id-{mount}"));
        fs::write(&file, secret["data"]["secret_id"].as_str().unwrap()).unwrap();
        Self {
            vault,
            mount: mount.to_owned(),
            role_id: id["data"]["role_id"].as_str().unwrap().to_owned(),
            secret_id: file,
        }
    }

    fn method(&self) -> Method {
        Method::AppRole {
            mount: self.mount.clone(),
            role_id: self.role_id.clone(),
            secret_id: self.secret_id.clone(),
            wrapped: false,
        }
    }

    fn settings(&self) -> Settings {
        settings(self.vault, self.method())
    }

    fn sign_ins(&self) -> usize {
        self.vault.counted(&format!("auth/{}/login", self.mount))
    }

    /// Revokes all tokens that were got here.
    #[track_caller]
    fn revoke_all(&self) {
        let path = format!("sys/leases/revoke-prefix/auth/{}/login", self.mount);
        self.vault.call("POST", &path, Value::Null);
    }
}

fn is_refused(got: &Result<String, BackendError>) -> bool {
    matches!(got, Err(BackendError::Refused(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_s_file_may_change_at_any_time() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    prepare(vault);
    let first = vault.token(&["signing"], "1h");
    let method = token_file(vault, "signing", &first);
    let file = method.file().unwrap().to_owned();
    let client = client(&settings(vault, method));
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    let revoke = json!({ "token": first });
    vault.call("POST", "auth/token/revoke", revoke);
    assert!(is_refused(&read(&client, REFERENCE).await));
    fs::write(&file, vault.token(&["signing"], "1h")).unwrap();
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    // What is no token is told by its file's name and not by what stands in it.
    for (odd, says) in [("", "one word"), ("canary and more", "one word")] {
        fs::write(&file, odd).unwrap();
        let error = read(&client, REFERENCE).await.unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains("token-of-signing"),
            "{error}"
        );
        assert!(!error.contains("canary"), "{error}");
    }
    fs::remove_file(&file).unwrap();
    let error = read(&client, REFERENCE).await.unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    // As soon as there is one again it is taken.
    fs::write(&file, vault.token(&["signing"], "1h")).unwrap();
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_come_from_the_environment() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    prepare(vault);
    let token = vault.token(&["signing"], "1h");
    let settings = settings(vault, Method::Token { file: None });
    for name in ["VAULT_TOKEN", "BAO_TOKEN"] {
        let client = client_in(&settings, &[(name, &token)]);
        assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes", "{name}");
        client.end().await;
    }
    // It was given, so it is not ours to end.
    vault
        .call_as(&token, "GET", "auth/token/lookup-self", Value::Null)
        .unwrap();
    let error = read(&client(&settings), REFERENCE).await.unwrap_err();
    assert!(matches!(error, BackendError::Refused(_)), "{error}");
    assert!(error.to_string().contains("$VAULT_TOKEN"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approle_signs_in_once_and_ends_what_it_got() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let role = Role::new(
        vault,
        "approle-once",
        json!({ "token_policies": ["signing"] }),
    );
    let client = client(&role.settings());
    let reads = (0..20).map(|_| read(&client, REFERENCE));
    for got in futures_util::future::join_all(reads).await {
        assert_eq!(got.unwrap(), "yes");
    }
    assert_eq!(role.sign_ins(), 1);
    let lookup = || {
        let path = format!("sys/leases/lookup/auth/{}/login", role.mount);
        vault.call_as(vault.root_token(), "LIST", &path, Value::Null)
    };
    assert!(lookup().is_ok());
    client.end().await;
    assert_eq!(lookup().unwrap_err().0, 404);
    // Whoever is needed again comes again.
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    assert_eq!(role.sign_ins(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_role_is_refused_at_once_and_asked_about_once() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let role = Role::new(
        vault,
        "approle-wrong",
        json!({ "token_policies": ["signing"] }),
    );
    let mut wrong = role.settings();
    wrong.auth = Method::AppRole {
        mount: role.mount.clone(),
        role_id: "no-such-role".to_owned(),
        secret_id: role.secret_id.clone(),
        wrapped: false,
    };
    let wrong = client(&wrong);
    let clock = Clock::default();
    let start = clock.now();
    let reads = (0..50).map(|_| read(&wrong, REFERENCE));
    for got in futures_util::future::join_all(reads).await {
        let error = got.unwrap_err();
        assert!(matches!(error, BackendError::Refused(_)), "{error}");
        assert!(
            error.to_string().contains("check role_id and secret_id"),
            "{error}"
        );
    }
    assert!(clock.now() - start < Duration::from_secs(4));
    assert_eq!(role.sign_ins(), 1);
    // A place where nothing is mounted is no other thing.
    let mut nowhere = role.settings();
    nowhere.auth = Method::Jwt {
        mount: "nowhere".to_owned(),
        role: None,
        jwt: role.secret_id.clone(),
    };
    assert!(is_refused(&read(&client(&nowhere), REFERENCE).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forbidden_to_a_good_token_causes_no_sign_ins() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    let role = Role::new(&vault, "approle", json!({ "token_policies": ["signing"] }));
    let clock = Clock::manual();
    let client = client_at(&role.settings(), &clock);
    let revoked = || vault.counted("auth/token/revoke-self");
    for _ in 0..10 {
        assert!(is_refused(&read(&client, FORBIDDEN).await));
        assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    }
    assert_eq!((role.sign_ins(), revoked()), (1, 0));
    // Once a minute it is tried whether another token may do more, and that one is given back.
    for minute in 1..=3 {
        clock.advance(Duration::from_secs(61));
        for _ in 0..5 {
            assert!(is_refused(&read(&client, FORBIDDEN).await));
        }
        assert_eq!((role.sign_ins(), revoked()), (1 + minute, minute));
    }
    // Until it may.
    vault.put("forbidden/a", json!({ "x": "now" }));
    let rules = r#"path "secret/data/forbidden/*" { capabilities = ["read"] }"#;
    vault.policy("more", rules);
    let both = json!({ "token_policies": ["signing", "more"] });
    vault.call("POST", "auth/approle/role/app", both);
    assert!(is_refused(&read(&client, FORBIDDEN).await));
    clock.advance(Duration::from_secs(61));
    assert_eq!(read(&client, FORBIDDEN).await.unwrap(), "now");
    assert_eq!((role.sign_ins(), revoked()), (5, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_look_at_itself_causes_no_storm() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let blind = json!({ "token_policies": ["signing"], "token_no_default_policy": true });
    let role = Role::new(vault, "approle-blind", blind);
    let client = client(&role.settings());
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    for _ in 0..30 {
        assert!(is_refused(&read(&client, FORBIDDEN).await));
    }
    assert!(role.sign_ins() <= 3, "{}", role.sign_ins());
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_behind_our_back_is_replaced_once() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let role = Role::new(
        vault,
        "approle-revoked",
        json!({ "token_policies": ["signing"] }),
    );
    let client = client(&role.settings());
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    role.revoke_all();
    let reads = (0..20).map(|_| read(&client, REFERENCE));
    for got in futures_util::future::join_all(reads).await {
        assert_eq!(got.unwrap(), "yes");
    }
    assert_eq!(role.sign_ins(), 2);
    // With its role gone it is refused, and served again soon after the role is back.
    let place = format!("auth/{}/role/app", role.mount);
    vault.call("DELETE", &place, Value::Null);
    role.revoke_all();
    sleep(Duration::from_secs(5));
    assert!(is_refused(&read(&client, REFERENCE).await));
    for _ in 0..10 {
        assert!(is_refused(&read(&client, REFERENCE).await));
    }
    assert_eq!(role.sign_ins(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_secret_id_is_unwrapped_by_one() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let role = Role::new(
        vault,
        "approle-wrapped",
        json!({ "token_policies": ["signing"] }),
    );
    let place = format!("auth/{}/role/app/secret-id", role.mount);
    let wrapping = vault.wrapped(&place, &json!({}));
    fs::write(&role.secret_id, &wrapping).unwrap();
    let mut settings = role.settings();
    settings.auth = Method::AppRole {
        mount: role.mount.clone(),
        role_id: role.role_id.clone(),
        secret_id: role.secret_id.clone(),
        wrapped: true,
    };
    let (one, other) = (client(&settings), client(&settings));
    assert_eq!(read(&one, REFERENCE).await.unwrap(), "yes");
    let error = read(&other, REFERENCE).await.unwrap_err();
    assert!(matches!(error, BackendError::Refused(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("somebody else has unwrapped it") && text.contains("secret-id-"),
        "{text}"
    );
    assert!(!text.contains(&wrapping), "{text}");
    // The first keeps what it has, for when it has to sign in again.
    role.revoke_all();
    assert_eq!(read(&one, REFERENCE).await.unwrap(), "yes");
    // And another wrapping helps the other.
    fs::write(&role.secret_id, vault.wrapped(&place, &json!({}))).unwrap();
    assert_eq!(read(&other, REFERENCE).await.unwrap(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_while_it_can_be_and_then_replaced() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::start();
    let short = json!({ "token_policies": ["signing"], "token_ttl": "3s", "token_max_ttl": "7s" });
    let role = Role::new(&vault, "approle", short);
    let client = client(&role.settings());
    let kept = keep(&client);
    // Nobody reads at first: what is not needed is not asked for.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(role.sign_ins(), 0);
    let clock = Clock::default();
    let start = clock.now();
    while clock.now() - start < Duration::from_secs(13) {
        assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(kept);
    let renewed = vault.counted("auth/token/renew-self");
    let sign_ins = role.sign_ins();
    assert!((3..=14).contains(&renewed), "{renewed}");
    assert!((2..=5).contains(&sign_ins), "{sign_ins}");
    // No read met a token that had ended: then the server would have been asked about it.
    assert_eq!(vault.counted("auth/token/lookup-self"), 0);
}

#[test]
fn a_daemon_stays_signed_in_and_signs_out() {
    needs!(Need::Vault);
    let vault = Vault::start();
    let short = json!({ "token_policies": ["signing"], "token_ttl": "2s" });
    let role = Role::new(&vault, "approle", short);
    let given = vault.token(&["signing"], "1h");
    fs::write(vault.at("given"), &given).unwrap();
    let services = format!(
        r#"
[backends.role]
type = "vault"
address = "{address}"
ca = "{ca}"
auth = {{ method = "approle", role_id = "{role_id}", secret_id = {{ file = "{secret_id}" }} }}
[backends.given]
type = "vault"
address = "{address}"
ca = "{ca}"
auth = {{ method = "token", file = "{given}" }}
[backends.wrong]
type = "vault"
address = "{address}"
ca = "{ca}"
auth = {{ method = "approle", mount = "other", role_id = "none", secret_id = {{ file = "{secret_id}" }} }}
[services.app]
allow = [{{ uid = 4001 }}]
[services.app.secrets]
role = "role:secret/signing/a#x"
given = "given:secret/signing/a#x"
wrong = "wrong:secret/signing/a#x"
"#,
        address = vault.address(),
        ca = vault.ca().display(),
        role_id = role.role_id,
        secret_id = role.secret_id.display(),
        given = vault.at("given").display(),
    );
    let setup = Setup {
        services: &services,
        env: &[("SECRETFS_LOG", "trace")],
        ..Setup::default()
    };
    vault.enable("auth/other", "approle");
    let mut daemon = setup.start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let clock = Clock::default();
    let start = clock.now();
    for _ in 0..20 {
        let refused = reader.cat(&daemon.path("app/wrong"));
        assert_eq!(refused, Err(Errno::EACCES));
    }
    assert!(clock.now() - start < Duration::from_secs(4));
    assert_eq!(vault.counted("auth/other/login"), 1);
    for name in ["role", "given"] {
        let path = daemon.path("app").join(name);
        assert_eq!(reader.cat(&path).unwrap(), b"yes", "{name}");
    }
    // Nobody reads, and it stays signed in.
    sleep(Duration::from_secs(5));
    let renewed = vault.counted("auth/token/renew-self");
    assert!((2..=8).contains(&renewed), "{renewed}");
    assert_eq!(role.sign_ins(), 1);
    drop(reader);
    daemon.stop();
    assert_eq!(vault.counted("auth/token/revoke-self"), 1);
    let lookup = vault.call_as(&given, "GET", "auth/token/lookup-self", Value::Null);
    assert!(lookup.is_ok(), "{lookup:?}");
    let log = daemon.log();
    let secret_id = fs::read_to_string(&role.secret_id).unwrap();
    for secret in [given.as_str(), &secret_id, &role.role_id, "hvs."] {
        assert!(!log.contains(secret), "{log}");
    }
    let audit = fs::read_to_string(daemon.at("log/audit.jsonl")).unwrap();
    assert!(audit.contains("\"refused\""), "{audit}");
}
