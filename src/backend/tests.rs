//! What holds of every backend, and what is done with what they give.

use std::sync::Arc;

use super::*;
use crate::clock::Clock;

#[path = "../../tests/common/contract.rs"]
mod contract;
#[path = "../../tests/common/faulty.rs"]
pub(crate) mod faulty;

use contract::{Can, Subject, Trouble};
use faulty::{Faulty, Weather};
use store::{Identity, Store};

fn value(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// What both can, as both were made for it.
const ALL: Can = Can {
    versions: true,
    bytes: true,
    falls_back: true,
    largest: crate::secret::MAX_VALUE,
    folders: true,
};

/// One in memory.
mod in_memory {
    use super::*;

    impl Subject for Faulty {
        fn backend(&self) -> &dyn Backend {
            self
        }

        fn can(&self) -> Can {
            ALL
        }

        fn reference(&self, name: &str) -> String {
            format!("b:s/{name}")
        }

        fn folder(&self) -> String {
            "s".to_owned()
        }

        fn put(&self, name: &str, value: &[u8]) -> bool {
            self.put(&format!("s/{name}"), value);
            true
        }

        fn destroy(&self, name: &str, version: &Version) {
            self.remove_version(&format!("s/{name}"), version.as_str().parse().unwrap());
        }

        fn remove(&self, name: &str) {
            self.remove(&format!("s/{name}"));
        }

        fn in_trouble(&self, trouble: Trouble) -> Option<Arc<dyn Backend>> {
            let other = Self::default();
            other.weather(match trouble {
                Trouble::Refused => Weather::Refusing,
                Trouble::Down => Weather::Down,
                Trouble::Silent => Weather::Silent,
            });
            Some(Arc::new(other))
        }
    }

    fn make(_clause: &str) -> Option<Faulty> {
        Some(Faulty::default())
    }

    contract::suite!(make);
}

/// The embedded store, on a disk.
mod in_a_store {
    use super::*;

    struct OnDisk {
        store: Store,
        _folder: tempfile::TempDir,
    }

    impl Subject for OnDisk {
        fn backend(&self) -> &dyn Backend {
            &self.store
        }

        fn can(&self) -> Can {
            ALL
        }

        fn reference(&self, name: &str) -> String {
            format!("b:s/{name}")
        }

        fn folder(&self) -> String {
            "s".to_owned()
        }

        fn put(&self, name: &str, value: &[u8]) -> bool {
            let (path, value) = (path(name), SecretBytes::new(value.to_vec()));
            self.store.put(&path, &value, None).is_ok()
        }

        fn destroy(&self, name: &str, version: &Version) {
            self.store.remove(&path(name), Some(version)).unwrap();
        }

        fn remove(&self, name: &str) {
            self.store.remove(&path(name), None).unwrap();
        }

        /// It is there or it is not opened at all, and knows no strangers.
        fn in_trouble(&self, _trouble: Trouble) -> Option<Arc<dyn Backend>> {
            None
        }
    }

    fn path(name: &str) -> crate::secret::SecretPath {
        format!("s/{name}").parse().unwrap()
    }

    fn make(_clause: &str) -> Option<OnDisk> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.age");
        let store = Store::create(&file, &Identity::generate(), Clock::manual()).unwrap();
        Some(OnDisk {
            store,
            _folder: folder,
        })
    }

    contract::suite!(make);
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
