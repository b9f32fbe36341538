//! `[signals]`: the brokers where changes are heard.

use std::path::Path;

use reqwest::Url;

use super::backends::file;
use super::{keys, path, value};
use crate::config::file::{Item, Section};
use crate::config::values::ValueError;
use crate::signal::broker::{Brokers, Nats, SignIn};

/// Where a NATS server listens if nobody says otherwise.
const NATS_PORT: u16 = 4222;

/// What messages are published under if nobody says otherwise.
const SUBJECT: &str = "secretfs.changes";

const URL: &str = "\"tls://HOST:4222\"";

pub(super) fn signals(item: &Item<'_>) -> Brokers {
    let Some(section) = item.section(keys::SIGNALS) else {
        return Brokers::default();
    };
    let Some(broker) = section.need("nats", "{ url = \"tls://HOST:4222\" }") else {
        return Brokers::default();
    };
    Brokers {
        nats: nats(&broker),
    }
}

/// The files that the brokers need, by their keys.
pub(super) fn files(brokers: &Brokers) -> Vec<(&'static str, &Path)> {
    let Some(nats) = &brokers.nats else {
        return Vec::new();
    };
    let sign_in = nats.sign_in.as_ref().map(|sign_in| match sign_in {
        SignIn::Credentials(file) => ("nats.credentials", file.as_path()),
        SignIn::Token(file) => ("nats.token", file.as_path()),
    });
    let ca = nats.ca.as_deref().map(|ca| ("nats.ca", ca));
    ca.into_iter().chain(sign_in).collect()
}

fn nats(item: &Item<'_>) -> Option<Nats> {
    let section = item.section(keys::NATS)?;
    section.need("url", URL);
    let url = value(&section, "url", URL, url);
    let subject = value(
        &section,
        "subject",
        "a subject, as in \"secretfs.changes\"",
        subject,
    );
    let ca = section.get("ca").map(|item| path(&item));
    let sign_in = sign_in(&section);
    Some(Nats {
        url: url?,
        subject: subject.unwrap_or_else(|| SUBJECT.to_owned()),
        ca: match ca {
            Some(ca) => Some(ca?),
            None => None,
        },
        sign_in,
    })
}

fn sign_in(section: &Section<'_>) -> Option<SignIn> {
    let example = "\"/etc/secretfs/nats.creds\"";
    let credentials = section.get("credentials");
    let token = section.get("token");
    if let (Some(_), Some(token)) = (&credentials, &token) {
        token.fail("there are `credentials` as well: leave one of them out");
    }
    let credentials = credentials.and_then(|item| file(&item, example));
    let token = token.and_then(|item| file(&item, "\"/etc/secretfs/nats.token\""));
    credentials
        .map(SignIn::Credentials)
        .or(token.map(SignIn::Token))
}

/// Scheme, host and port.
fn url(text: &str) -> Result<String, ValueError> {
    let parsed = Url::parse(text)
        .map_err(|_| ValueError("this is no URL: write url = \"tls://HOST:4222\""))?;
    let alone = matches!(parsed.path(), "" | "/")
        && parsed.query().is_none()
        && parsed.fragment().is_none()
        && parsed.username().is_empty()
        && parsed.password().is_none();
    let Some(host) = parsed.host_str().filter(|host| alone && !host.is_empty()) else {
        return Err(ValueError(
            "write scheme, host and port alone, as in \"tls://HOST:4222\": who signs in with something has it in a file",
        ));
    };
    let loopback = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    match parsed.scheme() {
        "tls" => {}
        "nats" if loopback => {}
        "nats" => {
            return Err(ValueError(
                "without TLS anybody on the way could read which secrets change, and sign in: write \"tls://…\"",
            ));
        }
        _ => return Err(ValueError("it must begin with tls://")),
    }
    let port = parsed.port().unwrap_or(NATS_PORT);
    Ok(format!("{}://{host}:{port}", parsed.scheme()))
}

fn subject(text: &str) -> Result<String, ValueError> {
    let odd = |c: char| !c.is_ascii_graphic() || matches!(c, '*' | '>');
    if text.len() > 256
        || text
            .split('.')
            .any(|part| part.is_empty() || part.contains(odd))
    {
        return Err(ValueError(
            "write words with dots between them and no `*` or `>`, as in \"secretfs.changes\"",
        ));
    }
    Ok(text.to_owned())
}
