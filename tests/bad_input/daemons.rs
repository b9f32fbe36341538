//! Daemons that are not there, not ours, silent, or twice; and runtime folders that cannot be used.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

use crate::scratch::STRANGER;
use crate::{Case, Place, case};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "a second daemon",
            "mount",
            1,
            &[
                "@/run/lock",
                "another daemon serves this config",
                "secretfs unmount",
            ],
        )
        .served(),
        case(
            "a second quick start",
            "up @",
            1,
            &[
                "@/secrets",
                "a daemon serves it already",
                "secretfs unmount",
            ],
        )
        .without_config()
        .served(),
        case(
            "a socket that says nothing",
            "get billing/canary",
            1,
            &["@/run/control.sock", "no answer"],
        )
        .given(|place| listen(place, b"")),
        case(
            "a socket that says something else",
            "get billing/canary",
            1,
            &[
                "@/run/control.sock",
                "not this release's daemon",
                "restart it",
            ],
        )
        .given(|place| listen(place, b"220 mail.example ESMTP\r\n")),
        case(
            "a socket of another release",
            "get billing/canary",
            1,
            &[
                "@/run/control.sock",
                "not this release's daemon",
                "restart it",
            ],
        )
        .given(|place| listen(place, b"{\"secretfs\":99}\n")),
        case(
            "a socket that says too much",
            "get billing/canary",
            1,
            &["@/run/control.sock"],
        )
        .given(|place| listen(place, &[b'x'; 1 << 20])),
        case(
            "a command that holds the lock",
            "get billing/canary",
            1,
            &["@/run/lock", "held", "ps"],
        )
        .given(hold_lock),
        case(
            "a lock that is held while a daemon starts",
            "mount",
            1,
            &["@/run/lock", "ps"],
        )
        .given(hold_lock),
        case(
            "a lock that is a folder",
            "get billing/canary",
            1,
            &["@/run/lock"],
        )
        .given(|place| {
            let _ = std::fs::remove_file(place.at("run/lock"));
            place.folder("run/lock");
        }),
        case(
            "a runtime folder that is a file",
            "get billing/canary",
            1,
            &["@/run", "`runtime`"],
        )
        .given(|place| {
            place.remove("run");
            place.write("run", "");
        }),
        case(
            "a daemon whose runtime folder is a file",
            "mount",
            1,
            &["@/run", "`runtime`"],
        )
        .given(|place| {
            place.remove("run");
            place.write("run", "");
        }),
        case(
            "a daemon whose runtime folder cannot be made",
            "mount",
            1,
            &["/proc/none", "`runtime`"],
        )
        .given(|place| place.reconfigure("runtime =", "runtime = \"/proc/none\" #")),
        case(
            "a daemon whose state folder is a file",
            "mount",
            1,
            &["@/state", "`state`"],
        )
        .given(|place| {
            place.remove("state");
            place.write("state", "");
        }),
        case(
            "a daemon whose list of revocations is damaged",
            "mount",
            1,
            &["@/state/revocations.json", "restore it from a copy"],
        )
        .given(|place| place.write("state/revocations.json", "[{\"target\":")),
        case(
            "a secret to revoke that is not there",
            "revoke billing/typo",
            3,
            &["billing/typo", "secretfs ls"],
        )
        .served(),
        case(
            "a service to revoke that is not there",
            "revoke typo",
            3,
            &["typo", "secretfs ls"],
        )
        .served(),
        case(
            "the current version to revoke",
            "revoke billing/canary --version 1",
            2,
            &["billing/canary", "put a new value first"],
        )
        .served(),
        case(
            "what is not revoked to unrevoke",
            "unrevoke billing/canary",
            3,
            &["billing/canary", "not revoked", "secretfs status"],
        )
        .served(),
        case(
            "a daemon started by a stranger",
            "mount",
            1,
            &["@/", "Permission denied"],
        )
        .uid(STRANGER),
        case(
            "a runtime folder that is not ours to write",
            "ls",
            1,
            &["@/run/", "secretfs mount"],
        )
        .given(|place| place.chmod("run", 0o755))
        .uid(STRANGER),
    ]
}

/// Somebody who listens in the daemon's place, and says only this.
fn listen(place: &Place, words: &[u8]) {
    let path = place.at("run/control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let words = words.to_vec();
    thread::spawn(move || {
        let mut held = Vec::new();
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            let _ = connection.write_all(&words);
            held.push(connection);
        }
    });
}

/// Somebody who keeps the lock and never lets it go.
fn hold_lock(place: &Place) {
    use nix::fcntl::{Flock, FlockArg};
    std::fs::create_dir_all(place.at("run")).unwrap();
    let file = std::fs::File::create(place.at("run/lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error);
    std::mem::forget(lock.unwrap());
}
