//! watch, wait: what happens in the daemon, for programs and scripts.

use serde_json::Value;

use crate::cli::session::Session;
use crate::cli::{daemon, input};
use crate::control::answers::Waited;
use crate::control::client::Upload;
use crate::control::{Failure, Kind, Request};

pub(crate) fn watch(session: &mut Session, paths: Vec<String>) -> Result<(), Failure> {
    let mount = &session.config.mount;
    let wanted: Vec<String> = paths
        .iter()
        .map(|text| input::subject(text, mount))
        .collect::<Result<_, _>>()?;
    daemon::required(session)?;
    let output = session.output;
    let mut held = Vec::new();
    session.call(Request::Watch {}, Upload::Empty, &mut |chunk| {
        held.extend_from_slice(&chunk);
        // A chunk may end in the middle of a line.
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            if wanted.is_empty() || concerns(&line, &wanted)? {
                output.raw(&line)?;
            }
        }
        Ok(())
    })?;
    // It ends only with the daemon, which says so.
    Err(Failure::failed("the daemon has ended"))
}

/// Whether an event is about one of these secrets and services, or about events that were missed.
fn concerns(line: &[u8], wanted: &[String]) -> Result<bool, Failure> {
    let event: Value = serde_json::from_slice(line)
        .map_err(|_| Failure::failed("the daemon is of another release: restart it"))?;
    let text = |key: &str| event.get(key).and_then(Value::as_str);
    if text("event") == Some("missed") {
        return Ok(true);
    }
    let Some(subject) = text("path").or(text("target")) else {
        return Ok(false);
    };
    let below = |part: &str, whole: &str| {
        part.strip_prefix(whole)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // What befalls a service befalls its secrets.
    Ok(wanted
        .iter()
        .any(|wanted| below(subject, wanted) || below(wanted, subject)))
}

pub(crate) fn wait(
    session: &mut Session,
    path: &str,
    after: Option<u64>,
    timeout: Option<&str>,
) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    let patience = timeout
        .map(|text| input::duration("--timeout", text))
        .transpose()?;
    daemon::required(session)?;
    let wait = Request::Wait {
        path: path.clone(),
        after,
    };
    let Some(waited) = session.ask_within::<Waited>(&wait, patience)? else {
        let timeout = timeout.unwrap_or_default();
        return Err(Failure::failed(format!(
            "{path}: no other generation within --timeout {timeout}: wait longer, or see `secretfs explain {path}`"
        )));
    };
    if session.output.json {
        session.output.print_json(&waited)?;
    } else if let Some(generation) = waited.generation {
        session.output.line(&generation.to_string())?;
    }
    if waited.removed {
        let message = match session.output.json {
            true => String::new(),
            false => format!("{path}: was removed: see `secretfs history {path}`"),
        };
        return Err(Failure::new(Kind::Absent, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_the_wanted_is_shown() {
        let table = [
            (r#"{"event":"rotated","path":"billing/x"}"#, true),
            (r#"{"event":"rotated","path":"billing/xy"}"#, false),
            (r#"{"event":"denied","path":"web/a"}"#, true),
            (r#"{"event":"removed","path":"web/b"}"#, true),
            (r#"{"event":"removed","path":"website/b"}"#, false),
            (r#"{"event":"denied"}"#, false),
            (r#"{"event":"revoked","target":"billing"}"#, true),
            (r#"{"event":"revoked","target":"uid 7"}"#, false),
            (r#"{"event":"backend-down","backend":"web"}"#, false),
            (r#"{"event":"missed","count":7}"#, true),
        ];
        let wanted = ["billing/x".to_owned(), "web".to_owned()];
        for (line, shown) in table {
            let line = format!("{line}\n");
            assert_eq!(concerns(line.as_bytes(), &wanted).unwrap(), shown, "{line}");
        }
        assert!(concerns(b"garbage\n", &wanted).is_err());
    }
}
