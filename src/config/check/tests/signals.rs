//! The brokers.

use super::*;
use crate::signal::broker::{Brokers, Nats, SignIn};

fn signals(text: &str) -> Brokers {
    parse(&format!("[signals]\n{text}\n")).unwrap().signals
}

#[test]
fn a_broker_has_a_place_a_subject_and_a_way_in() {
    assert_eq!(parse("").unwrap().signals, Brokers::default());
    let bare = signals("nats = { url = \"tls://n.example\" }");
    let nats = |url: &str, sign_in| Nats {
        url: url.to_owned(),
        subject: "secretfs.changes".to_owned(),
        ca: None,
        sign_in,
    };
    assert_eq!(bare.nats, Some(nats("tls://n.example:4222", None)));
    let token = signals("nats = { url = \"nats://[::1]:7/\", token = { file = \"/t\" } }");
    let sign_in = Some(SignIn::Token("/t".into()));
    assert_eq!(token.nats, Some(nats("nats://[::1]:7", sign_in)));
    let whole = signals(
        "[signals.nats]\nurl = \"tls://n.example:1\"\nsubject = \"a.b\"\nca = \"/ca\"\ncredentials = { file = \"/c\" }",
    );
    assert_eq!(
        whole.nats,
        Some(Nats {
            subject: "a.b".to_owned(),
            ca: Some("/ca".into()),
            ..nats("tls://n.example:1", Some(SignIn::Credentials("/c".into())))
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
        ("", "`nats` is missing"),
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
    ] {
        let said = said(nats);
        assert!(said.contains(expected), "{nats}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
