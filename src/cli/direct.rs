//! The stores of a config, opened in this process: what the server does, without a mount and without a policy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::access::{Access, Authority};
use crate::audit::Audit;
use crate::backend::Backend;
use crate::backend::store::{Identity, IdentityError, Prompt, Store, StoreError, identity};
use crate::cache::{Cache, Times};
use crate::caller::Lookup;
use crate::caller::procfs::Procfs;
use crate::clock::Clock;
use crate::config::{BackendConfig, Config, StoreConfig, accounts};
use crate::control::handler::{Handler, Parts};
use crate::control::{Failure, Kind};
use crate::fs::{Catalogue, Tree};

/// Everything opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) handler: Handler,
    pub(crate) lookup: Arc<dyn Lookup>,
}

/// Opens what the config names. The caller holds the daemon's lock.
pub(crate) fn open(config: &Config, clock: &Clock) -> Result<Opened, Failure> {
    let mut stores = BTreeMap::new();
    let mut backends: HashMap<_, Arc<dyn Backend>> = HashMap::new();
    for (name, backend) in &config.backends {
        match backend {
            BackendConfig::Store(store) => {
                let store = Store::open(&store.path, unlock(store)?, clock.clone())
                    .map_err(|error| store_failure(&error))?;
                backends.insert(name.clone(), Arc::new(store.clone()));
                stores.insert(name.clone(), store);
            }
        }
    }
    let audit_key = stores
        .values()
        .next()
        .map(Store::audit_key)
        .ok_or_else(|| Failure::usage("the config has no backend of type \"store\": only a daemon can work on it"))?;
    let audit = Audit::start(&config.audit, &audit_key, clock.clone())
        .map_err(|error| Failure::failed(error.to_string()))?;
    let lookup: Arc<dyn Lookup> = Arc::new(Procfs::default());
    let (policy, _) = config.policy(&accounts::System);
    let access = Access::new(
        Authority::Identity,
        policy,
        Arc::clone(&lookup),
        audit.clone(),
        config.audit.full_detail,
        clock.clone(),
    );
    let times = Times {
        ttl: config.cache.ttl,
        timeout: config.cache.timeout,
    };
    let cache = Arc::new(Cache::new(backends, times, 0, clock.clone()));
    let tree = Tree::new(
        Catalogue::new(config, &accounts::System),
        Arc::new(access),
        Arc::clone(&cache),
        clock.timestamp(),
    );
    let handler = Handler::new(Parts {
        tree,
        cache,
        stores,
        audit,
        audit_target: config.audit.target.clone(),
        audit_key,
        lookup: Arc::clone(&lookup),
        daemon: None,
        clock: clock.clone(),
    });
    Ok(Opened { handler, lookup })
}

/// The identity of a store; one that is sealed is asked for at the terminal.
pub(crate) fn unlock(store: &StoreConfig) -> Result<Identity, Failure> {
    identity::locate(store.identity.as_deref())
        .and_then(|path| Identity::load(&path, &Prompt::terminal()))
        .map_err(|error| identity_failure(&error))
}

pub(crate) fn identity_failure(error: &IdentityError) -> Failure {
    Failure::new(Kind::Unavailable, error.to_string())
}

pub(crate) fn store_failure(error: &StoreError) -> Failure {
    Failure::new(Kind::Unavailable, error.to_string())
}
