//! One line of a server's audit log: which records it says have changed.
//!
//! The line has the request's path in clear and every value as a keyed hash. It does not say of which version a KV engine
//! is, and older servers do not say where the path's mount ends. So one line may name several paths: each under which a
//! reference could have the record. Those that are none cost nothing, because nobody asks for them.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::backend::Version;

/// What a KV engine of version 2 puts between its mount and a record's path.
const PARTS: [&str; 5] = ["data", "metadata", "delete", "undelete", "destroy"];

/// A path has at most so many parts at which its mount may end.
const MAX_PATHS: usize = 8;

/// A record that may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path, as references write it (decoded).
    pub path: String,
    /// Which version it has now, if the line says so.
    pub version: Option<Version>,
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    #[serde(default)]
    error: Option<String>,
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    operation: String,
    path: String,
    #[serde(default)]
    mount_type: Option<String>,
    #[serde(default)]
    mount_point: Option<String>,
    #[serde(default)]
    namespace: Option<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(default)]
    path: String,
}

/// What a KV engine of version 2 answers to a write, and nothing else does.
#[derive(Deserialize)]
struct Answered {
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    version: u64,
    #[serde(rename = "created_time")]
    _created: IgnoredAny,
    #[serde(rename = "destroyed")]
    _destroyed: IgnoredAny,
}

/// The records of a namespace (the root's is empty) that have changed by what this line says.
#[must_use]
pub fn changes(line: &[u8], namespace: &str) -> Vec<Change> {
    // The device may be told to put something before each line.
    let start = line.iter().position(|byte| *byte == b'{');
    let Some(line) = start.and_then(|start| line.get(start..)) else {
        return Vec::new();
    };
    let Ok(Line {
        r#type,
        error,
        request,
    }) = serde_json::from_slice(line)
    else {
        return Vec::new();
    };
    let wrote = matches!(
        request.operation.as_str(),
        "create" | "update" | "patch" | "delete"
    );
    let is_kv = match request.mount_type.as_deref() {
        Some("kv" | "generic") => true,
        Some(_) => false,
        None => !["sys/", "auth/", "identity/", "cubbyhole/"]
            .iter()
            .any(|mount| request.path.starts_with(mount)),
    };
    let within = request.namespace.map(|namespace| namespace.path);
    let within = within.as_deref().unwrap_or_default().trim_matches('/');
    let failed = error.is_some_and(|error| !error.is_empty());
    if r#type != "response" || failed || !wrote || !is_kv || within != namespace.trim_matches('/') {
        return Vec::new();
    }
    let answered = match request.operation.as_str() {
        "delete" => None,
        _ => serde_json::from_slice::<Answered>(line).ok(),
    };
    let number = answered.map(|answered| answered.response.data.version);
    let path = request.path.trim_matches('/');
    let mount = request.mount_point.as_deref();
    let mut changes = records(path, mount.map(|mount| mount.trim_matches('/')));
    // A first version may be that of a record made anew, which had a first one before.
    let version = number.filter(|number| *number > 1);
    for change in &mut changes {
        change.version = version.map(|number| Version::new(number.to_string()));
    }
    // Of an engine of version 1, if the answer does not say otherwise.
    if number.is_none() {
        changes.push(Change {
            path: path.to_owned(),
            version: None,
        });
    }
    changes
}

/// The records that the path names if its mount, which ends somewhere in it, is of version 2.
fn records(path: &str, mount: Option<&str>) -> Vec<Change> {
    let mut found = Vec::new();
    for (at, _) in path.match_indices('/') {
        let (before, after) = path.split_at(at);
        let Some((part, record)) = after.trim_start_matches('/').split_once('/') else {
            continue;
        };
        let here = mount.is_none_or(|mount| mount == before);
        let change = Change {
            path: format!("{before}/{record}"),
            version: None,
        };
        if here
            && PARTS.contains(&part)
            && !record.is_empty()
            && found.len() < MAX_PATHS
            && !found.contains(&change)
        {
            found.push(change);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// As HashiCorp Vault 1.13.1 writes it.
    fn line(operation: &str, path: &str, data: Value) -> Value {
        json!({
            "time": "2026-11-25T20:45:00Z",
            "type": "response",
            "auth": { "client_token": "hmac-sha256:0", "policies": ["root"] },
            "request": {
                "id": "0", "client_id": "0", "operation": operation, "mount_type": "kv",
                "mount_accessor": "kv_6aef7534", "client_token": "hmac-sha256:1", "namespace": { "id": "root" },
                "path": path, "data": { "data": { "a": "hmac-sha256:2" } }, "remote_port": 45384,
            },
            "response": { "mount_type": "kv", "mount_accessor": "kv_6aef7534", "data": data },
        })
    }

    fn read(line: &Value, namespace: &str) -> Vec<(String, Option<String>)> {
        let changes = changes(line.to_string().as_bytes(), namespace).into_iter();
        changes
            .map(|change| {
                (
                    change.path,
                    change.version.map(|version| version.to_string()),
                )
            })
            .collect()
    }

    fn written(version: u64) -> Value {
        json!({
            "created_time": "hmac-sha256:3", "custom_metadata": null, "deletion_time": "hmac-sha256:4",
            "destroyed": false, "version": version,
        })
    }

    #[test]
    fn a_write_names_its_record_and_its_version() {
        let one = |path: &str, version: Option<&str>| (path.to_owned(), version.map(str::to_owned));
        for (operation, path, data, expected) in [
            (
                "update",
                "secret/data/a/b",
                written(3),
                vec![one("secret/a/b", Some("3"))],
            ),
            (
                "patch",
                "secret/data/a",
                written(4),
                vec![one("secret/a", Some("4"))],
            ),
            // It may be made anew, and have been there with the same number before.
            (
                "create",
                "secret/data/a",
                written(1),
                vec![one("secret/a", None)],
            ),
            // Where the mount ends is not known.
            (
                "create",
                "a/b/data/y",
                written(2),
                vec![one("a/b/y", Some("2"))],
            ),
            (
                "create",
                "a/data/data/y",
                written(2),
                vec![one("a/data/y", Some("2"))],
            ),
            (
                "delete",
                "secret/data/a",
                Value::Null,
                vec![one("secret/a", None), one("secret/data/a", None)],
            ),
            (
                "update",
                "secret/undelete/a",
                Value::Null,
                vec![one("secret/a", None), one("secret/undelete/a", None)],
            ),
            (
                "update",
                "secret/destroy/a",
                Value::Null,
                vec![one("secret/a", None), one("secret/destroy/a", None)],
            ),
            (
                "update",
                "secret/delete/a",
                Value::Null,
                vec![one("secret/a", None), one("secret/delete/a", None)],
            ),
            (
                "delete",
                "secret/metadata/a",
                Value::Null,
                vec![one("secret/a", None), one("secret/metadata/a", None)],
            ),
            ("create", "kv1/y/z", Value::Null, vec![one("kv1/y/z", None)]),
            // A field of that name says nothing.
            (
                "create",
                "kv1/y",
                json!({ "version": 7 }),
                vec![one("kv1/y", None)],
            ),
        ] {
            assert_eq!(
                read(&line(operation, path, data), ""),
                expected,
                "{operation} {path}"
            );
        }
    }

    #[test]
    fn a_newer_server_says_where_the_mount_ends() {
        let mut newer = line("update", "a/data/b/data/y", written(2));
        newer["request"]["mount_point"] = json!("a/data/b/");
        assert_eq!(
            read(&newer, ""),
            [("a/data/b/y".to_owned(), Some("2".to_owned()))]
        );
    }

    #[test]
    fn what_is_no_write_that_succeeded_is_nothing() {
        let good = line("update", "secret/data/a", written(3));
        assert_eq!(read(&good, "").len(), 1);
        for (pointer, value) in [
            ("/type", json!("request")),
            ("/error", json!("1 error occurred")),
            ("/request/operation", json!("read")),
            ("/request/operation", json!("list")),
            ("/request/mount_type", json!("system")),
            ("/request/namespace", json!({ "id": "x", "path": "team/" })),
            ("/request/path", json!(7)),
        ] {
            let mut other = good.clone();
            match pointer.trim_start_matches('/') {
                "error" => other["error"] = value,
                _ => *other.pointer_mut(pointer).unwrap() = value,
            }
            assert_eq!(read(&other, ""), [], "{pointer}");
        }
        let mut theirs = good;
        theirs["request"]["namespace"] = json!({ "id": "x", "path": "team/" });
        assert_eq!(read(&theirs, "team").len(), 1);
        for line in ["", "{", "[]", "{}", "\u{0}", "null"] {
            assert_eq!(changes(line.as_bytes(), ""), []);
        }
        let marked = format!("@cee: {}", line("update", "secret/data/a", written(3)));
        assert_eq!(changes(marked.as_bytes(), "").len(), 1);
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = changes(&bytes, "");
        }

        #[test]
        fn no_path_is_too_odd(path in "(data|metadata|[/é]|a){0,40}") {
            let changes = changes(line("update", &path, written(2)).to_string().as_bytes(), "");
            prop_assert!(changes.len() <= MAX_PATHS + 1);
        }
    }
}
