//! import: many secrets, all of them or none.

use super::{Job, Keeper, Place, answer, failed, settle, store_failure};
use crate::audit::Outcome;
use crate::backend::store::NewValue;
use crate::control::answers::Touched;
use crate::control::{Answer, Failure, batch};
use crate::fs::Change;
use crate::secret::{Name, SecretBytes, SecretPath};

impl Job<'_> {
    pub(super) fn import(&self, service: &Name, body: &SecretBytes) -> Result<Answer, Failure> {
        let values = batch::unpack(body)?;
        let mut paths = Vec::with_capacity(values.len());
        let mut mandates = Vec::with_capacity(values.len());
        for (name, _) in &values {
            let path = SecretPath {
                service: service.clone(),
                name: name.clone(),
            };
            mandates.push(self.mandate(Some(service), "import", Some(&path))?);
            paths.push(path);
        }
        // What becomes of a mandate that is dropped is in the log as an error.
        let places: Vec<Place<'_>> = paths
            .iter()
            .map(|path| self.place(path))
            .collect::<Result<_, _>>()?;
        let Some(first) = places.first() else {
            return Err(Failure::usage("there is nothing to import"));
        };
        if let Some((path, _)) = paths
            .iter()
            .zip(&places)
            .find(|(_, place)| place.reference.backend != first.reference.backend)
        {
            return Err(Failure::usage(format!(
                "{path}: is kept in another store than the others, and so cannot be imported with them: `secretfs put` it by itself"
            )));
        }
        let new: Vec<NewValue<'_>> = places
            .iter()
            .zip(&values)
            .filter_map(|(place, (_, value))| match &place.keeper {
                Keeper::Store(_, path) => Some(NewValue {
                    path,
                    value,
                    description: None,
                }),
                Keeper::Server(_) => None,
            })
            .collect();
        let Keeper::Store(store, _) = &first.keeper else {
            return Err(Failure::usage(format!(
                "{service}: is kept by a server, which does not take many at once as all of them or none: `secretfs put` each by itself"
            )));
        };
        let put = store.put_all(&new, &mut |done, total| self.progress(done, total));
        // What failed late may have changed something all the same.
        let change = match put {
            Ok(_) => Change::Written,
            Err(_) => Change::Perhaps,
        };
        self.changed(places.iter().map(|place| &place.reference), change);
        let versions = match put {
            Ok(versions) => versions,
            Err(error) => {
                let mut mandates = mandates.into_iter();
                let mandate = mandates
                    .next()
                    .ok_or_else(|| Failure::failed(error.to_string()))?;
                return Err(failed(mandate, store_failure(&error)));
            }
        };
        let mut touched = Vec::with_capacity(paths.len());
        for ((path, version), mandate) in paths.into_iter().zip(versions).zip(mandates) {
            settle(mandate, Outcome::Allowed, Some(version.clone()))?;
            touched.push(Touched {
                path,
                version,
                stale: false,
            });
        }
        answer(&touched)
    }
}
