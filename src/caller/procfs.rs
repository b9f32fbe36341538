//! Callers as the kernel describes them in `/proc`.
//!
//! Only `status`, `cgroup` and `comm` are read, which the kernel writes: `environ`, `cmdline` and `maps` can be stalled
//! by the process that they describe, and `exe` can be forged by any user. The parsers take exactly what the kernel
//! writes and refuse everything else: what cannot be found out denies.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::caller::{CallerError, Cgroup, Lookup};
use crate::sys::{Gid, Tid};

/// Room for NGROUPS_MAX (65,536) groups of ten digits, and for the other lines.
const MAX_STATUS: u64 = 1 << 20;
/// A line for each hierarchy, each with a path of up to PATH_MAX bytes.
const MAX_CGROUP: u64 = 1 << 17;
/// TASK_COMM_LEN is 16; kernel threads show more.
const MAX_COMM: u64 = 64;

/// The machine's `/proc`.
#[derive(Debug, Clone)]
pub struct Procfs {
    root: PathBuf,
}

impl Default for Procfs {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/proc"),
        }
    }
}

impl Lookup for Procfs {
    fn groups(&self, tid: Tid) -> Result<Vec<Gid>, CallerError> {
        let status = self.read(tid, "status", MAX_STATUS)?;
        parse_groups(&status).map_err(|why| unreadable(tid, "status", why))
    }

    fn cgroup(&self, tid: Tid) -> Result<Cgroup, CallerError> {
        let cgroup = self.read(tid, "cgroup", MAX_CGROUP)?;
        parse_cgroup(&cgroup).map_err(|why| unreadable(tid, "cgroup", why))
    }

    fn comm(&self, tid: Tid) -> Option<String> {
        let comm = self.read(tid, "comm", MAX_COMM).ok()?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
        Some(String::from_utf8_lossy(comm).into_owned())
    }
}

impl Procfs {
    /// Makes sure that a thread id means the same here as in the requests that the kernel sends us. In a pid namespace
    /// with the `/proc` of another one we would look up strangers by the callers' numbers.
    ///
    /// # Errors
    /// [`io::Error`] that says what is wrong and the mend.
    pub fn check(&self) -> io::Result<()> {
        let ourselves = std::fs::read_link(self.root.join("self"))?;
        if ourselves == std::process::id().to_string() {
            return Ok(());
        }
        Err(io::Error::other(
            "it is of another pid namespace than the daemon: start the daemon in the host's, or mount a /proc for it (unshare --mount-proc)",
        ))
    }

    fn read(&self, tid: Tid, file: &'static str, limit: u64) -> Result<Vec<u8>, CallerError> {
        if tid.0 == 0 {
            return Err(CallerError::Invisible);
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::with_capacity(4096);
            File::open(self.root.join(tid.to_string()).join(file))?
                .take(limit + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| unreadable(tid, file, error))?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
            Ok(bytes)
        } else {
            Err(unreadable(tid, file, "it is too long"))
        }
    }
}

fn unreadable(tid: Tid, file: &'static str, why: impl ToString) -> CallerError {
    CallerError::Unreadable {
        tid,
        file,
        why: why.to_string(),
    }
}

/// Why a text is not what the kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(&'static str);

/// The supplementary groups in a `/proc/<tid>/status`.
///
/// # Errors
/// [`ParseError`] unless there is exactly one complete `Groups:` line, of decimal numbers.
pub fn parse_groups(status: &[u8]) -> Result<Vec<Gid>, ParseError> {
    let status = complete_lines(status)?;
    let mut lines = status
        .lines()
        .filter_map(|line| line.strip_prefix("Groups:"));
    let (Some(groups), None) = (lines.next(), lines.next()) else {
        return Err(ParseError("there is not exactly one line of groups"));
    };
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.map(Gid).ok_or(ParseError("a group is not a number"))
    };
    groups
        .split([' ', '\t'])
        .filter(|text| !text.is_empty())
        .map(number)
        .collect()
}

/// The unit and the container in a `/proc/<tid>/cgroup`.
///
/// The path is walked from the root, through names that only the host's service manager and container engines make.
/// It ends at the first unit or container: what stands below is delegated to somebody who may call it anything, such as
/// `system.slice/billing.service`. It ends without either at the first name that is not known.
///
/// # Errors
/// [`ParseError`] where there is no line of systemd's hierarchy or of the unified one, and for a cgroup that is deleted
/// or outside of our cgroup namespace.
pub fn parse_cgroup(cgroup: &[u8]) -> Result<Cgroup, ParseError> {
    let lines = complete_lines(cgroup)?;
    let (mut systemd, mut unified) = (None, None);
    for line in lines.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseError("a line has not three parts"));
        };
        let place = match (id, controllers) {
            ("0", "") => &mut unified,
            (_, "name=systemd") => &mut systemd,
            _ => continue,
        };
        if place.replace(path).is_some() {
            return Err(ParseError("a hierarchy stands there twice"));
        }
    }
    let path = systemd.or(unified).ok_or(ParseError(
        "there is no line of systemd's or the unified hierarchy",
    ))?;
    walk(path)
}

fn walk(path: &str) -> Result<Cgroup, ParseError> {
    let below_root = path
        .strip_prefix('/')
        .ok_or(ParseError("the path is not absolute"))?;
    if path.ends_with(" (deleted)") {
        return Err(ParseError("the cgroup was deleted"));
    }
    let parts: Vec<&str> = match below_root {
        "" => Vec::new(),
        parts => parts.split('/').collect(),
    };
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Err(ParseError("the cgroup is outside of our cgroup namespace"));
    }
    let mut found = Cgroup::default();
    for part in parts {
        if part.ends_with(".service") || part.ends_with(".scope") {
            found.container = engine_scope(part).map(str::to_owned);
            // systemd puts a `_` before names that would collide with the kernel's own files, and before `_`.
            found.unit = Some(part.strip_prefix('_').unwrap_or(part).to_owned());
            break;
        }
        if let Some(id) = bare_container(part) {
            found.container = Some(id.to_owned());
            break;
        }
        if !is_host_made(part) {
            break;
        }
    }
    Ok(found)
}

/// The id in the name of a scope that an engine asked systemd for.
fn engine_scope(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope")?;
    ["docker-", "libpod-", "crio-", "cri-containerd-"]
        .iter()
        .find_map(|engine| name.strip_prefix(engine))
        .filter(|id| is_id(id))
}

/// The id in the name of a cgroup that an engine made itself: `/docker/<id>`, `/libpod_parent/libpod-<id>`,
/// `/kubepods/burstable/pod…/<id>`.
fn bare_container(part: &str) -> Option<&str> {
    let id = part.strip_prefix("libpod-").unwrap_or(part);
    is_id(id).then_some(id)
}

/// Folders that the host's service manager and container engines make for others to stand in.
fn is_host_made(part: &str) -> bool {
    part.ends_with(".slice")
        || part.starts_with("pod")
        || matches!(
            part,
            "docker" | "libpod_parent" | "kubepods" | "burstable" | "besteffort"
        )
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The text, if its last line is complete.
fn complete_lines(bytes: &[u8]) -> Result<&str, ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ParseError("it is not UTF-8"))?;
    if text.ends_with('\n') {
        Ok(text)
    } else {
        Err(ParseError("the last line is not complete"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "3f4a9c1b2d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8";

    #[test]
    fn the_proc_of_another_pid_namespace_is_not_taken_for_ours() {
        assert!(Procfs::default().check().is_ok());
        let folder = tempfile::tempdir().unwrap();
        let procfs = Procfs {
            root: folder.path().to_owned(),
        };
        assert!(procfs.check().is_err());
        std::os::unix::fs::symlink("1", folder.path().join("self")).unwrap();
        assert!(procfs.check().is_err());
    }

    #[test]
    fn groups_are_read_from_what_kernels_write() {
        let table: [(&str, Result<&[u32], ()>); 13] = [
            (
                "Name:\tcat\nGroups:\t4 24 27 1000 \nNStgid:\t9\n",
                Ok(&[4, 24, 27, 1000]),
            ),
            ("Name:\tcat\nGroups:\t \nNStgid:\t9\n", Ok(&[])),
            ("Groups:\t4294967294 \n", Ok(&[4_294_967_294])),
            // The kernel escapes a newline in a name; this is how it comes out.
            ("Name:\ta\\nGroups:\t0\nGroups:\t7 \n", Ok(&[7])),
            ("Name:\tGroups:\t0\nGroups:\t7 \n", Ok(&[7])),
            ("Name:\tcat\n", Err(())),
            ("Groups:\t4 \nGroups:\t0 \n", Err(())),
            ("Groups:\t4 24 2", Err(())),
            ("Groups:\t+4 \n", Err(())),
            ("Groups:\t-1 \n", Err(())),
            ("Groups:\t4294967296 \n", Err(())),
            ("Groups:\troot \n", Err(())),
            ("", Err(())),
        ];
        for (status, expected) in table {
            let groups = parse_groups(status.as_bytes());
            let groups = groups.map(|gids| gids.iter().map(|gid| gid.0).collect::<Vec<_>>());
            assert_eq!(
                groups.map_err(|_| ()),
                expected.map(<[u32]>::to_vec),
                "{status:?}"
            );
        }
    }

    /// Path, unit, container. `ID` stands for a container's id.
    const PATHS: &[(&str, Option<&str>, Option<&str>)] = &[
        ("/", None, None),
        ("/init.scope", Some("init.scope"), None),
        ("/system.slice/nginx.service", Some("nginx.service"), None),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            Some("getty@tty1.service"),
            None,
        ),
        (
            "/system.slice/dev\\x2dstore.service",
            Some("dev\\x2dstore.service"),
            None,
        ),
        ("/system.slice/_cpu.service", Some("cpu.service"), None),
        ("/system.slice/__odd.service", Some("_odd.service"), None),
        ("/system.slice/a:b.service", Some("a:b.service"), None),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            Some("session-3.scope"),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-code.scope",
            Some("user@1000.service"),
            None,
        ),
        (
            "/system.slice/docker-ID.scope",
            Some("docker-ID.scope"),
            Some("ID"),
        ),
        (
            "/machine.slice/libpod-ID.scope/container",
            Some("libpod-ID.scope"),
            Some("ID"),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
            Some("cri-containerd-ID.scope"),
            Some("ID"),
        ),
        (
            "/kubepods.slice/kubepods-pod1.slice/crio-ID.scope/container",
            Some("crio-ID.scope"),
            Some("ID"),
        ),
        (
            "/machine.slice/libpod-conmon-ID.scope",
            Some("libpod-conmon-ID.scope"),
            None,
        ),
        ("/docker/ID", None, Some("ID")),
        ("/libpod_parent/libpod-ID", None, Some("ID")),
        ("/kubepods/burstable/pod1b2c-3d/ID", None, Some("ID")),
        // A path that somebody else than the host's manager has made ends where theirs begins.
        (
            "/user.slice/user-1000.slice/user@1000.service/system.slice/billing.service",
            Some("user@1000.service"),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            Some("user@1000.service"),
            None,
        ),
        (
            "/system.slice/evil.service/docker/ID",
            Some("evil.service"),
            None,
        ),
        (
            "/system.slice/evil.service/docker-ID.scope",
            Some("evil.service"),
            None,
        ),
        (
            "/machine.slice/machine-evil.scope/docker/ID",
            Some("machine-evil.scope"),
            None,
        ),
        ("/docker/ID/system.slice/billing.service", None, Some("ID")),
        ("/docker/ID/docker/0000", None, Some("ID")),
        ("/lxc.payload.evil/system.slice/billing.service", None, None),
        ("/lxc/evil/docker/ID", None, None),
        ("/my-system.slice-not/billing.service", None, None),
        // Not an id.
        ("/docker/IDa", None, None),
        ("/docker/3f4a", None, None),
        (
            "/system.slice/docker-3f4a.scope",
            Some("docker-3f4a.scope"),
            None,
        ),
        (
            "/system.slice/mydocker-ID.scope",
            Some("mydocker-ID.scope"),
            None,
        ),
    ];

    #[test]
    fn units_and_containers_are_read_from_what_kernels_write() {
        let with_id = |text: &str| text.replace("ID", ID);
        for (path, unit, container) in PATHS {
            let expected = Cgroup {
                unit: unit.map(with_id),
                container: container.map(with_id),
            };
            let path = with_id(path);
            let elsewhere = "/system.slice/elsewhere.service";
            for text in [
                format!("0::{path}\n"),
                format!("12:cpu,cpuacct:{elsewhere}\n1:name=systemd:{path}\n0::{elsewhere}\n"),
                format!("4:memory:{elsewhere}\n0::{path}\n"),
            ] {
                assert_eq!(
                    parse_cgroup(text.as_bytes()).as_ref(),
                    Ok(&expected),
                    "{text}"
                );
            }
        }
        let upper = format!("0::/docker/{}\n", ID.to_uppercase());
        assert_eq!(parse_cgroup(upper.as_bytes()), Ok(Cgroup::default()));
    }

    #[test]
    fn a_cgroup_that_cannot_be_placed_is_an_error() {
        for text in [
            "",
            "0::/a.service",
            "4:memory:/a.service\n",
            "0:/a.service\n",
            "0::a.service\n",
            "0::/../a.service\n",
            "0::/../../system.slice/a.service\n",
            "0::/system.slice/..\n",
            "0:://system.slice/a.service\n",
            "0::/system.slice/a.service/\n",
            "0::/system.slice/a.service (deleted)\n",
            "0::/system.slice/a.service/x (deleted)\n",
            "0::/a.service\n0::/b.service\n",
            "1:name=systemd:/a.service\n2:name=systemd:/b.service\n",
        ] {
            assert!(parse_cgroup(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse_cgroup(b"0::/a\xff.service\n").is_err());
    }

    #[test]
    fn a_thread_finds_itself() {
        let tid = Tid(u32::try_from(nix::unistd::gettid().as_raw()).unwrap());
        let mut groups = Procfs::default().groups(tid).unwrap();
        let mut known: Vec<_> = nix::unistd::getgroups()
            .unwrap()
            .iter()
            .map(|gid| Gid(gid.as_raw()))
            .collect();
        groups.sort();
        known.sort();
        assert_eq!(groups, known);
        assert!(Procfs::default().cgroup(tid).is_ok());
        assert!(Procfs::default().comm(tid).is_some());
    }

    #[test]
    fn what_cannot_be_seen_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let procfs = Procfs {
            root: folder.path().to_owned(),
        };
        assert_eq!(procfs.groups(Tid(0)), Err(CallerError::Invisible));
        assert_eq!(procfs.cgroup(Tid(0)), Err(CallerError::Invisible));
        assert_eq!(procfs.comm(Tid(0)), None);
        let unreadable = |result| matches!(result, Err(CallerError::Unreadable { .. }));
        assert!(unreadable(procfs.groups(Tid(7)).map(drop)));
        std::fs::create_dir(folder.path().join("7")).unwrap();
        std::fs::write(folder.path().join("7/status"), "Groups:\t4 \n").unwrap();
        assert_eq!(procfs.groups(Tid(7)), Ok(vec![Gid(4)]));
        let long = "0::/a\n".repeat(1 << 16);
        std::fs::write(folder.path().join("7/cgroup"), long).unwrap();
        assert!(unreadable(procfs.cgroup(Tid(7)).map(drop)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_groups(&bytes);
            let _ = parse_cgroup(&bytes);
        }

        /// Whatever stands below a service, made by whoever it was delegated to, changes nothing.
        #[test]
        fn below_a_service_no_name_counts(parts in proptest::collection::vec("[a-z.-]{1,12}|system\\.slice|billing\\.service|docker|[0-9a-f]{64}|docker-[0-9a-f]{64}\\.scope", 1..5)) {
            prop_assume!(!parts.iter().any(|part| part == "." || part == ".."));
            let text = format!("0::/system.slice/mine.service/{}\n", parts.join("/"));
            let expected = Cgroup { unit: Some("mine.service".to_owned()), container: None };
            prop_assert_eq!(parse_cgroup(text.as_bytes()), Ok(expected));
        }
    }
}
