//! The tree that every contender shows: the same names, the same sizes.

/// A folder of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Two secrets, each read checked.
    Warm,
    /// The same two, read through the page cache.
    Paged,
    /// As many secrets as the run asks for.
    Many,
}

impl Service {
    pub(crate) const ALL: [Self; 3] = [Self::Warm, Self::Paged, Self::Many];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Paged => "paged",
            Self::Many => "many",
        }
    }

    /// Its secrets, by name, with their sizes in bytes.
    pub(crate) fn secrets(self, many: usize) -> Vec<(String, usize)> {
        match self {
            Self::Warm | Self::Paged => vec![(KILO.to_owned(), 1024), (SMALL.to_owned(), 64)],
            Self::Many => (0..many).map(|index| (numbered(index), 1024)).collect(),
        }
    }
}

/// The secret of 64 bytes.
pub(crate) const SMALL: &str = "small";
/// The secret of 1 KiB.
pub(crate) const KILO: &str = "kilo";

/// A name in [`Service::Many`].
pub(crate) fn numbered(index: usize) -> String {
    format!("secret-{index:05}")
}

/// A value.
pub(crate) fn value(size: usize) -> Vec<u8> {
    vec![b'v'; size]
}
