//! What holds of every backend, and what is done with what they give.

use super::*;
use crate::clock::Clock;

#[path = "../../tests/common/faulty.rs"]
pub(crate) mod faulty;

use faulty::Faulty;
use store::{Identity, Store};

fn value(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// A backend, and a hand in it.
trait Subject: Backend {
    fn put(&self, path: &str, text: &str);
    fn destroy(&self, path: &str, version: &str);
}

impl Subject for Faulty {
    fn put(&self, path: &str, text: &str) {
        self.put(path, text);
    }

    fn destroy(&self, path: &str, version: &str) {
        self.remove_version(path, version.parse().unwrap());
    }
}

impl Subject for Store {
    fn put(&self, path: &str, text: &str) {
        self.put(&path.parse().unwrap(), &value(text), None)
            .unwrap();
    }

    fn destroy(&self, path: &str, version: &str) {
        self.remove(&path.parse().unwrap(), Some(&Version::new(version)))
            .unwrap();
    }
}

/// One of each, and the folder that the store is in.
fn subjects() -> (tempfile::TempDir, [Box<dyn Subject>; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.age");
    let store = Store::create(&file, &Identity::generate(), Clock::manual()).unwrap();
    (folder, [Box::new(store), Box::new(Faulty::default())])
}

#[tokio::test]
async fn the_previous_value_is_the_newest_older_one_that_is_kept() {
    let (_folder, subjects) = subjects();
    for subject in subjects {
        let before = async |reference: &str, current: &str| {
            let (reference, current) = (reference.parse().unwrap(), Version::new(current));
            let fetched = subject.previous(&reference, &current).await?;
            let text = String::from_utf8(fetched.value.expose().to_vec()).unwrap();
            Ok((fetched.version.to_string(), text))
        };
        let is = |version: &str, text: &str| Ok((version.to_owned(), text.to_owned()));
        let absent = |found: Result<_, BackendError>| matches!(found, Err(BackendError::Absent(_)));
        for text in ["one", r#"{"f":"two"}"#, "three"] {
            subject.put("s/x", text);
        }
        let kind = subject.kind();
        assert_eq!(
            before("b:s/x", "3").await,
            is("2", r#"{"f":"two"}"#),
            "{kind}"
        );
        // The record, whatever the field.
        assert_eq!(before("b:s/x#f", "3").await, is("2", r#"{"f":"two"}"#));
        assert_eq!(before("b:s/x", "2").await, is("1", "one"));
        assert!(absent(before("b:s/x", "1").await), "{kind}");
        // What was destroyed is no value, and leaves its place in the order.
        subject.destroy("s/x", "2");
        assert_eq!(before("b:s/x", "3").await, is("1", "one"), "{kind}");
        assert_eq!(before("b:s/x", "2").await, is("1", "one"), "{kind}");
        subject.destroy("s/x", "3");
        assert_eq!(before("b:s/x", "3").await, is("1", "one"), "{kind}");
        assert!(absent(before("b:s/x", "1").await), "{kind}");
        // A reference that names a version has no other, and what is not there has none at all.
        assert!(absent(before("b:s/x@3", "3").await), "{kind}");
        assert!(absent(before("b:s/none", "3").await), "{kind}");
        assert!(absent(before("b:s/x", "latest").await), "{kind}");
    }
}

#[tokio::test]
async fn a_version_is_read_by_its_name_until_it_is_destroyed() {
    let (_folder, subjects) = subjects();
    for subject in subjects {
        subject.put("s/x", "one");
        subject.put("s/x", "two");
        let read = async |reference: &str| {
            let fetched = subject.read(&reference.parse().unwrap()).await?;
            Ok::<_, BackendError>(String::from_utf8(fetched.value.expose().to_vec()).unwrap())
        };
        for (reference, text) in [("b:s/x", "two"), ("b:s/x@2", "two"), ("b:s/x@1", "one")] {
            assert_eq!(read(reference).await.unwrap(), text, "{}", subject.kind());
        }
        subject.destroy("s/x", "1");
        for reference in ["b:s/x@1", "b:s/x@3", "b:s/x@latest"] {
            let absent = read(reference).await.unwrap_err();
            assert!(matches!(absent, BackendError::Absent(_)), "{reference}");
        }
    }
}

#[test]
fn a_field_is_raw_if_it_is_a_string_and_json_otherwise() {
    let record = value(r#"{"user":"bo\"b","port":5432,"tags":["a", 1],"none":null}"#);
    let show = |name| field(&record, name).map(|v| String::from_utf8(v.expose().to_vec()).unwrap());
    assert_eq!(show("user").unwrap(), "bo\"b");
    assert_eq!(show("port").unwrap(), "5432");
    assert_eq!(show("tags").unwrap(), r#"["a", 1]"#);
    assert_eq!(show("none").unwrap(), "null");
    assert!(matches!(show("other"), Err(BackendError::Absent(_))));
}

#[test]
fn an_error_never_quotes_the_value() {
    for text in [
        "canary-7f3a",
        r#"["canary-7f3a"]"#,
        r#"{"canary-7f3a"#,
        r#"{"a": canary-7f3a}"#,
    ] {
        let error = field(&value(text), "a").unwrap_err();
        assert!(matches!(error, BackendError::Unusable(_)));
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
