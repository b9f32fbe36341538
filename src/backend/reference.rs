//! Where a value is found: `<backend>:<path>[?<key>=<value>&…][#<field>][@<version>]`.

use std::fmt;
use std::str::FromStr;

use crate::backend::Version;
use crate::secret::Name;

/// A parsed reference. It prints as it may be written: parsing what it prints gives the same reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The backend's name in the config.
    pub backend: Name,
    /// The backend's own path, decoded.
    pub path: String,
    /// Arguments for the backend, in the order they were written, decoded.
    pub query: Vec<(String, String)>,
    /// The member of a JSON record to show.
    pub field: Option<String>,
    /// One version, rather than the newest.
    pub version: Option<Version>,
}

impl Reference {
    /// The newest version of the whole record at `path`.
    #[must_use]
    pub fn new(backend: Name, path: impl Into<String>) -> Self {
        Self {
            backend,
            path: path.into(),
            query: Vec::new(),
            field: None,
            version: None,
        }
    }

    /// True if both are found at one place, whichever part or version of it they show and whoever signs in for it.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        self.path == other.path && self.backend.in_config() == other.backend.in_config()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (backend, rest) = text.split_once(':').ok_or(ReferenceError::NoBackend)?;
        let backend = backend.parse().map_err(|_| ReferenceError::Backend)?;
        let (rest, version) = split_last(rest, '@', "version")?;
        let (rest, field) = split_last(rest, '#', "field")?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, parse_query(query)?),
            None => (rest, Vec::new()),
        };
        let path = decode(path)?;
        let wrong = path.is_empty() || path.starts_with('/') || path.contains("//");
        if wrong || path.split('/').any(|part| part == "." || part == "..") {
            return Err(ReferenceError::Path);
        }
        Ok(Self {
            backend,
            path,
            query,
            field,
            version: version.map(Version::new),
        })
    }
}

/// Splits `@version` or `#field` off the end; the part must not be empty and its mark must not stand twice.
fn split_last<'a>(
    text: &'a str,
    mark: char,
    part: &'static str,
) -> Result<(&'a str, Option<String>), ReferenceError> {
    let Some((rest, value)) = text.split_once(mark) else {
        return Ok((text, None));
    };
    if value.is_empty() || value.contains(['#', '@', '?']) {
        return Err(ReferenceError::Part(part));
    }
    Ok((rest, Some(decode(value)?)))
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, ReferenceError> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((decode(key)?, decode(value)?)),
        _ => Err(ReferenceError::Part("query")),
    };
    if query.contains('?') {
        return Err(ReferenceError::Part("query"));
    }
    query.split('&').map(pair).collect()
}

/// Undoes percent-encoding, strictly: a `%` is followed by two hexadecimal digits, the result is text without control
/// characters.
fn decode(text: &str) -> Result<String, ReferenceError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| {
            byte.and_then(|b| char::from(b).to_digit(16))
                .and_then(|d| u8::try_from(d).ok())
        };
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return Err(ReferenceError::Percent),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| ReferenceError::Percent)?;
    if text.chars().any(char::is_control) {
        Err(ReferenceError::Control)
    } else {
        Ok(text)
    }
}

/// Percent-encodes what has a meaning in a reference.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '%' | '?' | '#' | '@' | '&' | '=' => write!(f, "%{:02X}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend.in_config(), Encoded(&self.path))?;
        for (index, (key, value)) in self.query.iter().enumerate() {
            write!(
                f,
                "{}{}={}",
                if index == 0 { '?' } else { '&' },
                Encoded(key),
                Encoded(value)
            )?;
        }
        if let Some(field) = &self.field {
            write!(f, "#{}", Encoded(field))?;
        }
        if let Some(version) = &self.version {
            write!(f, "@{}", Encoded(version.as_str()))?;
        }
        Ok(())
    }
}

/// Why a text is not a [`Reference`]. The text itself is not repeated: a pasted secret would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No colon.
    #[error(
        "a reference starts with a backend's name and a colon, as in \"local:billing/db-password\""
    )]
    NoBackend,
    /// The part before the colon is not a name.
    #[error(
        "the part before the colon is not a backend's name: use letters, digits, '.', '_' or '-'"
    )]
    Backend,
    /// The path is empty or has empty, `.` or `..` parts.
    #[error(
        "the path after the colon must not be empty, start with '/', or have an empty, '.' or '..' part"
    )]
    Path,
    /// A part is empty or its mark stands twice.
    #[error(
        "the {0} is empty or its mark stands twice: write <backend>:<path>?<key>=<value>#<field>@<version>, and '%40' for '@', '%23' for '#', '%3F' for '?'"
    )]
    Part(&'static str),
    /// Something after a `%` that is not two hexadecimal digits, or not UTF-8 once decoded.
    #[error("'%' must be followed by two hexadecimal digits that give UTF-8; write '%25' for '%'")]
    Percent,
    /// A control character.
    #[error("a reference must not hold control characters")]
    Control,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_parts() {
        let reference: Reference = "vault:pki/issue/web?common_name=a%26b&ttl=1h#certi%40ficate@12"
            .parse()
            .unwrap();
        assert_eq!(reference.backend.as_str(), "vault");
        assert_eq!(reference.path, "pki/issue/web");
        assert_eq!(
            reference.query,
            [
                ("common_name".into(), "a&b".into()),
                ("ttl".into(), "1h".into())
            ]
        );
        assert_eq!(reference.field.as_deref(), Some("certi@ficate"));
        assert_eq!(reference.version, Some(Version::new("12")));
    }

    #[test]
    fn what_is_not_a_reference() {
        let table = [
            ("billing", ReferenceError::NoBackend),
            (":x", ReferenceError::Backend),
            ("a b:x", ReferenceError::Backend),
            ("local:", ReferenceError::Path),
            ("local:/x", ReferenceError::Path),
            ("local:a//b", ReferenceError::Path),
            ("local:a/../b", ReferenceError::Path),
            ("local:a%2f..%2fb", ReferenceError::Path),
            ("local:a#", ReferenceError::Part("field")),
            ("local:a@", ReferenceError::Part("version")),
            ("local:a@1@2", ReferenceError::Part("version")),
            ("local:a@1#f", ReferenceError::Part("version")),
            ("local:a?", ReferenceError::Part("query")),
            ("local:a?=1", ReferenceError::Part("query")),
            ("local:a?x", ReferenceError::Part("query")),
            ("local:a%zz", ReferenceError::Percent),
            ("local:a%4", ReferenceError::Percent),
            ("local:a%ff", ReferenceError::Percent),
            ("local:a%00", ReferenceError::Control),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Reference>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(
            path in "[a-z%#@?&= é]{1,8}(/[a-z%#@?&=]{1,8}){0,2}",
            query in proptest::collection::vec(("[a-z%#@?&=]{1,5}", "[a-z%#@?&=]{0,5}"), 0..3),
            field in proptest::option::of("[a-z%#@?&=]{1,8}"),
            version in proptest::option::of("[a-z0-9%#@?&=]{1,8}"),
        ) {
            let reference = Reference { backend: "b".parse().unwrap(), path, query, field, version: version.map(Version::new) };
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<Reference>();
        }
    }
}
