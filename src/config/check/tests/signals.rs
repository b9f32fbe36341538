//! The broker.

use super::*;
use crate::backend::vault::settings::ClientCertificate;
use crate::signal::broker::{Broker, Mqtt, Nats, SignIn};

fn signals(text: &str) -> Broker {
    let config = parse(&format!("[signals]\n{text}\n")).unwrap();
    config.signals.unwrap()
}

#[test]
fn a_broker_has_a_place_a_subject_and_a_way_in() {
    assert_eq!(parse("").unwrap().signals, None);
    let bare = signals("nats = { url = \"tls://n.example\" }");
    let nats = |url: &str, sign_in| Nats {
        url: url.to_owned(),
        subject: "secretfs.changes".to_owned(),
        ca: None,
        sign_in,
    };
    assert_eq!(bare, Broker::Nats(nats("tls://n.example:4222", None)));
    let token = signals("nats = { url = \"nats://[::1]:7/\", token = { file = \"/t\" } }");
    let sign_in = Some(SignIn::Token("/t".into()));
    assert_eq!(token, Broker::Nats(nats("nats://[::1]:7", sign_in)));
    let whole = signals(
        "[signals.nats]\nurl = \"tls://n.example:1\"\nsubject = \"a.b\"\nca = \"/ca\"\ncredentials = { file = \"/c\" }",
    );
    assert_eq!(
        whole,
        Broker::Nats(Nats {
            subject: "a.b".to_owned(),
            ca: Some("/ca".into()),
            ..nats("tls://n.example:1", Some(SignIn::Credentials("/c".into())))
        })
    );
}

#[test]
fn an_mqtt_broker_has_them_too() {
    let mqtt = |url: &str| Mqtt {
        url: url.to_owned(),
        topic: "secretfs/changes".to_owned(),
        ca: None,
        client: None,
        user: None,
        password: None,
    };
    for (url, expected) in [
        ("mqtts://m.example", "mqtts://m.example:8883"),
        ("mqtts://m.example:443/", "mqtts://m.example:443"),
        ("mqtt://localhost", "mqtt://localhost:1883"),
        ("mqtt://[::1]:7", "mqtt://[::1]:7"),
    ] {
        let bare = signals(&format!("mqtt = {{ url = \"{url}\" }}"));
        assert_eq!(bare, Broker::Mqtt(mqtt(expected)));
    }
    let whole = signals(
        "[signals.mqtt]\nurl = \"mqtts://m.example:1\"\ntopic = \"a/b\"\nca = \"/ca\"\nuser = \"n1\"\npassword = { file = \"/p\" }\nclient = { certificate = \"/c\", key = \"/k\" }",
    );
    assert_eq!(
        whole,
        Broker::Mqtt(Mqtt {
            topic: "a/b".to_owned(),
            ca: Some("/ca".into()),
            client: Some(ClientCertificate {
                certificate: "/c".into(),
                key: "/k".into(),
            }),
            user: Some("n1".to_owned()),
            password: Some("/p".into()),
            ..mqtt("mqtts://m.example:1")
        })
    );
}

#[test]
fn a_broker_that_cannot_be_is_named_with_its_mend() {
    let said = |nats: &str| {
        let errors = parse(&format!("[signals]\n{nats}\n")).unwrap_err();
        errors.to_string()
    };
    for (nats, expected) in [
        (
            "",
            "no broker is named: write nats = { url = \"tls://HOST:4222\" } or mqtt =",
        ),
        (
            "nats = { url = \"tls://a\" }\nmqtt = { url = \"mqtts://a\" }",
            "leave one of `nats` and `mqtt` out",
        ),
        ("kafka = 1\nnats = { url = \"tls://a\" }", "unknown key"),
        ("nats = {}", "`url` is missing: write url ="),
        (
            "nats = { url = 7 }",
            "signals.nats.url: write \"tls://HOST:4222\"",
        ),
        (
            "nats = { url = \"n.example\" }",
            "signals.nats.url: this is no URL",
        ),
        ("nats = { url = \"nats://n.example\" }", "write \"tls://…\""),
        ("nats = { url = \"wss://n.example\" }", "begin with tls://"),
        (
            "nats = { url = \"tls://u:p@n.example\" }",
            "has it in a file",
        ),
        (
            "nats = { url = \"tls://n.example/x\" }",
            "host and port alone",
        ),
        (
            "nats = { url = \"tls://a\", subject = \"a.*\" }",
            "no `*` or `>`",
        ),
        (
            "nats = { url = \"tls://a\", subject = \"a..b\" }",
            "words with dots",
        ),
        (
            "nats = { url = \"tls://a\", subject = \"a b\" }",
            "words with dots",
        ),
        (
            "nats = { url = \"tls://a\", ca = \"ca.pem\" }",
            "signals.nats.ca",
        ),
        (
            "nats = { url = \"tls://a\", token = \"s3cret\" }",
            "signals.nats.token",
        ),
        (
            "nats = { url = \"tls://a\", token = { file = \"/t\" }, credentials = { file = \"/c\" } }",
            "leave one of them out",
        ),
        (
            "nats = { url = \"tls://a\", token = { file = \"/secrets/t\" } }",
            "`signals.nats.token` stands inside of the mount",
        ),
        ("mqtt = {}", "`url` is missing: write url ="),
        (
            "mqtt = { url = \"m.example\" }",
            "signals.mqtt.url: this is no URL: write url = \"mqtts://",
        ),
        (
            "mqtt = { url = \"mqtt://m.example\" }",
            "write \"mqtts://…\"",
        ),
        (
            "mqtt = { url = \"tls://m.example\" }",
            "begin with mqtts://",
        ),
        (
            "mqtt = { url = \"mqtts://u:s3cret@m.example\" }",
            "keys of their own",
        ),
        (
            "mqtt = { url = \"mqtts://a\", topic = \"a/#\" }",
            "no `+` or `#`",
        ),
        (
            "mqtt = { url = \"mqtts://a\", topic = \"$share/a\" }",
            "words with slashes",
        ),
        (
            "mqtt = { url = \"mqtts://a\", subject = \"a\" }",
            "signals.mqtt.subject: unknown key",
        ),
        (
            "mqtt = { url = \"mqtts://a\", password = { file = \"/p\" } }",
            "`user` is missing",
        ),
        (
            "mqtt = { url = \"mqtts://a\", user = \"u\", password = \"s3cret\" }",
            "signals.mqtt.password",
        ),
        (
            "mqtt = { url = \"mqtts://a\", client = { certificate = \"/c\" } }",
            "`key` is missing",
        ),
        (
            "mqtt = { url = \"mqtt://localhost\", client = { certificate = \"/c\", key = \"/k\" } }",
            "with TLS alone",
        ),
        (
            "mqtt = { url = \"mqtts://a\", client = { certificate = \"/c\", key = \"/secrets/k\" } }",
            "`signals.mqtt.client` stands inside of the mount",
        ),
    ] {
        let said = said(nats);
        assert!(said.contains(expected), "{nats}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
