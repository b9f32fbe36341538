//! A real HashiCorp Vault in a folder of its own, or one for all tests of a program.
//!
//! It speaks TLS on loopback, keeps its secrets in files, so that they outlive it, writes an audit log, and has the event
//! stream on, if there is one ([`release::has_events`]). `secret/` is KV version 2 and `kv1/` version 1. See
//! [`Need::Vault`](super::machine::Need) for the program.

pub(crate) mod api;
mod audit;
mod database;
pub(crate) mod release;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::authority::Authority;
use super::folder::Folder;
use super::kept::{Kept, free_address};
use super::machine::vault_program;
use super::{DEADLINE, eventually};
use release::Release;

#[derive(Debug)]
pub(crate) struct Vault {
    /// Goes before the folder that it writes to.
    server: Mutex<Option<Kept>>,
    cluster: OnceLock<database::Cluster>,
    databases: AtomicU32,
    socket: SocketAddr,
    address: String,
    authority: Authority,
    client: reqwest::Client,
    root_token: String,
    key: String,
    folder: Folder,
}

impl Vault {
    /// Starts one, initialised and unsealed. It ends when dropped.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let authority = Authority::new(folder.path());
        authority.server();
        let socket = free_address();
        let mut vault = Self {
            server: Mutex::new(None),
            cluster: OnceLock::new(),
            databases: AtomicU32::new(0),
            socket,
            address: format!("https://{socket}"),
            client: api::client(&authority.pem()),
            authority,
            root_token: String::new(),
            key: String::new(),
            folder,
        };
        vault.configure();
        vault.run();
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let made = vault.call("PUT", "sys/init", shares);
        vault.key = text(&made["keys"][0]);
        vault.root_token = text(&made["root_token"]);
        vault.unseal();
        vault.set_up();
        vault
    }

    /// The one that all tests of this program share. Each test uses names of its own in it, and none ends or seals it.
    #[track_caller]
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Vault> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// `https://127.0.0.1:…`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The certificate of who signed the server's.
    pub(crate) fn ca(&self) -> PathBuf {
        self.authority.path()
    }

    /// Who signed it, to sign others.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Something in its folder.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    /// Ends it without a warning.
    #[track_caller]
    pub(crate) fn kill(&self) {
        let server = self.server.lock().unwrap().take().expect("Vault runs");
        server.signal(Signal::SIGKILL);
        drop(server);
    }

    /// Starts it again where it was, after ending it if need be, and unseals it.
    #[track_caller]
    pub(crate) fn restart(&self) {
        drop(self.server.lock().unwrap().take());
        self.run();
        self.unseal();
    }

    /// Stops it where it stands: it takes connections, as the kernel does that for it, and says nothing.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    #[track_caller]
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    #[track_caller]
    pub(crate) fn seal(&self) {
        self.call("PUT", "sys/seal", Value::Null);
    }

    /// Unseals it and waits until it serves.
    #[track_caller]
    pub(crate) fn unseal(&self) {
        self.call("PUT", "sys/unseal", json!({"key": self.key}));
        self.until("Vault serves", || self.health() == Some(200));
        if self.mounts_exist() {
            self.until("KV version 2 serves", || self.serves_kv());
        }
    }

    pub(crate) fn sealed(&self) -> bool {
        self.health() == Some(503)
    }

    /// The process, if there is one.
    pub(crate) fn pid(&self) -> Option<i32> {
        let server = self.server.lock().unwrap();
        server.as_ref().map(|server| server.pid().as_raw())
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.at("server.log")).unwrap_or_default()
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let server = self.server.lock().unwrap();
        server.as_ref().expect("Vault runs").signal(signal);
    }

    fn configure(&self) {
        let (folder, socket, address) = (self.folder.path().display(), self.socket, self.address());
        let (own, listener) = Release::asked_for().config(self.folder.path());
        let config = format!(
            r#"
disable_mlock = true
api_addr = "{address}"
{own}
listener "tcp" {{
  address = "{socket}"
  tls_cert_file = "{folder}/server.pem"
  tls_key_file = "{folder}/server.key"
  {listener}
}}
"#
        );
        fs::write(self.at("vault.hcl"), config).unwrap();
    }

    /// Starts the process and waits until it answers.
    #[track_caller]
    fn run(&self) {
        let program = vault_program().expect("Vault is there");
        let config = format!("-config={}", self.folder.text("vault.hcl"));
        let words = [program.to_str().unwrap(), "server", &config];
        let server = Kept::start(&self.folder, Signal::SIGKILL, None, &words);
        let answers = eventually(DEADLINE, || !server.runs() || self.health().is_some());
        assert!(
            answers && server.runs(),
            "Vault does not start: {}",
            self.log()
        );
        *self.server.lock().unwrap() = Some(server);
    }

    /// What each Vault has from its beginning.
    #[track_caller]
    fn set_up(&self) {
        let file = json!({"file_path": self.folder.text("audit.log"), "log_raw": "false"});
        let audit = json!({"type": "file", "options": file});
        self.call("PUT", "sys/audit/file", audit);
        for (mount, version) in [("secret", "2"), ("kv1", "1")] {
            let options = json!({"type": "kv", "options": {"version": version}});
            self.call("POST", &format!("sys/mounts/{mount}"), options);
        }
        self.until("KV version 2 takes writes", || {
            let body = json!({"data": {"a": "b"}});
            self.call_as(self.root_token(), "POST", "secret/data/ready", body)
                .is_ok()
        });
        self.call("DELETE", "secret/metadata/ready", Value::Null);
    }

    fn mounts_exist(&self) -> bool {
        let mounts = self.call("GET", "sys/mounts", Value::Null);
        mounts["data"].get("secret/").is_some()
    }

    /// A mount is not there at once, after it was made or the server unsealed.
    fn serves_kv(&self) -> bool {
        let listed = self.call_as(self.root_token(), "LIST", "secret/metadata/", Value::Null);
        !matches!(listed, Err((status, _)) if status != 404)
    }

    #[track_caller]
    fn until(&self, what: &str, done: impl FnMut() -> bool) {
        assert!(eventually(DEADLINE, done), "not so: {what}: {}", self.log());
    }
}

/// The section of a backend `vault` that signs in with a token.
pub(crate) fn section(vault: &Vault, token: &Path, more: &str) -> String {
    format!(
        "[backends.vault]\ntype = \"vault\"\naddress = \"{}\"\nca = \"{}\"\nauth = {{ method = \"token\", file = \"{}\" }}\n{more}\n",
        vault.address(),
        vault.ca().display(),
        token.display(),
    )
}

impl Drop for Vault {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("Vault's log:\n{}", self.log());
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
