//! Secrets of a real server, read from files.

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::vault::Vault;

const READER: u32 = 4001;

/// The section of a backend that signs in with a token.
pub(crate) fn section(vault: &Vault, token: &std::path::Path, more: &str) -> String {
    format!(
        "[backends.vault]\ntype = \"vault\"\naddress = \"{}\"\nca = \"{}\"\nauth = {{ method = \"token\", file = \"{}\" }}\n{more}\n",
        vault.address(),
        vault.ca().display(),
        token.display(),
    )
}

pub(crate) fn start(vault: &Vault, name: &str, more: &str) -> Daemon {
    let token = vault.at(&format!("token-{name}"));
    std::fs::write(&token, vault.root_token()).unwrap();
    let services = section(vault, &token, more);
    Setup {
        services: &services,
        ..Setup::default()
    }
    .start()
}

#[test]
fn a_field_a_record_a_version_and_a_folder_are_files() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    vault.put(
        "reading/web",
        json!({ "user": "u1", "password": "canary-1", "port": 5432 }),
    );
    vault.put(
        "reading/web",
        json!({ "user": "u2", "password": "canary-2", "port": 5432 }),
    );
    vault.put("reading/lone", json!({ "value": "raw" }));
    vault.call("POST", "kv1/reading", json!({ "key": "old", "n": 1 }));
    let daemon = start(
        vault,
        "reading",
        r#"
[services.bound]
allow = [{ uid = 4001 }]
[services.bound.secrets]
password = "vault:secret/reading/web#password"
port = "vault:secret/reading/web#port"
record = "vault:secret/reading/web"
first = "vault:secret/reading/web#password@1"
older = "vault:kv1/reading#key"
absent = "vault:secret/reading/none#x"
nofield = "vault:secret/reading/web#none"
nomount = "vault:nowhere/x#y"
[services.fields]
source = "vault:secret/reading/web"
allow = [{ uid = 4001 }]
[services.folder]
source = "vault:secret/reading/"
allow = [{ uid = 4001 }]
[services.plain]
source = "vault:kv1/reading"
allow = [{ uid = 4001 }]
"#,
    );
    let mut reader = daemon.probe(&Who::uid(READER));
    let mut cat = |path: &str| {
        let read = reader.cat(&daemon.path(path));
        read.map(|bytes| String::from_utf8(bytes).unwrap())
    };
    for (path, expected) in [
        ("bound/password", Ok("canary-2")),
        ("bound/port", Ok("5432")),
        ("bound/first", Ok("canary-1")),
        ("bound/older", Ok("old")),
        ("bound/absent", Err(Errno::ENOENT)),
        ("bound/nofield", Err(Errno::ENOENT)),
        ("fields/user", Ok("u2")),
        ("fields/none", Err(Errno::ENOENT)),
        ("folder/lone", Ok("raw")),
        ("plain/key", Ok("old")),
    ] {
        assert_eq!(cat(path), expected.map(str::to_owned), "{path}");
    }
    let record = cat("bound/record").unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        record,
        json!({ "user": "u2", "password": "canary-2", "port": 5432 })
    );
    assert_eq!(cat("folder/web").unwrap(), cat("bound/record").unwrap());
    let mut names = |path: &str| {
        let mut names = reader.list(&daemon.path(path)).unwrap();
        names.sort();
        names
    };
    assert_eq!(names("fields"), ["password", "port", "user"]);
    assert_eq!(names("folder"), ["lone", "web"]);
    assert_eq!(names("plain"), ["key", "n"]);
}
