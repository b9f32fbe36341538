//! An audit log in a folder of its own, and what it says.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is part of tests"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use secretfs::audit::{Audit, Body, Event, Reader};
use secretfs::clock::Clock;
use secretfs::config::{AuditConfig, AuditTarget, OnFailure};
use secretfs::secret::SecretBytes;
use tempfile::TempDir;

pub struct Log {
    folder: TempDir,
    pub audit: Audit,
}

#[allow(dead_code, reason = "each test uses its part")]
impl Log {
    pub fn new(clock: &Clock, on_failure: OnFailure) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        let config = AuditConfig {
            target: AuditTarget::File(folder.path().join("log/audit.jsonl")),
            on_failure,
            ..AuditConfig::default()
        };
        let audit = Audit::start(&config, &key(), clock.clone()).unwrap();
        Self { folder, audit }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log/audit.jsonl")
    }

    /// Makes it fail, and lets the writer notice.
    pub fn break_it(&self, event: Event) {
        let log = self.folder.path().join("log");
        fs::rename(log, self.folder.path().join("away")).unwrap();
        self.audit.record_now(event).unwrap_err();
    }

    /// Ends the log: each event with how often it was counted.
    pub fn read(&self) -> Vec<(Event, u64)> {
        self.audit.close(Duration::from_secs(20)).unwrap();
        let mut reader = Reader::files(&self.path(), Some(&key())).unwrap();
        let mut events = Vec::new();
        while let Some(line) = reader.read().unwrap() {
            match line.record.body {
                Body::Entry(entry) => events.push((entry.event, entry.count)),
                Body::Note(_) => {}
            }
        }
        assert_eq!(reader.report().broken, None);
        events
    }

    /// Ends the log: `uid action path outcome`, once for each time it was counted, sorted.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (event, count) in self.read() {
            let path = event.path.as_deref().unwrap_or("-");
            let outcome = format!("{:?}", event.outcome).to_lowercase();
            let line = format!("{} {} {path} {outcome}", event.uid, event.action);
            for _ in 0..count {
                lines.push(line.clone());
            }
        }
        lines.sort();
        lines
    }
}

fn key() -> SecretBytes {
    SecretBytes::new(vec![7; 32])
}
