//! What tests of the real program share: a daemon in a folder of its own, other users to make system calls as, and the
//! promise that a test leaves no mount and no process behind, however it ends.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use secretfs::clock::Clock;

pub(crate) mod authority;
pub(crate) mod broker;
pub(crate) mod cgroups;
pub(crate) mod daemon;
pub(crate) mod ears;
pub(crate) mod folder;
pub(crate) mod impostor;
pub(crate) mod kept;
pub(crate) mod machine;
pub(crate) mod mounts;
pub(crate) mod probe;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod runtime;
pub(crate) mod speaker;
pub(crate) mod vault;

/// How long anything may take that is not expected to take any time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// How many times longer than usual what goes by chance goes on: `tests/soak` asks for more.
pub(crate) fn patience() -> u32 {
    std::env::var("SECRETFS_SOAK")
        .ok()
        .and_then(|times| times.parse().ok())
        .unwrap_or(1)
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Output {
    /// Its exit code; a signal is 128 and its number, as in a shell.
    pub(crate) fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// What it printed, if it succeeded.
    #[track_caller]
    pub(crate) fn expect_ok(self) -> Vec<u8> {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }
}

/// Runs a program to its end, which must come before [`DEADLINE`].
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    run_within(DEADLINE, command, input)
}

/// The same of one that may take so long.
#[track_caller]
pub(crate) fn run_within(deadline: Duration, command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut stdin, mut stdout, mut stderr) = (
        child.stdin.take().unwrap(),
        child.stdout.take().unwrap(),
        child.stderr.take().unwrap(),
    );
    let input = input.to_vec();
    // Who does not read to the end has its reasons.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let out = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let Some(status) = wait(&mut child, deadline) else {
        let _ = child.kill();
        panic!("{command:?} hangs");
    };
    Output {
        status,
        stdout: out.join().unwrap().unwrap(),
        stderr: String::from_utf8_lossy(&err.join().unwrap().unwrap()).into_owned(),
    }
}

/// Waits for a child; `None` if it does not end in time.
pub(crate) fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let mut status = None;
    eventually(within, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status
}

/// Asks again and again, and says whether the answer was yes in time.
pub(crate) fn eventually(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    let clock = Clock::default();
    let deadline = clock.now() + within;
    loop {
        if done() {
            return true;
        }
        if clock.now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
