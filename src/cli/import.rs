//! `import`: many secrets at once, from a .env file, a folder or a JSON document.
//!
//! All or nothing: one thing wrong, and nothing is imported. Where the same text means different things to different
//! programs (a `$` in a .env file), it is refused with the way to write it plainly: a value must never be nearly right.
//! No error shows anything but names, and no text is kept unwiped.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::secret::{MAX_VALUE, Name, SecretBytes};

mod env;

pub use env::parse_env;

/// What one import brings.
pub type Imported = Vec<(Name, SecretBytes)>;

/// How many bad names an error lists.
const LISTED: usize = 20;

/// How many characters of a bad name are shown.
const SHOWN: usize = 40;

/// The values of a folder: each file is a secret of its own name. `origin` must hold regular files only.
///
/// # Errors
/// [`ImportError`]
pub fn parse_dir(origin: &Path) -> Result<Imported, ImportError> {
    let fail = |problem| ImportError::new(origin, problem);
    let unreadable = |name: &str, why: &io::Error| Problem::File {
        name: shown(name),
        why: why.kind().to_string(),
    };
    let mut files: Vec<PathBuf> = fs::read_dir(origin)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(|why: io::Error| fail(Problem::Folder(why.kind().to_string())))?;
    files.sort_unstable();
    let mut found = Collected::default();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(why) if why.raw_os_error() == Some(libc::ELOOP) => {
                return Err(fail(Problem::NotRegular(shown(&name))));
            }
            Err(why) => return Err(fail(unreadable(&name, &why))),
        };
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(fail(Problem::NotRegular(shown(&name)))),
            Err(why) => return Err(fail(unreadable(&name, &why))),
        }
        let value = SecretBytes::read_from(&mut file, MAX_VALUE).map_err(|why| {
            fail(if why.kind() == io::ErrorKind::FileTooLarge {
                Problem::TooLong(shown(&name))
            } else {
                unreadable(&name, &why)
            })
        })?;
        found.add(&name, value);
    }
    found.finish(origin)
}

/// The members of a JSON object: strings as they are, anything else as the JSON that it is.
///
/// # Errors
/// [`ImportError`]
pub fn parse_json(origin: &Path, bytes: &[u8]) -> Result<Imported, ImportError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // serde_json's own errors quote what they found: only the place is taken from them.
    let found = (&mut deserializer)
        .deserialize_map(Members)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|error| {
            let (line, column) = (error.line(), error.column());
            ImportError::new(origin, Problem::Json { line, column })
        })?;
    found.finish(origin)
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Collected;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Collected, A::Error> {
        let mut found = Collected::default();
        while let Some((name, raw)) = members.next_entry::<String, &RawValue>()? {
            let text = raw.get();
            let value = if text.starts_with('"') {
                let plain: Zeroizing<String> =
                    Zeroizing::new(serde_json::from_str(text).map_err(serde::de::Error::custom)?);
                SecretBytes::new(plain.as_bytes().to_vec())
            } else {
                SecretBytes::new(text.as_bytes().to_vec())
            };
            found.add(&name, value);
        }
        Ok(found)
    }
}

/// What was found until now, good or bad.
#[derive(Default)]
struct Collected {
    good: BTreeMap<Name, SecretBytes>,
    bad: Vec<String>,
    twice: Vec<Name>,
    too_long: Vec<String>,
}

impl Collected {
    fn add(&mut self, name: &str, value: SecretBytes) {
        if value.len() > MAX_VALUE {
            self.too_long.push(shown(name));
        }
        match name.parse::<Name>() {
            Err(_) => self.bad.push(with_suggestion(name)),
            Ok(name) => {
                if self.good.insert(name.clone(), value).is_some() {
                    self.twice.push(name);
                }
            }
        }
    }

    fn finish(self, origin: &Path) -> Result<Imported, ImportError> {
        let problem = if !self.bad.is_empty() {
            Problem::Names(list(&self.bad))
        } else if !self.twice.is_empty() {
            let twice: Vec<String> = self.twice.iter().map(Name::to_string).collect();
            Problem::Twice(list(&twice))
        } else if let Some(name) = self.too_long.first() {
            Problem::TooLong(name.clone())
        } else if self.good.is_empty() {
            Problem::Nothing
        } else {
            return Ok(self.good.into_iter().collect());
        };
        Err(ImportError::new(origin, problem))
    }
}

fn list(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(LISTED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(more @ 1..) = names.len().checked_sub(LISTED) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn with_suggestion(name: &str) -> String {
    let mended: String = name
        .chars()
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '-',
        })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(SHOWN)
        .collect();
    let mended = mended.trim_end_matches('-');
    match mended.parse::<Name>() {
        Ok(better) => format!("{} (perhaps {better})", shown(name)),
        Err(_) => shown(name),
    }
}

/// A name for an error message: quoted, on one line, and not the whole of what may have been pasted.
fn shown(name: &str) -> String {
    if name.chars().count() <= SHOWN {
        return format!("{name:?}");
    }
    let start: String = name.chars().take(SHOWN).collect();
    format!("{:?}", start + "…")
}

/// Why nothing was imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}: nothing was imported", origin.display())]
pub struct ImportError {
    /// The file or folder.
    pub origin: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl ImportError {
    fn new(origin: &Path, problem: Problem) -> Self {
        Self {
            origin: origin.to_owned(),
            problem,
        }
    }
}

/// What can be wrong with something to import. The texts hold names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Names that are none here, with better ones.
    #[error(
        "rename {0}: names are 1 to 128 letters, digits, '.', '_' or '-', a letter or digit first"
    )]
    Names(String),
    /// Names that occur more than once.
    #[error("{0} more than once: leave one of each")]
    Twice(String),
    /// A value that is too long to be kept.
    #[error("{0} has more than 1 MiB: put it somewhere else")]
    TooLong(String),
    /// There is nothing in it.
    #[error("there is no secret in it")]
    Nothing,
    /// The folder cannot be read.
    #[error("the folder cannot be read ({0}): name another one, or mend its permissions")]
    Folder(String),
    /// A file in the folder cannot be read.
    #[error("{name} cannot be read ({why}): mend its permissions")]
    File {
        /// Its name.
        name: String,
        /// The system's reason.
        why: String,
    },
    /// A link, a folder or something stranger in the folder.
    #[error("{0} is not a regular file: move it away")]
    NotRegular(String),
    /// Not a JSON object.
    #[error(
        "line {line}, column {column}: not JSON of the form {{\"name\": \"value\", …}}: mend it there"
    )]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A line of a .env file that is not an assignment.
    #[error("line {line}: {fault}")]
    Env {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: env::EnvFault,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn plain(imported: Imported) -> Vec<(String, Vec<u8>)> {
        let plain =
            |(name, value): (Name, SecretBytes)| (name.to_string(), value.expose().to_vec());
        imported.into_iter().map(plain).collect()
    }

    fn origin() -> &'static Path {
        Path::new("some/file")
    }

    #[test]
    fn an_object_gives_strings_raw_and_the_rest_as_json() {
        let text = r#" {"pass": "a\u00e9\n\"b", "port": 5432, "on": true, "empty": "", "none": null,
            "nested": {"a": [1, "x"]}} "#;
        let found = plain(parse_json(origin(), text.as_bytes()).unwrap());
        let expected = [
            ("empty", ""),
            ("nested", r#"{"a": [1, "x"]}"#),
            ("none", "null"),
            ("on", "true"),
            ("pass", "aé\n\"b"),
            ("port", "5432"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn errors_of_json_name_the_place_and_no_value() {
        for (text, expected) in [
            ("", "line 1"),
            ("\"canary\"", "line 1"),
            ("[\"canary\"]", "line 1"),
            ("{\"a\": \"canary\"\n, \"b\": canary}", "line 2"),
            ("{\"a\": \"canary", "line 1"),
            ("{\"a\": \"can\\qary\"}", "line 1"),
            ("{\"a\": \"canary\"} canary", "line 1"),
            ("{}", "no secret"),
            (
                "{\"a\": \"canary\", \"b\": 1, \"a\": \"canary\"}",
                "a more than once",
            ),
            (
                "{\"a b\": \"canary\", \"/\": 1, \"ok\": 2, \"_x\": 3}",
                r#""a b" (perhaps a-b), "/", "_x" (perhaps x)"#,
            ),
            (
                "{\"a\\u001b\\n\": \"canary\"}",
                r#""a\u{1b}\n" (perhaps a)"#,
            ),
        ] {
            let shown = parse_json(origin(), text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(
                shown.starts_with("some/file: ") && shown.contains(expected),
                "{shown}"
            );
            assert!(!shown.contains("can") || !shown.contains("ary"), "{shown}");
            assert!(
                !shown.contains('\n') && !shown.contains('\u{1b}'),
                "{shown}"
            );
        }
    }

    #[test]
    fn values_are_at_most_a_mebibyte() {
        let document = |len| format!("{{\"a\": \"{}\"}}", "x".repeat(len));
        assert!(parse_json(origin(), document(MAX_VALUE).as_bytes()).is_ok());
        let error = parse_json(origin(), document(MAX_VALUE + 1).as_bytes()).unwrap_err();
        assert_eq!(error.problem, Problem::TooLong("\"a\"".to_owned()));
    }

    #[test]
    fn a_folder_gives_each_file_whole() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tls.key"), b"\0binary\xff\n").unwrap();
        fs::write(folder.path().join("big"), vec![b'x'; MAX_VALUE]).unwrap();
        let found = plain(parse_dir(folder.path()).unwrap());
        assert_eq!(found[0], ("big".to_owned(), vec![b'x'; MAX_VALUE]));
        assert_eq!(found[1], ("tls.key".to_owned(), b"\0binary\xff\n".to_vec()));
    }

    #[test]
    fn a_folder_with_anything_odd_gives_nothing() {
        type Prepare = fn(&Path);
        let table: [(&str, Prepare); 7] = [
            ("no secret", |_| {}),
            ("\"link\" is not a regular", |p| {
                symlink("/etc/passwd", p.join("link")).unwrap()
            }),
            ("\"dangling\" is not a regular", |p| {
                symlink("/nowhere", p.join("dangling")).unwrap()
            }),
            ("\"sub\" is not a regular", |p| {
                fs::create_dir(p.join("sub")).unwrap()
            }),
            ("\"fifo\" is not a regular", |p| {
                nix::unistd::mkfifo(&p.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
            }),
            ("more than 1 MiB", |p| {
                fs::write(p.join("big"), vec![b'x'; MAX_VALUE + 1]).unwrap()
            }),
            (
                "rename \".env\" (perhaps env), \"my key\" (perhaps my-key)",
                |p| {
                    fs::write(p.join(".env"), "canary").unwrap();
                    fs::write(p.join("my key"), "canary").unwrap();
                },
            ),
        ];
        for (expected, prepare) in table {
            let folder = TempDir::new().unwrap();
            prepare(folder.path());
            if expected != "no secret" {
                fs::write(folder.path().join("good"), "canary").unwrap();
            }
            let shown = parse_dir(folder.path()).unwrap_err().to_string();
            assert!(shown.contains(expected), "{shown}");
            assert!(
                !shown.contains("canary") && !shown.contains('\n'),
                "{shown}"
            );
        }
        let missing = parse_dir(Path::new("/no/such/folder")).unwrap_err();
        assert!(
            missing
                .to_string()
                .contains("/no/such/folder: the folder cannot be read")
        );
    }
}
