//! The program as a person or a script runs it, with no daemon: every command, its output, its JSON, its exit code.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is a test, and clippy takes helpers outside of #[test] functions for something else"
)]

mod copies;
mod secrets;
mod socket;
mod steering;
mod surroundings;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// A folder with everything that `init` makes, gone when dropped.
struct Demo {
    folder: tempfile::TempDir,
}

/// How a command ended.
struct Ended {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Demo {
    fn new() -> Self {
        let demo = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let folder = demo.folder.path().to_str().unwrap().to_owned();
        demo.bare(&["init", &folder], b"").done();
        demo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Runs a command on this config.
    fn run(&self, arguments: &[&str]) -> Ended {
        self.feed(arguments, b"")
    }

    /// The same, with something on stdin.
    fn feed(&self, arguments: &[&str], stdin: &[u8]) -> Ended {
        let config = self.arg("config.toml");
        let all: Vec<&str> = ["--config", &config]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        self.bare(&all, stdin)
    }

    fn bare(&self, arguments: &[&str], stdin: &[u8]) -> Ended {
        let mut child = Command::new(env!("CARGO_BIN_EXE_secretfs"))
            .args(arguments)
            .env_remove("SECRETFS_CONFIG")
            .env_remove("SECRETFS_LOG")
            .env_remove("SUDO_UID")
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses before reading closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn put(&self, path: &str, value: &[u8]) {
        self.feed(&["put", path], value).done();
    }

    fn get(&self, path: &str) -> Vec<u8> {
        self.run(&["get", path]).done().stdout
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        serde_json::from_slice(&self.run(&all).done().stdout).unwrap()
    }

    fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        fs::write(self.path(name), change(text)).unwrap();
    }
}

impl Ended {
    #[track_caller]
    fn done(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// It failed with this code, and said why in one line that holds `word`.
    #[track_caller]
    fn failed(self, code: i32, word: &str) {
        let shown = format!("exit {}: {}", self.code, self.stderr);
        assert_eq!(self.code, code, "{shown}");
        assert!(self.stderr.starts_with("secretfs: "), "{shown}");
        assert_eq!(self.stderr.matches('\n').count(), 1, "{shown}");
        assert!(self.stderr.contains(word), "{shown}");
        assert!(!self.stderr.contains("canary"), "{shown}");
        assert!(self.stdout.is_empty(), "{shown}");
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}
