//! Where values come from: the [`Backend`] trait, and what it answers.
//!
//! A backend knows nothing of callers, files or caches. It is asked only after the policy has said yes, always under a
//! deadline that its caller sets, and it answers with a value and its version or with one of the five
//! [`BackendError`]s, which mean different things to a reader and are never mixed up.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::secret::{Name, SecretBytes};

pub mod hints;
pub mod reference;
pub mod store;
pub mod vault;

#[cfg(test)]
pub(crate) mod tests;

pub use hints::{Hint, Hints};
pub use reference::{Reference, ReferenceError};

/// What a backend calls one value of a secret: a number, an id, a stage.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Version(String);

impl Version {
    /// Takes the backend's own word for it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One value, as a backend gave it.
#[derive(Debug)]
pub struct Fetched {
    /// The bytes.
    pub value: SecretBytes,
    /// What the backend calls them.
    pub version: Version,
    /// When this version was made, where the backend says so.
    pub modified: Option<Timestamp>,
    /// What the backend has to say about the secret, for people.
    pub description: Option<String>,
    /// How long it lives, if the backend made it for us.
    pub lease: Option<Lease>,
}

/// How long a dynamic value lives: one that the backend made when it was asked, and that ends.
///
/// Reading such a place again makes another value. So it is read again only when this one is about to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What the backend calls it, to renew or revoke it. A value that only ends, as a certificate does, has none.
    pub id: Option<String>,
    /// From when it was given until it ends.
    pub duration: Duration,
    /// Whether it can be made to last longer.
    pub renewable: bool,
}

/// A place that values come from. Implementations are shared between tasks and keep no lock while they wait.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The `type` in the config: `store`, `vault`, ….
    fn kind(&self) -> &'static str;

    /// True if nothing changes without our own doing: every change is announced to the cache, which need not ask again
    /// when its TTL is over.
    fn announces_changes(&self) -> bool;

    /// How often what is in use is asked for its [`Backend::version`]; `None` or zero: never. Not looked at where changes
    /// are announced.
    fn poll(&self) -> Option<Duration> {
        None
    }

    /// Listens to what the backend itself tells of changes, and passes it on, for as long as the daemon runs: it connects
    /// again when the connection is lost, and then calls [`Hints::resync`]. `None` if it tells nothing. Called once.
    fn listen(&self, hints: Hints) -> Option<BoxFuture<'_, ()>> {
        let _ = hints;
        None
    }

    /// The value that `reference` names: its path, its query and its version. Picking the field out of the record is
    /// the caller's part ([`field`]).
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn read<'a>(&'a self, reference: &'a Reference)
    -> BoxFuture<'a, Result<Fetched, BackendError>>;

    /// The value that `reference` named before `current`, as the backend orders its versions: the newest of the older ones
    /// that it still has. A reference that names a version has none. The field is the caller's part, as in
    /// [`Backend::read`].
    ///
    /// # Errors
    /// Any [`BackendError`]; [`BackendError::Absent`] if nothing older is kept.
    fn previous<'a>(
        &'a self,
        reference: &'a Reference,
        current: &'a Version,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>>;

    /// The version that [`Backend::read`] would give now, asked for without the value: what a poll looks at. `None` where
    /// only reading tells, as for a dynamic value.
    ///
    /// # Errors
    /// Any [`BackendError`]; [`BackendError::Refused`] if we may read the value and not what is said about it.
    fn version<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Option<Version>, BackendError>>;

    /// Makes a lease last longer, and says for how long from now.
    ///
    /// # Errors
    /// Any [`BackendError`]; [`BackendError::Refused`] or [`BackendError::Absent`] if it has come to its end.
    fn renew<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Lease, BackendError>> {
        let _ = lease;
        Box::pin(async { Err(BackendError::Unusable("it gives no leases".to_owned())) })
    }

    /// Ends a lease, and the value's validity with it.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), BackendError>> {
        let _ = lease;
        Box::pin(async { Err(BackendError::Unusable("it gives no leases".to_owned())) })
    }

    /// The names of the secrets in a folder, without their values. [`BackendError::Absent`] where there is no such folder.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn list<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<Name>, BackendError>>;

    /// The folders themselves, for `[defaults]`, where each is a service.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn folders(&self) -> BoxFuture<'_, Result<Vec<Name>, BackendError>>;

    /// Whether the backend can be used now, for `status` and `doctor`.
    ///
    /// # Errors
    /// Any [`BackendError`] but [`BackendError::Absent`].
    fn check(&self) -> BoxFuture<'_, Result<(), BackendError>>;

    /// The end: signs out, where we signed in. What was leased with that ends, too.
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Which server this is and who we are to it, as text that is another where one of them is. What another one gave is not
    /// this one's.
    fn whereabouts(&self) -> &str {
        ""
    }

    /// What the server after this one needs to go on as who we have signed in as, and the number by which that is known;
    /// `None` if it is `known` already, or there is no such thing.
    fn session(&self, known: u64) -> Option<(u64, SecretBytes)> {
        let _ = known;
        None
    }

    /// Goes on with a session of the server before this one. Called before anything is asked.
    fn resume(&self, session: &SecretBytes) {
        let _ = session;
    }

    /// What it can be changed by, if it can. The store has its own, richer way.
    fn writer(&self) -> Option<&dyn Writer> {
        None
    }
}

/// Changes what a backend holds, where it lets us. A reference's field is a part of the record that is changed with the
/// others left as they are. Of two that change a record at the same time, the later one sees what the earlier one wrote.
pub trait Writer: Send + Sync {
    /// Makes `value` the current one, and says its version.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn put<'a>(
        &'a self,
        reference: &'a Reference,
        value: &'a SecretBytes,
    ) -> BoxFuture<'a, Result<Version, BackendError>>;

    /// Destroys a version, or all of it: nothing that is kept brings the value back.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn remove<'a>(
        &'a self,
        reference: &'a Reference,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Makes an earlier value the current one, as a new version.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn rollback<'a>(
        &'a self,
        reference: &'a Reference,
        to: &'a Version,
    ) -> BoxFuture<'a, Result<Version, BackendError>>;

    /// The versions that are kept, the newest first, and when each was made.
    ///
    /// # Errors
    /// Any [`BackendError`].
    fn history<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<(Version, Timestamp)>, BackendError>>;
}

/// Why a backend gave no value. The texts name places and reasons, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no such secret, version or field. The only error that lets the next reference of a binding be tried.
    #[error("no such secret: {0}")]
    Absent(String),
    /// The backend knows us and says no.
    #[error("refused by the backend: {0}")]
    Refused(String),
    /// The backend cannot be reached or does not work at the moment. The only error that a stale value may stand in for.
    #[error("the backend cannot be reached: {0}")]
    Unreachable(String),
    /// The deadline passed.
    #[error("no answer within {0}")]
    Timeout(String),
    /// The backend answered with something that must not be shown: damaged, too large, not what was asked for.
    #[error("unusable: {0}")]
    Unusable(String),
}

/// The field that stands for the whole of a record: raw where `value` is its only member, else as JSON.
pub const WHOLE: &str = ".";

/// The member `field` of a value that is a JSON object: a string raw, anything else as JSON.
///
/// # Errors
/// [`BackendError::Absent`] if the object has no such member, [`BackendError::Unusable`] if the value is not an object.
/// Neither quotes the value.
pub fn field(value: &SecretBytes, field: &str) -> Result<SecretBytes, BackendError> {
    let record: Record = serde_json::from_slice(value.expose())
        .map_err(|_| BackendError::Unusable(format!("#{field}: the value is not a JSON object")))?;
    let field = match (field, &record.0[..]) {
        (WHOLE, [(only, _)]) if only == "value" => "value",
        (WHOLE, _) => return Ok(SecretBytes::new(value.expose().to_vec())),
        _ => field,
    };
    let Some((_, member)) = record.0.into_iter().find(|(name, _)| name == field) else {
        return Err(BackendError::Absent(format!(
            "#{field}: the record has no such field"
        )));
    };
    let text: Result<zeroize::Zeroizing<String>, _> =
        serde_json::from_str(member.get()).map(zeroize::Zeroizing::new);
    Ok(match text {
        Ok(text) => SecretBytes::new(text.as_bytes().to_vec()),
        Err(_) => SecretBytes::new(member.get().as_bytes().to_vec()),
    })
}

/// A JSON object whose members stay as they were written, borrowed from the value.
pub(crate) struct Record<'a>(pub(crate) Vec<(String, &'a serde_json::value::RawValue)>);

impl<'de> serde::Deserialize<'de> for Record<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Record<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Record<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Record(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
