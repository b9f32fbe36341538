//! The command line: one module for each group of commands.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::stat::{Mode, umask};

use crate::clock::Clock;
use crate::config::{Config, ConfigErrors};
use crate::control::{Failure, Kind};

pub mod args;
mod copies;
mod daemon;
mod doctor;
mod following;
pub mod generate;
pub mod import;
mod init;
pub mod input;
pub mod keep;
pub mod output;
pub mod relay;
mod reports;
mod revoke;
mod rules;
mod secrets;
pub mod serve;
pub mod session;
mod shell;

use args::{Cli, Command, Stop};
use output::Output;
use session::Session;

/// Runs the program: from its arguments to its exit code.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Modes are meant as they are written: with 0 anyone could listen in our runtime folder, with 077 nobody reach it.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let ended = match args::parse(arguments) {
        Ok(cli) => carry_out(cli),
        Err(Stop::Shown(text)) => {
            // Help that was asked for goes to stdout; where a command is missing it is an error.
            let code = text.exit_code();
            match text.print() {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    Err(output::unwritable(&error))
                }
                Ok(()) | Err(_) => {
                    return u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from);
                }
            }
        }
        Err(Stop::Wrong(failure)) => Err(failure),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A config with several mistakes has a line for each. Who has said why already leaves the message empty.
            for line in failure.message.lines() {
                let line = format!("secretfs: {}\n", output::printable(line));
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn carry_out(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.json);
    let clock = Clock::default();
    let file = cli.config;
    // Values pass through the commands; only the keeper never has one, and the server sees to itself.
    if !matches!(
        cli.command,
        Command::Mount | Command::Up { .. } | Command::Keep(_) | Command::Premount { .. }
    ) {
        crate::sys::forbid_dumps()
            .map_err(|error| Failure::failed(format!("core dumps cannot be forbidden: {error}")))?;
    }
    let session = || Session::new(load(&place(file.as_deref())?)?, output, clock.clone());
    match cli.command {
        Command::Up { dir } => init::up(dir.as_deref(), file.as_deref(), output, &clock),
        Command::Init { dir } => init::init(dir.as_deref(), file.as_deref(), output, &clock),
        Command::Mount => daemon::mount(&load(&place(file.as_deref())?)?, &clock, || {}),
        Command::Unmount => daemon::unmount(&mut session()?),
        Command::Upgrade => daemon::upgrade(&mut session()?),
        Command::Keep(keep) => keep::keep(&place(file.as_deref())?, *keep, &clock),
        Command::Put(put) => secrets::put(&mut session()?, put),
        Command::Get {
            path,
            version,
            force,
        } => secrets::get(&mut session()?, &path, version, force),
        Command::Ls { service } => secrets::list(&mut session()?, service.as_deref()),
        Command::History { path } => secrets::history(&mut session()?, &path),
        Command::Rm {
            path,
            version,
            force,
        } => secrets::remove(&mut session()?, &path, version, force),
        Command::Rollback { path, to } => secrets::roll_back(&mut session()?, &path, to),
        Command::Import(import) => secrets::import(&mut session()?, import),
        Command::Allow(rule) => rules::change(&mut session()?, rules::Change::Allow, &rule),
        Command::Disallow(rule) => rules::change(&mut session()?, rules::Change::Disallow, &rule),
        Command::Export { file, backend } => copies::export(&mut session()?, &file, backend),
        Command::Restore {
            file,
            backend,
            replace,
        } => copies::restore(&mut session()?, &file, backend, replace),
        Command::Rekey {
            recipients,
            backend,
        } => copies::rekey(&mut session()?, recipients, backend),
        Command::Status => reports::status(&mut session()?),
        Command::Explain {
            path,
            pid,
            uid,
            gid,
        } => reports::explain(&mut session()?, &path, pid, uid.as_deref(), gid.as_deref()),
        Command::Doctor { repair } => {
            doctor::doctor(&place(file.as_deref())?, repair, output, &clock)
        }
        Command::Reload => daemon::reload(&mut session()?),
        Command::Revoke { what, duration } => {
            revoke::revoke(&mut session()?, what, duration.as_deref())
        }
        Command::Unrevoke(what) => revoke::unrevoke(&mut session()?, what),
        Command::Watch { paths } => following::watch(&mut session()?, paths),
        Command::Wait {
            path,
            after,
            timeout,
        } => following::wait(&mut session()?, &path, after, timeout.as_deref()),
        Command::Audit {
            follow,
            secret,
            uid,
            since,
            denied,
        } => {
            let wanted = reports::Wanted {
                follow,
                secret,
                uid,
                since,
                denied,
            };
            reports::audit(&mut session()?, wanted)
        }
        Command::Relay(relay) => {
            relay::relay(&load(&place(file.as_deref())?)?, relay, output, &clock)
        }
        Command::Completions { shell } => shell::completions(output, shell),
        Command::Man { dir } => shell::man(output, dir.as_deref()),
        Command::Premount { unit, served } => {
            daemon::premount(file.as_deref(), &unit, served, &clock)
        }
        Command::Serve { check } => serve::serve(&place(file.as_deref())?, check, &clock)
            .map_err(|error| session::run_failure(&error)),
        Command::ServeHanded(handed) => {
            serve::serve_handed(&place(file.as_deref())?, *handed, &clock)
                .map_err(|error| session::run_failure(&error))
        }
    }
}

/// Where the config is.
fn place(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => Config::default_path().map_err(|errors| Failure::usage(errors.to_string())),
    }
}

fn load(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|errors| wrong_config(&errors))
}

/// All mistakes of a config, each in a line of its own.
fn wrong_config(errors: &ConfigErrors) -> Failure {
    Failure {
        kind: Kind::Usage,
        message: errors.to_string(),
    }
}
