//! What the next server finds when this one dies: the memory that the keeper holds has the values, sealed, and beside them a
//! note of what they are, which leases there are, and who we have signed in as.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zeroize::Zeroizing;

use super::Wired;
use super::offline::keep_bound;
use crate::cache::Cache;
use crate::cache::legacy::{Gap, LeftLease, LeftList, LeftRecord, Legacy};
use crate::clock::Clock;
use crate::fs::{Catalogue, Values};
use crate::secret::{Kind, Sealed, SealedMemory, Survivors};

/// How long more changes are waited for: what a server does in its last moment is lost.
const MOMENT: Duration = Duration::from_millis(50);
/// How much longer than it took to write a note none is written, unless something must not stand in it any more.
const SHARE: u32 = 20;
/// How often it is looked whether we have signed in anew.
const LOOK: Duration = Duration::from_secs(1);

/// The note.
#[derive(Debug)]
pub(super) struct Handover {
    memory: Arc<SealedMemory>,
    cache: Arc<Cache>,
    clock: Clock,
    left: Mutex<Left>,
}

/// What has outlived a server of what it had sealed.
#[derive(Debug)]
pub(super) struct Survived {
    note: Option<Sealed>,
    values: Values,
}

impl Survived {
    /// The newest note, and the values.
    pub(super) fn of(survivors: Survivors) -> Self {
        let (notes, values): (Vec<_>, Vec<_>) = survivors
            .into_iter()
            .partition(|(kind, _)| *kind == Kind::Note);
        let newest = notes.into_iter().max_by_key(|(_, note)| note.number());
        let values = values.into_iter();
        let values = values.map(|(_, value)| (value.number(), Arc::new(value)));
        Self {
            note: newest.map(|(_, note)| note),
            values: values.collect(),
        }
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }
}

/// What stands in the memory beside the values.
#[derive(Debug, Default)]
struct Left {
    note: Option<Sealed>,
    /// Who we have signed in as, by the backends' names, and the number by which that is known.
    sessions: BTreeMap<String, (u64, Sealed)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Note {
    servers: BTreeMap<String, String>,
    /// Each with the number of its value.
    records: Vec<(LeftRecord, u64)>,
    leases: Vec<LeftLease>,
    lists: Vec<LeftList>,
    sessions: BTreeMap<String, u64>,
}

impl Handover {
    pub(super) fn new(wired: &Wired) -> Self {
        Self {
            memory: Arc::clone(&wired.memory),
            cache: Arc::clone(&wired.cache),
            clock: wired.clock.clone(),
            left: Mutex::default(),
        }
    }

    /// Goes on where the server before this one ended, with what it left.
    pub(super) fn take_up(&self, survived: &mut Survived, catalogue: &Catalogue) {
        let note = survived.note.take().and_then(|note| note.open().ok());
        let note = note.and_then(|note| serde_json::from_slice::<Note>(note.expose()).ok());
        let Some(note) = note else {
            return;
        };
        let values = &survived.values;
        let ours = self.cache.servers();
        for (name, backend) in self.cache.backends() {
            let same = ours.get(name.as_str()) == note.servers.get(name.as_str());
            let session = note.sessions.get(name.as_str());
            let session = session.and_then(|number| values.get(number)?.open().ok());
            if let Some(session) = session.filter(|_| same) {
                backend.resume(&session);
            }
        }
        let record = |(left, number): (LeftRecord, u64)| {
            let value = values.get(&number)?;
            Some((left, Arc::clone(value)))
        };
        let mut legacy = Legacy {
            servers: note.servers,
            records: note.records.into_iter().filter_map(record).collect(),
            leases: note.leases,
            lists: note.lists,
        };
        keep_bound(&mut legacy, catalogue, |_| true);
        tracing::info!(
            records = legacy.records.len(),
            "going on with what the server before had fetched"
        );
        self.cache.inherit(legacy, Gap::Moment);
        // The note went when it was read, so that nothing in it ends one server after the other.
        self.sign();
        self.write();
    }

    /// Keeps the note as it has to be, for as long as it is waited for.
    pub(super) async fn run(self: Arc<Self>) {
        let mut revision = self.cache.revision();
        let mut written = None;
        loop {
            let seen = *revision.borrow_and_update();
            let began = self.clock.now();
            if self.sign() || written != Some(seen) {
                self.write();
                written = Some(seen);
            }
            let took = self.clock.now().saturating_duration_since(began);
            tokio::time::sleep(took).await;
            // What must not be left any more is in the note until it is written.
            let gone = revision.wait_for(|now| now.gone != seen.gone);
            let _ = tokio::time::timeout(MOMENT.max(took * SHARE), gone).await;
            let changed = tokio::time::timeout(LOOK, revision.wait_for(|now| *now != seen)).await;
            if let Ok(Err(_)) = changed {
                return;
            }
        }
    }

    /// Takes down who we have signed in as. True if that is another.
    fn sign(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut another = false;
        for (name, backend) in self.cache.backends() {
            let known = left.sessions.get(name.as_str());
            let session = backend.session(known.map_or(0, |(number, _)| *number));
            let Some((number, session)) = session else {
                continue;
            };
            // Without room the next server signs in.
            if let Ok(sealed) = self.memory.seal(Kind::Value, session.expose()) {
                left.sessions.insert(name.to_string(), (number, sealed));
                another = true;
            }
        }
        another
    }

    pub(super) fn write(&self) {
        let Legacy {
            servers,
            records,
            leases,
            lists,
        } = self.cache.legacy(Gap::Moment);
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |(record, value): &(LeftRecord, Arc<Sealed>)| (record.clone(), value.number());
        let sessions = left.sessions.iter();
        let note = Note {
            servers,
            records: records.iter().map(number).collect(),
            leases,
            lists,
            sessions: sessions
                .map(|(name, (_, sealed))| (name.clone(), sealed.number()))
                .collect(),
        };
        let text = serde_json::to_vec(&note).map(Zeroizing::new);
        let text = text.unwrap_or_default();
        // The one before goes when there is another. Without room for it the next server begins anew.
        left.note = self.memory.seal(Kind::Note, &text).ok();
    }

    /// Leaves nothing: this server ends in order, and what it had has been given back.
    pub(super) fn forget(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Left::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::*;
    use crate::backend::Backend;
    use crate::backend::tests::faulty::Faulty;
    use crate::cache::{Binding, Times};
    use crate::config::Config;
    use crate::config::accounts::System;
    use crate::secret::{Name, SecretPath};
    use crate::sys::{SecretMemory, SharedMemory};

    impl Handover {
        /// How many records the note names; `None` without one.
        fn noted(&self) -> Option<usize> {
            let left = self.left.lock().unwrap();
            let note = left.note.as_ref()?.open().unwrap();
            let note: Note = serde_json::from_slice(note.expose()).unwrap();
            Some(note.records.len())
        }
    }

    const CONFIG: &str = r#"
mount = "/m"
runtime = "/r"
state = "/s"
[backends.a]
type = "vault"
address = "https://v.example:8200"
auth = { method = "token", file = "/f" }
[services.s]
allow = [{ uid = 4001 }]
[services.s.secrets]
x = "a:s/x"
"#;

    /// Of a server over this memory.
    fn handover(memory: Arc<SealedMemory>, clock: &Clock) -> Arc<Handover> {
        let backend: Arc<dyn Backend> = Arc::new(Faulty::new(&[("s/x", "one")]));
        let name: Name = "a".parse().unwrap();
        let times = Times {
            ttl: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
        };
        let backends = HashMap::from([(name, backend)]);
        let cache = Cache::new(backends, times, 1, Arc::clone(&memory), clock.clone());
        Arc::new(Handover {
            memory,
            cache: Arc::new(cache),
            clock: clock.clone(),
            left: Mutex::default(),
        })
    }

    fn x() -> (SecretPath, Arc<Binding>) {
        let binding = Binding {
            references: vec!["a:s/x".parse().unwrap()],
            stale: Duration::ZERO,
        };
        ("s/x".parse().unwrap(), Arc::new(binding))
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_not_be_left_is_out_of_the_note_at_once() {
        let handover = handover(SealedMemory::new().unwrap(), &Clock::manual());
        tokio::spawn(Arc::clone(&handover).run());
        let (path, binding) = x();
        let value = handover.cache.get(&path, &binding);
        value.wait().await.unwrap();
        tokio::time::sleep(2 * MOMENT).await;
        assert_eq!(handover.noted(), Some(1));
        let again = handover.cache.refresh(&path, &binding);
        again.wait().await.unwrap();
        tokio::time::sleep(MOMENT / 10).await;
        handover.cache.forget(|secret| *secret == path);
        tokio::time::sleep(MOMENT / 10).await;
        assert_eq!(handover.noted(), Some(0));
    }

    #[tokio::test]
    async fn who_dies_right_after_it_took_up_what_was_left_leaves_it_too() {
        let clock = Clock::manual();
        let config = Config::parse(CONFIG, Path::new("config.toml")).unwrap();
        let catalogue = Catalogue::new(&config, &System);
        let (memory, key) = (
            SharedMemory::create().unwrap(),
            SecretMemory::new().unwrap(),
        );
        let server = || {
            let [memory, key] = [&memory, key.descriptor()].map(|fd| fd.try_clone().unwrap());
            let (memory, left) = SealedMemory::take_over(memory, key).unwrap();
            let handover = handover(memory, &clock);
            handover.take_up(&mut Survived::of(left), &catalogue);
            handover
        };
        let first = server();
        let (path, binding) = x();
        first.cache.get(&path, &binding).wait().await.unwrap();
        first.write();
        // Who is killed wipes nothing.
        std::mem::forget(first);
        for _ in 0..2 {
            let next = server();
            assert_eq!(next.noted(), Some(1));
            std::mem::forget(next);
        }
    }
}
