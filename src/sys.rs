//! The only unsafe code, and the numbers that the kernel calls people and processes by.
//!
//! Each function is one system call behind a safe signature; what it may be used for stands with its caller.

#![allow(unsafe_code, reason = "this is the module that holds all of it")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fmt, io};

use nix::sys::inotify::{Inotify, InotifyEvent};
use nix::sys::signal::{SigHandler, Signal};
use tokio::io::unix::AsyncFd;

mod locked_buffer;
mod pages;
mod secret_memory;
mod shared_memory;

pub use locked_buffer::LockedBuffer;
pub use secret_memory::SecretMemory;
pub use shared_memory::SharedMemory;

/// A user's number, as the host sees it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Uid(pub u32);

/// A group's number, as the host sees it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
#[repr(transparent)]
pub struct Gid(pub u32);

/// A thread's number in the daemon's pid namespace; 0 is a thread that it cannot see.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Tid(pub u32);

impl Uid {
    /// The superuser, who gets nothing here without a rule.
    pub const ROOT: Self = Self(0);

    /// The effective user of this process.
    #[must_use]
    pub fn effective() -> Self {
        Self(nix::unistd::geteuid().as_raw())
    }
}

impl Gid {
    /// The effective group of this process.
    #[must_use]
    pub fn effective() -> Self {
        Self(nix::unistd::getegid().as_raw())
    }
}

/// The supplementary groups that the process at the other end of a unix socket had when it connected (SO_PEERGROUPS).
///
/// # Errors
/// What getsockopt(2) fails with.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<Gid>> {
    let mut groups = vec![Gid(0); 64];
    loop {
        let bytes = groups.len().saturating_mul(size_of::<Gid>());
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: `groups` is `length` bytes of a transparent u32, which is gid_t; the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).map_err(io::Error::other)? / size_of::<Gid>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ => match io::Error::last_os_error() {
                // The kernel has said in `length` how much there is.
                error if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                    groups.resize(count, Gid(0));
                }
                error => return Err(error),
            },
        }
    }
}

macro_rules! display_as_number {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_number!(Uid, Gid, Tid);

/// Takes over a descriptor that this process inherited under a number.
///
/// # Errors
/// `EBADF` if no descriptor is open under it, `EINVAL` for the three standard ones, which others own.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD on any number is harmless; it fails with EBADF if the number names no descriptor.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as the call above has shown, and the caller names each inherited one once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives up every privilege for good: becomes `user`, if there is one, with its own groups only, drops every capability
/// from every set, and has execve give none back.
///
/// # Errors
/// What the kernel says; the process must then end.
pub fn renounce(user: Option<&User>) -> io::Result<()> {
    use caps::{CapSet, Capability};
    nix::sys::prctl::set_no_new_privs()?;
    // Only who holds CAP_SETPCAP may shrink the bounding set; who does not has nothing to bound, given no new privileges.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(io::Error::other)? {
        caps::clear(None, CapSet::Bounding).map_err(io::Error::other)?;
    }
    if let Some(user) = user {
        become_user(user)?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        // Who has none may have been forbidden to ask for less.
        if !caps::read(None, set).map_err(io::Error::other)?.is_empty() {
            caps::clear(None, set).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "this module is where identity changes belong"
)]
fn become_user(user: &User) -> io::Result<()> {
    nix::unistd::setgroups(&nix::unistd::getgrouplist(&user.name, user.gid)?)?;
    nix::unistd::setresgid(user.gid, user.gid, user.gid)?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid)?;
    Ok(())
}

/// A user that a process can become.
#[derive(Debug, Clone)]
pub struct User {
    name: CString,
    uid: nix::unistd::Uid,
    gid: nix::unistd::Gid,
}

impl User {
    /// The user of this name and these numbers.
    ///
    /// # Errors
    /// If the name holds a null byte.
    pub fn new(name: &str, uid: Uid, gid: Gid) -> io::Result<Self> {
        let name = CString::new(name)?;
        Ok(Self {
            name,
            uid: nix::unistd::Uid::from_raw(uid.0),
            gid: nix::unistd::Gid::from_raw(gid.0),
        })
    }
}

/// Makes this process one that nobody of its own uid can trace, and that leaves no core.
///
/// # Errors
/// What the kernel says.
pub fn forbid_dumps() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// A mount of the same file system as the one at `path`, which stands nowhere in the tree: what is made read-only there
/// stays writable through this descriptor. It lives as long as the descriptor.
///
/// # Errors
/// What open_tree(2) fails with: `EPERM` without CAP_SYS_ADMIN.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a string that ends in a null byte and outlives the call.
    let number =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match i32::try_from(number) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Puts `by` in the place of another descriptor, which is closed: from now on it is what stands under that number.
///
/// # Errors
/// What dup3(2) fails with.
pub fn replace(descriptor: BorrowedFd<'_>, by: OwnedFd) -> io::Result<()> {
    // SAFETY: both are open, and whoever owns the first one has the same right to the second from now on.
    match unsafe { libc::dup3(by.as_raw_fd(), descriptor.as_raw_fd(), libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives the thread that calls this a table of descriptors of its own, which has the three standard ones and these. The other
/// threads keep theirs, and what they close is closed, as this one does not hold it. It must use no other descriptor from then on,
/// and drop no owner of one.
///
/// # Errors
/// What close_range(2) fails with: `ENOSYS` before Linux 5.9. Then the thread has the table of the others, as before.
pub fn keep_only(descriptors: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = descriptors.iter().map(|one| one.unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO.unsigned_abs() + 1;
    let mut gaps = Vec::new();
    for one in kept {
        gaps.push((first, one.saturating_sub(1)));
        first = first.max(one.saturating_add(1));
    }
    gaps.push((first, u32::MAX));
    for (first, last) in gaps.into_iter().filter(|(first, last)| first <= last) {
        let flags = libc::CLOSE_RANGE_UNSHARE;
        // SAFETY: the call takes no pointers. What it closes is this thread's alone, which uses nothing of it.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes `fresh`, a descriptor of `/dev/fuse` that nothing was done with, another one of the connection that `device` serves.
/// What was read from `device` and not answered fails when its last copy is closed.
///
/// # Errors
/// What the kernel says.
pub fn clone_connection(device: BorrowedFd<'_>, fresh: BorrowedFd<'_>) -> io::Result<()> {
    const FUSE_DEV_IOC_CLONE: libc::Ioctl = nix::request_code_read!(229, 0, size_of::<u32>());
    let number = u32::try_from(device.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the call reads one number, which outlives it.
    match unsafe { libc::ioctl(fresh.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the kernel kill this process when the thread that started it dies. To be called after [`renounce`], which resets it.
///
/// # Errors
/// What the kernel says.
pub fn die_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// Ends this process at once, as this signal ends one that does not listen for it. Returns only if that fails.
pub fn die_of(signal: Signal) -> io::Error {
    // SAFETY: no handler is put in place, but the one that is there taken away.
    let died = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    let died = died.and_then(|_| nix::sys::signal::raise(signal));
    died.map_or_else(io::Error::from, |()| {
        io::Error::other("the signal is blocked")
    })
}

/// The kernel's word that files have changed, which tasks can wait for.
#[derive(Debug)]
pub struct Notices(Inotify);

impl Notices {
    /// What has happened since it was last asked.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing has.
    pub fn read(&self) -> io::Result<Vec<InotifyEvent>> {
        Ok(self.0.read_events()?)
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Lets tasks wait for what `inotify`, which must not block, has to say.
///
/// # Errors
/// What the kernel refuses.
pub fn await_notices(inotify: Inotify) -> io::Result<AsyncFd<Notices>> {
    // SAFETY: `Notices` owns the descriptor, is the only way to it, always says the same number, and closes it only when
    // `AsyncFd` drops it, which has let go of the number by then.
    Ok(unsafe { AsyncFd::register(Notices(inotify)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_descriptor_is_not_adopted() {
        assert_eq!(
            adopt(1_000_000).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert_eq!(adopt(1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
