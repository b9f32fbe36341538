//! Signing in with what others vouch for: JSON web tokens, Kubernetes, certificates.

use std::fs;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secretfs::backend::vault::settings::{ClientCertificate, Method};
use secretfs::backend::{Backend, BackendError};
use secretfs::clock::Clock;
use serde_json::{Value, json};

use crate::asking::{at, client, read, settings};
use crate::common::impostor::{Answer, Impostor};
use crate::common::machine::{Need, has};
use crate::common::vault::Vault;
use crate::signing::{REFERENCE, prepare};

/// Who signs tokens.
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        let text = STANDARD.encode(der.as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    /// A token that ends so many seconds from now.
    fn sign(&self, ends: i64) -> String {
        let now = Clock::default().timestamp().as_second();
        let claims =
            json!({ "sub": "billing", "aud": "secretfs", "iat": now - 600, "exp": now + ends });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!(
            "{}.{}",
            part(json!({ "alg": "ES256", "typ": "JWT" })),
            part(claims)
        );
        let signed = self.0.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed.as_ref()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_web_token_is_read_anew_at_each_sign_in() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    prepare(vault);
    let issuer = Issuer::new();
    vault.enable("auth/jwt", "jwt");
    let keys = json!({ "jwt_validation_pubkeys": [issuer.pem()] });
    vault.call("POST", "auth/jwt/config", keys);
    let role = json!({
        "role_type": "jwt",
        "bound_audiences": ["secretfs"],
        "user_claim": "sub",
        "token_policies": ["signing"],
    });
    vault.call("POST", "auth/jwt/role/web", role);
    let file = vault.at("jwt");
    fs::write(&file, issuer.sign(600)).unwrap();
    let client = client(&settings(
        vault,
        Method::Jwt {
            mount: "jwt".to_owned(),
            role: Some("web".to_owned()),
            jwt: file.clone(),
        },
    ));
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    // It has ended, or another has signed it, when we have to sign in again.
    for wrong in [issuer.sign(-300), Issuer::new().sign(600)] {
        client.end().await;
        fs::write(&file, &wrong).unwrap();
        let error = read(&client, REFERENCE).await.unwrap_err();
        assert!(matches!(error, BackendError::Refused(_)), "{error}");
        assert!(error.to_string().contains("check role and jwt"), "{error}");
    }
    fs::write(&file, issuer.sign(600)).unwrap();
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_and_a_namespace_are_asked_for_as_documented() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let none = Answer::json(404, &json!({ "errors": [] }));
    let server = Impostor::start(vault.authority(), none);
    let login =
        json!({ "auth": { "client_token": "t-1", "lease_duration": 60, "renewable": true } });
    server.answer("/v1/auth/kubernetes/login", Answer::json(200, &login));
    let mount =
        json!({ "data": { "path": "secret/", "type": "kv", "options": { "version": "2" } } });
    server.answer("/v1/sys/internal/ui/mounts/", Answer::json(200, &mount));
    let record = json!({ "data": { "data": { "x": "yes" }, "metadata": { "version": 1, "created_time": "" } } });
    server.answer("/v1/secret/data/", Answer::json(200, &record));
    server.answer("/v1/sys/health", Answer::json(200, &json!({})));
    server.answer("/v1/auth/token/", Answer::json(204, &json!({})));
    let file = vault.at("service-account");
    fs::write(&file, "a.service.account\n").unwrap();
    let mut settings = at(
        server.address(),
        vault.ca(),
        Method::Jwt {
            mount: "kubernetes".to_owned(),
            role: Some("billing".to_owned()),
            jwt: file,
        },
    );
    settings.namespace = Some("team-a/eu".to_owned());
    let client = client(&settings);
    assert_eq!(read(&client, REFERENCE).await.unwrap(), "yes");
    secretfs::backend::Backend::check(&client).await.unwrap();
    client.end().await;
    let requests = server.requests();
    let login = &requests[0];
    assert_eq!(
        (&*login.method, &*login.path),
        ("POST", "/v1/auth/kubernetes/login")
    );
    let body: Value = serde_json::from_str(&login.body).unwrap();
    assert_eq!(
        body,
        json!({ "jwt": "a.service.account", "role": "billing" })
    );
    assert_eq!(login.header("x-vault-token"), None);
    for request in &requests {
        // The health is the whole server's: no namespace has one.
        let of_all = request.path == "/v1/sys/health";
        let expected = (!of_all).then_some("team-a/eu");
        assert_eq!(
            request.header("x-vault-namespace"),
            expected,
            "{}",
            request.path
        );
        assert_eq!(request.header("x-vault-request"), Some("true"));
    }
    let with_token = requests
        .iter()
        .filter(|request| request.header("x-vault-token") == Some("t-1"));
    assert_eq!(with_token.count(), 3, "{requests:?}");
    assert_eq!(requests.last().unwrap().path, "/v1/auth/token/revoke-self");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_signs_in() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    prepare(vault);
    vault.enable("auth/cert-signing", "cert");
    let trusted = json!({
        "certificate": fs::read_to_string(vault.ca()).unwrap(),
        "allowed_common_names": "billing",
        "token_policies": ["signing"],
    });
    vault.call("POST", "auth/cert-signing/certs/app", trusted);
    for (name, role, lets_in) in [
        (Some("billing"), Some("app"), true),
        (Some("billing"), None, true),
        (Some("billing"), Some("other"), false),
        (Some("somebody"), None, false),
        (None, None, false),
    ] {
        let mut settings = settings(
            vault,
            Method::Certificate {
                mount: "cert-signing".to_owned(),
                role: role.map(str::to_owned),
            },
        );
        settings.client = name.map(|name| {
            let (certificate, key) = vault.authority().client(name);
            ClientCertificate { certificate, key }
        });
        let got = read(&client(&settings), REFERENCE).await;
        match lets_in {
            true => assert_eq!(got.unwrap(), "yes", "{name:?} {role:?}"),
            false => {
                let error = got.unwrap_err();
                assert!(
                    matches!(error, BackendError::Refused(_)),
                    "{name:?}: {error}"
                );
                assert!(
                    error.to_string().contains("check client and role"),
                    "{error}"
                );
            }
        }
    }
}
