//! Whatever a server answers, reading it neither panics nor comes to be quoted.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;

use super::settings::{ClientCertificate, Method};
use super::*;
use crate::secret::SecretBytes;

const CANARY: &str = "canary-5b1c";

#[test]
fn who_shows_another_certificate_is_another_to_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let whereabouts = |name: &str| {
        let [certificate, key] =
            ["pem", "key"].map(|kind| folder.path().join(format!("{name}.{kind}")));
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let settings = Settings {
            address: Some("https://v.example:8200".to_owned()),
            ca: Some(certificate.clone()),
            client: Some(ClientCertificate { certificate, key }),
            namespace: None,
            poll: Settings::POLL,
            auth: Method::Certificate {
                mount: "cert".to_owned(),
                role: None,
            },
        };
        let vault = Vault::new(
            "vault".parse().unwrap(),
            &settings,
            &|_| None,
            Clock::manual(),
        );
        vault.unwrap().whereabouts().to_owned()
    };
    assert_eq!(whereabouts("a"), whereabouts("a"));
    assert_ne!(whereabouts("a"), whereabouts("b"));
}

/// JSON of any shape, with the members that answers have and the canary in many places.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        Just(CANARY.into()),
        Just("2026-11-25T10:00:00.123456789Z".into()),
        Just("".into()),
    ];
    let key = prop_oneof![
        Just("data"),
        Just("metadata"),
        Just("auth"),
        Just("keys"),
        Just("subkeys"),
        Just("version"),
        Just("versions"),
        Just("current_version"),
        Just("created_time"),
        Just("deletion_time"),
        Just("client_token"),
        Just("lease_id"),
        Just("lease_duration"),
        Just("expiration"),
        Just("1"),
        Just(CANARY),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|members: BTreeMap<String, serde_json::Value>| {
                    members.into_iter().collect()
                }),
        ]
    })
}

/// What becomes of an answer in every way that it can be read.
fn errors(body: &[u8]) -> Vec<BackendError> {
    let body = SecretBytes::new(body.to_vec());
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"test");
    let now = Timestamp::UNIX_EPOCH;
    let mounts = Mounts::default();
    let clock = Clock::manual();
    let read = [
        reply::record(&body, "x").err(),
        reply::plain(&body, "x", &key).err(),
        reply::dynamic(&body, "x", &key, true, None, now).err(),
        reply::dynamic(&body, "x", &key, false, None, now).err(),
        reply::renewed(&body, "x").err(),
        reply::signed_in(&body, "x").err(),
        reply::names(&body, "x").err(),
        reply::fields(&body, None, "x").err(),
        reply::fields(&body, Some("subkeys"), "x").err(),
        reply::versions(&body, "x", now).err(),
        mounts.learn("secret/x", &body, clock.now()).err(),
    ];
    read.into_iter().flatten().collect()
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic_or_is_quoted(json in json()) {
        for error in errors(json.to_string().as_bytes()) {
            prop_assert!(!error.to_string().contains(CANARY), "{error}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = errors(&bytes);
    }
}
