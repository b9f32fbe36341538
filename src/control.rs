//! The control socket: how the command line speaks with the daemon.
//!
//! One meaning of every command stands in [`handler`]. The daemon reaches it through [`server`], for whoever connects,
//! under the policy; the command line reaches it in its own process when no daemon serves the config, under the
//! authority of the identity. Both hand over a [`Request`] and an [`Exchange`] and get an [`Answer`] or a [`Failure`].

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::caller::Caller;
use crate::secret::SecretBytes;

pub mod answers;
pub mod batch;
pub mod client;
pub mod handler;
pub mod peer;
pub mod protocol;
pub mod server;
pub mod wire;

pub use protocol::{Failure, Kind, Request};

/// The name of the socket below the runtime folder.
pub const SOCKET: &str = "control.sock";

/// Whoever carries commands out.
pub trait Commands: Send + Sync + fmt::Debug {
    /// Carries `request` out for `caller`.
    ///
    /// # Errors
    /// [`Failure`]: one line for a person, and its kind for the exit code.
    fn handle(
        &self,
        caller: Caller,
        request: Request,
        exchange: Exchange,
    ) -> BoxFuture<'_, Result<Answer, Failure>>;
}

/// What belongs to a request beside the request itself.
#[derive(Debug)]
pub struct Exchange {
    /// The bytes that came with it.
    pub body: Body,
    /// Where what happens meanwhile is told. Nobody listening any more is no reason to stop.
    pub events: mpsc::Sender<Event>,
}

/// The bytes that come with a request.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// A value.
    Value(SecretBytes),
    /// Something long, which is not a secret as it is: an encrypted copy of the store.
    Stream(mpsc::Receiver<Result<Vec<u8>, Interrupted>>),
}

/// The peer went away in the middle of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side went away in the middle")]
pub struct Interrupted;

/// What happens while a command runs.
#[derive(Debug)]
pub enum Event {
    /// So much of it is done.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A part of a long answer.
    Chunk(Vec<u8>),
}

/// What a command ends with.
#[derive(Debug)]
pub struct Answer {
    /// What `--json` prints, and tables are made from. Never a value.
    pub json: serde_json::Value,
    /// The value that was asked for.
    pub value: Option<SecretBytes>,
}
