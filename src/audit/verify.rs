//! Follows the chain line by line and says where it first breaks.

use std::fmt;
use std::path::PathBuf;

use super::chain::{Key, Mac, Sealed};
use super::line::{Body, Note, Record};

/// A line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it says.
    pub record: Record,
    /// True if the key vouches for it: it was written where it stands and not changed since.
    pub verified: bool,
}

/// What is known after reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many lines were read.
    pub lines: u64,
    /// True if there was a key: without one only the lines' numbers and their form are checked.
    pub keyed: bool,
    /// The number of the first line; above 1 where older files were rotated away, or somebody removed them.
    pub first: u64,
    /// The number of the last line. More lines may have been cut off behind it; a running daemon knows its own number.
    pub last: u64,
    /// How many chains were read: one in files; in a journal one for each start of a writer.
    pub chains: u64,
    /// How many lines were torn by a crash or a full disk, and named by the writer afterwards.
    pub torn: u64,
    /// How many events the writer says were lost.
    pub lost: u64,
    /// How many bytes of an unfinished line stand at the end; the next start of the writer names them.
    pub unfinished: u64,
    /// Where the chain breaks first.
    pub broken: Option<Break>,
}

/// One line for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines == 0 {
            f.write_str("no lines")?;
        } else {
            write!(f, "lines {} to {}", self.first, self.last)?;
        }
        match &self.broken {
            Some(broken) => write!(f, ": the log was tampered with or damaged: {broken}")?,
            None if self.keyed => f.write_str(": the chain is whole")?,
            None => f.write_str(": not verified, for want of the key")?,
        }
        if self.first > 1 {
            f.write_str("; the lines before were rotated away or removed")?;
        }
        for (count, what) in [
            (self.torn, "lines torn by a crash or a full disk"),
            (self.lost, "events lost while the log could not be written"),
            (self.unfinished, "bytes of an unfinished line at the end"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// A place where the log is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}: {fault}", file.display())]
pub struct Break {
    /// The file; `-` for a stream.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has not the form of one.
    #[error("not a line of this log")]
    Form,
    /// The hash is wrong.
    #[error("the line, or the one before it, was altered, or it was written with another key")]
    Altered,
    /// A number was jumped over.
    #[error("{0} lines before this one were removed")]
    Removed(u64),
    /// The number was there already.
    #[error("the line is out of order or stands twice")]
    Order,
    /// A file begins otherwise than the writer begins files.
    #[error("the beginning of the file was cut off")]
    Front,
    /// A file does not continue the one before.
    #[error("the file does not continue the one before: lines or files between them were removed")]
    Gap,
    /// The rest of a torn line is not as the writer found it.
    #[error("the torn line before this one was altered or removed")]
    Torn,
}

/// The state of following a chain.
#[derive(Debug)]
pub(super) struct Check {
    key: Option<Key>,
    /// A stream may begin anywhere and hold several chains.
    stream: bool,
    previous: Option<Mac>,
    suspect: Option<Suspect>,
    file: PathBuf,
    line: u64,
    report: Report,
}

/// Lines that are none, until the writer's note on them.
#[derive(Debug)]
struct Suspect {
    file: PathBuf,
    line: u64,
    bytes: u64,
}

impl Check {
    pub(super) fn new(key: Option<Key>, stream: bool) -> Self {
        Self {
            report: Report {
                keyed: key.is_some(),
                ..Report::default()
            },
            key,
            stream,
            previous: None,
            suspect: None,
            file: PathBuf::from("-"),
            line: 0,
        }
    }

    /// The lines that follow are of this file.
    pub(super) fn enter(&mut self, file: PathBuf) {
        self.file = file;
        self.line = 0;
    }

    /// Takes a line of `len` bytes without its newline, of which `bytes` may hold only the start. `None` if it is no line.
    pub(super) fn line(&mut self, bytes: &[u8], len: u64) -> Option<Line> {
        self.line += 1;
        let parsed = Sealed::split(bytes).filter(|_| u64::try_from(bytes.len()) == Ok(len));
        let parsed = parsed.and_then(|sealed| {
            let record: Record = serde_json::from_slice(bytes).ok()?;
            Some((sealed, record))
        });
        let Some((sealed, record)) = parsed else {
            match &mut self.suspect {
                Some(suspect) => suspect.bytes = suspect.bytes.saturating_add(len + 1),
                None => {
                    self.suspect = Some(Suspect {
                        file: self.file.clone(),
                        line: self.line,
                        bytes: len,
                    });
                }
            }
            return None;
        };
        let verified = self.follow(&sealed, &record);
        self.previous = Some(sealed.mac);
        self.report.lines += 1;
        self.report.last = record.seq;
        Some(Line { record, verified })
    }

    /// What is known now, with `unfinished` bytes left over.
    pub(super) fn report(&self, unfinished: u64) -> Report {
        let mut report = self.report.clone();
        report.unfinished = unfinished;
        if let Some(suspect) = &self.suspect
            && report.broken.is_none()
        {
            report.broken = Some(suspect.found());
        }
        report
    }

    fn follow(&mut self, sealed: &Sealed<'_>, record: &Record) -> bool {
        let note = match &record.body {
            Body::Note(noted) => Some(&noted.note),
            Body::Entry(_) => None,
        };
        let begins = match note {
            Some(Note::Begins { previous }) => Some(*previous),
            Some(Note::Torn { .. } | Note::Lost { .. }) | None => None,
        };
        let restarts = self.stream && record.seq == 1 && begins == Some(Mac::default());
        let starts = self.previous.is_none() || restarts;
        let mut fault = None;
        if starts {
            self.report.chains += 1;
            if self.report.chains == 1 {
                self.report.first = record.seq;
            }
        } else {
            let expected = self.report.last.saturating_add(1);
            if record.seq > expected {
                fault = Some(Fault::Removed(record.seq - expected));
            } else if record.seq < expected {
                fault = Some(Fault::Order);
            }
        }
        if !self.stream && (self.line == 1) != begins.is_some() {
            fault = Some(if self.line == 1 {
                Fault::Front
            } else {
                Fault::Order
            });
        }
        let previous = match (starts, begins) {
            (true, begins) => begins,
            (false, Some(begins)) => {
                if Some(begins) != self.previous {
                    fault = fault.or(Some(Fault::Gap));
                }
                self.previous
            }
            (false, None) => self.previous,
        };
        let vouched = match (&self.key, &previous) {
            (Some(key), Some(previous)) => Some(key.vouches(previous, sealed)),
            // The first line of a stream that begins in the middle: only the next one vouches for it.
            (Some(_), None) | (None, _) => None,
        };
        if vouched == Some(false) {
            fault = fault.or(Some(Fault::Altered));
        }
        self.judge_torn(note, vouched != Some(false));
        if let Some(fault) = fault {
            self.fail(fault);
        }
        if let Some(Note::Lost { events }) = note
            && vouched != Some(false)
        {
            self.report.lost = self.report.lost.saturating_add(*events);
        }
        vouched == Some(true)
    }

    /// A line that is none is excused by the writer's note right after it, of the same length.
    fn judge_torn(&mut self, note: Option<&Note>, genuine: bool) {
        let suspect = self.suspect.take();
        let noted = match note {
            Some(Note::Torn { bytes }) => Some(*bytes),
            Some(Note::Begins { .. } | Note::Lost { .. }) | None => None,
        };
        match (suspect, noted) {
            (None, None) => {}
            (Some(suspect), Some(bytes)) if genuine && suspect.bytes == bytes => {
                self.report.torn += 1;
            }
            (Some(suspect), _) => {
                let found = suspect.found();
                self.report.broken.get_or_insert(found);
            }
            // A stream has no torn lines: what was torn in a file was never sent.
            (None, Some(_)) => self.fail(Fault::Torn),
        }
    }

    fn fail(&mut self, fault: Fault) {
        let found = Break {
            file: self.file.clone(),
            line: self.line,
            fault,
        };
        self.report.broken.get_or_insert(found);
    }
}

impl Suspect {
    fn found(&self) -> Break {
        Break {
            file: self.file.clone(),
            line: self.line,
            fault: Fault::Form,
        }
    }
}
