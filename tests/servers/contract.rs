//! What holds of every backend, of a real server's KV engines.

use std::sync::{Arc, OnceLock};

use secretfs::backend::vault::Vault as Client;
use secretfs::backend::{Backend, Version};
use secretfs::secret::MAX_VALUE;
use serde_json::{Value, json};

use crate::asking::{at, backend, client, settings, token_file};
use crate::common::machine::{Need, has};
use crate::common::proxy::{Mode, Proxy};
use crate::common::vault::Vault;

#[path = "../common/contract.rs"]
#[allow(
    clippy::module_inception,
    reason = "the suite, and what it is run over here"
)]
mod contract;

use contract::{Can, Subject, Trouble};

/// A folder in one of the engines.
struct Engine {
    vault: &'static Vault,
    client: Client,
    mount: &'static str,
    folder: String,
    /// What stands between it and who is in trouble.
    proxy: OnceLock<Proxy>,
}

impl Engine {
    fn make(mount: &'static str, clause: &str) -> Option<Self> {
        if !has(&[Need::Vault]) {
            return None;
        }
        let vault = Vault::shared();
        let token = token_file(vault, &format!("{mount}-{clause}"), vault.root_token());
        Some(Self {
            vault,
            client: client(&settings(vault, token)),
            mount,
            folder: format!("contract/{clause}"),
            proxy: OnceLock::new(),
        })
    }

    fn versioned(&self) -> bool {
        self.mount == "secret"
    }

    fn call(&self, method: &str, part: &str, name: &str, body: Value) -> bool {
        let part = match self.versioned() {
            true => format!("/{part}"),
            false => String::new(),
        };
        let path = format!("{}{part}/{}/{name}", self.mount, self.folder);
        let root = self.vault.root_token();
        self.vault.call_as(root, method, &path, body).is_ok()
    }
}

impl Subject for Engine {
    fn backend(&self) -> &dyn Backend {
        &self.client
    }

    fn can(&self) -> Can {
        Can {
            versions: self.versioned(),
            // JSON is text. Whoever keeps bytes there encodes them, by a convention of their own.
            bytes: false,
            falls_back: false,
            largest: MAX_VALUE - r#"{"value":""}"#.len(),
            folders: false,
        }
    }

    fn reference(&self, name: &str) -> String {
        format!("b:{}/{}/{name}#value", self.mount, self.folder)
    }

    fn folder(&self) -> String {
        format!("{}/{}/", self.mount, self.folder)
    }

    fn put(&self, name: &str, value: &[u8]) -> bool {
        let record = json!({ "value": std::str::from_utf8(value).unwrap() });
        let body = match self.versioned() {
            true => json!({ "data": record }),
            false => record,
        };
        self.call("POST", "data", name, body)
    }

    fn destroy(&self, name: &str, version: &Version) {
        let number: u64 = version.as_str().parse().unwrap();
        let body = json!({ "versions": [number] });
        assert!(self.call("PUT", "destroy", name, body));
    }

    fn remove(&self, name: &str) {
        assert!(self.call("DELETE", "metadata", name, Value::Null));
    }

    fn in_trouble(&self, trouble: Trouble) -> Option<Arc<dyn Backend>> {
        let root = || self.vault.root_token().to_owned();
        let through = |mode| {
            let proxy = self.proxy.get_or_init(|| Proxy::to(self.vault.address()));
            proxy.set(mode);
            (proxy.address(), root())
        };
        let (address, token) = match trouble {
            Trouble::Refused => (self.vault.address(), self.vault.token(&["default"], "1h")),
            Trouble::Down => through(Mode::Refuse),
            Trouble::Silent => through(Mode::Stall),
        };
        let name = format!(
            "{}-{}-{trouble:?}",
            self.mount,
            self.folder.replace('/', "-")
        );
        let token = token_file(self.vault, &name, &token);
        let settings = at(address, self.vault.ca(), token);
        Some(backend(client(&settings)))
    }
}

mod kv_2 {
    use super::*;

    fn make(clause: &str) -> Option<Engine> {
        Engine::make("secret", clause)
    }

    contract::suite!(make);
}

mod kv_1 {
    use super::*;

    fn make(clause: &str) -> Option<Engine> {
        Engine::make("kv1", clause)
    }

    contract::suite!(make);
}
