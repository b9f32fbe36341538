//! A service that signs in for itself sees what its own token may, and nothing of another's.

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::Setup;
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::vault::{Vault, section};

#[test]
fn the_server_s_own_policy_is_a_second_wall() {
    needs!(Need::Vault);
    let vault = Vault::shared();
    vault.put("walls/a", json!({ "x": "of a" }));
    vault.put("walls/b", json!({ "x": "of b" }));
    let mut auth = Vec::new();
    for name in ["a", "b"] {
        let rules = format!("path \"secret/data/walls/{name}\" {{ capabilities = [\"read\"] }}");
        vault.policy(&format!("wall-{name}"), &rules);
        let token = vault.at(&format!("token-wall-{name}"));
        std::fs::write(&token, vault.token(&[&format!("wall-{name}")], "1h")).unwrap();
        auth.push(token);
    }
    let services = section(
        vault,
        &vault.at("no-token"),
        &format!(
            r#"
[services.a]
allow = [{{ uid = 4001 }}]
auth = {{ method = "token", file = "{}" }}
secrets = {{ own = "vault:secret/walls/a#x", other = "vault:secret/walls/b#x" }}
[services.b]
allow = [{{ uid = 4001 }}]
auth = {{ method = "token", file = "{}" }}
secrets = {{ own = "vault:secret/walls/b#x", other = "vault:secret/walls/a#x" }}
[services.none]
allow = [{{ uid = 4001 }}]
secrets = {{ a = "vault:secret/walls/a#x" }}
"#,
            auth[0].display(),
            auth[1].display()
        ),
    );
    let daemon = Setup {
        services: &services,
        ..Setup::default()
    }
    .start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for (path, expected) in [
        ("a/own", Ok(b"of a".to_vec())),
        ("b/own", Ok(b"of b".to_vec())),
        ("a/other", Err(Errno::EACCES)),
        ("b/other", Err(Errno::EACCES)),
        ("none/a", Err(Errno::EACCES)),
    ] {
        assert_eq!(reader.cat(&daemon.path(path)), expected, "{path}");
    }
    let status = daemon.secretfs(&["status"], b"").expect_ok();
    let status = String::from_utf8(status).unwrap();
    assert!(
        status.contains("vault@a") && status.contains("vault@b"),
        "{status}"
    );
}
