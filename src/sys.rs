//! The only unsafe code, and the numbers that the kernel calls people and processes by.
//!
//! Each function is one system call behind a safe signature; what it may be used for stands with its caller.

#![allow(unsafe_code, reason = "this is the module that holds all of it")]

use std::fmt;

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
