//! System calls as another user: a process that makes one call after the other and says how each ended.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use serde_json::{Value, json};

use super::DEADLINE;
use super::machine::program;

/// The interpreter that probes run in.
pub(crate) const PYTHON: &str = "python3";
/// What it runs.
pub(crate) const SCRIPT: &str = include_str!("probe.py");

/// How a call ended.
pub(crate) type Got<T> = Result<T, Errno>;

/// Somebody to make calls as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    cgroup: Option<PathBuf>,
    wrapped: Vec<String>,
    interpreter: Option<PathBuf>,
}

impl Who {
    pub(crate) fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self {
            uid,
            gid,
            groups: groups.to_vec(),
            cgroup: None,
            wrapped: Vec::new(),
            interpreter: None,
        }
    }

    /// A user whose groups no rule names.
    pub(crate) fn uid(uid: u32) -> Self {
        Self::new(uid, 64_000, &[])
    }

    pub(crate) fn root() -> Self {
        Self::new(0, 0, &[])
    }

    /// The same, in this cgroup.
    pub(crate) fn in_cgroup(mut self, folder: &Path) -> Self {
        self.cgroup = Some(folder.to_owned());
        self
    }

    /// The same, started through these words, such as `unshare -U`.
    pub(crate) fn wrapped(mut self, words: &[&str]) -> Self {
        self.wrapped = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The same, in another interpreter.
    pub(crate) fn interpreter(mut self, path: &Path) -> Self {
        self.interpreter = Some(path.to_owned());
        self
    }

    /// A program, started as this user with a clean environment.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let mut command = match &self.cgroup {
            Some(folder) => {
                let mut shell = Command::new("/bin/sh");
                let join = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
                shell.args(["-c", join]).arg(folder).arg("setpriv");
                shell
            }
            None => Command::new("setpriv"),
        };
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            // Whatever becomes of the test, its children go with it.
            .args(["--pdeathsig", "KILL"])
            .args(["--reuid", &self.uid.to_string()])
            .args(["--regid", &self.gid.to_string()]);
        if groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            command.args(["--groups", &groups.join(",")]);
        }
        command.arg("--").args(&self.wrapped).args(words);
        command
    }
}

/// A process of somebody's.
#[derive(Debug)]
pub(crate) struct Probe {
    child: Child,
    wire: BufReader<UnixStream>,
}

/// What stat(2) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) size: u64,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) ino: u64,
}

impl Probe {
    /// Starts one; `script` is where [`SCRIPT`] stands.
    pub(crate) fn start(who: &Who, script: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        let python = who
            .interpreter
            .clone()
            .unwrap_or_else(|| program(PYTHON).unwrap());
        let child = who
            .command(&[python.to_str().unwrap(), "-I", script.to_str().unwrap()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            wire: BufReader::new(ours),
        }
    }

    /// Makes a call that is waited for.
    #[track_caller]
    pub(crate) fn ask(&mut self, op: &str, args: Value) -> Got<Value> {
        self.begin(op, args);
        self.answer(op)
    }

    /// Waits for the answer to a call that was begun.
    #[track_caller]
    pub(crate) fn answer(&mut self, op: &str) -> Got<Value> {
        let mut line = String::new();
        let answer: Value = match self.wire.read_line(&mut line) {
            Ok(_) => serde_json::from_str(&line)
                .unwrap_or_else(|_| panic!("{op}: the probe ended; see its traceback")),
            Err(_) => panic!("{op}: no answer within {DEADLINE:?}"),
        };
        match answer.get("errno") {
            Some(errno) => Err(Errno::from_raw(
                errno.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap(),
            )),
            None => Ok(answer["ok"].clone()),
        }
    }

    /// Asks for a call and does not wait for it.
    pub(crate) fn begin(&mut self, op: &str, args: Value) {
        let line = format!("{}\n", json!({"op": op, "args": args}));
        self.wire.get_mut().write_all(line.as_bytes()).unwrap();
    }

    /// A call that gives bytes.
    #[track_caller]
    pub(crate) fn bytes(&mut self, op: &str, args: Value) -> Got<Vec<u8>> {
        self.begin(op, args);
        self.bytes_of(op)
    }

    /// Waits for the bytes that a call gives that was begun.
    #[track_caller]
    pub(crate) fn bytes_of(&mut self, op: &str) -> Got<Vec<u8>> {
        self.answer(op).map(|value| unhex(&value))
    }

    #[track_caller]
    pub(crate) fn open(&mut self, path: &Path) -> Got<i64> {
        self.open_with(path, 0)
    }

    #[track_caller]
    pub(crate) fn open_with(&mut self, path: &Path, flags: i32) -> Got<i64> {
        self.ask("open", json!([path, flags]))
            .map(|fd| fd.as_i64().unwrap())
    }

    /// Closes a descriptor; on a dead mount close(2) says so, and closes it all the same.
    #[track_caller]
    pub(crate) fn close(&mut self, fd: i64) {
        let _ = self.ask("close", json!([fd]));
    }

    /// The first 128 KiB of an open file.
    #[track_caller]
    pub(crate) fn pread(&mut self, fd: i64) -> Got<Vec<u8>> {
        self.bytes("pread", json!([fd, 1 << 17, 0]))
    }

    /// Opens, reads to the end, closes.
    #[track_caller]
    pub(crate) fn cat(&mut self, path: &Path) -> Got<Vec<u8>> {
        self.bytes("cat", json!([path]))
    }

    #[track_caller]
    pub(crate) fn stat(&mut self, path: &Path) -> Got<Stat> {
        self.ask("stat", json!([path])).map(|value| stat(&value))
    }

    #[track_caller]
    pub(crate) fn fstat(&mut self, fd: i64) -> Got<Stat> {
        self.ask("fstat", json!([fd])).map(|value| stat(&value))
    }

    #[track_caller]
    pub(crate) fn access(&mut self, path: &Path, mode: i32) -> Got<()> {
        self.ask("access", json!([path, mode])).map(drop)
    }

    #[track_caller]
    pub(crate) fn list(&mut self, path: &Path) -> Got<Vec<String>> {
        self.ask("list", json!([path])).map(|names| strings(&names))
    }

    #[track_caller]
    pub(crate) fn getxattr(&mut self, path: &Path, name: &str) -> Got<Vec<u8>> {
        self.bytes("getxattr", json!([path, name]))
    }

    #[track_caller]
    pub(crate) fn listxattr(&mut self, path: &Path) -> Got<Vec<String>> {
        self.ask("listxattr", json!([path]))
            .map(|names| strings(&names))
    }

    /// What a mapping of `length` bytes shows.
    #[track_caller]
    pub(crate) fn map(&mut self, fd: i64, length: usize) -> Got<Vec<u8>> {
        self.bytes("map", json!([fd, length]))
    }

    #[track_caller]
    pub(crate) fn sendfile(&mut self, fd: i64) -> Got<Vec<u8>> {
        self.bytes("sendfile", json!([fd]))
    }

    #[track_caller]
    pub(crate) fn splice(&mut self, fd: i64) -> Got<Vec<u8>> {
        self.bytes("splice", json!([fd]))
    }

    /// A function of Python's `os` by its name.
    #[track_caller]
    pub(crate) fn os(&mut self, name: &str, args: Value) -> Got<()> {
        let mut all = vec![json!(name)];
        all.extend(args.as_array().cloned().unwrap());
        self.ask("os", Value::Array(all)).map(drop)
    }

    /// Hands a descriptor to another process, and says its number there.
    #[track_caller]
    pub(crate) fn give(&mut self, fd: i64, to: &mut Self, door: &Path) -> i64 {
        to.ask("listen", json!([door])).unwrap();
        self.ask("pass_on", json!([fd, door])).unwrap();
        to.ask("accept", json!([])).unwrap().as_i64().unwrap()
    }

    /// Runs a program with these descriptors: exit code and standard output.
    #[track_caller]
    pub(crate) fn run(&mut self, words: &[&str], fds: &[i64]) -> (i64, Vec<u8>) {
        let done = self.ask("run", json!([words, fds])).unwrap();
        (done["code"].as_i64().unwrap(), unhex(&done["stdout"]))
    }

    /// Its process, in its own pid namespace.
    #[track_caller]
    pub(crate) fn pid(&mut self) -> i64 {
        self.ask("pid", json!([])).unwrap().as_i64().unwrap()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Closing the wire ends it; what hangs is killed, and let go when its daemon is aborted.
        let _ = self.wire.get_ref().shutdown(std::net::Shutdown::Both);
        if super::wait(&mut self.child, std::time::Duration::from_millis(500)).is_none() {
            let _ = self.child.kill();
            let _ = super::wait(&mut self.child, std::time::Duration::from_secs(1));
        }
    }
}

fn stat(value: &Value) -> Stat {
    let field = |name: &str| value[name].as_u64().unwrap();
    Stat {
        size: field("size"),
        mode: field("mode"),
        uid: field("uid"),
        gid: field("gid"),
        ino: field("ino"),
    }
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Bytes from hexadecimal digits.
fn unhex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
