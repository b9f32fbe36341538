//! The only unsafe code, and the numbers that the kernel calls people and processes by.
//!
//! Each function is one system call behind a safe signature; what it may be used for stands with its caller.

#![allow(unsafe_code, reason = "this is the module that holds all of it")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
