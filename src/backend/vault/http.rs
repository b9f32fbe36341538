//! How a server is spoken to: one client, which follows no redirect, waits for nothing forever, and takes no more than it
//! can use.
//!
//! The requests themselves are `vaultrs`'s and [`super::endpoint`]'s; they are carried by the client here rather than by
//! that of `vaultrs`, which sends the token after a redirect, has no limit on what it reads, and puts what the server said
//! into errors and logs. Here only a status ever becomes part of an error.

use std::error::Error;
use std::fs::File;
use std::path::Path;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use reqwest::{Upgraded, Url};
use rustify::Endpoint;
use rustify::client::Client as Carrier;
use rustify::errors::ClientError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use zeroize::Zeroizing;

use super::settings::Settings;
use super::tls::Tls;
use crate::backend::BackendError;
use crate::secret::{Name, SecretBytes};

/// The longest answer. The largest value is 1 MiB, and JSON may need six bytes for one.
const MAX_ANSWER: usize = 8 << 20;

/// The longest file of certificates, keys or tokens.
const MAX_FILE: usize = 1 << 20;

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// The server refuses requests without it where it guards against forged ones.
const REQUESTED: HeaderName = HeaderName::from_static("x-vault-request");

/// A server.
#[derive(Debug)]
pub(super) struct Http {
    tls: Tls,
    /// Scheme, host and port.
    address: String,
    namespace: Option<HeaderValue>,
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: SecretBytes,
}

impl Http {
    /// A client for the server, called `name` in the config. Nothing is read or sent yet. `env` gives a variable of the
    /// environment.
    ///
    /// # Errors
    /// What is wrong with the settings, and the mend.
    pub(super) fn new(
        name: &Name,
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let address = settings
            .address
            .clone()
            .or_else(|| either(env, "ADDR"))
            .ok_or(
                "`address` is missing: write address = \"https://HOST:8200\", or set $VAULT_ADDR",
            )?;
        let address = origin(&address)?;
        let namespace = settings
            .namespace(env)
            .map(|namespace| {
                HeaderValue::try_from(namespace).map_err(|_| "`namespace` has odd characters")
            })
            .transpose()?;
        Ok(Self {
            tls: Tls::new(name, &address, settings, env),
            address,
            namespace,
        })
    }

    /// Scheme, host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The headers of every request with this token.
    fn headers(&self, token: Option<&HeaderValue>, namespace: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(REQUESTED, HeaderValue::from_static("true"));
        if let Some(namespace) = namespace {
            headers.insert(NAMESPACE, namespace.clone());
        }
        if let Some(token) = token {
            headers.insert(TOKEN, token.clone());
        }
        headers
    }

    /// Asks, and gives the answer whatever its status.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`] and [`BackendError::Unusable`].
    pub(super) async fn ask(
        &self,
        endpoint: impl Endpoint,
        token: Option<&HeaderValue>,
    ) -> Result<Reply, BackendError> {
        let namespace = self.namespace.as_ref();
        self.call(endpoint, token, namespace).await
    }

    /// Asks about the server as a whole, which no namespace knows of.
    ///
    /// # Errors
    /// As [`Http::ask`].
    pub(super) async fn ask_server(&self, endpoint: impl Endpoint) -> Result<Reply, BackendError> {
        self.call(endpoint, None, None).await
    }

    async fn call(
        &self,
        endpoint: impl Endpoint,
        token: Option<&HeaderValue>,
        namespace: Option<&HeaderValue>,
    ) -> Result<Reply, BackendError> {
        let http = self;
        let call = Call {
            http,
            token,
            namespace,
        };
        match endpoint.exec(&call).await {
            Ok(answer) => {
                let status = answer.response.status();
                let body = SecretBytes::new(answer.response.into_body());
                Ok(Reply { status, body })
            }
            Err(ClientError::GenericError { source }) => Err(source
                .downcast::<BackendError>()
                .unwrap_or_else(|_| self.wrong_request())),
            // The request could not be put together. What it was about may be in the error, so it is not shown.
            Err(_) => Err(self.wrong_request()),
        }
    }

    /// Asks for a WebSocket: the status, and the connection if the server agrees. `path` may have a query.
    ///
    /// # Errors
    /// As [`Http::ask`].
    pub(super) async fn upgrade(
        &self,
        path: &str,
        token: &HeaderValue,
    ) -> Result<(StatusCode, Option<Upgraded>), BackendError> {
        let key = generate_key();
        let client = self.tls.client().await?;
        let request = client
            .get(format!("{}/v1/{path}", self.address))
            .headers(self.headers(Some(token), self.namespace.as_ref()))
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok((status, None));
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| accepted != &*derive_accept_key(key.as_bytes())) {
            let what = format!(
                "{}: agrees to something else than a WebSocket",
                self.address
            );
            return Err(BackendError::Unusable(what));
        }
        let socket = response.upgrade().await;
        Ok((
            status,
            Some(socket.map_err(|error| self.unreachable(&error))?),
        ))
    }

    fn wrong_request(&self) -> BackendError {
        BackendError::Unusable("the path cannot be made into a request: see the reference".into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> BackendError {
        BackendError::Unreachable(format!("{}: {}", self.address, reason(error)))
    }

    async fn send(&self, request: reqwest::Request) -> Result<Response<Vec<u8>>, BackendError> {
        let client = self.tls.client().await?;
        let mut response = client
            .execute(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let too_long = || {
            BackendError::Unusable(format!(
                "{}: answers with more than {MAX_ANSWER} bytes",
                self.address
            ))
        };
        let announced = response.content_length().unwrap_or_default();
        if usize::try_from(announced).is_ok_and(|length| length > MAX_ANSWER) {
            return Err(too_long());
        }
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            let length = body.len().saturating_add(chunk.len());
            if length > MAX_ANSWER {
                return Err(too_long());
            }
            append(&mut body, &chunk);
        }
        Response::builder()
            .status(status)
            .body(std::mem::take(&mut *body))
            .map_err(|_| self.wrong_request())
    }
}

/// Appends without leaving a copy behind where the vector has to grow.
pub(super) fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let length = body.len().saturating_add(chunk.len());
    if body.capacity() < length {
        let capacity = body.capacity().saturating_mul(2).max(length);
        let mut grown = Zeroizing::new(Vec::with_capacity(capacity));
        grown.extend_from_slice(body);
        *body = grown;
    }
    body.extend_from_slice(chunk);
}

/// One request's way to the server.
struct Call<'a> {
    http: &'a Http,
    token: Option<&'a HeaderValue>,
    namespace: Option<&'a HeaderValue>,
}

#[async_trait::async_trait]
impl Carrier for Call<'_> {
    fn base(&self) -> &str {
        &self.http.address
    }

    async fn send(&self, mut request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        let below = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let uri = format!("{}/v1{below}", self.http.address);
        *request.uri_mut() =
            Uri::try_from(uri).map_err(|source| ClientError::UrlBuildError { source })?;
        *request.headers_mut() = self.http.headers(self.token, self.namespace);
        let request = reqwest::Request::try_from(request)
            .map_err(|source| ClientError::ReqwestBuildError { source })?;
        let answer = self.http.send(request).await;
        answer.map_err(|error| ClientError::GenericError {
            source: error.into(),
        })
    }

    /// Without a look at the status: an error here would carry what the server said.
    async fn execute(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        self.send(request).await
    }
}

/// Why a request failed, as its innermost cause says it: a closed port, a name that is not known, a certificate. It is
/// about the connection and never about what was said over it.
pub(super) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.is_body() || error.is_decode() {
        return "the answer was cut short".to_owned();
    }
    if error.is_request() && !error.is_connect() {
        return "the connection broke, or it does not speak HTTP".to_owned();
    }
    let cause = cause.to_string();
    distrust(&cause).map_or(cause, str::to_owned)
}

/// What a certificate that we do not trust lacks, and the mend, where a cause is about one.
fn distrust(cause: &str) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if !has(&["certificate", "Certificate"]) {
        return None;
    }
    // A bad signature is that of another authority of the same name, such as one that was made anew.
    Some(if has(&["UnknownIssuer", "BadSignature"]) {
        "the server's certificate is signed by nobody whom we trust: write ca = \"…\" with the certificate of who signed it"
    } else if has(&["NotValidForName", "not valid for name"]) {
        "the server's certificate is for other names: write `address` with one of its names, or have it signed for this one"
    } else if has(&["NotValidYet", "not valid yet"]) {
        "the server's certificate is not valid yet: see to the clocks of both machines"
    } else if has(&["Expired", "expired"]) {
        "the server's certificate has expired: renew it there, and see to the clock here"
    } else if has(&["CertificateRequired"]) {
        "the server wants a certificate from us: write client = { certificate = \"…\", key = \"…\" }"
    } else {
        return None;
    })
}

/// Scheme, host and port of an address, which has nothing else.
///
/// # Errors
/// What is wrong with it.
pub fn origin(address: &str) -> Result<String, String> {
    let url =
        Url::parse(address).map_err(|_| "`address` is no URL: write \"https://HOST:8200\"")?;
    let alone = matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let Some(host) = url.host_str().filter(|_| alone) else {
        return Err(
            "`address` must be scheme, host and port alone: write \"https://HOST:8200\"".to_owned(),
        );
    };
    let loopback = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => {
            return Err(
                "`address` without TLS would send the token and every secret in clear: write \"https://…\""
                    .to_owned(),
            );
        }
        _ => return Err("`address` must begin with https://".to_owned()),
    }
    Ok(url.origin().ascii_serialization())
}

/// A variable of the environment, as Vault or OpenBao calls it.
pub(super) fn either(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(env, name).map(|(_, value)| value)
}

/// The same, with its name in front.
pub(super) fn variable(
    env: &dyn Fn(&str) -> Option<String>,
    name: &str,
) -> Option<(String, String)> {
    let set = |prefix| {
        let name = format!("{prefix}_{name}");
        let value = env(&name).filter(|value| !value.is_empty())?;
        Some((name, value))
    };
    set("VAULT").or_else(|| set("BAO"))
}

/// What stands in a file of certificates, keys or tokens.
///
/// # Errors
/// The file and why it cannot be read.
pub(super) fn file(path: &Path) -> Result<SecretBytes, String> {
    let read = File::open(path).and_then(|mut file| SecretBytes::read_from(&mut file, MAX_FILE));
    read.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_server_and_nothing_else() {
        for (address, expected) in [
            (
                "https://vault.example:8200",
                Some("https://vault.example:8200"),
            ),
            ("https://vault.example/", Some("https://vault.example")),
            ("http://127.0.0.1:8200", Some("http://127.0.0.1:8200")),
            ("http://[::1]:8200", Some("http://[::1]:8200")),
            ("http://vault.example:8200", None),
            ("http://127.0.0.1.example:8200", None),
            ("https://vault.example/v1", None),
            ("https://user:word@vault.example", None),
            ("https://vault.example?x", None),
            ("ftp://vault.example", None),
            ("vault.example:8200", None),
            ("", None),
        ] {
            assert_eq!(origin(address).ok().as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn a_cause_that_is_about_a_certificate_says_the_mend() {
        for (cause, mend) in [
            (
                "invalid peer certificate: UnknownIssuer",
                Some("write ca = "),
            ),
            (
                "invalid peer certificate: BadSignature",
                Some("write ca = "),
            ),
            (
                "received fatal alert: CertificateRequired",
                Some("write client = "),
            ),
            ("invalid peer certificate: Revoked", None),
            ("tcp connect error", None),
        ] {
            let said = distrust(cause);
            assert_eq!(said.is_some(), mend.is_some(), "{cause}");
            assert!(
                mend.is_none_or(|mend| said.unwrap().contains(mend)),
                "{cause}"
            );
        }
    }

    #[test]
    fn vault_s_own_variables_come_before_openbao_s() {
        let env = |name: &str| match name {
            "VAULT_ADDR" | "BAO_ADDR" | "BAO_NAMESPACE" => Some(name.to_owned()),
            "VAULT_NAMESPACE" => Some(String::new()),
            _ => None,
        };
        assert_eq!(either(&env, "ADDR").as_deref(), Some("VAULT_ADDR"));
        assert_eq!(either(&env, "NAMESPACE").as_deref(), Some("BAO_NAMESPACE"));
        assert_eq!(either(&env, "CACERT"), None);
    }
}
