//! A secret is put while the container runs, and bound into it: as one file, with its folder, below a parent.

use nix::mount::{MsFlags, mount};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{has, needs};
use crate::common::mounts::Bind;
use crate::podman::{Container, PODMAN};

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
secrets.cached = { reads = "cached" }
"#;
const VALUES: [(&str, &[u8]); 2] = [("a/x", b"first"), ("a/cached", b"first")];

/// Where the secrets are in the container, and in what way they came there.
const FILE: &str = "/run/file";
const FOLDER: &str = "/run/folder/x";
const PARENT: &str = "/run/parent/secrets/a/x";
const PLACES: [&str; 3] = [FILE, FOLDER, PARENT];

/// A daemon whose mountpoint's parent passes its mounts on, and a container of uid 4001 with binds of each kind.
struct World {
    /// Ends before what is mounted in it.
    container: Container,
    _shared: Bind,
    daemon: Daemon,
}

impl World {
    #[track_caller]
    fn start() -> Self {
        let setup = Setup {
            services: SERVICES,
            values: &VALUES,
            ..Setup::default()
        };
        let mut daemon = setup.prepare();
        // As systemd does with the whole tree at boot.
        let (parent, none) = (daemon.at(""), None::<&str>);
        mount(Some(&parent), &parent, none, MsFlags::MS_BIND, none).unwrap();
        let shared = Bind::at(parent.clone());
        mount(none, &parent, none, MsFlags::MS_SHARED, none).unwrap();
        daemon.start_keeper();
        let volumes = [
            format!("{}:{FILE}:ro", daemon.path("a/x").display()),
            format!("{}:/run/cached:ro", daemon.path("a/cached").display()),
            format!("{}:/run/folder:ro", daemon.path("a").display()),
            format!("{}:/run/parent:ro,rslave", parent.display()),
        ];
        Self {
            container: Container::start(&daemon, 4001, &volumes),
            _shared: shared,
            daemon,
        }
    }

    /// Ends the daemon before its mountpoint goes.
    fn end(self) {
        drop(self.container);
        let mut daemon = self.daemon;
        daemon.stop();
        drop(self._shared);
        drop(daemon);
    }
}

#[test]
fn a_put_is_new_at_the_next_open_through_every_kind_of_bind_and_an_old_handle_keeps_its_value() {
    needs!();
    if !has(&PODMAN) {
        return;
    }
    let mut world = World::start();
    let (container, daemon) = (&mut world.container, &world.daemon);
    assert_eq!(container.shell("id -u"), "4001");
    for place in PLACES {
        assert_eq!(container.shell(&format!("cat {place}")), "first", "{place}");
    }
    container.shell(&format!(
        "exec 3<{FILE} 4<{FOLDER} 5<{PARENT} 6</run/cached"
    ));
    for value in ["second", "a longer one, the third", "4th"] {
        for name in ["x", "cached"] {
            daemon.put(&format!("a/{name}"), value.as_bytes());
        }
        for place in PLACES {
            assert_eq!(container.shell(&format!("cat {place}")), value, "{place}");
        }
        assert_eq!(container.shell("cat /run/folder/cached"), value);
        assert_eq!(
            container.shell("wc -c < /run/folder/x"),
            value.len().to_string()
        );
    }
    for fd in 3..7 {
        assert_eq!(container.shell(&format!("cat <&{fd}")), "first", "{fd}");
    }
    container.shell("exec 3<&- 4<&- 5<&- 6<&-");
    assert_eq!(container.shell("cat /run/cached"), "4th");
    // A name that is new, and one that is gone.
    daemon.put("a/new", b"made");
    assert_eq!(container.shell("cat /run/folder/new"), "made");
    daemon
        .secretfs(&["rm", "--force", "a/new"], b"")
        .expect_ok();
    assert!(
        container
            .shell("cat /run/folder/new")
            .contains("No such file")
    );
    // Whoever else is in the container reads nothing, nor does its root.
    for uid in [4002, 0] {
        for place in PLACES {
            let denied = container.exec(uid, &["cat", place]);
            assert_ne!(denied.code(), 0);
            assert!(denied.stderr.contains("Permission denied"), "{denied:?}");
        }
    }
    world.end();
}

#[test]
fn who_watches_in_a_container_wakes() {
    needs!();
    if !has(&PODMAN) {
        return;
    }
    let mut world = World::start();
    let (container, daemon) = (&mut world.container, &world.daemon);
    let folders = ["/run/folder", "/run/parent/secrets/a"];
    for folder in folders {
        container.watch(folder, "moved_to,delete");
    }
    for file in PLACES {
        container.watch(file, "attrib");
    }
    let mut said = Vec::new();
    for value in ["second", "third"] {
        daemon.put("a/x", value.as_bytes());
        said.extend(folders.map(|folder| format!("{folder}/ MOVED_TO x")));
    }
    // A file's watch is on the inode that had its one change.
    said.extend(PLACES.map(|file| format!("{file} ATTRIB")));
    daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
    said.extend(folders.map(|folder| format!("{folder}/ DELETE x")));
    container.hears(said);
    world.end();
}

#[test]
fn a_bind_of_the_parent_outlives_the_daemon() {
    needs!();
    if !has(&PODMAN) {
        return;
    }
    let mut world = World::start();
    let (container, daemon) = (&mut world.container, &mut world.daemon);
    daemon.stop();
    assert_ne!(container.shell(&format!("cat {PARENT}")), "first");
    daemon.start_keeper();
    assert_eq!(container.shell(&format!("cat {PARENT}")), "first");
    daemon.put("a/x", b"second");
    assert_eq!(container.shell(&format!("cat {PARENT}")), "second");
    world.end();
}
