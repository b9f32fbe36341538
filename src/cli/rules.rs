//! allow, disallow: edits of the config with the caller's own rights.

use crate::cli::args::Rule;
use crate::cli::input;
use crate::cli::session::Session;
use crate::cli::wrong_config;
use crate::config::edit::{self, Edited};
use crate::config::{IdSpec, RuleSpec, ValueError};
use crate::control::answers::Reloaded;
use crate::control::{Failure, Request};
use crate::secret::Name;

/// Which of the two.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Allow,
    Disallow,
}

pub(crate) fn change(session: &mut Session, change: Change, rule: &Rule) -> Result<(), Failure> {
    let service = input::service(&rule.service, &session.config.mount)?;
    let spec = spec(rule)?;
    let edit = |service: &Name, spec: &RuleSpec| match change {
        Change::Allow => edit::allow(&session.config.file, service, spec),
        Change::Disallow => edit::disallow(&session.config.file, service, spec),
    };
    let edited = edit(&service, &spec).map_err(|errors| wrong_config(&errors))?;
    let reloaded = edited.changed && session.daemon()?;
    if reloaded {
        let _: Reloaded = session.ask(Request::Reload {}).map_err(|failure| {
            let message = format!("the config is changed, but the daemon does not use it yet: {failure}: then `secretfs reload`");
            Failure::new(failure.kind, message)
        })?;
    }
    tell(session, change, &service, &edited, reloaded)
}

fn spec(rule: &Rule) -> Result<RuleSpec, Failure> {
    let ids = |flag: &str, text: &Option<String>| -> Result<Vec<IdSpec>, Failure> {
        let ids: Result<_, ValueError> = text.iter().map(|text| text.parse()).collect();
        ids.map_err(|error| Failure::usage(format!("{flag}: {error}")))
    };
    let (uid, gid) = (ids("--uid", &rule.uid)?, ids("--gid", &rule.gid)?);
    let uid_map = ids("--uid-map", &rule.uid_map)?;
    let (unit, container) = (rule.unit.clone(), rule.container.clone());
    RuleSpec::new(uid, uid_map, gid, unit, container)
        .map_err(|error| Failure::usage(format!("the rule: {error}")))
}

fn tell(
    session: &Session,
    change: Change,
    service: &Name,
    edited: &Edited,
    reloaded: bool,
) -> Result<(), Failure> {
    if session.output.json {
        return session.output.print_json(&serde_json::json!({
            "service": service,
            "changed": edited.changed,
            "reloaded": reloaded,
            "notes": edited.notes,
        }));
    }
    let what = match (change, edited.changed, reloaded) {
        (_, false, _) => "is so already",
        (Change::Allow, true, true) => "allowed, from now on",
        (Change::Allow, true, false) => "allowed, from the next start of the daemon on",
        (Change::Disallow, true, true) => "no longer allowed",
        (Change::Disallow, true, false) => {
            "no longer allowed, from the next start of the daemon on"
        }
    };
    session.output.line(&format!("{service}: {what}"))?;
    for note in &edited.notes {
        session.output.line(&format!("note: {note}"))?;
    }
    Ok(())
}
