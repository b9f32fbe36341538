//! The one thread that writes.
//!
//! A command's line is on the disk before the command is acknowledged, and with it every line before. Accesses are
//! handed to the kernel at once, which takes its time with the disk: a power cut may cost their last seconds.
//!
//! While writing fails, what waits is kept in order (a bounded number), each second it is tried again, and what found
//! no place meanwhile is counted in a line of its own. After a failed write whose traces could not be removed a line
//! may stand twice; it is never missing silently.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use super::AuditError;
use super::chain::{Head, Key};
use super::file::LogFile;
use super::handle::{Message, OK, QUEUE, Shared, UNWRITABLE, lock};
use super::journal::Journal;
use super::line::{Body, Entry, Note, Noted};
use crate::config::{AuditConfig, AuditTarget};

/// How often windows are looked through while there are any.
const SWEEP: Duration = Duration::from_millis(250);

/// How often a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How much is written with one system call, in bytes.
const CHUNK: usize = 64 * 1024;

#[derive(Debug)]
enum Sink {
    File(LogFile),
    Journal(Journal),
}

/// A line that waits to be written, and who waits for it.
struct Waiting {
    body: Body,
    done: Option<SyncSender<Result<(), AuditError>>>,
}

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    key: Key,
    head: Head,
    /// `None` after a failure, until the log is open again.
    sink: Option<Sink>,
    config: AuditConfig,
    journal: PathBuf,
    /// What the log has to say about itself first.
    notes: VecDeque<Note>,
    waiting: VecDeque<Waiting>,
    /// Who waits for all of it to be written.
    flushes: Vec<SyncSender<Result<(), AuditError>>>,
}

impl Writer {
    /// Opens the log.
    pub(super) fn open(
        shared: Arc<Shared>,
        messages: Receiver<Message>,
        key: Key,
        config: &AuditConfig,
        journal: &Path,
    ) -> Result<Self, AuditError> {
        let mut writer = Self {
            shared,
            messages,
            key,
            head: Head::default(),
            sink: None,
            config: config.clone(),
            journal: journal.to_owned(),
            notes: VecDeque::new(),
            waiting: VecDeque::new(),
            flushes: Vec::new(),
        };
        writer.open_sink()?;
        // A full disk is no reason not to start: what follows is denied until it is written.
        let _ = writer.write();
        writer.shared.last.store(writer.head.seq, Ordering::Relaxed);
        Ok(writer)
    }

    /// Writes until the log is closed.
    pub(super) fn run(mut self) -> Result<(), AuditError> {
        let mut swept = self.shared.clock.now();
        let mut open_windows = 0;
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            self.receive(closing, open_windows > 0);
            let now = self.shared.clock.now();
            // While nothing can be written the windows go on counting, in constant space.
            let due = now >= swept + SWEEP || open_windows == 0;
            let all = closing || !self.flushes.is_empty();
            if all || (due && self.sink.is_some()) {
                let mut entries = Vec::new();
                let until = (!all).then_some(now);
                open_windows = self.shared.folds.sweep(until, &mut entries);
                self.waiting.extend(entries.into_iter().map(access));
                swept = now;
            }
            let result = self.write();
            for done in self.flushes.drain(..) {
                let _ = done.try_send(result.clone());
            }
            if closing {
                return result;
            }
            if result.is_err() {
                thread::park_timeout(RETRY);
            }
        }
    }

    /// Waits for something to do, and takes what is there.
    fn receive(&mut self, closing: bool, windows_open: bool) {
        // At the end all that is queued is taken, but not what goes on coming.
        let most = if closing { 2 * QUEUE } else { QUEUE };
        if self.waiting.len() >= most {
            return;
        }
        let idle = !closing && self.sink.is_some();
        let first = if !idle {
            self.messages.try_recv().ok()
        } else if windows_open {
            self.messages.recv_timeout(SWEEP).ok()
        } else {
            self.messages.recv().ok()
        };
        let mut next = first;
        while let Some(message) = next {
            match message {
                Message::Access(entry) => self.waiting.push_back(access(entry)),
                Message::Command(event, done) => {
                    let mut waiting = access(Entry::single(event));
                    waiting.done = Some(done);
                    self.waiting.push_back(waiting);
                }
                Message::Flush(done) => self.flushes.push(done),
                Message::Wake => {}
            }
            if self.waiting.len() >= most {
                return;
            }
            next = self.messages.try_recv().ok();
        }
    }

    /// Writes all that waits, and reports how it went. On an error it waits on, except for commands, which are told.
    fn write(&mut self) -> Result<(), AuditError> {
        let mut acknowledged = Vec::new();
        let result = self.try_write(&mut acknowledged);
        if result.is_err() {
            self.sink = None;
            self.waiting.retain_mut(|waiting| {
                let done = waiting.done.take();
                let command = done.is_some();
                acknowledged.extend(done);
                !command
            });
        }
        // Whoever is answered must find `ready` saying the same.
        self.report(&result);
        for done in acknowledged {
            let _ = done.try_send(result.clone());
        }
        result
    }

    fn try_write(
        &mut self,
        acknowledged: &mut Vec<SyncSender<Result<(), AuditError>>>,
    ) -> Result<(), AuditError> {
        let usable = match &self.sink {
            Some(Sink::File(log)) => !log.was_moved(),
            Some(Sink::Journal(_)) => true,
            None => false,
        };
        if !usable {
            self.open_sink()?;
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if let Some(Note::Lost { events }) = self.notes.back_mut() {
            *events = events.saturating_add(lost);
        } else if lost > 0 {
            self.notes.push_back(Note::Lost { events: lost });
        }
        let mut buffer = Vec::new();
        while !self.notes.is_empty() {
            let mut head = self.head;
            for note in &self.notes {
                head = self.seal(head, &self.noted(note.clone()), &mut buffer)?;
                if self.one_by_one() {
                    break;
                }
            }
            let written = if self.one_by_one() {
                1
            } else {
                self.notes.len()
            };
            self.append(&mut buffer, head)?;
            self.notes.drain(..written);
        }
        let mut head = self.head;
        let mut sealed = 0;
        let mut commands = false;
        while let Some(waiting) = self.waiting.get(sealed) {
            let before = buffer.len();
            let next = self.seal(head, &waiting.body, &mut buffer)?;
            if let Some(Sink::File(log)) = &self.sink
                && log.is_full(before, buffer.len() - before)
            {
                buffer.truncate(before);
                self.flush(&mut buffer, head, &mut sealed, acknowledged)?;
                self.rotate()?;
                head = self.head;
                continue;
            }
            commands |= waiting.done.is_some();
            head = next;
            sealed += 1;
            if buffer.len() >= CHUNK || self.one_by_one() {
                self.flush(&mut buffer, head, &mut sealed, acknowledged)?;
            }
        }
        self.flush(&mut buffer, head, &mut sealed, acknowledged)?;
        match &self.sink {
            Some(Sink::File(log)) if commands => log.sync().map_err(|why| self.failed(&why)),
            Some(Sink::File(_) | Sink::Journal(_)) | None => Ok(()),
        }
    }

    /// Writes the first `sealed` of those that wait, whose lines are in `buffer`.
    fn flush(
        &mut self,
        buffer: &mut Vec<u8>,
        head: Head,
        sealed: &mut usize,
        acknowledged: &mut Vec<SyncSender<Result<(), AuditError>>>,
    ) -> Result<(), AuditError> {
        self.append(buffer, head)?;
        let written = self.waiting.drain(..std::mem::take(sealed));
        acknowledged.extend(written.filter_map(|waiting| waiting.done));
        Ok(())
    }

    fn append(&mut self, buffer: &mut Vec<u8>, head: Head) -> Result<(), AuditError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let result = match &mut self.sink {
            Some(Sink::File(log)) => log.append(buffer),
            Some(Sink::Journal(journal)) => journal.send(buffer),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        buffer.clear();
        result.map_err(|why| self.failed(&why))?;
        self.head = head;
        self.shared.last.store(head.seq, Ordering::Relaxed);
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), AuditError> {
        let Some(Sink::File(log)) = &mut self.sink else {
            return Ok(());
        };
        match log.rotate() {
            Ok(()) => {}
            Err(why) if log.was_moved() => return Err(why),
            Err(why) => {
                tracing::warn!("{why}; the log is not rotated for now");
                log.put_rotation_off();
                return Ok(());
            }
        }
        let mut buffer = Vec::new();
        let begins = self.noted(Note::Begins {
            previous: self.head.mac,
        });
        let head = self.seal(self.head, &begins, &mut buffer)?;
        self.append(&mut buffer, head)?;
        if let Some(Sink::File(log)) = &mut self.sink {
            log.has_begun();
        }
        Ok(())
    }

    /// Opens the log, again where it was open before, and notes what was found.
    fn open_sink(&mut self) -> Result<(), AuditError> {
        self.notes.retain(|note| matches!(note, Note::Lost { .. }));
        match &self.config.target {
            AuditTarget::File(path) => {
                let (mut log, tail) = LogFile::open(path, &self.config)?;
                // What we know ourselves counts for more than what the file says, unless it says more.
                if tail.head.seq > self.head.seq {
                    self.head = tail.head;
                }
                log.end_line().map_err(|why| AuditError::Unusable {
                    target: path.display().to_string(),
                    why: why.to_string(),
                })?;
                if tail.torn > 0 {
                    self.notes.push_front(Note::Torn { bytes: tail.torn });
                }
                if tail.fresh {
                    self.notes.push_front(Note::Begins {
                        previous: self.head.mac,
                    });
                }
                self.sink = Some(Sink::File(log));
            }
            AuditTarget::Journal => {
                let journal =
                    Journal::connect(&self.journal).map_err(|why| AuditError::Unusable {
                        target: self.journal.display().to_string(),
                        why: why.to_string(),
                    })?;
                if self.head == Head::default() {
                    self.notes.push_front(Note::Begins {
                        previous: self.head.mac,
                    });
                }
                self.sink = Some(Sink::Journal(journal));
            }
        }
        Ok(())
    }

    fn seal(&self, head: Head, body: &Body, buffer: &mut Vec<u8>) -> Result<Head, AuditError> {
        self.key
            .seal(head, body, buffer)
            .map_err(|why| AuditError::Unusable {
                target: self.target(),
                why: why.to_string(),
            })
    }

    fn noted(&self, note: Note) -> Body {
        Body::Note(Noted {
            time: self.shared.clock.timestamp(),
            note,
        })
    }

    /// True if each line is a message of its own.
    fn one_by_one(&self) -> bool {
        matches!(&self.sink, Some(Sink::Journal(_)))
    }

    fn target(&self) -> String {
        match &self.config.target {
            AuditTarget::File(path) => path.display().to_string(),
            AuditTarget::Journal => self.journal.display().to_string(),
        }
    }

    fn failed(&self, why: &std::io::Error) -> AuditError {
        AuditError::Unusable {
            target: self.target(),
            why: why.to_string(),
        }
    }

    /// Tells those who ask, and once the daemon's own log.
    fn report(&self, result: &Result<(), AuditError>) {
        let state = if result.is_ok() { OK } else { UNWRITABLE };
        let before = self.shared.state.swap(state, Ordering::Relaxed);
        *lock(&self.shared.failure) = result.clone().err();
        match result {
            Err(why) if before != UNWRITABLE => tracing::error!("{why}"),
            Ok(()) if before == UNWRITABLE => tracing::info!("the audit log is written again"),
            Ok(()) | Err(_) => {}
        }
    }
}

fn access(mut entry: Entry) -> Waiting {
    entry.clip();
    Waiting {
        body: Body::Entry(entry),
        done: None,
    }
}
