//! The units as they are shipped, on a Debian that systemd has booted: the room that the server is locked into, and what
//! becomes of readers when it dies.

use std::path::Path;
use std::time::Duration;

use crate::common::machine::{Need, has, needs};
use crate::common::{eventually, patience};
use crate::host::Host;

const NEEDS: [Need; 4] = [
    Need::Program("mmdebstrap"),
    Need::Program("systemd-nspawn"),
    Need::Program("nsenter"),
    Need::Cgroups,
];

/// How exposed a unit may be at most that systemd is asked about.
const ALONE: f64 = 1.0;
const WITH_NETWORK: f64 = 1.6;

/// How long nobody may wait longer, in seconds.
const LONGEST: f64 = 2.0;
/// How long a fresh mount may take.
const AFRESH: Duration = Duration::from_secs(20);

/// A read, and how it ends: 124 if it hangs.
const READ: &str = "timeout 5 cat /secrets/demo/x >/said 2>&1 && echo 0 || echo $?";

/// One with the program and its units, and two secrets.
fn host() -> Host {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let systemd = |file: &str| root.join("systemd").join(file);
    let units = "/usr/lib/systemd/system";
    let host = Host::boot(&[
        (
            Path::new(env!("CARGO_BIN_EXE_secretfs")),
            "/usr/bin/secretfs",
        ),
        (
            &systemd("secretfs.service"),
            &format!("{units}/secretfs.service"),
        ),
        (
            &systemd("secretfs.sysusers"),
            "/usr/lib/sysusers.d/secretfs.conf",
        ),
        (
            &systemd("secretfs.target"),
            &format!("{units}/secretfs.target"),
        ),
        (&systemd("network.conf"), "/network.conf"),
        (&systemd("consumer.conf"), "/consumer.conf"),
        (&root.join("tests/packages/readers.py"), "/readers.py"),
    ]);
    host.does("systemd-sysusers secretfs.conf && systemctl daemon-reload && secretfs init");
    host.does("printf 'canary of who is killed\n' | secretfs put demo/x");
    host.does("printf 'canary of who is mapped\n' | secretfs put demo/cached");
    host.does(
        r#"printf '[services.demo]\nsource = "local:demo"\nallow = [{ uid = 0 }]\n[services.demo.secrets]\ncached = { reads = "cached" }\n' >>/etc/secretfs/config.toml"#,
    );
    host
}

#[track_caller]
fn start(host: &Host) {
    host.does("systemctl start secretfs || { journalctl --no-pager -u secretfs; false; }");
}

fn main_pid(host: &Host) -> String {
    host.says("systemctl show -P MainPID secretfs")
}

/// Kills the server, which there is, and waits for the next one.
#[track_caller]
fn kill(host: &Host, signal: &str) {
    let before = main_pid(host);
    assert_ne!(before, "0");
    // Of a fault that nothing comes after, the first one only takes Rust's own handler away.
    let twice = format!(
        "kill -s {signal} {before}; sleep 0.1; kill -s {signal} {before} 2>/dev/null || true"
    );
    host.does(&twice);
    let another = eventually(AFRESH, || {
        let now = main_pid(host);
        let active = host.says("systemctl is-active secretfs || true");
        now != before && now != "0" && active == "active"
    });
    assert!(another, "{}", journal(host));
}

fn journal(host: &Host) -> String {
    host.says("journalctl --no-pager -u secretfs | tail -n 60")
}

fn exposure(host: &Host) -> f64 {
    let said = host.says("systemd-analyze security --no-pager secretfs | tail -n 1");
    let number = said
        .split(": ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    number.unwrap().parse().unwrap()
}

#[test]
fn the_units_hold_a_server_without_any_privilege() {
    needs!();
    if !has(&NEEDS) {
        return;
    }
    let host = host();
    start(&host);
    assert_eq!(host.says("cat /secrets/demo/x"), "canary of who is killed");
    let server = main_pid(&host);
    let status = host.says(&format!("cat /proc/{server}/status"));
    let account = host.says("id -u secretfs");
    for (key, value) in [
        (
            "Uid:",
            format!("{account}\t{account}\t{account}\t{account}"),
        ),
        ("CapEff:", "0000000000000000".to_owned()),
        ("CapBnd:", "0000000000000000".to_owned()),
        ("NoNewPrivs:", "1".to_owned()),
        ("Seccomp:", "2".to_owned()),
    ] {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        assert_eq!(line.map(str::trim), Some(value.as_str()), "{key} {status}");
    }
    host.does("! flock --nonblock /run/secretfs/lock true");
    // Nobody else of it is left, and the mount is everyone's.
    assert_eq!(host.says("pgrep -c secretfs"), "1");
    host.does("nsenter -t 1 -m grep -q ' /secrets fuse.secretfs ro' /proc/self/mounts");
    assert!(exposure(&host) <= ALONE, "{}", exposure(&host));
    host.does(
        "install -D -m 644 /network.conf /etc/systemd/system/secretfs.service.d/network.conf",
    );
    host.does("systemctl daemon-reload");
    assert!(exposure(&host) <= WITH_NETWORK, "{}", exposure(&host));

    host.does("systemctl reload secretfs");

    // A server that hangs is followed, and who has a file open reads on.
    let watchdog = "/run/systemd/system/secretfs.service.d/watchdog.conf";
    host.does(&format!(
        "mkdir -p $(dirname {watchdog}) && printf '[Service]\nWatchdogSec=2\n' >{watchdog}"
    ));
    host.does("systemctl daemon-reload && systemctl restart secretfs");
    let server = main_pid(&host);
    host.does(&format!(
        "exec 9</secrets/demo/x; kill -s STOP {server}; timeout 15 cat /secrets/demo/x && cat <&9"
    ));
    assert_ne!(main_pid(&host), server);
    host.does(&format!("rm {watchdog} && systemctl daemon-reload"));

    // Who wants an end gets one, and a start as at first.
    host.does("secretfs unmount");
    assert_eq!(
        host.says("systemctl is-active secretfs || true"),
        "inactive"
    );
    host.does("! grep -q ' /secrets ' /proc/self/mounts");
    host.does("systemctl start secretfs && cat /secrets/demo/x");
    // What was stopped fails, at once; then what is left of it is taken away.
    host.does("systemctl stop secretfs");
    assert_eq!(host.says(READ), "1");
    host.does("systemctl start secretfs && cat /secrets/demo/x");

    // While no server can start who reads waits, and not for ever; then everything is as it was.
    host.does("mv /etc/secretfs/identity.txt /etc/secretfs/away");
    host.does("systemctl kill -s KILL secretfs");
    let read = host.says("timeout 18 cat /secrets/demo/x >/said 2>&1 && echo 0 || echo $?");
    assert_eq!(read, "1", "{}", journal(&host));
    host.does("mv /etc/secretfs/away /etc/secretfs/identity.txt");
    let reads = || host.says(READ) == "0";
    assert!(eventually(AFRESH, reads), "{}", journal(&host));

    // A config that is broken keeps it down, says why, and nobody waits.
    host.does("systemctl stop secretfs && echo 'nonsense = 1' >>/etc/secretfs/config.toml");
    host.does("! systemctl start secretfs");
    assert_eq!(host.says("systemctl is-active secretfs || true"), "failed");
    let status = host.says("systemctl status --no-pager --full secretfs || true");
    assert!(status.contains("nonsense"), "{status}");
    assert_eq!(host.says(READ), "1");
    host.does(
        "sed -i '$d' /etc/secretfs/config.toml && systemctl start secretfs && cat /secrets/demo/x",
    );
}

/// It reads a secret before there is a network.
const CONSUMER: &str = r#"
[Unit]
Before=network-pre.target network.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=cp /run/secrets/x /consumed
[Install]
WantedBy=multi-user.target
"#;

#[test]
fn who_needs_a_secret_waits_for_the_mount_and_for_no_network() {
    needs!();
    if !has(&NEEDS) {
        return;
    }
    let host = host();
    let unit = "/etc/systemd/system/consumer.service";
    host.does(&format!("cat >{unit} <<'END'{CONSUMER}END"));
    host.does(&format!(
        "mkdir {unit}.d && sed s/billing/demo/ /consumer.conf >{unit}.d/secretfs.conf"
    ));
    host.does("systemctl daemon-reload && systemctl start consumer");
    assert_eq!(
        host.says("systemctl is-active consumer"),
        "active",
        "{}",
        journal(&host)
    );
    assert_eq!(host.says("cat /consumed"), "canary of who is killed");
    assert_eq!(host.says("cat /secrets/demo/x"), "canary of who is killed");
}

#[test]
fn no_reader_notices_what_becomes_of_a_server() {
    needs!();
    if !has(&NEEDS) {
        return;
    }
    let host = host();
    start(&host);
    host.does("mkdir /bound /bound/folder && touch /bound/file && mount --bind /secrets/demo /bound/folder");
    host.does("mount --bind /secrets/demo/x /bound/file");
    let mount = || host.says("findmnt -n -o MAJ:MIN --mountpoint /secrets || true");
    let before = mount();
    host.does("python3 /readers.py >/read 2>&1 </dev/null & while ! test -e /reading; do sleep 0.05; done");
    for _ in 0..patience() {
        for (signal, pause) in [
            ("KILL", 700),
            ("KILL", 41),
            ("SEGV", 5),
            ("KILL", 333),
            ("ABRT", 0),
            ("KILL", 17),
            ("KILL", 120),
            ("TERM", 66),
        ] {
            std::thread::sleep(Duration::from_millis(pause));
            kill(&host, signal);
            // Longer than what dies at once.
            std::thread::sleep(Duration::from_millis(600));
        }
        host.does("systemctl restart secretfs");
        let server = main_pid(&host);
        let said = host.does("secretfs upgrade");
        assert!(said.contains("has taken over"), "{said}");
        assert_eq!(main_pid(&host), server, "the same process");
        host.does("systemctl daemon-reexec");
    }
    host.does("touch /stop");
    let mut read = String::new();
    let all = eventually(AFRESH, || {
        read = host.says("cat /read");
        read.lines().count() == 16
    });
    assert!(all, "{read}");
    for line in read.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let (count, longest): (u32, f64) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
        assert_eq!(fields[3], "", "{line}\n{}", journal(&host));
        assert!(
            count > 20 && longest < LONGEST,
            "{line}\n{}",
            journal(&host)
        );
    }
    assert_eq!(mount(), before, "the mount is the same");

    // Whoever takes the mount away gets a fresh one, as does one whose memory is damaged.
    let server = main_pid(&host);
    host.does("umount /bound/file /bound/folder && umount --lazy /secrets");
    let reads = || host.says("timeout 5 cat /secrets/demo/x || true") == "canary of who is killed";
    assert!(
        eventually(AFRESH, || main_pid(&host) != server && reads()),
        "{}",
        journal(&host)
    );
    let server = main_pid(&host);
    host.does(&format!(
        r#"exec 9</secrets/demo/x; python3 - <<'END'
import os
for fd in os.listdir("/proc/{server}/fd"):
    path = "/proc/{server}/fd/" + fd
    if "secretfs-memory" in os.readlink(path):
        with open(path, "r+b", buffering=0) as memory:
            memory.seek(1 << 16)
            memory.write(b"\xff" * 4096)
END
kill -s KILL {server}"#
    ));
    assert!(eventually(AFRESH, reads), "{}", journal(&host));
    let said = || journal(&host).contains("damaged");
    assert!(eventually(AFRESH, said), "{}", journal(&host));
}
