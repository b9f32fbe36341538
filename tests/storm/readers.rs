//! The readers: processes that read in one way each, and what they may say of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::common::machine::program;
use crate::common::mounts::Bind;
use crate::common::probe::{PYTHON, Who};
use crate::common::{DEADLINE, wait};

const SCRIPT: &str = include_str!("reader.py");

/// How a reader comes to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By its path.
    Path,
    /// By its path, through a bind mount of the folder.
    Folder,
    /// Through a bind mount of the file, which stays on the inode that it was made for.
    File,
    /// Through `/proc/self/fd`, from a handle that is open.
    Reopen,
}

/// How it reads what it has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Read,
    Map,
    Sendfile,
}

/// The readers of one secret.
const ALL: [(Way, How); 16] = [
    (Way::Path, How::Read),
    (Way::Path, How::Map),
    (Way::Path, How::Sendfile),
    (Way::Path, How::Read),
    (Way::Path, How::Map),
    (Way::Path, How::Sendfile),
    (Way::Path, How::Read),
    (Way::Folder, How::Read),
    (Way::Folder, How::Map),
    (Way::Folder, How::Sendfile),
    (Way::File, How::Read),
    (Way::File, How::Map),
    (Way::File, How::Sendfile),
    (Way::Reopen, How::Read),
    (Way::Reopen, How::Map),
    (Way::Reopen, How::Sendfile),
];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Folder => "folder",
            Self::File => "file",
            Self::Reopen => "reopen",
        }
    }

    /// True if it can lead to an inode whose name has gone to another.
    fn is_to_an_inode(self) -> bool {
        matches!(self, Self::File | Self::Reopen)
    }
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Map => "map",
            Self::Sendfile => "sendfile",
        }
    }
}

/// The numbers that the readers see change: whether to end, and what was acknowledged of each secret.
#[derive(Debug)]
pub(crate) struct Numbers {
    file: File,
    path: PathBuf,
}

impl Numbers {
    fn new(path: PathBuf, secrets: usize) -> Self {
        fs::write(&path, vec![0; 8 * (1 + secrets)]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        Self { file, path }
    }

    pub(crate) fn acknowledge(&self, secret: usize, number: u64) {
        self.set(1 + secret, number);
    }

    fn end(&self) {
        self.set(0, 1);
    }

    fn set(&self, index: usize, number: u64) {
        let at = u64::try_from(8 * index).unwrap();
        self.file.write_all_at(&number.to_ne_bytes(), at).unwrap();
    }
}

/// The secrets of the service `s`, one for each mode.
pub(crate) const SECRETS: [&str; 2] = ["checked", "cached"];

/// All readers of both secrets.
#[derive(Debug)]
pub(crate) struct Readers {
    all: Vec<Reader>,
    numbers: Arc<Numbers>,
    _binds: Vec<Bind>,
}

impl Readers {
    /// Starts them below `top`. `bind` shows a folder or a file of that at another place, and `numbers` is where a file for
    /// what they are told can be.
    pub(crate) fn start(top: &Path, numbers: PathBuf, bind: impl Fn(&Path, &str) -> Bind) -> Self {
        let numbers = Arc::new(Numbers::new(numbers, SECRETS.len()));
        let service = top.join("s");
        let folder = bind(&service, "folder");
        let (mut all, mut binds) = (Vec::new(), Vec::new());
        for (secret, name) in SECRETS.into_iter().enumerate() {
            let (by_path, by_folder) = (service.join(name), folder.path().join(name));
            let file = bind(&by_path, name);
            for way in ALL {
                let paths = [by_path.as_path(), &by_folder, file.path()];
                let which = (secret, name == "cached");
                all.push(Reader::start(&numbers, which, way, paths));
            }
            binds.push(file);
        }
        binds.push(folder);
        Self {
            all,
            numbers,
            _binds: binds,
        }
    }

    /// Where they are told what was acknowledged.
    pub(crate) fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    /// Ends them, and says how many values they got and what was wrong with them.
    pub(crate) fn end(self) -> (u64, Vec<String>) {
        self.numbers.end();
        let (mut reads, mut wrong) = (0, Vec::new());
        for reader in self.all {
            let (said, also) = reader.ended();
            reads += said.reads;
            wrong.extend(also);
        }
        (reads, wrong)
    }
}

/// A reader.
#[derive(Debug)]
struct Reader {
    child: Child,
    cached: bool,
    way: Way,
    how: How,
}

/// What a reader says at its end.
#[derive(Debug, Deserialize)]
struct Said {
    /// Values that it got.
    reads: u64,
    /// What it got instead, and how often.
    refused: BTreeMap<String, u64>,
    /// What must not be.
    wrong: Vec<String>,
}

impl Reader {
    /// Starts one. `paths` are those by which it can come, by the names of the ways.
    fn start(
        numbers: &Numbers,
        secret: (usize, bool),
        (way, how): (Way, How),
        paths: [&Path; 3],
    ) -> Self {
        let script = numbers.path.with_file_name("reader.py");
        if !script.exists() {
            fs::write(&script, SCRIPT).unwrap();
        }
        let [path, folder, file] = paths;
        let paths = json!({"path": path, "folder": folder, "file": file}).to_string();
        let (index, cached) = secret;
        let python = program(PYTHON).unwrap();
        let (index, python) = (index.to_string(), python.to_str().unwrap().to_owned());
        let words = [
            &python,
            "-I",
            script.to_str().unwrap(),
            numbers.path.to_str().unwrap(),
            &index,
            way.name(),
            how.name(),
            &paths,
        ];
        let child = Who::root()
            .command(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            child,
            cached,
            way,
            how,
        }
    }

    /// Waits for its end, and says how many values it got, what it got instead, and what is wrong with that.
    fn ended(mut self) -> (Said, Vec<String>) {
        let who = format!(
            "{} {} {}",
            if self.cached { "cached" } else { "checked" },
            self.way.name(),
            self.how.name()
        );
        let ended = wait(&mut self.child, DEADLINE);
        let Some(status) = ended else {
            let _ = self.child.kill();
            panic!("{who}: hangs");
        };
        assert!(status.success(), "{who}: {status}");
        let mut text = String::new();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        let said: Said = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{who}: {status} {text:?}: {error}"));
        let mut wrong: Vec<String> = said.wrong.iter().map(|w| format!("{who}: {w}")).collect();
        let refused = said.refused.iter().filter(|(what, _)| !self.may_get(what));
        wrong.extend(refused.map(|(what, count)| format!("{who}: {what}, {count} times")));
        if std::env::var_os("SECRETFS_STORM_VERBOSE").is_some() {
            eprintln!("{who}: {} reads, {:?}", said.reads, said.refused);
        }
        (said, wrong)
    }

    /// What a reader may get beside a value and its size, as docs/semantics.md says: by the inode, where another generation
    /// is open there; by a path only if it was so late that somebody else has come by the inode meanwhile.
    fn may_get(&self, what: &str) -> bool {
        let (what, late) = match what.strip_suffix(", late") {
            Some(what) => (what, true),
            None => (what, false),
        };
        match what {
            "open: ESTALE" => self.cached && self.way.is_to_an_inode(),
            "read: EIO" | "read: EFAULT" | "zeros after the end" => {
                (late || self.way.is_to_an_inode()) && (self.cached || self.how != How::Read)
            }
            "another size" => late || self.way.is_to_an_inode(),
            _ => false,
        }
    }
}
