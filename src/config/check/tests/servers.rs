//! Servers, how they are signed in to, and what of them becomes a file.

use super::*;
use crate::backend::vault::settings::{Method, Settings};

#[test]
fn a_server_is_reached_and_signed_in_to_as_the_config_says() {
    let vault = |section: &str| {
        let config = parse(&format!("[backends.vault]\ntype = \"vault\"\n{section}")).unwrap();
        match config.backends.into_values().next() {
            Some(BackendConfig::Vault(settings)) => settings,
            other => panic!("{other:?}"),
        }
    };
    let bare = vault("");
    assert_eq!(bare.auth, Method::Token { file: None });
    assert_eq!((bare.address, bare.poll), (None, Settings::POLL));
    let given = vault("address = \"https://v.example:8200/\"\nnamespace = \"a/\"\npoll = \"0\"");
    assert_eq!(given.address.as_deref(), Some("https://v.example:8200"));
    assert_eq!(given.namespace.as_deref(), Some("a"));
    assert_eq!(given.poll, Duration::ZERO);
    let file = |path: &str| PathBuf::from(path);
    for (auth, expected) in [
        (
            r#"{ method = "token", file = "/t" }"#,
            Method::Token {
                file: Some(file("/t")),
            },
        ),
        (
            r#"{ method = "approle", mount = "a/b/", role_id = "r", secret_id = { file = "/s", wrapped = true } }"#,
            Method::AppRole {
                mount: "a/b".into(),
                role_id: "r".into(),
                secret_id: file("/s"),
                wrapped: true,
            },
        ),
        (
            r#"{ method = "jwt", jwt = { file = "/j" } }"#,
            Method::Jwt {
                mount: "jwt".into(),
                role: None,
                jwt: file("/j"),
            },
        ),
        (
            r#"{ method = "kubernetes", role = "r" }"#,
            Method::Jwt {
                mount: "kubernetes".into(),
                role: Some("r".into()),
                jwt: file("/var/run/secrets/kubernetes.io/serviceaccount/token"),
            },
        ),
    ] {
        assert_eq!(vault(&format!("auth = {auth}")).auth, expected, "{auth}");
    }
    let cert = "auth = { method = \"cert\" }\nclient = { certificate = \"/c\", key = \"/k\" }";
    let Method::Certificate { mount, role: None } = vault(cert).auth else {
        panic!("{cert}");
    };
    assert_eq!(mount, "cert");
}

#[test]
fn what_a_server_has_is_a_record_s_fields_or_the_records_of_a_folder() {
    let config = parse(
        "[backends.v]\ntype = \"vault\"\n[services.a]\nsource = \"v:secret/a\"\n[services.b]\nsource = \"v:secret/b/\"",
    )
    .unwrap();
    let reference = |service: &str| {
        let source = config.services[service].source.clone();
        source.unwrap().reference(&"x".parse().unwrap()).to_string()
    };
    assert_eq!(reference("a"), "v:secret/a#x");
    assert_eq!(reference("b"), "v:secret/b/x#.");
}

#[test]
fn a_service_can_sign_in_for_itself() {
    let config = parse(
        "[backends.v]\ntype = \"vault\"\n[services.a]\nsource = \"v:secret/a\"\nauth = { method = \"token\", file = \"/t\" }\n[services.a.secrets]\nx = \"v:secret/b#x\"\n[services.b]\nsource = \"v:secret/a\"",
    )
    .unwrap();
    let names: Vec<&str> = config.backends.keys().map(Name::as_str).collect();
    assert_eq!(names, ["v", "v@a"]);
    let (a, b) = (&config.services["a"], &config.services["b"]);
    let source = |service: &ServiceConfig| service.source.clone().unwrap().backend.to_string();
    assert_eq!((source(a), source(b)), ("v@a".to_owned(), "v".to_owned()));
    let bound = &a.secrets["x"].from[0];
    assert_eq!(bound.backend.as_str(), "v@a");
    // It is written as before, and is the same place.
    assert_eq!(bound.to_string(), "v:secret/b#x");
    assert!(bound.same_place(&"v:secret/b".parse().unwrap()));
}
