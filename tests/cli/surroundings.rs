//! What a command meets that the person who runs it did not choose: a umask, a folder of somebody else's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;

use crate::Demo;

#[test]
fn a_umask_neither_opens_nor_closes_what_is_made() {
    let demo = Demo::new();
    for umask in ["0", "0777"] {
        let _ = fs::remove_dir_all(demo.path("run"));
        let listed = Command::new("sh")
            .args(["-c", "umask $0; exec \"$@\"", umask])
            .arg(env!("CARGO_BIN_EXE_secretfs"))
            .args(["--config", &demo.arg("config.toml"), "ls"])
            .status();
        assert!(listed.unwrap().success());
        for (name, expected) in [("run", 0o755), ("run/lock", 0o600)] {
            let mode = fs::metadata(demo.path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, expected, "{name} with umask {umask}");
        }
    }
}

#[test]
fn a_runtime_folder_that_cannot_be_is_named_with_its_mend() {
    let demo = Demo::new();
    let run = demo.arg("run");
    demo.edit("config.toml", |text| text.replace(&run, "/proc/nowhere"));
    demo.run(&["ls"]).failed(1, "set `runtime`");
}

#[test]
fn doctor_sees_what_others_can_destroy_and_where_nothing_can_be_mounted() {
    let demo = Demo::new();
    demo.run(&["doctor"]).done();
    for name in ["store.age", "store.d"] {
        let before = fs::metadata(demo.path(name)).unwrap().permissions();
        fs::set_permissions(demo.path(name), fs::Permissions::from_mode(0o777)).unwrap();
        let sick = demo.run(&["doctor"]);
        let mend = format!("chmod go-w {}", demo.arg(name));
        assert_eq!(sick.code, 1);
        assert!(sick.text().contains(&mend), "{}", sick.text());
        fs::set_permissions(demo.path(name), before).unwrap();
    }
    fs::remove_dir(demo.path("secrets")).unwrap();
    fs::write(demo.path("secrets"), "").unwrap();
    let sick = demo.run(&["doctor"]);
    assert_eq!(sick.code, 1);
    assert!(sick.text().contains("not a folder"), "{}", sick.text());
}

#[test]
fn nothing_is_made_in_a_folder_that_others_can_change() {
    let demo = Demo::new();
    let there = demo.path("shared");
    fs::create_dir(&there).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o777)).unwrap();
    demo.bare(&["init", &demo.arg("shared")], b"")
        .failed(2, "chmod go-w");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).unwrap();
    if fs::metadata(&there).unwrap().uid() == 0 {
        chown(&there, Some(65_534), Some(65_534)).unwrap();
        symlink("/etc/nowhere", there.join("identity.txt")).unwrap();
        demo.bare(&["init", &demo.arg("shared")], b"")
            .failed(2, "belongs to somebody else");
    }
    assert!(!there.join("store.age").exists());
}

#[test]
fn a_config_is_named_from_where_one_stands() {
    let demo = Demo::new();
    let below = demo.path("run");
    for (folder, config) in [
        (demo.path(""), "config.toml"),
        (demo.path(""), "./config.toml"),
        (below, "../config.toml"),
    ] {
        let listed = Command::new(env!("CARGO_BIN_EXE_secretfs"))
            .args(["--config", config, "ls"])
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(listed.status.success(), "{config}: {listed:?}");
    }
}
