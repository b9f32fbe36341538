//! Which records are in use: those of values in the cache that somebody asks for, has open or may watch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use crate::backend::{BackendError, Reference, Version};
use crate::cache::Cached;
use crate::fs::{Change, Tree};
use crate::secret::{Name, SecretPath};
use crate::signal::{Need, Owner, Used};

impl Owner for Tree {
    fn used(&self, backend: &Name, lately: Duration) -> Vec<Used> {
        let files = self.handles.files().into_iter();
        let open: HashSet<SecretPath> = files
            .filter(|(_, file)| file.pin.node.view.follows())
            .map(|(_, file)| file.pin.node.path.clone())
            .collect();
        let watched = self.access.events().is_watched();
        let need = |cached: &Cached| {
            if cached.idle <= lately || open.contains(&cached.path) {
                Need::Now
            } else if watched || self.inodes.is_watchable(&cached.path.service) {
                Need::Perhaps
            } else {
                Need::None
            }
        };
        let catalogue = self.catalogue();
        let mut used: HashMap<Reference, Used> = HashMap::new();
        for cached in self.cache.cached(backend) {
            let binding = catalogue.binding(&cached.path);
            // After a reload it may be found elsewhere, or nowhere.
            if binding.is_none_or(|now| now.references != cached.binding.references) {
                continue;
            }
            let need = need(&cached);
            for reference in &cached.binding.references {
                let found = *reference == cached.found;
                if reference.backend == *backend {
                    let record = Reference {
                        field: None,
                        ..reference.clone()
                    };
                    let used = used.entry(record.clone()).or_insert(Used {
                        record,
                        versions: Vec::new(),
                        absent: false,
                        fetched: cached.fetched,
                        need,
                    });
                    used.need = used.need.max(need);
                    used.fetched = used.fetched.max(cached.fetched);
                    if !found {
                        used.absent = true;
                    } else if !used.versions.contains(&cached.version) {
                        used.versions.push(cached.version.clone());
                    }
                }
                // What comes after it does not count.
                if found {
                    break;
                }
            }
        }
        used.into_values().collect()
    }

    fn ask(&self, record: Reference) -> BoxFuture<'static, Result<Option<Version>, BackendError>> {
        let cache = Arc::clone(&self.cache);
        async move { cache.ask_version(record).await }.boxed()
    }

    fn changed(self: Arc<Self>, record: Reference) -> BoxFuture<'static, ()> {
        Tree::changed(&self, [&record], Change::Perhaps)
    }

    fn is_down(&self, backend: &Name) -> bool {
        self.cache.is_down(backend)
    }
}
