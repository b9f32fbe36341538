//! A program that says things line by line while the test goes on.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use secretfs::clock::Clock;

use super::DEADLINE;

/// Runs until it is dropped. What it says on either stream is kept, in the order of its lines.
#[derive(Debug)]
pub(crate) struct Speaker {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// What it has said so far.
    said: Vec<String>,
}

impl Speaker {
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (line, lines) = mpsc::channel();
        pass_on(child.stdout.take().unwrap(), line.clone());
        pass_on(child.stderr.take().unwrap(), line);
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits for a line that is like this. What was said before it is passed over.
    #[track_caller]
    pub(crate) fn until(&mut self, mut like: impl FnMut(&str) -> bool) -> String {
        let clock = Clock::default();
        let deadline = clock.now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(clock.now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if like(&line) {
                        return line;
                    }
                }
                Err(why) => panic!("{why}: it has only said {:#?}", self.said),
            }
        }
    }

    /// Waits for a line with this in it.
    #[track_caller]
    pub(crate) fn says(&mut self, part: &str) -> String {
        self.until(|line| line.contains(part))
    }

    /// Tells it a line.
    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.stdin.flush().unwrap();
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
}
