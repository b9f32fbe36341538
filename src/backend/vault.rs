//! HashiCorp Vault and OpenBao.
//!
//! A reference's path is the server's own, from the mount on: `vault:secret/billing`, `vault:database/creds/readonly`,
//! `vault:pki/issue/web?common_name=…`. Which engine answers for it is found out from the server (`mounts`).
//!
//! | engine | a path without `?` | with `?` |
//! |---|---|---|
//! | KV 2 | the record's data; `@3` is its third version (`lives`) | – |
//! | KV 1 | the record's data, called by its keyed hash | – |
//! | any other | what reading the path gives | what writing these arguments gives |
//!
//! What another engine gives lives as long as its lease; a certificate until it ends. Nothing of an answer's body becomes
//! part of an error or a log (`http`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use futures_util::future::{BoxFuture, join};
use rustify::Endpoint;
use vaultrs::api::kv2::requests::{
    ListSecretsRequest, ReadSecretMetadataRequest, ReadSecretRequest,
};

use super::{Backend, BackendError, Fetched, Hints, Lease, Reference, Version, Writer};
use crate::clock::Clock;
use crate::secret::{Name, SecretBytes};

mod auth;
mod endpoint;
mod events;
mod http;
mod lives;
mod mounts;
mod reply;
pub mod settings;
mod tls;
mod write;

#[cfg(test)]
mod tests;

use auth::Auth;
use endpoint::Logical;
pub use http::origin as http_origin;
use http::{Http, Reply};
use lives::Lives;
use mounts::{Engine, Mounts, Place};
pub use settings::Settings;

/// A server, and who we are to it. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    /// In the config.
    name: Name,
    http: Http,
    whereabouts: String,
    poll: Duration,
    auth: Auth,
    mounts: Mounts,
    lives: Lives,
    /// What values without a version are called by. Of this process alone: a hash that could be compared would tell what
    /// a short value is.
    key: hmac::Key,
    clock: Clock,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vault")
            .field(&self.0.name)
            .field(&self.0.http.address())
            .finish()
    }
}

impl Vault {
    /// A server, called `name` in the config. Nothing is read or sent before something is asked for. `env` gives a variable of
    /// the environment, for what the settings leave out.
    ///
    /// # Errors
    /// What is wrong with the settings, and the mend.
    pub fn new(
        name: Name,
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
        clock: Clock,
    ) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the machine gives no random numbers")?;
        let http = Http::new(&name, settings, env)?;
        let (address, namespace) = (http.address(), settings.namespace(env));
        Ok(Self(Arc::new(Inner {
            whereabouts: format!(
                "{address} {namespace:?} {:?} {:?}",
                settings.auth, settings.client
            ),
            name,
            http,
            poll: settings.poll,
            auth: Auth::new(settings.auth.clone(), env, clock.clone()),
            mounts: Mounts::default(),
            lives: Lives::default(),
            key,
            clock,
        })))
    }

    /// Asks as who we are. If that is refused, once more after another sign-in.
    async fn ask<E: Endpoint>(&self, request: impl Fn() -> E) -> Result<Reply, BackendError> {
        let Inner { http, auth, .. } = &*self.0;
        let token = auth.token(http).await?;
        let reply = http.ask(request(), Some(&token.header)).await?;
        if !reply.is_refusal() {
            return Ok(reply);
        }
        match auth.another(http, &token).await? {
            Some(another) => http.ask(request(), Some(&another.header)).await,
            None => Ok(reply),
        }
    }

    async fn place(&self, path: &str) -> Result<Place, BackendError> {
        if let Some(place) = self.0.mounts.find(path, self.0.clock.now()) {
            return Ok(place);
        }
        let body = self.ask(|| endpoint::mount_of(path)).await?.body(path)?;
        self.0.mounts.learn(path, &body, self.0.clock.now())
    }

    async fn fetch(&self, reference: &Reference) -> Result<Fetched, BackendError> {
        let what = &reference.to_string();
        let place = self.place(&reference.path).await?;
        let fetched = self.fetch_at(&place, reference, what).await;
        // It may have been mounted anew as another engine.
        if let Err(BackendError::Unusable(_) | BackendError::Absent(_)) = fetched {
            self.0.mounts.forget(&place);
        }
        fetched
    }

    async fn fetch_at(
        &self,
        place: &Place,
        reference: &Reference,
        what: &str,
    ) -> Result<Fetched, BackendError> {
        let Inner { key, clock, .. } = &*self.0;
        let (query, version) = (&reference.query, &reference.version);
        match place.engine {
            Engine::Versioned | Engine::Plain if !query.is_empty() => Err(BackendError::Unusable(
                format!("{what}: a KV engine takes no arguments: leave `?…` out"),
            )),
            Engine::Versioned => {
                let version = match version {
                    Some(version) => Some(self.number(place, version, what)?),
                    None => None,
                };
                self.record(place, version, what).await
            }
            Engine::Plain | Engine::Dynamic if version.is_some() => Err(BackendError::Absent(
                format!("{what}: only KV 2 keeps versions"),
            )),
            Engine::Plain => {
                let read = || Logical::read(&reference.path);
                reply::plain(&self.ask(read).await?.body(what)?, what, key)
            }
            Engine::Dynamic => {
                let written = !query.is_empty();
                let arguments: serde_json::Map<_, _> = query
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone().into()))
                    .collect();
                let arguments = arguments.into();
                let request = || match written {
                    false => Logical::read(&reference.path),
                    true => Logical::write(&reference.path, &arguments),
                };
                let body = self.ask(request).await?.body(what)?;
                let asked = query.iter().find(|(key, _)| key == "ttl");
                let asked = asked.and_then(|(_, ttl)| duration(ttl));
                reply::dynamic(&body, what, key, written, asked, clock.timestamp())
            }
        }
    }

    /// A version of a record, or the current one.
    async fn record(
        &self,
        place: &Place,
        version: Option<u64>,
        what: &str,
    ) -> Result<Fetched, BackendError> {
        let read = || ReadSecretRequest {
            mount: place.mount.clone(),
            path: place.path.clone(),
            version,
        };
        let (mut fetched, number) = reply::record(&self.ask(read).await?.body(what)?, what)?;
        let (made, current) = (fetched.modified, version.is_none());
        fetched.version = self.0.lives.name(place, number, made, current);
        Ok(fetched)
    }

    /// The number of a version of a record.
    fn number(&self, place: &Place, version: &Version, what: &str) -> Result<u64, BackendError> {
        self.0.lives.number(place, version).ok_or_else(|| {
            BackendError::Absent(format!("{what}: versions are numbers here, as in `@3`"))
        })
    }

    async fn versions(&self, place: &Place, what: &str) -> Result<reply::Versions, BackendError> {
        let read = || ReadSecretMetadataRequest {
            mount: place.mount.clone(),
            path: place.path.clone(),
        };
        let body = self.ask(read).await?.body(what)?;
        reply::versions(&body, what, self.0.clock.timestamp())
    }

    /// The names of a folder's records, or of a record's fields if no slash is at the end.
    async fn names(&self, folder: &str) -> Result<Vec<Name>, BackendError> {
        let place = self.place(folder).await?;
        let records = folder.ends_with('/');
        match (place.engine, records) {
            (Engine::Versioned, true) => {
                let list = || ListSecretsRequest {
                    mount: place.mount.clone(),
                    path: place.path.clone(),
                };
                reply::names(&self.ask(list).await?.body(folder)?, folder)
            }
            (Engine::Versioned, false) => {
                let subkeys = || endpoint::subkeys(&place.mount, &place.path);
                let reply = self.ask(subkeys).await?;
                let (body, within) = match reply.status.as_u16() {
                    // The policy knows the record alone, or the server has no such thing; a record that is not there has
                    // no data either.
                    403 | 404 => {
                        let read = || ReadSecretRequest {
                            mount: place.mount.clone(),
                            path: place.path.clone(),
                            version: None,
                        };
                        (self.ask(read).await?.body(folder)?, "data")
                    }
                    _ => (reply.body(folder)?, "subkeys"),
                };
                reply::fields(&body, Some(within), folder)
            }
            (Engine::Plain | Engine::Dynamic, true) => {
                let list = || Logical::list(folder.trim_end_matches('/'));
                reply::names(&self.ask(list).await?.body(folder)?, folder)
            }
            // There is no other way to ask for the names, and no value leaves this place.
            (Engine::Plain, false) => {
                let read = || Logical::read(folder);
                reply::fields(&self.ask(read).await?.body(folder)?, None, folder)
            }
            // Reading it would make a credential.
            (Engine::Dynamic, false) => Ok(Vec::new()),
        }
    }

    async fn health(&self) -> Result<(), BackendError> {
        let Inner { http, auth, .. } = &*self.0;
        let address = http.address();
        let health = http.ask_server(Logical::read("sys/health")).await?;
        match health.status.as_u16() {
            // Standbys pass requests on.
            200 | 429 | 472 | 473 => {}
            501 => {
                return Err(BackendError::Unreachable(format!(
                    "{address}: not initialised: run `vault operator init`"
                )));
            }
            503 => {
                return Err(BackendError::Unreachable(format!(
                    "{address}: sealed: run `vault operator unseal`"
                )));
            }
            404 => {
                return Err(BackendError::Unusable(format!(
                    "{address}: does not answer as Vault or OpenBao do: see `address`"
                )));
            }
            _ => drop(health.body(address)?),
        }
        auth.token(http).await.map(drop)
    }
}

/// `90s`, `1h`, or seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let parsed: jiff::SignedDuration = text.parse().ok()?;
    parsed.try_into().ok()
}

impl Backend for Vault {
    fn kind(&self) -> &'static str {
        "vault"
    }

    fn announces_changes(&self) -> bool {
        false
    }

    fn poll(&self) -> Option<Duration> {
        Some(self.0.poll)
    }

    /// Stays signed in as well.
    fn listen(&self, hints: Hints) -> Option<BoxFuture<'_, ()>> {
        let Inner { auth, http, .. } = &*self.0;
        Some(Box::pin(async move {
            join(auth.keep(http), events::listen(self, &hints)).await;
        }))
    }

    fn read<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        Box::pin(self.fetch(reference))
    }

    fn previous<'a>(
        &'a self,
        reference: &'a Reference,
        current: &'a Version,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        Box::pin(async move {
            let what = format!("a version before {reference}");
            let absent = || BackendError::Absent(what.clone());
            let place = self.place(&reference.path).await?;
            if place.engine != Engine::Versioned || reference.version.is_some() {
                return Err(absent());
            }
            let current = self.number(&place, current, &what)?;
            let versions = self.versions(&place, &what).await?;
            let before = versions.kept.range(..current).next_back();
            let (before, _) = before.ok_or_else(absent)?;
            self.record(&place, Some(*before), &what).await
        })
    }

    fn version<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Option<Version>, BackendError>> {
        Box::pin(async move {
            let what = reference.to_string();
            let place = self.place(&reference.path).await?;
            if place.engine != Engine::Versioned {
                return Ok(None);
            }
            let versions = self.versions(&place, &what).await?;
            let asked = match &reference.version {
                Some(version) => self.number(&place, version, &what)?,
                None => versions.current,
            };
            match versions.kept.get(&asked) {
                Some(made) => {
                    let current = asked == versions.current;
                    Ok(Some(self.0.lives.name(&place, asked, *made, current)))
                }
                None => Err(BackendError::Absent(what)),
            }
        })
    }

    fn renew<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Lease, BackendError>> {
        Box::pin(async move {
            let Some(id) = &lease.id else {
                return Err(BackendError::Refused("it cannot be renewed".to_owned()));
            };
            let what = "the renewal of a lease";
            let renew = || endpoint::renew_lease(id, lease.duration.as_secs());
            let reply = self.ask(renew).await?;
            // That is how it says that there is no such lease any more.
            if reply.status.as_u16() == 400 {
                return Err(BackendError::Absent(what.to_owned()));
            }
            reply::renewed(&reply.body(what)?, what)
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let Some(id) = &lease.id else {
                return Ok(());
            };
            let reply = self.ask(|| endpoint::revoke_lease(id)).await?;
            reply.body("the end of a lease").map(drop)
        })
    }

    fn list<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<Name>, BackendError>> {
        Box::pin(self.names(folder))
    }

    fn folders(&self) -> BoxFuture<'_, Result<Vec<Name>, BackendError>> {
        Box::pin(async {
            Err(BackendError::Unusable(
                "the folders of a server cannot be services: give each service a section of its own"
                    .to_owned(),
            ))
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.health())
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.auth.end(&self.0.http))
    }

    fn whereabouts(&self) -> &str {
        &self.0.whereabouts
    }

    fn session(&self, known: u64) -> Option<(u64, SecretBytes)> {
        self.0.auth.session(known)
    }

    fn resume(&self, session: &SecretBytes) {
        self.0.auth.resume(session);
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}
