//! The package: built as a release is, then installed, used, upgraded, removed and purged on a Debian that systemd has
//! booted, in a container of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends where it is wrong"
)]

#[path = "../common/mod.rs"]
mod common;

mod host;
mod image;
mod units;

use common::machine::{Need, has, needs};
use host::Host;

/// What this needs besides a mount.
const NEEDS: [Need; 6] = [
    Need::Program("mmdebstrap"),
    Need::Program("systemd-nspawn"),
    Need::Program("nsenter"),
    Need::Program("dpkg-shlibdeps"),
    Need::Cargo("deb"),
    Need::Cgroups,
];

const VALUE: &str = "only for those who may";

#[test]
fn it_is_installed_used_upgraded_removed_and_purged() {
    needs!();
    if !has(&NEEDS) {
        return;
    }
    let package = host::build("systemd/debian/build");
    let host = Host::boot(&[(&package, "/secretfs.deb")]);

    // Nothing begins by itself, and what to do is said.
    let said = host.does("dpkg -i /secretfs.deb");
    assert!(said.contains("secretfs init"), "{said}");
    assert_eq!(
        host.says("systemctl is-enabled secretfs || true"),
        "disabled"
    );
    assert_eq!(
        host.says("systemctl is-active secretfs || true"),
        "inactive"
    );
    assert_eq!(host.says("id -un secretfs"), "secretfs");
    host.does("! test -e /etc/secretfs && ! test -e /var/lib/secretfs && ! test -e /secrets");
    for file in [
        "/usr/share/doc/secretfs/config.example.toml",
        "/usr/share/doc/secretfs/README.md",
        "/usr/share/doc/secretfs/docs/operations.md",
        "/usr/share/doc/secretfs/copyright",
        "/usr/share/man/man1/secretfs.1.gz",
        "/usr/share/man/man1/secretfs-put.1.gz",
        "/usr/share/bash-completion/completions/secretfs",
        "/usr/share/zsh/vendor-completions/_secretfs",
        "/usr/share/fish/vendor_completions.d/secretfs.fish",
        "/usr/lib/systemd/system/secretfs.service",
        "/usr/lib/systemd/system/secretfs.target",
        "/usr/lib/tmpfiles.d/secretfs.conf",
        "/usr/share/doc/secretfs/network.conf",
        "/usr/share/doc/secretfs/consumer.conf",
        "/usr/lib/sysusers.d/secretfs.conf",
    ] {
        // It may leave documentation out as it unpacks, but the package has it.
        host.does(&format!("dpkg -L secretfs | grep -qxF {file}"));
    }
    let copyright =
        "dpkg-deb --fsys-tarfile /secretfs.deb | tar -xO ./usr/share/doc/secretfs/copyright";
    let copyright = host.says(copyright);
    for part in [
        "The secretfs authors",
        "==== MIT ====",
        "Permission is hereby granted",
    ] {
        assert!(copyright.contains(part), "{copyright}");
    }
    host.does("bash -n /usr/share/bash-completion/completions/secretfs");

    // As the page on operations says.
    host.does("secretfs init && systemctl enable --now secretfs");
    host.does(&format!("printf '{VALUE}' | secretfs put demo/word"));
    assert_eq!(host.says("cat /secrets/demo/word"), VALUE);
    let somebody =
        "setpriv --reuid 65534 --regid 65534 --clear-groups cat /secrets/demo/word || true";
    assert!(host.says(somebody).ends_with("Permission denied"));
    let keeper = host.says("systemctl show -P MainPID secretfs");
    host.does("secretfs doctor");

    // After an upgrade the new one serves the same mount, in the same process, and who has a file open reads on.
    host.does("exec 9</secrets/demo/word; dpkg -i /secretfs.deb >/said && cat <&9 >/read");
    assert_eq!(host.says("cat /read"), VALUE);
    let said = host.says("cat /said");
    assert!(said.contains("has taken over"), "{said}");
    assert_eq!(host.says("systemctl show -P MainPID secretfs"), keeper);
    assert_eq!(
        host.says("readlink /proc/$(systemctl show -P MainPID secretfs)/exe"),
        "/usr/bin/secretfs"
    );
    assert_eq!(host.says("cat /secrets/demo/word"), VALUE);
    host.does("systemctl restart secretfs");
    assert_eq!(host.says("cat /secrets/demo/word"), VALUE);

    // Without the package nothing runs, and nothing is lost; it says how everything would be.
    let said = host.does("dpkg -r secretfs");
    assert!(said.contains("apt purge secretfs"), "{said}");
    assert_eq!(
        host.says("systemctl is-active secretfs || true"),
        "inactive"
    );
    host.does("! grep -q ' /secrets ' /proc/self/mounts");
    host.does("test -s /etc/secretfs/identity.txt && test -s /var/lib/secretfs/store.age");
    let said = host.does("dpkg -i /secretfs.deb");
    assert!(said.contains("systemctl enable --now secretfs"), "{said}");
    assert_eq!(host.says("systemctl is-enabled secretfs"), "enabled");
    host.does("systemctl start secretfs");
    assert_eq!(host.says("cat /secrets/demo/word"), VALUE);

    let said = host.does("dpkg -P secretfs");
    for folder in ["/etc/secretfs", "/var/lib/secretfs", "/var/log/secretfs"] {
        assert!(said.contains(&format!("destroying {folder}")), "{said}");
        host.does(&format!("! test -e {folder}"));
    }
    host.does("! test -e /secrets && ! dpkg -L secretfs");
    host.does("! test -L /etc/systemd/system/multi-user.target.wants/secretfs.service");
    // Nothing that the package brought failed on its way.
    assert_eq!(host.says("systemctl --failed --no-legend --plain"), "");
}
