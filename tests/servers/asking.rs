//! The backend itself, without a daemon around it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secretfs::backend::vault::Vault as Client;
use secretfs::backend::vault::settings::{Method, Settings};
use secretfs::backend::{Backend, BackendError, Hints, Reference, field};
use secretfs::clock::Clock;

use crate::common::vault::Vault;

/// A server's settings, with its authority trusted.
pub(crate) fn settings(vault: &Vault, auth: Method) -> Settings {
    at(vault.address(), vault.ca(), auth)
}

pub(crate) fn at(address: &str, ca: PathBuf, auth: Method) -> Settings {
    Settings {
        address: Some(address.to_owned()),
        ca: Some(ca),
        client: None,
        namespace: None,
        poll: Duration::ZERO,
        auth,
    }
}

/// A client with these settings and nothing in its environment.
#[track_caller]
pub(crate) fn client(settings: &Settings) -> Client {
    client_in(settings, &[])
}

#[track_caller]
pub(crate) fn client_in(settings: &Settings, env: &[(&str, &str)]) -> Client {
    let get = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Client::new("v".parse().unwrap(), settings, &get, Clock::default()).unwrap()
}

/// A client whose time passes as it is told.
#[track_caller]
pub(crate) fn client_at(settings: &Settings, clock: &Clock) -> Client {
    Client::new("v".parse().unwrap(), settings, &|_| None, clock.clone()).unwrap()
}

/// What a reference gives.
pub(crate) async fn read(client: &Client, reference: &str) -> Result<String, BackendError> {
    let reference: Reference = reference.parse().unwrap();
    let fetched = client.read(&reference).await?;
    let value = match &reference.field {
        Some(name) => field(&fetched.value, name)?,
        None => fetched.value,
    };
    Ok(String::from_utf8(value.expose().to_vec()).unwrap())
}

/// The way to sign in with a token, which is put into a file of this name.
#[track_caller]
pub(crate) fn token_file(vault: &Vault, name: &str, token: &str) -> Method {
    let file = vault.at(&format!("token-of-{name}"));
    std::fs::write(&file, format!("{token}\n")).unwrap();
    Method::Token { file: Some(file) }
}

/// Has a client stay signed in until this is dropped.
pub(crate) struct Kept(tokio::task::JoinHandle<()>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn keep(client: &Client) -> Kept {
    let client = client.clone();
    Kept(tokio::spawn(async move {
        let (hints, _ears) = Hints::new([]);
        if let Some(listening) = client.listen(hints) {
            listening.await;
        }
    }))
}

/// As the trait's object, which a cache would hold.
pub(crate) fn backend(client: Client) -> Arc<dyn Backend> {
    Arc::new(client)
}
