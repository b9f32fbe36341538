//! The programs that people watch files with, run by a plain user.

use std::path::Path;

use super::{bind, start};
use crate::common::daemon::tool;
use crate::common::machine::{Need, needs};
use crate::common::probe::{PYTHON, Who};
use crate::common::speaker::Speaker;
use crate::common::{DEADLINE, wait};

fn watch(words: &[&str]) -> Speaker {
    Speaker::start(&mut Who::uid(4001).command(words))
}

#[test]
fn inotifywait_on_the_folder_and_on_the_file_also_through_a_bind() {
    needs!(Need::Program("inotifywait"));
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let inotifywait = tool("inotifywait");
    let begin = |path: &Path, more: &[&str]| {
        let mut words = vec![inotifywait.as_str(), "--format", "<%e %f>"];
        words.extend(more);
        words.push(path.to_str().unwrap());
        let mut watcher = watch(&words);
        watcher.says("Watches established");
        watcher
    };
    let mut folder = begin(&daemon.path("a"), &["-m"]);
    let mut through = begin(bound.path(), &["-m"]);
    // As most scripts call it: for one event of those that make a file new.
    let usual = "modify,close_write,move,create,delete";
    let mut once = begin(&daemon.path("a"), &["-e", usual]);
    let mut file = begin(&daemon.path("a/x"), &["-m"]);
    let mut bound_file = begin(&bound.path().join("x"), &["-e", "attrib"]);
    daemon.put("a/x", b"second");
    folder.says("<MOVED_TO x>");
    through.says("<MOVED_TO x>");
    once.says("<MOVED_FROM .next-");
    file.says("<ATTRIB >");
    file.says("<DELETE_SELF >");
    bound_file.says("<ATTRIB >");
    for watcher in [&mut once, &mut bound_file] {
        let ended = wait(watcher.child(), DEADLINE);
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }
    daemon.put("a/x", b"third");
    folder.says("<MOVED_TO x>");
    through.says("<MOVED_TO x>");
}

#[test]
fn who_may_read_nothing_hears_of_changes_all_the_same() {
    needs!(Need::Program("inotifywait"));
    let daemon = start();
    // The kernel asks nobody before it adds a watch to a folder that can be looked up. A name's own look-up is refused.
    let folder = daemon.path("a");
    let words = [
        &tool("inotifywait"),
        "-m",
        "--format",
        "<%e %f>",
        folder.to_str().unwrap(),
    ];
    let mut stranger = Speaker::start(&mut Who::uid(4002).command(&words));
    stranger.says("Watches established");
    daemon.put("a/x", b"second");
    stranger.says("<MOVED_TO x>");
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"second".to_vec()));
    stranger.says("<OPEN x>");
    let file = daemon.path("a/still");
    let words = [&tool("inotifywait"), file.to_str().unwrap()];
    let mut stranger = Speaker::start(&mut Who::uid(4002).command(&words));
    stranger.says("Couldn't watch");
}

#[test]
fn watchdog_for_python_on_the_folder_also_through_a_bind() {
    needs!(Need::Module("watchdog"));
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let script = "
import sys
from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver
class Handler(FileSystemEventHandler):
    def on_moved(self, event):
        print('moved', event.dest_path, open(event.dest_path).read(), flush=True)
    def on_deleted(self, event):
        print('deleted', event.src_path, flush=True)
observer = InotifyObserver()
for folder in sys.argv[1:]:
    observer.schedule(Handler(), folder)
observer.start()
print('ready', flush=True)
observer.join()
";
    let folders = [daemon.path("a"), bound.path().to_owned()];
    let places = folders.each_ref().map(|folder| folder.to_str().unwrap());
    let python = tool(PYTHON);
    let mut watchers = places.map(|place| watch(&[&python, "-I", "-c", script, place]));
    for watcher in &mut watchers {
        watcher.says("ready");
    }
    for value in ["second", "third"] {
        daemon.put("a/x", value.as_bytes());
        for (watcher, place) in watchers.iter_mut().zip(places) {
            watcher.says(&format!("moved {place}/x {value}"));
        }
    }
    daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
    for (watcher, place) in watchers.iter_mut().zip(places) {
        watcher.says(&format!("deleted {place}/x"));
    }
}

#[test]
fn node_s_watch_on_the_folder_and_on_the_file_also_through_a_bind() {
    needs!(Need::Program("node"));
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    // A file's watcher watches the new file after each change, as Node's documentation says.
    let script = "
const fs = require('fs'), path = require('path');
const [kind, place] = process.argv.slice(1);
const secret = kind === 'folder' ? path.join(place, 'x') : place;
const say = event => console.log(kind, event, fs.readFileSync(secret, 'utf8'));
const watch = () => {
    const watcher = fs.watch(place, (event, name) => {
        if (kind === 'folder' && name !== 'x') return;
        if (kind === 'file') { watcher.close(); watch(); }
        say(event);
    });
};
watch();
console.log('ready');
";
    let node = tool("node");
    let places = [
        ("folder", daemon.path("a")),
        ("folder", bound.path().to_owned()),
        ("file", daemon.path("a/x")),
        ("file", bound.path().join("x")),
    ];
    let mut watchers = places.map(|(kind, place)| {
        let words = [&node, "-e", script, kind, place.to_str().unwrap()];
        (kind, watch(&words))
    });
    for (_, watcher) in &mut watchers {
        watcher.says("ready");
    }
    for value in ["second", "third", "a longer one, the fourth"] {
        daemon.put("a/x", value.as_bytes());
        for (kind, watcher) in &mut watchers {
            let event = if *kind == "folder" {
                "rename"
            } else {
                "change"
            };
            watcher.says(&format!("{kind} {event} {value}"));
        }
    }
}
