//! The identity: the age keys that open the store, and the file that holds them.
//!
//! The file is what `age-keygen` writes: a key a line, and comments. It may hold several keys, which is how `rekey`
//! survives a crash: for a moment the old and the new one stand side by side. It may be sealed as a whole with a
//! passphrase (`age -p`), or to an age plugin: then it holds the plugin's `AGE-PLUGIN-…` line and below it, armored,
//! what is sealed to it. Either way the keys themselves are X25519 and are opened once.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::{ExposeSecret, SecretString};
use jiff::Timestamp;
use nix::fcntl::OFlag;

use super::seal::{self, MAX_WORK_FACTOR, OpenWith, Recipient, SealTo, Unreadable};
use crate::secret::SecretBytes;
use crate::sys::Uid;

/// The systemd credential that holds the identity, where there is one.
const CREDENTIAL: &str = "secretfs-identity";

/// What stands there where there is none: systemd starts no unit that lacks a credential.
const NO_CREDENTIAL: &[u8] = b"none";

/// No identity file is larger than this many bytes.
const MAX_FILE: usize = 1 << 16;

const ARMOR: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const BINARY: &[u8] = b"age-encryption.org/";

/// The age keys that open a store. Cheap to clone; the keys are wiped with the last clone.
#[derive(Clone)]
pub struct Identity {
    keys: Arc<[age::x25519::Identity]>,
    protection: Protection,
}

/// How the file was protected that an [`Identity`] was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// By its permissions alone.
    Plain,
    /// By a passphrase.
    Passphrase,
    /// By an age plugin, as of a hardware key.
    Plugin,
}

impl Identity {
    /// A new key.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            keys: Arc::new([age::x25519::Identity::generate()]),
            protection: Protection::Plain,
        }
    }

    /// Opens and reads the file at `path`: [`open`], then [`Identity::read`].
    ///
    /// # Errors
    /// Any [`IdentityError`].
    pub fn load(path: &Path, prompt: &Prompt) -> Result<Self, IdentityError> {
        Self::read(&mut open(path)?, path, prompt)
    }

    /// Reads an opened identity file from its start, whoever owns it: who opened it has judged it. `path` is what errors call it.
    ///
    /// # Errors
    /// Any [`IdentityError`]. Where the file is sealed, `prompt` is asked for its passphrase.
    pub fn read(file: &mut File, path: &Path, prompt: &Prompt) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io {
            file: path.to_owned(),
            source,
        };
        // The descriptor may be read again by another process that it is passed to. A pipe has no start to go to.
        if file.metadata().map_err(io)?.is_file() {
            file.rewind().map_err(io)?;
        }
        let text = SecretBytes::read_from(file, MAX_FILE).map_err(io)?;
        Self::parse(&text, path, prompt)
    }

    /// Reads the content of an identity file. `path` is what errors call it.
    ///
    /// # Errors
    /// Any [`IdentityError`]. Where the file is sealed, `prompt` is asked for its passphrase.
    pub fn parse(text: &SecretBytes, path: &Path, prompt: &Prompt) -> Result<Self, IdentityError> {
        let bytes = text.expose();
        if bytes.starts_with(BINARY) || bytes.trim_ascii_start().starts_with(ARMOR.as_bytes()) {
            let keys = open_with_passphrase(bytes.trim_ascii_start(), path, prompt)?;
            return Self::parse_lines(keys.expose(), path, Protection::Passphrase);
        }
        let armor = bytes
            .windows(ARMOR.len())
            .position(|window| window == ARMOR.as_bytes());
        match armor.and_then(|at| bytes.split_at_checked(at)) {
            Some((plugins, sealed)) => {
                let keys = open_with_plugin(plugins, sealed, path, prompt)?;
                Self::parse_lines(keys.expose(), path, Protection::Plugin)
            }
            None => Self::parse_lines(bytes, path, Protection::Plain),
        }
    }

    fn parse_lines(
        bytes: &[u8],
        path: &Path,
        protection: Protection,
    ) -> Result<Self, IdentityError> {
        let file = || path.to_owned();
        let mut keys = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if line.starts_with(b"AGE-PLUGIN-") {
                return Err(IdentityError::PluginAlone(file()));
            }
            let key = std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.parse().ok());
            keys.push(key.ok_or_else(|| IdentityError::Line {
                file: file(),
                line: number.saturating_add(1),
            })?);
        }
        if keys.is_empty() {
            return Err(IdentityError::Empty(file()));
        }
        Ok(Self {
            keys: keys.into(),
            protection,
        })
    }

    /// The keys of both, these first: what the identity file holds while a store is rekeyed.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            keys: self.keys.iter().chain(other.keys.iter()).cloned().collect(),
            protection: self.protection,
        }
    }

    /// The public half of each key.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        self.keys.iter().map(Recipient::of).collect()
    }

    /// How the file was protected that this was read from.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The content of an identity file with these keys in plain, as `age-keygen` writes it.
    #[must_use]
    pub fn to_text(&self, created: Timestamp) -> SecretBytes {
        const KEY: usize = 256;
        let mut text = Vec::with_capacity(self.keys.len().saturating_mul(KEY));
        for key in self.keys.iter() {
            let secret = key.to_string();
            for part in [
                &format!(
                    "# created: {created:.0}\n# public key: {}\n",
                    key.to_public()
                ),
                secret.expose_secret(),
                "\n",
            ] {
                text.extend_from_slice(part.as_bytes());
            }
        }
        SecretBytes::new(text)
    }

    /// The same, sealed with a passphrase: `age -d` and [`Identity::load`] ask for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the passphrase is empty or no text.
    pub fn to_sealed_text(
        &self,
        passphrase: &SecretBytes,
        created: Timestamp,
    ) -> io::Result<Vec<u8>> {
        if passphrase.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an empty passphrase protects nothing",
            ));
        }
        let armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = seal::writer(SealTo::Passphrase(passphrase), armored)?;
        writer.write_all(self.to_text(created).expose())?;
        writer.finish()?.finish()
    }

    pub(super) fn keys(&self) -> &[age::x25519::Identity] {
        &self.keys
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.recipients()).finish()
    }
}

/// Where the identity is: the systemd credential where there is one, else the configured file.
///
/// # Errors
/// [`IdentityError::Nowhere`] if there is neither.
pub fn locate(configured: Option<&Path>) -> Result<PathBuf, IdentityError> {
    credential()
        .or_else(|| configured.map(Path::to_owned))
        .ok_or(IdentityError::Nowhere)
}

/// Opens an identity file without reading it. It must be a regular file that only root or we can write and read; what
/// systemd gives as a credential is taken as it is.
///
/// # Errors
/// [`IdentityError::Missing`], [`IdentityError::NotAFile`], [`IdentityError::Owner`], [`IdentityError::Mode`], [`IdentityError::Io`].
pub fn open(path: &Path) -> Result<File, IdentityError> {
    let io = |source: io::Error| match source.kind() == io::ErrorKind::NotFound {
        true => IdentityError::Missing(path.to_owned()),
        false => IdentityError::Io {
            file: path.to_owned(),
            source,
        },
    };
    // Without O_NONBLOCK, a pipe in its place would let us wait for ever.
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(IdentityError::NotAFile(path.to_owned()));
    }
    // systemd gives credentials to a unit's user by an access list, which shows as a mode with a group in it.
    if credential().is_some_and(|credential| credential == path) {
        return Ok(file);
    }
    let owner = Uid(metadata.uid());
    if owner != Uid::ROOT && owner != Uid::effective() {
        return Err(IdentityError::Owner {
            file: path.to_owned(),
            owner,
        });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(IdentityError::Mode {
            file: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(file)
}

fn credential() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = Path::new(&folder).join(CREDENTIAL);
    let found = path.metadata().ok()?;
    let as_long = found.is_file() && usize::try_from(found.len()) == Ok(NO_CREDENTIAL.len());
    let is_none = as_long && std::fs::read(&path).is_ok_and(|text| text == NO_CREDENTIAL);
    (!is_none).then_some(path)
}

/// Whom to ask for a passphrase or a PIN.
#[derive(Clone)]
pub struct Prompt(Arc<Ask>);

type Ask = dyn Fn(&str) -> Option<SecretBytes> + Send + Sync;

impl Prompt {
    /// Asks `ask`, with the question as a text; `None` is no answer.
    pub fn new(ask: impl Fn(&str) -> Option<SecretBytes> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// There is nobody to ask.
    #[must_use]
    pub fn nobody() -> Self {
        Self::new(|_| None)
    }

    /// Whoever sits at the terminal, if there is one.
    #[must_use]
    pub fn terminal() -> Self {
        Self::new(|question| {
            let answer = rpassword::prompt_password(format!("{question}: ")).ok()?;
            Some(SecretBytes::new(answer.into_bytes()))
        })
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prompt")
    }
}

impl age::Callbacks for Prompt {
    fn display_message(&self, message: &str) {
        tracing::info!("{message}");
    }

    fn confirm(&self, _: &str, _: &str, _: Option<&str>) -> Option<bool> {
        None
    }

    fn request_public_string(&self, _: &str) -> Option<String> {
        None
    }

    fn request_passphrase(&self, question: &str) -> Option<SecretString> {
        seal::text(&(self.0)(question)?).ok()
    }
}

fn open_with_passphrase(
    sealed: &[u8],
    path: &Path,
    prompt: &Prompt,
) -> Result<SecretBytes, IdentityError> {
    let file = || path.to_owned();
    let decryptor = age::Decryptor::new(ArmoredReader::new(sealed))
        .map_err(|error| IdentityError::unreadable(path, seal::unreadable(&error)))?;
    if !decryptor.is_scrypt() {
        return Err(IdentityError::SealedToOther(file()));
    }
    let question = format!("Passphrase of {}", path.display());
    let passphrase = (prompt.0)(&question).ok_or_else(|| IdentityError::NobodyToAsk(file()))?;
    let with = OpenWith::Passphrase(&passphrase);
    seal::reader(with, ArmoredReader::new(sealed))
        .and_then(|mut keys| {
            SecretBytes::read_from(&mut keys, MAX_FILE).map_err(|_| Unreadable::Damaged)
        })
        .map_err(|error| IdentityError::unreadable(path, error))
}

fn open_with_plugin(
    plugins: &[u8],
    sealed: &[u8],
    path: &Path,
    prompt: &Prompt,
) -> Result<SecretBytes, IdentityError> {
    let unreadable = |error| IdentityError::unreadable(path, seal::unreadable(&error));
    let identities = age::IdentityFile::from_buffer(plugins)
        .map_err(|_| IdentityError::SealedToOther(path.to_owned()))?
        .with_callbacks(prompt.clone())
        .into_identities()
        .map_err(unreadable)?;
    let keys = identities.iter().map(|identity| {
        let identity: &dyn age::Identity = identity.as_ref();
        identity
    });
    let mut keys = age::Decryptor::new(ArmoredReader::new(sealed))
        .and_then(|decryptor| decryptor.decrypt(keys))
        .map_err(unreadable)?;
    SecretBytes::read_from(&mut keys, MAX_FILE)
        .map_err(|_| IdentityError::unreadable(path, Unreadable::Damaged))
}

/// Why an identity cannot be used. No text quotes what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The config names none, and systemd gives none.
    #[error(
        "no identity: set `identity = {{ file = \"…\" }}` of the backend, or give systemd the credential {CREDENTIAL}"
    )]
    Nowhere,
    /// There is no such file.
    #[error("{}: there is no identity: run `secretfs init`, or put it back from where you keep a copy", .0.display())]
    Missing(PathBuf),
    /// It is a folder, a pipe or a device.
    #[error("{}: the identity must be a regular file: correct `identity` in the config", .0.display())]
    NotAFile(PathBuf),
    /// It belongs to somebody who could read or change it.
    #[error("{}: the identity belongs to uid {owner}: chown it to root or to who runs secretfs", .file.display())]
    Owner {
        /// The file.
        file: PathBuf,
        /// Its owner.
        owner: Uid,
    },
    /// Others may read or write it.
    #[error("{file}: others may open the identity (mode {mode:04o}): chmod 0600 {file}", file = .file.display())]
    Mode {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It cannot be read.
    #[error("{}: cannot read the identity: {source}: check its path and its owner", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is neither a key nor a comment.
    #[error("{}: line {line} is no X25519 age key: it must read AGE-SECRET-KEY-1…, as `age-keygen` writes it", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// There is no key in it.
    #[error("{}: holds no key: put one there with `age-keygen`, or put back the copy", .0.display())]
    Empty(PathBuf),
    /// A plugin's identity that nothing is sealed to.
    #[error("{file}: holds only an age plugin's identity: add a key sealed to it: `age-keygen | age -r PLUGIN-RECIPIENT -a >> {file}`", file = .0.display())]
    PluginAlone(PathBuf),
    /// It is sealed, but not with a passphrase or to a plugin that it names.
    #[error("{}: sealed to keys that it does not name: seal it with `age -p`, or put the AGE-PLUGIN-… line above it", .0.display())]
    SealedToOther(PathBuf),
    /// It needs a passphrase, and there is no terminal.
    #[error("{}: sealed with a passphrase, and there is no terminal to ask at: start secretfs from one, or use a systemd credential", .0.display())]
    NobodyToAsk(PathBuf),
    /// Another passphrase.
    #[error("{}: this is not its passphrase: try again", .0.display())]
    WrongPassphrase(PathBuf),
    /// Opening it would take too long and too much memory.
    #[error("{}: its scrypt work factor {found} is above {MAX_WORK_FACTOR}: seal it again with `age -p`", .file.display())]
    WorkFactor {
        /// The file.
        file: PathBuf,
        /// Its work factor.
        found: u8,
    },
    /// Not as it was written.
    #[error("{}: damaged: put back the copy that you keep", .0.display())]
    Damaged(PathBuf),
    /// The plugin failed or is not there.
    #[error("{}: {reason}: install the plugin, or connect its key", .file.display())]
    Plugin {
        /// The file.
        file: PathBuf,
        /// In the plugin's words.
        reason: String,
    },
}

impl IdentityError {
    fn unreadable(path: &Path, error: Unreadable) -> Self {
        let file = path.to_owned();
        match error {
            Unreadable::WrongKey => Self::SealedToOther(file),
            Unreadable::NeedsPassphrase => Self::NobodyToAsk(file),
            Unreadable::WrongPassphrase => Self::WrongPassphrase(file),
            Unreadable::WorkFactor(found) => Self::WorkFactor { file, found },
            Unreadable::Damaged => Self::Damaged(file),
            Unreadable::Plugin(reason) => Self::Plugin { file, reason },
        }
    }
}
