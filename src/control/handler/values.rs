//! put, get, ls, history, rm, rollback.

use std::sync::Arc;

use super::following::reading_rule;
use super::{
    Job, Keeper, Place, answer, backend_failure, failed, settle, store_failure, unwritten,
    writing_failure,
};
use crate::access::{Denied, Permit};
use crate::audit::Outcome;
use crate::backend::{BackendError, Version};
use crate::cache::{Binding, Fetch, Served};
use crate::control::answers::{Kept, Listed, Removed, Touched};
use crate::control::{Answer, Failure, Kind};
use crate::fs::{Change, outcome};
use crate::secret::{Name, SecretBytes, SecretPath};

impl Job<'_> {
    pub(super) fn put(&self, path: &SecretPath, value: &SecretBytes) -> Result<Answer, Failure> {
        self.change(path, "put", None, |place| match &place.keeper {
            Keeper::Store(store, name) => {
                let put = store.put(name, value, None);
                put.map_err(|error| store_failure(&error))
            }
            Keeper::Server(writer) => {
                let put = self.server(writer.put(&place.reference, value));
                put.map_err(|error| writing_failure(path, &error))
            }
        })
    }

    pub(super) fn roll_back(&self, path: &SecretPath, to: &Version) -> Result<Answer, Failure> {
        self.change(path, "rollback", Some(to), |place| match &place.keeper {
            Keeper::Store(store, name) => {
                let rolled = store.rollback(name, to);
                rolled.map_err(|error| store_failure(&error))
            }
            Keeper::Server(writer) => {
                let rolled = self.server(writer.rollback(&place.reference, to));
                rolled.map_err(|error| writing_failure(path, &error))
            }
        })
    }

    fn change(
        &self,
        path: &SecretPath,
        action: &'static str,
        from: Option<&Version>,
        act: impl FnOnce(&Place<'_>) -> Result<Version, Failure>,
    ) -> Result<Answer, Failure> {
        let mandate = self.mandate(Some(&path.service), action, Some(path))?;
        let place = match self
            .place(path)
            .and_then(|place| self.stays_away(path, from).map(|()| place))
        {
            Ok(place) => place,
            Err(failure) => {
                settle(mandate, Outcome::Error, None)?;
                return Err(failure);
            }
        };
        match act(&place) {
            Ok(version) => {
                self.changed([&place.reference], Change::Written);
                settle(mandate, Outcome::Allowed, Some(version.clone()))?;
                answer(&Touched {
                    path: path.clone(),
                    version,
                    stale: false,
                })
            }
            Err(failure) => {
                // What failed late may have changed something all the same.
                self.changed([&place.reference], Change::Perhaps);
                Err(failed(mandate, failure))
            }
        }
    }

    pub(super) fn remove(
        &self,
        path: &SecretPath,
        version: Option<Version>,
    ) -> Result<Answer, Failure> {
        let mandate = self.mandate(Some(&path.service), "rm", Some(path))?;
        let place = match self.place(path) {
            Ok(place) => place,
            Err(failure) => {
                settle(mandate, Outcome::Error, None)?;
                return Err(failure);
            }
        };
        let removed = match &place.keeper {
            Keeper::Store(store, name) => {
                let removed = store.remove(name, version.as_ref());
                removed.map_err(|error| store_failure(&error))
            }
            Keeper::Server(writer) => {
                let removed = self.server(writer.remove(&place.reference, version.as_ref()));
                removed.map_err(|error| writing_failure(path, &error))
            }
        };
        self.changed([&place.reference], Change::Perhaps);
        match removed {
            Ok(()) => {
                settle(mandate, Outcome::Allowed, version.clone())?;
                answer(&Removed {
                    path: path.clone(),
                    version,
                })
            }
            Err(failure) => Err(failed(mandate, failure)),
        }
    }

    pub(super) fn get(
        &self,
        path: &SecretPath,
        version: Option<Version>,
    ) -> Result<Answer, Failure> {
        let (mut permit, binding) = self.permit(path, "get")?;
        let fetch = match self.fetch(&permit, binding, version.as_ref()) {
            Ok(fetch) => fetch,
            Err(denied) => {
                permit.refuse_now(&denied, None).map_err(unwritten)?;
                return Err(self.denied(&denied, &reading_rule(path)));
            }
        };
        match fetch {
            Ok(Served { generation, stale }) => {
                // Which version it is was not known before, and the rules may be others by now.
                let access = self.parts.tree.access();
                if let Err(denied) = access.give(&mut permit, &generation.version) {
                    permit
                        .refuse_now(&denied, Some(generation.version.clone()))
                        .map_err(unwritten)?;
                    return Err(self.denied(&denied, &reading_rule(path)));
                }
                let value = generation.value.open();
                let outcome = match (&value, stale) {
                    (Err(_), _) => Outcome::Error,
                    (Ok(_), true) => Outcome::Stale,
                    (Ok(_), false) => Outcome::Allowed,
                };
                permit
                    .settle_now(outcome, Some(generation.version.clone()))
                    .map_err(|error| Failure::failed(format!("not given: {error}")))?;
                let value = value.map_err(|broken| {
                    self.parts.cache.broke(path, &generation);
                    let mend = "try again: it is fetched anew";
                    Failure::failed(format!("{path}: {broken}: {mend}"))
                })?;
                let mut answer = answer(&Touched {
                    path: path.clone(),
                    version: generation.version.clone(),
                    stale,
                })?;
                answer.value = Some(value);
                Ok(answer)
            }
            Err(error) => {
                permit
                    .settle_now(outcome(&error), None)
                    .map_err(unwritten)?;
                let failure = backend_failure(path, &error);
                if failure.kind == Kind::Absent && version.is_some() {
                    let message =
                        format!("no such version of {path}: see `secretfs history {path}`");
                    return Err(Failure::new(Kind::Absent, message));
                }
                Err(failure)
            }
        }
    }

    /// What is shown, or a version that may be another.
    fn fetch(
        &self,
        permit: &Permit,
        binding: Option<Arc<Binding>>,
        version: Option<&Version>,
    ) -> Result<Fetch, Denied> {
        let fetch = match version {
            None => self.parts.tree.fetch(permit, binding)?,
            Some(version) => self.parts.tree.fetch_version(permit, binding, version)?,
        };
        Ok(self.runtime.block_on(fetch.wait()))
    }

    pub(super) fn list(&self, service: Option<&Name>) -> Result<Answer, Failure> {
        let services = match service {
            None => self.services()?,
            Some(service) => {
                self.exists(service)?;
                vec![service.clone()]
            }
        };
        let mut listed = Vec::new();
        for each in services.iter().filter(|each| self.may_see(each)) {
            listed.extend(self.names(each)?.into_iter().map(|path| self.listed(path)));
        }
        answer(&listed)
    }

    /// Whether there is a service of this name, for who may see into it. Others do not hear whether there is one: only
    /// those with a section in the config are no secret.
    fn exists(&self, service: &Name) -> Result<(), Failure> {
        let catalogue = self.parts.tree.catalogue();
        let absent = || {
            let message = format!("no such service: {service}: see `secretfs ls`");
            Err(Failure::new(Kind::Absent, message))
        };
        if !catalogue.has_service(service) && catalogue.defaults().is_none() {
            return absent();
        }
        if !self.may_see(service) {
            return Err(Failure::new(
                Kind::Denied,
                format!(
                    "denied: no rule allows you anything in {service}: an `allow` or `manage` rule must name uid {}",
                    self.caller.uid
                ),
            ));
        }
        if self.services()?.contains(service) {
            Ok(())
        } else {
            absent()
        }
    }

    fn may_see(&self, service: &Name) -> bool {
        let access = self.parts.tree.access();
        access.may_list(self.caller.clone(), service)
            || access.may_manage(self.caller.clone(), Some(service))
    }

    fn services(&self) -> Result<Vec<Name>, Failure> {
        let catalogue = self.parts.tree.catalogue();
        let mut services: Vec<Name> = catalogue.services().cloned().collect();
        let access = self.parts.tree.access();
        if let Some(backend) = catalogue.defaults()
            && (access.may_list_defaults(self.caller.clone())
                || access.may_manage(self.caller.clone(), None))
        {
            let folders = self.parts.cache.folders(backend).wait();
            let folders = self.runtime.block_on(folders).map_err(unlisted)?;
            services.extend(folders.iter().cloned());
        }
        services.sort_unstable();
        services.dedup();
        Ok(services)
    }

    fn names(&self, service: &Name) -> Result<Vec<SecretPath>, Failure> {
        let catalogue = self.parts.tree.catalogue();
        let mut names = catalogue.bound_names(service);
        if let Some(folder) = catalogue.folder(service) {
            let listing = self.parts.cache.names(&folder.backend, &folder.folder);
            match self.runtime.block_on(listing.wait()) {
                Ok(listing) => names.extend(listing.iter().cloned()),
                Err(BackendError::Absent(_)) => {}
                Err(error) => return Err(unlisted(error)),
            }
        }
        names.sort_unstable();
        names.dedup();
        let path = |name| SecretPath {
            service: service.clone(),
            name,
        };
        Ok(names.into_iter().map(path).collect())
    }

    fn listed(&self, path: SecretPath) -> Listed {
        // A server is not asked about each of what may be many.
        let newest = self.place(&path).ok().and_then(|place| match place.keeper {
            Keeper::Store(store, name) => store.history(&name).ok()?.into_iter().next(),
            Keeper::Server(_) => None,
        });
        Listed {
            path,
            version: newest.as_ref().map(|newest| newest.version.clone()),
            modified: newest.as_ref().map(|newest| newest.created),
            size: newest.map(|newest| newest.size),
        }
    }

    pub(super) fn history(&self, path: &SecretPath) -> Result<Answer, Failure> {
        let access = self.parts.tree.access();
        // Who may read it may see its versions, and so may who changes it.
        let permit = access.peek(self.caller.clone(), path, "history");
        let mandate = match permit {
            Some(_) => None,
            None => Some(self.mandate(Some(&path.service), "history", Some(path))?),
        };
        let found = self.place(path).and_then(|place| self.kept(path, &place));
        let ended = match &found {
            Ok(_) => Outcome::Allowed,
            Err(failure) if failure.kind == Kind::Absent => Outcome::Absent,
            Err(_) => Outcome::Error,
        };
        if let Some(permit) = permit {
            permit.settle_now(ended, None).map_err(unwritten)?;
        }
        if let Some(mandate) = mandate {
            settle(mandate, ended, None)?;
        }
        answer(&found?)
    }

    fn kept(&self, path: &SecretPath, place: &Place<'_>) -> Result<Vec<Kept>, Failure> {
        match &place.keeper {
            Keeper::Store(store, name) => {
                let kept = store.history(name).map_err(|error| store_failure(&error))?;
                let kept = kept.into_iter().map(|kept| Kept {
                    version: kept.version,
                    created: kept.created,
                    size: Some(kept.size),
                });
                Ok(kept.collect())
            }
            Keeper::Server(writer) => {
                let kept = self.server(writer.history(&place.reference));
                let kept = kept.map_err(|error| match error {
                    BackendError::Unusable(why) => Failure::failed(format!("{path}: {why}")),
                    error @ (BackendError::Absent(_)
                    | BackendError::Refused(_)
                    | BackendError::Unreachable(_)
                    | BackendError::Timeout(_)) => backend_failure(path, &error),
                })?;
                let kept = kept.into_iter().map(|(version, created)| Kept {
                    version,
                    created,
                    size: None,
                });
                Ok(kept.collect())
            }
        }
    }
}

fn unlisted(error: BackendError) -> Failure {
    let kind = match error {
        BackendError::Absent(_) => Kind::Absent,
        BackendError::Refused(_) => Kind::Denied,
        BackendError::Unreachable(_) | BackendError::Timeout(_) => Kind::Unavailable,
        BackendError::Unusable(_) => Kind::Failed,
    };
    Failure::new(kind, format!("cannot list: {error}: see `secretfs doctor`"))
}
