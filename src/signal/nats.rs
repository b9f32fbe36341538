//! NATS: how changes are heard from a server of it, and told.
//!
//! The client connects again by itself, for ever, and reads its credentials anew each time. It knows the one address that
//! the config names: servers that the server itself names get nothing of ours.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use zeroize::Zeroizing;

use super::broker::{self, Health, Nats, SignIn};
use super::outbox::Outbox;
use super::part_of;
use crate::backend::Hints;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the server must let hear from itself.
const PULSE: Duration = Duration::from_secs(15);
/// How long the server is left alone after a connection was lost, at first and at most.
const AWAY_FOR: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long sending may take.
const SEND: Duration = Duration::from_secs(5);
/// How many messages may wait for us. What is more is missed, which is noted.
const WAITING: usize = 1024;
/// The longest file of credentials, in bytes.
const MAX_CREDENTIALS: u64 = 64 << 10;

/// Hears changes, for as long as it is waited for.
pub(super) async fn listen(nats: &Nats, hints: &Hints) {
    let Some((client, mut events)) = connect(nats).await else {
        return;
    };
    let Ok(mut messages) = client.subscribe(nats.subject.clone()).await else {
        return tracing::error!(
            "the broker's client is gone: changes are seen when they are polled"
        );
    };
    let mut health = Health::new(&nats.url);
    let mut settled = None;
    loop {
        let look = settled.unwrap_or_else(Instant::now);
        tokio::select! {
            event = next(&mut events) => {
                note(&event, &mut health);
                if event == Event::Connected {
                    settled = Some(Instant::now() + broker::settle());
                } else if matches!(event, Event::SlowConsumer(_)) {
                    settled.get_or_insert_with(|| Instant::now() + broker::settle());
                }
            }
            message = said(&mut messages) => broker::heard(&message, hints),
            () = sleep_until(look), if settled.is_some() => {
                settled = None;
                broker::missed(hints);
            }
        }
    }
}

/// Tells what has changed, for as long as it is waited for.
pub(super) async fn tell(nats: &Nats, outbox: &Outbox) {
    let Some((client, mut events)) = connect(nats).await else {
        return;
    };
    let mut health = Health::new(&nats.url);
    loop {
        tokio::select! {
            event = next(&mut events) => {
                note(&event, &mut health);
                if event == Event::Connected {
                    // What was on its way when the connection broke may be lost, and so is what happened before we began.
                    outbox.miss();
                }
            }
            () = outbox.filled(), if health.is_up() => {
                if timeout(SEND, send(&client, nats, outbox)).await != Ok(true) {
                    // If it was not for the connection, it is tried again.
                    outbox.miss();
                    tokio::time::sleep(SEND).await;
                }
            }
        }
    }
}

/// True if all that waited was sent.
async fn send(client: &Client, nats: &Nats, outbox: &Outbox) -> bool {
    for message in outbox.take() {
        let bytes = message.to_json().into();
        if client.publish(nats.subject.clone(), bytes).await.is_err() {
            return false;
        }
    }
    client.flush().await.is_ok()
}

fn note(event: &Event, health: &mut Health<'_>) {
    match event {
        Event::Connected => health.up(),
        Event::ServerError(_) => health.refused(),
        // An attempt to connect has failed.
        Event::ClientError(_) if health.is_up() => {}
        Event::ClientError(_) | Event::Disconnected | Event::Closed => health.down(),
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {}
    }
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    match events.recv().await {
        Some(event) => event,
        None => std::future::pending().await,
    }
}

async fn said(messages: &mut Subscriber) -> Vec<u8> {
    match messages.next().await {
        Some(message) => message.payload.to_vec(),
        None => std::future::pending().await,
    }
}

/// A client, which connects in the background, and what it says of that.
async fn connect(nats: &Nats) -> Option<(Client, mpsc::Receiver<Event>)> {
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
        .reconnect_delay_callback(pause)
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

/// How long it is waited before an attempt to connect, of which this is so manieth since the last that succeeded.
fn pause(attempt: usize) -> Duration {
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

/// What we show to be let in. The nonce is the server's, which we sign.
fn auth(sign_in: &SignIn, nonce: &[u8]) -> io::Result<Auth> {
    let mut auth = Auth::new();
    match sign_in {
        SignIn::Token(file) => auth.token = Some(read(file)?.trim().to_owned()),
        SignIn::Credentials(file) => {
            let text = read(file)?;
            let odd = || io::Error::other("no NATS credentials");
            let (jwt, seed) = credentials(&text).ok_or_else(odd)?;
            let key = nkeys::KeyPair::from_seed(seed).map_err(|_| odd())?;
            auth.signature = Some(key.sign(nonce).map_err(|_| odd())?);
            auth.jwt = Some(jwt.to_owned());
        }
    }
    Ok(auth)
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    // So large that it never grows, which would leave a copy behind.
    let room = usize::try_from(MAX_CREDENTIALS).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(room));
    File::open(path)?
        .take(MAX_CREDENTIALS)
        .read_to_string(&mut text)?;
    Ok(text)
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
