//! The words of the control protocol: pure types, parsed from bytes without touching a socket.
//!
//! The client says `{"secretfs":1}` first and the server the same. Then come any number of requests, one after the other:
//!
//! ```text
//! → {"request":{"command":"put","path":"billing/db-password"},"body":12}   and 12 raw bytes
//! ← {"progress":{"done":1,"total":2}}                                      any number
//! ← {"chunk":{"size":4096}}                                                any number, each with its raw bytes
//! ← {"done":{"answer":{…},"body":0}}   or   {"error":{"kind":"denied","message":"…"}}
//! ```
//!
//! `restore` is followed by chunks, `{"chunk":{"size":4096}}` and the raw bytes, up to one of size 0. Values are never
//! JSON: they are the raw bytes after the line that announces them.

use serde::{Deserialize, Serialize};

use crate::backend::Version;
use crate::policy::revocation::Target;
use crate::secret::{MAX_VALUE, Name, SecretPath};

/// The protocol's version.
pub const VERSION: u32 = 1;

/// The longest line of a request, in bytes without its newline.
pub const MAX_REQUEST: usize = 64 << 10;

/// The longest line of a reply, in bytes without its newline: a listing is one.
pub const MAX_REPLY: usize = 64 << 20;

/// The longest chunk, in bytes.
pub const MAX_CHUNK: usize = 64 << 10;

/// The largest batch of values, in bytes: a server reads it before it knows what the peer may do.
pub const MAX_BATCH: usize = 4 << 20;

/// What both sides say first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`]
    pub secretfs: u32,
}

/// The line that starts a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// What is asked for.
    pub request: Request,
    /// How many raw bytes follow the line.
    #[serde(default)]
    pub body: usize,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Keeps the body as a new version.
    Put {
        /// Of this secret.
        path: SecretPath,
    },
    /// Keeps new versions of many secrets, of all or of none. The body is a [batch](super::batch).
    Import {
        /// Of this service.
        service: Name,
    },
    /// Answers with the value.
    Get {
        /// Of this secret.
        path: SecretPath,
        /// In this version instead of the newest.
        version: Option<Version>,
    },
    /// Names.
    List {
        /// The secrets of this service; of all services that the caller may see into where left out.
        service: Option<Name>,
    },
    /// The versions of a secret.
    History {
        /// This one.
        path: SecretPath,
    },
    /// Destroys a secret.
    Remove {
        /// This one.
        path: SecretPath,
        /// Only this version of it.
        version: Option<Version>,
    },
    /// Makes an older version's value the newest.
    Rollback {
        /// Of this secret.
        path: SecretPath,
        /// The older version.
        to: Version,
    },
    /// Streams an encrypted copy of a store.
    Export {
        /// The store's name in the config; the only one where left out.
        backend: Option<Name>,
    },
    /// Replaces a store's content by a copy that is streamed in.
    Restore {
        /// The store's name in the config; the only one where left out.
        backend: Option<Name>,
        /// Also where the store is not empty: what it holds is lost.
        replace: bool,
    },
    /// Encrypts a store anew. The body is the identity file that will open it, as it will stand on the disk.
    Rekey {
        /// The store's name in the config; the only one where left out.
        backend: Option<Name>,
        /// Further age recipients.
        recipients: Vec<String>,
    },
    /// The daemon's state.
    Status {},
    /// Why a caller may read a secret or not.
    Explain {
        /// The secret.
        path: SecretPath,
        /// Who; the peer itself where left out.
        subject: Option<Subject>,
    },
    /// Reads the config again.
    Reload {},
    /// Has the release of the program that is installed now take over.
    Upgrade {},
    /// Takes something away, from open files too.
    Revoke {
        /// What.
        target: Target,
        /// For so many seconds; until it is given back where left out.
        seconds: Option<u64>,
    },
    /// Gives back what `revoke` took away.
    Unrevoke {
        /// What.
        target: Target,
    },
    /// Streams what happens, as it happens.
    Watch {},
    /// Answers when a secret's generation changes.
    Wait {
        /// Of this secret.
        path: SecretPath,
        /// From this one to another; from the current one where left out.
        after: Option<u64>,
    },
    /// Ends the daemon and its mount.
    Unmount {},
    /// Checks what only whoever has the stores open can check.
    Doctor {},
    /// Streams lines of the audit log.
    Audit(AuditQuery),
}

/// Whom `explain` is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Subject {
    /// A running process.
    Process {
        /// Its number as the daemon sees it.
        pid: u32,
    },
    /// Anyone with these numbers, in no unit and no container.
    Ids {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
        /// The supplementary groups.
        groups: Vec<u32>,
    },
}

/// Which lines of the audit log are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Go on with the lines that come.
    pub follow: bool,
    /// Of this secret or service.
    pub path: Option<String>,
    /// Of this user.
    pub uid: Option<u32>,
    /// From this time on.
    pub since: Option<jiff::Timestamp>,
    /// Only what was denied.
    pub denied: bool,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// The command goes on.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all; 0 where nobody knows.
        total: u64,
    },
    /// Raw bytes follow.
    Chunk {
        /// So many.
        size: usize,
    },
    /// The command is done.
    Done {
        /// For `--json` and tables.
        answer: serde_json::Value,
        /// How many bytes of a value follow.
        body: usize,
    },
    /// The command failed.
    Error(Failure),
}

/// A part of a streamed request; the last one is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Part {
    /// Raw bytes follow.
    Chunk {
        /// So many.
        size: usize,
    },
}

/// Why a command was not done: one line for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Which exit code it is.
    pub kind: Kind,
    /// What is wrong, where, and the mend. Never a value.
    pub message: String,
}

/// The kinds of failure, one for each exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something did not work.
    Failed,
    /// It may work in a moment.
    Busy,
    /// The question is wrong, or the config.
    Usage,
    /// There is no such secret.
    Absent,
    /// The policy says no.
    Denied,
    /// The backend cannot be reached.
    Unavailable,
}

impl Kind {
    /// The exit code of the command line.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Busy => 1,
            Self::Usage => 2,
            Self::Absent => 3,
            Self::Denied => 4,
            Self::Unavailable => 5,
        }
    }
}

impl Failure {
    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The question is wrong, or the config.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Any kind. Line breaks in the message become spaces: an error is one line.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = message
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self { kind, message }
    }
}

impl Request {
    /// The longest body that may come with it, in bytes.
    #[must_use]
    pub fn max_body(&self) -> usize {
        match self {
            Self::Put { .. } => MAX_VALUE,
            Self::Import { .. } => MAX_BATCH,
            Self::Rekey { .. } => MAX_REQUEST,
            Self::Get { .. }
            | Self::List { .. }
            | Self::History { .. }
            | Self::Remove { .. }
            | Self::Rollback { .. }
            | Self::Export { .. }
            | Self::Restore { .. }
            | Self::Status {}
            | Self::Explain { .. }
            | Self::Reload {}
            | Self::Upgrade {}
            | Self::Revoke { .. }
            | Self::Unrevoke { .. }
            | Self::Watch {}
            | Self::Wait { .. }
            | Self::Unmount {}
            | Self::Doctor {}
            | Self::Audit(_) => 0,
        }
    }

    /// True if it goes on until the peer or the daemon ends.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        matches!(
            self,
            Self::Watch {} | Self::Wait { .. } | Self::Audit(AuditQuery { follow: true, .. })
        )
    }

    /// True if chunks follow.
    #[must_use]
    pub fn streams_in(&self) -> bool {
        matches!(self, Self::Restore { .. })
    }
}

/// Reads a request's first line, without its newline.
///
/// # Errors
/// A [`Failure`] of kind usage that does not quote the line: a value might have slipped into it.
pub fn parse_header(line: &[u8]) -> Result<Header, Failure> {
    let header: Header = parse(line)?;
    if header.body > header.request.max_body() {
        return Err(Failure::usage(format!(
            "the body is larger than the {} bytes that this command takes",
            header.request.max_body()
        )));
    }
    Ok(header)
}

/// Reads any other line.
///
/// # Errors
/// As [`parse_header`].
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(line).map_err(|error| {
        Failure::usage(format!(
            "not a line of this protocol (column {}): use the secretfs program of the daemon's release",
            error.column()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests() -> Vec<Request> {
        let path: SecretPath = "billing/db-password".parse().unwrap();
        let version = Version::new("3");
        vec![
            Request::Put { path: path.clone() },
            Request::Get {
                path: path.clone(),
                version: Some(version.clone()),
            },
            Request::List { service: None },
            Request::History { path: path.clone() },
            Request::Remove {
                path: path.clone(),
                version: None,
            },
            Request::Rollback {
                path: path.clone(),
                to: version,
            },
            Request::Export { backend: None },
            Request::Restore {
                backend: Some("local".parse().unwrap()),
                replace: true,
            },
            Request::Rekey {
                backend: None,
                recipients: vec!["age1x".into()],
            },
            Request::Status {},
            Request::Explain {
                path: path.clone(),
                subject: Some(Subject::Ids {
                    uid: 1,
                    gid: 2,
                    groups: vec![3],
                }),
            },
            Request::Reload {},
            Request::Upgrade {},
            Request::Revoke {
                target: Target::Version("a/b".parse().unwrap(), Version::new("3")),
                seconds: Some(3600),
            },
            Request::Unrevoke {
                target: Target::All,
            },
            Request::Watch {},
            Request::Wait {
                path,
                after: Some(u64::MAX),
            },
            Request::Unmount {},
            Request::Doctor {},
            Request::Audit(AuditQuery::default()),
        ]
    }

    #[test]
    fn every_request_reads_as_it_was_written() {
        for request in requests() {
            let header = Header {
                body: request.max_body().min(7),
                request,
            };
            let line = serde_json::to_vec(&header).unwrap();
            assert_eq!(parse_header(&line), Ok(header));
        }
    }

    #[test]
    fn what_is_not_a_request() {
        let large = format!(
            r#"{{"request":{{"command":"put","path":"a/b"}},"body":{}}}"#,
            MAX_VALUE + 1
        );
        let deep = "[".repeat(MAX_REQUEST);
        let table = [
            "",
            "canary-7f3a",
            "{}",
            "null",
            r#"{"request":{"command":"canary-7f3a"}}"#,
            r#"{"request":{"command":"status","x":1}}"#,
            r#"{"request":{"command":"put","path":"a/b","value":"canary-7f3a"}}"#,
            r#"{"request":{"command":"put","path":"../b"},"body":1}"#,
            r#"{"request":{"command":"put","path":"a/b"},"body":-1}"#,
            r#"{"request":{"command":"status"},"body":1}"#,
            r#"{"request":{"command":"status"}} {}"#,
            r#"{"request":{"command":"status"},"x":1}"#,
            r#"{"request":{"command":"watch"},"body":1}"#,
            r#"{"request":{"command":"wait","path":"a"}}"#,
            r#"{"request":{"command":"wait","path":"a/b","after":-1}}"#,
            r#"{"request":{"command":"wait","path":"a/b","after":"canary-7f3a"}}"#,
            &large,
            &deep,
        ];
        for line in table {
            let failure = parse_header(line.as_bytes()).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage, "{line:.80}");
            assert!(!failure.message.contains("canary"), "{failure}");
        }
    }

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(Failure::failed("a\n  b\r\n\nc").message, "a b c".to_owned());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_header(&bytes);
            let _ = parse::<Reply>(&bytes);
            let _ = parse::<Part>(&bytes);
        }

        #[test]
        fn no_damaged_request_makes_it_panic(index in 0..17_usize, at in 0..200_usize, byte: u8) {
            let header = Header { request: requests().swap_remove(index), body: 0 };
            let mut line = serde_json::to_vec(&header).unwrap();
            let at = at % line.len();
            line[at] = byte;
            let _ = parse_header(&line);
        }
    }
}
