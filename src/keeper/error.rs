//! Why the daemon could not be started or kept.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::mountpoint::MountError;
use crate::backend::store::identity;

/// Why the daemon could not be started or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Something about the mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Another daemon, or a command, holds the lock.
    #[error("{}: another daemon serves this config, or a command hangs: see `secretfs status` and `ps`, or end it with `secretfs unmount`", .0.display())]
    Locked(PathBuf),
    /// A file or folder of the daemon's.
    #[error("{}: {why}: mend it, or name another folder as `{key}` in the config", .path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// The key of the config that says where.
        key: &'static str,
        /// Why.
        why: io::Error,
    },
    /// The identity of a store.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// The server could not be started.
    #[error("the server could not be started: {0}")]
    Start(io::Error),
    /// Whoever calls `premount` is not systemd.
    #[error("premount is for systemd's unit, as in systemd/secretfs.service: run `secretfs mount`")]
    NoUnit,
    /// systemd does not hear, or does not answer.
    #[error(
        "systemd: {0}: see `journalctl -u secretfs`, and NotifyAccess= and FileDescriptorStoreMax= in the unit"
    )]
    Systemd(io::Error),
    /// The server ended before it was ready, and has said why.
    #[error("the server did not become ready")]
    NotReady(u8),
    /// The kernel failed a call that does not fail.
    #[error("the keeper: {0}")]
    System(#[from] Errno),
}

impl KeeperError {
    /// The exit code for it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotReady(code) => *code,
            Self::Identity(_) => 5,
            Self::NoUnit => 2,
            Self::Mount(_)
            | Self::Locked(_)
            | Self::File { .. }
            | Self::Start(_)
            | Self::Systemd(_)
            | Self::System(_) => 1,
        }
    }
}
