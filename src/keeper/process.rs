//! A child, whoever has started it: this program or the release of it that was here before an upgrade.

use std::process::Child;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::clock::Clock;

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this exit code.
    Code(i32),
    /// Killed by this signal.
    Signal(Signal),
}

/// A child that has not ended, or of which it is known how.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    ended: Option<End>,
}

impl Process {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, ended: None }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it has ended, if it has.
    pub(super) fn ended(&mut self) -> Option<End> {
        if self.ended.is_none() {
            self.ended = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(End::Code(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(End::Signal(signal)),
                Ok(_) => None,
                // There is no such child, so it was one.
                Err(_) => Some(End::Signal(Signal::SIGKILL)),
            };
        }
        self.ended
    }

    /// Waits for its end. False if it does not come in time.
    pub(super) fn ends_within(&mut self, within: Duration, clock: &Clock) -> bool {
        let deadline = clock.now() + within;
        while self.ended().is_none() {
            if clock.now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        // The kernel's pids are positive and fit.
        Self::new(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)))
    }
}
