//! Secrets of a real server, read from files.

use nix::errno::Errno;
use secretfs::backend::{Backend, BackendError, Reference};
use serde_json::json;

use crate::asking::{client, read, settings, token_file};
use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, has, needs};
use crate::common::probe::Who;
use crate::common::vault::{Vault, section};

const READER: u32 = 4001;

pub(crate) fn start(vault: &Vault, name: &str, more: &str) -> Daemon {
    let token = vault.at(&format!("token-{name}"));
    std::fs::write(&token, vault.root_token()).unwrap();
    let services = section(vault, &token, more);
    Setup {
        services: &services,
        ..Setup::default()
    }
    .start()
}

#[test]
fn a_field_a_record_a_version_and_a_folder_are_files() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    vault.put(
        "reading/web",
        json!({ "user": "u1", "password": "canary-1", "port": 5432 }),
    );
    vault.put(
        "reading/web",
        json!({ "user": "u2", "password": "canary-2", "port": 5432 }),
    );
    vault.put("reading/lone", json!({ "value": "raw" }));
    vault.call("POST", "kv1/reading", json!({ "key": "old", "n": 1 }));
    let daemon = start(
        vault,
        "reading",
        r#"
[services.bound]
allow = [{ uid = 4001 }]
[services.bound.secrets]
password = "vault:secret/reading/web#password"
port = "vault:secret/reading/web#port"
record = "vault:secret/reading/web"
first = "vault:secret/reading/web#password@1"
older = "vault:kv1/reading#key"
absent = "vault:secret/reading/none#x"
nofield = "vault:secret/reading/web#none"
nomount = "vault:nowhere/x#y"
[services.fields]
source = "vault:secret/reading/web"
allow = [{ uid = 4001 }]
[services.folder]
source = "vault:secret/reading/"
allow = [{ uid = 4001 }]
[services.plain]
source = "vault:kv1/reading"
allow = [{ uid = 4001 }]
"#,
    );
    let mut reader = daemon.probe(&Who::uid(READER));
    let mut cat = |path: &str| {
        let read = reader.cat(&daemon.path(path));
        read.map(|bytes| String::from_utf8(bytes).unwrap())
    };
    for (path, expected) in [
        ("bound/password", Ok("canary-2")),
        ("bound/port", Ok("5432")),
        ("bound/first", Ok("canary-1")),
        ("bound/older", Ok("old")),
        ("bound/absent", Err(Errno::ENOENT)),
        ("bound/nofield", Err(Errno::ENOENT)),
        ("fields/user", Ok("u2")),
        ("fields/none", Err(Errno::ENOENT)),
        ("folder/lone", Ok("raw")),
        ("plain/key", Ok("old")),
    ] {
        assert_eq!(cat(path), expected.map(str::to_owned), "{path}");
    }
    let record = cat("bound/record").unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        record,
        json!({ "user": "u2", "password": "canary-2", "port": 5432 })
    );
    assert_eq!(cat("folder/web").unwrap(), cat("bound/record").unwrap());
    let mut names = |path: &str| {
        let mut names = reader.list(&daemon.path(path)).unwrap();
        names.sort();
        names
    };
    assert_eq!(names("fields"), ["password", "port", "user"]);
    assert_eq!(names("folder"), ["lone", "web"]);
    assert_eq!(names("plain"), ["key", "n"]);
}

/// Names that mean something in a URL, in a reference or nowhere.
const ODD: [&str; 8] = [
    "a b",
    "50%",
    "50%25",
    "a+b",
    "q?version=1",
    "h#x",
    "zwölf",
    "at@2",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_name_may_hold_anything() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let client = client(&settings(
        vault,
        token_file(vault, "odd", vault.root_token()),
    ));
    for (number, name) in ODD.iter().enumerate() {
        let encode = |odd: &[char]| -> String {
            let encoded = name
                .chars()
                .map(|c| match odd.contains(&c) || !c.is_ascii() {
                    true => c.to_string().bytes().map(|b| format!("%{b:02X}")).collect(),
                    false => c.to_string(),
                });
            encoded.collect()
        };
        let url = encode(&[' ', '%', '?', '#', '+', '@']);
        let value = number.to_string();
        // Twice: a query that was let through would give the first version.
        for text in ["before", &value] {
            let path = format!("secret/data/odd/{url}");
            vault.call("POST", &path, json!({ "data": { "x": text } }));
        }
        vault.call("POST", &format!("kv1/odd/{url}"), json!({ "x": value }));
        let name = encode(&['%', '?', '#', '@']);
        for mount in ["secret", "kv1"] {
            let reference = format!("b:{mount}/odd/{name}#x");
            let got = read(&client, &reference).await;
            assert_eq!(got.as_ref(), Ok(&value), "{reference}");
        }
        let listed = client.list(&format!("secret/odd/{}", ODD[number])).await;
        assert_eq!(listed.unwrap(), ["x".parse().unwrap()], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_s_fields_are_listed_with_no_right_but_to_read_it() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    for name in ["both", "data", "subkeys", "deleted"] {
        vault.put(
            &format!("listed/{name}"),
            json!({ "b": "1", "a": { "c": 2 } }),
        );
    }
    vault.delete("listed/deleted");
    vault.policy(
        "listed",
        r#"
path "secret/data/listed/both" { capabilities = ["read"] }
path "secret/subkeys/listed/both" { capabilities = ["read"] }
path "secret/data/listed/data" { capabilities = ["read"] }
path "secret/data/listed/deleted" { capabilities = ["read"] }
path "secret/data/listed/none" { capabilities = ["read"] }
path "secret/subkeys/listed/subkeys" { capabilities = ["read"] }
"#,
    );
    let token = token_file(vault, "listed", &vault.token(&["listed"], "1h"));
    let client = client(&settings(vault, token));
    for name in ["both", "data", "subkeys"] {
        let listed = client.list(&format!("secret/listed/{name}")).await.unwrap();
        let names: Vec<&str> = listed.iter().map(secretfs::secret::Name::as_str).collect();
        assert_eq!(names, ["a", "b"], "{name}");
    }
    for name in ["deleted", "none"] {
        let listed = client.list(&format!("secret/listed/{name}")).await;
        assert!(
            matches!(listed, Err(BackendError::Absent(_))),
            "{name}: {listed:?}"
        );
    }
    for path in ["secret/listed/other", "secret/listed/"] {
        let listed = client.list(path).await;
        assert!(
            matches!(listed, Err(BackendError::Refused(_))),
            "{path}: {listed:?}"
        );
    }
    // Where we may read a value and not what is said about it, that is a no.
    let told = client
        .version(&"b:secret/listed/both".parse().unwrap())
        .await;
    assert!(matches!(told, Err(BackendError::Refused(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_below_no_mount_or_none_of_ours_is_never_said_to_be_away() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    vault.policy(
        "nothing",
        r#"path "secret/data/nothing/*" { capabilities = ["read"] }"#,
    );
    for (name, token) in [
        ("root", vault.root_token().to_owned()),
        ("some", vault.token(&["nothing"], "1h")),
    ] {
        let token = token_file(vault, &format!("nothing-{name}"), &token);
        let client = client(&settings(vault, token));
        for path in [
            "nowhere/a/b",
            "kv1",
            "secret",
            "kv1/none",
            "secret/nothing/a",
            "sys/none",
            "cubbyhole/a",
        ] {
            let reference: Reference = format!("b:{path}#x").parse().unwrap();
            let got = client.read(&reference).await;
            let fits = matches!(
                got,
                Err(BackendError::Absent(_) | BackendError::Refused(_) | BackendError::Unusable(_))
            );
            assert!(fits, "{name}: {path}: {got:?}");
            let listed = client.list(&format!("{path}/")).await;
            let fits = matches!(
                listed,
                Ok(_)
                    | Err(BackendError::Absent(_)
                        | BackendError::Refused(_)
                        | BackendError::Unusable(_))
            );
            assert!(fits, "{name}: {path}/: {listed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_moved_or_upgraded_is_found_again() {
    if !has(&[Need::Vault]) {
        return;
    }
    let vault = Vault::shared();
    let client = client(&settings(
        vault,
        token_file(vault, "moved", vault.root_token()),
    ));
    let reference = "b:moved/a#x";
    let mount = |version: &str| {
        let options = json!({ "type": "kv", "options": { "version": version } });
        vault.call("POST", "sys/mounts/moved", options);
    };
    let write = |path: &str, body: serde_json::Value| {
        // A new engine needs a moment.
        let done = || {
            vault
                .call_as(vault.root_token(), "POST", path, body.clone())
                .is_ok()
        };
        assert!(crate::common::eventually(crate::common::DEADLINE, done));
    };
    mount("1");
    write("moved/a", json!({ "x": "1" }));
    assert_eq!(read(&client, reference).await.unwrap(), "1");
    vault.call("DELETE", "sys/mounts/moved", json!(null));
    assert!(read(&client, reference).await.is_err());
    mount("2");
    write("moved/data/a", json!({ "data": { "x": "2" } }));
    // The first answer that does not fit makes it look again.
    let mut got = read(&client, reference).await;
    if got.is_err() {
        got = read(&client, reference).await;
    }
    assert_eq!(got.unwrap(), "2");
}
