//! What the store promises, on a real disk.

use super::*;

fn path(text: &str) -> SecretPath {
    text.parse().unwrap()
}

fn bytes(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// A new store in a folder of its own, which goes with the first part of the pair.
fn new_store() -> (tempfile::TempDir, Store, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::generate();
    let file = folder.path().join("store.age");
    let store = Store::create(&file, &identity, Clock::manual()).unwrap();
    (folder, store, identity)
}

#[track_caller]
fn shows(store: &Store, name: &str, version: Option<&str>, value: &str) {
    let version = version.map(Version::new);
    let fetched = store.get(&path(name), version.as_ref()).unwrap();
    assert_eq!(fetched.value.expose(), value.as_bytes(), "{name}");
}

#[test]
fn what_was_put_is_there_after_reopening() {
    let (_folder, store, identity) = new_store();
    let file = store.path();
    let key = store.audit_key().expose().to_vec();
    assert_eq!(
        store
            .put(&path("a/x"), &bytes("one"), Some("first"))
            .unwrap()
            .as_str(),
        "1"
    );
    assert_eq!(
        store
            .put(&path("a/x"), &bytes("two"), None)
            .unwrap()
            .as_str(),
        "2"
    );
    store.put(&path("b/empty"), &bytes(""), None).unwrap();
    drop(store);
    let store = Store::open(&file, identity, Clock::manual()).unwrap();
    shows(&store, "a/x", None, "two");
    shows(&store, "a/x", Some("1"), "one");
    shows(&store, "b/empty", None, "");
    assert_eq!(
        store.description(&path("a/x")).unwrap().as_deref(),
        Some("first")
    );
    assert_eq!(store.audit_key().expose(), key);
    assert_eq!(store.len(), 2);
}
