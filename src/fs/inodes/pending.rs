//! Changes of names that are under way.

use std::sync::Arc;

use tokio::sync::watch;

use super::Ino;
use crate::fs::ledger::lines::{ChangeLine, Line, Number, mark};
use crate::fs::ledger::{Entry, Ledger};
use crate::fs::node::SecretNode;
use crate::secret::SecretPath;

/// A change of a name that the kernel is asked for.
#[derive(Debug, Clone)]
pub(in crate::fs) struct Pending {
    /// Which one it is of all.
    pub(in crate::fs) number: u64,
    /// The inode that gets the name; `None` if the name goes.
    pub(in crate::fs) replacement: Option<Arc<SecretNode>>,
    /// Ends when the kernel has been asked for it.
    pub(in crate::fs) made: watch::Receiver<()>,
    /// So that the next server makes the change if this one dies in the middle of it.
    pub(in crate::fs) line: Option<Arc<Entry>>,
    /// The kernel has looked the replacement up.
    pub(super) seen: bool,
}

/// What an inode is called until it is renamed: `.next-7` in the change of this number.
pub(super) const NEXT: &str = ".next-";

impl Pending {
    /// The name that the replacement has until then.
    pub(in crate::fs) fn hidden(&self) -> Option<String> {
        let named = self.replacement.is_some();
        named.then(|| format!("{NEXT}{}", self.number))
    }

    /// Says in the ledger that this name is about to change.
    pub(super) fn line(path: &SecretPath, ledger: &Arc<Ledger>) -> Option<Arc<Entry>> {
        let line = Line::Change(ChangeLine { path: path.clone() });
        ledger.write(&line, [0; 3]).map(Arc::new)
    }

    /// From here on it is made, whoever is killed: the next server [goes on](super::Inodes::go_on_changing), and the kernel gets this
    /// request answered.
    pub(super) fn write_down(&self, before: Option<Ino>, request: u64) {
        let Some(line) = &self.line else {
            return;
        };
        let after = self.replacement.as_ref().map(|node| node.ino);
        for (which, ino) in [(Number::Loses, before), (Number::Gets, after)] {
            line.set(which, ino.map_or(0, |ino| ino.0));
        }
        line.set(Number::Given, mark(request));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::fs::Negotiated;
    use crate::fs::inodes::Inodes;
    use crate::sys::SharedMemory;

    const REQUEST: u64 = 8;

    /// What a server has that goes on with this memory. Who is killed takes nothing out of it.
    fn inodes(memory: &OwnedFd) -> Inodes {
        let (ledger, left) = Ledger::open(memory.try_clone().unwrap()).unwrap();
        let (minor, flags) = (45, 0);
        ledger.agreed(Negotiated { minor, flags });
        let inodes = Inodes::new(ledger);
        if let Some(left) = left {
            inodes.restore(left.inodes.into_values(), left.next);
            // And then the next one has made it, too.
            left.changes
                .iter()
                .for_each(|change| inodes.go_on_changing(change));
        }
        inodes
    }

    /// How far a server comes that the kernel asks for a change.
    const NOT_AT_ALL: u32 = 0;
    const WRITTEN_DOWN: u32 = 1;
    const LOST: u32 = 2;
    const MADE: u32 = 3;

    /// The inode that has the name in the next server and in the one after it, the two between which it was to change, and
    /// whether the kernel's request is to be answered.
    fn killed(replace: bool, how_far: u32) -> ([Option<Ino>; 2], [Option<Ino>; 2], bool) {
        let memory = SharedMemory::create().unwrap();
        let server = inodes(&memory);
        let path: SecretPath = "app/x".parse().unwrap();
        let before = server.secret(&path);
        server.looked_up(before.ino);
        let (pending, done) = server.begin(&path, replace);
        let after = pending.hidden().map(|hidden| {
            let after = server.replacement(&path.service, &hidden).unwrap();
            server.looked_up(after.ino);
            after.ino
        });
        if how_far == MADE {
            assert!(server.commit(&path, Some(REQUEST), |_| true));
        } else if how_far >= WRITTEN_DOWN {
            pending.write_down(Some(before.ino), REQUEST);
        }
        if how_far == LOST {
            before.supersede();
        }
        let both = [Some(before.ino), after];
        std::mem::forget((server, before, pending, done));
        let next = inodes(&memory);
        let made = next.has_made(REQUEST);
        let current = |server: &Inodes| server.current(&path).map(|node| node.ino);
        let first = current(&next);
        std::mem::forget(next);
        ([first, current(&inodes(&memory))], both, made)
    }

    #[test]
    fn a_change_that_was_begun_to_be_made_is_made_by_the_next_server_and_answered() {
        for replace in [true, false] {
            let (has, [before, _], made) = killed(replace, NOT_AT_ALL);
            assert_eq!((has, made), ([before; 2], false), "{replace}");
            for how_far in [WRITTEN_DOWN, LOST, MADE] {
                let (has, [_, after], made) = killed(replace, how_far);
                assert_eq!((has, made), ([after; 2], true), "{replace} {how_far}");
            }
        }
    }
}
