//! A PostgreSQL of a test's, in which Vault makes users that last as long as their leases.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use serde_json::json;

use super::Vault;
use crate::common::folder::Folder;
use crate::common::kept::{Kept, free_address};
use crate::common::machine::postgres_programs;
use crate::common::{DEADLINE, Output, eventually, run};

/// Who may do everything, and with what password.
const ADMIN: &str = "postgres";
const PASSWORD: &str = "the-tests-own";

/// A server that runs for as long as its Vault.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Goes before its folder.
    _server: Kept,
    socket: SocketAddr,
    programs: PathBuf,
    _folder: Folder,
}

/// A database engine of Vault's on its PostgreSQL, with the role `readonly`.
#[derive(Debug)]
pub(crate) struct Database<'a> {
    cluster: &'a Cluster,
    mount: String,
}

impl Vault {
    /// A database engine whose leases last so long: `("10s", "1m")`. The first of a Vault's is at `database/`.
    #[track_caller]
    pub(crate) fn database(&self, ttl: &str, max_ttl: &str) -> Database<'_> {
        let cluster = self.cluster.get_or_init(|| {
            self.provide_postgresql();
            Cluster::start()
        });
        let mount = match self.databases.fetch_add(1, Ordering::Relaxed) {
            0 => "database".to_owned(),
            others => format!("database-{}", others + 1),
        };
        self.enable(&format!("mounts/{mount}"), "database");
        let url = format!(
            "postgresql://{{{{username}}}}:{{{{password}}}}@{}/postgres?sslmode=disable",
            cluster.socket
        );
        let config = json!({
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "readonly",
            "connection_url": url,
            "username": ADMIN,
            "password": PASSWORD,
        });
        self.call("POST", &format!("{mount}/config/postgres"), config);
        let role = json!({
            "db_name": "postgres",
            "creation_statements": "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' \
                VALID UNTIL '{{expiration}}'",
            "default_ttl": ttl,
            "max_ttl": max_ttl,
        });
        self.call("POST", &format!("{mount}/roles/readonly"), role);
        Database { cluster, mount }
    }
}

impl Database<'_> {
    /// Where Vault has it: `database`.
    pub(crate) fn mount(&self) -> &str {
        &self.mount
    }

    /// What gives a new user: `database/creds/readonly`.
    pub(crate) fn credentials(&self) -> String {
        format!("{}/creds/readonly", self.mount)
    }

    /// Whether somebody can sign in with this.
    pub(crate) fn lets_in(&self, user: &str, password: &str) -> bool {
        self.cluster.psql(user, password, "SELECT 1").code() == 0
    }

    /// Whether there is a user of this name.
    #[track_caller]
    pub(crate) fn has(&self, user: &str) -> bool {
        self.users().iter().any(|name| name == user)
    }

    /// All users that Vault made, for whichever role.
    #[track_caller]
    pub(crate) fn users(&self) -> Vec<String> {
        let names = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%' ORDER BY rolname";
        self.sql(names)
    }

    /// The lines that a statement gives, as the one who may do everything.
    #[track_caller]
    pub(crate) fn sql(&self, statement: &str) -> Vec<String> {
        let output = self.cluster.psql(ADMIN, PASSWORD, statement).expect_ok();
        let lines = String::from_utf8(output).unwrap();
        lines.lines().map(str::to_owned).collect()
    }
}

impl Cluster {
    #[track_caller]
    fn start() -> Self {
        let programs = postgres_programs().expect("PostgreSQL is there");
        let (folder, socket) = (Folder::new(), free_address());
        // It refuses to be root.
        let user = geteuid().is_root().then_some(ADMIN);
        let data = folder.text("data");
        fs::create_dir(&data).unwrap();
        fs::write(folder.at("password"), PASSWORD).unwrap();
        if let Some(name) = user {
            let user = User::from_name(name).unwrap().unwrap();
            chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let password = format!("--pwfile={}", folder.text("password"));
        let mut words = Vec::new();
        if let Some(user) = user {
            words.extend(["setpriv", "--reuid", user, "--regid", user]);
            words.extend(["--clear-groups", "--"]);
        }
        let initdb = programs.join("initdb");
        words.extend([
            initdb.to_str().unwrap(),
            "-D",
            &data,
            "-U",
            ADMIN,
            &password,
        ]);
        words.extend(["--auth=scram-sha-256", "--locale=C", "--no-sync"]);
        run(
            Command::new(words[0]).args(&words[1..]).current_dir("/"),
            b"",
        )
        .expect_ok();
        let (port, postgres) = (socket.port().to_string(), programs.join("postgres"));
        let words = [postgres.to_str().unwrap(), "-D", &data, "-p", &port];
        let settings = ["-h", "127.0.0.1", "-k", "", "-F"];
        // Killed, it would leave its shared memory behind.
        let end = Signal::SIGQUIT;
        let server = Kept::start(&folder, end, user, &[&words[..], &settings[..]].concat());
        let cluster = Self {
            _server: server,
            socket,
            programs,
            _folder: folder,
        };
        let serves = || cluster.psql(ADMIN, PASSWORD, "SELECT 1").code() == 0;
        let log = || fs::read_to_string(cluster._folder.at("server.log"));
        assert!(eventually(DEADLINE, serves), "{:?}", log());
        cluster
    }

    #[track_caller]
    fn psql(&self, user: &str, password: &str, statement: &str) -> Output {
        let mut command = Command::new(self.programs.join("psql"));
        command
            .env_clear()
            .env("PGPASSWORD", password)
            .env("PGCONNECT_TIMEOUT", "10")
            .args(["--no-psqlrc", "--no-password", "-h", "127.0.0.1"])
            .args(["-p", &self.socket.port().to_string(), "-U", user])
            .args(["-A", "-t", "-c", statement, "postgres"]);
        run(&mut command, b"")
    }
}
