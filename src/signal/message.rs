//! What a broker carries: which record of which backend may have changed, and never a value.
//!
//! A message is a JSON object: `{"backend":"vault","path":"secret/billing","version":"3"}`. The version is left out where it
//! is not known, and the path where any record may have changed. Further members mean nothing; what is of another form, or
//! too long, is no message.

use serde::{Deserialize, Serialize};

use crate::backend::Version;
use crate::secret::Name;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 8 << 10;

/// The longest path, in bytes.
pub const MAX_PATH: usize = 4096;

/// The longest version, in bytes.
const MAX_VERSION: usize = 64;

/// Something may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// In this backend, by its name in the config.
    pub backend: Name,
    /// At this path, as references write it (decoded); `None`: anywhere.
    pub path: Option<String>,
    /// Which version is current now, if that is known.
    pub version: Option<Version>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    backend: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl Message {
    /// Reads a message; `None` if it is none.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_MESSAGE {
            return None;
        }
        let raw: Raw = serde_json::from_slice(bytes).ok()?;
        let fits = |path: &String| is_path(path);
        let version = |text: &String| {
            let odd = |byte: u8| !byte.is_ascii_graphic();
            !text.is_empty() && text.len() <= MAX_VERSION && !text.bytes().any(odd)
        };
        let whole = raw.path.as_ref().is_none_or(fits) && raw.version.as_ref().is_none_or(version);
        whole.then(|| Self {
            backend: raw.backend,
            path: raw.path,
            version: raw.version.map(Version::new),
        })
    }

    /// The message as it is sent.
    #[must_use]
    pub fn to_json(&self) -> String {
        let raw = Raw {
            backend: self.backend.clone(),
            path: self.path.clone(),
            version: self.version.as_ref().map(ToString::to_string),
        };
        // Text alone can always be written.
        serde_json::to_string(&raw).unwrap_or_default()
    }
}

/// Whether a path can be one of a record.
#[must_use]
pub fn is_path(path: &str) -> bool {
    !path.is_empty() && path.len() <= MAX_PATH && !path.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(path: Option<&str>, version: Option<&str>) -> Message {
        Message {
            backend: "vault".parse().unwrap(),
            path: path.map(str::to_owned),
            version: version.map(Version::new),
        }
    }

    #[test]
    fn a_message_names_a_record_and_its_version() {
        for (text, expected) in [
            (
                r#"{"backend":"vault","path":"secret/a b","version":"3"}"#,
                message(Some("secret/a b"), Some("3")),
            ),
            (
                r#"{"backend":"vault","path":"secret/a"}"#,
                message(Some("secret/a"), None),
            ),
            (r#"{"backend":"vault"}"#, message(None, None)),
        ] {
            assert_eq!(Message::read(text.as_bytes()).unwrap(), expected);
            assert_eq!(expected.to_json(), text);
        }
        let more = br#"{"backend":"vault","path":"x","value":"v","time":[1]}"#;
        assert_eq!(Message::read(more).unwrap(), message(Some("x"), None));
    }

    #[test]
    fn what_is_no_message_is_dropped() {
        let long = format!(r#"{{"backend":"vault","path":"{}"}}"#, "x".repeat(MAX_PATH));
        assert!(Message::read(long.as_bytes()).is_some());
        let longer = long.replace("xx", "xxx");
        let huge = format!("{{\"backend\":\"vault\"{}}}", " ".repeat(MAX_MESSAGE));
        for text in [
            "",
            "vault",
            "[]",
            r#"{"path":"x"}"#,
            r#"{"backend":"","path":"x"}"#,
            r#"{"backend":"vault@billing","path":"x"}"#,
            r#"{"backend":"vault","path":7}"#,
            r#"{"backend":"vault","path":""}"#,
            r#"{"backend":"vault","path":"a\u0000b"}"#,
            r#"{"backend":"vault","path":"x","version":3}"#,
            r#"{"backend":"vault","path":"x","version":"a b"}"#,
            &longer,
            &huge,
        ] {
            assert_eq!(Message::read(text.as_bytes()), None, "{text:.80}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::read(&bytes);
        }

        #[test]
        fn what_is_sent_is_what_is_read(path in proptest::option::of("[^\\p{Cc}]{1,80}"), version in proptest::option::of("[!-~]{1,64}")) {
            let sent = message(path.as_deref(), version.as_deref());
            prop_assert_eq!(Message::read(sent.to_json().as_bytes()), Some(sent));
        }

        #[test]
        fn nearly_a_message_is_none_or_a_short_one(text in r#"\{"backend":"[a@.]{0,3}"(,"path":("[a/\\]{0,9}"|null|1))?(,"version":("[0-9 ]{0,3}"|\{\}))?\}?"#) {
            if let Some(read) = Message::read(text.as_bytes()) {
                prop_assert!(read.path.as_deref().is_none_or(is_path));
            }
        }
    }
}
