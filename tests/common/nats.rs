//! A NATS server on loopback, with TLS and a token.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::authority::Authority;
use super::folder::Folder;
use super::kept::{Kept, free_address};
use super::machine::program;
use super::{DEADLINE, eventually};

const TOKEN: &str = "the-tests-own-token";

#[derive(Debug)]
pub(crate) struct Nats {
    server: Option<Kept>,
    socket: SocketAddr,
    authority: Authority,
    folder: Folder,
}

impl Nats {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let authority = Authority::new(folder.path());
        authority.server();
        fs::write(folder.at("token"), format!("{TOKEN}\n")).unwrap();
        let mut nats = Self {
            server: None,
            socket: free_address(),
            authority,
            folder,
        };
        nats.run();
        nats
    }

    /// Ends it without a warning.
    pub(crate) fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal(Signal::SIGKILL);
        }
    }

    /// Starts it (again), where it was.
    #[track_caller]
    pub(crate) fn run(&mut self) {
        let program = program("nats-server").expect("it is there");
        let port = self.socket.port().to_string();
        let at = |name| self.folder.text(name);
        let words = [
            program.to_str().unwrap(),
            "--addr",
            "127.0.0.1",
            "--port",
            &port,
            "--auth",
            TOKEN,
            "--tls",
            "--tlscert",
            &at("server.pem"),
            "--tlskey",
            &at("server.key"),
        ];
        let server = Kept::start(&self.folder, Signal::SIGKILL, None, &words);
        let listens = || TcpStream::connect(self.socket).is_ok();
        assert!(eventually(DEADLINE, listens), "{}", self.log());
        self.server = Some(server);
    }

    /// The section of a config.
    pub(crate) fn section(&self) -> String {
        self.section_with(&self.folder.at("token"))
    }

    /// The same, with another file as token.
    pub(crate) fn section_with(&self, token: &std::path::Path) -> String {
        let url = format!("tls://{}", self.socket);
        let (ca, token) = (self.authority.path(), token.display());
        format!(
            "[signals]\nnats = {{ url = \"{url}\", ca = \"{}\", token = {{ file = \"{token}\" }} }}\n",
            ca.display()
        )
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.at("server.log")).unwrap_or_default()
    }
}
