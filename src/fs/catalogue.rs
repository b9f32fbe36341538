//! What the config says of the tree: which services there are, where each secret is found, how it looks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Reference;
use crate::cache::Binding;
use crate::config::accounts::Accounts;
use crate::config::{Config, Reads, SecretConfig, Shape, Source};
use crate::secret::{Name, SecretPath};
use crate::sys::{Gid, Uid};

/// The tree as configured. Replaced as a whole by a reload.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Of which rules these are the places.
    pub(super) edition: u64,
    services: BTreeMap<Name, Service>,
    /// The backend whose folders are services.
    defaults: Option<Name>,
    stale: Duration,
}

#[derive(Debug, Default)]
struct Service {
    source: Option<Source>,
    secrets: HashMap<Name, Listed>,
}

#[derive(Debug)]
struct Listed {
    binding: Option<Arc<Binding>>,
    stale: Duration,
    look: Look,
}

/// How a secret looks to `stat`, and how it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The permission bits.
    pub mode: u16,
    /// The owner.
    pub owner: Uid,
    /// The group.
    pub group: Gid,
    /// Whether each read is checked.
    pub reads: Reads,
    /// For people; wins over what the backend says.
    pub description: Option<Arc<str>>,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            mode: 0o440,
            owner: Uid::ROOT,
            group: Gid(0),
            reads: Reads::Checked,
            description: None,
        }
    }
}

/// Where the names of a service's secrets come from, beside those that are bound one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The backend.
    pub backend: Name,
    /// Its folder.
    pub folder: String,
}

impl Catalogue {
    /// The tree of a config. Owners that are not known yet are shown as root's; their services are closed meanwhile.
    #[must_use]
    pub fn new(config: &Config, accounts: &dyn Accounts) -> Self {
        let kept = config.offline.as_ref();
        let stale = kept.map_or(Duration::ZERO, |offline| offline.max_age);
        let stale = stale.max(config.cache.stale);
        let listed = |secret: &SecretConfig| Listed {
            binding: (!secret.from.is_empty()).then(|| {
                let stale = secret.stale.unwrap_or(stale);
                Arc::new(Binding {
                    references: secret.from.clone(),
                    stale,
                })
            }),
            stale: secret.stale.unwrap_or(stale),
            look: Look {
                mode: secret.mode,
                owner: secret.owner.uid(accounts).unwrap_or(Uid::ROOT),
                group: secret.group.gid(accounts).unwrap_or(Gid(0)),
                reads: secret.reads,
                description: secret.description.as_deref().map(Arc::from),
            },
        };
        let services = config.services.iter().map(|(name, service)| {
            let secrets = service
                .secrets
                .iter()
                .map(|(name, secret)| (name.clone(), listed(secret)))
                .collect();
            (
                name.clone(),
                Service {
                    source: service.source.clone(),
                    secrets,
                },
            )
        });
        let defaults = config
            .defaults
            .as_ref()
            .map(|defaults| defaults.source.clone());
        Self {
            edition: 0,
            services: services.collect(),
            defaults,
            stale,
        }
    }

    /// The services with a section of their own.
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// True if the service has a section of its own.
    #[must_use]
    pub fn has_service(&self, service: &Name) -> bool {
        self.services.contains_key(service)
    }

    /// The backend whose folders are services, too.
    #[must_use]
    pub fn defaults(&self) -> Option<&Name> {
        self.defaults.as_ref()
    }

    /// The names that the config itself gives a service.
    #[must_use]
    pub fn bound_names(&self, service: &Name) -> Vec<Name> {
        let bound = |service: &Service| -> Vec<Name> {
            service
                .secrets
                .iter()
                .filter(|(_, secret)| secret.binding.is_some())
                .map(|(name, _)| name.clone())
                .collect()
        };
        self.services.get(service).map(bound).unwrap_or_default()
    }

    /// Whether names come from this folder of a backend or, without one, from the list of its folders.
    #[must_use]
    pub fn lists(&self, backend: &str, folder: Option<&str>) -> bool {
        let is_default = |name: &Name| name.as_str() == backend;
        let mut sources = self.services.values().filter_map(|one| one.source.as_ref());
        self.defaults.as_ref().is_some_and(is_default)
            || sources.any(|source| {
                source.backend.as_str() == backend && folder == Some(source.folder.as_str())
            })
    }

    /// The folder that gives a service its other names.
    #[must_use]
    pub fn folder(&self, service: &Name) -> Option<Folder> {
        match self.services.get(service) {
            Some(Service { source, .. }) => source.as_ref().map(|source| Folder {
                backend: source.backend.clone(),
                folder: source.folder.clone(),
            }),
            None => self.defaults.as_ref().map(|backend| Folder {
                backend: backend.clone(),
                folder: service.to_string(),
            }),
        }
    }

    /// Where a secret is found; `None` if the config has no place for it.
    #[must_use]
    pub fn binding(&self, path: &SecretPath) -> Option<Arc<Binding>> {
        let place = |reference, stale| {
            Some(Arc::new(Binding {
                references: vec![reference],
                stale,
            }))
        };
        let Some(service) = self.services.get(&path.service) else {
            let backend = self.defaults.as_ref()?;
            return place(
                Reference::new(backend.clone(), path.to_string()),
                self.stale,
            );
        };
        let listed = service.secrets.get(&path.name);
        if let Some(binding) = listed.and_then(|secret| secret.binding.as_ref()) {
            return Some(Arc::clone(binding));
        }
        let source = service.source.as_ref()?;
        place(
            source.reference(&path.name),
            listed.map_or(self.stale, |secret| secret.stale),
        )
    }

    /// True if the config itself says where this secret is found.
    #[must_use]
    pub fn is_bound(&self, path: &SecretPath) -> bool {
        let listed = self.listed(path);
        listed.is_some_and(|secret| secret.binding.is_some())
    }

    /// The secrets whose value is, or could come to be, what is found at this reference's place.
    #[must_use]
    pub fn paths_from(&self, changed: &Reference) -> Vec<SecretPath> {
        let same = |r: &Reference| r.same_place(changed);
        let mut paths = Vec::new();
        for (name, service) in &self.services {
            let path = |secret: &Name| SecretPath {
                service: name.clone(),
                name: secret.clone(),
            };
            for (secret, listed) in &service.secrets {
                let binding = listed.binding.as_ref();
                if binding.is_some_and(|binding| binding.references.iter().any(same)) {
                    paths.push(path(secret));
                }
            }
            let last = changed.path.rsplit('/').next();
            if let Some(secret) = last.and_then(|last| last.parse().ok())
                && let Some(source) = &service.source
                && same(&source.reference(&secret))
                && !self.is_bound(&path(&secret))
            {
                paths.push(path(&secret));
            }
        }
        if self.defaults.as_ref() == Some(&changed.backend)
            && let Ok(path) = changed.path.parse::<SecretPath>()
            && !self.has_service(&path.service)
        {
            paths.push(path);
        }
        paths
    }

    /// The services whose secrets are the fields of the record at this reference's place, unless they are bound.
    #[must_use]
    pub fn services_from(&self, changed: &Reference) -> Vec<&Name> {
        let fields = |service: &Service| {
            let source = service.source.as_ref();
            source.is_some_and(|source| {
                source.shape == Shape::Fields
                    && source.backend.in_config() == changed.backend.in_config()
                    && source.folder.trim_end_matches('/') == changed.path
            })
        };
        let services = self.services.iter();
        let services = services.filter(|(_, service)| fields(service));
        services.map(|(name, _)| name).collect()
    }

    /// How a secret looks.
    #[must_use]
    pub fn look(&self, path: &SecretPath) -> Look {
        let listed = self.listed(path);
        listed.map(|secret| secret.look.clone()).unwrap_or_default()
    }

    fn listed(&self, path: &SecretPath) -> Option<&Listed> {
        self.services.get(&path.service)?.secrets.get(&path.name)
    }
}
