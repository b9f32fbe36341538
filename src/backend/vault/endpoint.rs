//! Requests that `vaultrs` has no words for: any path, read or written; what holds leases; subkeys.

use rustify::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;

use crate::secret::SecretBytes;

/// A request to any path.
#[derive(Debug)]
pub(super) struct Logical {
    method: RequestMethod,
    path: String,
    body: Option<SecretBytes>,
}

impl Logical {
    /// Reads a path.
    pub(super) fn read(path: impl Into<String>) -> Self {
        Self {
            method: RequestMethod::GET,
            path: path.into(),
            body: None,
        }
    }

    /// Lists what is below a path.
    pub(super) fn list(path: impl Into<String>) -> Self {
        Self {
            method: RequestMethod::LIST,
            ..Self::read(path)
        }
    }

    /// Writes to a path, with these arguments.
    pub(super) fn write(path: impl Into<String>, arguments: &serde_json::Value) -> Self {
        Self::write_bytes(path, arguments.to_string().as_bytes())
    }

    /// Writes to a path what is JSON already.
    pub(super) fn write_bytes(path: impl Into<String>, json: &[u8]) -> Self {
        Self {
            method: RequestMethod::POST,
            path: path.into(),
            body: Some(SecretBytes::new(json.to_vec())),
        }
    }

    /// Deletes what is at a path.
    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self {
            method: RequestMethod::DELETE,
            ..Self::read(path)
        }
    }
}

impl Endpoint for Logical {
    /// The answer's bytes are read by [`super::reply`].
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.as_ref().map(|body| body.expose().to_vec()))
    }
}

/// Makes a lease last longer.
pub(super) fn renew_lease(id: &str, seconds: u64) -> Logical {
    let arguments = serde_json::json!({ "lease_id": id, "increment": seconds });
    Logical::write("sys/leases/renew", &arguments)
}

/// Ends a lease.
pub(super) fn revoke_lease(id: &str) -> Logical {
    Logical::write("sys/leases/revoke", &serde_json::json!({ "lease_id": id }))
}

/// Which mount a path is below, and what is mounted there. Every token may ask it of the paths that it has rights below.
pub(super) fn mount_of(path: &str) -> Logical {
    Logical::read(format!("sys/internal/ui/mounts/{path}"))
}

/// The names of a record's fields, without their values.
pub(super) fn subkeys(mount: &str, path: &str) -> Logical {
    Logical::read(format!("{mount}/subkeys/{path}"))
}
