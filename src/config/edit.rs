//! `allow` and `disallow`: edits of the config that keep its comments and its layout.
//!
//! What the config should mean afterwards is worked out first. It is written only if the edited text means exactly that
//! when it is read again, so that an edit never breaks a config and never changes anything else in it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use crate::config::edit::rules::{add, show, take};
use crate::config::{
    Accounts, Config, ConfigErrors, RuleSpec, ServiceConfig, Shape, Source, accounts, open,
};
use crate::secret::Name;

mod rules;

/// What an edit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edited {
    /// False if everything was so already, and nothing was written.
    pub changed: bool,
    /// What whoever made it should know, each a line.
    pub notes: Vec<String>,
}

/// Lets whom `rule` names read the secrets of `service`.
///
/// A service without a section of its own gets one. It takes over the rules of `[defaults]`, so that nobody loses what
/// they had, and the notes say so.
///
/// # Errors
/// [`ConfigErrors`] if the config is wrong or cannot be written, and if nothing says where the service's secrets are.
pub fn allow(config: &Path, service: &Name, rule: &RuleSpec) -> Result<Edited, ConfigErrors> {
    change(config, &Change::Allow(service, rule))
}

/// Takes exactly `rule` away from `service`.
///
/// # Errors
/// [`ConfigErrors`] as for [`allow`], and if the service has no such rule: one that names more is not cut down.
pub fn disallow(config: &Path, service: &Name, rule: &RuleSpec) -> Result<Edited, ConfigErrors> {
    change(config, &Change::Disallow(service, rule))
}

enum Change<'a> {
    Allow(&'a Name, &'a RuleSpec),
    Disallow(&'a Name, &'a RuleSpec),
}

fn change(path: &Path, change: &Change<'_>) -> Result<Edited, ConfigErrors> {
    let real = open::open(path)?.path;
    let fail = |error: io::Error| {
        let mend = match error.kind() == io::ErrorKind::PermissionDenied {
            true => ": run this as its owner",
            false => "",
        };
        ConfigErrors::one(&real, format!("it cannot be changed: {error}{mend}"))
    };
    let folder = lock(real.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
    let opened = open::open(&real)?;
    let (text, edited) = edit(&opened.text, &real, &accounts::System, change)?;
    if edited.changed {
        replace(&real, &text, &folder).map_err(fail)?;
    }
    Ok(edited)
}

/// The edited text.
fn edit(
    text: &str,
    file: &Path,
    accounts: &dyn Accounts,
    change: &Change<'_>,
) -> Result<(String, Edited), ConfigErrors> {
    let fail = |problem: String| ConfigErrors::one(file, problem);
    let config = Config::parse_with(text, file, accounts)?;
    let mut document: DocumentMut = text
        .parse()
        .map_err(|_| fail("it cannot be edited: change it by hand".to_owned()))?;

    let mut wanted = config.clone();
    let mut edited = Edited::default();
    let (Change::Allow(name, rule) | Change::Disallow(name, rule)) = change;
    let own = wanted.services.contains_key(*name);
    let Some(section) = section(&mut wanted, name) else {
        return Err(fail(format!(
            "nothing says where the secrets of {name} are: write [services.{name}] with source = \"BACKEND:{name}\" first"
        )));
    };
    let place = section.allow.iter().position(|other| other == *rule);
    match (change, place) {
        (Change::Allow(..), Some(_)) => return Ok((text.to_owned(), edited)),
        (Change::Allow(..), None) => section.allow.push((*rule).clone()),
        (Change::Disallow(..), Some(place)) => {
            section.allow.remove(place);
        }
        (Change::Disallow(..), None) => {
            return Err(fail(format!(
                "no rule of {name} is exactly {}: {}",
                show(rule),
                listed(section)
            )));
        }
    }
    let after = section.clone();

    let written = if own {
        section_mut(&mut document, name).and_then(|table| match (change, place) {
            (Change::Allow(..), _) => add(table, rule),
            (Change::Disallow(..), place) => take(table, place?),
        })
    } else {
        if config
            .defaults
            .is_some_and(|defaults| !defaults.allow.is_empty())
        {
            edited.notes.push(format!(
                "{name} has a section of its own now, with the rules of [defaults] copied into it: later changes of [defaults] do not reach it"
            ));
        }
        make_section(&mut document, name, &after)
    };
    edited.changed = true;
    let text = document.to_string();
    match (written, Config::parse_with(&text, file, accounts)) {
        (Some(()), Ok(config)) if config == wanted => {}
        _ => {
            return Err(fail(format!(
                "it is written in a way that cannot be edited safely: change the rules of {name} by hand"
            )));
        }
    }
    if matches!(change, Change::Disallow(..)) {
        edited.notes.extend(still_allowed(name, rule, &after));
    }
    Ok((text, edited))
}

/// The section of the service, as it is or as it has to become.
fn section<'c>(config: &'c mut Config, name: &Name) -> Option<&'c mut ServiceConfig> {
    if !config.services.contains_key(name) {
        let (backend, allow) = match &config.defaults {
            Some(defaults) => (defaults.source.clone(), defaults.allow.clone()),
            None => {
                let mut stores = config.stores();
                let (Some((only, _)), None) = (stores.next(), stores.next()) else {
                    return None;
                };
                (only.clone(), Vec::new())
            }
        };
        let source = Source {
            backend,
            folder: name.to_string(),
            shape: Shape::Secrets,
        };
        let section = ServiceConfig {
            source: Some(source),
            allow,
            ..ServiceConfig::default()
        };
        config.services.insert(name.clone(), section);
    }
    config.services.get_mut(name)
}

/// Writes a section for a service that has none, at the end of the services or of the config.
fn make_section(document: &mut DocumentMut, name: &Name, service: &ServiceConfig) -> Option<()> {
    let mut table = Table::new();
    if let Some(source) = &service.source {
        table.insert(
            "source",
            value(format!("{}:{}", source.backend, source.folder)),
        );
    }
    for rule in &service.allow {
        add(&mut table, rule)?;
    }
    if !document.contains_key("services") {
        let mut services = Table::new();
        services.set_implicit(true);
        document.insert("services", Item::Table(services));
        // What stands at the very end stays before what is new.
        let end = document.trailing().as_str().unwrap_or_default();
        let end = end.trim_matches('\n');
        let gap = if end.is_empty() { "" } else { "\n\n" };
        table.decor_mut().set_prefix(format!("\n{end}{gap}"));
        document.set_trailing("\n");
    }
    let services = document.get_mut("services")?.as_table_like_mut()?;
    services.insert(name.as_str(), Item::Table(table));
    Some(())
}

fn section_mut<'d>(document: &'d mut DocumentMut, name: &Name) -> Option<&'d mut dyn TableLike> {
    let services = document.get_mut("services")?.as_table_like_mut()?;
    services.get_mut(name.as_str())?.as_table_like_mut()
}

/// What is there, for somebody who looked for something else.
fn listed(section: &ServiceConfig) -> String {
    if section.allow.is_empty() {
        return "it has none".to_owned();
    }
    let rules: Vec<_> = section.allow.iter().map(show).collect();
    format!(
        "it has {}; name one of them whole, or edit the config",
        rules.join(", ")
    )
}

/// A note for each rule that still names somebody whom the rule that went named.
fn still_allowed(name: &Name, gone: &RuleSpec, section: &ServiceConfig) -> Vec<String> {
    if section.allow.is_empty() {
        return vec![format!("{name} has no rule left: nobody may read it")];
    }
    let rules = section.allow.iter().enumerate();
    rules
        .filter(|(_, rule)| rule.overlaps(gone))
        .map(|(index, rule)| {
            let rule = show(rule);
            format!("services.{name}.allow[{index}] still names some of them: {rule}")
        })
        .collect()
}

/// Keeps others from changing the config, or an identity, that stands in this folder. Waits up to five seconds.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if somebody holds it all the time, else why it cannot be locked.
pub fn lock(folder: &Path) -> io::Result<Flock<File>> {
    let mut folder = File::open(folder)?;
    for _ in 0..250 {
        folder = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((folder, Errno::EWOULDBLOCK | Errno::EINTR)) => folder,
            Err((_, errno)) => return Err(errno.into()),
        };
        std::thread::sleep(Duration::from_millis(20));
    }
    let why = "somebody else is changing it: try again";
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// Puts `text` in the place of `file`, at once and for good, with the same owner and mode.
fn replace(file: &Path, text: &str, folder: &File) -> io::Result<()> {
    let old = fs::metadata(file)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(".new");
    let new = file.with_file_name(name);
    // Left behind by a crash: whoever writes holds the lock.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let write = || {
        let mut options = OpenOptions::new();
        let mut temporary = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        temporary.write_all(text.as_bytes())?;
        let current = temporary.metadata()?;
        if (current.uid(), current.gid()) != (old.uid(), old.gid()) {
            fchown(&temporary, Some(old.uid()), Some(old.gid()))?;
        }
        temporary.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        temporary.sync_all()?;
        fs::rename(&new, file)
    };
    write().inspect_err(|_| {
        // The error is told; what is left behind is cleared by the next edit at the latest.
        let _ = fs::remove_file(&new);
    })?;
    folder.sync_all()
}

#[cfg(test)]
mod tests;
