//! What is in use, for who finds out whether it has changed: which values there are, from where, and who asked when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Binding, Cache, Generation, given_up, too_late};
use crate::backend::{BackendError, Reference, Version};
use crate::secret::{Name, SecretPath};

/// A value in the cache: all about it but the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The secret.
    pub path: SecretPath,
    /// Where it was looked for.
    pub binding: Arc<Binding>,
    /// Where it was found.
    pub found: Reference,
    /// The backend's word for it.
    pub version: Version,
    /// When it was fetched.
    pub fetched: Instant,
    /// How long ago somebody asked for it.
    pub idle: Duration,
}

impl Cache {
    /// The values in the cache for which this backend was asked, or would be.
    #[must_use]
    pub fn cached(&self, backend: &Name) -> Vec<Cached> {
        type Shared = (SecretPath, Arc<Binding>, Arc<Generation>, Instant, Instant);
        let now = self.clock.now();
        let shared: Vec<Shared> = {
            let state = self.state();
            let values = state.values.iter().filter(|(_, kept)| {
                let mut references = kept.binding.references.iter();
                references.any(|reference| reference.backend == *backend)
            });
            // Readers wait for the lock, so nothing is copied under it that need not be.
            let shared = values.map(|(path, kept)| {
                let (binding, generation) = (&kept.binding, &kept.generation);
                let times = (kept.fetched, kept.asked);
                (
                    path.clone(),
                    Arc::clone(binding),
                    Arc::clone(generation),
                    times.0,
                    times.1,
                )
            });
            shared.collect()
        };
        let cached = shared
            .into_iter()
            .map(|(path, binding, generation, fetched, asked)| Cached {
                path,
                binding,
                found: generation.reference.clone(),
                version: generation.version.clone(),
                fetched,
                idle: now.saturating_duration_since(asked),
            });
        cached.collect()
    }

    /// The version that `reference` has at its backend now, asked for without the value.
    ///
    /// # Errors
    /// Any [`BackendError`]; [`BackendError::Timeout`] at the deadline of a fetch.
    pub async fn ask_version(&self, reference: Reference) -> Result<Option<Version>, BackendError> {
        let backend = Arc::clone(self.backend(&reference)?);
        let (name, timeout) = (reference.backend.clone(), self.times().timeout);
        // In a task of its own: a backend that panics is one that gave no answer.
        let asking = tokio::spawn(tokio::time::timeout(timeout, async move {
            backend.version(&reference).await
        }));
        let answer = match asking.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(too_late(timeout)),
            Err(_) => Err(given_up()),
        };
        self.heard(&name, &answer);
        answer
    }

    /// True if the backend could not be reached when it was last asked.
    #[must_use]
    pub fn is_down(&self, backend: &Name) -> bool {
        self.health.is_down(backend)
    }
}
