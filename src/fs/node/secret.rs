//! What the inodes of one secret have in common.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cache::Generation;
use crate::fs::types::Waiter;
use crate::fs::{Fh, Ino};
use crate::sys::Tid;

/// What all inodes of one secret share.
#[derive(Debug, Default)]
pub(in crate::fs) struct Secret {
    /// The number of the newest generation that anybody was given; 0 before.
    pub(super) newest: AtomicU64,
    /// Who polls a handle.
    waiters: Mutex<Vec<(Fh, Waiter)>>,
    /// Somebody has polled: most never do, and pay for it with one look at this.
    polled: AtomicBool,
    /// The generation that every open gets until the name has gone to a newer one's inode. Not for long.
    kept: Mutex<Option<Arc<Generation>>>,
    /// There is one: likewise.
    is_kept: AtomicBool,
    /// Whose open was sent away from which inode.
    sent_away: Mutex<HashMap<Tid, Sent>>,
    /// Somebody was: likewise.
    any_sent_away: AtomicBool,
}

/// Whence an open was sent away, and what was the newest generation then.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Sent {
    pub(in crate::fs) ino: Ino,
    pub(in crate::fs) newest: u64,
}

/// So many are remembered who were sent away. Most come back at once; but all threads of many programs may be on their way
/// at the same time, and who is not known when he comes back gets an error.
const SENT_AWAY: usize = 4096;

impl Secret {
    /// A generation of this number is known from now on. True if it takes the place of an older one.
    pub(in crate::fs) fn notice(&self, number: u64) -> bool {
        let before = self.newest.fetch_max(number, Ordering::SeqCst);
        before != 0 && before < number
    }

    /// True if a newer generation than this one is known.
    pub(in crate::fs) fn outdates(&self, number: u64) -> bool {
        self.newest.load(Ordering::SeqCst) > number
    }

    /// True if anybody was ever given a value.
    pub(in crate::fs) fn is_in_use(&self) -> bool {
        self.newest.load(Ordering::Acquire) != 0
    }

    /// Whoever polls this handle is to be woken by the next [`Secret::wake`].
    pub(in crate::fs) fn wait(&self, fh: Fh, waiter: Waiter) {
        let mut waiters = self.waiters();
        self.polled.store(true, Ordering::Release);
        waiters.retain(|(other, _)| *other != fh);
        waiters.push((fh, waiter));
    }

    /// The handle is closed.
    pub(in crate::fs) fn forget(&self, fh: Fh) {
        if self.polled.load(Ordering::Acquire) {
            self.waiters().retain(|(other, _)| *other != fh);
        }
    }

    /// Those who poll, to be woken.
    pub(in crate::fs) fn wake(&self) -> Vec<Waiter> {
        self.waiters().drain(..).map(|(_, waiter)| waiter).collect()
    }

    /// From now on every open gets this generation, until the next [`Secret::let_go`], so that the value changes in the
    /// moment in which the name does. Not if anybody has seen a newer one.
    pub(in crate::fs) fn keep(&self, generation: Arc<Generation>) {
        let number = generation.number;
        {
            let mut kept = self.kept();
            if kept.is_some() || self.outdates(number) {
                return;
            }
            *kept = Some(generation);
            self.is_kept.store(true, Ordering::SeqCst);
        }
        if self.outdates(number) {
            self.let_go();
        }
    }

    /// From now on every open gets what is current. False if that was so before.
    pub(in crate::fs) fn let_go(&self) -> bool {
        let was_kept = self.is_kept.swap(false, Ordering::AcqRel);
        if was_kept {
            let kept = self.kept().take();
            // Wiping the value, if this was its last holder, is not done under the lock.
            drop(kept);
        }
        was_kept
    }

    /// What every open gets for the moment.
    pub(in crate::fs) fn kept_for_now(&self) -> Option<Arc<Generation>> {
        if !self.is_kept.load(Ordering::SeqCst) {
            return None;
        }
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, Option<Arc<Generation>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open of this thread's is answered with ESTALE. The kernel comes again at once: who came by path, by way of the
    /// name; who came by the inode, a bind mount of it or `/proc/self/fd`, to the same inode.
    pub(super) fn send_away(&self, tid: Tid, from: Ino) {
        let newest = self.newest.load(Ordering::Acquire);
        let mut sent_away = self.sent_away();
        if sent_away.len() >= SENT_AWAY {
            // Who has not come back for so long does not come any more, but for a few.
            sent_away.clear();
        }
        sent_away.insert(tid, Sent { ino: from, newest });
        self.any_sent_away.store(true, Ordering::Release);
    }

    /// Whence this thread was sent away just now.
    pub(in crate::fs) fn came_back(&self, tid: Tid) -> Option<Sent> {
        if !self.any_sent_away.load(Ordering::Acquire) {
            return None;
        }
        let mut sent_away = self.sent_away();
        let sent = sent_away.remove(&tid)?;
        let more = !sent_away.is_empty();
        self.any_sent_away.store(more, Ordering::Release);
        Some(sent)
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<(Fh, Waiter)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent_away(&self) -> MutexGuard<'_, HashMap<Tid, Sent>> {
        let sent_away = self.sent_away.lock();
        sent_away.unwrap_or_else(PoisonError::into_inner)
    }
}
