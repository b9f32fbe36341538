//! What one line of the log says: events, or a note of the log about itself.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::chain::Mac;
use super::{Event, Outcome};
use crate::backend::Version;

/// The longest line, in bytes: what the writer keeps to, and the reader's limit.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// The longest text inside a line, in bytes. Seven of them, each byte escaped to six, stay below [`MAX_LINE`].
const MAX_TEXT: usize = 1024;

/// One event, or several that are equal but for their times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What happened; of several, the last one, with the longest time that any of them took.
    #[serde(flatten)]
    pub event: Event,
    /// How many events the line stands for.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
    /// Of several, when the first one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Timestamp>,
}

impl Entry {
    /// One event.
    pub(super) fn single(event: Event) -> Self {
        Self {
            event,
            count: 1,
            first: None,
        }
    }

    /// Shortens what others chose the length of.
    pub(super) fn clip(&mut self) {
        let event = &mut self.event;
        clip_shared(&mut event.action);
        for text in [&mut event.path, &mut event.rule].into_iter().flatten() {
            clip_shared(text);
        }
        for text in [&mut event.comm, &mut event.unit, &mut event.container] {
            if let Some(text) = text
                && let Cow::Owned(short) = clip(text)
            {
                *text = short;
            }
        }
        if let Some(version) = &mut event.version
            && let Cow::Owned(short) = clip(version.as_str())
        {
            *version = Version::new(short);
        }
    }
}

fn clip_shared(text: &mut Arc<str>) {
    if let Cow::Owned(short) = clip(text) {
        *text = Arc::from(short);
    }
}

fn clip(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT {
        return Cow::Borrowed(text);
    }
    let fits = |&(at, c): &(usize, char)| at + c.len_utf8() <= MAX_TEXT - '…'.len_utf8();
    let start = text.char_indices().take_while(fits).map(|(_, c)| c);
    Cow::Owned(start.chain(['…']).collect())
}

fn one() -> u64 {
    1
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_one(count: &u64) -> bool {
    *count == 1
}

/// What the log says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "lowercase")]
pub enum Note {
    /// The first line of each file: the chain goes on from here.
    Begins {
        /// The HMAC of the last line of the file before; zeros where the chain itself begins.
        previous: Mac,
    },
    /// The writer ended in the middle of a line: the bytes before this line are the torn rest.
    Torn {
        /// How many bytes, without the newline that was added.
        bytes: u64,
    },
    /// Events were lost because the log could not be written in time.
    Lost {
        /// How many.
        events: u64,
    },
}

/// A note with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When it was written.
    pub time: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub note: Note,
}

/// Everything that a line says but its number and its HMAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Body {
    /// The log about itself.
    Note(Noted),
    /// Accesses or a command.
    Entry(Entry),
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<B = Body> {
    /// Its number: one more than that of the line before.
    pub seq: u64,
    /// What it says.
    #[serde(flatten)]
    pub body: B,
}

/// As much of a line as the writer has to know to go on.
#[derive(Debug, Deserialize)]
pub(super) struct Numbered {
    pub(super) seq: u64,
}

impl<'a> Record<&'a Body> {
    pub(super) fn borrowed(seq: u64, body: &'a Body) -> Self {
        Self { seq, body }
    }
}

impl Record {
    /// When it happened, or was noted.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        match &self.body {
            Body::Note(noted) => noted.time,
            Body::Entry(entry) => entry.event.time,
        }
    }
}

/// One line for people; nothing in it can move a cursor, colour a terminal or look like a second line.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ", self.time())?;
        let entry = match &self.body {
            Body::Note(noted) => return noted.note.fmt(f),
            Body::Entry(entry) => entry,
        };
        let event = &entry.event;
        write!(f, "{} {}", event.outcome, printable(&event.action))?;
        if let Some(path) = &event.path {
            write!(f, " {}", printable(path))?;
        }
        if let Some(version) = &event.version {
            write!(f, " version {}", printable(version.as_str()))?;
        }
        write!(f, " uid {} gid {} tid {}", event.uid, event.gid, event.tid)?;
        for (what, text) in [
            ("comm", &event.comm),
            ("unit", &event.unit),
            ("container", &event.container),
        ] {
            if let Some(text) = text {
                write!(f, " {what} {}", printable(text))?;
            }
        }
        if let Some(rule) = &event.rule {
            // Our own words or a place in the config, blanks and all.
            write!(f, " by {}", rule.escape_debug())?;
        }
        if entry.count > 1 {
            write!(f, " {} times", entry.count)?;
        }
        write!(f, " {} µs", event.micros)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins { previous } if *previous == Mac::default() => {
                f.write_str("the log begins")
            }
            Self::Begins { .. } => f.write_str("the log goes on in a new file"),
            Self::Torn { bytes } => write!(
                f,
                "the last line was torn by a crash or a full disk ({bytes} bytes)"
            ),
            Self::Lost { events } => write!(
                f,
                "{events} events were lost because the log could not be written"
            ),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Stale => "stale",
            Self::Revoked => "revoked",
            Self::Error => "error",
        })
    }
}

/// `text` with everything escaped that is not plainly visible: controls, escape sequences, direction marks.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' => shown.push(c),
            ' ' => shown.push_str("\\x20"),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}
