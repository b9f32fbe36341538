//! A backend in memory that fails, dawdles and counts as it is told. Unit tests and the tests beside this folder share
//! it.

#![allow(
    unreachable_pub,
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "it is part of tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use secretfs::backend::{Backend, BackendError, Fetched, Hints, Lease, Reference, Version};
use secretfs::secret::{Name, SecretBytes};
use tokio::sync::oneshot;

/// How it answers.
#[allow(dead_code, reason = "each test uses its part")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weather {
    /// As it should.
    #[default]
    Fine,
    /// "No."
    Refusing,
    /// It cannot be reached.
    Down,
    /// Never.
    Silent,
    /// With something that cannot be used.
    Garbled,
    /// With a panic.
    Panicking,
}

/// What it says when it is asked for a version.
#[allow(dead_code, reason = "each test uses its part")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Word {
    /// The version.
    #[default]
    Plain,
    /// "No": what is said of a value is not for us.
    Refused,
    /// That only reading tells.
    Nothing,
}

#[derive(Debug, Default)]
pub struct Faulty {
    /// Whether it claims to announce its changes.
    pub announces: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Kept>,
    /// The last version of each place, also of what was removed: no version is given twice.
    last: BTreeMap<String, u64>,
    weather: Weather,
    /// Places where each read makes another value, under a lease like this one.
    leased: BTreeMap<String, Lease>,
    /// How long the leases that were given still last, as far as renewals go.
    leases: BTreeMap<String, Duration>,
    given: u64,
    renewals: usize,
    revoked: Vec<String>,
    reads: usize,
    lists: usize,
    /// The places that were asked for their version.
    polled: Vec<String>,
    word: Word,
    /// Places that do not tell their version, whatever the weather.
    mute: BTreeSet<String>,
    every: Option<Duration>,
    hints: Option<Hints>,
    /// Answers are made when they are asked for, and given when they are let go.
    holding: bool,
    held: Vec<Option<oneshot::Sender<()>>>,
}

impl State {
    /// Another value, where each read makes one. None is made in a storm.
    fn make(&mut self, path: &str) -> Option<Fetched> {
        let mut lease = self.leased.get(path)?.clone();
        if self.weather == Weather::Fine {
            self.given += 1;
        }
        let number = self.given;
        if let Some(id) = &mut lease.id {
            *id = format!("l{number}");
            self.leases.insert(id.clone(), Duration::MAX);
        }
        Some(Fetched {
            value: SecretBytes::new(
                format!(r#"{{"user":"u{number}","pass":"p{number}"}}"#).into_bytes(),
            ),
            version: Version::new(format!("made-{number}")),
            modified: None,
            description: None,
            lease: Some(lease),
        })
    }
}

/// A secret's versions, which are ordered by their numbers.
#[derive(Debug, Default)]
struct Kept {
    versions: BTreeMap<u64, Vec<u8>>,
    current: u64,
    description: Option<String>,
}

impl Kept {
    fn put(&mut self, version: u64, bytes: &[u8]) {
        self.versions.insert(version, bytes.to_vec());
        self.current = version;
    }

    fn fetched(&self, version: u64) -> Option<Fetched> {
        Some(Fetched {
            value: SecretBytes::new(self.versions.get(&version)?.clone()),
            version: Version::new(version.to_string()),
            modified: None,
            description: self.description.clone(),
            lease: None,
        })
    }

    fn read(&self, version: Option<&Version>) -> Option<Fetched> {
        self.fetched(match version {
            None => self.current,
            Some(version) => version.as_str().parse().ok()?,
        })
    }

    fn before(&self, version: &Version) -> Option<Fetched> {
        let version: u64 = version.as_str().parse().ok()?;
        let (before, _) = self.versions.range(..version).next_back()?;
        self.fetched(*before)
    }
}

#[allow(dead_code, reason = "each test uses its part")]
impl Faulty {
    pub fn new(values: &[(&str, &str)]) -> Self {
        let faulty = Self::default();
        for (path, value) in values {
            faulty.put(path, value);
        }
        faulty
    }

    pub fn announcing(values: &[(&str, &str)]) -> Self {
        Self {
            announces: true,
            ..Self::new(values)
        }
    }

    /// A new version.
    pub fn put(&self, path: &str, value: impl AsRef<[u8]>) {
        let mut state = self.state();
        let last = state.last.entry(path.to_owned()).or_default();
        *last += 1;
        let version = *last;
        let kept = state.values.entry(path.to_owned()).or_default();
        kept.put(version, value.as_ref());
    }

    /// Forgets all but the last versions of a secret.
    pub fn keep_last(&self, path: &str, count: usize) {
        if let Some(kept) = self.state().values.get_mut(path) {
            while kept.versions.len() > count {
                kept.versions.pop_first();
            }
        }
    }

    /// A version of this number, as after a rollback or a restore.
    pub fn put_version(&self, path: &str, value: impl AsRef<[u8]>, version: u64) {
        let mut state = self.state();
        let kept = state.values.entry(path.to_owned()).or_default();
        kept.put(version, value.as_ref());
    }

    /// Destroys one version. If it was the current one, the newest that is left is.
    pub fn remove_version(&self, path: &str, version: u64) {
        let mut state = self.state();
        let kept = state.values.get_mut(path).expect("a secret");
        kept.versions.remove(&version).expect("a version");
        match kept.versions.last_key_value() {
            Some((last, _)) if kept.current == version => kept.current = *last,
            Some(_) => {}
            None => drop(state.values.remove(path)),
        }
    }

    /// From now on each read of this place makes another value, `{"user":"u<n>","pass":"p<n>"}`, under a lease `l<n>`.
    pub fn lease(&self, path: &str, seconds: u64, renewable: bool) {
        let lease = Lease {
            id: Some("l".to_owned()),
            duration: Duration::from_secs(seconds),
            renewable,
        };
        self.state().leased.insert(path.to_owned(), lease);
    }

    /// The same, for values that cannot be revoked either.
    pub fn issue(&self, path: &str, seconds: u64) {
        let lease = Lease {
            id: None,
            duration: Duration::from_secs(seconds),
            renewable: false,
        };
        self.state().leased.insert(path.to_owned(), lease);
    }

    /// From now on this lease is renewed for no longer than that, or not at all.
    pub fn limit(&self, lease: &str, seconds: Option<u64>) {
        let mut state = self.state();
        match seconds {
            Some(seconds) => state
                .leases
                .insert(lease.to_owned(), Duration::from_secs(seconds)),
            None => state.leases.remove(lease),
        };
    }

    /// How many values were made.
    pub fn made(&self) -> u64 {
        self.state().given
    }

    /// How often leases were to be renewed.
    pub fn renewals(&self) -> usize {
        self.state().renewals
    }

    /// The leases that were revoked.
    pub fn revoked(&self) -> Vec<String> {
        self.state().revoked.clone()
    }

    pub fn describe(&self, path: &str, text: &str) {
        if let Some(value) = self.state().values.get_mut(path) {
            value.description = Some(text.to_owned());
        }
    }

    pub fn remove(&self, path: &str) {
        self.state().values.remove(path);
    }

    pub fn weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// How often a value was asked for.
    pub fn reads(&self) -> usize {
        self.state().reads
    }

    /// How often names were asked for.
    pub fn lists(&self) -> usize {
        self.state().lists
    }

    /// How often a version was asked for.
    pub fn polls(&self) -> usize {
        self.state().polled.len()
    }

    /// The places that were asked for their version, since the last time.
    pub fn polled(&self) -> Vec<String> {
        std::mem::take(&mut self.state().polled)
    }

    /// How it is to be polled, from the next start on.
    pub fn poll_every(&self, every: Duration) {
        self.state().every = Some(every);
    }

    /// From now on it says this of versions.
    pub fn word(&self, word: Word) {
        self.state().word = word;
    }

    /// Whether this place cannot be reached for its version.
    pub fn mute(&self, path: &str, mute: bool) {
        let mut state = self.state();
        match mute {
            true => drop(state.mute.insert(path.to_owned())),
            false => drop(state.mute.remove(path)),
        }
    }

    /// The version that a place has.
    pub fn newest(&self, path: &str) -> Option<Version> {
        let state = self.state();
        let current = state.values.get(path)?.current;
        Some(Version::new(current.to_string()))
    }

    /// Where it tells of changes, once somebody listens.
    pub fn hints(&self) -> Hints {
        self.state().hints.clone().expect("somebody who listens")
    }

    /// From now on answers wait until they are let go.
    pub fn hold(&self) {
        self.state().holding = true;
    }

    /// New answers are given at once again.
    pub fn stop_holding(&self) {
        self.state().holding = false;
    }

    /// How many answers were held so far.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// Gives the answer that was held as number `index`.
    pub fn let_go(&self, index: usize) {
        let held = self.state().held[index].take();
        let _ = held.expect("an answer that is held").send(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|error| error.into_inner())
    }

    fn storm(weather: Weather) -> Result<(), BackendError> {
        match weather {
            Weather::Fine | Weather::Silent => Ok(()),
            Weather::Refusing => Err(BackendError::Refused("test".to_owned())),
            Weather::Down => Err(BackendError::Unreachable("test".to_owned())),
            Weather::Garbled => Err(BackendError::Unusable("test".to_owned())),
            Weather::Panicking => panic!("as told"),
        }
    }

    /// Answers what was decided when it was asked, when it is due.
    fn answer<'a, T: Send + 'a>(
        &self,
        answer: Result<T, BackendError>,
    ) -> BoxFuture<'a, Result<T, BackendError>> {
        let mut state = self.state();
        let weather = state.weather;
        let held = state.holding.then(|| {
            let (let_go, held) = oneshot::channel();
            state.held.push(Some(let_go));
            held
        });
        Box::pin(async move {
            if let Some(held) = held {
                let _ = held.await;
            }
            if weather == Weather::Silent {
                std::future::pending::<()>().await;
            }
            Self::storm(weather)?;
            answer
        })
    }
}

impl Backend for Faulty {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn announces_changes(&self) -> bool {
        self.announces
    }

    fn poll(&self) -> Option<Duration> {
        self.state().every
    }

    fn listen(&self, hints: Hints) -> Option<BoxFuture<'_, ()>> {
        self.state().hints = Some(hints);
        Some(Box::pin(std::future::pending()))
    }

    fn read<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        let found = {
            let mut state = self.state();
            state.reads += 1;
            state.make(&reference.path).or_else(|| {
                let kept = state.values.get(&reference.path);
                kept.and_then(|kept| kept.read(reference.version.as_ref()))
            })
        };
        self.answer(found.ok_or_else(|| BackendError::Absent(reference.to_string())))
    }

    fn previous<'a>(
        &'a self,
        reference: &'a Reference,
        current: &'a Version,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        let found = {
            let mut state = self.state();
            state.reads += 1;
            let kept = state.values.get(&reference.path);
            let kept = kept.filter(|_| reference.version.is_none());
            kept.and_then(|kept| kept.before(current))
        };
        self.answer(found.ok_or_else(|| BackendError::Absent(reference.to_string())))
    }

    fn version<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Option<Version>, BackendError>> {
        let (found, word, mute) = {
            let mut state = self.state();
            state.polled.push(reference.path.clone());
            let dynamic = state.leased.contains_key(&reference.path);
            if dynamic {
                drop(state);
                return self.answer(Ok(None));
            }
            let kept = state.values.get(&reference.path);
            let found = kept.and_then(|kept| kept.read(reference.version.as_ref()));
            (found, state.word, state.mute.contains(&reference.path))
        };
        let absent = || BackendError::Absent(reference.to_string());
        self.answer(match word {
            _ if mute => Err(BackendError::Unreachable("mute".to_owned())),
            Word::Plain => found.map(|found| Some(found.version)).ok_or_else(absent),
            Word::Refused => Err(BackendError::Refused("metadata".to_owned())),
            Word::Nothing => Ok(None),
        })
    }

    fn renew<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Lease, BackendError>> {
        let renewed = {
            let mut state = self.state();
            state.renewals += 1;
            let left = lease.id.as_ref().and_then(|id| state.leases.get(id));
            left.map(|left| Lease {
                duration: lease.duration.min(*left),
                ..lease.clone()
            })
        };
        self.answer(renewed.ok_or_else(|| BackendError::Refused("it has ended".to_owned())))
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), BackendError>> {
        let weather = self.state().weather;
        if weather == Weather::Fine {
            self.state().revoked.extend(lease.id.clone());
        }
        self.answer(Ok(()))
    }

    fn list<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<Name>, BackendError>> {
        let names: Vec<Name> = {
            let mut state = self.state();
            state.lists += 1;
            let below = |path: &String| path.strip_prefix(folder)?.strip_prefix('/')?.parse().ok();
            state.values.keys().filter_map(below).collect()
        };
        self.answer(if names.is_empty() {
            Err(BackendError::Absent(folder.to_owned()))
        } else {
            Ok(names)
        })
    }

    fn folders(&self) -> BoxFuture<'_, Result<Vec<Name>, BackendError>> {
        let folders = {
            let mut state = self.state();
            state.lists += 1;
            let folder = |path: &String| path.split_once('/')?.0.parse().ok();
            state.values.keys().filter_map(folder).collect()
        };
        self.answer(Ok(folders))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.answer(Ok(()))
    }
}
