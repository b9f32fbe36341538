//! put, get, ls, history, rm, rollback, import.

use std::io::Seek;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::backend::Version;
use crate::cli::args::{Import, Put};
use crate::cli::generate::{Spec, generate};
use crate::cli::import::{Imported, parse_dir, parse_env, parse_json};
use crate::cli::input;
use crate::cli::output::{Mood, note, plain};
use crate::cli::session::{Session, understand};
use crate::control::answers::{Kept, Listed, Removed, Touched};
use crate::control::client::Upload;
use crate::control::protocol::MAX_BATCH;
use crate::control::{Failure, Request, batch};
use crate::secret::SecretBytes;

/// No file that is imported is larger than this many bytes: what is in it must fit one batch.
const MAX_IMPORT: usize = 2 * MAX_BATCH;

pub(crate) fn put(session: &mut Session, put: Put) -> Result<(), Failure> {
    if !put.value.is_empty() {
        return Err(Failure::usage(
            "a value on the command line is refused, because `ps` shows it to everyone: pipe it in (printf %s \"$VALUE\" | secretfs put SERVICE/NAME), use --file FILE, or --generate; and change this one, it has been seen",
        ));
    }
    let path = input::secret(&put.path, &session.config.mount)?;
    let value = match (&put.file, &put.generate) {
        (Some(file), _) => input::value_from_file(file)?,
        (None, Some(spec)) => {
            let spec: Spec = spec
                .parse()
                .map_err(|error: crate::cli::generate::SpecError| {
                    Failure::usage(error.to_string())
                })?;
            generate(&spec, session.clock.timestamp())
                .map_err(|error| Failure::failed(error.to_string()))?
        }
        (None, None) => input::value_from_stdin(&path)?,
    };
    let touched: Touched = session.send(Request::Put { path }, Upload::Value(value))?;
    tell_version(session, &touched)
}

pub(crate) fn roll_back(session: &mut Session, path: &str, to: String) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    let to = Version::new(to);
    let touched: Touched = session.ask(Request::Rollback { path, to })?;
    tell_version(session, &touched)
}

fn tell_version(session: &Session, touched: &Touched) -> Result<(), Failure> {
    if session.output.json {
        return session.output.print_json(touched);
    }
    session
        .output
        .line(&format!("{}: version {}", touched.path, touched.version))
}

pub(crate) fn get(
    session: &mut Session,
    path: &str,
    version: Option<String>,
    force: bool,
) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    if session.output.terminal && !force {
        input::confirm(
            &format!("Print the value of {path} to this terminal?"),
            "redirect stdout, or add --force",
        )?;
    }
    let request = Request::Get {
        path,
        version: version.map(Version::new),
    };
    let answer = session.call(request, Upload::Empty, &mut |_| Ok(()))?;
    let touched: Touched = understand(answer.json)?;
    let value = answer
        .value
        .ok_or_else(|| Failure::failed("the daemon gave no value: restart it"))?;
    if touched.stale {
        note(&format!(
            "{}: the backend cannot be reached: this value may be old",
            touched.path
        ));
    }
    if session.output.json {
        return session.output.raw(&as_json(&touched, &value)?);
    }
    session.output.raw(value.expose())
}

/// The answer with the value in base64, in a buffer that is wiped and never grows.
fn as_json(touched: &Touched, value: &SecretBytes) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let head = serde_json::to_vec(touched).map_err(|error| Failure::failed(error.to_string()))?;
    let size = value.len().div_ceil(3).saturating_mul(4);
    let mut encoded = Zeroizing::new(vec![0; size]);
    STANDARD
        .encode_slice(value.expose(), &mut encoded)
        .map_err(|error| Failure::failed(error.to_string()))?;
    let mut text = Zeroizing::new(Vec::with_capacity(head.len() + size + 16));
    // The head is an object, and its last byte the closing brace.
    text.extend_from_slice(head.get(..head.len().saturating_sub(1)).unwrap_or_default());
    text.extend_from_slice(b",\"value\":\"");
    text.extend_from_slice(&encoded);
    text.extend_from_slice(b"\"}\n");
    Ok(text)
}

pub(crate) fn list(session: &mut Session, service: Option<&str>) -> Result<(), Failure> {
    let service = service
        .map(|text| input::service(text, &session.config.mount))
        .transpose()?;
    let listed: Vec<Listed> = session.ask(Request::List { service })?;
    let output = session.output;
    if output.json {
        return output.print_json(&listed);
    }
    if !output.terminal {
        let lines: Vec<String> = listed.iter().map(|one| format!("{}\n", one.path)).collect();
        return output.raw(lines.concat().as_bytes());
    }
    if listed.is_empty() {
        return output.line("nothing that you may see: `secretfs put SERVICE/NAME` makes a secret");
    }
    let shown = |value: Option<String>| plain(value.unwrap_or_default());
    let rows = listed
        .into_iter()
        .map(|one| {
            vec![
                (one.path.to_string(), Mood::Good),
                shown(one.version.map(|version| version.to_string())),
                shown(one.size.map(|size| size.to_string())),
                shown(one.modified.map(|time| format!("{time:.0}"))),
            ]
        })
        .collect();
    output.table(&["SECRET", "VERSION", "BYTES", "MODIFIED"], rows)
}

pub(crate) fn history(session: &mut Session, path: &str) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    let kept: Vec<Kept> = session.ask(Request::History { path })?;
    if session.output.json {
        return session.output.print_json(&kept);
    }
    let rows = kept
        .into_iter()
        .map(|one| {
            vec![
                (one.version.to_string(), Mood::Good),
                plain(
                    one.size
                        .map_or_else(|| "-".to_owned(), |size| size.to_string()),
                ),
                plain(format!("{:.0}", one.created)),
            ]
        })
        .collect();
    session.output.table(&["VERSION", "BYTES", "CREATED"], rows)
}

pub(crate) fn remove(
    session: &mut Session,
    path: &str,
    version: Option<String>,
    force: bool,
) -> Result<(), Failure> {
    let path = input::secret(path, &session.config.mount)?;
    if session.output.terminal && !force {
        let what = match &version {
            Some(version) => format!("version {version} of {path}"),
            None => path.to_string(),
        };
        input::confirm(
            &format!("Destroy {what}? Nothing brings it back."),
            "add --force to destroy without being asked",
        )?;
    }
    let version = version.map(Version::new);
    let removed: Removed = session.ask(Request::Remove { path, version })?;
    if session.output.json {
        return session.output.print_json(&removed);
    }
    session.output.line(&match removed.version {
        Some(version) => format!("{}: version {version} destroyed", removed.path),
        None => format!("{}: destroyed", removed.path),
    })
}

pub(crate) fn import(session: &mut Session, import: Import) -> Result<(), Failure> {
    let service = input::service(&import.service, &session.config.mount)?;
    let (origin, found) = read_origin(&import)?;
    let done: Vec<Touched> = session
        .send(
            Request::Import { service },
            Upload::Value(batch::pack(&found)?),
        )
        .map_err(|failure| {
            let message =
                format!("{failure}: all were imported or none, and importing again is safe");
            Failure::new(failure.kind, message)
        })?;
    if session.output.json {
        return session.output.print_json(&done);
    }
    for touched in &done {
        tell_version(session, touched)?;
    }
    note(&format!(
        "{} imported. The values are still in {origin}: delete it (shred -u), and its copies in backups and version control, or change the secrets.",
        done.len(),
        origin = origin.display()
    ));
    Ok(())
}

fn read_origin(import: &Import) -> Result<(&Path, Imported), Failure> {
    let whole = |path: &Path| -> Result<SecretBytes, Failure> {
        let mut file = input::open(path)?;
        // A pipe has no start to go to, and is read as it is.
        let _ = file.rewind();
        SecretBytes::read_from(&mut file, MAX_IMPORT).map_err(|error| {
            Failure::failed(format!("{}: {error}: nothing was imported", path.display()))
        })
    };
    let (path, parsed) = match (&import.env, &import.dir, &import.json) {
        (Some(path), _, _) => (path, parse_env(path, whole(path)?.expose())),
        (None, Some(path), _) => (path, parse_dir(path)),
        (None, None, Some(path)) => (path, parse_json(path, whole(path)?.expose())),
        (None, None, None) => {
            return Err(Failure::usage(
                "name what to import: --env, --dir or --json",
            ));
        }
    };
    match parsed {
        Ok(found) => Ok((path, found)),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}
