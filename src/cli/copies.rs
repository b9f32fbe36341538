//! export, restore, rekey.

use std::path::Path;

use crate::backend::store::{
    Identity, Prompt, Protection, StoreError, identity, write_whole, write_whole_with,
};
use crate::cli::input;
use crate::cli::session::{Session, understand};
use crate::config::{StoreConfig, edit};
use crate::control::answers::Stored;
use crate::control::client::Upload;
use crate::control::{Failure, Kind, Request};
use crate::secret::{Name, SecretBytes};

pub(crate) fn export(
    session: &mut Session,
    file: &Path,
    backend: Option<String>,
) -> Result<(), Failure> {
    let backend = named(backend)?;
    let mut ended = None;
    let written = write_whole_with(file, false, |output| {
        let request = Request::Export { backend };
        let answer = session.call(request, Upload::Empty, &mut |chunk| {
            output.write_all(&chunk).map_err(|error| {
                Failure::failed(format!("{}: {error}: free some space", file.display()))
            })
        });
        let failed = answer.is_err();
        ended = Some(answer);
        // The file is kept only if the whole copy came.
        if failed {
            return Err(StoreError::Archive(String::new()));
        }
        Ok(())
    });
    let answer = match (ended, written) {
        (Some(Err(failure)), _) => return Err(failure),
        (_, Err(error)) => return Err(Failure::failed(error.to_string())),
        (Some(Ok(answer)), Ok(())) => answer,
        (None, Ok(())) => return Err(Failure::failed("nothing was exported")),
    };
    let stored: Stored = understand(answer.json)?;
    if session.output.json {
        return session.output.print_json(&stored);
    }
    session.output.line(&format!(
        "{}: {} secrets of {}; its identity opens it",
        file.display(),
        stored.secrets,
        stored.backend
    ))
}

pub(crate) fn restore(
    session: &mut Session,
    file: &Path,
    backend: Option<String>,
    replace: bool,
) -> Result<(), Failure> {
    let copy = input::open(file)?;
    let request = Request::Restore {
        backend: named(backend)?,
        replace,
    };
    let stored: Stored = session
        .send(request, Upload::Stream(Box::new(copy)))
        .map_err(|failure| match failure.kind {
            Kind::Failed => Failure::failed(format!("{}: {failure}", file.display())),
            Kind::Busy | Kind::Usage | Kind::Absent | Kind::Denied | Kind::Unavailable => failure,
        })?;
    if session.output.json {
        return session.output.print_json(&stored);
    }
    session.output.line(&format!(
        "{}: {} secrets, from {}",
        stored.backend,
        stored.secrets,
        file.display()
    ))
}

/// The identity's file and the store cannot change in one step: meanwhile the file holds both keys, so that wherever
/// this ends early, it opens the store.
pub(crate) fn rekey(
    session: &mut Session,
    recipients: Vec<String>,
    backend: Option<String>,
) -> Result<(), Failure> {
    for recipient in &recipients {
        recipient
            .parse::<crate::backend::store::Recipient>()
            .map_err(|error| Failure::usage(format!("--recipient: {error}")))?;
    }
    let (backend, store) = store_of(session, named(backend)?)?;
    let Some(path) = store.identity.clone() else {
        return Err(Failure::usage(format!(
            "[backends.{backend}] has no `identity`: it comes from systemd, where secretfs cannot replace it"
        )));
    };
    if identity::locate(Some(&path))
        .map_err(|error| Failure::new(Kind::Unavailable, error.to_string()))?
        != path
    {
        return Err(Failure::usage(
            "the identity comes from $CREDENTIALS_DIRECTORY, where secretfs cannot replace it: run rekey outside of the unit",
        ));
    }
    // Of two at once, the one whose identity file stays would not be the one whose key the store is sealed to.
    let _alone = path.parent().map(edit::lock).transpose().map_err(|error| {
        Failure::failed(format!(
            "{}: the identity cannot be changed: {error}",
            path.display()
        ))
    })?;
    let old = Identity::load(&path, &Prompt::terminal())
        .map_err(|error| Failure::new(Kind::Unavailable, error.to_string()))?;
    let new = Identity::generate();
    let created = session.clock.timestamp();
    let passphrase = match old.protection() {
        Protection::Plain => None,
        Protection::Passphrase => Some(ask_passphrase()?),
        Protection::Plugin => {
            return Err(Failure::usage(format!(
                "{}: sealed by an age plugin, which secretfs cannot seal with: open it with `age -d` into a file of mode 0600, rekey, and seal the new one",
                path.display()
            )));
        }
    };
    let write = |identity: &Identity| match &passphrase {
        None => write_whole(&path, identity.to_text(created).expose(), true)
            .map_err(|error| Failure::failed(error.to_string())),
        Some(passphrase) => {
            let text = identity
                .to_sealed_text(passphrase, created)
                .map_err(|error| Failure::failed(error.to_string()))?;
            write_whole(&path, &text, true).map_err(|error| Failure::failed(error.to_string()))
        }
    };
    write(&new.with(&old))?;
    let request = Request::Rekey {
        backend: Some(backend),
        recipients,
    };
    let stored: Stored = session
        .send(request, Upload::Value(new.to_text(created)))
        .map_err(|failure| {
            let message = format!(
                "{failure}: {} now holds the old key and a new one, so it opens the store in any case: run `secretfs rekey` again",
                path.display()
            );
            Failure::new(failure.kind, message)
        })?;
    write(&new)?;
    if session.output.json {
        return session.output.print_json(&stored);
    }
    session.output.line(&format!(
        "{}: {} secrets sealed anew to {}; keep a copy of {} elsewhere: without it they are lost",
        stored.backend,
        stored.secrets,
        stored.recipients.join(", "),
        path.display()
    ))
}

fn ask_passphrase() -> Result<SecretBytes, Failure> {
    let ask = |question: &str| {
        rpassword::prompt_password(question)
            .map(|typed| SecretBytes::new(typed.into_bytes()))
            .map_err(|error| {
                Failure::failed(format!(
                    "the passphrase cannot be asked for: {error}: run this from a terminal"
                ))
            })
    };
    let once = ask("Passphrase for the new identity: ")?;
    if once.expose() != ask("Once more: ")?.expose() {
        return Err(Failure::failed("the passphrases differ: try again"));
    }
    Ok(once)
}

pub(crate) fn named(backend: Option<String>) -> Result<Option<Name>, Failure> {
    backend
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| Failure::usage("--backend: not a name: use one of [backends] in the config"))
}

fn store_of(session: &Session, name: Option<Name>) -> Result<(Name, StoreConfig), Failure> {
    let stores = session.config.stores();
    let mut stores = stores.filter(|(each, _)| name.as_ref().is_none_or(|name| name == *each));
    match (stores.next(), stores.next()) {
        (Some((name, store)), None) => Ok((name.clone(), store.clone())),
        (Some(_), Some(_)) => Err(Failure::usage(
            "the config has several stores: name one with --backend",
        )),
        (None, _) => Err(Failure::usage(
            "--backend: no store of this name is in the config",
        )),
    }
}
