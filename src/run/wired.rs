//! The parts of a server or of a command that works on the store itself, wired.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use super::backends::vaults;
use super::offline::Offline;
use super::{RunError, state};
use crate::access::{Access, Authority};
use crate::audit::Audit;
use crate::backend::Backend;
use crate::backend::store::Store;
use crate::cache::{Cache, Times};
use crate::caller::procfs::Procfs;
use crate::clock::Clock;
use crate::config::accounts::System;
use crate::config::{Config, OfflineConfig};
use crate::control::handler::{Handler, Parts};
use crate::events::Events;
use crate::fs::{Catalogue, Ledger, Tree};
use crate::secret::{Name, SealedMemory, SecretBytes};

/// The parts, put together.
pub(super) struct Wired {
    pub(super) memory: Arc<SealedMemory>,
    pub(super) cache: Arc<Cache>,
    pub(super) tree: Arc<Tree>,
    pub(super) stores: BTreeMap<Name, Store>,
    pub(super) audit: Audit,
    pub(super) parts: AuditParts,
    pub(super) unknown: Vec<String>,
    pub(super) clock: Clock,
}

pub(super) struct AuditParts {
    target: crate::config::AuditTarget,
    key: SecretBytes,
}

impl Wired {
    pub(super) fn new(
        config: &Config,
        stores: BTreeMap<Name, Store>,
        authority: Authority,
        epoch: u32,
        (memory, ledger): (Arc<SealedMemory>, Arc<Ledger>),
        clock: &Clock,
    ) -> Result<Self, RunError> {
        let key = match stores.values().next() {
            Some(store) => store.audit_key(),
            None => state::audit_key(&config.state)?,
        };
        let audit = Audit::start(&config.audit, &key, clock.clone())?;
        let (policy, unknown) = config.policy(&System);
        let lookup = Arc::new(Procfs::default());
        let full = config.audit.full_detail;
        let events = Events::new(clock.clone());
        let access = Access::new(
            authority,
            policy,
            lookup,
            audit.clone(),
            full,
            clock.clone(),
        );
        let access = Arc::new(access.with_events(events.clone()));
        let backend = |(name, store): (&Name, &Store)| -> (Name, Arc<dyn Backend>) {
            (name.clone(), Arc::new(store.clone()))
        };
        let mut backends: HashMap<Name, Arc<dyn Backend>> = stores.iter().map(backend).collect();
        for (name, vault) in vaults(config, clock)? {
            backends.insert(name, Arc::new(vault));
        }
        let cache = Cache::new(
            backends,
            times(config),
            epoch,
            Arc::clone(&memory),
            clock.clone(),
        );
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed)
            .map_err(|_| RunError::system("randomness")(io::Error::other("there is none")))?;
        let cache = cache.with_jitter(u64::from_ne_bytes(seed));
        let cache = Arc::new(cache.with_events(events));
        let catalogue = Catalogue::new(config, &System);
        let tree = Tree::new(
            catalogue,
            access,
            Arc::clone(&cache),
            ledger,
            clock.timestamp(),
        );
        let parts = AuditParts {
            target: config.audit.target.clone(),
            key,
        };
        let unknown = unknown.iter().map(ToString::to_string).collect();
        Ok(Self {
            memory,
            cache,
            tree,
            stores,
            audit,
            parts,
            unknown,
            clock: clock.clone(),
        })
    }

    pub(super) fn offline(&self, config: Option<&OfflineConfig>) -> Option<Arc<Offline>> {
        let (config, store) = (config?, self.stores.values().next()?);
        Some(Arc::new(Offline::new(config, store.clone(), self)))
    }

    pub(super) fn handler(
        self,
        daemon: Option<Arc<dyn crate::control::handler::Daemon>>,
    ) -> Handler {
        Handler::new(Parts {
            tree: self.tree,
            cache: self.cache,
            stores: self.stores,
            audit: self.audit,
            audit_target: self.parts.target,
            audit_key: self.parts.key,
            lookup: Arc::new(Procfs::default()),
            daemon,
            clock: self.clock,
        })
    }
}

pub(super) fn times(config: &Config) -> Times {
    Times {
        ttl: config.cache.ttl,
        timeout: config.cache.timeout,
    }
}
