//! What is mounted where: which engine answers for a path, found out from the server.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::reply;
use crate::backend::BackendError;
use crate::secret::SecretBytes;

/// How long it is taken for granted. An engine that is moved or upgraded is noticed after this long, or at the first
/// answer that does not fit.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// An engine that secrets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Engine {
    /// KV 2, with versions.
    Versioned,
    /// KV 1, or a cubbyhole.
    Plain,
    /// Any other: what it gives it makes, or computes.
    Dynamic,
}

/// A path, as an engine and what it calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) engine: Engine,
    /// Without the slash at its end.
    pub(super) mount: String,
    /// Below the mount, without a slash at its end.
    pub(super) path: String,
}

/// The mounts that were asked about.
#[derive(Debug, Default)]
pub(super) struct Mounts(Mutex<BTreeMap<String, (Engine, Instant)>>);

impl Mounts {
    /// The place of a path, if it is known. Of nested mounts the innermost counts, so a longer one that is not known yet
    /// goes unseen until the shorter one is forgotten.
    pub(super) fn find(&self, path: &str, now: Instant) -> Option<Place> {
        let mounts = self.mounts();
        let below = |(mount, (engine, since)): (&String, &(Engine, Instant))| {
            let young = now.saturating_duration_since(*since) < KNOWN_FOR;
            young.then(|| place(path, mount, *engine)).flatten()
        };
        mounts.iter().rev().find_map(below)
    }

    /// Takes what the server says of a path.
    ///
    /// # Errors
    /// [`BackendError::Unusable`]
    pub(super) fn learn(
        &self,
        path: &str,
        body: &SecretBytes,
        now: Instant,
    ) -> Result<Place, BackendError> {
        #[derive(Deserialize)]
        struct Mounted {
            path: String,
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            options: Option<BTreeMap<String, String>>,
        }
        let mounted: Mounted = reply::data(body, path)?;
        let version = mounted.options.unwrap_or_default().remove("version");
        let engine = match (mounted.kind.as_str(), version.as_deref()) {
            ("kv", Some("2")) => Engine::Versioned,
            ("kv" | "generic" | "cubbyhole", _) => Engine::Plain,
            _ => Engine::Dynamic,
        };
        let mut mount = mounted.path.trim_matches('/').to_owned();
        // A method to sign in with is called by its name alone.
        if path.starts_with("auth/") && !mount.starts_with("auth/") {
            mount.insert_str(0, "auth/");
        }
        let found = place(path, &mount, engine).ok_or_else(|| {
            BackendError::Unusable(format!("{path}: the server says it is below another path"))
        })?;
        self.mounts().insert(mount, (engine, now));
        Ok(found)
    }

    /// Forgets the mount of a place, because an answer did not fit.
    pub(super) fn forget(&self, place: &Place) {
        self.mounts().remove(&place.mount);
    }

    fn mounts(&self) -> MutexGuard<'_, BTreeMap<String, (Engine, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(path: &str, mount: &str, engine: Engine) -> Option<Place> {
    let below = path.strip_prefix(mount)?;
    let path = match below {
        "" => "",
        below => below.strip_prefix('/')?,
    };
    Some(Place {
        engine,
        mount: mount.to_owned(),
        path: path.trim_end_matches('/').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn said(path: &str, kind: &str, version: &str) -> SecretBytes {
        let options = if version.is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::json!({ "version": version })
        };
        let said =
            serde_json::json!({ "data": { "path": path, "type": kind, "options": options } });
        SecretBytes::new(said.to_string().into_bytes())
    }

    #[test]
    fn the_innermost_mount_counts_and_is_forgotten_in_time() {
        let (clock, mounts) = (Clock::manual(), Mounts::default());
        assert_eq!(mounts.find("kv/a/b", clock.now()), None);
        for (path, body, engine) in [
            ("kv/a", said("kv/", "kv", "2"), Engine::Versioned),
            ("kv/old/a", said("kv/old/", "kv", "1"), Engine::Plain),
            ("old/a", said("old/", "generic", ""), Engine::Plain),
            ("db/creds/x", said("db/", "database", ""), Engine::Dynamic),
            (
                "auth/token/create",
                said("token/", "token", ""),
                Engine::Dynamic,
            ),
        ] {
            let place = mounts.learn(path, &body, clock.now()).unwrap();
            assert_eq!(place.engine, engine, "{path}");
        }
        let place = mounts.find("kv/old/a/b/", clock.now()).unwrap();
        assert_eq!((&*place.mount, &*place.path), ("kv/old", "a/b"));
        let place = mounts.find("kv/older", clock.now()).unwrap();
        assert_eq!((&*place.mount, &*place.path), ("kv", "older"));
        mounts.forget(&place);
        assert_eq!(mounts.find("kv/older", clock.now()), None);
        clock.advance(KNOWN_FOR);
        assert_eq!(mounts.find("kv/old/a", clock.now()), None);
    }

    #[test]
    fn what_is_said_of_another_path_is_not_believed() {
        let body = said("other/", "kv", "2");
        let learnt = Mounts::default().learn("secret/a", &body, Clock::manual().now());
        assert!(matches!(learnt, Err(BackendError::Unusable(_))));
    }
}
