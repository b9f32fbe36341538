//! Every kind of caller × every kind of rule × every call, against an oracle that is written down here and knows
//! nothing of the program's own policy.

use std::fmt::Debug;
use std::path::Path;

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::machine::needs;
use crate::common::probe::{Got, Probe, Who};

const SERVICES: &str = r#"
[services.by-uid]
source = "local:by-uid"
allow = [{ uid = 4001 }]
secrets.hot = { reads = "cached" }

[services.by-gid]
source = "local:by-gid"
allow = [{ gid = 4100 }]
secrets.hot = { reads = "cached" }

[services.by-both]
source = "local:by-both"
allow = [{ uid = 4001, gid = 4100 }]
secrets.hot = { reads = "cached" }

[services.by-range]
source = "local:by-range"
allow = [{ uid = "4002-4003" }]
secrets.hot = { reads = "cached" }

[services.by-list]
source = "local:by-list"
allow = [{ uid = [4001, 4003] }, { gid = [4101, "4200-4210"] }]
secrets.hot = { reads = "cached" }

[services.for-root]
source = "local:for-root"
allow = [{ uid = 0 }]
secrets.hot = { reads = "cached" }

[services.for-nobody]
source = "local:for-nobody"
secrets.hot = { reads = "cached" }

[services.narrowed]
source = "local:narrowed"
allow = [{ gid = 4100 }]
secrets.plain = { allow = [{ uid = [4001, 4002] }] }
secrets.hot = { reads = "cached", mode = "0400", owner = 4001, group = 4100 }
"#;

const NAMES: [&str; 8] = [
    "by-uid",
    "by-gid",
    "by-both",
    "by-range",
    "by-list",
    "for-root",
    "for-nobody",
    "narrowed",
];

/// The truth: who may read what.
fn may(who: &Who, service: &str, secret: &str) -> bool {
    let member = |gid: u32| who.gid == gid || who.groups.contains(&gid);
    match (service, secret) {
        ("by-uid", _) => who.uid == 4001,
        ("by-gid", _) | ("narrowed", "hot") => member(4100),
        ("by-both", _) => who.uid == 4001 && member(4100),
        ("by-range", _) => who.uid == 4002 || who.uid == 4003,
        ("by-list", _) => who.uid == 4001 || who.uid == 4003 || member(4101) || member(4205),
        ("for-root", _) => who.uid == 0,
        ("for-nobody", _) => false,
        ("narrowed", "plain") => member(4100) && (who.uid == 4001 || who.uid == 4002),
        other => panic!("no such secret: {other:?}"),
    }
}

fn may_any(who: &Who, service: &str) -> bool {
    may(who, service, "plain") || may(who, service, "hot")
}

fn value(service: &str, secret: &str) -> Vec<u8> {
    format!("canary of {service}/{secret}\n").into_bytes()
}

fn start() -> Daemon {
    let values: Vec<(String, Vec<u8>)> = NAMES
        .iter()
        .flat_map(|service| {
            ["plain", "hot"].map(|secret| (format!("{service}/{secret}"), value(service, secret)))
        })
        .collect();
    let values: Vec<(&str, &[u8])> = values
        .iter()
        .map(|(path, value)| (path.as_str(), value.as_slice()))
        .collect();
    Daemon::start(SERVICES, &values)
}

fn everybody() -> Vec<Who> {
    let groups: [&[u32]; 4] = [&[], &[4100], &[4101], &[4205, 5000]];
    let mut all = Vec::new();
    for uid in [0, 4001, 4002, 4003] {
        for gid in [64_000, 4100] {
            all.extend(groups.map(|groups| Who::new(uid, gid, groups)));
        }
    }
    all
}

/// Counts, and collects what was not as it should be.
#[derive(Debug, Default)]
struct Tally {
    checks: usize,
    wrong: Vec<String>,
}

impl Tally {
    /// `got` must be one of `right`.
    fn check<T: PartialEq + Debug>(&mut self, what: &str, got: &Got<T>, right: &[Got<T>]) {
        self.checks += 1;
        if !right.contains(got) {
            self.wrong
                .push(format!("{what}: {got:?}, not any of {right:?}"));
        }
    }

    fn end(self, least: usize) {
        let Self { checks, wrong } = self;
        assert!(
            wrong.is_empty(),
            "{} of {checks}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        assert!(checks >= least, "only {checks} checks");
    }
}

#[test]
fn every_caller_gets_what_the_rules_say_from_every_call_that_reads() {
    needs!();
    let daemon = start();
    let mut tally = Tally::default();
    // Each caller twice: the second time the kernel holds what the first time has left in its caches.
    for turn in 0..2 {
        for who in everybody() {
            let mut probe = daemon.probe(&who);
            for service in NAMES {
                for secret in ["plain", "hot"] {
                    let what = format!("{turn}: {who:?} {service}/{secret}");
                    let path = daemon.path(service).join(secret);
                    reading(
                        &mut tally,
                        &mut probe,
                        &who,
                        (service, secret),
                        &path,
                        &what,
                    );
                }
                let what = format!("{turn}: {who:?} {service}");
                listing(
                    &mut tally,
                    &mut probe,
                    &who,
                    service,
                    &daemon.path(service),
                    &what,
                );
            }
            top(
                &mut tally,
                &mut probe,
                &daemon.mountpoint(),
                &format!("{who:?}"),
            );
        }
    }
    tally.end(10_000);
}

fn reading(
    tally: &mut Tally,
    probe: &mut Probe,
    who: &Who,
    (service, secret): (&str, &str),
    path: &Path,
    what: &str,
) {
    let fetched = what.starts_with("1: ");
    let allowed = may(who, service, secret);
    let expected = value(service, secret);
    let denied = Errno::EACCES;
    // A name that the kernel holds is there for everyone; one that it does not is nobody's business.
    let found: &[Got<()>] = match may_any(who, service) || who.uid == 0 {
        true => &[Ok(())],
        false => &[Ok(()), Err(denied)],
    };
    let by_name = |errno: Errno| match found.len() {
        1 => vec![Err(errno)],
        _ => vec![Err(errno), Err(denied)],
    };
    let if_allowed = |bytes: &[u8]| match allowed {
        true => vec![Ok(bytes.to_vec())],
        false => vec![Err(denied)],
    };
    let right = if allowed { Ok(()) } else { Err(denied) };

    let stat = probe.stat(path);
    tally.check(&format!("{what} stat"), &stat.map(drop), found);
    if let Ok(stat) = stat {
        let look = match (service, secret) {
            ("narrowed", "hot") => (0o100_400, 4001, 4100),
            _ => (0o100_440, 0, 0),
        };
        let shown = Ok((stat.mode, stat.uid, stat.gid));
        tally.check(&format!("{what} owner"), &shown, &[Ok(look)]);
        let length = u64::try_from(expected.len()).unwrap();
        // A listing of a moment ago may have told the kernel the length of what nobody had fetched yet.
        let sizes: &[Got<u64>] = match allowed && fetched {
            true => &[Ok(length)],
            false => &[Ok(0), Ok(length)],
        };
        tally.check(&format!("{what} size"), &Ok(stat.size), sizes);
    }
    tally.check(
        &format!("{what} F_OK"),
        &probe.access(path, libc::F_OK),
        found,
    );
    tally.check(
        &format!("{what} R_OK"),
        &probe.access(path, libc::R_OK),
        &[right],
    );
    tally.check(
        &format!("{what} W_OK"),
        &probe.access(path, libc::W_OK),
        &by_name(Errno::EROFS),
    );
    tally.check(
        &format!("{what} X_OK"),
        &probe.access(path, libc::X_OK),
        &[Err(denied)],
    );
    tally.check(
        &format!("{what} cat"),
        &probe.cat(path),
        &if_allowed(&expected),
    );
    tally.check(
        &format!("{what} getxattr"),
        &probe.getxattr(path, "user.secretfs.version"),
        &if_allowed(b"1"),
    );
    let xattrs = ["generation", "reference", "version"].map(|name| format!("user.secretfs.{name}"));
    tally.check(
        &format!("{what} listxattr"),
        &probe.listxattr(path),
        &match (allowed, found.len()) {
            (true, _) => vec![Ok(xattrs.to_vec())],
            (false, 1) => vec![Ok(Vec::new())],
            (false, _) => vec![Ok(Vec::new()), Err(denied)],
        },
    );
    let opened = probe.open(path);
    tally.check(&format!("{what} open"), &opened.map(drop), &[right]);
    if let Ok(fd) = opened {
        let right = [Ok(expected.clone())];
        tally.check(&format!("{what} pread"), &probe.pread(fd), &right);
        tally.check(
            &format!("{what} mmap"),
            &probe.map(fd, expected.len()),
            &right,
        );
        tally.check(&format!("{what} sendfile"), &probe.sendfile(fd), &right);
        tally.check(&format!("{what} splice"), &probe.splice(fd), &right);
        probe.close(fd);
    }
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        let got = probe.open_with(path, flags).map(drop);
        tally.check(
            &format!("{what} open {flags:o}"),
            &got,
            &by_name(Errno::EROFS),
        );
    }
    let named = probe.open_with(path, libc::O_PATH);
    tally.check(&format!("{what} O_PATH"), &named.map(drop), found);
    if let Ok(fd) = named {
        tally.check(
            &format!("{what} pread O_PATH"),
            &probe.pread(fd),
            &[Err(Errno::EBADF)],
        );
        probe.close(fd);
    }
    let below = probe.stat(&path.join("x")).map(drop);
    tally.check(&format!("{what} ENOTDIR"), &below, &by_name(Errno::ENOTDIR));
}

fn listing(
    tally: &mut Tally,
    probe: &mut Probe,
    who: &Who,
    service: &str,
    path: &Path,
    what: &str,
) {
    let any = may_any(who, service);
    let visible = any || who.uid == 0;
    let names = if any {
        vec!["hot".to_owned(), "plain".to_owned()]
    } else {
        Vec::new()
    };
    tally.check(&format!("{what} list"), &probe.list(path), &[Ok(names)]);
    let hidden = |errno: Errno| [Err(if visible { errno } else { Errno::EACCES })];
    let absent = probe.stat(&path.join("absent")).map(drop);
    tally.check(&format!("{what} absent"), &absent, &hidden(Errno::ENOENT));
    let no_name = probe.stat(&path.join("-no name-")).map(drop);
    tally.check(&format!("{what} no name"), &no_name, &hidden(Errno::ENOENT));
    let long = probe.stat(&path.join("a".repeat(200))).map(drop);
    tally.check(&format!("{what} long"), &long, &hidden(Errno::ENAMETOOLONG));
    for mode in [libc::F_OK, libc::R_OK, libc::X_OK] {
        tally.check(
            &format!("{what} access"),
            &probe.access(path, mode),
            &[Ok(())],
        );
    }
    tally.check(
        &format!("{what} W_OK"),
        &probe.access(path, libc::W_OK),
        &[Err(Errno::EROFS)],
    );
    tally.check(
        &format!("{what} chdir"),
        &probe.os("chdir", json!([path])),
        &[Ok(())],
    );
    tally.check(
        &format!("{what} cat"),
        &probe.cat(path),
        &[Err(Errno::EISDIR)],
    );
    let writing = probe.open_with(path, libc::O_WRONLY).map(drop);
    tally.check(
        &format!("{what} open for writing"),
        &writing,
        &[Err(Errno::EISDIR)],
    );
    probe.os("chdir", json!(["/"])).unwrap();
}

fn top(tally: &mut Tally, probe: &mut Probe, path: &Path, what: &str) {
    let mut names: Vec<String> = NAMES.map(str::to_owned).to_vec();
    names.sort_unstable();
    tally.check(&format!("{what} services"), &probe.list(path), &[Ok(names)]);
    let stat = probe.stat(path).map(|stat| (stat.mode, stat.uid, stat.gid));
    tally.check(&format!("{what} top"), &stat, &[Ok((0o40_555, 0, 0))]);
    let absent = probe.stat(&path.join("absent")).map(drop);
    tally.check(&format!("{what} absent"), &absent, &[Err(Errno::ENOENT)]);
    let statvfs = probe.ask("statvfs", json!([path]));
    let longest = statvfs.map(|statvfs| statvfs["namemax"].as_u64().unwrap());
    tally.check(&format!("{what} statvfs"), &longest, &[Ok(128)]);
}

#[test]
fn nobody_changes_anything_also_where_the_mount_is_writable() {
    needs!();
    let daemon = start();
    let writable = daemon.bind(&daemon.mountpoint(), "writable");
    let flags = nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REMOUNT;
    nix::mount::mount(
        None::<&str>,
        writable.path(),
        None::<&str>,
        flags,
        None::<&str>,
    )
    .unwrap();
    let mut tally = Tally::default();
    let elsewhere = daemon.door("elsewhere");
    std::fs::write(&elsewhere, "x").unwrap();
    for who in [
        Who::root(),
        Who::uid(4001),
        Who::new(4009, 4100, &[]),
        Who::uid(4009),
    ] {
        let mut probe = daemon.probe(&who);
        for (root, service) in [
            (daemon.mountpoint(), "by-uid"),
            (writable.path().to_owned(), "by-uid"),
            (writable.path().to_owned(), "narrowed"),
        ] {
            let visible = who.uid == 0 || may_any(&who, service);
            let folder = root.join(service);
            let (file, new, new_service) =
                (folder.join("plain"), folder.join("new"), root.join("new"));
            let changes = [
                ("mkdir", json!([new])),
                ("mkdir", json!([new_service])),
                ("mknod", json!([new, 0o100_644])),
                ("symlink", json!(["x", new])),
                ("link", json!([file, new])),
                ("unlink", json!([file])),
                ("rmdir", json!([folder])),
                ("rename", json!([file, new])),
                ("rename", json!([folder, new_service])),
                ("chmod", json!([file, 0o666])),
                ("chmod", json!([folder, 0o777])),
                ("chown", json!([file, who.uid, who.gid])),
                ("truncate", json!([file, 0])),
                ("utime", json!([file, [1, 1]])),
                ("setxattr", json!([file, "user.x", {"bytes": "x"}])),
                ("removexattr", json!([file, "user.secretfs.version"])),
                ("open", json!([new, libc::O_CREAT | libc::O_RDWR, 0o600])),
                ("open", json!([file, libc::O_RDWR])),
                ("open", json!([file, libc::O_RDONLY | libc::O_TRUNC])),
                (
                    "open",
                    json!([folder, libc::O_TMPFILE | libc::O_RDWR, 0o600]),
                ),
            ];
            for (call, args) in changes {
                let what = format!("{who:?} {call} {args}");
                let mut right = vec![Err(Errno::EROFS)];
                if !visible {
                    right.push(Err(Errno::EACCES));
                }
                // Truncating is two requests, and the first is an open.
                if args[1] == json!(libc::O_RDONLY | libc::O_TRUNC) && !may(&who, service, "plain")
                {
                    right.push(Err(Errno::EACCES));
                }
                // Who may not link what is not his the kernel tells before it asks anybody.
                if call == "link" {
                    right.push(Err(Errno::EPERM));
                }
                if call == "open" && args[1] == json!(libc::O_TMPFILE | libc::O_RDWR) {
                    right.push(Err(Errno::EOPNOTSUPP));
                }
                tally.check(&what, &probe.os(call, args), &right);
            }
            let across = probe.os("rename", json!([elsewhere, new]));
            tally.check(
                "rename into it",
                &across,
                &[Err(Errno::EXDEV), Err(Errno::EROFS), Err(Errno::EACCES)],
            );
        }
    }
    tally.end(240);
    let mut probe = daemon.probe(&Who::uid(4001));
    assert_eq!(
        probe.cat(&daemon.path("by-uid/plain")),
        Ok(value("by-uid", "plain"))
    );
    assert_eq!(probe.list(&daemon.mountpoint()).unwrap().len(), NAMES.len());
}

#[test]
fn a_stranger_cannot_tell_a_hidden_name_from_an_absent_one() {
    needs!();
    let daemon = start();
    let mut stranger = daemon.probe(&Who::uid(4009));
    for name in ["plain", "hot", "absent", "-no name-", &"a".repeat(200)] {
        let path = daemon.path("by-uid").join(name);
        assert_eq!(stranger.stat(&path).map(drop), Err(Errno::EACCES), "{name}");
        assert_eq!(stranger.open(&path), Err(Errno::EACCES), "{name}");
    }
    assert_eq!(stranger.list(&daemon.path("by-uid")), Ok(Vec::new()));
}

#[test]
fn root_sees_names_and_owners_and_no_value_without_a_rule() {
    needs!();
    let daemon = start();
    let mut root = daemon.probe(&Who::root());
    let path = daemon.path("by-uid/plain");
    assert_eq!(
        root.stat(&path).unwrap().size,
        0,
        "root may not have it fetched"
    );
    assert_eq!(root.open(&path), Err(Errno::EACCES));
    assert_eq!(root.list(&daemon.path("by-uid")), Ok(Vec::new()));
    assert_eq!(
        root.getxattr(&path, "user.secretfs.version"),
        Err(Errno::EACCES)
    );
    assert_eq!(
        root.stat(&daemon.path("by-uid/absent")).map(drop),
        Err(Errno::ENOENT)
    );
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&path), Ok(value("by-uid", "plain")));
    let length = u64::try_from(value("by-uid", "plain").len()).unwrap();
    assert_eq!(
        root.stat(&path).unwrap().size,
        length,
        "the size is the inode's"
    );
}

#[test]
fn the_mount_is_what_it_should_be() {
    needs!();
    let daemon = start();
    let mounts = daemon.mounts();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert_eq!(mounts[0].kind, "fuse.secretfs");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            mounts[0].options.split(',').any(|o| o == option),
            "{option}: {mounts:?}"
        );
    }
}
