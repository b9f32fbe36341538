//! Exports: one age file with a tar archive in it, so that in an emergency `age -d … | tar x` is all it takes.
//!
//! The members are `secrets/SERVICE/NAME/VERSION`, each a value as it is, and at the end `index.json`, which says what
//! the names of files cannot. The audit log's key is not among them: it belongs to the log of the store that it is in.
//! One value is in memory at a time, both ways, and an export holds no lock: what is destroyed meanwhile is left out.
//!
//! An export comes from outside and is trusted with nothing: every name and size is checked, long names are read by us
//! (the `tar` crate would read as long a name as there are bytes), and nothing counts until the end of the age file has
//! been seen and every member is in the index. Then the store changes by one rename, as ever.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

use super::files::{self, Before, Staged, read_value};
use super::index::{Index, Record, Sealed, Secret};
use super::seal::{self, OpenWith, SealTo, Unreadable};
use super::storage::{File, Folder};
use super::{Progress, Recipient, Store, StoreError, fit_description};
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

const FORMAT: u64 = 1;
const INDEX: &str = "index.json";
const SECRETS: &str = "secrets";

/// No `index.json` is larger than this many bytes.
const MAX_CATALOGUE: usize = 1 << 26;

/// An export's versions have no larger numbers, or the store that takes them over could soon number no more.
const MAX_NUMBER: u64 = 1 << 53;

/// No name in an archive is longer than this many bytes; ours have 286 at most.
const MAX_NAME: usize = 1024;

/// What may follow the last member: tar fills up to a block, of 10 KiB as a rule.
const MAX_PADDING: u64 = 1 << 20;

/// The content of `index.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    format: u64,
    services: BTreeMap<Name, BTreeMap<Name, Listed>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    next: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    versions: Vec<Member>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    version: u64,
    size: usize,
    created: Timestamp,
}

/// The values of an export, sealed anew, until the catalogue claims them.
type Values = BTreeMap<(SecretPath, u64), Sealed>;

impl Store {
    /// Writes every version of every secret to `output`, as one age file.
    ///
    /// # Errors
    /// [`StoreError::Export`] if `output` fails; [`StoreError::Damaged`] and [`StoreError::Io`] if a value cannot be read.
    pub fn export(
        &self,
        output: &mut dyn Write,
        to: SealTo<'_>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let state = self.state();
        let total = state.index.records().count();
        let mut tar = Builder::new(seal::writer(to, output).map_err(StoreError::Export)?);
        let mut catalogue = Catalogue {
            format: FORMAT,
            services: BTreeMap::new(),
        };
        let mut done = 0_usize;
        for (path, secret) in state.index.secrets() {
            let mut versions = Vec::with_capacity(secret.versions.len());
            for record in &secret.versions {
                done = done.saturating_add(1);
                progress(done, Some(total));
                let value = match read_value(self.storage(), &state.identity, record) {
                    Ok(value) => value,
                    Err(error) if error.gone() && !self.names_still(&path, record) => continue,
                    Err(error) => return Err(error.of(self.storage(), &path, record)),
                };
                let name = format!("{SECRETS}/{path}/{}", record.version);
                append(&mut tar, &name, value.expose(), record.created)?;
                versions.push(Member {
                    version: record.version,
                    size: record.size,
                    created: record.created,
                });
            }
            let listed = Listed {
                next: secret.next,
                description: secret.description.clone(),
                versions,
            };
            let service = catalogue.services.entry(path.service).or_default();
            service.insert(path.name, listed);
        }
        let text = serde_json::to_vec_pretty(&catalogue)
            .map_err(|error| StoreError::Export(error.into()))?;
        append(&mut tar, INDEX, &text, self.0.clock.timestamp())?;
        tar.into_inner()
            .and_then(age::stream::StreamWriter::finish)
            .and_then(|output| output.flush())
            .map_err(StoreError::Export)
    }

    /// Takes over what an export holds. A store that has secrets is refused unless they are to be replaced; then they are
    /// destroyed, but the numbers of their versions are not used again.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`]; [`StoreError::NeedsPassphrase`]; [`StoreError::Archive`] if it is not an export, not
    /// whole, or cannot be opened `with` this; [`StoreError::Io`]. The store is then as it was.
    pub fn restore(
        &self,
        input: &mut dyn Read,
        with: OpenWith<'_>,
        replace: bool,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let refused = || !replace && !self.is_empty();
        if refused() {
            return Err(StoreError::NotEmpty(self.path()));
        }
        // However long the input takes, nobody waits for it: the lock is taken when all of it is here.
        let recipients = self.recipients();
        let mut staged = self.stage();
        let (catalogue, values) = {
            let mut opened = seal::reader(with, input).map_err(unreadable)?;
            read(&mut opened, &mut staged, &recipients, progress)?
        };
        let _changing = self.changing();
        let state = self.state();
        if refused() {
            return Err(StoreError::NotEmpty(self.path()));
        }
        if state.index.recipients != recipients {
            let reason = "the store was rekeyed in the meantime: try again";
            return Err(StoreError::Archive(reason.into()));
        }
        let old: Vec<_> = state.index.records().map(|record| record.file).collect();
        let index = merge(&state.index, catalogue, values)?;
        self.switch(index, state.identity.clone(), staged, Before::Keep)?;
        for file in old {
            files::remove(self.storage(), File::Value(file))?;
        }
        files::sync(self.storage(), Folder::Values)
    }

    fn names_still(&self, path: &SecretPath, record: &Record) -> bool {
        let now = self.state();
        now.index.record(path, Some(&record.version())).is_ok()
    }
}

fn append<W: Write>(
    tar: &mut Builder<W>,
    name: &str,
    bytes: &[u8],
    modified: Timestamp,
) -> Result<(), StoreError> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(modified.as_second()).unwrap_or_default());
    header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    tar.append_data(&mut header, name, bytes)
        .map_err(StoreError::Export)
}

/// Reads the archive to its end and seals each value into a file of its own.
fn read(
    opened: &mut impl Read,
    staged: &mut Staged<'_>,
    recipients: &[Recipient],
    progress: Progress<'_>,
) -> Result<(Catalogue, Values), StoreError> {
    let mut catalogue = None;
    let mut values = Values::new();
    let mut archive = tar::Archive::new(&mut *opened);
    let mut long_name = None;
    for entry in archive.entries().map_err(cut_short)?.raw(true) {
        let mut entry = entry.map_err(cut_short)?;
        let size = usize::try_from(entry.header().entry_size().map_err(cut_short)?)
            .map_err(|_| archive_error("a member is too large"))?;
        let kind = entry.header().entry_type();
        if kind == EntryType::GNULongName {
            if size > MAX_NAME {
                return Err(archive_error("a member's name is too long"));
            }
            let name = SecretBytes::read_from(&mut entry, MAX_NAME).map_err(cut_short)?;
            long_name = Some(name.expose().to_vec());
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        if kind != EntryType::Regular {
            return Err(archive_error("a member is not a regular file"));
        }
        let name = std::str::from_utf8(name.strip_suffix(b"\0").unwrap_or(&name))
            .map_err(|_| archive_error("a member's name is not text"))?;
        if name == INDEX {
            if size > MAX_CATALOGUE || catalogue.is_some() {
                return Err(archive_error(
                    "its index.json is too large, or there are two",
                ));
            }
            let text = SecretBytes::read_from(&mut entry, size).map_err(cut_short)?;
            catalogue = Some(parse(&text)?);
            continue;
        }
        let key = member(name).ok_or_else(|| archive_error("a member's name is not ours"))?;
        if size > MAX_VALUE {
            return Err(StoreError::TooLarge(key.0));
        }
        let value = SecretBytes::read_from(&mut entry, size).map_err(cut_short)?;
        if value.len() != size {
            return Err(archive_error("it is cut short"));
        }
        let sealed = staged.add(recipients, &value)?;
        if values.insert(key, sealed).is_some() {
            return Err(archive_error("it holds a version twice"));
        }
        progress(values.len(), None);
    }
    // Only the end of the age file proves that all of it was there.
    let rest = io::copy(&mut opened.take(MAX_PADDING + 1), &mut io::sink()).map_err(cut_short)?;
    if rest > MAX_PADDING {
        return Err(archive_error("something follows its end"));
    }
    let catalogue = catalogue.ok_or_else(|| archive_error("it has no index.json"))?;
    Ok((catalogue, values))
}

/// `secrets/SERVICE/NAME/VERSION`, and nothing else.
fn member(name: &str) -> Option<(SecretPath, u64)> {
    let rest = name.strip_prefix(SECRETS)?.strip_prefix('/')?;
    let (path, number) = rest.rsplit_once('/')?;
    let version: u64 = number.parse().ok()?;
    (version > 0 && version.to_string() == number).then_some((path.parse().ok()?, version))
}

fn parse(text: &SecretBytes) -> Result<Catalogue, StoreError> {
    let catalogue: Catalogue = serde_json::from_slice(text.expose())
        .map_err(|_| archive_error("its index.json is not one of ours"))?;
    if catalogue.format != FORMAT {
        return Err(archive_error("another version of secretfs made it"));
    }
    Ok(catalogue)
}

/// The index after the restore: the numbers of the one before, the secrets of the export.
fn merge(before: &Index, catalogue: Catalogue, mut values: Values) -> Result<Index, StoreError> {
    let mut index = before.clone();
    let secrets = index.services.values_mut().flat_map(BTreeMap::values_mut);
    for secret in secrets.map(Arc::make_mut) {
        secret.versions.clear();
        secret.description = None;
    }
    for (service, secrets) in catalogue.services {
        for (name, listed) in secrets {
            let path = SecretPath {
                service: service.clone(),
                name,
            };
            if !fit_description(listed.description.as_deref().unwrap_or_default()) {
                return Err(StoreError::Description(path));
            }
            if listed.next > MAX_NUMBER {
                return Err(archive_error("the number of a version is too large"));
            }
            let mut versions = Vec::with_capacity(listed.versions.len());
            for member in listed.versions {
                let sealed = values
                    .remove(&(path.clone(), member.version))
                    .filter(|sealed| sealed.size == member.size)
                    .ok_or_else(|| archive_error("its index.json names a value that it lacks"))?;
                versions.push(sealed.record(member.version, member.created));
            }
            let secret: &mut Secret = index.entry(&path);
            secret.next = secret.next.max(listed.next);
            secret.versions = versions;
            secret.description = listed.description;
        }
    }
    if !values.is_empty() {
        return Err(archive_error(
            "it holds a value that its index.json does not name",
        ));
    }
    index.check().map_err(archive_error)?;
    Ok(index)
}

fn archive_error(reason: &str) -> StoreError {
    StoreError::Archive(format!("{reason}: use another export"))
}

/// The reader's own words may quote what it read.
fn cut_short(_: io::Error) -> StoreError {
    archive_error("it is damaged or cut short")
}

fn unreadable(error: Unreadable) -> StoreError {
    match error {
        Unreadable::NeedsPassphrase => StoreError::NeedsPassphrase,
        Unreadable::WrongKey => StoreError::Archive(
            "it is sealed to another identity: add the key that it was made for as a line to the identity file, and try again".into(),
        ),
        Unreadable::WrongPassphrase => {
            StoreError::Archive("this is not its passphrase: try again".into())
        }
        Unreadable::WorkFactor(found) => StoreError::Archive(format!(
            "its scrypt work factor {found} is above {}: seal it again with `age -p`",
            seal::MAX_WORK_FACTOR
        )),
        Unreadable::Damaged => archive_error("it is no age file, or damaged"),
        Unreadable::Plugin(reason) => StoreError::Archive(reason),
    }
}
