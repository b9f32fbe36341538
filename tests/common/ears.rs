//! Ears on files and folders: what inotify(7) says of each, in words.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use super::{DEADLINE, eventually};

/// Changes of every kind, but not who opens, reads and closes.
const CHANGES: AddWatchFlags = AddWatchFlags::from_bits_truncate(
    AddWatchFlags::IN_ALL_EVENTS.bits()
        & !AddWatchFlags::IN_OPEN.bits()
        & !AddWatchFlags::IN_ACCESS.bits()
        & !AddWatchFlags::IN_CLOSE.bits(),
);

/// Hears what happens to one file or folder.
#[derive(Debug)]
pub(crate) struct Ears {
    inotify: Inotify,
    heard: Vec<String>,
}

impl Ears {
    #[track_caller]
    pub(crate) fn on(path: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let added = inotify.add_watch(path, CHANGES);
        added.unwrap_or_else(|errno| panic!("{}: {errno}", path.display()));
        let heard = Vec::new();
        Self { inotify, heard }
    }

    /// What was heard since the last time, as soon as `last` is: `MOVED_TO x`, `ATTRIB`, …
    #[track_caller]
    pub(crate) fn hear(&mut self, last: &str) -> Vec<String> {
        let came = eventually(DEADLINE, || {
            self.listen();
            self.heard.iter().any(|event| event == last)
        });
        assert!(came, "no {last} among {:?}", self.heard);
        std::mem::take(&mut self.heard)
    }

    /// What was heard since the last time; nothing is waited for.
    #[track_caller]
    pub(crate) fn so_far(&mut self) -> Vec<String> {
        self.listen();
        std::mem::take(&mut self.heard)
    }

    #[track_caller]
    fn listen(&mut self) {
        match self.inotify.read_events() {
            Ok(events) => self.heard.extend(events.iter().map(words)),
            Err(Errno::EAGAIN) => {}
            Err(errno) => panic!("inotify: {errno}"),
        }
    }
}

/// The name that a new generation has before it is renamed counts up, and is nobody's business.
fn words(event: &InotifyEvent) -> String {
    let kinds: Vec<&str> = event
        .mask
        .iter_names()
        .map(|(name, _)| name.trim_start_matches("IN_"))
        .collect();
    let kinds = kinds.join("+");
    match event.name.as_ref().map(|name| name.to_str().unwrap()) {
        None => kinds,
        Some(hidden) if hidden.starts_with(".next-") => format!("{kinds} .next"),
        Some(name) => format!("{kinds} {name}"),
    }
}
