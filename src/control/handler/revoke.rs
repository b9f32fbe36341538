//! revoke, unrevoke.
//!
//! What is taken away is denied before anything else is done about it: no disk, no backend and no kernel is waited for
//! first. What is given back stays away until that is written down.

use std::time::Duration;

use tokio::time::timeout;

use super::{Job, answer, settle};
use crate::access::Mandate;
use crate::audit::Outcome;
use crate::backend::{BackendError, Fetched, Reference, Version};
use crate::control::answers::Unrevoked;
use crate::control::{Answer, Failure, Kind};
use crate::events::What;
use crate::policy::revocation::{Revocation, Target};
use crate::secret::SecretPath;

/// How long a backend may take to say which version it has.
const PATIENCE: Duration = Duration::from_secs(5);

impl Job<'_> {
    pub(super) fn revoke(&self, target: Target, seconds: Option<u64>) -> Result<Answer, Failure> {
        let mandate = self.leave(&target, "revoke")?;
        let daemon = self.daemon()?;
        let end = |outcome| settle(mandate, outcome, target.version().cloned());
        let since = self.parts.clock.timestamp();
        let until = match seconds
            .map(|seconds| (seconds, since.checked_add(Duration::from_secs(seconds))))
        {
            None => None,
            Some((1.., Ok(until))) => Some(until),
            Some(_) => {
                end(Outcome::Error)?;
                return Err(Failure::usage(
                    "--for: write a time such as 90s, 10m or 24h",
                ));
            }
        };
        if let Target::Version(path, version) = &target
            && self.is_current(path, version)
        {
            end(Outcome::Error)?;
            return Err(Failure::usage(format!(
                "version {version} is the current one of {path}: put a new value first, or take the whole secret away with `secretfs revoke {path}`"
            )));
        }
        let revocation = Revocation {
            target: target.clone(),
            since,
            until,
            by: self.caller.uid,
        };
        let access = self.parts.tree.access();
        let before = access.revoke(&revocation);
        self.parts.cache.forget(|path| target.covers(path));
        let enforced = self.runtime.spawn(self.parts.tree.enforce());
        if !self.is_known(&target) {
            match before {
                Some(before) => drop(access.revoke(&before)),
                None => drop(access.unrevoke(&target)),
            }
            // Another command may have written down meanwhile what is taken back.
            if let Err(error) = daemon.keep_revocations() {
                tracing::error!("the revocations were not written: {error}");
            }
            end(Outcome::Absent)?;
            return Err(Failure::new(
                Kind::Absent,
                match &target {
                    Target::Version(path, version) => {
                        format!("{path} has no version {version}: see `secretfs history {path}`")
                    }
                    Target::All | Target::Service(_) | Target::Secret(_) | Target::User(_) => {
                        format!(
                            "no such secret or service: {}: see `secretfs ls`",
                            target.subject()
                        )
                    }
                },
            ));
        }
        access.events().tell(|| What::Revoked {
            target: target.words(),
            until,
        });
        let kept = daemon.keep_revocations();
        let kept =
            kept.map_err(|error| format!("it will not survive a restart of the daemon: {error}"));
        let cleared = daemon.renew_offline();
        let cleared =
            cleared.map_err(|error| format!("the disk may still have a value of it: {error}"));
        let _ = self.runtime.block_on(enforced);
        match kept.and(cleared) {
            Ok(()) => {
                end(Outcome::Allowed)?;
                answer(&revocation)
            }
            Err(error) => {
                let failure = Failure::failed(format!(
                    "{target}: revoked, but {error}: mend that, and revoke again"
                ));
                end(Outcome::Error)?;
                Err(failure)
            }
        }
    }

    pub(super) fn unrevoke(&self, target: &Target) -> Result<Answer, Failure> {
        let mandate = self.leave(target, "unrevoke")?;
        let daemon = self.daemon()?;
        let end = |outcome| settle(mandate, outcome, target.version().cloned());
        let access = self.parts.tree.access();
        let Some(lifted) = access.unrevoke(target) else {
            end(Outcome::Absent)?;
            let still: Vec<String> = self
                .revoked(target)
                .iter()
                .map(|revocation| revocation.target.to_string())
                .collect();
            let still = match still.as_slice() {
                [] => "see `secretfs status`".to_owned(),
                still => format!("what is: {}", still.join(", ")),
            };
            return Err(Failure::new(
                Kind::Absent,
                format!("{target}: is not revoked: {still}"),
            ));
        };
        if let Err(error) = daemon.keep_revocations() {
            // Given back now, it would be taken away again by the next start.
            access.revoke(&lifted);
            end(Outcome::Error)?;
            return Err(Failure::failed(format!(
                "{target}: stays revoked, because that it is not could not be written down: {error}"
            )));
        }
        access.events().tell(|| What::Unrevoked {
            target: target.words(),
            until: lifted.until,
        });
        end(Outcome::Allowed)?;
        answer(&Unrevoked {
            lifted,
            still: self.revoked(target),
        })
    }

    /// A value that was taken away does not come back under another number.
    pub(super) fn stays_away(
        &self,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<(), Failure> {
        let revocations = self.parts.tree.access().revocations();
        let target = version.map(|version| Target::Version(path.clone(), version.clone()));
        let now = self.parts.clock.timestamp();
        match target.and_then(|target| revocations.of(&target, now).cloned()) {
            Some(revocation) => Err(Failure::usage(revocation.to_string())),
            None => Ok(()),
        }
    }

    /// Leave to take something away or to give it back.
    fn leave(&self, target: &Target, action: &'static str) -> Result<Mandate, Failure> {
        self.parts
            .tree
            .access()
            .manage(
                self.caller.clone(),
                target.service(),
                action,
                Some(target.subject().into()),
            )
            .map_err(|denied| self.denied(&denied, "a `manage` rule"))
    }

    /// What is revoked now, as far as it is the caller's business: whoever manages one service sees what bears on it.
    fn revoked(&self, target: &Target) -> Vec<Revocation> {
        let access = self.parts.tree.access();
        let everything = access.may_manage(self.caller.clone(), None);
        let bears = |other: &Target| match other {
            Target::All => true,
            Target::Service(_) | Target::Secret(_) | Target::Version(..) => {
                other.service() == target.service()
            }
            Target::User(_) => false,
        };
        access
            .revocations()
            .in_force(self.parts.clock.timestamp())
            .filter(|revocation| everything || bears(&revocation.target))
            .cloned()
            .collect()
    }

    /// True if there is, or was since the start, something of this name. What nobody can say counts as known: to take
    /// too much away is better than too little.
    fn is_known(&self, target: &Target) -> bool {
        let catalogue = self.parts.tree.catalogue();
        match target {
            Target::All | Target::User(_) => true,
            Target::Service(service) => {
                let folders = |backend| {
                    let folders = self.parts.cache.folders(backend).wait();
                    match self.runtime.block_on(folders) {
                        Ok(folders) => folders.contains(service),
                        Err(_) => true,
                    }
                };
                catalogue.has_service(service)
                    || self.parts.cache.has_shown(|path| path.service == *service)
                    || catalogue.defaults().is_some_and(folders)
            }
            // A slip of the pen must not look like a value that was taken away. A version that was destroyed may still be open.
            Target::Version(path, version) => {
                let binding = catalogue.binding(path);
                let found = binding.map(|binding| {
                    let version = self.parts.cache.version(path, &binding, version);
                    self.runtime.block_on(version.wait())
                });
                !matches!(found, None | Some(Err(BackendError::Absent(_))))
                    || self.parts.tree.has_open(path, version)
            }
            Target::Secret(path) => {
                catalogue.is_bound(path)
                    || self.parts.cache.has_shown(|shown| shown == path)
                    || !matches!(self.newest_version(path), Err(BackendError::Absent(_)))
            }
        }
    }

    /// True if this version is what an open gives, as far as that can be found out.
    fn is_current(&self, path: &SecretPath, version: &Version) -> bool {
        let newest = match self.newest_version(path) {
            Ok(newest) => Some(newest),
            Err(BackendError::Absent(_)) => None,
            Err(
                BackendError::Refused(_)
                | BackendError::Unreachable(_)
                | BackendError::Timeout(_)
                | BackendError::Unusable(_),
            ) => {
                let binding = self.parts.tree.catalogue().binding(path);
                let shown = binding.and_then(|binding| self.parts.cache.fresh(path, &binding));
                shown.map(|generation| generation.version.clone())
            }
        };
        newest.is_some_and(|newest| newest == *version)
    }

    /// What the backend has, past the cache: what is in there may be what somebody wants to be rid of.
    fn newest_version(&self, path: &SecretPath) -> Result<Version, BackendError> {
        let binding = self.parts.tree.catalogue().binding(path);
        let mut absent = BackendError::Absent(path.to_string());
        for reference in binding.iter().flat_map(|binding| &binding.references) {
            match self.read(reference) {
                Ok(fetched) => return Ok(fetched.version),
                Err(error @ BackendError::Absent(_)) => absent = error,
                Err(error) => return Err(error),
            }
        }
        Err(absent)
    }

    fn read(&self, reference: &Reference) -> Result<Fetched, BackendError> {
        let backend = self.parts.cache.backends().get(&reference.backend);
        let backend = backend.ok_or_else(|| BackendError::Absent(reference.to_string()))?;
        let reading = async { timeout(PATIENCE, backend.read(reference)).await };
        self.runtime
            .block_on(reading)
            .unwrap_or_else(|_| Err(BackendError::Timeout(format!("{PATIENCE:?}"))))
    }
}
