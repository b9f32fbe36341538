//! What the server tells of changes by itself, where it does: Vault's event stream over a WebSocket.
//!
//! An event names a path and a version, never a value, and is only a hint: polling stays as the floor. A server that has
//! no events, or a policy that does not let us subscribe, is asked again from time to time. After each connection all that
//! is in use is looked at once, because of what was missed.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use reqwest::Upgraded;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::Vault;
use crate::backend::{BackendError, Hint, Hints, Version};
use crate::secret::Name;

/// The events of both versions of the KV engine, as JSON.
const SUBSCRIPTION: &str = "sys/events/subscribe/kv*?json=true";

/// How long a server that has no events, or lets us have none, is left alone.
const NONE_FOR: Duration = Duration::from_secs(3600);

/// How long a server that cannot be reached is left alone at first, and at most.
const AWAY_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often the server must let hear from itself: it answers to a ping.
const PULSE: Duration = Duration::from_secs(20);

/// The longest event, in bytes.
const MAX_EVENT: usize = 64 << 10;

/// Listens, for as long as it is waited for.
pub(super) async fn listen(vault: &Vault, hints: &Hints) {
    let name = &vault.0.name;
    let (mut wait, longest) = AWAY_FOR;
    loop {
        // Before anybody has asked for anything there is nothing to hear of.
        vault.0.auth.signed_in().await;
        match subscribe(vault).await {
            Ok(stream) => {
                wait = AWAY_FOR.0;
                hints.resync(name);
                tracing::info!(backend = %name, "the server tells of changes");
                hear(stream, name, hints).await;
            }
            Err(BackendError::Unreachable(_) | BackendError::Timeout(_)) => {
                wait = wait.saturating_mul(2).min(longest);
            }
            Err(error) => {
                tracing::debug!(backend = %name, %error, "the server tells of no changes, and is polled");
                sleep(NONE_FOR).await;
                continue;
            }
        }
        sleep(wait).await;
    }
}

async fn subscribe(vault: &Vault) -> Result<WebSocketStream<Upgraded>, BackendError> {
    let inner = &*vault.0;
    // Whatever keeps us from signing in may be over soon.
    let token = inner.auth.token(&inner.http).await;
    let token = token.map_err(|error| BackendError::Unreachable(error.to_string()))?;
    let (status, socket) = inner.http.upgrade(SUBSCRIPTION, &token.header).await?;
    let Some(socket) = socket else {
        return Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                BackendError::Refused("sys/events/subscribe: the policy must grant read".to_owned())
            }
            status if status.is_server_error() => {
                BackendError::Unreachable(format!("sys/events/subscribe ({})", status.as_u16()))
            }
            _ => BackendError::Absent("the server has no events".to_owned()),
        });
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_EVENT))
        .max_frame_size(Some(MAX_EVENT));
    Ok(WebSocketStream::from_raw_socket(socket, Role::Client, Some(config)).await)
}

/// Passes on what is heard, until the connection breaks.
async fn hear(mut stream: WebSocketStream<Upgraded>, name: &Name, hints: &Hints) {
    let mut quiet = false;
    loop {
        match timeout_at(Instant::now() + PULSE, stream.next()).await {
            Ok(Some(Ok(message))) => {
                quiet = false;
                if let Message::Text(_) | Message::Binary(_) = &message
                    && let Some(hint) = read(&message.into_data(), name)
                {
                    hints.tell(hint);
                }
            }
            Ok(Some(Err(_)) | None) => return,
            Err(_) if quiet => return,
            Err(_) => {
                quiet = true;
                let ping = stream.send(Message::Ping(Vec::new().into()));
                if !matches!(timeout_at(Instant::now() + PULSE, ping).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }
}

/// What an event says; nothing if it is of another form.
fn read(event: &[u8], backend: &Name) -> Option<Hint> {
    #[derive(Deserialize)]
    struct Cloud {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        event_type: String,
        event: Event,
        plugin_info: Plugin,
    }
    #[derive(Deserialize)]
    struct Event {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        path: String,
        #[serde(default)]
        current_version: Option<String>,
    }
    #[derive(Deserialize)]
    struct Plugin {
        mount_path: String,
    }
    let Cloud { data } = serde_json::from_slice(event).ok()?;
    let Metadata {
        path,
        current_version,
    } = data.event.metadata;
    let below = match data.event_type.starts_with("kv-v2/") {
        // As in `data/billing`: what was done comes first.
        true => path.split_once('/')?.1,
        false => path.as_str(),
    };
    let mount = data.plugin_info.mount_path;
    // What was deleted or brought back has the same number as before.
    let written = matches!(
        data.event_type.as_str(),
        "kv-v2/data-write" | "kv-v2/data-patch"
    );
    Some(Hint {
        backend: backend.clone(),
        path: format!("{}/{below}", mount.trim_matches('/')),
        version: current_version.filter(|_| written).map(Version::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(kind: &str, path: &str, mount: &str) -> Option<(String, Option<String>)> {
        let event = serde_json::json!({
            "id": "x",
            "data": {
                "event": { "id": "x", "metadata": { "path": path, "current_version": "3", "oldest_version": "0" } },
                "event_type": kind,
                "plugin_info": { "mount_path": mount, "plugin": "kv" },
            },
        });
        let hint = read(event.to_string().as_bytes(), &"vault".parse().unwrap())?;
        Some((hint.path, hint.version.map(|version| version.to_string())))
    }

    #[test]
    fn an_event_names_the_record_as_references_do() {
        let path =
            |path: &str, version: Option<&str>| Some((path.to_owned(), version.map(str::to_owned)));
        for (kind, at, mount, expected) in [
            (
                "kv-v2/data-write",
                "data/a/b",
                "secret/",
                path("secret/a/b", Some("3")),
            ),
            (
                "kv-v2/data-delete",
                "data/a",
                "secret/",
                path("secret/a", None),
            ),
            (
                "kv-v2/metadata-delete",
                "metadata/a",
                "x/y/",
                path("x/y/a", None),
            ),
            ("kv-v1/write", "a/b", "kv1/", path("kv1/a/b", None)),
            ("kv-v2/data-write", "odd", "secret/", None),
        ] {
            assert_eq!(hint(kind, at, mount), expected, "{kind} {at}");
        }
    }

    #[test]
    fn what_is_no_event_is_no_hint() {
        for event in [
            "",
            "{}",
            "[]",
            r#"{"data":{"event_type":"kv-v2/data-write"}}"#,
        ] {
            assert_eq!(read(event.as_bytes(), &"vault".parse().unwrap()), None);
        }
    }
}
