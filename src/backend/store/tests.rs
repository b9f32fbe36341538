//! What the store promises. Each part of it has a file of its own.

use std::collections::BTreeMap;
use std::io;

use super::seal::Unreadable;
use super::storage::fake::Fake;
use super::*;

mod apart;
mod archive;
mod crowd;
mod damage;
mod faults;
mod identities;
mod interop;

/// Every version of every secret.
type Content = BTreeMap<String, Vec<u8>>;

fn path(text: &str) -> SecretPath {
    text.parse().unwrap()
}

fn bytes(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// Says that a test did not take place; where all are required, that is a failure.
fn skipped(why: &str) {
    assert!(std::env::var_os("SECRETFS_REQUIRE_ALL").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}

fn nothing(_: usize, _: Option<usize>) {}

/// A new store in a folder of its own, which goes with the first part.
fn new_store() -> (tempfile::TempDir, Store, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::generate();
    let file = folder.path().join("store.age");
    let store = Store::create(&file, &identity, Clock::manual()).unwrap();
    (folder, store, identity)
}

fn open_fake(fake: &Fake, identity: &Identity) -> Result<Store, StoreError> {
    Store::open_in(Box::new(fake.clone()), identity.clone(), Clock::manual())
}

/// All that the store gives, read whole.
#[track_caller]
fn content(store: &Store) -> Content {
    let mut content = Content::new();
    for service in store.services() {
        for name in store.names(&service) {
            let path = path(&format!("{service}/{name}"));
            for info in store.history(&path).unwrap() {
                let value = store.get(&path, Some(&info.version)).unwrap().value;
                let key = format!("{path}@{}", info.version);
                content.insert(key, value.expose().to_vec());
            }
        }
    }
    content
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
    assert_eq!(key.len(), 32);
    let first = store.put(&path("a/x"), &bytes("one"), Some("first"));
    assert_eq!(first.unwrap().as_str(), "1");
    let second = store.put(&path("a/x"), &SecretBytes::new(vec![0, 255, 10]), None);
    assert_eq!(second.unwrap().as_str(), "2");
    store.put(&path("b/empty"), &bytes(""), None).unwrap();
    let before = content(&store);
    drop(store);

    let store = Store::open(&file, identity, Clock::manual()).unwrap();
    assert_eq!(content(&store), before);
    shows(&store, "a/x", Some("1"), "one");
    shows(&store, "b/empty", None, "");
    let said = store.description(&path("a/x")).unwrap();
    assert_eq!(said.as_deref(), Some("first"));
    assert_eq!(store.audit_key().expose(), key);
    assert_eq!(store.len(), 2);
    assert_eq!(
        store.services(),
        ["a".parse().unwrap(), "b".parse().unwrap()]
    );
}

#[test]
fn a_number_is_never_used_twice() {
    let (_folder, store, _) = new_store();
    let secret = path("a/x");
    for number in 1..=12 {
        let version = store
            .put(&secret, &bytes(&format!("v{number}")), None)
            .unwrap();
        assert_eq!(version.as_str(), number.to_string());
    }
    let history: Vec<String> = store
        .history(&secret)
        .unwrap()
        .iter()
        .map(|info| info.version.to_string())
        .collect();
    assert_eq!(
        history,
        ["12", "11", "10", "9", "8", "7", "6", "5", "4", "3"]
    );
    assert!(matches!(
        store.get(&secret, Some(&Version::new("2"))),
        Err(StoreError::Absent(_))
    ));
    store.remove(&secret, Some(&Version::new("12"))).unwrap();
    shows(&store, "a/x", None, "v11");
    assert_eq!(
        store
            .rollback(&secret, &Version::new("4"))
            .unwrap()
            .as_str(),
        "13"
    );
    shows(&store, "a/x", None, "v4");
    store.remove(&secret, None).unwrap();
    assert!(matches!(
        store.get(&secret, None),
        Err(StoreError::Absent(_))
    ));
    assert!(store.services().is_empty() && store.is_empty());
    assert_eq!(
        store.put(&secret, &bytes("again"), None).unwrap().as_str(),
        "14"
    );
    for wrong in ["014", "+14", "", "14 ", "0"] {
        assert!(
            matches!(
                store.get(&secret, Some(&Version::new(wrong))),
                Err(StoreError::Absent(_))
            ),
            "{wrong:?}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (_folder, store, _) = new_store();
    let large = SecretBytes::new(vec![7; MAX_VALUE + 1]);
    assert!(matches!(
        store.put(&path("a/x"), &large, None),
        Err(StoreError::TooLarge(_))
    ));
    for description in ["two\nlines", &"x".repeat(MAX_DESCRIPTION + 1)] {
        let put = store.put(&path("a/x"), &bytes(""), Some(description));
        assert!(matches!(put, Err(StoreError::Description(_))));
    }
    assert!(store.is_empty());
    let largest = SecretBytes::new(vec![7; MAX_VALUE]);
    store.put(&path("a/x"), &largest, None).unwrap();
    assert_eq!(
        store.get(&path("a/x"), None).unwrap().value.expose(),
        largest.expose()
    );
}

#[test]
fn an_index_that_would_seal_values_to_others_alone_is_refused() {
    let (_folder, store, identity) = new_store();
    let file = store.path();
    drop(store);
    let recipient = |identity: &Identity| identity.recipients()[0].to_string();
    let own: age::x25519::Recipient = recipient(&identity).parse().unwrap();
    let index = |recipient: &str| {
        let key = "A".repeat(43);
        let text = format!(
            r#"{{"format":1,"audit_key":"{key}","recipients":["{recipient}"],"services":{{}}}}"#
        );
        std::fs::write(&file, age::encrypt(&own, text.as_bytes()).unwrap()).unwrap();
        Store::open(&file, identity.clone(), Clock::manual())
    };
    let error = index(&recipient(&Identity::generate())).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    index(&recipient(&identity)).unwrap();
}

#[test]
fn no_export_uses_the_numbers_up() {
    for (next, fits) in [(1 << 53, true), ((1 << 53) + 1, false), (u64::MAX, false)] {
        let (_folder, store, identity) = new_store();
        let index =
            format!(r#"{{"format":1,"services":{{"a":{{"x":{{"next":{next},"versions":[]}}}}}}}}"#);
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(index.len().try_into().unwrap());
        archive
            .append_data(&mut header, "index.json", index.as_bytes())
            .unwrap();
        let recipient: age::x25519::Recipient =
            identity.recipients()[0].to_string().parse().unwrap();
        let sealed = age::encrypt(&recipient, &archive.into_inner().unwrap()).unwrap();
        let with = OpenWith::Identity(&identity);
        let restored = store.restore(&mut &sealed[..], with, false, &mut nothing);
        assert_eq!(restored.is_ok(), fits, "{next}");
        store.put(&path("a/x"), &bytes("one more"), None).unwrap();
        let file = store.path();
        drop(store);
        let store = Store::open(&file, identity, Clock::manual()).unwrap();
        shows(&store, "a/x", None, "one more");
    }
}

#[test]
fn files_are_private_and_belong_to_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = tempfile::tempdir().unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(folder.path(), Some(65_534), Some(65_533)).unwrap();
    } else {
        skipped("only root can own what is another's");
    }
    let owner = std::fs::metadata(folder.path()).unwrap().uid();
    let identity = Identity::generate();
    let store =
        Store::create(&folder.path().join("store.age"), &identity, Clock::manual()).unwrap();
    for _ in 0..4 {
        store
            .put(&path("a/x"), &bytes("canary-7f3a"), None)
            .unwrap();
    }
    let mut seen = 0;
    for parent in [folder.path().to_owned(), folder.path().join("store.d")] {
        for entry in std::fs::read_dir(parent).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{entry:?}");
            assert_eq!(metadata.uid(), owner, "{entry:?}");
            seen += 1;
            if metadata.is_file() {
                let content =
                    String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned();
                assert!(
                    !content.contains("canary") && !content.contains("a/x"),
                    "{entry:?}"
                );
            }
        }
    }
    // The index, the three before it, the folder; the lock and four values.
    assert_eq!(seen, 5 + 5);
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let (folder, store, identity) = new_store();
    store.put(&path("a/x"), &bytes("value"), None).unwrap();
    let file = store.path();
    drop(store);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    let error = Store::open(&file, identity.clone(), Clock::manual()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    std::fs::rename(&elsewhere, &file).unwrap();
    std::fs::rename(folder.path().join("store.d"), &elsewhere).unwrap();
    let error = Store::open(&file, identity.clone(), Clock::manual()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    std::os::unix::fs::symlink(&elsewhere, folder.path().join("store.d")).unwrap();
    let error = Store::open(&file, identity, Clock::manual()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[test]
fn a_file_of_roots_is_not_given_away_under_the_name_of_the_lock() {
    use std::os::unix::fs::{MetadataExt, chown};
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can give a file away");
    }
    let (folder, store, identity) = new_store();
    let file = store.path();
    drop(store);
    chown(&file, Some(65_534), Some(65_533)).unwrap();
    let (lock, roots) = (
        folder.path().join("store.d/lock"),
        folder.path().join("shadow"),
    );
    std::fs::write(&roots, "").unwrap();
    std::fs::remove_file(&lock).unwrap();
    std::fs::hard_link(&roots, &lock).unwrap();
    Store::open(&file, identity, Clock::manual()).unwrap_err();
    assert_eq!(std::fs::metadata(&roots).unwrap().uid(), 0);
}

#[test]
fn there_is_no_store_where_none_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::generate();
    for name in ["store.age", "no/such/folder/store.age"] {
        let file = folder.path().join(name);
        let error = Store::open(&file, identity.clone(), Clock::manual()).unwrap_err();
        assert!(matches!(error, StoreError::Missing(_)), "{error}");
        assert!(error.to_string().contains("secretfs init"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let file = folder.path().join("store.age");
    drop(Store::create(&file, &identity, Clock::manual()).unwrap());
    let again = Store::create(&file, &identity, Clock::manual());
    assert!(matches!(again, Err(StoreError::Exists(_))));
}

#[tokio::test]
async fn as_a_backend_it_reads_and_lists() {
    use crate::backend::{Backend, BackendError};
    let (_folder, store, _) = new_store();
    store
        .put(&path("a/x"), &bytes("one"), Some("said"))
        .unwrap();
    store.put(&path("a/x"), &bytes("two"), None).unwrap();
    store.put(&path("a/gone"), &bytes(""), None).unwrap();
    store.remove(&path("a/gone"), None).unwrap();
    let read = async |reference: &str| store.read(&reference.parse().unwrap()).await;
    let fetched = read("local:a/x").await.unwrap();
    assert_eq!(
        (fetched.value.expose(), fetched.version.as_str()),
        (&b"two"[..], "2")
    );
    assert_eq!(fetched.description.as_deref(), Some("said"));
    assert_eq!(read("local:a/x@1").await.unwrap().value.expose(), b"one");
    for absent in [
        "local:a/gone",
        "local:a/none",
        "local:none/x",
        "local:a/x@3",
    ] {
        assert!(
            matches!(read(absent).await, Err(BackendError::Absent(_))),
            "{absent}"
        );
    }
    for wrong in ["local:a", "local:a/x/y", "local:a/.x", "local:a/x?k=v"] {
        assert!(
            matches!(read(wrong).await, Err(BackendError::Unusable(_))),
            "{wrong}"
        );
    }
    assert_eq!(store.list("a").await.unwrap(), ["x".parse().unwrap()]);
    assert!(matches!(
        store.list("none").await,
        Err(BackendError::Absent(_))
    ));
    assert!(matches!(
        store.list("../a").await,
        Err(BackendError::Absent(_))
    ));
    assert_eq!(store.folders().await.unwrap(), ["a".parse().unwrap()]);
    store.rollback(&path("a/x"), &Version::new("1")).unwrap();
    let previous = async |reference: &str, current: &str| {
        let (reference, current) = (reference.parse().unwrap(), Version::new(current));
        store.previous(&reference, &current).await
    };
    let before = previous("local:a/x", "3").await.unwrap();
    assert_eq!(
        (before.value.expose(), before.version.as_str()),
        (&b"two"[..], "2")
    );
    assert!(matches!(
        previous("local:a/gone", "1").await,
        Err(BackendError::Absent(_))
    ));
    assert!(matches!(
        previous("local:a/x?k=v", "3").await,
        Err(BackendError::Unusable(_))
    ));
    store.check().await.unwrap();
    std::fs::remove_file(store.path()).unwrap();
    assert!(store.check().await.is_err());
}
