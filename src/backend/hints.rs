//! Hints: somebody's word that a record has changed. Never a value.
//!
//! A hint is believed only so far that the record is asked for again, so a wrong one costs a request and shows nothing to
//! anybody. Telling never waits. Of more than can be kept none is kept: it is noted that some were missed, and then
//! everything that is in use is looked at once.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use crate::backend::Version;
use crate::secret::Name;

/// How many hints of one backend may wait.
const BACKLOG: usize = 1024;

/// The longest path, in bytes, that can be one of ours: so a flood takes no more memory than this times [`BACKLOG`].
const MAX_PATH: usize = 4096;

/// Something may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// In this backend, by its name in the config.
    pub backend: Name,
    /// At this path, as references write it (decoded).
    pub path: String,
    /// Which version is current now; `None` if that was not said, or there is none any more.
    pub version: Option<Version>,
}

/// Where hints are told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hints(Arc<HashMap<Name, Line>>);

#[derive(Debug)]
struct Line {
    hints: mpsc::Sender<Hint>,
    missed: Arc<Notify>,
}

/// The other end, for one backend.
#[derive(Debug)]
pub struct Ear {
    hints: mpsc::Receiver<Hint>,
    missed: Arc<Notify>,
}

impl Hints {
    /// For these backends, and an ear for each.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = Name>) -> (Self, HashMap<Name, Ear>) {
        let (mut lines, mut ears) = (HashMap::new(), HashMap::new());
        for backend in backends {
            let (sender, hints) = mpsc::channel(BACKLOG);
            let missed = Arc::new(Notify::new());
            let line = Line {
                hints: sender,
                missed: Arc::clone(&missed),
            };
            lines.insert(backend.clone(), line);
            ears.insert(backend, Ear { hints, missed });
        }
        (Self(Arc::new(lines)), ears)
    }

    /// Tells of a change. Never waits; a hint about what nobody asks for is ignored.
    pub fn tell(&self, hint: Hint) {
        let Some(line) = self.0.get(&hint.backend) else {
            return;
        };
        if hint.path.len() <= MAX_PATH && line.hints.try_send(hint).is_err() {
            line.missed.notify_one();
        }
    }

    /// The backends about which something can be told.
    pub fn backends(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// Hints of this backend may have been missed, as after a connection was lost: all that is in use is looked at now.
    pub fn resync(&self, backend: &Name) {
        if let Some(line) = self.0.get(backend) {
            line.missed.notify_one();
        }
    }
}

impl Ear {
    /// The next hint. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Heard {
        // What was missed comes first: a flood must not put it off for ever.
        tokio::select! {
            biased;
            () = self.missed.notified() => Heard::Missed,
            hint = self.hints.recv() => match hint {
                Some(hint) => Heard::Hint(hint),
                // Nobody can tell anything any more.
                None => std::future::pending().await,
            },
        }
    }
}

/// What an [`Ear`] hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// This.
    Hint(Hint),
    /// Some were missed.
    Missed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(path: &str) -> Hint {
        Hint {
            backend: "a".parse().unwrap(),
            path: path.to_owned(),
            version: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_bounded_and_what_was_missed_is_known() {
        let a: Name = "a".parse().unwrap();
        let (hints, mut ears) = Hints::new([a.clone()]);
        let ear = ears.get_mut(&a).unwrap();
        hints.tell(hint("x"));
        assert_eq!(ear.next().await, Heard::Hint(hint("x")));
        for _ in 0..100 * BACKLOG {
            hints.tell(hint("y"));
        }
        assert_eq!(ear.next().await, Heard::Missed);
        for _ in 0..BACKLOG {
            assert_eq!(ear.next().await, Heard::Hint(hint("y")));
        }
        hints.resync(&a);
        hints.resync(&a);
        assert_eq!(ear.next().await, Heard::Missed);
        // Of others, and of what can be nobody's path, nothing is heard.
        let stranger: Name = "b".parse().unwrap();
        hints.resync(&stranger);
        hints.tell(Hint {
            backend: stranger,
            ..hint("x")
        });
        hints.tell(hint(&"x".repeat(MAX_PATH + 1)));
        let second = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(second, ear.next()).await.is_err());
    }
}
