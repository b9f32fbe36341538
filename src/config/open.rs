//! Opens a config only if nobody but root and we ourselves can have changed it.
//!
//! The path is resolved first and then walked from the root folder without following a link. Each folder, and the file
//! itself, is judged by what was opened and not by its name, so that nothing can be exchanged in between: who can
//! write a folder could put another config in its place. The links that lead to it are judged, too: they are followed
//! again at each reload.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::config::ConfigErrors;
use crate::sys::Uid;

/// Longer than any config that a person writes.
const MAX_SIZE: u64 = 1 << 20;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A config that may be trusted.
#[derive(Debug)]
pub struct Opened {
    /// What stands in it.
    pub text: String,
    /// Where it really stands.
    pub path: PathBuf,
}

/// Opens and reads `path`.
///
/// # Errors
/// [`ConfigErrors`] if it cannot be read, is no regular file, is larger than 1 MiB or not UTF-8; and if the file or a
/// folder above it belongs to anybody but root and us, or can be written by its group or others. (Root's sticky folders,
/// such as `/tmp`, may be above it: in them nobody can replace what is not theirs.) The same holds of each link that leads
/// to it.
pub fn open(path: &Path) -> Result<Opened, ConfigErrors> {
    open_as(path, Uid::effective())
}

fn open_as(path: &Path, us: Uid) -> Result<Opened, ConfigErrors> {
    let fail = |problem: String| ConfigErrors::one(path, problem);
    let real = path.canonicalize().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            fail(
                "there is no such file: run `secretfs init`, or name another with --config FILE"
                    .to_owned(),
            )
        } else {
            fail(format!(
                "it cannot be opened: {error}: mend that, or name another with --config FILE"
            ))
        }
    })?;
    let file = trusted(path, &real, us).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(format!("it cannot be read: {error}")))?;
    if u64::try_from(bytes.len()).is_ok_and(|size| size > MAX_SIZE) {
        return Err(fail(
            "it is larger than 1 MiB: is it the config?".to_owned(),
        ));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| fail("it is not UTF-8: save it as UTF-8 text".to_owned()))?;
    Ok(Opened { text, path: real })
}

/// Opens `real`, to which `path` leads, if nobody but root and `us` can have changed it or have led `path` to it.
///
/// # Errors
/// Why not, and the mend.
pub(super) fn trusted(path: &Path, real: &Path, us: Uid) -> Result<File, String> {
    let descriptor = walk(real, FILE, us)?;
    let named = std::path::absolute(path).map_err(|error| error.to_string())?;
    for link in steps(&named).iter().filter(|step| *step != real) {
        judge_link(link, us)?;
    }
    Ok(File::from(descriptor))
}

/// What has to be looked at to see whether `path`, which is absolute, leads to something else: each link on the way, and what it leads to at
/// last, or where it ends if that is missing. The folder of each is without links.
#[must_use]
pub fn steps(path: &Path) -> Vec<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut steps, mut at, mut left) = (Vec::new(), PathBuf::from("/"), parts(path));
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
            Some(Component::Normal(name)) => {
                let step = at.join(name);
                match fs::read_link(&step) {
                    Ok(target) if steps.len() < MAX_LINKS => {
                        steps.push(step);
                        left.extend(parts(&target));
                    }
                    // No link: only of one can this be asked.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => at = step,
                    Ok(_) | Err(_) => {
                        steps.push(step);
                        return steps;
                    }
                }
            }
        }
    }
    steps.push(at);
    steps
}

/// Who can replace a link could lead us to another file.
fn judge_link(link: &Path, us: Uid) -> Result<(), String> {
    let shown = link.display();
    let folder = link.parent().unwrap_or(Path::new("/"));
    walk(folder, FOLDER, us)?;
    match fs::symlink_metadata(link) {
        Ok(found) if found.uid() == Uid::ROOT.0 || found.uid() == us.0 => Ok(()),
        Ok(_) => Err(format!(
            "the link {shown} belongs to somebody else, who could lead it elsewhere: chown -h root {shown}"
        )),
        Err(error) => Err(format!(
            "the link {shown} cannot be looked at: {error}: do without it"
        )),
    }
}

/// Judges a folder, without links in its path, that a config is to stand in.
///
/// # Errors
/// As [`open`], for the folder and those above it.
pub fn judge(folder: &Path) -> Result<(), ConfigErrors> {
    let judged = walk(folder, FOLDER, Uid::effective());
    judged
        .map(drop)
        .map_err(|problem| ConfigErrors::one(folder, problem))
}

const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

// Not blocking: a pipe is judged, and refused, rather than waited for.
const FILE: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

/// Opens an absolute path without links, and judges each step of it.
fn walk(path: &Path, last: OFlag, us: Uid) -> Result<OwnedFd, String> {
    let mut walked = PathBuf::from("/");
    let mut at = step(nix::fcntl::AT_FDCWD, &walked, FOLDER, &walked, us)?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else {
            continue;
        };
        walked.push(name);
        let kind = if parts.peek().is_some() { FOLDER } else { last };
        at = step(&at, Path::new(name), kind, &walked, us)?;
    }
    Ok(at)
}

fn step(
    at: impl std::os::fd::AsFd,
    name: &Path,
    kind: OFlag,
    walked: &Path,
    us: Uid,
) -> Result<OwnedFd, String> {
    let flags = kind | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(at, name, flags, Mode::empty())
        .and_then(|opened| Ok((fstat(&opened)?, opened)))
        .map_err(|error| {
            let mend = match error == Errno::EACCES {
                true => "chmod it, or run this as who may read it",
                false => "name another place",
            };
            let path = walked.display();
            format!("{path} cannot be opened: {}: {mend}", error.desc())
        });
    let (stat, opened) = opened?;
    let verdict = if kind.contains(OFlag::O_DIRECTORY) {
        judge_folder(&stat, us)
    } else {
        judge_file(&stat, us)
    };
    match verdict {
        Ok(()) => Ok(opened),
        Err(why) => Err(why.replace("PATH", &walked.display().to_string())),
    }
}

fn judge_folder(stat: &FileStat, us: Uid) -> Result<(), &'static str> {
    if !ours(stat, us) {
        return Err(
            "the folder PATH belongs to somebody else, who could replace what is in it: chown root PATH",
        );
    }
    let sticky = stat.st_mode & libc::S_ISVTX != 0 && stat.st_uid == Uid::ROOT.0;
    if foreign_writes(stat) && !sticky {
        return Err(
            "the folder PATH can be written by others, who could replace what is in it: chmod go-w PATH",
        );
    }
    Ok(())
}

fn judge_file(stat: &FileStat, us: Uid) -> Result<(), &'static str> {
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(
            "PATH is not a regular file: put one there; a config is named with --config FILE",
        );
    }
    if !ours(stat, us) {
        return Err("PATH belongs to somebody else, who could change it: chown root PATH");
    }
    if foreign_writes(stat) {
        return Err("PATH can be written by others: chmod go-w PATH");
    }
    Ok(())
}

fn ours(stat: &FileStat, us: Uid) -> bool {
    stat.st_uid == Uid::ROOT.0 || stat.st_uid == us.0
}

fn foreign_writes(stat: &FileStat) -> bool {
    stat.st_mode & (libc::S_IWGRP | libc::S_IWOTH) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A folder as a careful user has it, with a config in it.
    fn careful() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/config.toml");
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(&file, "mount = \"/secrets\"\n").unwrap();
        chmod(&folder.path().join("sub"), 0o755);
        chmod(&file, 0o644);
        (folder, file)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        open(path).unwrap_err().to_string()
    }

    #[test]
    fn a_careful_config_is_read_also_through_a_link() {
        let (folder, file) = careful();
        assert_eq!(open(&file).unwrap().text, "mount = \"/secrets\"\n");
        let link = folder.path().join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(open(&link).unwrap().path, file.canonicalize().unwrap());
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let (folder, file) = careful();
        for mode in [0o664, 0o646, 0o666] {
            chmod(&file, mode);
            let error = refusal(&file);
            assert!(
                error.contains("chmod go-w") && error.contains("config.toml"),
                "{error}"
            );
        }
        chmod(&file, 0o600);
        // Also where it is not the folder that the file stands in, and where a link leads away from it.
        for (path, mode) in [("sub", 0o775), ("sub", 0o1777), ("", 0o777), ("", 0o720)] {
            let path = folder.path().join(path);
            chmod(&path, mode);
            let refused = if mode & 0o1000 != 0 && Uid::effective() == Uid::ROOT {
                open(&file).is_ok()
            } else {
                refusal(&file).contains(
                    &format!("chmod go-w {}", path.display())
                        .trim_end_matches('/')
                        .to_owned(),
                )
            };
            assert!(refused, "{path:?} {mode:o}");
            chmod(&path, 0o755);
        }
        let safe = tempfile::tempdir().unwrap();
        let link = safe.path().join("config.toml");
        symlink(&file, &link).unwrap();
        assert!(open(&link).is_ok());
        chmod(&folder.path().join("sub"), 0o777);
        assert!(refusal(&link).contains("chmod go-w"));
    }

    #[test]
    fn a_link_that_others_can_lead_elsewhere_is_refused() {
        let (folder, file) = careful();
        let open_to_all = folder.path().join("open");
        fs::create_dir(&open_to_all).unwrap();
        let link = open_to_all.join("config.toml");
        symlink(&file, &link).unwrap();
        assert!(open(&link).is_ok());
        chmod(&open_to_all, 0o777);
        assert!(refusal(&link).contains("chmod go-w"));
        chmod(&open_to_all, 0o755);
        if Uid::effective() == Uid::ROOT {
            std::os::unix::fs::lchown(&link, Some(4001), None).unwrap();
            let error = refusal(&link);
            assert!(
                error.contains("the link") && error.contains("chown -h root"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_steps_to_a_config_are_its_links_and_itself() {
        let (folder, file) = careful();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        // As Kubernetes does it: a link in the folder leads through another one, which is swapped.
        fs::create_dir(at("..1")).unwrap();
        fs::rename(&file, at("..1/config.toml")).unwrap();
        symlink("..1", at("..data")).unwrap();
        symlink("..data/config.toml", at("config.toml")).unwrap();
        let expected = [at("config.toml"), at("..data"), at("..1/config.toml")];
        assert_eq!(steps(&at("config.toml")), expected);
        assert_eq!(steps(&at("sub/../config.toml")), expected);
        // It ends where something is missing, and does not go in circles for ever.
        assert_eq!(steps(&at("none/config.toml")), [at("none")]);
        symlink("circle", at("circle")).unwrap();
        assert!(steps(&at("circle")).len() > MAX_LINKS);
    }

    #[test]
    fn what_is_not_a_config_is_refused() {
        let (folder, file) = careful();
        let at = |name: &str| folder.path().join(name);
        assert!(refusal(&at("none")).contains("secretfs init"));
        assert!(refusal(&at("sub")).contains("not a regular file"));
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRUSR).unwrap();
        assert!(refusal(&at("pipe")).contains("not a regular file"));
        fs::write(&file, b"\xff").unwrap();
        assert!(refusal(&file).contains("UTF-8"));
        fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert!(refusal(&file).contains("1 MiB"));
    }

    #[test]
    fn only_root_and_we_may_own_it() {
        let (us, other) = (Uid(1000), 1001);
        let mut stat = fstat(File::open("/").unwrap()).unwrap();
        let sticky = libc::S_ISVTX | 0o777;
        let table = [
            // mode, owner, is good as a folder, as a file
            (0o755, 0, true, true),
            (0o755, us.0, true, true),
            (0o755, other, false, false),
            (0o700, other, false, false),
            (0o775, 0, false, false),
            (0o757, us.0, false, false),
            (sticky, 0, true, false),
            (sticky, us.0, false, false),
            (sticky, other, false, false),
        ];
        for (mode, owner, folder, file) in table {
            stat.st_uid = owner;
            stat.st_mode = libc::S_IFDIR | mode;
            assert_eq!(
                judge_folder(&stat, us).is_ok(),
                folder,
                "folder {mode:o} {owner}"
            );
            stat.st_mode = libc::S_IFREG | mode;
            assert_eq!(judge_file(&stat, us).is_ok(), file, "file {mode:o} {owner}");
        }
    }
}
