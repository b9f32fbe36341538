//! `[backends.NAME]`: a section of keys for each `type`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Backends, DURATION, keys, path, value};
use crate::backend::vault::http_origin;
use crate::backend::vault::settings::{ClientCertificate, Method, Settings};
use crate::config::file::{Item, Section};
use crate::config::values;
use crate::config::{BackendConfig, ServiceConfig, StoreConfig};
use crate::secret::Name;

/// Where Kubernetes puts a pod's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// `None` for a backend that is wrong, and told; it is defined all the same.
pub(super) fn backend(item: &Item<'_>) -> Option<BackendConfig> {
    // The type decides which keys are known, so it is looked at before them.
    let Some(kind) = item.peek("type") else {
        if item.must_be_table() {
            item.fail("`type` is missing: write type = \"store\" or type = \"vault\"");
        }
        return None;
    };
    match kind.text("a backend's type, as in \"store\" or \"vault\"")? {
        "store" => store(item),
        "vault" => vault(item).map(BackendConfig::Vault),
        _ => {
            kind.fail("no such type of backend: known are \"store\" and \"vault\"");
            None
        }
    }
}

/// The files that a backend needs, by their keys.
pub(super) fn files(backend: &BackendConfig) -> Vec<(&'static str, &Path)> {
    let mut files: Vec<(&str, Option<&Path>)> = Vec::new();
    match backend {
        BackendConfig::Store(store) => {
            files.push(("path", Some(&store.path)));
            files.push(("identity", store.identity.as_deref()));
        }
        BackendConfig::Vault(vault) => {
            files.push(("ca", vault.ca.as_deref()));
            let client = vault.client.as_ref();
            files.push(("client", client.map(|client| &*client.certificate)));
            files.push(("client", client.map(|client| &*client.key)));
            files.push(("auth", vault.auth.file()));
        }
    }
    let given = |(key, file): (&'static str, Option<_>)| Some((key, file?));
    files.into_iter().filter_map(given).collect()
}

fn store(item: &Item<'_>) -> Option<BackendConfig> {
    let section = item.section(keys::STORE)?;
    let path = section
        .need("path", "\"/var/lib/secretfs/store.age\"")
        .and_then(|item| path(&item));
    let identity = section
        .get("identity")
        .map(|item| file(&item, "\"/etc/secretfs/identity.txt\""));
    if let Some(path) = &path
        && path.extension().is_some_and(|end| end == "d")
    {
        section
            .fail("`path` must not end in `.d`, as the folder of the values does: write \"….age\"");
    }
    Some(BackendConfig::Store(StoreConfig {
        path: path?,
        identity: match identity {
            Some(identity) => Some(identity?),
            None => None,
        },
    }))
}

/// `{ file = "…" }`
pub(super) fn file(item: &Item<'_>, example: &str) -> Option<PathBuf> {
    let section = item.section(keys::FILE)?;
    path(&section.need("file", example)?)
}

/// `{ certificate = "…", key = "…" }`
pub(super) fn client(item: &Item<'_>) -> Option<ClientCertificate> {
    let section = item.section(keys::CLIENT)?;
    let file = |key| path(&section.need(key, "\"/etc/secretfs/client.pem\"")?);
    let (certificate, key) = (file("certificate"), file("key"));
    Some(ClientCertificate {
        certificate: certificate?,
        key: key?,
    })
}

fn vault(item: &Item<'_>) -> Option<Settings> {
    let section = item.section(keys::VAULT)?;
    let address = section.get("address").and_then(|item| {
        let address = item.text("the server's address, as in \"https://HOST:8200\"")?;
        match http_origin(address) {
            Ok(origin) => Some(origin),
            Err(why) => {
                item.fail(why);
                None
            }
        }
    });
    let namespace = section.get("namespace").and_then(|item| {
        let text = item.text("a namespace, as in \"team-a\"")?;
        let odd = |c: char| c.is_whitespace() || c.is_control() || !c.is_ascii();
        if text.is_empty() || text.contains(odd) {
            item.fail("write a namespace, as in \"team-a\" or \"team-a/eu\"");
        }
        Some(text.trim_matches('/').to_owned())
    });
    let client = section.get("client").and_then(|item| client(&item));
    let auth = match section.get("auth") {
        Some(item) => auth(&item),
        None => Some(Method::Token { file: None }),
    };
    if let Some(Method::Certificate { .. }) = auth
        && section.get("client").is_none()
    {
        section.fail("signing in by certificate needs one: write client = { certificate = \"…\", key = \"…\" }");
    }
    let ca = section.get("ca").map(|item| path(&item));
    Some(Settings {
        address,
        ca: match ca {
            Some(ca) => Some(ca?),
            None => None,
        },
        client,
        namespace,
        poll: value(&section, "poll", DURATION, values::duration).unwrap_or(Settings::POLL),
        auth: auth?,
    })
}

/// Has each service that signs in for itself do so: to it the backend is another one.
pub(super) fn identities(
    mut services: BTreeMap<Name, ServiceConfig>,
    mut backends: Backends,
    items: &[(Name, Item<'_>)],
) -> (BTreeMap<Name, ServiceConfig>, Backends) {
    for (name, item) in items {
        let Some(item) = item.peek("auth") else {
            continue;
        };
        let Some((backend, method)) = identity(&item, &backends) else {
            continue;
        };
        let Some(Some(BackendConfig::Vault(settings))) = backends.get(&backend) else {
            continue;
        };
        let settings = Settings {
            auth: method,
            ..settings.clone()
        };
        let own = backend.of_service(name);
        if let Some(service) = services.get_mut(name) {
            service.sign_in(&backend, &own);
        }
        backends.insert(own, Some(BackendConfig::Vault(settings)));
    }
    (services, backends)
}

/// A service's own way to sign in, and to which backend.
fn identity(item: &Item<'_>, backends: &Backends) -> Option<(Name, Method)> {
    let section = item.section(keys::SERVICE_AUTH)?;
    let servers: Vec<&Name> = backends
        .iter()
        .filter(|(_, backend)| matches!(backend, Some(BackendConfig::Vault(_))))
        .map(|(name, _)| name)
        .filter(|name| name.as_str() == name.in_config())
        .collect();
    let named = match section.get("backend") {
        Some(item) => {
            let text = item.text("the name of a backend, as in \"vault\"")?;
            let named = servers.iter().find(|name| name.as_str() == text);
            if named.is_none() {
                item.fail("no backend of type \"vault\" has this name");
            }
            *named?
        }
        None => {
            match &servers[..] {
                [only] => only,
                [] => {
                    item.fail("no backend is signed in to: add a section [backends.NAME] of type \"vault\"");
                    return None;
                }
                _ => {
                    section.need("backend", "the name of one of the servers");
                    return None;
                }
            }
        }
    };
    let method = method(item, &section)?;
    if let Method::Token { file: None } = method {
        section.need("file", "\"…\", the service's own token");
        return None;
    }
    Some((named.clone(), method))
}

/// How we sign in. Each method has its own keys among those that are known.
fn auth(item: &Item<'_>) -> Option<Method> {
    method(item, &item.section(keys::AUTH)?)
}

fn method(item: &Item<'_>, section: &Section<'_>) -> Option<Method> {
    let method = section.need(
        "method",
        "\"token\", \"approle\", \"jwt\", \"kubernetes\" or \"cert\"",
    )?;
    let name = method.text("a way to sign in, as in \"approle\"")?;
    let takes: &[&'static str] = match name {
        "token" => &["file"],
        "approle" => &["mount", "role_id", "secret_id"],
        "jwt" | "kubernetes" => &["mount", "role", "jwt"],
        "cert" => &["mount", "role"],
        _ => {
            method.fail(
                "no such way to sign in: known are \"token\", \"approle\", \"jwt\", \"kubernetes\" and \"cert\"",
            );
            return None;
        }
    };
    for key in keys::AUTH.iter().filter(|key| **key != "method") {
        if let Some(item) = item.peek(key).filter(|_| !takes.contains(key)) {
            item.fail(format!(
                "method = \"{name}\" does not take it: it takes `{}`",
                takes.join("`, `")
            ));
        }
    }
    let mount = word(section, "mount").map(|mount| mount.trim_matches('/').to_owned());
    let mount = mount.unwrap_or_else(|| name.to_owned());
    Some(match name {
        "token" => Method::Token {
            file: match section.get("file") {
                Some(item) => Some(path(&item)?),
                None => None,
            },
        },
        "approle" => {
            let role_id = section.need("role_id", "\"…\"");
            let role_id = role_id.and_then(|_| word(section, "role_id"));
            let secret_id = section.need("secret_id", "{ file = \"/etc/secretfs/secret-id\" }");
            let secret_id = secret_id.and_then(|item| {
                let section = item.section(keys::SECRET_ID)?;
                let file = section.need("file", "\"/etc/secretfs/secret-id\"");
                let wrapped = section.get("wrapped").and_then(|item| item.yes_or_no());
                Some((path(&file?)?, wrapped.unwrap_or_default()))
            });
            let (secret_id, wrapped) = secret_id?;
            Method::AppRole {
                mount,
                role_id: role_id?,
                secret_id,
                wrapped,
            }
        }
        "cert" => Method::Certificate {
            mount,
            role: word(section, "role"),
        },
        kind => {
            let jwt = match (section.get("jwt"), kind) {
                (Some(item), _) => file(&item, "\"/run/spire/token\""),
                (None, "kubernetes") => Some(PathBuf::from(SERVICE_ACCOUNT)),
                (None, _) => {
                    section.need("jwt", "{ file = \"/run/spire/token\" }");
                    None
                }
            };
            let role = word(section, "role");
            if kind == "kubernetes" && role.is_none() {
                section.need("role", "\"…\", the role that the server knows");
            }
            Method::Jwt {
                mount,
                role,
                jwt: jwt?,
            }
        }
    })
}

/// Text without spaces.
pub(super) fn word(section: &Section<'_>, key: &'static str) -> Option<String> {
    let item = section.get(key)?;
    let text = item.text("a word, as in \"billing\"")?;
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        item.fail("write one word");
        return None;
    }
    Some(text.to_owned())
}
