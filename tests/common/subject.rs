//! What the contract's suite needs of a backend that it is run over.

use std::sync::Arc;

use secretfs::backend::{Backend, Version};

/// A backend, and a hand in it that goes past it. All names are of one folder of this subject's own.
pub trait Subject: Send + Sync {
    fn backend(&self) -> &dyn Backend;

    fn can(&self) -> Can;

    /// Where the secret of this name is found: `b:folder/name`, and a field where only records are kept. More may be put
    /// behind it, as in `@3`.
    fn reference(&self, name: &str) -> String;

    /// What to list to see the names.
    fn folder(&self) -> String;

    /// Makes this the current value; false if it takes no such value.
    fn put(&self, name: &str, value: &[u8]) -> bool;

    /// Makes one version unreadable for good.
    fn destroy(&self, name: &str, version: &Version);

    /// Takes the whole secret away, as if it had never been.
    fn remove(&self, name: &str);

    /// The same place, by way of a backend that has a trouble; `None` where it cannot come about.
    fn in_trouble(&self, trouble: Trouble) -> Option<Arc<dyn Backend>>;
}

/// Where backends differ.
#[derive(Debug, Clone, Copy)]
pub struct Can {
    /// It keeps versions. Else the current value is all that there is, and only reading tells one from another.
    pub versions: bool,
    /// It takes any bytes. Else text alone, and bytes are for whoever writes to encode.
    pub bytes: bool,
    /// Without its newest version a secret has the one before as its value. Else it has none until one is put.
    pub falls_back: bool,
    /// The largest value that it takes and that may be shown: of a record its names and quotes count, too.
    pub largest: usize,
    /// Its folders may be services.
    pub folders: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// We have no right to anything.
    Refused,
    /// Nobody is there.
    Down,
    /// It says nothing.
    Silent,
}
