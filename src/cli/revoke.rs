//! revoke, unrevoke.

use crate::backend::Version;
use crate::cli::args::Revocable;
use crate::cli::output::{Mood, Styled, plain};
use crate::cli::session::Session;
use crate::cli::{daemon, input};
use crate::config;
use crate::control::answers::Unrevoked;
use crate::control::{Failure, Request};
use crate::policy::revocation::{Revocation, Target};
use crate::sys::Uid;

pub(crate) fn revoke(
    session: &mut Session,
    what: Revocable,
    duration: Option<&str>,
) -> Result<(), Failure> {
    let target = target(session, what)?;
    let seconds = duration.map(seconds).transpose()?;
    daemon::required(session)?;
    let revocation: Revocation = session.ask(Request::Revoke { target, seconds })?;
    if session.output.json {
        return session.output.print_json(&revocation);
    }
    let until = match revocation.until {
        Some(until) => format!("until {until:.0}"),
        None => format!("until `secretfs unrevoke {}`", revocation.target.words()),
    };
    session
        .output
        .line(&format!("{}: revoked {until}", revocation.target))
}

pub(crate) fn unrevoke(session: &mut Session, what: Revocable) -> Result<(), Failure> {
    let target = target(session, what)?;
    daemon::required(session)?;
    let done: Unrevoked = session.ask(Request::Unrevoke { target })?;
    if session.output.json {
        return session.output.print_json(&done);
    }
    let lifted = &done.lifted.target;
    if done.still.is_empty() {
        return session
            .output
            .line(&format!("{lifted}: given back; nothing else is revoked"));
    }
    session
        .output
        .line(&format!("{lifted}: given back; still revoked:"))?;
    let rows: Vec<Vec<Styled>> = done
        .still
        .iter()
        .map(|revocation| {
            let until = revocation.until.map(|until| format!("{until:.0}"));
            vec![
                (revocation.target.to_string(), Mood::Bad),
                plain(format!("{:.0}", revocation.since)),
                plain(until.unwrap_or_else(|| "unrevoked".to_owned())),
                plain(format!("uid {}", revocation.by)),
            ]
        })
        .collect();
    session
        .output
        .table(&["REVOKED", "SINCE", "UNTIL", "BY"], rows)
}

fn target(session: &Session, what: Revocable) -> Result<Target, Failure> {
    let mount = &session.config.mount;
    match (what.path, what.uid) {
        (Some(text), _) => {
            let below = input::below(&text, mount).trim_end_matches('/');
            match (below.contains('/'), what.version) {
                (true, None) => Ok(Target::Secret(input::secret(&text, mount)?)),
                (true, Some(version)) => {
                    let path = input::secret(&text, mount)?;
                    Ok(Target::Version(path, Version::new(version)))
                }
                (false, None) => Ok(Target::Service(input::service(&text, mount)?)),
                (false, Some(_)) => Err(Failure::usage(
                    "--version: only a secret has versions: write SERVICE/NAME before it",
                )),
            }
        }
        (None, Some(user)) => Ok(Target::User(Uid(input::user(&user)?.uid))),
        (None, None) => Ok(Target::All),
    }
}

fn seconds(text: &str) -> Result<u64, Failure> {
    let wrong = || Failure::usage("--for: write a time such as 90s, 10m or 24h");
    let duration = config::duration(text).map_err(|_| wrong())?;
    match duration.as_secs() {
        0 => Err(wrong()),
        seconds => Ok(seconds),
    }
}
