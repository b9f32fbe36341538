//! What the commands read: values, paths, answers, people and times.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Zoned, civil};
use nix::unistd;
use zeroize::Zeroizing;

use crate::control::Failure;
use crate::secret::{MAX_VALUE, Name, PathError, SecretBytes, SecretPath};

/// `service/name`, with or without the mountpoint before it.
///
/// # Errors
/// A usage [`Failure`].
pub fn secret(text: &str, mount: &Path) -> Result<SecretPath, Failure> {
    below(text, mount).parse().map_err(|error| match error {
        PathError::Shape(_) => {
            Failure::usage("PATH: write SERVICE/NAME, as in billing/db-password")
        }
        PathError::Name(_) => not_a_name("PATH"),
    })
}

/// A service, with or without the mountpoint before it.
///
/// # Errors
/// A usage [`Failure`].
pub fn service(text: &str, mount: &Path) -> Result<Name, Failure> {
    below(text, mount)
        .trim_end_matches('/')
        .parse()
        .map_err(|_| not_a_name("SERVICE"))
}

/// A service or a secret of one, for filters.
///
/// # Errors
/// A usage [`Failure`].
pub fn subject(text: &str, mount: &Path) -> Result<String, Failure> {
    match below(text, mount).trim_end_matches('/').contains('/') {
        true => Ok(secret(text, mount)?.to_string()),
        false => Ok(service(text, mount)?.to_string()),
    }
}

/// What was typed is not repeated: it may be a value in the wrong place.
fn not_a_name(what: &str) -> Failure {
    Failure::usage(format!(
        "{what}: a name is 1 to 128 letters, digits, '.', '_' or '-', a letter or digit first"
    ))
}

/// What stands below the mountpoint.
pub(crate) fn below<'a>(text: &'a str, mount: &Path) -> &'a str {
    Path::new(text)
        .strip_prefix(mount)
        .ok()
        .and_then(Path::to_str)
        .unwrap_or(text)
}

/// A value from a file.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn value_from_file(path: &Path) -> Result<SecretBytes, Failure> {
    let mut file = open(path)?;
    SecretBytes::read_from(&mut file, MAX_VALUE)
        .map_err(|error| unreadable(&path.display().to_string(), &error))
}

/// A file for reading, as whoever runs the command may read it.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> Result<File, Failure> {
    let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    file.map_err(|error| {
        Failure::failed(format!(
            "{}: {error}: name a file that can be read",
            path.display()
        ))
    })
}

/// A value from stdin, byte for byte; on a terminal it is asked for and not shown.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn value_from_stdin(path: &SecretPath) -> Result<SecretBytes, Failure> {
    if io::stdin().is_terminal() {
        let prompt = format!("Value of {path} (not shown; end with Enter): ");
        let typed = rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .map_err(|error| unreadable("the terminal", &error))?;
        return Ok(SecretBytes::new(typed.as_bytes().to_vec()));
    }
    let value = SecretBytes::read_from(&mut io::stdin().lock(), MAX_VALUE)
        .map_err(|error| unreadable("stdin", &error))?;
    // A value like any other, but what was to bring it may have failed: the version before is still there.
    if value.is_empty() {
        crate::cli::output::note(&format!(
            "nothing was on stdin, so {path} is empty now: `secretfs rollback` brings the version before back"
        ));
    }
    Ok(value)
}

fn unreadable(what: &str, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Failure::failed(format!(
            "{what}: a value has at most {MAX_VALUE} bytes (1 MiB): keep larger things encrypted in a file, and its key here"
        ));
    }
    Failure::failed(format!(
        "{what} cannot be read: {error}: see where it comes from"
    ))
}

/// Asks a question on the terminal. Without one there is nobody to ask.
///
/// # Errors
/// A [`Failure`] that says how to do without the question, when the answer is no.
pub fn confirm(question: &str, otherwise: &str) -> Result<(), Failure> {
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/tty")
        .map_err(|_| Failure::failed(format!("not done: {otherwise}")))?;
    let asked = write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush());
    let mut answer = Vec::new();
    let mut byte = [0];
    while asked.is_ok() && answer.len() < 10 {
        match terminal.read(&mut byte) {
            Ok(1) if byte != *b"\n" => answer.extend_from_slice(&byte),
            Ok(_) | Err(_) => break,
        }
    }
    match answer.to_ascii_lowercase().as_slice() {
        b"y" | b"yes" => Ok(()),
        _ => Err(Failure::failed(format!("not done: {otherwise}"))),
    }
}

/// A user, who need not have an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The number.
    pub uid: u32,
    /// The account's first group.
    pub gid: Option<u32>,
    /// All groups of the account.
    pub groups: Vec<u32>,
}

/// A user, by name or number.
///
/// # Errors
/// A usage [`Failure`] for a name that is not known.
pub fn user(text: &str) -> Result<User, Failure> {
    let number = text.parse::<u32>().ok();
    let account = match number {
        Some(number) => unistd::User::from_uid(unistd::Uid::from_raw(number)),
        None => unistd::User::from_name(text),
    };
    match (account.ok().flatten(), number) {
        (Some(account), _) => {
            let groups = CString::new(account.name)
                .ok()
                .and_then(|name| unistd::getgrouplist(&name, account.gid).ok());
            let groups = groups.unwrap_or_default().into_iter();
            Ok(User {
                uid: account.uid.as_raw(),
                gid: Some(account.gid.as_raw()),
                groups: groups.map(unistd::Gid::as_raw).collect(),
            })
        }
        (None, Some(uid)) => Ok(User {
            uid,
            gid: None,
            groups: Vec::new(),
        }),
        (None, None) => Err(Failure::usage(
            "--uid: there is no such user: see `getent passwd`, or give the number",
        )),
    }
}

/// A group's number, by name or number.
///
/// # Errors
/// A usage [`Failure`] for a group that is not known.
pub fn group(text: &str) -> Result<u32, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(Failure::usage(
            "--gid: there is no such group: see `getent group`, or give the number",
        )),
    }
}

/// A point in time: so long ago (`2h`), a day, or a timestamp.
///
/// # Errors
/// A usage [`Failure`].
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    let zone = jiff::tz::TimeZone::system();
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp);
    }
    if let Ok(local) = text.parse::<civil::DateTime>()
        && let Ok(zoned) = local.to_zoned(zone.clone())
    {
        return Ok(zoned.timestamp());
    }
    if let Ok(span) = text.parse::<jiff::Span>()
        && !span.is_negative()
        && let Ok(then) = Zoned::new(now, zone).checked_sub(span)
    {
        return Ok(then.timestamp());
    }
    Err(Failure::usage(
        "--since: write 15m, 2h, 7d, 2026-11-23 or 2026-11-23T08:00:00Z",
    ))
}

/// How long to wait: `30s`, `5m`, `1h`.
///
/// # Errors
/// A usage [`Failure`].
pub fn duration(option: &str, text: &str) -> Result<Duration, Failure> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| Failure::usage(format!("{option}: write 30s, 5m or 1h")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mountpoint_may_stand_before_a_path() {
        let mount = Path::new("/secrets");
        for text in ["billing/db", "/secrets/billing/db"] {
            assert_eq!(secret(text, mount).unwrap().to_string(), "billing/db");
        }
        for text in [
            "billing",
            "billing/",
            "/secretsx/billing/db",
            "/etc/passwd",
            "a/b/c",
            "/secrets/../a",
        ] {
            assert!(secret(text, mount).is_err(), "{text}");
        }
        for text in [
            "billing",
            "billing/",
            "/secrets/billing",
            "/secrets/billing/",
        ] {
            assert_eq!(service(text, mount).unwrap().as_str(), "billing", "{text}");
        }
        assert!(service("/secrets", mount).is_err());
    }

    #[test]
    fn times_are_ages_days_or_timestamps() {
        let now: Timestamp = "2026-11-23T08:00:00Z".parse().unwrap();
        let table = [
            ("15m", "2026-11-23T07:45:00Z"),
            ("2h", "2026-11-23T06:00:00Z"),
            ("2026-11-23T07:00:00Z", "2026-11-23T07:00:00Z"),
        ];
        for (text, then) in table {
            assert_eq!(since(text, now).unwrap(), then.parse().unwrap(), "{text}");
        }
        assert!(since("7d", now).is_ok());
        assert!(since("2026-11-20", now).is_ok());
        for text in ["", "yesterday", "-2h", "2026-13-01"] {
            assert!(since(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn patience_has_a_unit() {
        let table = [
            ("30s", 30),
            ("5m", 300),
            ("1h", 3600),
            ("1m 30s", 90),
            ("0s", 0),
        ];
        for (text, seconds) in table {
            let duration = duration("--timeout", text).unwrap();
            assert_eq!(duration, Duration::from_secs(seconds), "{text}");
        }
        for text in ["", "5", "-5s", "soon", "1e3s", "99999999999999999999h"] {
            assert!(duration("--timeout", text).is_err(), "{text}");
        }
    }
}
