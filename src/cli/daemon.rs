//! mount, unmount, reload: the daemon's life.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::cli::session::Session;
use crate::clock::Clock;
use crate::config::Config;
use crate::control::answers::{DaemonStatus, Reloaded, Status};
use crate::control::{Failure, Kind, Request};
use crate::keeper::mountpoint::Mountpoint;
use crate::keeper::{self, KeeperError, premount};

/// How long a daemon may take to end.
const END: Duration = Duration::from_secs(15);
/// How long it may take until another release serves, or it is known that none can.
const UPGRADE: Duration = Duration::from_secs(15);

pub(crate) fn mount(config: &Config, clock: &Clock, ready: impl FnOnce()) -> Result<(), Failure> {
    keeper::run(config, clock, ready).map_err(|error| keeper_failure(&error))
}

pub(crate) fn premount(
    file: Option<&Path>,
    unit: &str,
    served: bool,
    clock: &Clock,
) -> Result<(), Failure> {
    // A config that cannot be used is no reason to end here: the server says what is wrong with it, and is not started again.
    let Ok(config) = super::place(file).and_then(|place| super::load(&place)) else {
        return Ok(());
    };
    let done = match served {
        true => premount::served(&config),
        false => premount::premount(&config, unit, clock),
    };
    done.map_err(|error| keeper_failure(&error))
}

pub(super) fn keeper_failure(error: &KeeperError) -> Failure {
    let kind = match error.exit_code() {
        2 => Kind::Usage,
        5 => Kind::Unavailable,
        _ => Kind::Failed,
    };
    // The server writes to the same place, and has said why it ended.
    let said = matches!(error, KeeperError::NotReady(_));
    let message = if said {
        String::new()
    } else {
        error.to_string()
    };
    Failure::new(kind, message)
}

pub(crate) fn unmount(session: &mut Session) -> Result<(), Failure> {
    let served = session.daemon()?;
    if served {
        let asked: Result<(), Failure> = session.ask(Request::Unmount {});
        // Whoever died before it could answer holds no lock any more, and its mount is taken away below.
        if let Err(failure) = asked
            && !matches!(session.try_lock(), Ok(Some(_)))
        {
            return Err(failure);
        }
        let deadline = session.clock.now() + END;
        // The keeper takes the socket away when everything else is gone; systemd leaves one that nobody listens to.
        while UnixStream::connect(session.socket()).is_ok() {
            if session.clock.now() >= deadline {
                return Err(Failure::failed(format!(
                    "{}: the daemon was told to end, and has not within {} s: see its log, and who holds files open there (`fuser -m`)",
                    session.config.mount.display(),
                    END.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let healed = Mountpoint::new(&session.config.mount, &session.config.file)
        .heal()
        .map_err(|error| Failure::failed(error.to_string()))?;
    if session.output.json {
        return session
            .output
            .print_json(&serde_json::json!({ "ended": served, "dead": healed }));
    }
    let mount = session.config.mount.display();
    session.output.line(&match (served, healed) {
        (true, _) => format!("{mount}: unmounted"),
        (false, true) => format!("{mount}: a dead mount is taken away"),
        (false, false) => format!("{mount}: not mounted, and no daemon runs"),
    })
}

/// For commands that mean nothing without a daemon.
pub(crate) fn required(session: &mut Session) -> Result<(), Failure> {
    if session.daemon()? {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "no daemon serves {}: start it with `secretfs mount`",
        session.config.file.display()
    )))
}

pub(crate) fn upgrade(session: &mut Session) -> Result<(), Failure> {
    required(session)?;
    let before = running(session)?;
    let began = session.clock.now();
    // Whoever takes over ends the server that was asked before it can answer.
    let asked: Result<Option<()>, Failure> =
        session.ask_within(&Request::Upgrade {}, Some(UPGRADE));
    let now = loop {
        // Whoever is ending may not answer any more.
        let now = required(session).and_then(|()| running(session));
        let another = |now: &DaemonStatus| (now.pid, now.since) != (before.pid, before.since);
        match now {
            Ok(now) if another(&now) => break now,
            // What was said first says more.
            Ok(_) => drop(asked.clone()?),
            Err(failure) if session.clock.now() >= began + UPGRADE => {
                return Err(asked.err().unwrap_or(failure));
            }
            Err(_) => {}
        }
        if session.clock.now() >= began + UPGRADE {
            return Err(Failure::failed(format!(
                "nobody took over within {} s: see the daemon's log",
                UPGRADE.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let took = session.clock.now().saturating_duration_since(began);
    if session.output.json {
        let answer = serde_json::json!({ "before": before.release, "now": now.release });
        return session.output.print_json(&answer);
    }
    session.output.line(&format!(
        "{}: secretfs {} has taken over from {}, in {:.1} s",
        now.mount,
        now.release,
        before.release,
        took.as_secs_f64()
    ))
}

fn running(session: &mut Session) -> Result<DaemonStatus, Failure> {
    let status: Status = session.ask(Request::Status {})?;
    let daemon = status.daemon;
    daemon.ok_or_else(|| Failure::failed("the daemon says nothing of itself"))
}

pub(crate) fn reload(session: &mut Session) -> Result<(), Failure> {
    required(session)?;
    let reloaded: Reloaded = session.ask(Request::Reload {})?;
    if session.output.json {
        return session.output.print_json(&reloaded);
    }
    if reloaded.changes.is_empty() {
        session
            .output
            .line("the config is in force: nothing has changed in it")?;
    } else {
        session.output.line("the config is in force")?;
    }
    for change in &reloaded.changes {
        session.output.line(&format!("  {change}"))?;
    }
    for unknown in &reloaded.unknown {
        session.output.line(&format!("note: {unknown}"))?;
    }
    Ok(())
}
