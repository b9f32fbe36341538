//! What a `put` takes with a full store, beside what the disk takes for the same bytes without us.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use secretfs::clock::Clock;
use secretfs::control::client::Upload;
use secretfs::control::protocol::Request;
use secretfs::secret::SecretBytes;

use crate::contenders::Daemon;
use crate::load::Sample;
use crate::tree::{Service, numbered};

const SIZE: usize = 1024;

/// The two, taken in turn.
pub(crate) struct Puts {
    pub(crate) put: Sample,
    pub(crate) disk: Sample,
}

/// Puts `count` new versions of secrets that readers have, and has each read back at once.
pub(crate) fn run(
    daemon: &Daemon,
    folder: &Path,
    count: usize,
    many: usize,
    clock: &Clock,
) -> Puts {
    let index = fs::metadata(folder.join("store.age"))
        .expect("the index")
        .len();
    let index = vec![b'i'; usize::try_from(index).expect("fits")];
    let (mut puts, mut disk) = (Vec::new(), Vec::new());
    for turn in 0..count {
        let name = numbered(turn * 37 % many);
        let path = format!("{}/{name}", Service::Many.name());
        let file = daemon.root().join(&path);
        let _ = fs::read(&file).expect("reads the old value");
        let value: Vec<u8> = format!("{turn:0SIZE$}").into_bytes();
        let request = Request::Put {
            path: path.parse().expect("a path"),
        };
        let upload = Upload::Value(SecretBytes::new(value.clone()));
        let start = clock.now();
        daemon.ask(&request, upload).expect("put");
        puts.push(clock.now() - start);
        let read = fs::read(&file).expect("reads");
        assert!(read == value, "a put that returned is visible");

        let start = clock.now();
        write(folder, &value, &index).expect("writes");
        disk.push(clock.now() - start);
    }
    let sample = |turns: Vec<Duration>| {
        let wall = turns.iter().sum();
        Sample::of(turns, wall)
    };
    Puts {
        put: sample(puts),
        disk: sample(disk),
    }
}

/// A value and an index, each whole and for good, and a line of a log: what no store can do without.
fn write(folder: &Path, value: &[u8], index: &[u8]) -> std::io::Result<()> {
    let place = folder.join("plain");
    fs::create_dir_all(&place)?;
    let whole = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let new = place.join("new");
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, place.join(name))?;
        File::open(&place)?.sync_all()
    };
    whole("value", value)?;
    whole("index", index)?;
    let mut log = File::options()
        .append(true)
        .create(true)
        .open(place.join("log"))?;
    log.write_all(&[b'l'; 200])?;
    log.sync_data()
}
