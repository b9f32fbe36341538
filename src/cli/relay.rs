//! relay: what a server writes down of its requests, passed on to the broker.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::output::Output;
use crate::clock::Clock;
use crate::config::{BackendConfig, Config};
use crate::control::Failure;
use crate::relay::{Change, Listener, Sink, Source, Tail};
use crate::secret::Name;
use crate::signal::message::Message;
use crate::signal::outbox::Outbox;

/// `relay`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("log").required(true).multiple(false))]
pub struct Relay {
    /// The server's name in the config: the same as in the config of each daemon that listens
    #[arg(long, value_name = "NAME")]
    backend: String,
    /// The file that the server's `file` audit device writes
    #[arg(long, value_name = "FILE", group = "log")]
    audit_file: Option<PathBuf>,
    /// Where the server's `socket` audit device connects to: a path, or an address as in 127.0.0.1:9090
    #[arg(long, value_name = "PATH|ADDRESS", group = "log")]
    audit_socket: Option<String>,
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn relay(
    config: &Config,
    relay: Relay,
    output: Output,
    clock: &Clock,
) -> Result<(), Failure> {
    let (backend, namespace) = server(config, &relay.backend)?;
    let broker = config.signals.as_ref().ok_or_else(|| {
        Failure::usage(format!(
            "{}: no broker is named: add a section [signals]",
            config.file.display()
        ))
    })?;
    let source = match (relay.audit_file, relay.audit_socket) {
        (Some(file), _) => Source::File(file),
        (None, Some(socket)) => Source::Socket(socket),
        (None, None) => return Err(Failure::usage("missing: --audit-file or --audit-socket")),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let outbox = Outbox::new(backend.clone());
    let each = |change: &Change| {
        if output.json {
            let message = Message {
                backend: backend.clone(),
                path: Some(change.path.clone()),
                version: change.version.clone(),
            };
            // Who does not read on does not keep the broker from hearing it.
            let _ = output.line(&message.to_json());
        }
    };
    let sink = Sink {
        namespace: &namespace,
        outbox: &outbox,
        each: &each,
    };
    runtime.block_on(async {
        let cannot = |error| Failure::failed(format!("signals cannot be waited for: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let follow = follow(source, &sink, clock).await?;
        tracing::info!(%backend, "the audit log is followed");
        tokio::select! {
            () = follow => {}
            () = broker.tell(&outbox) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// Opens the audit log: what then follows it.
async fn follow<'a>(
    source: Source,
    sink: &'a Sink<'a>,
    clock: &Clock,
) -> Result<futures_util::future::LocalBoxFuture<'a, ()>, Failure> {
    match source {
        Source::File(file) => {
            let tail = Tail::new(&file, clock.clone()).map_err(|error| {
                Failure::failed(format!(
                    "{}: {error}: enable it on the server with `vault audit enable file file_path=…`, and run this as who may read it",
                    file.display()
                ))
            })?;
            Ok(Box::pin(tail.run(sink)))
        }
        Source::Socket(place) => {
            let listener = Listener::bind(&place).await;
            let listener = listener
                .map_err(|error| Failure::failed(format!("--audit-socket {place}: {error}")))?;
            Ok(Box::pin(listener.run(sink)))
        }
    }
}

/// The server's name and its namespace.
fn server(config: &Config, name: &str) -> Result<(Name, String), Failure> {
    let found = config
        .backends
        .iter()
        .find(|(known, _)| known.as_str() == name);
    match found {
        Some((name, BackendConfig::Vault(settings))) => {
            let namespace = settings.namespace(&|variable| std::env::var(variable).ok());
            Ok((name.clone(), namespace.unwrap_or_default()))
        }
        Some((_, BackendConfig::Store(_))) => Err(Failure::usage(
            "--backend: a store tells of its changes itself: name a server of type \"vault\"",
        )),
        None => Err(Failure::usage(format!(
            "--backend: {}: no backend of this name is defined: add a section [backends.NAME]",
            config.file.display()
        ))),
    }
}
