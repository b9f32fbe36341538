//! What a cache leaves to the one after it: rules 17 and 18.
//!
//! A server that ends, for good or not, has fetched values that its successor would have to fetch again, or could not, and
//! has leases that somebody has to tend. What it leaves is a list of records and of who was shown them; where it is written
//! down is for others to see to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::leases::Leased;
use super::names::Folder;
use super::records::{Content, Record};
use super::state::{Kept, State};
use super::{Binding, Cache};
use crate::backend::{Backend, Reference, Version};
use crate::clock::{Clock, Moment};
use crate::secret::{Name, Sealed, SecretPath};

mod document;

pub use document::Malformed;

/// All of it.
#[derive(Debug, Default)]
pub struct Legacy {
    /// Which server each backend was: [`Backend::whereabouts`].
    pub servers: BTreeMap<String, String>,
    /// The records that secrets show, and their values.
    pub records: Vec<(LeftRecord, Arc<Sealed>)>,
    /// Leases that no record is of any more: superseded, or to be revoked.
    pub leases: Vec<LeftLease>,
    /// Lists of names.
    pub lists: Vec<LeftList>,
}

/// A record, all but its value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftRecord {
    /// Where it was read.
    pub place: LeftPlace,
    /// The backend's word for it.
    pub version: Version,
    /// When it was made.
    pub modified: Timestamp,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was fetched, by the clock of the [`Gap`].
    pub fetched: Timestamp,
    /// The secrets that show it, or a part of it.
    pub shown_by: Vec<SecretPath>,
    /// How long it lives, if the backend made it for us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeftLease>,
    /// It was inherited after a gap of unknown length, and not asked for since (rule 18).
    #[serde(default, skip_serializing_if = "is_false")]
    pub old: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A place at a backend: a reference without its field.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftPlace {
    backend: String,
    path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    query: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<Version>,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftLease {
    pub(super) place: LeftPlace,
    pub(super) id: Option<String>,
    /// For how long it was given at first.
    pub(super) full: Duration,
    /// When it began or was renewed, by the clock of the [`Gap`], and for how long.
    pub(super) began: Timestamp,
    pub(super) duration: Duration,
    pub(super) renewable: bool,
    pub(super) made_for: Vec<SecretPath>,
    /// It is to be revoked.
    pub(super) ending: bool,
}

/// A list of names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftList {
    backend: String,
    folder: Option<String>,
    names: Vec<Name>,
}

impl LeftList {
    /// The backend, and its folder; without one the list is of its folders.
    #[must_use]
    pub fn of(&self) -> (&str, Option<&str>) {
        (&self.backend, self.folder.as_deref())
    }
}

/// What is known of the time between a server and the one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// It was short: the server died and was started again (rule 17).
    Moment,
    /// The machine may have been off (rule 18).
    Unknown,
}

impl Gap {
    /// The clocks by which it is told what was when: in a moment the time of day can be set.
    fn moment(self, clock: &Clock) -> Moment {
        match self {
            Self::Moment => clock.running(),
            Self::Unknown => clock.moment(),
        }
    }
}

/// How often what is left has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Revision {
    /// In any way.
    pub any: u64,
    /// Because something is not to be left any more.
    pub gone: u64,
}

impl LeftPlace {
    /// The place that a reference is about.
    #[must_use]
    pub fn of(place: &Reference) -> Self {
        Self {
            backend: place.backend.to_string(),
            path: place.path.clone(),
            query: place.query.clone(),
            version: place.version.clone(),
        }
    }

    /// The same of a backend that there is.
    fn reference(&self, backends: &[&Name]) -> Option<Reference> {
        let mut backends = backends.iter();
        let backend = backends.find(|name| name.as_str() == self.backend)?;
        Some(Reference {
            query: self.query.clone(),
            version: self.version.clone(),
            ..Reference::new(Name::clone(backend), self.path.clone())
        })
    }
}

impl Cache {
    /// What this cache would leave if it ended now: for a while of that kind. Nothing leased is worth keeping for long, and
    /// no value of a secret that is never shown stale.
    #[must_use]
    pub fn legacy(&self, gap: Gap) -> Legacy {
        let at = gap.moment(&self.clock);
        let state = self.state();
        let (shown, leases) = (state.shown_records(), state.leases.all());
        // Who announces changes is here, and is asked anew.
        let elsewhere = |name: &Name| {
            let backend = self.backends.get(name);
            backend.is_some_and(|backend| !backend.announces_changes())
        };
        let lists = state.left_lists(elsewhere);
        drop(state);
        let mut of_records = HashSet::new();
        let mut left = |ShownRecord { record, shown_by }: ShownRecord| {
            let content = record.content.as_ref().ok()?;
            let lease = record.lease.as_ref();
            of_records.extend(lease.map(Arc::as_ptr));
            if lease.is_some() && gap == Gap::Unknown {
                return None;
            }
            let shown_by = shown_by.into_iter();
            let shown_by = shown_by.filter(|(_, lasting)| gap == Gap::Moment || *lasting);
            let mut shown_by: Vec<_> = shown_by.map(|(path, _)| path).collect();
            shown_by.sort_unstable();
            let left = LeftRecord {
                place: LeftPlace::of(&record.key),
                version: content.version.clone(),
                modified: content.modified,
                description: content.description.clone(),
                fetched: at.wall(record.fetched),
                lease: lease.map(|lease| lease.left(at, false)),
                old: record.share == 0,
                shown_by,
            };
            (!left.shown_by.is_empty()).then(|| (left, Arc::clone(&content.value)))
        };
        let records = shown.into_iter().filter_map(&mut left).collect();
        let leases = leases.into_iter().filter(|(lease, ending)| {
            gap == Gap::Moment && (*ending || !of_records.contains(&Arc::as_ptr(lease)))
        });
        let leases = leases.map(|(lease, ending)| lease.left(at, ending));
        Legacy {
            servers: self.servers(),
            records,
            leases: leases.collect(),
            lists,
        }
    }

    /// Since when the value that stands in for `path` is older than it should be: since its TTL was over, or its lease was to
    /// be replaced. `None` if nothing is kept for it.
    #[must_use]
    pub fn stale_since(&self, path: &SecretPath) -> Option<Timestamp> {
        let (at, ttl) = (self.clock.moment(), self.times().ttl);
        let state = self.state();
        let kept = state.values.peek(path)?;
        let since = match &kept.record.lease {
            Some(lease) => lease.replacement(),
            None => kept.fetched + kept.record.ttl(ttl),
        };
        Some(at.wall(since))
    }

    /// Says when [`Cache::legacy`] would be another one.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.state().revision.subscribe()
    }

    /// Which server each backend is.
    #[must_use]
    pub fn servers(&self) -> BTreeMap<String, String> {
        let server = |(name, backend): (&Name, &Arc<dyn Backend>)| {
            (name.to_string(), backend.whereabouts().to_owned())
        };
        self.backends.iter().map(server).collect()
    }

    /// Takes up what another cache left, to show it to the secrets that it was shown to. What is here already is newer, and
    /// what is of another server is none of ours.
    pub fn inherit(&self, legacy: Legacy, gap: Gap) {
        let at = gap.moment(&self.clock);
        let ours = self.servers();
        let same = |name: &&Name| {
            let theirs = legacy.servers.get(name.as_str());
            theirs.is_some() && theirs == ours.get(name.as_str())
        };
        let backends: Vec<&Name> = self.backends.keys().filter(same).collect();
        let place = |left: &LeftPlace| left.reference(&backends);
        let mut state = self.state();
        for (left, value) in legacy.records {
            let Some(key) = place(&left.place).map(Arc::new) else {
                continue;
            };
            let lease = left.lease.as_ref();
            let lease = lease.map(|lease| Leased::inherited(&key, lease, at));
            if lease.as_ref().is_some_and(|lease| !lease.is_alive(at.now)) {
                continue;
            }
            let record = Arc::new(Record {
                began: 0,
                fetched: at.instant(left.fetched),
                forever: false,
                share: match gap {
                    Gap::Moment if !left.old => self.share(&key),
                    Gap::Moment | Gap::Unknown => 0,
                },
                content: Ok(Content {
                    value,
                    version: left.version,
                    modified: left.modified,
                    description: left.description,
                }),
                lease,
                key,
            });
            state.inherit(record, left.shown_by);
        }
        for left in legacy.leases {
            let Some(key) = place(&left.place).map(Arc::new) else {
                continue;
            };
            let lease = Leased::inherited(&key, &left, at);
            match left.ending {
                true => state.leases.revoke(lease),
                false => state.leases.add(lease),
            }
        }
        for left in legacy.lists {
            let mut backends = backends.iter();
            if let Some(backend) = backends.find(|name| name.as_str() == left.backend) {
                let folder = Folder {
                    backend: Name::clone(backend),
                    folder: left.folder,
                };
                state.inherit_list(folder, left.names, at.now);
            }
        }
        drop(state);
        self.tending.notify_one();
    }
}

impl Cache {
    /// Shows a secret what was inherited for it, if it is still bound to that place and nothing newer came from there.
    pub(super) fn claim(&self, path: &SecretPath, binding: &Arc<Binding>) {
        let Some(inherited) = self.state().inherited.0.get(path).cloned() else {
            return;
        };
        let places = |(_, one): &(usize, &Reference)| super::records::key(one) == *inherited.key;
        let found = binding.references.iter().enumerate().find(places);
        let cut = found.and_then(|(_, one)| self.cut(one, Arc::clone(&inherited)).ok());
        let ttl = self.times().ttl;
        let mut state = self.state();
        // It may have been taken away or overtaken meanwhile; who was quicker has shown it.
        let ours = state.inherited.0.get(path);
        if !ours.is_some_and(|ours| Arc::ptr_eq(ours, &inherited)) {
            return;
        }
        let (Some(cut), Some(record)) = (cut, state.records.same(&inherited)) else {
            return state.drop_value(path);
        };
        let cut = cut.on_same(Arc::clone(&record));
        let number = state.next_number();
        let number = state.shown_number(path, &cut.version, &cut.reference, number, true);
        // Whether there is something higher up by now nobody knows (rule 8): it only stands in.
        let older = match found {
            Some((0, _)) => Duration::ZERO,
            Some(_) | None => record.ttl(ttl),
        };
        let kept = Kept {
            generation: cut.generation(number),
            binding: Arc::clone(binding),
            fetched: record.fetched.checked_sub(older).unwrap_or(record.fetched),
            asked: self.clock.now(),
            record,
            forever: false,
        };
        state.keep(path, kept);
    }
}

/// What was inherited and has not been asked for yet: which record each secret was shown. They are users of it, as if they
/// were shown it still.
#[derive(Debug, Default)]
pub(super) struct Inherited(HashMap<SecretPath, Arc<Record>>);

impl Inherited {
    /// The secrets that there is something for, and from where.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&SecretPath, &Reference)> {
        self.0.iter().map(|(path, record)| (path, &*record.key))
    }

    /// Takes out what there is for this secret.
    pub(super) fn take(&mut self, path: &SecretPath) -> Option<Arc<Record>> {
        self.0.remove(path)
    }

    /// Whether what there is for this secret is older than a version that was found at the same place.
    pub(super) fn is_before(
        &self,
        path: &SecretPath,
        reference: &Reference,
        (version, modified): (&Version, Timestamp),
    ) -> bool {
        let record = self.0.get(path);
        let record = record.filter(|record| *record.key == super::records::key(reference));
        let content = record.and_then(|record| record.content.as_ref().ok());
        content.is_some_and(|found| found.version != *version && found.modified < modified)
    }

    /// Whether there is something for this secret.
    pub(super) fn is_for(&self, path: &SecretPath) -> bool {
        !self.0.is_empty() && self.0.contains_key(path)
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> HashMap<SecretPath, Arc<Record>> {
        std::mem::take(&mut self.0)
    }
}

impl State {
    /// Something else would be left from now on.
    pub(super) fn changed(&self) {
        self.revision.send_modify(|revision| revision.any += 1);
    }

    /// Something must not be left any more.
    pub(super) fn gone(&self) {
        self.revision.send_modify(|revision| {
            revision.any += 1;
            revision.gone += 1;
        });
    }

    fn left_lists(&self, of: impl Fn(&Name) -> bool) -> Vec<LeftList> {
        let left = self.lists.iter();
        let left = left.filter(|(folder, _)| of(&folder.backend));
        let left = left.map(|(folder, listing)| LeftList {
            backend: folder.backend.to_string(),
            folder: folder.folder.clone(),
            names: listing.names.to_vec(),
        });
        left.collect()
    }

    fn inherit(&mut self, record: Arc<Record>, shown_by: Vec<SecretPath>) {
        if !self.records.inherit(&record) {
            return;
        }
        if let Some(lease) = &record.lease {
            self.leases.add(Arc::clone(lease));
        }
        for path in shown_by {
            // What it is shown already is newer.
            if !self.values.contains(&path) && !self.inherited.is_for(&path) {
                self.records.used(&record, &path);
                self.inherited.0.insert(path, Arc::clone(&record));
            }
        }
    }

    /// The records that secrets show, or showed before, and those secrets, each with whether it is ever shown stale. Not those
    /// whose changes are announced, which may be many: readers wait for the lock.
    fn shown_records(&self) -> Vec<ShownRecord> {
        let mut shown: HashMap<Arc<Reference>, ShownRecord> = HashMap::new();
        let kept = self.values.iter();
        let kept = kept.filter(|(_, kept)| !kept.record.forever);
        let kept = kept.map(|(path, kept)| {
            let lasting = !kept.binding.stale.is_zero();
            (path, &kept.record, lasting)
        });
        let inherited = self.inherited.0.iter();
        let inherited = inherited.map(|(path, record)| (path, record, true));
        for (path, record, lasting) in kept.chain(inherited) {
            let one = shown
                .entry(Arc::clone(&record.key))
                .or_insert_with(|| ShownRecord {
                    record: Arc::clone(record),
                    shown_by: Vec::new(),
                });
            // They say the same (rule 11), one of them as of later.
            if one.record.fetched < record.fetched {
                one.record = Arc::clone(record);
            }
            one.shown_by.push((path.clone(), lasting));
        }
        shown.into_values().collect()
    }
}

struct ShownRecord {
    record: Arc<Record>,
    shown_by: Vec<(SecretPath, bool)>,
}
