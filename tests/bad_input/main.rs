//! Whatever is given wrongly ends in one line that says what to do, with the right exit code, and changes nothing.
//!
//! Each group of mistakes is a table of [`Case`]s in a file of its own. Every case is carried out by the real program in
//! a place of its own; what needs no damage of its own is carried out through a running daemon as well.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "this is a test, and clippy sees only #[test] functions as such"
)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

#[path = "../common/scratch.rs"]
mod scratch;

mod accounts;
mod arguments;
mod audits;
mod configs;
mod copies;
mod daemons;
mod identities;
mod mounts;
mod stores;
mod streams;
mod values;

use scratch::{CANARY, Ended, PROGRAM, Place, Thing, can_mount, is_root, run};

/// One thing done wrongly, and what has to come of it.
struct Case {
    name: &'static str,
    /// `@` at the start of a word, and in what is expected, stands for the place.
    words: Vec<OsString>,
    given: Vec<Given>,
    input: Vec<u8>,
    environment: Vec<(&'static str, &'static str)>,
    uid: Option<u32>,
    /// Words before the program's.
    through: &'static str,
    named_config: bool,
    daemon: Daemon,
    code: i32,
    says: Vec<String>,
    lines: usize,
    /// What it changes all the same, and says so.
    changes: Option<&'static str>,
}

type Given = Box<dyn Fn(&Place) + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// The case is only about the program alone.
    Never,
    /// It is the same with a daemon and without.
    Either,
    /// It is only about a daemon, which starts before what is `given`.
    Needed,
}

/// What does `words` wrongly, ends with `code`, and says all of `says` in one line.
fn case(name: &'static str, words: &str, code: i32, says: &[&str]) -> Case {
    Case {
        name,
        words: words.split_whitespace().map(OsString::from).collect(),
        given: Vec::new(),
        input: Vec::new(),
        environment: Vec::new(),
        uid: None,
        through: "",
        named_config: true,
        daemon: Daemon::Never,
        code,
        says: says.iter().map(|&text| text.to_owned()).collect(),
        lines: 1,
        changes: None,
    }
}

impl Case {
    /// What is wrong before the command is run.
    fn given(mut self, given: impl Fn(&Place) + Send + Sync + 'static) -> Self {
        self.given.push(Box::new(given));
        self
    }

    /// One more word, as it is.
    fn word(mut self, word: &[u8]) -> Self {
        self.words.push(OsString::from_vec(word.to_vec()));
        self
    }

    fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    fn environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    fn through(mut self, words: &'static str) -> Self {
        self.through = words;
        self
    }

    /// Without `--config`.
    fn without_config(mut self) -> Self {
        self.named_config = false;
        self
    }

    /// It changes this file all the same, and says so.
    fn changes(mut self, name: &'static str) -> Self {
        self.changes = Some(name);
        self
    }

    fn lines(mut self, lines: usize) -> Self {
        self.lines = lines;
        self
    }

    /// The same must come of it when a daemon serves the config.
    fn or_served(mut self) -> Self {
        self.daemon = Daemon::Either;
        self
    }

    fn served(mut self) -> Self {
        self.daemon = Daemon::Needed;
        self
    }

    fn command(&self, place: &Place) -> Command {
        let plain = if self.named_config {
            place.command::<&str>(&[])
        } else {
            place.bare()
        };
        let mut all: Vec<OsString> = self.through.split_whitespace().map(Into::into).collect();
        all.push(plain.get_program().to_owned());
        all.extend(plain.get_args().map(OsStr::to_owned));
        all.extend(self.words.iter().map(|word| at_place(word, place)));
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]).env_clear().current_dir("/");
        for (name, value) in plain.get_envs() {
            command.env(name, value.unwrap());
        }
        for (name, value) in &self.environment {
            command.env(name, at_place(OsStr::new(value), place));
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Carries the case out, and says what is not as it should be.
    fn judge(&self, place: &Place) -> Result<(), String> {
        let before = place.snapshot();
        let Some(ended) = run(&mut self.command(place), &self.input) else {
            return Err("it hangs".to_owned());
        };
        let mut wrong = self.misspoken(&ended, place);
        wrong.extend(self.changed(&before, &place.snapshot()));
        if wrong.is_empty() {
            return Ok(());
        }
        let Ended { code, stderr, .. } = ended;
        Err(format!("{}\n    exit {code}: {stderr}", wrong.join("; ")))
    }

    fn misspoken(&self, ended: &Ended, place: &Place) -> Vec<String> {
        let mut wrong = Vec::new();
        let Ended {
            code,
            stdout,
            stderr,
        } = ended;
        if *code != self.code {
            wrong.push(format!("exit {code} instead of {}", self.code));
        }
        let lines: Vec<&str> = stderr.lines().collect();
        if lines.len() != self.lines || !stderr.ends_with('\n') {
            wrong.push(format!("{} lines instead of {}", lines.len(), self.lines));
        }
        if let Some(line) = lines.iter().find(|line| !line.starts_with("secretfs: ")) {
            wrong.push(format!("a line that is not ours: {line}"));
        }
        for says in &self.says {
            let says = says.replace("@/", &format!("{}/", place.root().display()));
            if !stderr.contains(&says) {
                wrong.push(format!("does not say {says:?}"));
            }
        }
        if !stdout.is_empty() {
            let stdout = String::from_utf8_lossy(stdout);
            wrong.push(format!("something on stdout: {stdout}"));
        }
        for odd in [
            CANARY,
            "canary-Pq4nMw8",
            "panicked",
            "RUST_BACKTRACE",
            "AGE-SECRET-KEY-1",
        ] {
            if stderr.contains(odd) && !self.says.iter().any(|says| says.contains(odd)) {
                wrong.push(format!("says {odd:?}"));
            }
        }
        wrong
    }

    /// A failed command leaves everything as it was, but the lock, the count of starts, and the audit log, which only
    /// grows.
    fn changed(
        &self,
        before: &BTreeMap<PathBuf, Thing>,
        after: &BTreeMap<PathBuf, Thing>,
    ) -> Option<String> {
        let own = |path: &PathBuf| {
            path.starts_with("run")
                || path.starts_with("state")
                || path == &PathBuf::from("audit.jsonl")
                || path == &PathBuf::from("daemon.log")
                || self
                    .changes
                    .is_some_and(|name| path == &PathBuf::from(name))
        };
        let grown = |path: &PathBuf, thing: &Thing| match after.get(path) {
            Some(now) => now.content.starts_with(&thing.content),
            None => false,
        };
        let changed: Vec<&PathBuf> = before
            .iter()
            .filter(|(path, thing)| match own(path) {
                true => path.starts_with("audit.jsonl") && !grown(path, thing),
                false => after.get(*path) != Some(thing),
            })
            .map(|(path, _)| path)
            .chain(
                after
                    .keys()
                    .filter(|path| !before.contains_key(*path) && !own(path)),
            )
            .collect();
        (!changed.is_empty()).then(|| format!("changed {changed:?}"))
    }
}

fn at_place(word: &OsStr, place: &Place) -> OsString {
    match word.as_bytes().strip_prefix(b"@") {
        Some(rest) => {
            let mut path = place.root().as_os_str().to_owned();
            path.push(OsStr::from_bytes(rest));
            path
        }
        None => word.to_owned(),
    }
}

fn table() -> Vec<Case> {
    let mut table = arguments::cases();
    table.extend(accounts::cases());
    table.extend(audits::cases());
    table.extend(configs::cases());
    table.extend(copies::cases());
    table.extend(daemons::cases());
    table.extend(identities::cases());
    table.extend(mounts::cases());
    table.extend(stores::cases());
    table.extend(values::cases());
    table
}

/// Carries out what `chosen` says of each case, on two threads, and fails with all that is not as it should be.
fn carry_out(cases: Vec<Case>, chosen: impl Fn(&Case) -> Result<(), String> + Sync) {
    let failed = Mutex::new(Vec::new());
    let left = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(case) = left.lock().unwrap().pop() else {
                        break;
                    };
                    let judged = std::panic::catch_unwind(AssertUnwindSafe(|| chosen(&case)));
                    let judged =
                        judged.unwrap_or_else(|_| Err("it panicked: see above".to_owned()));
                    if let Err(wrong) = judged {
                        let line = format!("{}: {wrong}", case.name);
                        failed.lock().unwrap().push(line);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "\n{}\n{} failed",
        failed.join("\n"),
        failed.len()
    );
}

#[test]
fn the_table_is_long_enough_and_no_case_stands_twice() {
    let table = table();
    assert!(table.len() >= 80, "{}", table.len());
    let mut names: Vec<_> = table.iter().map(|case| case.name).collect();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(table.iter().all(|case| !case.says.is_empty()));
}

#[test]
fn what_is_wrong_is_told_in_a_line_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let cases = table()
        .into_iter()
        .filter(|case| case.daemon != Daemon::Needed)
        .collect();
    carry_out(cases, |case| {
        let place = Place::new();
        for given in &case.given {
            given(&place);
        }
        case.judge(&place)
    });
}

#[test]
fn the_same_is_told_when_a_daemon_serves() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new();
    place.serve();
    // What is given for one case is not in the way of the others: each writes files of its own.
    let cases = table()
        .into_iter()
        .filter(|case| case.daemon == Daemon::Either)
        .collect();
    let one_after_the_other = Mutex::new(());
    carry_out(cases, |case| {
        let _turn = one_after_the_other.lock();
        for given in &case.given {
            given(&place);
        }
        case.judge(&place)
    });
}

#[test]
fn what_goes_wrong_while_a_daemon_serves_is_told_too() {
    if !can_mount() {
        return;
    }
    let cases = table()
        .into_iter()
        .filter(|case| case.daemon == Daemon::Needed)
        .collect();
    carry_out(cases, |case| {
        let mut place = Place::new();
        place.serve();
        for given in &case.given {
            given(&place);
        }
        case.judge(&place)
    });
}
