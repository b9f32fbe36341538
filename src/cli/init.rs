//! init, up: from nothing to a mounted store.
//!
//! The config comes last, so that what ends early is simply done again. Nothing that is there is ever overwritten, and a
//! missing identity is never replaced by a new one beside a store that the new one could not open.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::{Audit, Event, Outcome};
use crate::backend::store::{Identity, Prompt, Store, write_whole};
use crate::cli::daemon;
use crate::cli::output::{Mood, Output, plain};
use crate::cli::session::Session;
use crate::cli::wrong_config;
use crate::clock::Clock;
use crate::config::template::{self, Places};
use crate::config::{self, Account, Accounts, AuditTarget, Config, StoreConfig, accounts};
use crate::control::{Failure, Kind};
use crate::sys::{Gid, Tid, Uid};

/// The account that owns store, state and audit log, if it exists.
const ACCOUNT: &str = "secretfs";

/// One thing that a first start needs.
#[derive(Debug, serde::Serialize)]
struct Made {
    what: &'static str,
    path: PathBuf,
    made: bool,
}

/// What `init` did.
#[derive(Debug)]
struct Initial {
    config: Config,
    made: Vec<Made>,
}

pub(crate) fn init(
    dir: Option<&Path>,
    config: Option<&Path>,
    output: Output,
    clock: &Clock,
) -> Result<(), Failure> {
    let initial = make(dir, config, clock)?;
    if output.json {
        return output.print_json(&initial.made);
    }
    tell(&initial, output)?;
    let start = invocation(&initial.config, dir.is_some() || config.is_some());
    output.line(&format!("\nNext:\n  {start} mount"))
}

pub(crate) fn up(
    dir: Option<&Path>,
    config: Option<&Path>,
    output: Output,
    clock: &Clock,
) -> Result<(), Failure> {
    let initial = make(dir, config, clock)?;
    if initial.made.iter().any(|made| made.made) {
        tell(&initial, output)?;
    }
    let config_given = dir.is_some() || config.is_some();
    let config = Config::load(&initial.config.file).map_err(|errors| wrong_config(&errors))?;
    let mut session = Session::new(config.clone(), output, clock.clone())?;
    if session.daemon()? {
        return Err(Failure::failed(format!(
            "{}: a daemon serves it already: `secretfs unmount` ends it",
            config.mount.display()
        )));
    }
    drop(session);
    daemon::mount(&config, clock, || {
        let start = invocation(&config, config_given);
        let mount = config.mount.display();
        // What cannot be printed does not end the daemon.
        let _ = output.line(&format!(
            "\nMounted at {mount}. In another shell:\n  {start} put demo/password --generate password:32\n  cat {mount}/demo/password\n  {start} allow demo --uid USER\n\nCtrl-C unmounts."
        ));
    })
}

/// How to call this very program for this config.
fn invocation(config: &Config, given: bool) -> String {
    let program = std::env::current_exe().map_or_else(
        |_| "secretfs".to_owned(),
        |path| quoted(&path.to_string_lossy()),
    );
    if given {
        format!(
            "{program} --config {}",
            quoted(&config.file.to_string_lossy())
        )
    } else {
        program
    }
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn tell(initial: &Initial, output: Output) -> Result<(), Failure> {
    let rows = initial.made.iter().map(|made| {
        let (state, mood) = if made.made {
            ("made", Mood::Good)
        } else {
            ("was there", Mood::Plain)
        };
        vec![
            plain(made.what),
            (state.to_owned(), mood),
            plain(made.path.display()),
        ]
    });
    output.table(&[], rows.collect())?;
    let Some(identity) = initial
        .made
        .iter()
        .find(|made| made.what == "identity" && made.made)
    else {
        return Ok(());
    };
    let path = quoted(&identity.path.to_string_lossy());
    output.line(&format!(
        "
Keep a copy of {path} elsewhere: without it the secrets are lost.
It lies on the same disk as the store, which so protects nothing from who takes the disk. To seal it with a passphrase:
  umask 077; age -p -o {path}.sealed {path} && mv {path}.sealed {path}"
    ))
}

fn make(dir: Option<&Path>, config: Option<&Path>, clock: &Clock) -> Result<Initial, Failure> {
    let places = places(dir, config)?;
    let root = Uid::effective() == Uid::ROOT;
    // In a folder of its own everything is replaced by renames, so the folder's owner owns all of it.
    let account = (root && dir.is_none())
        .then(|| accounts::System.user(ACCOUNT))
        .flatten();
    let mut made = Vec::new();
    let written = exists(&places.config)?;
    let (config, text) = if written {
        (Config::load(&places.config), String::new())
    } else {
        let user = account.as_ref().map(|account| account.name.as_str());
        let text = template::text(&places, user, reader());
        (Config::parse(&text, &places.config), text)
    };
    let config = config.map_err(|errors| wrong_config(&errors))?;
    let owner = config.user.clone().filter(|_| root);

    let mut key = None;
    for (_, store) in config.stores() {
        let opened = make_store(store, owner.as_ref(), clock, &mut made)?;
        key = key.or(opened.map(|store| store.audit_key()));
    }
    folder(&config.state, 0o700, owner.as_ref())?;
    folder(&config.runtime, 0o755, None)?;
    if let AuditTarget::File(path) = &config.audit.target {
        folder(parent(path), 0o750, owner.as_ref())?;
        let missing = !exists(path)?;
        if let (true, Some(key)) = (missing, &key) {
            begin_audit(&config, key, clock)?;
        }
        made.push(Made {
            what: "audit log",
            path: path.clone(),
            made: missing && key.is_some(),
        });
    }
    made.push(Made {
        what: "mountpoint",
        path: config.mount.clone(),
        made: folder(&config.mount, 0o755, None)?,
    });
    if !written {
        folder(parent(&places.config), 0o755, None)?;
        write_config(&places.config, &text)?;
    }
    made.push(Made {
        what: "config",
        path: places.config,
        made: !written,
    });
    Ok(Initial { config, made })
}

fn places(dir: Option<&Path>, config: Option<&Path>) -> Result<Places, Failure> {
    let usage = |errors: crate::config::ConfigErrors| wrong_config(&errors);
    match (dir, config) {
        (Some(_), Some(_)) => Err(Failure::usage(
            "DIR and --config cannot stand together: the config is DIR/config.toml",
        )),
        (Some(dir), None) => {
            folder(dir, 0o755, None)?;
            let dir = fs::canonicalize(dir).map_err(|error| unmade(dir, &error))?;
            if !dir.is_dir() {
                return Err(unmade(&dir, &io::ErrorKind::NotADirectory.into()));
            }
            // Its owner could put links in the way of what is made in it.
            config::open::judge(&dir).map_err(usage)?;
            Places::below(&dir).map_err(usage)
        }
        (None, config) => {
            let mut places = Places::standard().map_err(usage)?;
            let named = match config {
                Some(config) => config.to_owned(),
                None => Config::default_path().map_err(usage)?,
            };
            places.config = std::path::absolute(&named).map_err(|error| unmade(&named, &error))?;
            Ok(places)
        }
    }
}

/// Whoever ran this, also by way of sudo.
fn reader() -> Uid {
    let behind = std::env::var("SUDO_UID")
        .ok()
        .and_then(|uid| uid.parse().ok());
    match behind {
        Some(uid) if Uid::effective() == Uid::ROOT => Uid(uid),
        Some(_) | None => Uid::effective(),
    }
}

/// The store and its identity. What was made comes back opened.
fn make_store(
    store: &StoreConfig,
    owner: Option<&Account>,
    clock: &Clock,
    made: &mut Vec<Made>,
) -> Result<Option<Store>, Failure> {
    let there = exists(&store.path)?;
    let mut identity = None;
    if let Some(path) = &store.identity {
        let known = exists(path)?;
        match (known, there) {
            (false, true) => {
                return Err(Failure::new(
                    Kind::Unavailable,
                    format!(
                        "{}: the identity is missing, and a new one would not open {}: put the identity back from where you keep a copy",
                        path.display(),
                        store.path.display()
                    ),
                ));
            }
            (false, false) => {
                folder(
                    parent(path),
                    if Uid::effective() == Uid::ROOT {
                        0o755
                    } else {
                        0o700
                    },
                    None,
                )?;
                let new = Identity::generate();
                write_whole(path, new.to_text(clock.timestamp()).expose(), false)
                    .map_err(|error| Failure::failed(error.to_string()))?;
                identity = Some(new);
            }
            (true, _) => {}
        }
        made.push(Made {
            what: "identity",
            path: path.clone(),
            made: !known,
        });
    }
    made.push(Made {
        what: "store",
        path: store.path.clone(),
        made: !there,
    });
    if there {
        return Ok(None);
    }
    folder(parent(&store.path), 0o700, owner)?;
    let identity = match identity {
        Some(identity) => identity,
        None => crate::backend::store::identity::locate(store.identity.as_deref())
            .and_then(|path| Identity::load(&path, &Prompt::terminal()))
            .map_err(|error| Failure::new(Kind::Unavailable, error.to_string()))?,
    };
    Store::create(&store.path, &identity, clock.clone())
        .map(Some)
        .map_err(|error| Failure::failed(error.to_string()))
}

/// The log's first line: that everything was made.
fn begin_audit(
    config: &Config,
    key: &crate::secret::SecretBytes,
    clock: &Clock,
) -> Result<(), Failure> {
    let failed = |error: crate::audit::AuditError| Failure::failed(error.to_string());
    let audit = Audit::start(&config.audit, key, clock.clone()).map_err(failed)?;
    audit
        .record_now(Event {
            time: clock.timestamp(),
            action: "init".into(),
            uid: Uid::effective(),
            gid: Gid::effective(),
            tid: Tid(std::process::id()),
            path: None,
            version: None,
            rule: Some("identity".into()),
            outcome: Outcome::Allowed,
            micros: 0,
            comm: None,
            unit: None,
            container: None,
        })
        .map_err(failed)?;
    audit.close(Duration::from_secs(5)).map_err(failed)
}

/// Everyone may read the config: it names no value, and the commands of all users need it.
///
/// It comes whole or not at all: the beginning of a config may be a config too, of something else.
fn write_config(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("toml.new");
    let write = || -> io::Result<()> {
        // An earlier `init` may have ended here.
        if exists(&new).is_ok_and(|left| left) {
            fs::remove_file(&new)?;
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&new, path)?;
        fs::remove_file(&new)?;
        File::open(parent(path))?.sync_all()
    };
    write().map_err(|error| unmade(path, &error))
}

/// Makes a folder that is not there. True if it was made.
fn folder(path: &Path, mode: u32, owner: Option<&Account>) -> Result<bool, Failure> {
    if exists(path)? {
        return Ok(false);
    }
    let make = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        match owner {
            Some(account) => chown(path, Some(account.uid.0), Some(account.gid.0)),
            None => Ok(()),
        }
    };
    make().map_err(|error| unmade(path, &error))?;
    Ok(true)
}

/// A mountpoint whose daemon died cannot be looked at, and is there all the same.
fn exists(path: &Path) -> Result<bool, Failure> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(true),
        Err(error) => Err(unmade(path, &error)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn unmade(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!(
        "{}: {error}: run this as who may write there, or name another folder: `secretfs init DIR`",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_to_a_shell() {
        assert_eq!(quoted("/usr/bin/secretfs"), "/usr/bin/secretfs");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn a_missing_identity_is_never_replaced_beside_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let initial = make(Some(folder.path()), None, &clock).unwrap();
        assert!(initial.made.iter().all(|made| made.made));
        let again = make(Some(folder.path()), None, &clock).unwrap();
        assert!(again.made.iter().all(|made| !made.made), "{again:?}");

        let identity = folder.path().join("identity.txt");
        fs::remove_file(&identity).unwrap();
        let failure = make(Some(folder.path()), None, &clock).unwrap_err();
        assert!(failure.message.contains("identity.txt"), "{failure}");
        assert!(!identity.exists());
    }

    #[test]
    fn what_an_init_left_that_was_killed_becomes_no_config() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("config.toml.new");
        fs::write(&left, "mount =").unwrap();
        make(Some(folder.path()), None, &Clock::default()).unwrap();
        let config = Config::load(&folder.path().join("config.toml")).unwrap();
        assert_eq!(config.mount, config.file.with_file_name("secrets"));
        assert!(!left.exists());
    }

    #[test]
    fn only_the_config_may_be_read_by_others() {
        let folder = tempfile::tempdir().unwrap();
        make(Some(folder.path()), None, &Clock::default()).unwrap();
        let mode = |name: &str| {
            let metadata = fs::metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode("config.toml"), 0o644);
        for name in ["identity.txt", "store.age"] {
            assert_eq!(mode(name), 0o600, "{name}");
        }
        for name in ["store.d", "state"] {
            assert_eq!(mode(name), 0o700, "{name}");
        }
        assert_eq!(mode("audit.jsonl") & 0o007, 0);
    }
}
