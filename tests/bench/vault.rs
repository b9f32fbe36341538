//! What secrets from a server cost: a real Vault on loopback, over TLS, and the real daemon before it.
//!
//! Each scenario has a daemon of its own and a baseline of its own, measured in turn with it. How many requests the server
//! saw is counted in the server's own audit log.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};
use secretfs::clock::Clock;
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::machine::{Need, has};
use crate::common::vault::{Vault, section};
use crate::contenders::Daemon;
use crate::load::{self, Sample};
use crate::tree::{KILO, SMALL, numbered, value};

mod changes;
mod cold;
mod outage;
mod polls;
mod warm;

/// How much of everything.
pub(crate) struct Scale {
    pub(crate) rounds: usize,
    /// Of one round of warm opens.
    pub(crate) turns: usize,
    /// Records on the server.
    pub(crate) many: usize,
    /// Of these so many are opened cold in each round.
    pub(crate) cold: usize,
    /// Readers of one secret.
    pub(crate) readers: usize,
    /// Writes that are waited for, in each way to hear of them.
    pub(crate) writes: usize,
    /// `poll` where requests are counted, and for how many of it.
    pub(crate) poll: Duration,
    pub(crate) polls: u32,
    /// For how long one reads before the server is away, and as long while it is.
    pub(crate) outage: Duration,
    pub(crate) outage_ttl: Duration,
}

/// What was measured with a server.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) times: Vec<Beside>,
    pub(crate) counts: Vec<Count>,
}

/// How long something takes, beside something else in the same rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Beside {
    pub(crate) what: String,
    pub(crate) beside: &'static str,
    pub(crate) ours: Vec<Sample>,
    pub(crate) theirs: Vec<Sample>,
}

/// How often the server was asked, and how often it should be at most.
#[derive(Debug, Serialize)]
pub(crate) struct Count {
    pub(crate) what: String,
    pub(crate) count: f64,
    pub(crate) goal: f64,
}

/// Measures what is wanted of it. Nothing, and that is said, where there is no Vault.
pub(crate) fn run(scale: &Scale, wanted: &dyn Fn(&str) -> bool, clock: &Clock) -> Figures {
    let mut figures = Figures::default();
    let scenarios: [(&str, Scenario); 5] = [
        (warm::NAME, warm::run),
        (cold::NAME, cold::run),
        (polls::NAME, polls::run),
        (changes::NAME, changes::run),
        (outage::NAME, outage::run),
    ];
    let scenarios: Vec<_> = scenarios
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    if scenarios.is_empty() || !has(&[Need::Vault]) {
        return figures;
    }
    let world = World::new(scale.many, clock);
    for (name, run) in scenarios {
        eprintln!("{name}");
        run(&world, scale, &mut figures);
    }
    figures
}

type Scenario = fn(&World<'_>, &Scale, &mut Figures);

/// A daemon and its folder, which goes after it.
struct Served {
    daemon: Daemon,
    _folder: TempDir,
}

/// A server with records in it.
struct World<'a> {
    vault: Vault,
    client: Client,
    /// Makes a connection for each request.
    stranger: Client,
    runtime: Runtime,
    clock: &'a Clock,
}

impl<'a> World<'a> {
    /// `secret/many/` has so many records of 1 KiB, and `secret/warm/` the two of the embedded store.
    fn new(many: usize, clock: &'a Clock) -> Self {
        eprintln!("writing {many} records to Vault");
        let vault = Vault::start();
        let ca = fs::read(vault.ca()).expect("a certificate");
        let client = |kept| {
            let client = Client::builder()
                .tls_certs_only([Certificate::from_pem(&ca).expect("a certificate")])
                .no_proxy()
                .redirect(redirect::Policy::none())
                .http1_only()
                .pool_max_idle_per_host(kept);
            client.build().expect("a client")
        };
        // As the daemon's own, so that what is compared is not how a task is waited for.
        let runtime = secretfs::run::runtime().expect("a runtime");
        let world = Self {
            vault,
            client: client(usize::MAX),
            stranger: client(0),
            runtime,
            clock,
        };
        world.write("warm", SMALL, &value(64));
        world.write("warm", KILO, &value(1024));
        let kilo = value(1024);
        std::thread::scope(|scope| {
            for part in 0..8 {
                let (world, kilo) = (&world, &kilo);
                scope.spawn(move || {
                    for index in (part..many).step_by(8) {
                        world.write("many", &numbered(index), kilo);
                    }
                });
            }
        });
        world
    }

    /// A new version of `secret/FOLDER/NAME`, which is raw where it is shown.
    fn write(&self, folder: &str, name: &str, value: &[u8]) {
        let text = std::str::from_utf8(value).expect("text");
        let body = json!({ "data": { "value": text } }).to_string();
        let url = format!("{}/v1/secret/data/{folder}/{name}", self.vault.address());
        let request = self.client.post(url).body(body);
        let _ = self.ask(request);
    }

    /// One request for a record, and nothing else: what a client without us waits for.
    fn read(&self, folder: &str, name: &str) -> usize {
        self.read_with(&self.client, folder, name)
    }

    /// The same on a connection of its own: what a program waits for that needs one secret when it starts.
    fn read_as_stranger(&self, folder: &str, name: &str) -> usize {
        self.read_with(&self.stranger, folder, name)
    }

    fn read_with(&self, client: &Client, folder: &str, name: &str) -> usize {
        let url = format!("{}/v1/secret/data/{folder}/{name}", self.vault.address());
        self.ask(client.get(url))
    }

    /// The length of the answer, which must be one.
    fn ask(&self, request: reqwest::RequestBuilder) -> usize {
        let request = request.header("X-Vault-Token", self.vault.root_token());
        let request = request.header("X-Vault-Request", "true");
        self.runtime.block_on(async {
            let answer = request.send().await.expect("an answer");
            let answer = answer.error_for_status().expect("a yes");
            answer.bytes().await.expect("a body").len()
        })
    }

    /// A daemon whose config has this server as `vault` with these keys, and these sections; it signs in with a token of
    /// these policies.
    fn serve(&self, policies: &[&str], keys: &str, sections: &str) -> Served {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let token = folder.path().join("token");
        fs::write(&token, self.vault.token(policies, "24h")).expect("a token");
        let more = section(&self.vault, &token, keys) + sections;
        let daemon = Daemon::start(folder.path(), 1, &more, self.clock);
        Served {
            daemon,
            _folder: folder,
        }
    }

    /// Where the server's audit log ends now.
    fn mark(&self) -> u64 {
        let log = fs::metadata(self.vault.at("audit.log"));
        log.expect("an audit log").len()
    }

    /// How many requests there were since then for paths that begin so.
    fn requests(&self, since: u64, prefix: &str) -> usize {
        let mut log = File::open(self.vault.at("audit.log")).expect("an audit log");
        log.seek(SeekFrom::Start(since)).expect("seeks");
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        let path = format!("\"path\":\"{prefix}");
        let requests = text
            .lines()
            .filter(|line| line.contains(&path) && line.contains("\"type\":\"request\""));
        requests.count()
    }
}

/// open, read, close of a file of this size, once.
fn open(path: &Path, size: usize, clock: &Clock) -> Duration {
    let start = clock.now();
    load::read(path, &mut [0; 4096], size);
    clock.now() - start
}
