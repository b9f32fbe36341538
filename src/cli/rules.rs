//! allow, disallow: edits of the config with the caller's own rights.

use crate::cli::args::Rule;
use crate::cli::input;
use crate::cli::session::Session;
use crate::config::edit::{self, Edited};
use crate::config::{IdSpec, RuleSpec};
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
    let edited = edit(&service, &spec).map_err(|errors| Failure::usage(errors.to_string()))?;
    let reloaded = edited.changed && session.daemon()?;
    if reloaded {
        let _: Vec<String> = session.ask(Request::Reload {}).map_err(|failure| {
            let message = format!("the config is changed, but the daemon does not use it yet: {failure}: then `secretfs reload`");
            Failure::new(failure.kind, message)
        })?;
    }
    tell(session, change, &service, &edited, reloaded)
}

fn spec(rule: &Rule) -> Result<RuleSpec, Failure> {
    let ids = |flag: &str, text: &Option<String>| {
        text.as_deref()
            .map(|text| text.parse::<IdSpec>().map(|id| vec![id]))
            .transpose()
            .map_err(|error| Failure::usage(format!("{flag}: {error}")))
    };
    Ok(RuleSpec {
        uid: ids("--uid", &rule.uid)?,
        gid: ids("--gid", &rule.gid)?,
        unit: rule.unit.clone(),
        container: rule.container.clone(),
    })
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
