//! What is kept for a start without a network: `[offline]`.
//!
//! The file is what the cache would leave, sealed as the store is. It is written when that changes, after a moment in which
//! more may change; at once when something must not be in it any more.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use jiff::Timestamp;

use super::Wired;
use crate::backend::store::{Recipient, Store};
use crate::cache::legacy::{Gap, LeftList, LeftPlace, LeftRecord, Legacy};
use crate::cache::{BUDGET, Binding, Cache};
use crate::clock::Clock;
use crate::config::OfflineConfig;
use crate::control::answers::OfflineStatus;
use crate::fs::{Catalogue, Tree};
use crate::secret::{SealedMemory, SecretPath};

/// How long more changes are waited for.
const MOMENT: Duration = Duration::from_secs(1);
/// How much older than it is a value may be called in the file, so that a disk is not written to at each TTL.
const OLDER: Duration = Duration::from_secs(3600);
/// How long after a write that failed another one is tried.
const AGAIN: Duration = Duration::from_secs(30);
/// The largest file that is read: all values that a cache holds, and what is said about them.
const LIMIT: usize = 2 * BUDGET;

/// The file.
#[derive(Debug)]
pub(super) struct Offline {
    path: PathBuf,
    max_age: Duration,
    store: Store,
    memory: Arc<SealedMemory>,
    cache: Arc<Cache>,
    tree: Arc<Tree>,
    clock: Clock,
    /// Held while the file is written, so that what is written last is what is so.
    turn: Mutex<()>,
    /// Never held across that: `status` must not wait for a disk.
    written: Mutex<Option<Written>>,
    trouble: Mutex<Option<String>>,
}

/// What stands in the file.
#[derive(Debug)]
struct Written {
    content: Content,
    at: Instant,
    when: Timestamp,
}

/// All but the values and their ages.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    records: Vec<(LeftPlace, String, Vec<SecretPath>)>,
    lists: Vec<LeftList>,
    /// Who can open it.
    recipients: Vec<Recipient>,
}

impl Content {
    fn of(legacy: &Legacy, recipients: Vec<Recipient>) -> Self {
        let record = |(left, _): &(LeftRecord, _)| {
            (
                left.place.clone(),
                left.version.to_string(),
                left.shown_by.clone(),
            )
        };
        Self {
            records: legacy.records.iter().map(record).collect(),
            lists: legacy.lists.clone(),
            recipients,
        }
    }
}

impl Offline {
    pub(super) fn new(config: &OfflineConfig, store: Store, wired: &Wired) -> Self {
        Self {
            path: config.path.clone(),
            max_age: config.max_age,
            store,
            memory: Arc::clone(&wired.memory),
            cache: Arc::clone(&wired.cache),
            tree: Arc::clone(&wired.tree),
            clock: wired.clock.clone(),
            turn: Mutex::default(),
            written: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Gives the cache what the file has. A file that is not believed is said to be so, and is of no use: there is nothing
    /// in it that a backend does not have.
    pub(super) fn load(&self) {
        let read = self.store.read_apart(&self.path, LIMIT);
        let parsed = match read {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                Legacy::parse(&bytes, &self.memory).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match parsed {
            Ok(mut legacy) => {
                self.sift(&mut legacy);
                tracing::info!(
                    records = legacy.records.len(),
                    "values are kept for backends that cannot be reached"
                );
                self.cache.inherit(legacy, Gap::Unknown);
            }
            Err(why) => tracing::error!(
                "offline.path: {}: {why}: nothing in it is used, and it is written anew when values are fetched",
                self.path.display()
            ),
        }
    }

    /// Keeps the file as it has to be, for as long as it is waited for.
    pub(super) async fn run(self: Arc<Self>) {
        let mut revision = self.cache.revision();
        loop {
            let seen = *revision.borrow_and_update();
            let offline = Arc::clone(&self);
            let written = tokio::task::spawn_blocking(move || offline.write()).await;
            let pause = match written {
                Ok(Ok(())) => MOMENT,
                Ok(Err(_)) | Err(_) => AGAIN,
            };
            let gone = revision.wait_for(|now| now.gone != seen.gone);
            let _ = tokio::time::timeout(pause, gone).await;
            if revision.wait_for(|now| *now != seen).await.is_err() {
                return;
            }
        }
    }

    /// Writes the file if something else should stand in it.
    ///
    /// # Errors
    /// Why it was not written. Then there is none, if that can be helped: something in it may have been taken away.
    pub(super) fn write(&self) -> Result<(), String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut legacy = self.cache.legacy(Gap::Unknown);
        self.sift(&mut legacy);
        legacy
            .records
            .sort_by(|(one, _), (other, _)| one.shown_by.cmp(&other.shown_by));
        let content = Content::of(&legacy, self.store.recipients());
        let now = self.clock.now();
        let older = OLDER.min(self.max_age / 20);
        let same = self.written().as_ref().is_some_and(|written| {
            written.content == content && now.saturating_duration_since(written.at) < older
        });
        if same {
            return Ok(());
        }
        let result = self.replace(&legacy);
        let trouble = result.as_ref().err().cloned();
        *self.written() = result.is_ok().then(|| Written {
            content,
            at: now,
            when: self.clock.timestamp(),
        });
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        result
    }

    /// Has nothing in the file that is not to be left any more, and has it sealed to whom the store is sealed.
    ///
    /// # Errors
    /// Why it was neither written nor removed.
    pub(super) fn renew(&self) -> Result<(), String> {
        match self.write() {
            Err(error) if fs::symlink_metadata(&self.path).is_ok() => Err(error),
            // What is not there holds nothing; `status` and `doctor` say that it was not written.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn replace(&self, legacy: &Legacy) -> Result<(), String> {
        let path = self.path.display();
        let removed =
            |error: io::Error| format!("offline.path: {path}: cannot be removed: {error}");
        if legacy.records.is_empty() && legacy.lists.is_empty() {
            return Store::remove_apart(&self.path).map_err(removed);
        }
        let written = self.store.write_apart(&self.path, |to| legacy.write(to));
        written.map_err(|error| {
            let error = format!("offline.path: {error}");
            tracing::error!("{error}");
            match Store::remove_apart(&self.path) {
                Ok(()) => error,
                Err(also) => format!("{error}; {}", removed(also)),
            }
        })
    }

    /// Drops what is too old, and what the config does not show any more.
    fn sift(&self, legacy: &mut Legacy) {
        let now = self.clock.timestamp();
        legacy.records.retain(|(left, _)| {
            let age = Duration::try_from(now.duration_since(left.fetched)).unwrap_or_default();
            age < self.max_age
        });
        keep_bound(legacy, &self.tree.catalogue(), |binding| {
            !binding.stale.is_zero()
        });
    }

    fn written(&self) -> MutexGuard<'_, Option<Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is, for `status`.
    pub(super) fn status(&self) -> OfflineStatus {
        let written = self.written();
        let secrets = written.as_ref().map(|written| {
            let records = written.content.records.iter();
            let secrets: BTreeSet<_> = records.flat_map(|(_, _, paths)| paths).collect();
            secrets.len()
        });
        OfflineStatus {
            path: self.path.display().to_string(),
            secrets: secrets.unwrap_or_default(),
            written: written.as_ref().map(|written| written.when),
            trouble: self
                .trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// Drops what the config does not show any more, and what it shows otherwise than by a binding that will `do`. Leases of that
/// are nobody's, and end with the daemon at the latest.
pub(super) fn keep_bound(
    legacy: &mut Legacy,
    catalogue: &Catalogue,
    will_do: impl Fn(&Binding) -> bool,
) {
    let Legacy {
        records,
        leases,
        lists,
        ..
    } = legacy;
    lists.retain(|list| {
        let (backend, folder) = list.of();
        catalogue.lists(backend, folder)
    });
    records.retain_mut(|(left, _)| {
        left.shown_by.retain(|path| {
            let binding = catalogue.binding(path);
            binding.is_some_and(|binding| {
                let mut references = binding.references.iter();
                will_do(&binding) && references.any(|one| LeftPlace::of(one) == left.place)
            })
        });
        if left.shown_by.is_empty() {
            leases.extend(left.lease.take());
        }
        !left.shown_by.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::config::accounts::System;
    use crate::secret::Kind;

    const CONFIG: &str = r#"
mount = "/m"
runtime = "/r"
state = "/s"
[backends.vault]
type = "vault"
address = "https://v.example:8200"
auth = { method = "approle", role_id = "r", secret_id = { file = "/f" } }
[services.app]
allow = [{ uid = 4001 }]
[services.app.secrets]
bound = "vault:db/creds/a#password"
elsewhere = "vault:db/creds/c#password"
"#;

    #[test]
    fn names_from_where_none_come_any_more_are_not_left() {
        let listed = CONFIG.replace("allow", "source = \"vault:secret/app/\"\nallow");
        let catalogue = |text: &str| {
            let config = Config::parse(text, Path::new("config.toml")).unwrap();
            Catalogue::new(&config, &System)
        };
        let (before, after) = (catalogue(&listed), catalogue(CONFIG));
        let folder = before.folder(&"app".parse().unwrap()).unwrap().folder;
        let list = json!({ "backend": "vault", "folder": folder, "names": ["x"] });
        let mut legacy = Legacy {
            lists: vec![serde_json::from_value(list).unwrap()],
            ..Legacy::default()
        };
        keep_bound(&mut legacy, &before, |_| true);
        assert_eq!(legacy.lists.len(), 1);
        keep_bound(&mut legacy, &after, |_| true);
        assert!(legacy.lists.is_empty());
    }

    #[test]
    fn a_lease_of_what_is_not_shown_any_more_is_left_to_be_ended() {
        let config = Config::parse(CONFIG, Path::new("config.toml")).unwrap();
        let catalogue = Catalogue::new(&config, &System);
        let memory = SealedMemory::new().unwrap();
        let record = |path: &str, secrets: &[&str]| {
            let place = json!({ "backend": "vault", "path": path });
            let left = json!({
                "place": place,
                "version": "1",
                "modified": "2026-11-25T10:00:00Z",
                "fetched": "2026-11-25T10:00:00Z",
                "shown_by": secrets,
                "lease": {
                    "place": place, "id": path, "full": { "secs": 60, "nanos": 0 },
                    "began": "2026-11-25T10:00:00Z", "duration": { "secs": 60, "nanos": 0 },
                    "renewable": true, "made_for": secrets, "ending": false,
                },
            });
            let value = memory.seal(Kind::Value, b"v").unwrap();
            (serde_json::from_value(left).unwrap(), Arc::new(value))
        };
        let mut legacy = Legacy {
            records: vec![
                record("db/creds/a", &["app/bound", "app/gone"]),
                record("db/creds/b", &["app/elsewhere"]),
            ],
            ..Legacy::default()
        };
        keep_bound(&mut legacy, &catalogue, |_| true);
        let [(left, _)] = &legacy.records[..] else {
            panic!("{:?}", legacy.records);
        };
        assert_eq!(left.shown_by, ["app/bound".parse().unwrap()]);
        assert_eq!(left.lease.iter().count(), 1);
        let [lease] = &legacy.leases[..] else {
            panic!("{:?}", legacy.leases);
        };
        assert_eq!(serde_json::to_value(lease).unwrap()["id"], "db/creds/b");
    }
}
