//! An audit log that is a file, followed from its end.
//!
//! It may be rotated in either way. Renamed and made anew: the server goes on with the old file until it is told to open the
//! new one, so for a while both are read. Copied and truncated: what was written in between is lost, and that is said.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Sink;
use super::lines::Lines;
use crate::clock::Clock;

/// How often it is looked for more.
const EVERY: Duration = Duration::from_millis(20);

/// How long a file is read on after another has taken its place.
const GRACE: Duration = Duration::from_secs(60);

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// A file that is followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    clock: Clock,
    current: Followed,
    /// What stood at the path before, and until when it is read.
    before: Option<(Followed, Instant)>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Followed {
    file: File,
    identity: (u64, u64),
    at: u64,
    lines: Lines,
}

impl Tail {
    /// Begins at the file's end.
    ///
    /// # Errors
    /// When the file cannot be opened, or is none.
    pub fn new(path: &Path, clock: Clock) -> io::Result<Self> {
        let mut current = Followed::open(path)?;
        current.at = current.file.seek(SeekFrom::End(0))?;
        Ok(Self {
            path: path.to_owned(),
            clock,
            current,
            before: None,
            buffer: vec![0; CHUNK],
        })
    }

    /// Follows the file, for as long as it is waited for.
    pub async fn run(mut self, sink: &Sink<'_>) {
        let mut readable = true;
        loop {
            let read = self.step(sink);
            if let Err(error) = &read
                && readable
            {
                let file = self.path.display();
                tracing::warn!(%error, "{file}: the audit log cannot be read: changes are seen when they are polled");
                sink.missed();
            }
            readable = read.is_ok();
            match read {
                // Others want to run, too.
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) | Err(_) => tokio::time::sleep(EVERY).await,
            }
        }
    }

    /// Reads what has come, a bounded part of it. True if there may be more at once.
    fn step(&mut self, sink: &Sink<'_>) -> io::Result<bool> {
        let now = self.clock.now();
        let mut more = false;
        if let Some((before, until)) = &mut self.before {
            let had = before.read(&mut self.buffer, sink)?;
            if !had && *until <= now {
                self.before = None;
            }
            more |= had;
        }
        more |= self.current.read(&mut self.buffer, sink)?;
        if more {
            return Ok(true);
        }
        // Between the rename and the new file there is none; the server still writes to the old one.
        let there = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            there => there?,
        };
        if identity(&there) != self.current.identity {
            let new = Followed::open(&self.path)?;
            let old = std::mem::replace(&mut self.current, new);
            if let Some((mut before, _)) = self.before.replace((old, now + GRACE)) {
                while before.read(&mut self.buffer, sink)? {}
            }
            return Ok(true);
        }
        if there.len() < self.current.at {
            self.current.at = self.current.file.seek(SeekFrom::Start(0))?;
            self.current.lines.clear();
            sink.missed();
            return Ok(true);
        }
        Ok(false)
    }
}

impl Followed {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let there = file.metadata()?;
        if !there.is_file() {
            return Err(io::Error::other("not a file"));
        }
        Ok(Self {
            identity: identity(&there),
            file,
            at: 0,
            lines: Lines::default(),
        })
    }

    /// Reads once. True if something came.
    fn read(&mut self, buffer: &mut [u8], sink: &Sink<'_>) -> io::Result<bool> {
        let read = self.file.read(buffer)?;
        self.at += u64::try_from(read).unwrap_or_default();
        let bytes = buffer.get(..read).unwrap_or_default();
        if self.lines.take(bytes, |line| sink.line(line)) {
            tracing::warn!("a line of the audit log is too long and was skipped");
            sink.missed();
        }
        Ok(read > 0)
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;
    use crate::signal::outbox::Outbox;

    /// The last part of each path that was told; `*` for anything.
    fn told(outbox: &Outbox) -> String {
        let paths = outbox.take().into_iter().map(|message| message.path);
        let paths = paths.map(|path| path.unwrap_or_else(|| "/*".to_owned()));
        paths
            .filter_map(|path| Some(path.rsplit_once('/')?.1.to_owned()))
            .collect()
    }

    fn line(name: &str) -> String {
        format!(
            "{{\"type\":\"response\",\"request\":{{\"operation\":\"update\",\"mount_type\":\"kv\",\"path\":\"kv1/{name}\"}}}}\n"
        )
    }

    struct World {
        _folder: tempfile::TempDir,
        path: PathBuf,
        clock: Clock,
        tail: Tail,
        outbox: Outbox,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("audit.log");
            fs::write(&path, line("old")).unwrap();
            let clock = Clock::manual();
            Self {
                tail: Tail::new(&path, clock.clone()).unwrap(),
                outbox: Outbox::new("vault".parse().unwrap()),
                path,
                clock,
                _folder: folder,
            }
        }

        fn seen(&mut self) -> String {
            let sink = Sink {
                namespace: "",
                outbox: &self.outbox,
                each: &|_| {},
            };
            while self.tail.step(&sink).unwrap() {}
            told(&self.outbox)
        }

        fn open(&self) -> File {
            let options = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path);
            options.unwrap()
        }
    }

    fn write(mut file: &File, text: &str) {
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn it_begins_at_the_end_and_goes_on_line_by_line() {
        let mut world = World::new();
        assert_eq!(world.seen(), "");
        let file = world.open();
        let (text, rest) = (line("a"), line("b"));
        write(&file, &text);
        write(&file, &rest[..20]);
        assert_eq!(world.seen(), "a");
        write(&file, &rest[20..]);
        assert_eq!(world.seen(), "b");
    }

    #[test]
    fn renamed_the_old_file_is_read_as_long_as_the_server_may_write_to_it() {
        let mut world = World::new();
        let old = world.open();
        write(&old, &line("a"));
        fs::rename(&world.path, world.path.with_extension("1")).unwrap();
        write(&old, &line("b"));
        assert_eq!(world.seen(), "ab");
        let new = world.open();
        write(&old, &line("c"));
        write(&new, &line("d"));
        assert_eq!(world.seen(), "cd");
        write(&old, &line("e"));
        assert_eq!(world.seen(), "e");
        world.clock.advance(GRACE);
        assert_eq!(world.seen(), "");
        write(&old, &line("f"));
        write(&new, &line("g"));
        assert_eq!(world.seen(), "g");
        assert!(world.tail.before.is_none());
    }

    #[test]
    fn truncated_it_begins_anew_and_says_that_lines_are_lost() {
        let mut world = World::new();
        let file = world.open();
        write(&file, &line("a"));
        write(&file, "{\"half");
        assert_eq!(world.seen(), "a");
        file.set_len(0).unwrap();
        write(&file, &line("b"));
        assert_eq!(world.seen(), "*b");
        file.set_len(0).unwrap();
        assert_eq!(world.seen(), "*");
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_said_to_be_lost() {
        let mut world = World::new();
        let file = world.open();
        write(&file, &"x".repeat(super::super::lines::MAX_LINE + 7));
        write(&file, "\n");
        write(&file, &line("a"));
        assert_eq!(world.seen(), "*a");
    }

    #[test]
    fn a_folder_is_no_audit_log() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tail::new(folder.path(), Clock::manual()).is_err());
        assert!(Tail::new(&folder.path().join("none"), Clock::manual()).is_err());
    }
}
