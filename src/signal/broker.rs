//! Brokers: whoever hears of changes there tells every daemon that listens.
//!
//! What a broker says is a hint like any other. One that cannot be reached costs nothing: the poll goes on, and after each
//! connection all that is in use is looked at once, because of what was missed.

use std::path::PathBuf;
use std::time::Duration;

use crate::backend::{Hint, Hints};
use crate::secret::Name;
use crate::signal::message::Message;
use crate::signal::outbox::Outbox;
use crate::signal::{nats, part_of};

/// After a connection we wait so long before we look at what was missed: by then we are subscribed. Then again a random part
/// of it, because when a broker comes back it does so for all daemons at once.
const SETTLE: Duration = Duration::from_millis(500);

/// The brokers, as the config names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brokers {
    /// A NATS server.
    pub nats: Option<Nats>,
}

/// A NATS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// `tls://host:port`, or `nats://host:port` on this machine.
    pub url: String,
    /// What the messages are published under.
    pub subject: String,
    /// Certificates that are trusted instead of the system's, as PEM.
    pub ca: Option<PathBuf>,
    /// How we sign in.
    pub sign_in: Option<SignIn>,
}

/// How we sign in to a broker. The file is read anew at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignIn {
    /// With a `.creds` file: a JWT and the seed of its key.
    Credentials(PathBuf),
    /// With a token.
    Token(PathBuf),
}

impl Brokers {
    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nats.is_none()
    }

    /// Passes on what they say. Never ends; dropped, it stops.
    pub async fn listen(self, hints: Hints) {
        if let Some(nats) = &self.nats {
            nats::listen(nats, &hints).await;
        }
        std::future::pending().await
    }

    /// Tells them what is put into the outbox. Never ends; dropped, it stops.
    pub async fn tell(self, outbox: &Outbox) {
        if let Some(nats) = &self.nats {
            nats::tell(nats, outbox).await;
        }
        std::future::pending().await
    }
}

/// Passes a message on: to the backend of that name, whoever is signed in to it.
pub(super) fn heard(message: &[u8], hints: &Hints) {
    let Some(message) = Message::read(message) else {
        tracing::debug!("a broker's message is none of ours");
        return;
    };
    let meant = |name: &&Name| name.in_config() == message.backend.as_str();
    for backend in hints.backends().filter(meant) {
        match &message.path {
            None => hints.resync(backend),
            Some(path) => hints.tell(Hint {
                backend: backend.clone(),
                path: path.clone(),
                version: message.version.clone(),
            }),
        }
    }
}

/// Something may have been missed, of whichever backend.
pub(super) fn missed(hints: &Hints) {
    for backend in hints.backends() {
        hints.resync(backend);
    }
}

/// How long after a connection we look at what was missed.
pub(super) fn settle() -> Duration {
    SETTLE + part_of(SETTLE)
}

/// Whether we are connected. Each change is said once.
#[derive(Debug)]
pub(super) struct Health<'a> {
    broker: &'a str,
    up: Option<bool>,
    refused: bool,
}

impl<'a> Health<'a> {
    pub(super) fn new(broker: &'a str) -> Self {
        Self {
            broker,
            up: None,
            refused: false,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up == Some(true)
    }

    pub(super) fn up(&mut self) {
        self.refused = false;
        if self.up.replace(true) != Some(true) {
            tracing::info!(broker = self.broker, "connected to the broker");
        }
    }

    pub(super) fn down(&mut self) {
        if self.up.replace(false) != Some(false) {
            tracing::warn!(
                broker = self.broker,
                "the broker cannot be reached or lets nobody in: changes are seen when they are polled; see [signals]"
            );
        }
    }

    pub(super) fn refused(&mut self) {
        if !std::mem::replace(&mut self.refused, true) {
            tracing::warn!(
                broker = self.broker,
                "the broker refuses something: check what it permits for this subject"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::hints::Heard;

    #[tokio::test(start_paused = true)]
    async fn a_message_reaches_every_identity_of_its_backend_and_no_other() {
        let vault: Name = "vault".parse().unwrap();
        let own = vault.of_service(&"billing".parse().unwrap());
        let other: Name = "vault2".parse().unwrap();
        let (hints, mut ears) = Hints::new([vault.clone(), own.clone(), other.clone()]);
        heard(
            br#"{"backend":"vault","path":"secret/a","version":"2"}"#,
            &hints,
        );
        heard(br#"{"backend":"vault"}"#, &hints);
        heard(b"garbage", &hints);
        let second = Duration::from_secs(1);
        for name in [vault, own] {
            let ear = ears.get_mut(&name).unwrap();
            assert_eq!(ear.next().await, Heard::Missed);
            let Heard::Hint(hint) = ear.next().await else {
                panic!("a hint was told");
            };
            assert_eq!((hint.backend, hint.path.as_str()), (name, "secret/a"));
            assert!(tokio::time::timeout(second, ear.next()).await.is_err());
        }
        let ear = ears.get_mut(&other).unwrap();
        assert!(tokio::time::timeout(second, ear.next()).await.is_err());
        missed(&hints);
        assert_eq!(ear.next().await, Heard::Missed);
    }
}
