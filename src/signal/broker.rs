//! The broker: whoever hears of changes there tells every daemon that listens.
//!
//! What it says is a hint like any other. One that cannot be reached costs nothing: the poll goes on, and after each
//! connection all that is in use is looked at once, because of what was missed.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use zeroize::Zeroizing;

use crate::backend::vault::settings::ClientCertificate;
use crate::backend::{Hint, Hints};
use crate::secret::Name;
use crate::signal::message::Message;
use crate::signal::outbox::Outbox;
use crate::signal::{Signals, mqtt, nats, part_of};

/// How long a connection may take.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// How often the broker must let hear from itself.
pub(super) const PULSE: Duration = Duration::from_secs(15);
/// How long sending may take.
pub(super) const SEND: Duration = Duration::from_secs(5);
/// How long the broker is left alone after a connection was lost, at first and at most.
const AWAY_FOR: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// After a connection we wait so long before we look at what was missed: by then we are subscribed. Then again a random part
/// of it, because when a broker comes back it does so for all daemons at once.
const SETTLE: Duration = Duration::from_millis(500);
/// The longest file of credentials, in bytes.
const MAX_CREDENTIALS: u64 = 64 << 10;

/// The broker, as the config names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broker {
    /// A NATS server.
    Nats(Nats),
    /// An MQTT broker.
    Mqtt(Mqtt),
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

/// How we sign in to a NATS server. The file is read anew at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignIn {
    /// With a `.creds` file: a JWT and the seed of its key.
    Credentials(PathBuf),
    /// With a token.
    Token(PathBuf),
}

/// An MQTT broker. Its files are read anew at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// `mqtts://host:port`, or `mqtt://host:port` on this machine.
    pub url: String,
    /// What the messages are published under.
    pub topic: String,
    /// Certificates that are trusted instead of the system's, as PEM.
    pub ca: Option<PathBuf>,
    /// What we show in the TLS handshake.
    pub client: Option<ClientCertificate>,
    /// Who we say we are.
    pub user: Option<String>,
    /// The file with the password.
    pub password: Option<PathBuf>,
}

impl Broker {
    /// Where it is. There are no credentials in it.
    #[must_use]
    pub fn url(&self) -> &str {
        match self {
            Self::Nats(nats) => &nats.url,
            Self::Mqtt(mqtt) => &mqtt.url,
        }
    }

    /// Passes on what it says. Never ends; dropped, it stops.
    pub async fn listen(&self, signals: &Signals) {
        let health = Health::new(self.url(), Some(signals.clone()));
        let hints = signals.hints();
        match self {
            Self::Nats(nats) => {
                if let Some(client) = nats::Client::new(nats, true, health).await {
                    listen(client, hints).await;
                }
            }
            Self::Mqtt(mqtt) => listen(mqtt::Client::new(mqtt, true, health), hints).await,
        }
        std::future::pending().await
    }

    /// Tells it what is put into the outbox. Never ends; dropped, it stops.
    pub async fn tell(&self, outbox: &Outbox) {
        let health = Health::new(self.url(), None);
        match self {
            Self::Nats(nats) => {
                if let Some(client) = nats::Client::new(nats, false, health).await {
                    tell(client, outbox).await;
                }
            }
            Self::Mqtt(mqtt) => tell(mqtt::Client::new(mqtt, false, health), outbox).await,
        }
        std::future::pending().await
    }
}

/// A connection to a broker, which is made again whenever it breaks.
pub(super) trait Client {
    /// What happens next. Nothing is lost if the future is dropped.
    fn next(&mut self) -> impl Future<Output = Happened> + Send;

    /// True if there is a connection.
    fn is_up(&self) -> bool;

    /// Sends all of them; false if some may be lost.
    fn send(&mut self, messages: &[Message]) -> impl Future<Output = bool> + Send;
}

/// What happens at a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happened {
    /// There is a new connection, and we are subscribed, or soon will be.
    Connected,
    /// There was more than could wait for us.
    Missed,
    /// Somebody has published this.
    Message(Vec<u8>),
}

/// Hears changes, for as long as it is waited for.
async fn listen(mut client: impl Client, hints: &Hints) {
    let mut settled = None;
    loop {
        let look = settled.unwrap_or_else(Instant::now);
        tokio::select! {
            happened = client.next() => match happened {
                Happened::Connected => settled = Some(Instant::now() + settle()),
                Happened::Missed => {
                    settled.get_or_insert_with(|| Instant::now() + settle());
                }
                Happened::Message(message) => heard(&message, hints),
            },
            () = sleep_until(look), if settled.is_some() => {
                settled = None;
                missed(hints);
            }
        }
    }
}

/// Tells what has changed, for as long as it is waited for.
async fn tell(mut client: impl Client, outbox: &Outbox) {
    loop {
        let up = client.is_up();
        tokio::select! {
            happened = client.next() => if happened == Happened::Connected {
                // What was on its way when the connection broke may be lost, and so is what happened before we began.
                outbox.miss();
            },
            () = outbox.filled(), if up => {
                if !client.send(&outbox.take()).await {
                    // If it was not for the connection, it is tried again.
                    outbox.miss();
                    sleep(SEND).await;
                }
            }
        }
    }
}

/// Passes a message on: to the backend of that name, whoever is signed in to it.
fn heard(message: &[u8], hints: &Hints) {
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
fn missed(hints: &Hints) {
    for backend in hints.backends() {
        hints.resync(backend);
    }
}

/// How long after a connection we look at what was missed.
fn settle() -> Duration {
    SETTLE + part_of(SETTLE)
}

/// How long it is waited before an attempt to connect, of which this is so manieth since the last that succeeded.
pub(super) fn pause(attempt: usize) -> Duration {
    let (first, longest) = AWAY_FOR;
    let doubled = match u32::try_from(attempt) {
        Ok(0 | 1) => return Duration::ZERO,
        Ok(attempt) => first.saturating_mul(1 << (attempt - 2).min(16)),
        Err(_) => longest,
    };
    let whole = doubled.min(longest);
    // Not all daemons at once.
    whole / 2 + part_of(whole / 2)
}

/// What a file says that is shown to be let in.
///
/// # Errors
/// It cannot be read, or is no text.
pub(super) fn credentials(path: &Path) -> io::Result<Zeroizing<String>> {
    // So large that it never grows, which would leave a copy behind.
    let room = usize::try_from(MAX_CREDENTIALS).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(room));
    let read =
        File::open(path).and_then(|file| file.take(MAX_CREDENTIALS).read_to_string(&mut text));
    read.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(text)
}

/// Whether we are connected. Each change is said once.
#[derive(Debug)]
pub(super) struct Health {
    broker: String,
    up: Option<bool>,
    refused: bool,
    /// Where `status` finds it.
    shown: Option<Signals>,
}

impl Health {
    pub(super) fn new(broker: &str, shown: Option<Signals>) -> Self {
        let health = Self {
            broker: broker.to_owned(),
            up: None,
            refused: false,
            shown,
        };
        health.show(Err(None));
        health
    }

    fn show(&self, trouble: Result<(), Option<&str>>) {
        if let Some(shown) = &self.shown {
            shown.note_broker(&self.broker, trouble);
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up == Some(true)
    }

    pub(super) fn up(&mut self) {
        self.refused = false;
        self.show(Ok(()));
        if self.up.replace(true) != Some(true) {
            tracing::info!(broker = self.broker, "connected to the broker");
        }
    }

    pub(super) fn down(&mut self, why: &str) {
        self.show(Err(Some(why)));
        if self.up.replace(false) != Some(false) {
            tracing::warn!(
                broker = self.broker,
                why,
                "the broker cannot be reached or lets nobody in: changes are seen when they are polled; see [signals]"
            );
        }
    }

    pub(super) fn refused(&mut self) {
        if !std::mem::replace(&mut self.refused, true) {
            tracing::warn!(
                broker = self.broker,
                "the broker refuses something: check what it permits for this subject or topic"
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

    #[test]
    fn the_pauses_grow_and_end_growing() {
        assert_eq!(pause(1), Duration::ZERO);
        let (first, longest) = AWAY_FOR;
        assert!(pause(2) >= first / 2 && pause(2) <= first);
        for attempt in [12, 40, usize::MAX] {
            assert!(pause(attempt) >= longest / 2 && pause(attempt) <= longest);
        }
    }
}
