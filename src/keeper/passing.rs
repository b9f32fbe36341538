//! Descriptors that a child or another release inherits, named by their numbers on its command line.

use std::ffi::OsString;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::KeeperError;
use super::mountpoint::pass_on;

/// Options, and the copies of descriptors that some of them name. Whatever is executed while they are there inherits them.
#[derive(Debug, Default)]
pub(super) struct Passing {
    options: Vec<OsString>,
    copies: Vec<OwnedFd>,
}

impl Passing {
    /// An option, and what it says.
    pub(super) fn say(&mut self, option: &str, value: impl Into<OsString>) {
        self.options.extend([option.into(), value.into()]);
    }

    /// An option that names a descriptor.
    ///
    /// # Errors
    /// [`KeeperError::Start`]
    pub(super) fn pass(&mut self, option: &str, what: &impl AsFd) -> Result<(), KeeperError> {
        self.pass_named(option, "", what)
    }

    /// The same, which says first what it is for.
    ///
    /// # Errors
    /// [`KeeperError::Start`]
    pub(super) fn pass_named(
        &mut self,
        option: &str,
        name: impl Display,
        what: &impl AsFd,
    ) -> Result<(), KeeperError> {
        let copy = pass_on(what.as_fd()).map_err(KeeperError::Start)?;
        self.say(option, format!("{name}{}", copy.as_raw_fd()));
        self.copies.push(copy);
        Ok(())
    }

    pub(super) fn options(&self) -> &[OsString] {
        &self.options
    }
}
