//! What the lines of the ledger say.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backend::{Reference, Version};
use crate::caller::Caller;
use crate::config::Reads;
use crate::fs::inodes::Hidden;
use crate::fs::node::View;
use crate::fs::{Fh, Ino};
use crate::secret::{Name, SecretPath};

/// Something that the next server has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) enum Line {
    Inode(InodeLine),
    Generation(GenerationLine),
    File(FileLine),
    Folder(FolderLine),
    Change(ChangeLine),
}

/// Numbers that can be changed without writing a line anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Number {
    /// Of an inode: how many look-ups the kernel holds.
    Lookups,
    /// Of a secret's inode: one more than the size that the kernel was told, or 0.
    Told,
    /// Of an open file or folder: the request that it is the answer to; 0 as long as the kernel cannot have heard of it. Of a
    /// change of a name: likewise, the request to make it.
    Given,
    /// Of an open file: 1 if it was taken away.
    Taken,
    /// Of an open file: who polls it, or 0.
    Waiter,
    /// Of a change of a name: the inode that loses it, or 0.
    Loses,
    /// Likewise the inode that gets it.
    Gets,
}

/// An inode, with [`Number::Lookups`] and [`Number::Told`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct InodeLine {
    pub(in crate::fs) ino: Ino,
    pub(in crate::fs) what: What,
    pub(in crate::fs) facts: Facts,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(in crate::fs) enum What {
    Service(Name),
    Hidden(Name, Hidden),
    Secret(SecretPath, View),
}

/// What changes of a secret's inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(in crate::fs) struct Facts {
    /// How often they have changed: of two lines of an inode the one with more is true.
    pub(in crate::fs) turn: u64,
    pub(in crate::fs) size: u64,
    /// The number of the generation that it was made for, or showed first.
    pub(in crate::fs) first: Option<u64>,
    /// The number of the one that it showed last.
    pub(in crate::fs) shown: Option<u64>,
    /// Its name leads to it.
    pub(in crate::fs) named: bool,
    pub(in crate::fs) barred: bool,
}

/// A generation, as an inode shows it or has it open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct GenerationLine {
    pub(in crate::fs) ino: Ino,
    pub(in crate::fs) number: u64,
    pub(in crate::fs) version: Version,
    #[serde(with = "in_full")]
    pub(in crate::fs) reference: Reference,
    pub(in crate::fs) description: Option<String>,
    pub(in crate::fs) modified: Timestamp,
}

/// An open file, with [`Number::Given`], [`Number::Taken`] and [`Number::Waiter`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct FileLine {
    pub(in crate::fs) fh: Fh,
    pub(in crate::fs) ino: Ino,
    /// The generation's.
    pub(in crate::fs) number: u64,
    /// That of its value in the sealed memory.
    pub(in crate::fs) sealed: u64,
    pub(in crate::fs) reads: Reads,
    /// Its reads go through the page cache.
    pub(in crate::fs) paged: bool,
    pub(in crate::fs) superseding: bool,
    pub(in crate::fs) opener: Caller,
}

/// An open folder, with [`Number::Given`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct FolderLine {
    pub(in crate::fs) fh: Fh,
    pub(in crate::fs) ino: Ino,
}

/// A change of a name that the kernel was asked for, with [`Number::Given`], [`Number::Loses`] and [`Number::Gets`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fs) struct ChangeLine {
    pub(in crate::fs) path: SecretPath,
}

impl InodeLine {
    /// True if a secret's name leads to it.
    pub(super) fn is_current(&self) -> bool {
        matches!(self.what, What::Secret(_, View::Current)) && self.facts.named
    }
}

impl Line {
    /// As it is written.
    pub(super) fn text(&self) -> Vec<u8> {
        // This cannot fail; and what says nothing would not be believed.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// What was written, if it is one line and nothing else.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let (line, rest) = postcard::take_from_bytes(text).ok()?;
        rest.is_empty().then_some(line)
    }
}

impl Number {
    /// So many a line can have.
    pub(super) const MOST: usize = 3;
    /// The highest that can be written.
    pub(in crate::fs) const HIGHEST: u64 = (1 << 48) - 1;

    pub(super) fn index(self) -> usize {
        match self {
            Self::Lookups | Self::Given => 0,
            Self::Told | Self::Taken | Self::Loses => 1,
            Self::Waiter | Self::Gets => 2,
        }
    }
}

/// A request as it is written down: not 0, and short enough.
pub(in crate::fs) fn mark(request: u64) -> u64 {
    request % Number::HIGHEST + 1
}

/// A reference as it may be written says nothing of who is signed in.
mod in_full {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::backend::Reference;

    pub(super) fn serialize<S: Serializer>(
        reference: &Reference,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let backend = reference.backend.as_str();
        (backend, reference.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Reference, D::Error> {
        let (backend, reference) = <(String, String)>::deserialize(deserializer)?;
        let mut reference: Reference = reference.parse().map_err(D::Error::custom)?;
        if let Some((_, service)) = backend.split_once('@') {
            let service = service.parse().map_err(D::Error::custom)?;
            reference.backend = reference.backend.of_service(&service);
        }
        Ok(reference)
    }
}
