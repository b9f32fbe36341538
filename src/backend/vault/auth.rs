//! Signing in, and staying signed in.
//!
//! There is one token for an identity. Whoever finds none signs in, and the others wait for it; a sign-in that was
//! refused is not tried again for a while. At two thirds of its life a token is renewed, and replaced where that is not
//! possible: what was leased with it ends with it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::auth::oidc::requests::JWTLoginRequest;
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};
use zeroize::Zeroizing;

use super::endpoint::Logical;
use super::http::{Http, Reply, either, file};
use super::reply::{self, SignedIn};
use super::settings::Method;
use crate::backend::BackendError;
use crate::clock::Clock;
use crate::secret::SecretBytes;

mod session;
mod token;

use token::{Pace, Print, Token, header, print};

/// How long a refused sign-in is not tried again.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How often, at most, we sign in again because something is refused to a token that the server holds to be good: its
/// rights may be others after a sign-in, and mostly are not.
const TRIED_EVERY: Duration = Duration::from_secs(60);

/// The longest sleep: a machine that was suspended does not notice how long that was.
const LOOK: Duration = Duration::from_secs(60);

/// Who we are to a server.
#[derive(Debug)]
pub(super) struct Auth {
    method: Method,
    /// From the environment, where the method is a token and no file is named.
    given: Option<SecretBytes>,
    clock: Clock,
    /// Who waits for one, or for another, is told.
    signed_in: watch::Sender<SignedInAs>,
    /// Whose turn it is to sign in.
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Debug, Default)]
struct SignedInAs {
    /// How often that was another.
    number: u64,
    token: Option<Arc<Token>>,
}

#[derive(Debug, Default)]
struct Turn {
    /// When we were refused, and what the file was like that we signed in with.
    refused: Option<(Instant, Option<Print>, BackendError)>,
    /// When it was last tried whether a sign-in gives other rights.
    tried: Option<Instant>,
    /// How often a token is replaced that the server says nothing good of.
    replaced: Pace,
    /// What was unwrapped, and what the file was like that it came from: it can be unwrapped only once.
    unwrapped: Option<(Print, SecretBytes)>,
}

impl Auth {
    /// Nobody yet. `env` gives a variable of the environment.
    pub(super) fn new(method: Method, env: &dyn Fn(&str) -> Option<String>, clock: Clock) -> Self {
        let given = match &method {
            Method::Token { file: None } => either(env, "TOKEN").map(Zeroizing::new),
            Method::Token { file: Some(_) }
            | Method::AppRole { .. }
            | Method::Jwt { .. }
            | Method::Certificate { .. } => None,
        };
        Self {
            method,
            given: given.map(|token| SecretBytes::new(token.as_bytes().to_vec())),
            clock,
            signed_in: watch::Sender::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The token, after signing in if need be.
    ///
    /// # Errors
    /// [`BackendError::Refused`] if the server does not let us in; what else became of the request.
    pub(super) async fn token(&self, http: &Http) -> Result<Arc<Token>, BackendError> {
        if let Some(token) = self.good() {
            return Ok(token);
        }
        let mut turn = self.turn.lock().await;
        match self.good() {
            Some(token) => Ok(token),
            None => self.replace(http, &mut turn).await,
        }
    }

    /// Another token than the one that was refused; `None` if there is none to be had.
    ///
    /// # Errors
    /// As [`Auth::token`].
    pub(super) async fn another(
        &self,
        http: &Http,
        refused: &Arc<Token>,
    ) -> Result<Option<Arc<Token>>, BackendError> {
        let mut turn = self.turn.lock().await;
        match self.good() {
            Some(token) if Arc::ptr_eq(&token, refused) => {}
            Some(token) => return Ok(Some(token)),
            // It has ended, or another stands in its file.
            None => return self.replace(http, &mut turn).await.map(Some),
        }
        if let Method::Token { .. } = self.method {
            return Ok(None);
        }
        let now = self.clock.now();
        let looked_at = http
            .ask(LookupTokenSelfRequest {}, Some(&refused.header))
            .await?;
        if looked_at.is_refusal() {
            // It was revoked, or its policy does not even let it look at itself.
            if !turn.replaced.may(now) {
                return Ok(None);
            }
            self.set(None);
            return self.replace(http, &mut turn).await.map(Some);
        }
        let tried = turn.tried.unwrap_or(refused.since);
        if now.saturating_duration_since(tried) < TRIED_EVERY {
            return Ok(None);
        }
        turn.tried = Some(now);
        let another = self.sign_in_unless_refused(http, &mut turn).await?;
        if another.policies == refused.policies {
            self.revoke(http, &another).await;
            return Ok(None);
        }
        // The one before is not ended: what was leased with it would end, too.
        let another = Arc::new(another);
        self.set(Some(Arc::clone(&another)));
        Ok(Some(another))
    }

    /// Renews the token when it is due, for as long as it is waited for.
    pub(super) async fn keep(&self, http: &Http) {
        let mut tokens = self.signed_in.subscribe();
        loop {
            let token = tokens.borrow_and_update().token.clone();
            let due = token.as_ref().and_then(|token| token.due);
            let wait = due.map(|due| due.saturating_duration_since(self.clock.now()));
            let wait = match (token, wait) {
                (Some(token), Some(Duration::ZERO)) => match self.prolong(http, &token).await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(server = http.address(), %error, "the token could not be renewed");
                        REFUSED_FOR
                    }
                },
                (_, wait) => wait.unwrap_or(LOOK).min(LOOK),
            };
            // What comes meanwhile may be due before.
            let _ = tokio::time::timeout(wait, tokens.changed()).await;
        }
    }

    /// Ends the token, if we signed in for it: what was leased with it ends, too.
    pub(super) async fn end(&self, http: &Http) {
        let token = self.set(None);
        if let Some(token) = token.filter(|token| token.ours) {
            self.revoke(http, &token).await;
        }
    }

    async fn revoke(&self, http: &Http, token: &Token) {
        let ended = http
            .ask(RevokeTokenSelfRequest {}, Some(&token.header))
            .await;
        if let Err(error) = ended.and_then(|reply| reply.body("the end of the token")) {
            tracing::warn!(server = http.address(), %error, "the token was not revoked, and ends by itself");
        }
    }

    /// Waits until somebody needed a token.
    pub(super) async fn signed_in(&self) {
        let mut tokens = self.signed_in.subscribe();
        // It can fail only after its sender, which is here.
        let _ = tokens.wait_for(|now| now.token.is_some()).await;
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.signed_in.borrow().token.clone()
    }

    fn set(&self, token: Option<Arc<Token>>) -> Option<Arc<Token>> {
        let mut before = None;
        self.signed_in.send_modify(|signed_in| {
            signed_in.number += 1;
            before = std::mem::replace(&mut signed_in.token, token);
        });
        before
    }

    /// The token, if it can still be used.
    fn good(&self) -> Option<Arc<Token>> {
        let token = self.current()?;
        let ended = token.ends.is_some_and(|ends| self.clock.now() >= ends);
        let other = match &self.method {
            Method::Token { file: Some(file) } => token.print != print(file),
            Method::Token { file: None }
            | Method::AppRole { .. }
            | Method::Jwt { .. }
            | Method::Certificate { .. } => false,
        };
        (!ended && !other).then_some(token)
    }

    /// Renews a token that is due, or gets another one.
    async fn prolong(&self, http: &Http, token: &Arc<Token>) -> Result<(), BackendError> {
        let mut turn = self.turn.lock().await;
        if !self.current().is_some_and(|now| Arc::ptr_eq(&now, token)) {
            return Ok(());
        }
        if token.renewable {
            let now = self.clock.now();
            let request = RenewTokenSelfRequest { increment: None };
            let body = http
                .ask(request, Some(&token.header))
                .await
                .and_then(|reply| reply.body("the renewal of the token"));
            match body {
                Ok(body) => {
                    let renewed = reply::signed_in(&body, "the renewal of the token")?;
                    if !token.ours || !renewed.duration.is_zero() {
                        let renewed = token.renewed(now, renewed.duration, renewed.renewable);
                        self.set(Some(Arc::new(renewed)));
                        return Ok(());
                    }
                }
                Err(error @ (BackendError::Unreachable(_) | BackendError::Timeout(_))) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        self.replace(http, &mut turn).await.map(drop)
    }

    /// Signs in, in turn, and takes that token.
    async fn replace(&self, http: &Http, turn: &mut Turn) -> Result<Arc<Token>, BackendError> {
        let token = Arc::new(self.sign_in_unless_refused(http, turn).await?);
        self.set(Some(Arc::clone(&token)));
        Ok(token)
    }

    /// Signs in, in turn. What was refused a moment ago is refused again without asking, unless there is something else to
    /// show.
    async fn sign_in_unless_refused(
        &self,
        http: &Http,
        turn: &mut Turn,
    ) -> Result<Token, BackendError> {
        let shown = self.method.file().and_then(print);
        if let Some((since, before, error)) = &turn.refused
            && *before == shown
            && self.clock.now().saturating_duration_since(*since) < REFUSED_FOR
        {
            return Err(error.clone());
        }
        turn.refused = None;
        let signed_in = self.sign_in(http, turn).await;
        if let Err(error @ BackendError::Refused(_)) = &signed_in {
            turn.refused = Some((self.clock.now(), shown, error.clone()));
        }
        signed_in
    }

    async fn sign_in(&self, http: &Http, turn: &mut Turn) -> Result<Token, BackendError> {
        // A life begins while we ask, so that it ends for us no later than for the server.
        let now = self.clock.now();
        let reply = match &self.method {
            Method::Token { file } => return self.take_token(http, file.as_deref()).await,
            Method::AppRole {
                mount,
                role_id,
                secret_id,
                wrapped,
            } => {
                let secret_id = match wrapped {
                    false => word(&read(secret_id).await?, secret_id)?,
                    true => self.unwrap(http, turn, secret_id).await?,
                };
                let request = LoginWithApproleRequest {
                    mount: mount.clone(),
                    role_id: role_id.clone(),
                    secret_id: secret_id.to_string(),
                };
                http.ask(request, None).await?
            }
            Method::Jwt { mount, role, jwt } => {
                let request = JWTLoginRequest {
                    mount: mount.clone(),
                    jwt: word(&read(jwt).await?, jwt)?.to_string(),
                    role: role.clone(),
                };
                http.ask(request, None).await?
            }
            Method::Certificate { mount, role } => {
                let arguments = match role {
                    Some(role) => serde_json::json!({ "name": role }),
                    None => serde_json::json!({}),
                };
                let request = Logical::write(format!("auth/{mount}/login"), &arguments);
                http.ask(request, None).await?
            }
        };
        let body = self.let_in(reply)?;
        let SignedIn {
            token,
            duration,
            renewable,
            policies,
        } = reply::signed_in(&body, "the sign-in")?;
        Ok(Token {
            header: header(token.as_bytes())?,
            ours: true,
            policies,
            ..Token::life(now, duration, renewable)
        })
    }

    /// A token that somebody else got, with what the server says of its life.
    async fn take_token(&self, http: &Http, file: Option<&Path>) -> Result<Token, BackendError> {
        let (text, print) = match (file, &self.given) {
            (Some(file), _) => {
                // Before it is read: what changes meanwhile is another token.
                let print = print(file);
                (word(&read(file).await?, file)?, print)
            }
            (None, Some(given)) => (word(given, Path::new("$VAULT_TOKEN"))?, None),
            (None, None) => {
                return Err(BackendError::Refused(
                    "no token: write auth = { method = \"token\", file = \"…\" }, or set $VAULT_TOKEN".into(),
                ));
            }
        };
        let header = header(text.as_bytes())?;
        let now = self.clock.now();
        let said = http.ask(LookupTokenSelfRequest {}, Some(&header)).await?;
        #[derive(serde::Deserialize)]
        struct Said {
            #[serde(default)]
            ttl: u64,
            #[serde(default)]
            renewable: bool,
        }
        // Who may not look at itself may have rights all the same.
        let said = match said.is_refusal() {
            true => None,
            false => {
                let body = said.body("the token")?;
                Some(reply::data::<Said>(&body, "the token")?)
            }
        };
        let (ttl, renewable) = said.map_or((0, false), |said| (said.ttl, said.renewable));
        let life = Token::life(now, Duration::from_secs(ttl), renewable);
        Ok(Token {
            header,
            print,
            // A token that cannot be renewed is replaced by whoever got it.
            due: life.due.filter(|_| renewable),
            ..life
        })
    }

    /// The secret id that a token unwraps to.
    async fn unwrap(
        &self,
        http: &Http,
        turn: &mut Turn,
        path: &Path,
    ) -> Result<Zeroizing<String>, BackendError> {
        let now = print(path);
        if let Some((before, secret_id)) = &turn.unwrapped
            && now.is_none_or(|now| now == *before)
        {
            return word(secret_id, path);
        }
        let wrapping = header(word(&read(path).await?, path)?.as_bytes())?;
        let request = Logical::write("sys/wrapping/unwrap", &serde_json::json!({}));
        let reply = http.ask(request, Some(&wrapping)).await?;
        if matches!(reply.status.as_u16(), 400 | 403) {
            return Err(BackendError::Refused(format!(
                "{}: the token unwraps to nothing: it is too old, or somebody else has unwrapped it. Find out who, and get another",
                path.display()
            )));
        }
        #[derive(serde::Deserialize)]
        struct Unwrapped<'a> {
            #[serde(borrow)]
            secret_id: std::borrow::Cow<'a, str>,
        }
        let body = reply.body("the unwrapping")?;
        let Unwrapped { secret_id } = reply::data(&body, "the unwrapping")?;
        let secret_id = SecretBytes::new(secret_id.as_bytes().to_vec());
        let text = word(&secret_id, path);
        turn.unwrapped = now.map(|now| (now, secret_id));
        text
    }

    /// The answer to a sign-in, which has its own way to say no.
    fn let_in(&self, reply: Reply) -> Result<SecretBytes, BackendError> {
        let what = match &self.method {
            Method::Token { .. } => "the token",
            Method::AppRole { .. } => "the sign-in by AppRole: check role_id and secret_id",
            Method::Jwt { .. } => "the sign-in by JWT: check role and jwt",
            Method::Certificate { .. } => "the sign-in by certificate: check client and role",
        };
        match reply.status.as_u16() {
            400 | 401 | 403 | 404 => Err(BackendError::Refused(what.to_owned())),
            _ => reply.body(what),
        }
    }
}

async fn read(path: &Path) -> Result<SecretBytes, BackendError> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || file(&path)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(why)) => Err(BackendError::Refused(format!("cannot sign in: {why}"))),
        Err(_) => Err(BackendError::Unreachable("the sign-in was given up".into())),
    }
}

/// The one word in a file.
fn word(bytes: &SecretBytes, path: &Path) -> Result<Zeroizing<String>, BackendError> {
    let text = std::str::from_utf8(bytes.expose()).map(str::trim);
    match text {
        Ok(text)
            if !text.is_empty()
                && !text.contains(|c: char| c.is_whitespace() || c.is_control()) =>
        {
            Ok(Zeroizing::new(text.to_owned()))
        }
        _ => Err(BackendError::Refused(format!(
            "cannot sign in: {}: must hold one word and nothing else",
            path.display()
        ))),
    }
}
