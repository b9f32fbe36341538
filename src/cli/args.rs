//! The command line's grammar, its help, and its one-line errors.
//!
//! What a person typed is never repeated in an error: it could be a value that was meant for stdin.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cli::keep::Keep;
use crate::cli::relay::Relay;
use crate::cli::serve::Handed;
use crate::control::Failure;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage, or a wrong config
  3  no such secret
  4  denied by the policy
  5  the backend cannot be reached";

const START: &str = "\
Start here:
  secretfs up                                make everything that is needed, and mount it
  secretfs put billing/db-password           asks for the value without showing it
  cat /secrets/billing/db-password           as whoever a rule allows

PATH is SERVICE/NAME, with or without the mountpoint before it: billing/db-password and
/secrets/billing/db-password are the same.";

/// Secrets as files, for exactly the processes that may read them
#[derive(Debug, Parser)]
#[command(name = "secretfs", version, after_help = format!("{START}\n\n{EXIT_CODES}"), arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The config file [default: $SECRETFS_CONFIG, else /etc/secretfs/config.toml for root, else
    /// $XDG_CONFIG_HOME/secretfs/config.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make what is missing, mount, and serve until Ctrl-C
    ///
    /// `init` where something is missing, then `mount`, in the foreground. With DIR everything stands below that
    /// folder: good for trying it out. Prints what to type next.
    #[command(after_help = examples("secretfs up\n  secretfs up /tmp/demo"))]
    Up {
        /// Keep everything below this folder
        dir: Option<PathBuf>,
    },
    /// Make identity, store, config, audit log and mountpoint
    ///
    /// Never overwrites anything: what is there stays as it is.
    #[command(after_help = examples("secretfs init\n  secretfs init /srv/secretfs"))]
    Init {
        /// Keep everything below this folder
        dir: Option<PathBuf>,
    },
    /// Mount and serve in the foreground
    ///
    /// Unmounts at Ctrl-C and SIGTERM, reads the config again at SIGHUP. Tells systemd when it is ready (Type=notify).
    #[command(after_help = examples("secretfs mount\n  secretfs --config /srv/secretfs/config.toml mount"))]
    Mount,
    /// End the daemon and its mount, also a dead one
    #[command(after_help = examples("secretfs unmount"))]
    Unmount,
    /// Keep a new version of a secret
    ///
    /// The value is read from stdin, byte for byte, a newline at its end included. On a terminal it is asked for and
    /// not shown. When this returns, every following open sees it.
    #[command(after_help = examples("\
secretfs put billing/db-password
  printf %s \"$VALUE\" | secretfs put billing/db-password
  secretfs put billing/tls-key --file key.pem
  secretfs put billing/db-password --generate password:32"))]
    Put(Put),
    /// Print a secret's value
    ///
    /// The raw bytes, nothing added. With --json an object with path, version and the value in base64.
    #[command(after_help = examples("\
secretfs get billing/db-password
  secretfs get billing/db-password --version 2 > old"))]
    Get {
        /// The secret: SERVICE/NAME
        path: String,
        /// This version instead of the newest
        #[arg(long, value_name = "V")]
        version: Option<String>,
        /// Print to a terminal without asking
        #[arg(long, short)]
        force: bool,
    },
    /// List secrets, one a line
    #[command(after_help = examples("secretfs ls\n  secretfs ls billing"))]
    Ls {
        /// Only this service
        service: Option<String>,
    },
    /// List the versions of a secret
    #[command(after_help = examples("secretfs history billing/db-password"))]
    History {
        /// The secret: SERVICE/NAME
        path: String,
    },
    /// Destroy a secret, or one version of it
    ///
    /// Nothing that is kept brings the value back. A copy that `export` made still holds it.
    #[command(after_help = examples("\
secretfs rm billing/db-password
  secretfs rm billing/db-password --version 2"))]
    Rm {
        /// The secret: SERVICE/NAME
        path: String,
        /// Only this version
        #[arg(long, value_name = "V")]
        version: Option<String>,
        /// Do not ask on a terminal
        #[arg(long, short)]
        force: bool,
    },
    /// Make an older version's value the newest again
    #[command(after_help = examples("secretfs rollback billing/db-password --to 2"))]
    Rollback {
        /// The secret: SERVICE/NAME
        path: String,
        /// The older version
        #[arg(long, value_name = "V")]
        to: String,
    },
    /// Take over many secrets at once
    ///
    /// A line of a .env file, a file of a folder, or a member of a JSON object becomes a secret each: all of them or
    /// none, and at most 4 MiB. Says afterwards what to delete.
    #[command(after_help = examples("\
secretfs import billing --env .env
  secretfs import billing --dir /run/secrets
  secretfs import billing --json secrets.json"))]
    Import(Import),
    /// Let someone read a service's secrets
    ///
    /// Adds a rule to the config, keeping its comments, and has it read again. All that is given must hold of a
    /// reader; --uid, --uid-map or --gid must be given.
    #[command(after_help = examples("\
secretfs allow billing --uid billing
  secretfs allow billing --uid-map containers
  secretfs allow billing --gid ops --unit debug-shell.service"))]
    Allow(Rule),
    /// Take back what `allow` gave
    #[command(after_help = examples("secretfs disallow billing --uid billing"))]
    Disallow(Rule),
    /// Write an encrypted copy of the store to a file
    ///
    /// The copy is opened by the same identity as the store. Never overwrites a file.
    #[command(after_help = examples("secretfs export backup.age"))]
    Export {
        /// The file to make
        file: PathBuf,
        /// Of this store, where the config has several
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
    },
    /// Fill the store from a copy that `export` made
    #[command(after_help = examples("secretfs restore backup.age\n  secretfs restore backup.age --replace"))]
    Restore {
        /// The copy
        file: PathBuf,
        /// Into this store, where the config has several
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// Also into a store that is not empty: what it holds is lost
        #[arg(long)]
        replace: bool,
    },
    /// Encrypt the store to a new identity
    ///
    /// Makes a new identity in the place of the old one, encrypts everything anew, and forgets the old one. With
    /// --recipient others can open the store too, each with an identity of their own.
    #[command(after_help = examples("\
secretfs rekey
  secretfs rekey --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"))]
    Rekey {
        /// A further age recipient (age1…), beside the identity; may be given several times
        #[arg(long = "recipient", value_name = "AGE1…")]
        recipients: Vec<String>,
        /// This store, where the config has several
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
    },
    /// Show mount, backends and cache: names and numbers, never values
    #[command(after_help = examples("secretfs status\n  secretfs --json status"))]
    Status,
    /// Say why someone may read a secret or may not
    ///
    /// Without --pid and --uid it answers for you. Also says where the value comes from. A --uid is taken to have all
    /// groups of its account, and to run in no unit and no container.
    #[command(after_help = examples("\
secretfs explain billing/db-password --pid 4711
  secretfs explain billing/db-password --uid billing --gid billing"))]
    Explain {
        /// The secret: SERVICE/NAME
        path: String,
        /// For this running process
        #[arg(long, conflicts_with_all = ["uid", "gid"])]
        pid: Option<u32>,
        /// For this user, by name or number
        #[arg(long, value_name = "USER")]
        uid: Option<String>,
        /// With this group, by name or number [default: the user's own]
        #[arg(long, value_name = "GROUP", requires = "uid")]
        gid: Option<String>,
    },
    /// Check everything, and say the mend for what is wrong
    #[command(after_help = examples("secretfs doctor\n  secretfs doctor --repair"))]
    Doctor {
        /// Mend a damaged store from what it keeps for that purpose
        #[arg(long)]
        repair: bool,
    },
    /// Have the daemon read its config again
    ///
    /// All or nothing: a config with an error leaves everything as it was. Says what is different now. Files that are
    /// open are checked again, too. With `watch = true` in the config the daemon does this by itself.
    #[command(after_help = examples("secretfs reload\n  secretfs --json reload"))]
    Reload,
    /// Have the program that is installed now take the daemon over
    ///
    /// For after an upgrade: the mount, open files and whoever waits stay what they are. The program is taken from the path
    /// that the daemon was started from; if it cannot take over, everything goes on as before.
    #[command(after_help = examples("secretfs upgrade\n  secretfs --json upgrade"))]
    Upgrade,
    /// Take something away now, from open files too
    ///
    /// A secret, one version of it, a whole service, everything that one user could read, or everything. It outlives a
    /// restart of the daemon. `status` shows what is revoked.
    #[command(after_help = examples("\
secretfs revoke billing/db-password
  secretfs revoke billing/db-password --version 3
  secretfs revoke billing --for 1h
  secretfs revoke --uid mallory
  secretfs revoke --all"))]
    Revoke {
        /// What
        #[command(flatten)]
        what: Revocable,
        /// Only for so long: 90s, 10m, 24h
        #[arg(long = "for", value_name = "TIME")]
        duration: Option<String>,
    },
    /// Give back what `revoke` took away
    ///
    /// Named as it was for `revoke`: `--all` gives back what `revoke --all` took, and nothing else. Files that were open
    /// have to be opened anew.
    #[command(after_help = examples("secretfs unrevoke billing/db-password\n  secretfs unrevoke --all"))]
    Unrevoke(Revocable),
    /// Print what happens as it happens, one JSON object a line
    ///
    /// rotated, removed, revoked, unrevoked, denied, backend-down, backend-up, reloaded, and missed where this program was
    /// too slow. Until Ctrl-C. Who manages only some services sees what happens in those.
    #[command(after_help = examples("\
secretfs watch
  secretfs watch --path billing | jq -r 'select(.event == \"rotated\").path'"))]
    Watch {
        /// Only of this secret or service; may be given several times
        #[arg(long = "path", value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Wait until a secret changes, and print the number of its new generation
    ///
    /// Exits with 3 when the secret is removed meanwhile, and with 1 when the time is over. A file's own generation is its
    /// attribute user.secretfs.generation: with --after nothing is lost between reading it and waiting.
    #[command(after_help = examples("\
secretfs wait billing/tls-key && systemctl reload nginx
  secretfs wait billing/tls-key --timeout 5m
  secretfs wait billing/tls-key --after \"$(getfattr --only-values -n user.secretfs.generation /secrets/billing/tls-key)\""))]
    Wait {
        /// The secret: SERVICE/NAME
        path: String,
        /// Until its generation is another one than this [default: the current one]
        #[arg(long, value_name = "GENERATION")]
        after: Option<u64>,
        /// Give up after this time: 30s, 5m, 1h
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
    },
    /// Read the audit log and verify that nothing was changed in it
    ///
    /// With --json an object a line, and a last one that sums up. Exits with 1 if the log was changed.
    #[command(after_help = examples("\
secretfs audit --denied --since 1h
  secretfs audit --secret billing/db-password
  secretfs audit --follow"))]
    Audit {
        /// Go on with what comes, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// Only of this secret or service
        #[arg(long, value_name = "PATH")]
        secret: Option<String>,
        /// Only of this user, by name or number
        #[arg(long, value_name = "USER")]
        uid: Option<String>,
        /// Only from then on: 15m, 2h, 7d, 2026-11-23 or 2026-11-23T08:00:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only what was denied
        #[arg(long)]
        denied: bool,
    },
    /// Tell every daemon at once what changes on a Vault or OpenBao server that has no events
    ///
    /// Runs beside the server, in the foreground: follows its audit log and publishes which paths were written, and never a
    /// value, at the broker of `[signals]` in the config. Each daemon with the same `[signals]` asks for what it has in use.
    /// Without a broker or a relay changes are seen as before, when they are polled. It needs no token, no identity and no
    /// store: only this config, and the right to read the audit log. A server stops serving when its only audit device
    /// does, so give it a `file` one beside a `socket`. With --json each change is printed, too.
    #[command(after_help = examples("\
secretfs relay --backend vault --audit-file /var/log/vault/audit.log
  secretfs relay --backend vault --audit-socket /run/secretfs-relay/audit.sock
  secretfs relay --backend vault --audit-socket 127.0.0.1:9090"))]
    Relay(Relay),
    /// Print the completions for a shell
    #[command(after_help = examples("secretfs completions bash > /etc/bash_completion.d/secretfs"))]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each command into a folder
    #[command(after_help = examples("secretfs man | man -l -\n  secretfs man /usr/local/share/man/man1"))]
    Man {
        /// The folder
        dir: Option<PathBuf>,
    },
    /// Mount for systemd, which holds the mount from then on
    ///
    /// What the unit `secretfs.service` runs as root before the server, for some milliseconds. A mount that systemd holds
    /// already is left alone. Where systemd does not start the daemon, `secretfs mount` does all of this.
    #[command(after_help = examples("\
ExecStartPre=+/usr/bin/secretfs premount %n
  ExecStartPost=+/usr/bin/secretfs premount --served %n"))]
    Premount {
        /// The unit that is started
        unit: String,
        /// Only take down that its server is ready, after it
        #[arg(long)]
        served: bool,
    },
    /// Serve what systemd holds since `secretfs premount`: what the unit runs
    #[command(hide = true)]
    Serve {
        /// Only say what this release writes down of a mount, if it could serve
        #[arg(long)]
        check: bool,
    },
    /// What the keeper starts: serves a mount that it was handed
    #[command(hide = true)]
    ServeHanded(Box<Handed>),
    /// What the keeper of another release becomes: keeps what it has handed over
    #[command(hide = true)]
    Keep(Box<Keep>),
}

/// `put`
#[derive(Debug, clap::Args)]
pub struct Put {
    /// The secret: SERVICE/NAME
    pub path: String,
    /// Refused: other users can see it
    #[arg(hide = true, allow_hyphen_values = true, num_args = 0..)]
    pub value: Vec<OsString>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "generate")]
    pub file: Option<PathBuf>,
    /// Make the value up: password:32, hex:32, base64:32, uuid, ed25519, ecdsa-p256, rsa:3072 or certificate:NAME,NAME
    #[arg(long, value_name = "SPEC")]
    pub generate: Option<String>,
}

/// `import`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("origin").required(true).multiple(false))]
pub struct Import {
    /// The service that gets the secrets
    pub service: String,
    /// Each NAME=VALUE of this .env file
    #[arg(long, value_name = "FILE", group = "origin")]
    pub env: Option<PathBuf>,
    /// Each file of this folder
    #[arg(long, value_name = "FOLDER", group = "origin")]
    pub dir: Option<PathBuf>,
    /// Each member of the object in this JSON file
    #[arg(long, value_name = "FILE", group = "origin")]
    pub json: Option<PathBuf>,
}

/// `allow` and `disallow`
#[derive(Debug, clap::Args)]
pub struct Rule {
    /// The service
    pub service: String,
    /// The reader is this user: a name, a number or a range (61184-65519)
    #[arg(long, value_name = "USER", required_unless_present_any = ["uid_map", "gid"])]
    pub uid: Option<String>,
    /// The reader's uid is in a range that /etc/subuid delegates to this account: a name or a number
    #[arg(long, value_name = "ACCOUNT")]
    pub uid_map: Option<String>,
    /// The reader is in this group: a name, a number or a range
    #[arg(long, value_name = "GROUP")]
    pub gid: Option<String>,
    /// The reader runs in this systemd unit
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// The reader runs in the container with this id
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
}

/// What `revoke` and `unrevoke` are about
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true).multiple(false))]
pub struct Revocable {
    /// The secret (SERVICE/NAME) or a whole service
    #[arg(value_name = "PATH|SERVICE", group = "target")]
    pub path: Option<String>,
    /// Only this version of the secret
    #[arg(long, value_name = "V", requires = "path", conflicts_with_all = ["uid", "all"])]
    pub version: Option<String>,
    /// Whatever this user could read, by name or number
    #[arg(long, value_name = "USER", group = "target")]
    pub uid: Option<String>,
    /// Everything, from everybody
    #[arg(long, group = "target")]
    pub all: bool,
}

fn examples(commands: &str) -> String {
    format!("Examples:\n  {commands}\n\n{EXIT_CODES}")
}

/// The whole grammar. `--json` may stand before the command and, where that has no meaning of its own for it, after.
#[must_use]
pub fn grammar() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        if command.get_name() == "import" {
            return command;
        }
        command.arg(
            Arg::new(JSON_AFTER)
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON instead of text"),
        )
    })
}

const JSON_AFTER: &str = "json_after";

/// How reading the arguments ended, when not with a command.
#[derive(Debug)]
pub enum Stop {
    /// A text was asked for: help, or the version.
    Shown(clap::Error),
    /// They are wrong.
    Wrong(Failure),
}

/// Reads the arguments.
///
/// # Errors
/// [`Stop`]
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .find(|argument| grammar().find_subcommand(argument).is_some())
        .map(str::to_owned);
    let matches = grammar()
        .try_get_matches_from(arguments)
        .map_err(|error| stop(error, command.as_deref()))?;
    let after = matches
        .subcommand()
        .is_some_and(|(name, matches)| name != "import" && matches.get_flag(JSON_AFTER));
    let mut cli =
        Cli::from_arg_matches(&matches).map_err(|error| stop(error, command.as_deref()))?;
    cli.json |= after;
    Ok(cli)
}

fn stop(error: clap::Error, command: Option<&str>) -> Stop {
    let help = command.map_or_else(
        || "secretfs --help".to_owned(),
        |command| format!("secretfs {command} --help"),
    );
    let of = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let what = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return Stop::Shown(error),
        ErrorKind::MissingSubcommand => "a command is missing".to_owned(),
        ErrorKind::InvalidSubcommand => "there is no such command".to_owned(),
        ErrorKind::UnknownArgument => "an argument is not known or one too many".to_owned(),
        ErrorKind::MissingRequiredArgument => format!("missing: {}", of(ContextKind::InvalidArg)),
        ErrorKind::ArgumentConflict => format!(
            "{} cannot stand together with {}",
            of(ContextKind::InvalidArg),
            of(ContextKind::PriorArg)
        ),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::NoEquals => {
            format!("{}: not a value that it takes", of(ContextKind::InvalidArg))
        }
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("{}: not so many values", of(ContextKind::InvalidArg))
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        // clap's own, which it may add to.
        ErrorKind::Io | ErrorKind::Format | _ => "the arguments make no sense".to_owned(),
    };
    Stop::Wrong(Failure::usage(format!("{what}: see `{help}`")))
}

#[cfg(test)]
mod tests;
