//! `[signals]`: the broker where changes are heard.

use std::path::{Path, PathBuf};

use reqwest::Url;

use super::backends::{client, file, word};
use super::{keys, path, value};
use crate::config::file::{Item, Section};
use crate::config::values::ValueError;
use crate::signal::broker::{Broker, Mqtt, Nats, SignIn};

/// What messages are published under if nobody says otherwise.
const SUBJECT: &str = "secretfs.changes";
/// The same at an MQTT broker.
const TOPIC: &str = "secretfs/changes";

/// How a kind of broker is reached.
struct Scheme {
    tls: &'static str,
    plain: &'static str,
    /// Where it listens with TLS and without, if nobody says otherwise.
    ports: [u16; 2],
    example: &'static str,
    no_url: ValueError,
    not_alone: ValueError,
    without_tls: ValueError,
    other: ValueError,
}

const NATS: Scheme = Scheme {
    tls: "tls",
    plain: "nats",
    ports: [4222, 4222],
    example: "\"tls://HOST:4222\"",
    no_url: ValueError("this is no URL: write url = \"tls://HOST:4222\""),
    not_alone: ValueError(
        "write scheme, host and port alone, as in \"tls://HOST:4222\": who signs in with something has it in a file",
    ),
    without_tls: ValueError(
        "without TLS anybody on the way could read which secrets change, and sign in: write \"tls://…\"",
    ),
    other: ValueError("it must begin with tls://"),
};

const MQTT: Scheme = Scheme {
    tls: "mqtts",
    plain: "mqtt",
    ports: [8883, 1883],
    example: "\"mqtts://HOST:8883\"",
    no_url: ValueError("this is no URL: write url = \"mqtts://HOST:8883\""),
    not_alone: ValueError(
        "write scheme, host and port alone, as in \"mqtts://HOST:8883\": `user` and `password` are keys of their own",
    ),
    without_tls: ValueError(
        "without TLS anybody on the way could read which secrets change, and sign in: write \"mqtts://…\"",
    ),
    other: ValueError("it must begin with mqtts://"),
};

pub(super) fn signals(item: &Item<'_>) -> Option<Broker> {
    let section = item.section(keys::SIGNALS)?;
    match (section.get("nats"), section.get("mqtt")) {
        (Some(item), None) => nats(&item).map(Broker::Nats),
        (None, Some(item)) => mqtt(&item).map(Broker::Mqtt),
        (Some(_), Some(item)) => {
            item.fail("there is `nats` as well: leave one of `nats` and `mqtt` out");
            None
        }
        (None, None) => {
            section.fail(
                "no broker is named: write nats = { url = \"tls://HOST:4222\" } or mqtt = { url = \"mqtts://HOST:8883\" }",
            );
            None
        }
    }
}

/// The files that the broker needs, by their keys.
pub(super) fn files(broker: &Broker) -> Vec<(&'static str, &Path)> {
    let files: Vec<(&str, Option<&PathBuf>)> = match broker {
        Broker::Nats(nats) => {
            let sign_in = nats.sign_in.as_ref().map(|sign_in| match sign_in {
                SignIn::Credentials(file) => ("nats.credentials", Some(file)),
                SignIn::Token(file) => ("nats.token", Some(file)),
            });
            let ca = ("nats.ca", nats.ca.as_ref());
            sign_in.into_iter().chain([ca]).collect()
        }
        Broker::Mqtt(mqtt) => {
            let client = mqtt.client.as_ref();
            vec![
                ("mqtt.ca", mqtt.ca.as_ref()),
                ("mqtt.client", client.map(|client| &client.certificate)),
                ("mqtt.client", client.map(|client| &client.key)),
                ("mqtt.password", mqtt.password.as_ref()),
            ]
        }
    };
    let given = |(key, file): (&'static str, Option<_>)| Some((key, PathBuf::as_path(file?)));
    files.into_iter().filter_map(given).collect()
}

fn nats(item: &Item<'_>) -> Option<Nats> {
    let section = item.section(keys::NATS)?;
    let url = place(&section, &NATS);
    let example = "a subject, as in \"secretfs.changes\"";
    let subject = value(&section, "subject", example, subject);
    let ca = given(&section, "ca", path);
    let sign_in = sign_in(&section);
    Some(Nats {
        url: url?,
        subject: subject.unwrap_or_else(|| SUBJECT.to_owned()),
        ca: ca?,
        sign_in,
    })
}

fn mqtt(item: &Item<'_>) -> Option<Mqtt> {
    let section = item.section(keys::MQTT)?;
    let url = place(&section, &MQTT);
    let example = "a topic, as in \"secretfs/changes\"";
    let topic = value(&section, "topic", example, topic);
    let ca = given(&section, "ca", path);
    let client = given(&section, "client", client);
    let user = word(&section, "user");
    let password = given(&section, "password", |item| {
        file(item, "\"/etc/secretfs/mqtt.password\"")
    });
    if let (None, Some(item)) = (section.get("user"), section.get("password")) {
        item.fail("`user` is missing: a broker asks for both");
    }
    let url = url?;
    let client = client?;
    if let (true, Some(item)) = (url.starts_with("mqtt://"), section.get("client")) {
        item.fail("a certificate is shown with TLS alone: write \"mqtts://…\"");
    }
    Some(Mqtt {
        url,
        topic: topic.unwrap_or_else(|| TOPIC.to_owned()),
        ca: ca?,
        client,
        user,
        password: password?,
    })
}

/// What stands under `key`, if anything does: `None` only if that is wrong, and told.
fn given<T>(
    section: &Section<'_>,
    key: &'static str,
    read: impl Fn(&Item<'_>) -> Option<T>,
) -> Option<Option<T>> {
    match section.get(key) {
        Some(item) => read(&item).map(Some),
        None => Some(None),
    }
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

/// `url`: scheme, host and port.
fn place(section: &Section<'_>, scheme: &Scheme) -> Option<String> {
    section.need("url", scheme.example);
    value(section, "url", scheme.example, |text| url(text, scheme))
}

fn url(text: &str, scheme: &Scheme) -> Result<String, ValueError> {
    let parsed = Url::parse(text).map_err(|_| scheme.no_url.clone())?;
    let alone = matches!(parsed.path(), "" | "/")
        && parsed.query().is_none()
        && parsed.fragment().is_none()
        && parsed.username().is_empty()
        && parsed.password().is_none();
    let host = parsed.host_str().filter(|host| alone && !host.is_empty());
    let host = host.ok_or_else(|| scheme.not_alone.clone())?;
    let loopback = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    let [with_tls, without] = scheme.ports;
    let port = match parsed.scheme() {
        tls if tls == scheme.tls => with_tls,
        plain if plain == scheme.plain && loopback => without,
        plain if plain == scheme.plain => return Err(scheme.without_tls.clone()),
        _ => return Err(scheme.other.clone()),
    };
    let port = parsed.port().unwrap_or(port);
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

fn topic(text: &str) -> Result<String, ValueError> {
    let odd = |c: char| !c.is_ascii_graphic() || matches!(c, '+' | '#');
    // What begins with a dollar sign is the broker's own.
    if text.len() > 256
        || text.starts_with('$')
        || text
            .split('/')
            .any(|part| part.is_empty() || part.contains(odd))
    {
        return Err(ValueError(
            "write words with slashes between them and no `+` or `#`, as in \"secretfs/changes\"",
        ));
    }
    Ok(text.to_owned())
}
