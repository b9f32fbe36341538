//! The mount: made, found again when dead, and taken away.
//!
//! Root mounts with mount(2), everyone else through `fusermount3`. What users see is attached read-only where we may do
//! that; the file system itself refuses every change in any case.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType};

use crate::sys::{self, Gid, Uid};

/// The type that mountinfo and `mount` show.
pub const TYPE: &str = "fuse.secretfs";

/// Where what is mounted should be.
#[derive(Debug, Clone)]
pub struct Mountpoint {
    path: PathBuf,
    /// What mountinfo shows as the source: the config, which tells our mounts from another daemon's.
    source: PathBuf,
}

/// A mount that was just made.
#[derive(Debug)]
pub struct Mounted {
    /// What serves it. Until someone does, who uses the mount waits; when the last copy of this is closed, who waits fails
    /// at once.
    pub device: OwnedFd,
    /// Its top, by way of a mount that can be written to: what users see is read-only where we may do that. `None` where
    /// nothing can be written to, and so nobody who watches a secret can be woken.
    pub writable: Option<OwnedFd>,
}

/// A mount of ours that is listed in mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The config that it was made for.
    pub source: PathBuf,
    /// The number of its FUSE connection.
    pub connection: u64,
}

/// Why something about a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint is not there, or not a folder.
    #[error("mountpoint {}: {why}: mkdir -p {}, or name another folder as `mount` in the config", .path.display(), .path.display())]
    NoFolder {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// No FUSE on this machine.
    #[error(
        "/dev/fuse: {0}: load the module (modprobe fuse) or, in a container, pass the device in (--device /dev/fuse)"
    )]
    NoDevice(io::Error),
    /// mount(2) says no.
    #[error("mountpoint {}: mount: {why}: mounting as root needs CAP_SYS_ADMIN", .path.display())]
    Refused {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: io::Error,
    },
    /// No fusermount3.
    #[error("fusermount3: {0}: install fuse3 (apt install fuse3), or start as root")]
    NoHelper(io::Error),
    /// fusermount3 says no.
    #[error("mountpoint {}: {why}: let the mountpoint belong to who mounts, or name another folder as `mount` in the config", .path.display())]
    HelperRefused {
        /// The mountpoint.
        path: PathBuf,
        /// The last line that it said.
        why: String,
    },
    /// The mountpoint belongs to another daemon.
    #[error("mountpoint {} holds a mount of {}: unmount it (secretfs --config {} unmount), or name another folder as `mount`", .path.display(), .source_config.display(), .source_config.display())]
    Taken {
        /// The mountpoint.
        path: PathBuf,
        /// The config of the mount that is there.
        source_config: PathBuf,
    },
    /// It would not go.
    #[error("mountpoint {}: unmount: {why}", .path.display())]
    Stays {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: io::Error,
    },
}

impl Mountpoint {
    /// The mountpoint of the config at `source`.
    #[must_use]
    pub fn new(path: &Path, source: &Path) -> Self {
        Self {
            path: resolved(path),
            source: source.to_owned(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts.
    ///
    /// # Errors
    /// [`MountError`]
    pub fn mount(&self) -> Result<Mounted, MountError> {
        let no_folder = |why: String| MountError::NoFolder {
            path: self.path.clone(),
            why,
        };
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => match fs::read_dir(&self.path).map(|mut all| all.next())
            {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let hidden = "not empty, and the mount would hide what is in it";
                    return Err(no_folder(hidden.to_owned()));
                }
                Err(error) => return Err(no_folder(error.to_string())),
            },
            Ok(_) => return Err(no_folder("not a folder".to_owned())),
            Err(error) => return Err(no_folder(error.to_string())),
        }
        if Uid::effective() == Uid::ROOT {
            self.mount_as_root()
        } else {
            self.mount_as_user()
        }
    }

    fn mount_as_root(&self) -> Result<Mounted, MountError> {
        let device = device().map_err(MountError::NoDevice)?;
        let refused = |why: nix::Error| MountError::Refused {
            path: self.path.clone(),
            why: why.into(),
        };
        let (number, uid, gid) = (device.as_raw_fd(), Uid::effective(), Gid::effective());
        let options =
            format!("fd={number},rootmode=40000,user_id={uid},group_id={gid},allow_other");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(
            Some(&self.source),
            &self.path,
            Some(TYPE),
            flags,
            Some(options.as_str()),
        )
        .map_err(refused)?;
        let writable = sys::clone_mount(&self.path)
            .inspect_err(|why| unwatched(&format!("open_tree: {why}")))
            .ok();
        // Read-only as a mount, not as a file system: the server renames through the mount of its own.
        let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let attached =
            nix::mount::mount(None::<&str>, &self.path, None::<&str>, flags, None::<&str>);
        if let Err(error) = attached {
            let _ = self.detach();
            return Err(refused(error));
        }
        Ok(Mounted {
            device: device.into(),
            writable,
        })
    }

    fn mount_as_user(&self) -> Result<Mounted, MountError> {
        let pair = socket::socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let (ours, theirs) = pair.map_err(|error| MountError::NoHelper(error.into()))?;
        let passed = theirs
            .try_clone()
            .and_then(|theirs| pass_on(theirs.as_fd()))
            .map_err(MountError::NoHelper)?;
        let mut options = OsString::from("nosuid,nodev,noexec,subtype=secretfs,fsname=");
        options.push(escaped(self.source.as_os_str()));
        let others = others_allowed();
        if others {
            // Read-only, where others come: the kernel passes on to a writable mount what fuser cannot decode. Times before
            // 1970 by more than a SystemTime holds, which any user may ask for with utimensat(2), end the server. Whoever
            // mounts for himself alone could end it anyway.
            options.push(",allow_other,ro");
        }
        let mut helper = Command::new("fusermount3");
        helper
            .arg("-o")
            .arg(options)
            .arg("--")
            .arg(&self.path)
            .env("_FUSE_COMMFD", passed.as_raw_fd().to_string());
        let helper = helper
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(MountError::NoHelper)?;
        drop((theirs, passed));
        // fusermount3 either sends the descriptor or exits, which closes its end.
        let device = receive(&ours);
        let ended = helper.wait_with_output().map_err(MountError::NoHelper)?;
        match device {
            Some(device) if ended.status.success() => {
                let writable = if others {
                    unwatched("others may read this mount, so it is read-only");
                    None
                } else {
                    tracing::warn!(
                        "only you can read below {}: add user_allow_other to /etc/fuse.conf to let others in",
                        self.path.display()
                    );
                    self.top()
                        .inspect_err(|why| unwatched(&why.to_string()))
                        .ok()
                };
                Ok(Mounted { device, writable })
            }
            Some(_) | None => {
                let said = String::from_utf8_lossy(&ended.stderr);
                let why = said.lines().last().unwrap_or("fusermount3 refused");
                Err(MountError::HelperRefused {
                    path: self.path.clone(),
                    why: why.to_owned(),
                })
            }
        }
    }

    /// The top of the mount, as a place to work from.
    fn top(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let top = File::options()
            .read(true)
            .custom_flags(flags)
            .open(&self.path)?;
        Ok(top.into())
    }

    /// The mounts of secretfs at this place, the topmost last.
    ///
    /// # Errors
    /// What reading mountinfo fails with.
    pub fn listed(&self) -> io::Result<Vec<Listed>> {
        Ok(self.all()?.into_iter().flatten().collect())
    }

    /// Every mount at this place, the topmost last: `None` is one of another file system.
    fn all(&self) -> io::Result<Vec<Option<Listed>>> {
        let mountinfo = fs::read("/proc/self/mountinfo")?;
        Ok(parse_mountinfo(&mountinfo, &self.path))
    }

    /// Takes away what an earlier daemon of the same config left here. The caller holds the config's lock, so that
    /// there is no living one. Says whether there was something.
    ///
    /// # Errors
    /// [`MountError::Taken`] if a mount of another config is in the way; [`MountError::Stays`].
    pub fn heal(&self) -> Result<bool, MountError> {
        let stays = |why| MountError::Stays {
            path: self.path.clone(),
            why,
        };
        let listed = self.listed().map_err(stays)?;
        if let Some(foreign) = listed.iter().find(|mount| mount.source != self.source) {
            return Err(MountError::Taken {
                path: self.path.clone(),
                source_config: foreign.source.clone(),
            });
        }
        for mount in &listed {
            abort(mount);
            self.detach().map_err(stays)?;
        }
        Ok(!listed.is_empty())
    }

    /// Takes our mount out of the tree at once, whoever still has files open in it. What somebody else has mounted at
    /// the same place is not ours to take: if ours is gone already there is nothing to do.
    ///
    /// # Errors
    /// What the kernel or fusermount3 says, or that another mount lies on top of ours.
    pub fn detach(&self) -> io::Result<()> {
        let ours = |mount: &Option<Listed>| {
            mount
                .as_ref()
                .is_some_and(|mount| mount.source == self.source)
        };
        let all = self.all()?;
        if !all.iter().any(ours) {
            return Ok(());
        }
        if !all.last().is_some_and(ours) {
            return Err(io::Error::other(
                "another mount lies on top of it: unmount that one, then run `secretfs unmount`",
            ));
        }
        if Uid::effective() == Uid::ROOT {
            return Ok(nix::mount::umount2(
                &self.path,
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            )?);
        }
        let helper = Command::new("fusermount3")
            .args(["-u", "-z", "-q", "--"])
            .arg(&self.path)
            .status()?;
        if helper.success() {
            Ok(())
        } else {
            Err(io::Error::other("fusermount3 -u refused"))
        }
    }
}

/// Says that rotations work, and that no watcher hears of them.
fn unwatched(why: &str) {
    tracing::warn!("programs that watch secrets for changes (inotify) will not be woken: {why}");
}

/// Lets everyone go who waits for a server that answers no more. Only root and the mount's owner may, so it may fail.
pub(super) fn abort(mount: &Listed) {
    let connection = mount.connection;
    let _ = fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1");
}

/// Opens `/dev/fuse`.
///
/// # Errors
/// What opening it fails with, and where something else stands in its place.
pub fn device() -> io::Result<File> {
    const FUSE: (u64, u64) = (10, 229);
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let number = device.metadata()?.rdev();
    if (nix::sys::stat::major(number), nix::sys::stat::minor(number)) != FUSE {
        return Err(io::Error::other("something else stands in its place"));
    }
    Ok(device)
}

/// A copy of a descriptor that a child inherits. The keeper has one thread, so only the child started next does.
pub(super) fn pass_on(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let copy = descriptor.try_clone_to_owned()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}

/// The descriptor that fusermount3 sends.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let (mut byte, mut space) = ([0_u8; 1], nix::cmsg_space!([i32; 1]));
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        socket::recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).ok()?;
    let Some(ControlMessageOwned::ScmRights(sent)) = message.cmsgs().ok()?.next() else {
        return None;
    };
    sys::adopt(*sent.first()?).ok()
}

/// Whether fusermount3 lets a plain user's mount be read by others.
#[must_use]
pub fn others_allowed() -> bool {
    fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|conf| conf.lines().any(|line| line.trim() == "user_allow_other"))
}

/// fusermount3 splits its options at commas.
fn escaped(text: &OsStr) -> OsString {
    let bytes = text.as_bytes().iter().flat_map(|byte| match byte {
        b',' | b'\\' => vec![b'\\', *byte],
        byte => vec![*byte],
    });
    OsString::from_vec(bytes.collect())
}

/// The path as mountinfo shows it, without links. Nothing asks a file system that may be mounted there and dead.
fn resolved(path: &Path) -> PathBuf {
    if fs::read_link(path).is_ok() {
        return path.canonicalize().unwrap_or_else(|_| path.to_owned());
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// Each mount at this place; `None` is one of another file system.
fn parse_mountinfo(mountinfo: &[u8], mountpoint: &Path) -> Vec<Option<Listed>> {
    let mount = |line: &[u8]| -> Option<Option<Listed>> {
        // 36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let path = fields.nth(1)?;
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = fields.next()?;
        if unescaped(path) != mountpoint {
            return None;
        }
        if kind != TYPE.as_bytes() {
            return Some(None);
        }
        let source = unescaped(fields.next()?);
        let minor = std::str::from_utf8(device).ok()?.split_once(':')?.1;
        Some(Some(Listed {
            source,
            connection: minor.parse().ok()?,
        }))
    };
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(mount)
        .collect()
}

/// Undoes mountinfo's octal escapes: `\040` is a blank.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = match (byte, after.get(..3)) {
            (b'\\', Some(digits)) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        bytes.push(octal.unwrap_or(*byte));
        rest = if octal.is_some() {
            after.get(3..).unwrap_or_default()
        } else {
            after
        };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_names_our_mounts_and_no_others() {
        let mountinfo = b"36 35 98:0 / / rw - ext4 /dev/root rw\n\
            50 36 0:44 / /secrets ro,nosuid - fuse.secretfs /etc/secretfs/config.toml rw\n\
            51 36 0:45 / /secrets rw shared:5 master:1 - fuse.sshfs host:/ rw\n\
            52 36 0:46 / /my\\040secrets rw - fuse.secretfs /home/a\\134b/c.toml rw\n\
            torn 52 line\n";
        let at = |path: &str| parse_mountinfo(mountinfo, Path::new(path));
        assert_eq!(
            at("/secrets"),
            [
                Some(Listed {
                    source: "/etc/secretfs/config.toml".into(),
                    connection: 44
                }),
                None
            ]
        );
        assert_eq!(
            at("/my secrets"),
            [Some(Listed {
                source: "/home/a\\b/c.toml".into(),
                connection: 46
            })]
        );
        assert_eq!(at("/"), [None]);
        assert_eq!(at("/elsewhere"), []);
    }

    #[test]
    fn a_mountpoint_is_known_by_the_name_that_mountinfo_gives_it() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("a/secrets")).unwrap();
        std::os::unix::fs::symlink("a", real.join("link")).unwrap();
        std::os::unix::fs::symlink("a/secrets", real.join("direct")).unwrap();
        for name in ["a/secrets", "link/secrets", "direct"] {
            assert_eq!(resolved(&real.join(name)), real.join("a/secrets"), "{name}");
        }
        assert_eq!(resolved(&real.join("a/new")), real.join("a/new"));
    }

    #[test]
    fn a_comma_in_the_config_path_is_no_mount_option() {
        assert_eq!(escaped(OsStr::new("/a,b\\c")), OsStr::new("/a\\,b\\\\c"));
    }
}
