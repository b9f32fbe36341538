//! What a server's answers mean.
//!
//! They are read from bytes that are wiped, and values are cut out of them as they were written. No error quotes an
//! answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::hmac;
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::http::Reply;
use crate::backend::{BackendError, Fetched, Lease, Version};
use crate::secret::{Name, SecretBytes};

/// How long what was written lives if the server does not say: it is not made anew before.
const UNKNOWN_LIFE: Duration = Duration::from_secs(3600);

impl Reply {
    /// The answer, if it is one. `what` is what was asked for.
    ///
    /// # Errors
    /// The meaning of the status.
    pub(super) fn body(self, what: &str) -> Result<SecretBytes, BackendError> {
        match self.status.as_u16() {
            200..=208 => Ok(self.body),
            // It does not serve us itself, as a standby that has lost its way to the active server.
            300..=399 => Err(BackendError::Unreachable(format!(
                "{what}: the server sends us elsewhere, where we do not follow: write the address of the active server or of a load balancer"
            ))),
            401 | 403 => Err(BackendError::Refused(what.to_owned())),
            404 => Err(BackendError::Absent(what.to_owned())),
            412 => Err(BackendError::Unreachable(format!(
                "{what}: the server has not caught up with what was written elsewhere"
            ))),
            429 => Err(BackendError::Unreachable(format!(
                "{what}: the server takes no more requests now (429)"
            ))),
            503 => Err(BackendError::Unreachable(format!(
                "{what}: the server is sealed, or not ready (503)"
            ))),
            500.. => Err(BackendError::Unreachable(format!(
                "{what}: the server has a trouble of its own ({})",
                self.status.as_u16()
            ))),
            _ => Err(BackendError::Unusable(format!(
                "{what}: the server does not take such a request ({}): see the reference",
                self.status.as_u16()
            ))),
        }
    }

    /// True for the answers that a token gets that is no longer, or never was, good for this.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )
    }
}

/// What all answers have in common.
#[derive(Deserialize)]
pub(super) struct Answer<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    auth: Option<&'a RawValue>,
    #[serde(borrow, default)]
    lease_id: Cow<'a, str>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

/// Reads an answer.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn answer<'a>(body: &'a SecretBytes, what: &str) -> Result<Answer<'a>, BackendError> {
    serde_json::from_slice(body.expose()).map_err(|_| wrong(what))
}

impl<'a> Answer<'a> {
    fn data(&self, what: &str) -> Result<&'a RawValue, BackendError> {
        let data = self.data.filter(|data| data.get() != "null");
        data.ok_or_else(|| wrong(what))
    }
}

/// Reads what an answer holds as data.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn data<'a, T: Deserialize<'a>>(
    body: &'a SecretBytes,
    what: &str,
) -> Result<T, BackendError> {
    let data = answer(body, what)?.data(what)?;
    serde_json::from_str(data.get()).map_err(|_| wrong(what))
}

fn wrong(what: &str) -> BackendError {
    BackendError::Unusable(format!(
        "{what}: the server's answer is not of the expected form"
    ))
}

fn bytes(raw: &RawValue) -> SecretBytes {
    SecretBytes::new(raw.get().as_bytes().to_vec())
}

/// A version of a record in a KV 2 engine, and its number.
///
/// # Errors
/// [`BackendError::Absent`] for one that was deleted; [`BackendError::Unusable`].
pub(super) fn record(body: &SecretBytes, what: &str) -> Result<(Fetched, u64), BackendError> {
    #[derive(Deserialize)]
    struct Versioned<'a> {
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        version: u64,
        created_time: String,
        #[serde(default)]
        custom_metadata: Option<BTreeMap<String, String>>,
    }
    let Versioned { data, metadata } = data(body, what)?;
    let Some(data) = data.filter(|data| data.get() != "null") else {
        return Err(BackendError::Absent(format!("{what}: deleted")));
    };
    let mut custom = metadata.custom_metadata.unwrap_or_default();
    let fetched = Fetched {
        value: bytes(data),
        version: Version::new(metadata.version.to_string()),
        modified: metadata.created_time.parse().ok(),
        description: custom.remove("description"),
        lease: None,
    };
    Ok((fetched, metadata.version))
}

/// A record in a KV 1 engine, which has no versions: each value is called by its keyed hash.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn plain(
    body: &SecretBytes,
    what: &str,
    key: &hmac::Key,
) -> Result<Fetched, BackendError> {
    let value = bytes(answer(body, what)?.data(what)?);
    Ok(Fetched {
        version: hashed(&value, key),
        value,
        modified: None,
        description: None,
        lease: None,
    })
}

/// What another engine made for us, or told us. `written` if it was asked to make something; it lives for `asked` if the
/// server does not say how long.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn dynamic(
    body: &SecretBytes,
    what: &str,
    key: &hmac::Key,
    written: bool,
    asked: Option<Duration>,
    now: Timestamp,
) -> Result<Fetched, BackendError> {
    #[derive(Deserialize)]
    struct Known<'a> {
        /// When a certificate ends, in seconds.
        #[serde(default)]
        expiration: Option<i64>,
        #[serde(borrow, default)]
        serial_number: Option<Cow<'a, str>>,
    }
    #[derive(Deserialize)]
    struct Token {
        #[serde(default)]
        lease_duration: u64,
    }
    let answer = answer(body, what)?;
    let raw = match answer.auth.filter(|auth| auth.get() != "null") {
        Some(auth) => auth,
        None => answer.data(what)?,
    };
    let value = bytes(raw);
    let known: Option<Known<'_>> = serde_json::from_str(raw.get()).ok();
    let (expiration, serial) = known.map_or((None, None), |known| {
        (known.expiration, known.serial_number)
    });
    let lives = |seconds: u64| Duration::from_secs(seconds);
    let lease = if !answer.lease_id.is_empty() {
        Some(Lease {
            id: Some(answer.lease_id.clone().into_owned()),
            duration: lives(answer.lease_duration),
            renewable: answer.renewable,
        })
    } else if let Some(left) = expiration.map(|end| end.saturating_sub(now.as_second())) {
        Some(ending(lives(u64::try_from(left).unwrap_or_default())))
    } else if answer.auth.is_some() {
        let token: Option<Token> = serde_json::from_str(raw.get()).ok();
        let seconds = token.map_or(0, |token| token.lease_duration);
        Some(ending(if seconds == 0 {
            UNKNOWN_LIFE
        } else {
            lives(seconds)
        }))
    } else {
        written.then(|| ending(asked.unwrap_or(UNKNOWN_LIFE)))
    };
    // A lease's name begins with the path; a certificate has its own number.
    let version = match answer
        .lease_id
        .rsplit('/')
        .next()
        .filter(|id| !id.is_empty())
    {
        Some(id) => Version::new(id),
        None => match serial {
            Some(serial) => Version::new(serial),
            None => hashed(&value, key),
        },
    };
    Ok(Fetched {
        value,
        version,
        modified: None,
        description: None,
        lease,
    })
}

/// What ends by itself, and cannot be renewed or revoked.
fn ending(duration: Duration) -> Lease {
    Lease {
        id: None,
        duration,
        renewable: false,
    }
}

/// A lease that was renewed.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn renewed(body: &SecretBytes, what: &str) -> Result<Lease, BackendError> {
    let answer = answer(body, what)?;
    Ok(Lease {
        id: Some(answer.lease_id.into_owned()),
        duration: Duration::from_secs(answer.lease_duration),
        renewable: answer.renewable,
    })
}

/// What a sign-in gave.
pub(super) struct SignedIn<'a> {
    pub(super) token: Cow<'a, str>,
    pub(super) duration: Duration,
    pub(super) renewable: bool,
    /// Sorted.
    pub(super) policies: Vec<String>,
}

/// Reads what a sign-in, or a token's renewal, gave.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn signed_in<'a>(
    body: &'a SecretBytes,
    what: &str,
) -> Result<SignedIn<'a>, BackendError> {
    #[derive(Deserialize)]
    struct Auth<'a> {
        #[serde(borrow)]
        client_token: Cow<'a, str>,
        #[serde(default)]
        lease_duration: u64,
        #[serde(default)]
        renewable: bool,
        #[serde(default)]
        policies: Option<Vec<String>>,
    }
    let raw = answer(body, what)?.auth.ok_or_else(|| wrong(what))?;
    let auth: Auth<'a> = serde_json::from_str(raw.get()).map_err(|_| wrong(what))?;
    let mut policies = auth.policies.unwrap_or_default();
    policies.sort_unstable();
    Ok(SignedIn {
        policies,
        token: auth.client_token,
        duration: Duration::from_secs(auth.lease_duration),
        renewable: auth.renewable,
    })
}

/// The names in a list that can be secrets' names: those of folders end in a slash.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn names(body: &SecretBytes, what: &str) -> Result<Vec<Name>, BackendError> {
    #[derive(Deserialize)]
    struct Keys {
        keys: Vec<String>,
    }
    let Keys { keys } = data(body, what)?;
    Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
}

/// The names of an object's members that can be secrets' names; of its member `within`, if given.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn fields(
    body: &SecretBytes,
    within: Option<&str>,
    what: &str,
) -> Result<Vec<Name>, BackendError> {
    type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;
    let members: Members<'_> = match within {
        None => data(body, what)?,
        Some(within) => {
            let outer: Members<'_> = data(body, what)?;
            let inner = outer.get(within).ok_or_else(|| wrong(what))?;
            let inner: Option<Members<'_>> =
                serde_json::from_str(inner.get()).map_err(|_| wrong(what))?;
            inner.ok_or_else(|| BackendError::Absent(format!("{what}: deleted")))?
        }
    };
    Ok(members.keys().filter_map(|key| key.parse().ok()).collect())
}

/// The versions of a record in a KV 2 engine that are neither deleted nor destroyed, oldest first, and which is current.
#[derive(Debug)]
pub(super) struct Versions {
    pub(super) current: u64,
    pub(super) kept: BTreeMap<u64, Option<Timestamp>>,
}

/// Reads a record's metadata.
///
/// # Errors
/// [`BackendError::Unusable`]
pub(super) fn versions(
    body: &SecretBytes,
    what: &str,
    now: Timestamp,
) -> Result<Versions, BackendError> {
    #[derive(Deserialize)]
    struct Metadata {
        current_version: u64,
        #[serde(default)]
        versions: BTreeMap<u64, One>,
    }
    #[derive(Deserialize)]
    struct One {
        created_time: String,
        #[serde(default)]
        deletion_time: String,
        #[serde(default)]
        destroyed: bool,
    }
    let metadata: Metadata = data(body, what)?;
    let kept = metadata.versions.into_iter().filter(|(_, one)| {
        // A time to come is that of `delete_version_after`.
        let deleted = one.deletion_time.parse::<Timestamp>();
        !one.destroyed && deleted.map_or(true, |deleted| deleted > now)
    });
    Ok(Versions {
        current: metadata.current_version,
        kept: kept
            .map(|(version, one)| (version, one.created_time.parse().ok()))
            .collect(),
    })
}

fn hashed(value: &SecretBytes, key: &hmac::Key) -> Version {
    let tag = hmac::sign(key, value.expose());
    let hex = tag
        .as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"));
    Version::new(hex.collect::<String>())
}
