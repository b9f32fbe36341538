//! NATS: a client of one server of it.
//!
//! The client connects again by itself, for ever, and reads its credentials anew each time. It knows the one address that
//! the config names: servers that the server itself names get nothing of ours.

use std::io;

use async_nats::{Auth, AuthError, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::broker::{self, CONNECT, Happened, Health, Nats, PULSE, SEND, SignIn};
use super::message::Message;

/// How many messages may wait for us. What is more is missed, which is noted.
const WAITING: usize = 1024;

/// A client of one server.
#[derive(Debug)]
pub(super) struct Client {
    client: async_nats::Client,
    events: mpsc::Receiver<Event>,
    messages: Option<Subscriber>,
    subject: String,
    health: Health,
}

impl Client {
    /// Connects in the background. `None`, and told, if it cannot ever.
    pub(super) async fn new(nats: &Nats, subscribe: bool, health: Health) -> Option<Self> {
        let (client, events) = connect(nats).await?;
        let messages = match subscribe {
            true => match client.subscribe(nats.subject.clone()).await {
                Ok(messages) => Some(messages),
                Err(_) => {
                    tracing::error!(
                        "the broker's client is gone: changes are seen when they are polled"
                    );
                    return None;
                }
            },
            false => None,
        };
        Some(Self {
            client,
            events,
            messages,
            subject: nats.subject.clone(),
            health,
        })
    }

    /// What an event means to us.
    fn note(&mut self, event: &Event) -> Option<Happened> {
        match event {
            Event::Connected => {
                self.health.up();
                return Some(Happened::Connected);
            }
            Event::SlowConsumer(_) => return Some(Happened::Missed),
            Event::ServerError(_) => self.health.refused(),
            // An attempt to connect has failed.
            Event::ClientError(_) if self.health.is_up() => {}
            Event::ClientError(error) => self.health.down(&error.to_string()),
            Event::Disconnected | Event::Closed => self.health.down("the connection broke"),
            Event::LameDuckMode | Event::Draining => {}
        }
        None
    }

    /// True if all of them were sent.
    async fn publish(&self, messages: &[Message]) -> bool {
        for message in messages {
            let bytes = message.to_json().into();
            let published = self.client.publish(self.subject.clone(), bytes);
            if published.await.is_err() {
                return false;
            }
        }
        self.client.flush().await.is_ok()
    }
}

impl broker::Client for Client {
    async fn next(&mut self) -> Happened {
        loop {
            tokio::select! {
                event = next(&mut self.events) => {
                    if let Some(happened) = self.note(&event) {
                        return happened;
                    }
                }
                message = said(&mut self.messages) => return Happened::Message(message),
            }
        }
    }

    fn is_up(&self) -> bool {
        self.health.is_up()
    }

    async fn send(&mut self, messages: &[Message]) -> bool {
        timeout(SEND, self.publish(messages)).await == Ok(true)
    }
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    match events.recv().await {
        Some(event) => event,
        None => std::future::pending().await,
    }
}

async fn said(messages: &mut Option<Subscriber>) -> Vec<u8> {
    let message = match messages {
        Some(messages) => messages.next().await,
        None => None,
    };
    match message {
        Some(message) => message.payload.to_vec(),
        None => std::future::pending().await,
    }
}

/// A client, which connects in the background, and what it says of that.
async fn connect(nats: &Nats) -> Option<(async_nats::Client, mpsc::Receiver<Event>)> {
    let (events, said) = mpsc::channel(16);
    let mut options = match nats.sign_in.clone() {
        None => ConnectOptions::new(),
        Some(sign_in) => ConnectOptions::with_auth_callback(move |nonce| {
            let sign_in = sign_in.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || auth(&sign_in, &nonce)).await;
                read.map_err(AuthError::new)?.map_err(AuthError::new)
            }
        }),
    };
    options = options
        .name(concat!("secretfs/", env!("CARGO_PKG_VERSION")))
        .require_tls(nats.url.starts_with("tls://"))
        .connection_timeout(CONNECT)
        .ping_interval(PULSE)
        .subscription_capacity(WAITING)
        .ignore_discovered_servers()
        .retry_on_initial_connect()
        .reconnect_delay_callback(broker::pause)
        .event_callback(move |event| {
            let events = events.clone();
            async move { drop(events.send(event).await) }
        });
    if let Some(ca) = &nats.ca {
        options = options.add_root_certificates(ca.clone());
    }
    match options.connect(nats.url.as_str()).await {
        Ok(client) => Some((client, said)),
        Err(error) => {
            tracing::error!(error = %error.kind(), "the broker's client cannot be set up: see [signals]");
            None
        }
    }
}

/// What we show to be let in. The nonce is the server's, which we sign.
fn auth(sign_in: &SignIn, nonce: &[u8]) -> io::Result<Auth> {
    let mut auth = Auth::new();
    match sign_in {
        SignIn::Token(file) => auth.token = Some(broker::credentials(file)?.trim().to_owned()),
        SignIn::Credentials(file) => {
            let text = broker::credentials(file)?;
            let odd = || io::Error::other("no NATS credentials");
            let (jwt, seed) = credentials(&text).ok_or_else(odd)?;
            let key = nkeys::KeyPair::from_seed(seed).map_err(|_| odd())?;
            auth.signature = Some(key.sign(nonce).map_err(|_| odd())?);
            auth.jwt = Some(jwt.to_owned());
        }
    }
    Ok(auth)
}

/// The JWT and the seed in a `.creds` file: each stands between two lines of dashes.
fn credentials(text: &str) -> Option<(&str, &str)> {
    let is_fence = |line: &&str| line.starts_with("---");
    let mut lines = text.lines().map(str::trim);
    let mut part = || {
        lines.by_ref().find(is_fence)?;
        let part = lines.next().filter(|line| !line.is_empty())?;
        lines.next().filter(is_fence)?;
        Some(part)
    };
    Some((part()?, part()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_what_stands_between_the_fences() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.e30.x_-\n------END NATS USER JWT------\n\n\
            ************************* IMPORTANT *************************\nNKEY Seed printed below\n\n\
            -----BEGIN USER NKEY SEED-----\r\nSUAB\r\n------END USER NKEY SEED------\r\n\n***\n";
        assert_eq!(credentials(text), Some(("eyJ0.e30.x_-", "SUAB")));
        for text in ["", "SUAB", "---\nx\n---\n", "---\nx\n---\n---\n\n---\n"] {
            assert_eq!(credentials(text), None, "{text}");
        }
    }
}
