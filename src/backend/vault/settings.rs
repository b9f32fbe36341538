//! What the config says of a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::either;

/// How a server is reached, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `https://host:port`. Left out: `$VAULT_ADDR`, else `$BAO_ADDR`.
    pub address: Option<String>,
    /// Certificates that are trusted beside the system's, as PEM. Left out: `$VAULT_CACERT`, else `$BAO_CACERT`.
    pub ca: Option<PathBuf>,
    /// What we show in the TLS handshake.
    pub client: Option<ClientCertificate>,
    /// The namespace. Left out: `$VAULT_NAMESPACE`, else `$BAO_NAMESPACE`.
    pub namespace: Option<String>,
    /// How often what is in use is asked for a newer version; zero for never.
    pub poll: Duration,
    /// How we sign in.
    pub auth: Method,
}

impl Settings {
    /// How often a server is polled unless the config says otherwise.
    pub const POLL: Duration = Duration::from_secs(30);

    /// The namespace, from the config or the environment: `env` gives a variable of it.
    #[must_use]
    pub fn namespace(&self, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
        let given = self.namespace.clone();
        given.or_else(|| either(env, "NAMESPACE"))
    }
}

/// A client certificate, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, with those that it is signed by.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How we sign in. Secrets come from files, which are read anew at each sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// With a token that somebody else got: from a file, which may change at any time, else from `$VAULT_TOKEN` or
    /// `$BAO_TOKEN`.
    Token {
        /// The file.
        file: Option<PathBuf>,
    },
    /// AppRole.
    AppRole {
        /// Where the method is mounted below `auth/`.
        mount: String,
        /// Which role.
        role_id: String,
        /// The file with its secret id.
        secret_id: PathBuf,
        /// The file holds a token that unwraps to the secret id, once.
        wrapped: bool,
    },
    /// A JSON web token, as from an OIDC provider, SPIFFE or a Kubernetes service account.
    Jwt {
        /// Where the method is mounted below `auth/`.
        mount: String,
        /// Which role; the method's default where it is left out.
        role: Option<String>,
        /// The file with the token.
        jwt: PathBuf,
    },
    /// The TLS client certificate.
    Certificate {
        /// Where the method is mounted below `auth/`.
        mount: String,
        /// Which role; any that fits where it is left out.
        role: Option<String>,
    },
}

impl Method {
    /// The file that is shown, or read, to sign in.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Token { file } => file.as_deref(),
            Self::AppRole { secret_id, .. } => Some(secret_id),
            Self::Jwt { jwt, .. } => Some(jwt),
            Self::Certificate { .. } => None,
        }
    }
}
