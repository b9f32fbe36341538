//! The backends, as the config says: stores are opened with what the keeper passes on, others are set up.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::RunError;
use crate::backend::store::identity::{self, Identity, Prompt, Protection};
use crate::backend::store::{Store, StoreError};
use crate::backend::vault::Vault;
use crate::clock::Clock;
use crate::config::{BackendConfig, Config, StoreConfig};
use crate::secret::{Name, SecretBytes};
use crate::sys::SecretMemory;

pub(super) fn vaults(config: &Config, clock: &Clock) -> Result<BTreeMap<Name, Vault>, RunError> {
    let env = |name: &str| std::env::var(name).ok();
    let vault = |(name, backend): (&Name, &BackendConfig)| match backend {
        BackendConfig::Store(_) => None,
        BackendConfig::Vault(settings) => {
            let vault = Vault::new(name.clone(), settings, &env, clock.clone());
            let wrong = |why| RunError::Backend {
                file: config.file.clone(),
                name: name.clone(),
                why,
            };
            Some(vault.map(|vault| (name.clone(), vault)).map_err(wrong))
        }
    };
    config.backends.iter().filter_map(vault).collect()
}

pub(super) fn open_stores(
    config: &Config,
    mut identities: BTreeMap<Name, OwnedFd>,
    mut keys: BTreeMap<Name, OwnedFd>,
    clock: &Clock,
) -> Result<BTreeMap<Name, Store>, RunError> {
    let open = |(name, store): (&Name, &StoreConfig)| {
        let place = identity::locate(store.identity.as_deref())?;
        let file = match identities.remove(name) {
            Some(file) => file.into(),
            None => identity::open(&place)?,
        };
        let memory = keys.remove(name).map(SecretMemory::map).transpose();
        let memory = memory.map_err(RunError::system("the memory for the identity"))?;
        Ok((
            name.clone(),
            open_store(store, &place, file, memory.as_ref(), clock)?,
        ))
    };
    config.stores().map(open).collect()
}

/// Opens a store with the identity that the keeper passed. What somebody had to open by hand for an earlier server is
/// in `memory`, and is not asked for again unless the store has another identity now.
fn open_store(
    store: &StoreConfig,
    place: &Path,
    mut file: File,
    memory: Option<&SecretMemory>,
    clock: &Clock,
) -> Result<Store, RunError> {
    let opened = memory
        .and_then(SecretMemory::read)
        .map(|text| SecretBytes::new(text.to_vec()));
    if let Some(text) = opened {
        let identity = Identity::parse(&text, place, &Prompt::nobody())?;
        match Store::open(&store.path, identity, clock.clone()) {
            Err(StoreError::WrongIdentity(_)) => {}
            opened => return Ok(opened?),
        }
    }
    let identity = Identity::read(&mut file, place, &Prompt::terminal())?;
    if let Some(memory) = memory
        && identity.protection() != Protection::Plain
    {
        let kept = memory.write(identity.to_text(clock.timestamp()).expose());
        kept.map_err(RunError::system("the memory for the identity"))?;
    }
    Ok(Store::open(&store.path, identity, clock.clone())?)
}
