//! A server that a test starts, and that ends with the test program however that ends.
//!
//! A signal at the parent's death would not do: it comes when the thread ends that started the server, and a server that
//! all tests of a program share outlives the test that was first. So a shell stands between: it ends the server when the
//! pipe from the test program closes, which the kernel sees to, and the server is killed should the shell be.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::folder::Folder;
use super::{DEADLINE, wait};

/// Says the server's number, waits for a word or the pipe's end, and ends the server. Without a word nobody is left to
/// remove the folder. Interrupting the test from a terminal must not end the shell before its server.
const SHELL: &str = r#"
signal=$1 folder=$2
shift 2
"$@" </dev/null >>"$folder/server.log" 2>&1 &
server=$!
trap '' HUP INT
echo $server
read -r _ && told=yes
kill -s "$signal" $server
kill -s CONT $server
wait $server
[ "$told" ] || rm -rf -- "$folder"
"#;

#[derive(Debug)]
pub(crate) struct Kept {
    shell: Child,
    server: Pid,
}

impl Kept {
    /// Starts a program in a folder, as a user or as we are. What it says goes to `server.log` there; the signal is the one
    /// to end it with.
    #[track_caller]
    pub(crate) fn start(folder: &Folder, end: Signal, user: Option<&str>, words: &[&str]) -> Self {
        let end = end.as_str().trim_start_matches("SIG");
        let mut command = Command::new("/bin/sh");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", folder.path())
            .current_dir("/")
            .args(["-c", SHELL, "sh", end])
            .arg(folder.path())
            .args(["setpriv", "--pdeathsig", end]);
        if let Some(user) = user {
            command
                .args(["--reuid", user, "--regid", user])
                .arg("--clear-groups");
        }
        let mut shell = command
            .arg("--")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let server = Pid::from_raw(line.trim().parse().unwrap());
        Self { shell, server }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.server
    }

    /// Whether it has not ended. Its number stays taken until we let go of it.
    pub(crate) fn runs(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server)).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.server, signal).unwrap();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(mut word) = self.shell.stdin.take() {
            let _ = word.write_all(b"end\n");
        }
        if wait(&mut self.shell, DEADLINE).is_none() {
            eprintln!("the server {} does not end", self.server);
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }
}

/// An address on loopback for a server of our own. The port is below those that the kernel gives to whoever connects, so
/// that it is still free when the server comes back to it.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Programs that run at the same time begin at different places, and each takes a hundred or two.
    let start = u16::try_from(std::process::id() % 40).unwrap() * 300;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port is free");
}
