//! Users of a database that the server makes for us, through files.

use std::time::Duration;

use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::vault::Vault;
use crate::common::{DEADLINE, eventually};
use crate::reading::start;

#[test]
fn user_and_password_are_of_one_lease_which_is_renewed_replaced_and_revoked() {
    needs!(Need::Vault, Need::Postgres);
    let vault = Vault::start();
    let database = vault.database("3s", "8s");
    let path = database.credentials();
    let mut daemon = start(
        &vault,
        "leases",
        &format!(
            r#"
[services.app]
allow = [{{ uid = 4001 }}]
[services.app.secrets]
user = "vault:{path}#username"
password = "vault:{path}#password"
both = "vault:{path}"
"#
        ),
    );
    let folder = daemon.path("app");
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut read = |name: &str| {
        let bytes = reader.cat(&folder.join(name)).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let pair = (read("user"), read("password"));
    assert!(database.lets_in(&pair.0, &pair.1));
    let both: serde_json::Value = serde_json::from_str(&read("both")).unwrap();
    assert_eq!(both["username"], pair.0.as_str());
    assert_eq!(database.users().len(), 1);
    let status = daemon.secretfs(&["status"], b"");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("1 held, the next ends 2"), "{status}");

    // It is renewed as long as somebody reads it, and replaced before it ends for good: there is always one that is good.
    let mut users = std::collections::BTreeSet::new();
    let began = secretfs::clock::Clock::default();
    let start = began.now();
    while began.now() - start < Duration::from_secs(12) {
        let record: serde_json::Value = serde_json::from_str(&read("both")).unwrap();
        let (user, password) = (&record["username"], &record["password"]);
        let (user, password) = (user.as_str().unwrap(), password.as_str().unwrap());
        assert!(database.lets_in(user, password), "{users:?}");
        users.insert(user.to_owned());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!((2..=4).contains(&users.len()), "{users:?}");
    assert!(vault.counted("sys/leases/renew") >= 1);

    // What is revoked is no good any more, there either.
    let last = read("user");
    daemon.secretfs(&["revoke", "app"], b"").expect_ok();
    assert!(eventually(DEADLINE, || !database.has(&last)), "{last}");
    daemon.secretfs(&["unrevoke", "app"], b"").expect_ok();
    let last = read("user");
    assert!(database.has(&last));
    drop(reader);
    daemon.stop();
    assert!(eventually(DEADLINE, || !database.has(&last)), "{last}");
}
