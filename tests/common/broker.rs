//! Brokers on loopback that ask who comes: a NATS server with TLS and a token, a mosquitto with TLS, a client certificate and
//! a password.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::authority::Authority;
use super::folder::Folder;
use super::kept::{Kept, free_address};
use super::machine::program;
use super::{DEADLINE, eventually};

/// What is shown to be let in: a token there, a password here.
const WORD: &str = "the-tests-own-word";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nats,
    Mqtt,
}

#[derive(Debug)]
pub(crate) struct Broker {
    kind: Kind,
    server: Option<Kept>,
    socket: SocketAddr,
    authority: Authority,
    folder: Folder,
}

impl Kind {
    /// What a machine must have to run one.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Mqtt => "mosquitto",
        }
    }
}

impl Broker {
    #[track_caller]
    pub(crate) fn start(kind: Kind) -> Self {
        let folder = Folder::new();
        let authority = Authority::new(folder.path());
        authority.server();
        fs::write(folder.at("word"), format!("{WORD}\n")).unwrap();
        let socket = free_address();
        if kind == Kind::Mqtt {
            authority.client("node");
            prepare_mosquitto(&folder, socket);
        }
        let mut broker = Self {
            kind,
            server: None,
            socket,
            authority,
            folder,
        };
        broker.run();
        broker
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
        let program = program(self.kind.program()).expect("it is there");
        let mut words = vec![program.to_str().unwrap().to_owned()];
        let at = |name| self.folder.text(name);
        match self.kind {
            Kind::Mqtt => words.extend(["-c".to_owned(), at("mosquitto.conf")]),
            Kind::Nats => {
                words.extend(["--addr", "127.0.0.1", "--auth", WORD, "--tls"].map(str::to_owned));
                words.extend(["--port".to_owned(), self.socket.port().to_string()]);
                words.extend(["--tlscert".to_owned(), at("server.pem")]);
                words.extend(["--tlskey".to_owned(), at("server.key")]);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let server = Kept::start(&self.folder, Signal::SIGKILL, None, &words);
        let listens = || TcpStream::connect(self.socket).is_ok();
        assert!(eventually(DEADLINE, listens), "{}", self.log());
        self.server = Some(server);
    }

    /// The section of a config.
    pub(crate) fn section(&self) -> String {
        self.section_with(&self.folder.at("word"), &self.authority.path())
    }

    /// The same, with another file as token or password, and another authority.
    pub(crate) fn section_with(&self, word: &Path, ca: &Path) -> String {
        let (socket, word, ca) = (self.socket, word.display(), ca.display());
        match self.kind {
            Kind::Nats => format!(
                "[signals.nats]\nurl = \"tls://{socket}\"\nca = \"{ca}\"\ntoken = {{ file = \"{word}\" }}\n"
            ),
            Kind::Mqtt => format!(
                "[signals.mqtt]\nurl = \"mqtts://{socket}\"\nca = \"{ca}\"\nuser = \"node\"\npassword = {{ file = \"{word}\" }}\nclient = {{ certificate = \"{}\", key = \"{}\" }}\n",
                self.folder.text("client-node.pem"),
                self.folder.text("client-node.key"),
            ),
        }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.at("server.log")).unwrap_or_default()
    }

    /// Publishes bytes at the mosquitto.
    #[track_caller]
    pub(crate) fn publish(&self, topic: &str, bytes: &[u8]) {
        fs::write(self.at("message"), bytes).unwrap();
        let port = self.socket.port().to_string();
        let published = Command::new("mosquitto_pub")
            .args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port, "-q", "1"])
            .args(["-u", "node", "-P", WORD, "-t", topic, "-f"])
            .arg(self.at("message"))
            .arg("--cafile")
            .arg(self.authority.path())
            .arg("--cert")
            .arg(self.at("client-node.pem"))
            .arg("--key")
            .arg(self.at("client-node.key"))
            .output()
            .unwrap();
        assert!(published.status.success(), "{published:?}");
    }
}

/// It asks for a certificate and a password, and for what it says that it permits.
#[track_caller]
fn prepare_mosquitto(folder: &Folder, socket: SocketAddr) {
    let made = Command::new("mosquitto_passwd")
        .args(["-c", "-b", &folder.text("passwords"), "node", WORD])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let at = |name| folder.text(name);
    // Started as root it would become a user that may not read this.
    let config = format!(
        "listener {} 127.0.0.1\nuser root\nallow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        socket.port(),
        at("passwords"),
        at("ca.pem"),
        at("server.pem"),
        at("server.key"),
    );
    fs::write(folder.at("mosquitto.conf"), config).unwrap();
}
