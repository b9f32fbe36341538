//! What a test needs of the machine. What is missing is said loudly, and with `SECRETFS_REQUIRE_ALL=1` is a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Root, with the right to mount.
    Root,
    /// `/dev/fuse`.
    Fuse,
    /// A program.
    Program(&'static str),
    /// A file.
    File(&'static str),
    /// A command of cargo's that is no part of it.
    Cargo(&'static str),
    /// A module of Python's.
    Module(&'static str),
    /// The program of systemd itself, which need not have booted the machine.
    Systemd,
    /// A writable hierarchy of cgroups that systemd's names stand in.
    Cgroups,
    /// HashiCorp's server: built already, or Go to build it with.
    Vault,
    /// The server and the client of PostgreSQL.
    Postgres,
    /// Python's client for Vault: there already, or its venv and pip to fetch it with.
    Hvac,
}

/// Where systemd is.
pub(crate) const SYSTEMD: &str = "/lib/systemd/systemd";

/// What each test here needs.
pub(crate) const MOUNT: [Need; 4] = [
    Need::Root,
    Need::Fuse,
    Need::Program("setpriv"),
    Need::Program(super::probe::PYTHON),
];

/// False, after saying so, if the machine lacks something of this.
#[track_caller]
pub(crate) fn has(needs: &[Need]) -> bool {
    let missing: Vec<String> = needs
        .iter()
        .filter(|need| !need.met())
        .map(|need| format!("{need:?}"))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(
        std::env::var_os("SECRETFS_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "this machine lacks {missing}, and SECRETFS_REQUIRE_ALL=1"
    );
    let place = std::panic::Location::caller();
    eprintln!("SKIPPED: {place}: this machine lacks {missing}");
    false
}

/// Ends the test where the machine lacks something.
#[allow(unused_macros, reason = "each test program uses its own part of this")]
macro_rules! needs {
    ($($need:expr),* $(,)?) => {
        if !$crate::common::machine::has(&$crate::common::machine::MOUNT)
            || !$crate::common::machine::has(&[$($need),*])
        {
            return;
        }
    };
}
#[allow(unused_imports, reason = "likewise")]
pub(crate) use needs;

impl Need {
    fn met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Fuse => Path::new("/dev/fuse").exists(),
            Self::Program(name) => program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::Cargo(name) => {
                let mut command = Command::new(env!("CARGO"));
                command.args([name, "--version"]).stderr(Stdio::null());
                command
                    .stdout(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
            }
            Self::Module(name) => program(super::probe::PYTHON).is_some_and(|python| {
                let import = format!("import {name}");
                let mut command = Command::new(python);
                command.args(["-I", "-c", &import]).stderr(Stdio::null());
                command.status().is_ok_and(|status| status.success())
            }),
            Self::Systemd => Path::new(SYSTEMD).exists(),
            Self::Cgroups => named_hierarchy().is_some(),
            Self::Vault => program("setpriv").is_some() && vault_program().is_some(),
            Self::Postgres => program("setpriv").is_some() && postgres_programs().is_some(),
            Self::Hvac => hvac_python().is_some(),
        }
    }
}

/// Where a program is that other users can start, too.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

/// Where cgroups can be made whose names `secretfs` goes by: systemd's own hierarchy, else the unified one.
pub(crate) fn named_hierarchy() -> Option<PathBuf> {
    ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"]
        .iter()
        .map(Path::new)
        .find(|path| {
            path.join("cgroup.procs").exists()
                && nix::unistd::access(*path, nix::unistd::AccessFlags::W_OK).is_ok()
        })
        .map(Path::to_owned)
}

/// Where Vault's program is. The first time on a machine it is built, which takes minutes.
pub(crate) fn vault_program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let place = build(&["--where"]);
        let go = || {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join("go").exists())
        };
        match place.exists() {
            true => Some(place),
            false => go().then(|| build(&[])),
        }
    };
    PROGRAM.get_or_init(find).clone()
}

/// Runs the script that builds Vault, and says what it says.
#[track_caller]
fn build(words: &[&str]) -> PathBuf {
    made_by("tests/servers/build", words)
}

/// The file that one of our scripts makes, which its last line says.
#[track_caller]
pub(crate) fn made_by(script: &str, words: &[&str]) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&script)
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        script.display(),
        output.status
    );
    let said = String::from_utf8(output.stdout).unwrap();
    PathBuf::from(said.lines().last().unwrap())
}

/// The client that Python programs use, and its version.
const HVAC: &str = "hvac==2.4.0";

/// A Python that has [`HVAC`], in an environment of its own. The first time on a machine it is fetched, into the cache that
/// `tests/servers/build` has, too.
pub(crate) fn hvac_python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(fetch_hvac).clone()
}

fn fetch_hvac() -> Option<PathBuf> {
    let (vault, hvac) = (build(&["--where"]), HVAC.replace("==", "-"));
    let folder = vault.parent()?.parent()?.join(hvac);
    let python = folder.join("bin/python");
    let succeeds = |program: &Path, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        // What it says is no part of what the test says.
        let output = command.output();
        output.is_ok_and(|output| output.status.success())
    };
    let imports = || succeeds(&python, &["-I", "-c", "import hvac"]);
    if !imports() {
        let (host, folder) = (program(super::probe::PYTHON)?, folder.to_str()?);
        let pip = ["-I", "-m", "pip", "install", "--quiet", HVAC];
        let made = succeeds(&host, &["-m", "venv", folder]) && succeeds(&python, &pip);
        (made && imports()).then_some(())?;
    }
    Some(python)
}

/// The folder of the newest PostgreSQL's programs, as Debian lays them.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut versions: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, programs)| {
            ["initdb", "postgres", "psql"]
                .iter()
                .all(|name| programs.join(name).exists())
        })
        .collect();
    versions.sort();
    versions.pop().map(|(_, programs)| programs)
}
