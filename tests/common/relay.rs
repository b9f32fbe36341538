//! The real `secretfs relay` beside a Vault of a test's.

use std::fs;

use nix::sys::signal::Signal;

use super::broker::Broker;
use super::folder::Folder;
use super::kept::Kept;
use super::vault::{Vault, section};
use super::{DEADLINE, eventually};

/// A relay, with a config in which there is nothing but the server and the broker.
#[derive(Debug)]
pub(crate) struct Relay {
    process: Kept,
    folder: Folder,
}

impl Relay {
    /// Starts one that follows this audit log: `--audit-file` or `--audit-socket`, and where.
    #[track_caller]
    pub(crate) fn start(vault: &Vault, broker: &Broker, log: [&str; 2]) -> Self {
        let folder = Folder::new();
        let config = section(vault, &vault.at("no-token-at-all"), "") + &broker.section();
        fs::write(folder.at("config.toml"), config).unwrap();
        let config = folder.text("config.toml");
        let mut words = vec![env!("CARGO_BIN_EXE_secretfs"), "--config", &config, "relay"];
        words.extend(["--json", "--backend", "vault"]);
        words.extend(log);
        let process = Kept::start(&folder, Signal::SIGTERM, None, &words);
        let relay = Self { process, folder };
        let ready = || relay.log().contains("connected to the broker");
        assert!(eventually(DEADLINE, ready), "{}", relay.log());
        relay
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.at("server.log")).unwrap_or_default()
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.runs()
    }
}
