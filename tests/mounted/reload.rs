//! The config is read again: by command, by itself, and while everybody reads.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::Value;

use crate::common::daemon::{Daemon, Setup, tool};
use crate::common::machine::{Need, needs};
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually, run};

const VALUES: [(&str, &[u8]); 2] = [("a/x", b"canary of a\n"), ("b/x", b"canary of b\n")];

/// For this user, from this folder.
fn service(uid: u32, folder: &str) -> String {
    format!("[services.a]\nsource = \"local:{folder}\"\nallow = [{{ uid = {uid} }}]\n")
}

fn start(top: &str) -> Daemon {
    let setup = Setup {
        top,
        services: &service(4001, "a"),
        values: &VALUES,
        ..Setup::default()
    };
    setup.start()
}

fn reads(probe: &mut Probe, daemon: &Daemon) -> bool {
    probe.cat(&daemon.path("a/x")).as_deref() == Ok(VALUES[0].1)
}

/// Writes the config as an editor does.
fn rename_over(daemon: &Daemon, services: &str) {
    let file = daemon.at("config.toml");
    let before = fs::read_to_string(&file).unwrap();
    let head = before.split("[services.").next().unwrap();
    fs::write(daemon.at("config.toml~"), format!("{head}{services}")).unwrap();
    fs::rename(daemon.at("config.toml~"), file).unwrap();
}

#[test]
fn a_reload_says_what_is_different() {
    needs!();
    let daemon = start("");
    let said = |words: &[&str]| String::from_utf8(daemon.secretfs(words, b"").expect_ok()).unwrap();
    let nothing = said(&["reload"]);
    assert_eq!(
        nothing,
        "the config is in force: nothing has changed in it\n"
    );
    let more = "[services.late]\nsource = \"local:b\"\nallow = [{ uid = \"nobody-yet\" }]\n[cache]\nttl = \"30s\"\n";
    daemon.configure(&format!("{}{more}", service(4002, "a")));
    let changed = said(&["reload"]);
    let lines: Vec<&str> = changed.lines().collect();
    let expected = [
        "the config is in force",
        "  [cache] ttl 60s → 30s",
        "  [services.a] changed: allow",
        "  [services.late] added",
    ];
    assert_eq!(lines[..4], expected);
    assert!(
        lines[4].starts_with("note: services.late.allow[0].uid"),
        "{changed}"
    );
    let log = "the config was read again: [cache] ttl 60s → 30s; [services.a] changed: allow; [services.late] added";
    assert!(daemon.log().contains(log), "{}", daemon.log());
    let json: Value = serde_json::from_str(&said(&["--json", "reload"])).unwrap();
    assert_eq!(json["changes"], Value::Array(Vec::new()));
    assert_eq!(json["unknown"].as_array().unwrap().len(), 1);
}

#[test]
fn a_new_deny_bites_at_the_next_open_and_at_the_next_read() {
    needs!();
    let daemon = start("");
    let mut reader = daemon.probe(&Who::uid(4001));
    let held = reader.open(&daemon.path("a/x")).unwrap();
    assert!(reader.pread(held).is_ok());
    daemon.configure(&service(4002, "a"));
    daemon.secretfs(&["reload"], b"").expect_ok();
    assert_eq!(reader.pread(held), Err(Errno::EACCES));
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::EACCES));
    assert!(reads(&mut daemon.probe(&Who::uid(4002)), &daemon));
}

#[test]
fn a_watched_config_is_taken_up_however_it_is_written() {
    needs!();
    let daemon = start("watch = true");
    let mut readers = [4001, 4002].map(|uid| (uid, daemon.probe(&Who::uid(uid))));
    for (turn, how) in ["in place", "renamed over", "in place"]
        .into_iter()
        .enumerate()
    {
        let (uid, reader) = &mut readers[(turn + 1) % 2];
        assert!(!reads(reader, &daemon), "{how}");
        match how {
            "renamed over" => rename_over(&daemon, &service(*uid, "a")),
            _ => daemon.configure(&service(*uid, "a")),
        }
        let taken = eventually(Duration::from_secs(2), || reads(reader, &daemon));
        assert!(taken, "{how}: {}", daemon.log());
        assert!(!reads(&mut readers[turn % 2].1, &daemon), "{how}");
    }
    // A command that has it read again leaves nothing to do for the watch.
    let times = || daemon.log().matches("the config was read again").count();
    let before = times();
    daemon.configure(&service(4001, "a"));
    daemon.secretfs(&["reload"], b"").expect_ok();
    thread::sleep(Duration::from_millis(700));
    assert_eq!(times(), before + 1, "{}", daemon.log());
}

#[test]
fn a_config_behind_a_link_that_is_swapped_is_taken_up() {
    needs!();
    let mut daemon = start("watch = true");
    daemon.stop();
    // As Kubernetes does it.
    let swap = |to: &str, services: &str| {
        daemon.configure(services);
        fs::create_dir(daemon.at(to)).unwrap();
        fs::rename(daemon.at("config.toml"), daemon.at(to).join("config.toml")).unwrap();
        std::os::unix::fs::symlink(to, daemon.at("..new")).unwrap();
        fs::rename(daemon.at("..new"), daemon.at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/config.toml", daemon.at("link")).unwrap();
        fs::rename(daemon.at("link"), daemon.at("config.toml")).unwrap();
    };
    swap("..1", &service(4001, "a"));
    daemon.start_keeper();
    let mut other = daemon.probe(&Who::uid(4002));
    assert!(!reads(&mut other, &daemon));
    fs::create_dir(daemon.at("..2")).unwrap();
    let text = fs::read_to_string(daemon.at("..1/config.toml")).unwrap();
    fs::write(daemon.at("..2/config.toml"), text.replace("4001", "4002")).unwrap();
    std::os::unix::fs::symlink("..2", daemon.at("..new")).unwrap();
    fs::rename(daemon.at("..new"), daemon.at("..data")).unwrap();
    fs::remove_dir_all(daemon.at("..1")).unwrap();
    let taken = eventually(Duration::from_secs(2), || reads(&mut other, &daemon));
    assert!(taken, "{}", daemon.log());
}

#[test]
fn where_the_folder_cannot_be_watched_it_is_said_once_and_looked_at() {
    needs!();
    let setup = Setup {
        top: "watch = true",
        services: &service(4001, "a"),
        values: &VALUES,
        // Who may pass through the folder and not read it.
        user: Some("daemon"),
        ..Setup::default()
    };
    let daemon = setup.start();
    let said = || daemon.log().matches("once a second").count();
    assert!(eventually(DEADLINE, || said() == 1), "{}", daemon.log());
    for uid in [4002, 4001] {
        let mut reader = daemon.probe(&Who::uid(uid));
        rename_over(&daemon, &service(uid, "a"));
        let taken = eventually(Duration::from_secs(4), || reads(&mut reader, &daemon));
        assert!(taken, "{}", daemon.log());
    }
    assert_eq!(said(), 1, "{}", daemon.log());
}

#[test]
fn a_mistake_keeps_the_old_rules_and_is_said_once() {
    needs!();
    let daemon = start("watch = true");
    let mut reader = daemon.probe(&Who::uid(4001));
    let mistakes = || daemon.log().matches("is not used").count();
    daemon.configure("[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"*\" }]\nallows = 1\n");
    assert!(eventually(DEADLINE, || mistakes() == 2), "{}", daemon.log());
    // What else happens in the folder is none of its business.
    fs::write(daemon.at("other"), "x").unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(mistakes(), 2, "{}", daemon.log());
    assert!(reads(&mut reader, &daemon));
    // The next change of the file is another one.
    daemon.configure("[services.a]\n");
    assert!(eventually(DEADLINE, || mistakes() == 3), "{}", daemon.log());
    daemon.configure(&service(4002, "a"));
    let mut other = daemon.probe(&Who::uid(4002));
    assert!(eventually(DEADLINE, || reads(&mut other, &daemon)));
    assert!(!reads(&mut reader, &daemon));
}

#[test]
fn a_reload_turns_the_watch_on_and_off() {
    needs!();
    let daemon = start("");
    let mut readers = [4001, 4002].map(|uid| daemon.probe(&Who::uid(uid)));
    let configure = |watch: bool, uid: u32| {
        let text = fs::read_to_string(daemon.at("config.toml")).unwrap();
        let (_, text) = text.split_at(text.find("mount =").unwrap());
        let head = text.split("[services.").next().unwrap();
        let text = format!("watch = {watch}\n{head}{}", service(uid, "a"));
        fs::write(daemon.at("config.toml"), text).unwrap();
    };
    configure(true, 4002);
    thread::sleep(Duration::from_millis(700));
    assert!(!reads(&mut readers[1], &daemon));
    daemon.secretfs(&["reload"], b"").expect_ok();
    assert!(reads(&mut readers[1], &daemon));
    configure(true, 4001);
    assert!(eventually(DEADLINE, || reads(&mut readers[0], &daemon)));
    configure(false, 4001);
    let off = || daemon.log().contains("watch true → false");
    assert!(eventually(DEADLINE, off), "{}", daemon.log());
    configure(false, 4002);
    thread::sleep(Duration::from_millis(700));
    assert!(!reads(&mut readers[1], &daemon));
}

#[test]
fn an_account_that_appears_opens_its_service_without_a_reload() {
    needs!(Need::Program("unshare"), Need::Program("nsenter"));
    let folder = tempfile::tempdir().unwrap();
    let accounts = folder.path().join("passwd");
    fs::copy("/etc/passwd", &accounts).unwrap();
    // The machine's own accounts stay as they are: the daemon sees others in their place.
    let script = format!(
        "mount --bind {} /etc/passwd && exec \"$@\"",
        accounts.display()
    );
    let (unshare, nsenter) = (tool("unshare"), tool("nsenter"));
    let setup = Setup {
        services: "[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"late-4007\" }]\n[services.b]\nsource = \"local:b\"\nallow = [{ uid = 4007 }]\n",
        values: &VALUES,
        wrapped: &[&unshare, "-m", "--fork", "sh", "-c", &script, "sh"],
        ..Setup::default()
    };
    let mut daemon = setup.start();
    let keeper = daemon.keeper().to_string();
    let cat = |path: &Path| {
        let who = ["setpriv", "--reuid=4007", "--regid=4007", "--clear-groups"];
        let mut command = std::process::Command::new(&nsenter);
        command
            .args(["-t", &keeper, "-m"])
            .args(who)
            .arg("cat")
            .arg(path);
        run(&mut command, b"").stdout
    };
    assert_eq!(cat(&daemon.path("b/x")), VALUES[1].1);
    assert_eq!(cat(&daemon.path("a/x")), b"");
    assert!(daemon.secretfs(&["status"], b"").code() == 0);
    let mut file = fs::OpenOptions::new().append(true).open(&accounts).unwrap();
    file.write_all(b"late-4007:x:4007:4007::/nonexistent:/bin/false\n")
        .unwrap();
    let opened = eventually(Duration::from_secs(10), || {
        cat(&daemon.path("a/x")) == VALUES[0].1
    });
    assert!(opened, "{}", daemon.log());
    assert!(daemon.log().contains("became known"), "{}", daemon.log());
    assert!(!daemon.log().contains("read again"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn opens_that_race_reloads_see_rules_and_places_of_one_config() {
    needs!();
    let daemon = start("");
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let readers = [(4001, VALUES[0].1), (4002, VALUES[1].1)].map(|(uid, right)| {
            let (daemon, over) = (&daemon, &over);
            scope.spawn(move || {
                let mut reader = daemon.probe(&Who::uid(uid));
                let (mut given, mut refused) = (0_u32, 0_u32);
                while !over.load(Ordering::Relaxed) {
                    match reader.cat(&daemon.path("a/x")) {
                        Ok(value) => {
                            assert_eq!(value, right, "{uid} may never see this");
                            given += 1;
                        }
                        // At the open, or at the read if the rules changed in between.
                        Err(Errno::EACCES) => refused += 1,
                        Err(other) => panic!("{uid}: {other}"),
                    }
                }
                (given, refused)
            })
        });
        for turn in 0..200 {
            let services = match turn % 2 {
                0 => service(4002, "b"),
                _ => service(4001, "a"),
            };
            daemon.configure(&services);
            daemon.secretfs(&["reload"], b"").expect_ok();
        }
        over.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().unwrap())
    });
    for (given, refused) in seen {
        assert!(given > 20 && refused > 20, "it was no race: {seen:?}");
    }
}
