//! doctor: every check with its mend.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::backend::store::{Identity, IdentityError, Prompt, Store, identity};
use crate::cli::output::{Mood, Output, Progress, plain};
use crate::cli::session::Session;
use crate::clock::Clock;
use crate::config::{Config, StoreConfig, accounts};
use crate::control::answers::{Check, Health};
use crate::control::{Failure, Request};
use crate::keeper::mountpoint::{self, Mountpoint, others_allowed};
use crate::run::{self, RunError};
use crate::secret::Name;
use crate::sys::Uid;

pub(crate) fn doctor(
    file: &Path,
    repair: bool,
    output: Output,
    clock: &Clock,
) -> Result<(), Failure> {
    let mut checks = machine();
    match Config::load(file) {
        Ok(config) => {
            checks.push(check("config", Health::Good, file.display().to_string()));
            let mut session = Session::new(config, output, clock.clone())?;
            if repair {
                mend(&mut session, &mut checks)?;
            }
            configured(&session.config, &mut checks);
            living(&mut session, &mut checks)?;
        }
        Err(errors) => {
            let wrong = |error: &crate::config::ConfigError| {
                check("config", Health::Wrong, error.to_string())
            };
            checks.extend(errors.0.iter().map(wrong));
        }
    }
    show(&checks, output)
}

fn show(checks: &[Check], output: Output) -> Result<(), Failure> {
    if output.json {
        output.print_json(&checks)?;
    } else {
        let rows = checks.iter().map(|check| {
            let (word, mood) = match check.state {
                Health::Good => ("good", Mood::Good),
                Health::Warning => ("warning", Mood::Doubtful),
                Health::Wrong => ("wrong", Mood::Bad),
            };
            vec![
                (word.to_owned(), mood),
                plain(&check.check),
                plain(&check.detail),
            ]
        });
        output.table(&[], rows.collect())?;
    }
    match checks
        .iter()
        .filter(|check| check.state == Health::Wrong)
        .count()
    {
        0 => Ok(()),
        1 => Err(Failure::failed("1 check failed: its mend stands beside it")),
        wrong => Err(Failure::failed(format!(
            "{wrong} checks failed: the mend of each stands beside it"
        ))),
    }
}

/// What concerns this machine and user, whatever the config says.
fn machine() -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match mountpoint::device() {
        Ok(_) => check("/dev/fuse", Health::Good, "can be opened"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => check(
            "/dev/fuse",
            Health::Wrong,
            format!("{error}: everyone may open it elsewhere: chmod 0666 /dev/fuse, or start secretfs as root"),
        ),
        Err(error) => check(
            "/dev/fuse",
            Health::Wrong,
            format!("{error}: load the module (modprobe fuse) or, in a container, pass the device in (--device /dev/fuse)"),
        ),
    });
    if Uid::effective() == Uid::ROOT {
        return checks;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    checks.push(
        match std::env::split_paths(&path).find(|folder| folder.join("fusermount3").is_file()) {
            Some(folder) => check("fusermount3", Health::Good, folder.display().to_string()),
            None => check(
                "fusermount3",
                Health::Wrong,
                "not found, and only root mounts without it: apt install fuse3",
            ),
        },
    );
    checks.push(if others_allowed() {
        check(
            "other users",
            Health::Good,
            "/etc/fuse.conf has user_allow_other",
        )
    } else {
        check(
            "other users",
            Health::Warning,
            "only you can read what you mount: put user_allow_other into /etc/fuse.conf",
        )
    });
    checks
}

/// What the config and the files that it names are like.
fn configured(config: &Config, checks: &mut Vec<Check>) {
    for (name, store) in config.stores() {
        checks.push(identity_check(name, store));
        checks.extend(exposed(name, store));
    }
    // A mount whose daemon is gone cannot be looked at, and is judged elsewhere.
    if fs::metadata(&config.mount).is_ok_and(|mount| !mount.is_dir()) {
        let mount = config.mount.display();
        checks.push(check(
            "mountpoint",
            Health::Wrong,
            format!("{mount}: not a folder: move it away, or set `mount` to another place"),
        ));
    }
    if config.defaults.is_some() {
        checks.push(check(
            "[defaults]",
            Health::Warning,
            "its rules hold for every service without a section of its own: write the sections (`secretfs allow`), then remove it",
        ));
    }
    match run::kept_revocations(&config.state) {
        // The folder is the server's; who may not look into it is not told.
        Err(RunError::File { why, .. }) if why.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => checks.push(check("revocations", Health::Wrong, error.to_string())),
        Ok(_) => {}
    }
    let (_, unknown) = config.policy(&accounts::System);
    for unknown in unknown {
        checks.push(check("accounts", Health::Wrong, unknown.to_string()));
    }
}

fn identity_check(name: &Name, store: &StoreConfig) -> Check {
    let what = format!("identity of {name}");
    let path = match identity::locate(store.identity.as_deref()) {
        Ok(path) => path,
        Err(IdentityError::Nowhere) => {
            return check(
                what,
                Health::Good,
                "not in the config: systemd gives it to the unit as a credential",
            );
        }
        Err(error) => return check(what, Health::Wrong, error.to_string()),
    };
    let mut file = match identity::open(&path) {
        Ok(file) => file,
        Err(error) => return check(what, Health::Wrong, error.to_string()),
    };
    // What systemd gives stands in memory, and was opened for this run.
    let ours = store.identity.as_ref() == Some(&path);
    let path = path.display();
    if ours && is_plain(&mut file) {
        return check(
            what,
            Health::Warning,
            format!(
                "{path}: not sealed: who takes the disks of this machine has it and the store: umask 077; age -p -o {path}.sealed {path} && mv {path}.sealed {path}"
            ),
        );
    }
    check(what, Health::Good, path.to_string())
}

/// What of a store others could change: they cannot read it, but destroy it.
fn exposed(name: &Name, store: &StoreConfig) -> Option<Check> {
    [store.path.clone(), store.path.with_extension("d")]
        .iter()
        .find_map(|path| {
            let mode = fs::symlink_metadata(path).ok()?.mode();
            let path = path.display();
            (mode & 0o022 != 0).then(|| {
                check(
                    format!("files of {name}"),
                    Health::Wrong,
                    format!(
                        "{path}: others can change it (mode {:04o}): chmod go-w {path}",
                        mode & 0o7777
                    ),
                )
            })
        })
}

/// True if the keys stand in the file as they are.
fn is_plain(file: &mut File) -> bool {
    const KEY: &[u8] = b"AGE-SECRET-KEY-1";
    let mut text = zeroize::Zeroizing::new(vec![0; 64 << 10]);
    let Ok(size) = file.read(&mut text) else {
        return false;
    };
    let read = text.get(..size).unwrap_or_default();
    read.windows(KEY.len()).any(|window| window == KEY)
}

/// The mount, and what only whoever has the stores open can check.
fn living(session: &mut Session, checks: &mut Vec<Check>) -> Result<(), Failure> {
    let mount = session.config.mount.display().to_string();
    let listed = Mountpoint::new(&session.config.mount, &session.config.file)
        .listed()
        .map_err(|error| Failure::failed(format!("/proc/self/mountinfo: {error}: mount /proc")))?;
    let served = match session.daemon() {
        Ok(served) => served,
        Err(failure) => {
            checks.push(check("daemon", Health::Wrong, failure.message));
            return Ok(());
        }
    };
    checks.push(match (served, listed.is_empty()) {
        (true, false) => check("mount", Health::Good, mount),
        (true, true) => check(
            "mount",
            Health::Wrong,
            format!("{mount}: the daemon runs, but nothing is mounted here: start it again, or look from its own mount namespace"),
        ),
        (false, false) => check(
            "mount",
            Health::Wrong,
            format!("{mount}: mounted, but its daemon is gone: secretfs unmount"),
        ),
        (false, true) => check(
            "mount",
            Health::Warning,
            format!("{mount}: not mounted: secretfs mount"),
        ),
    });
    match session.ask::<Vec<Check>>(Request::Doctor {}) {
        Ok(found) => {
            // Accounts were looked up here already, from the config as it stands.
            checks.extend(found.into_iter().filter(|found| found.check != "accounts"));
        }
        Err(failure) => checks.push(check("store", Health::Wrong, failure.message)),
    }
    Ok(())
}

/// Mends the stores, without a daemon.
fn mend(session: &mut Session, checks: &mut Vec<Check>) -> Result<(), Failure> {
    if session.daemon()? {
        return Err(Failure::failed(
            "a daemon uses the store: end it with `secretfs unmount`, then repair",
        ));
    }
    let Some(_lock) = session.try_lock()? else {
        return Err(Failure::failed(
            "another command uses the store: try again when it is done",
        ));
    };
    for (name, store) in session.config.stores() {
        let progress = Progress::new(&session.clock);
        mend_store(name, store, &progress, checks)?;
    }
    Ok(())
}

fn mend_store(
    name: &Name,
    store: &StoreConfig,
    progress: &Progress,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let identity = identity::locate(store.identity.as_deref())
        .and_then(|path| Identity::load(&path, &Prompt::terminal()))
        .map_err(|error| Failure::failed(error.to_string()))?;
    let repaired = Store::repair(&store.path, &identity, &mut |done, total| {
        progress.step(done, total);
    })
    .map_err(|error| Failure::failed(error.to_string()))?;
    let what = format!("repair of {name}");
    if let Some(from) = &repaired.from {
        checks.push(check(
            &what,
            Health::Warning,
            format!(
                "goes by {} now: what was changed after it is lost",
                from.display()
            ),
        ));
    }
    for lost in &repaired.lost {
        checks.push(check(
            &what,
            Health::Warning,
            format!(
                "{} version {} is lost: {}",
                lost.path, lost.version, lost.error
            ),
        ));
    }
    for unnamed in &repaired.unnamed {
        checks.push(check(
            &what,
            Health::Warning,
            format!(
                "{}: a value without a name: age -d opens it",
                unnamed.display()
            ),
        ));
    }
    if repaired.from.is_none() && repaired.lost.is_empty() {
        checks.push(check(&what, Health::Good, "nothing had to be mended"));
    }
    Ok(())
}

fn check(what: impl Into<String>, state: Health, detail: impl Into<String>) -> Check {
    Check {
        check: what.into(),
        state,
        detail: detail.into(),
    }
}
