//! The client that requests go through: whom it trusts, and which certificate it shows.
//!
//! It is made when the server is first asked for something. So a file that is missing or broken is the trouble of who asks
//! this server, and of nobody else; and it is read again with the next question, so that mending it is enough.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, redirect};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::http::{append, file, reason, variable};
use super::settings::{ClientCertificate, Settings};
use crate::backend::BackendError;
use crate::secret::Name;

/// How long a connection may take to be made. Shorter than the cache's deadline, so that the error can say which it was.
const CONNECT: Duration = Duration::from_secs(3);

/// How long the server may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a request may take, whoever waits for it.
const REQUEST: Duration = Duration::from_secs(30);

/// The client of a server, made or not.
#[derive(Debug)]
pub(super) struct Tls {
    plan: Plan,
    made: OnceCell<Client>,
}

/// What it is made of.
#[derive(Debug, Clone)]
struct Plan {
    /// The backend's section in the config.
    section: String,
    /// Whether the server shows a certificate at all.
    asks_for_certificate: bool,
    ca: Option<Named<PathBuf>>,
    client: Option<Named<ClientCertificate>>,
}

/// A setting, and the key or variable that it is from.
#[derive(Debug, Clone)]
struct Named<T> {
    from: String,
    value: T,
}

impl Tls {
    /// The client of the server at `address`, called `name` in the config. No file is read yet. `env` gives a variable of
    /// the environment.
    pub(super) fn new(
        name: &Name,
        address: &str,
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let section = format!("backends.{}", name.in_config());
        let ca = match &settings.ca {
            Some(path) => Some(Named {
                from: format!("{section}.ca"),
                value: path.clone(),
            }),
            None => variable(env, "CACERT").map(|(name, path)| Named {
                from: format!("${name}"),
                value: path.into(),
            }),
        };
        let from_env = || {
            let (name, certificate) = variable(env, "CLIENT_CERT")?;
            let (key_name, key) = variable(env, "CLIENT_KEY")?;
            Some(Named {
                from: format!("${name} and ${key_name}"),
                value: ClientCertificate {
                    certificate: certificate.into(),
                    key: key.into(),
                },
            })
        };
        let client = match &settings.client {
            Some(client) => Some(Named {
                from: format!("{section}.client"),
                value: client.clone(),
            }),
            None => from_env(),
        };
        Self {
            plan: Plan {
                section,
                // On loopback in clear nobody's certificate is asked for.
                asks_for_certificate: !address.starts_with("http:"),
                ca,
                client,
            },
            made: OnceCell::new(),
        }
    }

    /// The client; the first who asks has it made.
    ///
    /// # Errors
    /// [`BackendError::Unreachable`], with the file, where it comes from and the mend.
    pub(super) async fn client(&self) -> Result<&Client, BackendError> {
        let make = || async {
            let plan = self.plan.clone();
            let made = tokio::task::spawn_blocking(move || plan.make()).await;
            made.unwrap_or_else(|_| Err("TLS was not set up".to_owned()))
        };
        let client = self.made.get_or_try_init(make).await;
        client.map_err(BackendError::Unreachable)
    }
}

impl Plan {
    fn make(&self) -> Result<Client, String> {
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("secretfs/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .timeout(REQUEST)
            .http1_only();
        if let Some(Named { from, value }) = &self.ca {
            let wrong =
                |why| format!("{why}: put certificates in PEM form there, or change `{from}`");
            builder = builder.tls_certs_merge(certificates(value).map_err(wrong)?);
        } else if !self.asks_for_certificate {
            builder = builder.tls_certs_only([]);
        }
        if let Some(Named { from, value }) = &self.client {
            let wrong = |why| {
                format!(
                    "{why}: put a certificate and its key in PEM form there, or change `{from}`"
                )
            };
            builder = builder.identity(identity(value).map_err(wrong)?);
        }
        builder.build().map_err(|error| {
            format!(
                "{}: TLS cannot be set up: {}: install the package ca-certificates, or write ca = \"…\" with the certificate of who signed the server's",
                self.section,
                reason(&error)
            )
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let found = Certificate::from_pem_bundle(file(path)?.expose()).unwrap_or_default();
    match found.is_empty() {
        true => Err(format!("{}: no certificates in PEM form", path.display())),
        false => Ok(found),
    }
}

fn identity(client: &ClientCertificate) -> Result<Identity, String> {
    let mut pem = Zeroizing::new(file(&client.certificate)?.expose().to_vec());
    pem.push(b'\n');
    append(&mut pem, file(&client.key)?.expose());
    Identity::from_pem(&pem).map_err(|_| {
        format!(
            "{} and {}: no certificate with its key in PEM form",
            client.certificate.display(),
            client.key.display()
        )
    })
}
