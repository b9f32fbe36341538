//! Values on their way into the sealed memory: rule 7.

use std::sync::Arc;

use super::Cache;
use super::state::State;
use crate::backend::{BackendError, Reference};
use crate::secret::{Broken, Kind, Sealed, SecretBytes};

impl Cache {
    /// Seals what is at `reference`. Where there is no room, what was used longest ago makes some. Not to be called by who
    /// holds the state.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] if the memory is full of what somebody has open.
    pub(super) fn seal(
        &self,
        reference: &Reference,
        value: &SecretBytes,
    ) -> Result<Arc<Sealed>, BackendError> {
        loop {
            match self.memory.seal(Kind::Value, value.expose()) {
                Ok(sealed) => return Ok(Arc::new(sealed)),
                Err(_) if self.state().make_room() => {}
                Err(full) => return Err(BackendError::Unusable(format!("{reference}: {full}"))),
            }
        }
    }

    /// What a reader gets who would be shown something of a record that does not open any more. Who comes next has it
    /// fetched anew. Not to be called by who holds the state.
    pub(super) fn unopened(&self, reference: &Reference, broken: Broken) -> BackendError {
        tracing::error!(%reference, "{broken}: its memory was damaged");
        self.invalidate(reference);
        BackendError::Unusable(format!("{reference}: {broken}"))
    }
}

impl State {
    /// Drops a record that no secret is cut from, else the value that was used longest ago; `false` if there is none.
    pub(super) fn make_room(&mut self) -> bool {
        for (path, record) in self.inherited.take_all() {
            self.records.unused(&record, &path);
        }
        if self.records.drop_unused() {
            return true;
        }
        let Some((path, old)) = self.values.pop_lru() else {
            return false;
        };
        self.dropped(&path, old, true);
        true
    }
}
