//! Which Vault it is: 1.13.1, or the 1.21.0 that `SECRETFS_VAULT=1.21` asks `tests/servers/build` for.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use super::Vault;
use crate::common::kept::free_address;
use crate::common::machine::vault_program;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    /// All of 1.13.1, with its secrets in files and its events on.
    Whole,
    /// The minimal build of 1.21.0, with its secrets in raft's own files. It has no events, and PostgreSQL by a plugin.
    Minimal,
}

impl Release {
    #[track_caller]
    pub(super) fn asked_for() -> Self {
        match std::env::var("SECRETFS_VAULT").as_deref() {
            Ok("1.21") => Self::Minimal,
            Ok("") | Err(_) => Self::Whole,
            Ok(other) => panic!("SECRETFS_VAULT={other}: there is only 1.21"),
        }
    }

    /// What only this one has in its config, for a server whose files are in `folder`, and in the listener's section of it.
    #[track_caller]
    pub(super) fn config(self, folder: &Path) -> (String, String) {
        let storage = folder.join("storage");
        let path = storage.display();
        match self {
            Self::Whole => {
                let config = format!(
                    r#"
disable_clustering = true
experiments = ["events.alpha1"]
storage "file" {{
  path = "{path}"
}}
"#
                );
                (config, String::new())
            }
            Self::Minimal => {
                fs::create_dir(&storage).unwrap();
                // It is a cluster of one, which elects itself after a second instead of five. What it takes by itself is
                // at most 1 MiB with all that goes around a value, and the largest value is as large.
                let (cluster, plugins) = (free_address(), vault_program().unwrap());
                let plugins = plugins.parent().unwrap().display();
                let config = format!(
                    r#"
cluster_addr = "https://{cluster}"
plugin_directory = "{plugins}"
storage "raft" {{
  path = "{path}"
  node_id = "alone"
  performance_multiplier = "1"
  max_entry_size = "2097152"
}}
"#
                );
                (config, format!("cluster_address = \"{cluster}\""))
            }
        }
    }
}

impl Vault {
    /// Tells it of the plugin for PostgreSQL, where it is not part of it: its own program is that as well.
    #[track_caller]
    pub(super) fn provide_postgresql(&self) {
        if Release::asked_for() == Release::Whole {
            return;
        }
        let program = fs::read(vault_program().unwrap()).unwrap();
        let mut sum = String::new();
        for byte in digest(&SHA256, &program).as_ref() {
            write!(sum, "{byte:02x}").unwrap();
        }
        let plugin = json!({ "command": "vault", "args": ["postgresql"], "sha256": sum });
        let catalog = "sys/plugins/catalog/database/postgresql-database-plugin";
        self.call("PUT", catalog, plugin);
    }
}

/// False, after saying so, if the Vault that is asked for does not tell of changes by itself. That is no lack of the
/// machine's, so that it is no failure with `SECRETFS_REQUIRE_ALL=1`.
#[track_caller]
pub(crate) fn has_events() -> bool {
    if Release::asked_for() == Release::Whole {
        return true;
    }
    let place = std::panic::Location::caller();
    // Past what cargo keeps to itself of tests that pass.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: {place}: this Vault has no events"
    );
    false
}
