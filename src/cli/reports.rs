//! status, explain, audit.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::cli::input;
use crate::cli::output::{Mood, Styled, note, plain, printable};
use crate::cli::session::{Session, understand};
use crate::control::answers::{
    AuditLine, AuditSummary, BrokerStatus, Explained, LeaseStatus, OfflineStatus, SignalStatus,
    Status,
};
use crate::control::client::Upload;
use crate::control::protocol::{AuditQuery, Subject};
use crate::control::{Failure, Kind, Request};

pub(crate) fn status(session: &mut Session) -> Result<(), Failure> {
    let status: Status = session.ask(Request::Status {})?;
    if session.output.json {
        return session.output.print_json(&status);
    }
    let mut rows: Vec<Vec<Styled>> = Vec::new();
    let mut row = |what: &str, text: String, mood| rows.push(vec![plain(what), (text, mood)]);
    match &status.daemon {
        Some(daemon) => {
            row("mount", daemon.mount.clone(), Mood::Good);
            let text = format!(
                "pid {}, uid {}, since {:.0}, release {}",
                daemon.pid, daemon.uid, daemon.since, daemon.release
            );
            row("daemon", text, Mood::Good);
        }
        None => {
            row(
                "mount",
                session.config.mount.display().to_string(),
                Mood::Doubtful,
            );
            row(
                "daemon",
                "none: start it with `secretfs mount`".to_owned(),
                Mood::Doubtful,
            );
        }
    }
    for backend in &status.backends {
        let mut text = backend.kind.clone();
        if let Some(secrets) = backend.secrets {
            let _ = write!(text, ", {secrets} secrets");
        }
        let mood = if backend.trouble.is_some() {
            Mood::Bad
        } else {
            Mood::Good
        };
        if let Some(trouble) = &backend.trouble {
            let _ = write!(text, ": {trouble}");
        }
        row(&format!("backend {}", backend.name), text, mood);
        if let Some(signals) = &backend.signals {
            let what = format!("changes at {}", backend.name);
            row(&what, noticed(signals), Mood::Plain);
            if signals.refused > 0 {
                row(&what, unseen(signals.refused), Mood::Doubtful);
            }
        }
        if let Some(leases) = &backend.leases {
            row(
                &format!("leases of {}", backend.name),
                leased(leases),
                Mood::Plain,
            );
        }
    }
    if let Some(broker) = &status.broker {
        let (text, mood) = reached(broker);
        row(&format!("broker {}", broker.url), text, mood);
    }
    let cache = format!(
        "{} values, {} bytes, {} fetches under way, {} open handles",
        status.cached, status.cached_bytes, status.fetching, status.handles
    );
    row("cache", cache, Mood::Plain);
    if let Some(offline) = &status.offline {
        let (text, mood) = kept(offline);
        row("offline", text, mood);
    }
    match status.audit_failure {
        Some(failure) => row("audit", failure, Mood::Bad),
        None => row("audit", format!("{} lines", status.audit_lines), Mood::Good),
    }
    for unknown in status.unknown {
        row("account", unknown, Mood::Bad);
    }
    for revocation in status.revoked {
        let until = match revocation.until {
            Some(until) => format!("until {until:.0}"),
            None => "until it is unrevoked".to_owned(),
        };
        let text = format!(
            "{}: since {:.0}, {until}, by uid {}",
            revocation.target, revocation.since, revocation.by
        );
        row("revoked", text, Mood::Bad);
    }
    session.output.table(&[], rows)
}

/// How changes are noticed, and when that last happened.
fn noticed(signals: &SignalStatus) -> String {
    let when = |time: Option<Timestamp>| match time {
        Some(time) => format!("{time:.0}"),
        None => "none yet".to_owned(),
    };
    format!(
        "{} in use, last poll {}, last signal {}",
        counted(signals.in_use),
        when(signals.polled),
        when(signals.heard)
    )
}

/// What a start without a network could show.
fn kept(offline: &OfflineStatus) -> (String, Mood) {
    let OfflineStatus {
        path,
        secrets,
        written,
        trouble,
    } = offline;
    match (trouble, written) {
        (Some(trouble), _) => (trouble.clone(), Mood::Bad),
        (None, Some(written)) => (
            format!("{secrets} secrets in {path}, written {written:.0}"),
            Mood::Good,
        ),
        (None, None) => (format!("{path}, not written yet"), Mood::Plain),
    }
}

fn leased(leases: &LeaseStatus) -> String {
    let (held, next) = (leases.held, leases.next_end);
    format!("{held} held, the next ends {next:.0} unless it is renewed")
}

fn reached(broker: &BrokerStatus) -> (String, Mood) {
    match (broker.connected, &broker.trouble) {
        (Some(since), _) => (format!("connected since {since:.0}"), Mood::Good),
        (None, Some(why)) => (format!("trying again: {why}"), Mood::Bad),
        (None, None) => ("connecting".to_owned(), Mood::Doubtful),
    }
}

fn unseen(records: usize) -> String {
    let records = counted(records);
    format!("cannot see versions of {records}: the policy forbids metadata; the TTL alone counts")
}

fn counted(records: usize) -> String {
    match records {
        1 => "1 record".to_owned(),
        records => format!("{records} records"),
    }
}

pub(crate) fn explain(
    session: &mut Session,
    path: &str,
    pid: Option<u32>,
    uid: Option<&str>,
    gid: Option<&str>,
) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    let subject = match (pid, uid) {
        (Some(pid), _) => Some(Subject::Process { pid }),
        (None, Some(user)) => {
            let user = input::user(user)?;
            let gid = match gid {
                Some(group) => input::group(group)?,
                None => user.gid.ok_or_else(|| {
                    Failure::usage(
                        "--uid: this number has no account, so its group is not known: add --gid",
                    )
                })?,
            };
            Some(Subject::Ids {
                uid: user.uid,
                gid,
                groups: user.groups,
            })
        }
        (None, None) => None,
    };
    let explained: Explained = session.ask(Request::Explain { path, subject })?;
    if session.output.json {
        return session.output.print_json(&explained);
    }
    let mut rows: Vec<Vec<Styled>> = Vec::new();
    let mut row = |what: &str, text: String, mood| rows.push(vec![plain(what), (text, mood)]);
    let (word, mood) = if explained.allowed {
        ("allowed", Mood::Good)
    } else {
        ("denied", Mood::Bad)
    };
    row("secret", explained.path.to_string(), Mood::Plain);
    let mut who = format!("uid {}, gid {}", explained.uid, explained.gid);
    if let Some(groups) = &explained.groups {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let _ = write!(who, ", groups [{}]", groups.join(" "));
    }
    for (what, value) in [
        ("unit", &explained.unit),
        ("container", &explained.container),
    ] {
        if let Some(value) = value {
            let _ = write!(who, ", {what} {value}");
        }
    }
    row("reader", who, Mood::Plain);
    row("decision", format!("{word}: {}", explained.reason), mood);
    for reference in explained.references {
        row("reference", reference, Mood::Plain);
    }
    let cached = match explained.cached {
        Some(version) => format!("version {version}"),
        None => "nothing".to_owned(),
    };
    row("cached", cached, Mood::Plain);
    session.output.table(&[], rows)
}

/// What `audit` is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) follow: bool,
    pub(crate) secret: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) since: Option<String>,
    pub(crate) denied: bool,
}

pub(crate) fn audit(session: &mut Session, wanted: Wanted) -> Result<(), Failure> {
    let now = session.clock.timestamp();
    let uid = wanted.uid.as_deref().map(input::user).transpose()?;
    let since = wanted
        .since
        .as_deref()
        .map(|text| input::since(text, now))
        .transpose()?;
    let query = AuditQuery {
        follow: wanted.follow,
        path: wanted
            .secret
            .map(|text| input::subject(&text, &session.config.mount))
            .transpose()?,
        uid: uid.map(|user| user.uid),
        since,
        denied: wanted.denied,
    };
    let output = session.output;
    let mut held = Vec::new();
    let answer = session.call(Request::Audit(query), Upload::Empty, &mut |chunk| {
        held.extend_from_slice(&chunk);
        // A chunk may end in the middle of a line.
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            if output.json {
                output.raw(&line)?;
                continue;
            }
            let line: AuditLine = serde_json::from_slice(&line)
                .map_err(|_| Failure::failed("the daemon is of another release: restart it"))?;
            let mark = if line.verified {
                ""
            } else {
                "  (not verified)"
            };
            output.line(&format!("{}{mark}", printable(&line.record.to_string())))?;
        }
        Ok(())
    })?;
    let summary: AuditSummary = understand(answer.json)?;
    if output.json {
        output.print_json(&summary)?;
    }
    if let Some(broken) = summary.broken {
        return Err(Failure::new(
            Kind::Failed,
            format!(
                "the audit log was changed: {broken}: keep the files as evidence, and compare them with a copy"
            ),
        ));
    }
    if output.json {
        return Ok(());
    }
    let verified = if summary.verified {
        "the chain is unbroken"
    } else {
        "not verified: there is no key"
    };
    let lost = match (summary.torn, summary.lost) {
        (0, 0) => String::new(),
        (torn, lost) => format!(", {torn} torn by a crash, {lost} events lost"),
    };
    note(&format!("{} lines read, {verified}{lost}", summary.lines));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_connected_or_tried_again() {
        let mut broker = BrokerStatus {
            url: "tls://n.example:4222".to_owned(),
            connected: None,
            trouble: None,
        };
        assert_eq!(reached(&broker).0, "connecting");
        broker.trouble = Some("no route".to_owned());
        assert_eq!(reached(&broker).0, "trying again: no route");
        let since = "2026-11-25T16:00:00.7Z".parse().unwrap();
        (broker.connected, broker.trouble) = (Some(since), None);
        assert_eq!(reached(&broker).0, "connected since 2026-11-25T16:00:00Z");
        let leases = LeaseStatus {
            held: 2,
            next_end: since,
        };
        let line = "2 held, the next ends 2026-11-25T16:00:00Z unless it is renewed";
        assert_eq!(leased(&leases), line);
    }

    #[test]
    fn how_changes_are_noticed_is_one_line_and_what_is_not_seen_another() {
        let mut signals = SignalStatus {
            polled: None,
            heard: None,
            in_use: 1,
            refused: 1,
        };
        let line = "1 record in use, last poll none yet, last signal none yet";
        assert_eq!(noticed(&signals), line);
        signals.in_use = 12;
        signals.polled = Some("2026-11-25T16:00:00.7Z".parse().unwrap());
        let line = "12 records in use, last poll 2026-11-25T16:00:00Z, last signal none yet";
        assert_eq!(noticed(&signals), line);
        assert_eq!(
            unseen(3),
            "cannot see versions of 3 records: the policy forbids metadata; the TTL alone counts"
        );
    }
}
