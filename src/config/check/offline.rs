//! `[offline]`: what is shown after a start without a network.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{DURATION, keys, path, value};
use crate::config::file::Item;
use crate::config::values::{self, ValueError};
use crate::config::{BackendConfig, OfflineConfig};
use crate::secret::Name;

/// For how long if nobody says otherwise: a week.
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);

pub(super) fn offline(
    item: &Item<'_>,
    backends: &BTreeMap<Name, Option<BackendConfig>>,
) -> Option<OfflineConfig> {
    let section = item.section(keys::OFFLINE)?;
    let file = section.need("path", "\"/var/lib/secretfs/offline.age\"");
    let file = file.and_then(|item| path(&item));
    let max_age = |text: &str| match values::duration(text)? {
        Duration::ZERO => Err(ValueError(
            "nothing would be kept: leave [offline] out, or write how long, as in \"168h\"",
        )),
        duration => Ok(duration),
    };
    let max_age = value(&section, "max_age", DURATION, max_age);
    // One that has mistakes is said to have them.
    let store = |backend: &Option<BackendConfig>| !matches!(backend, Some(BackendConfig::Vault(_)));
    if !backends.values().any(store) {
        item.fail(
            "the file is sealed to the identity of a store, and there is none: add [backends.local] with type = \"store\", and run `secretfs init`",
        );
    }
    Some(OfflineConfig {
        path: file?,
        max_age: max_age.unwrap_or(MAX_AGE),
    })
}
