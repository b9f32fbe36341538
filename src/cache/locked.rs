//! The state while it is locked, and what is dropped meanwhile.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::records::Record;
use super::state::{Kept, State};

/// The state, for whom it is locked. What he drops is wiped when nobody waits for the lock any more.
#[derive(Debug)]
pub(super) struct Locked<'c> {
    // Unlocked first: fields are dropped in this order.
    state: MutexGuard<'c, State>,
    dropped: (Vec<Kept>, Vec<Arc<Record>>),
}

impl<'c> Locked<'c> {
    pub(super) fn lock(state: &'c Mutex<State>) -> Self {
        Self {
            // Nothing panics while it holds the lock; if it did, the state would still be whole.
            state: state.lock().unwrap_or_else(PoisonError::into_inner),
            dropped: Default::default(),
        }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.dropped = self.state.take_dropped();
    }
}
