//! Changing a KV engine's records.
//!
//! A record is read, changed and written with check-and-set: if somebody else has written meanwhile, it is done again with
//! what is there then. KV 1 has no such thing, and the last one wins. What other engines give cannot be written.

use futures_util::future::BoxFuture;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::value::RawValue;
use vaultrs::api::kv2::requests::{DeleteSecretMetadataRequest, DestroySecretVersionsRequest};
use zeroize::Zeroizing;

use super::endpoint::Logical;
use super::{Engine, Place, Vault};
use crate::backend::{BackendError, Record, Reference, Version, WHOLE, Writer};
use crate::secret::SecretBytes;

/// How often a record is written again that somebody else has changed meanwhile.
const ATTEMPTS: usize = 5;

/// A record as it is before a change.
struct Before {
    data: Option<SecretBytes>,
    /// What check-and-set compares: 0 for a record that is not there.
    version: u64,
}

impl Vault {
    async fn writable(&self, reference: &Reference) -> Result<Place, BackendError> {
        if reference.version.is_some() {
            return Err(unusable(
                reference,
                "is one version, which never changes: bind the secret without `@…`",
            ));
        }
        let place = self.place(&reference.path).await?;
        match place.engine {
            Engine::Versioned | Engine::Plain => Ok(place),
            Engine::Dynamic => Err(unusable(
                reference,
                "is made by the server, and cannot be written",
            )),
        }
    }

    /// Writes what `change` makes of the record, as a new version of it.
    async fn rewrite(
        &self,
        reference: &Reference,
        change: impl Fn(&Before) -> Result<SecretBytes, BackendError>,
    ) -> Result<Version, BackendError> {
        let what = reference.to_string();
        let place = self.writable(reference).await?;
        for _ in 0..ATTEMPTS {
            let before = self.before(&place, reference).await?;
            let data = change(&before)?;
            let (path, body) = match place.engine {
                Engine::Versioned => (
                    format!("{}/data/{}", place.mount, place.path),
                    with_check(&data, before.version),
                ),
                Engine::Plain | Engine::Dynamic => (reference.path.clone(), data),
            };
            let reply = self
                .ask(|| Logical::write_bytes(path.clone(), body.expose()))
                .await?;
            // Check-and-set says no with the same status as for any wrong request; the next attempt tells which it was.
            if place.engine == Engine::Versioned && reply.status == StatusCode::BAD_REQUEST {
                continue;
            }
            let body = reply.body(&what)?;
            return match place.engine {
                Engine::Versioned => {
                    #[derive(serde::Deserialize)]
                    struct Written {
                        version: u64,
                        #[serde(default)]
                        created_time: String,
                    }
                    let Written {
                        version,
                        created_time,
                    } = super::reply::data(&body, &what)?;
                    let made = created_time.parse().ok();
                    Ok(self.0.lives.name(&place, version, made, true))
                }
                Engine::Plain | Engine::Dynamic => Ok(self.fetch(reference).await?.version),
            };
        }
        Err(unusable(
            reference,
            "is not taken by the server: others change it all the time, or it is too large",
        ))
    }

    async fn before(&self, place: &Place, reference: &Reference) -> Result<Before, BackendError> {
        let what = reference.to_string();
        let whole = Reference {
            field: None,
            ..reference.clone()
        };
        let data = match self.fetch(&whole).await {
            Ok(fetched) => {
                let version = match place.engine {
                    Engine::Versioned => self.number(place, &fetched.version, &what)?,
                    Engine::Plain | Engine::Dynamic => 0,
                };
                return Ok(Before {
                    data: Some(fetched.value),
                    version,
                });
            }
            Err(BackendError::Absent(_)) => None,
            Err(error) => return Err(error),
        };
        // A deleted version is none, and counts all the same.
        let version = match place.engine {
            Engine::Versioned => match self.versions(place, &what).await {
                Ok(versions) => versions.current,
                Err(BackendError::Absent(_) | BackendError::Refused(_)) => 0,
                Err(error) => return Err(error),
            },
            Engine::Plain | Engine::Dynamic => 0,
        };
        Ok(Before { data, version })
    }

    /// The number of a version that is called as the history calls it.
    fn exactly(&self, place: &Place, version: &Version, what: &str) -> Result<u64, BackendError> {
        self.0.lives.exactly(place, version).ok_or_else(|| {
            BackendError::Absent(format!("{what}: write the version as the history does"))
        })
    }

    /// Says no to removing a part of a record: its older versions would keep it.
    async fn removable(&self, reference: &Reference) -> Result<Place, BackendError> {
        let place = self.writable(reference).await?;
        let Some(field) = reference.field.as_deref().filter(|field| *field != WHOLE) else {
            return Ok(place);
        };
        let before = self.before(&place, reference).await?;
        let Some(data) = &before.data else {
            return Ok(place);
        };
        match members(data, reference)?.0.as_slice() {
            [(only, _)] if only == field => Ok(place),
            _ => Err(unusable(
                reference,
                "is one of several fields: older versions of the record would keep it. Remove the whole record under a binding of its own, or `put` another value",
            )),
        }
    }
}

fn unusable(reference: &Reference, why: &str) -> BackendError {
    BackendError::Unusable(format!("{reference}: {why}"))
}

fn members<'a>(data: &'a SecretBytes, reference: &Reference) -> Result<Record<'a>, BackendError> {
    serde_json::from_slice(data.expose())
        .map_err(|_| unusable(reference, "is not a JSON object, as a record must be"))
}

/// What the record becomes when `value` is put at its field.
fn put(
    before: &Before,
    reference: &Reference,
    value: &SecretBytes,
) -> Result<SecretBytes, BackendError> {
    let old = before.data.as_ref();
    let old = old.map(|data| members(data, reference)).transpose()?;
    let old = old.map_or_else(Vec::new, |record| record.0);
    match reference.field.as_deref() {
        None => {
            members(value, reference)?;
            Ok(SecretBytes::new(value.expose().to_vec()))
        }
        Some(WHOLE) => match &old[..] {
            [] => object(&[], "value", value, reference),
            [(only, _)] if only == "value" => object(&[], "value", value, reference),
            _ => {
                members(value, reference)?;
                Ok(SecretBytes::new(value.expose().to_vec()))
            }
        },
        Some(field) => object(&old, field, value, reference),
    }
}

/// A JSON object of these members and `field`, which is text.
fn object(
    members: &[(String, &RawValue)],
    field: &str,
    value: &SecretBytes,
    reference: &Reference,
) -> Result<SecretBytes, BackendError> {
    let text = std::str::from_utf8(value.expose()).map_err(|_| {
        unusable(
            reference,
            "takes text alone: encode these bytes as Base64, or keep them in a store",
        )
    })?;
    let others: usize = members
        .iter()
        .map(|(name, raw)| name.len().saturating_mul(6) + raw.get().len() + 4)
        .sum();
    // Enough from the start: where a vector grows it leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        others + text.len().saturating_mul(6) + field.len().saturating_mul(6) + 16,
    ));
    let mut writer = serde_json::Serializer::new(&mut *bytes);
    use serde::Serializer as _;
    use serde::ser::SerializeMap as _;
    let written = writer.serialize_map(None).and_then(|mut map| {
        for (name, raw) in members.iter().filter(|(name, _)| name != field) {
            map.serialize_entry(name, raw)?;
        }
        map.serialize_entry(field, text)?;
        map.end()
    });
    written.map_err(|_| unusable(reference, "cannot be written as JSON"))?;
    Ok(SecretBytes::new(std::mem::take(&mut *bytes)))
}

/// The request's body for a record that must still be at this version.
fn with_check(data: &SecretBytes, version: u64) -> SecretBytes {
    let end = format!(",\"options\":{{\"cas\":{version}}}}}");
    let start = b"{\"data\":";
    let mut bytes = Vec::with_capacity(start.len() + data.len() + end.len());
    bytes.extend_from_slice(start);
    bytes.extend_from_slice(data.expose());
    bytes.extend_from_slice(end.as_bytes());
    SecretBytes::new(bytes)
}

impl Writer for Vault {
    fn put<'a>(
        &'a self,
        reference: &'a Reference,
        value: &'a SecretBytes,
    ) -> BoxFuture<'a, Result<Version, BackendError>> {
        Box::pin(self.rewrite(reference, move |before| put(before, reference, value)))
    }

    fn remove<'a>(
        &'a self,
        reference: &'a Reference,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let what = reference.to_string();
            let place = self.removable(reference).await?;
            let Place { mount, path, .. } = &place;
            let reply = match (place.engine, version) {
                (Engine::Plain | Engine::Dynamic, Some(_)) => {
                    return Err(unusable(reference, "has no versions: leave --version out"));
                }
                (Engine::Plain | Engine::Dynamic, None) => {
                    self.fetch(&Reference {
                        field: None,
                        ..reference.clone()
                    })
                    .await?;
                    self.ask(|| Logical::delete(&reference.path)).await?
                }
                (Engine::Versioned, None) => {
                    // The server says yes also where there is nothing.
                    self.versions(&place, &what).await?;
                    let remove = || DeleteSecretMetadataRequest {
                        mount: mount.clone(),
                        path: path.clone(),
                    };
                    self.ask(remove).await?
                }
                (Engine::Versioned, Some(version)) => {
                    let version = self.exactly(&place, version, &what)?;
                    let kept = self.versions(&place, &what).await?.kept;
                    if !kept.contains_key(&version) {
                        return Err(BackendError::Absent(format!("{reference}@{version}")));
                    }
                    let destroy = || DestroySecretVersionsRequest {
                        mount: mount.clone(),
                        path: path.clone(),
                        versions: vec![version],
                    };
                    self.ask(destroy).await?
                }
            };
            reply.body(&what).map(drop)
        })
    }

    fn rollback<'a>(
        &'a self,
        reference: &'a Reference,
        to: &'a Version,
    ) -> BoxFuture<'a, Result<Version, BackendError>> {
        Box::pin(async move {
            let place = self.writable(reference).await?;
            if place.engine != Engine::Versioned {
                return Err(unusable(reference, "has no versions"));
            }
            let what = format!("{reference}@{to}");
            let number = self.exactly(&place, to, &what)?;
            let earlier = self.record(&place, Some(number), &what).await?;
            let field = reference.field.as_deref().filter(|field| *field != WHOLE);
            let value = match field {
                None => earlier.value,
                Some(field) => crate::backend::field(&earlier.value, field)?,
            };
            let part = Reference {
                field: field.map(str::to_owned),
                ..reference.clone()
            };
            self.rewrite(reference, |before| put(before, &part, &value))
                .await
        })
    }

    fn history<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<(Version, Timestamp)>, BackendError>> {
        Box::pin(async move {
            let place = self.place(&reference.path).await?;
            if place.engine != Engine::Versioned {
                return Err(unusable(reference, "has no versions: only KV 2 keeps them"));
            }
            let versions = self.versions(&place, &reference.to_string()).await?;
            let kept = versions.kept.into_iter().rev();
            let kept = kept.filter(|(version, _)| *version <= versions.current);
            Ok(kept
                .map(|(version, made)| {
                    let current = version == versions.current;
                    let name = self.0.lives.name(&place, version, made, current);
                    (name, made.unwrap_or_default())
                })
                .collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(old: Option<&str>, reference: &str, value: &str) -> Result<String, BackendError> {
        let bytes = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
        let before = Before {
            data: old.map(bytes),
            version: 1,
        };
        let put = put(&before, &reference.parse().unwrap(), &bytes(value))?;
        Ok(String::from_utf8(put.expose().to_vec()).unwrap())
    }

    #[test]
    fn a_field_is_changed_and_the_others_stay_as_they_are() {
        let old = Some(r#"{"user":"u","n":1.50,"password":"old"}"#);
        for (old, reference, value, expected) in [
            (
                old,
                "v:s/a#password",
                "n\"ew",
                r#"{"user":"u","n":1.50,"password":"n\"ew"}"#,
            ),
            (
                old,
                "v:s/a#more",
                "x",
                r#"{"user":"u","n":1.50,"password":"old","more":"x"}"#,
            ),
            (None, "v:s/a#only", "x", r#"{"only":"x"}"#),
            (None, "v:s/a#.", "x", r#"{"value":"x"}"#),
            (
                Some(r#"{"value":"a"}"#),
                "v:s/a#.",
                "{}",
                r#"{"value":"{}"}"#,
            ),
            (old, "v:s/a#.", r#"{"a":1}"#, r#"{"a":1}"#),
            (old, "v:s/a", r#"{"a":1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(
                after(old, reference, value).unwrap(),
                expected,
                "{reference}"
            );
        }
        for (old, reference, value) in [(old, "v:s/a", "canary"), (old, "v:s/a#.", "canary")] {
            let error = after(old, reference, value).unwrap_err();
            assert!(matches!(error, BackendError::Unusable(_)));
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }
}
