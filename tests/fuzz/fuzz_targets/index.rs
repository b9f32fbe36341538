//! The store's index: what opens is a store that can be used, and everything else is refused in one line.
#![no_main]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use secretfs::backend::store::{Identity, Store};
use secretfs::clock::Clock;
use secretfs::secret::{SecretBytes, SecretPath};
use tempfile::TempDir;

struct Bench {
    _folder: TempDir,
    path: PathBuf,
    identity: Identity,
    recipient: age::x25519::Recipient,
    own: String,
}

/// Stands for the store's own recipient in the seeds.
const OWN: &str = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg";

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let folder = TempDir::new_in("/dev/shm").unwrap();
    let path = folder.path().join("store.age");
    let identity = Identity::generate();
    drop(Store::create(&path, &identity, Clock::manual()).unwrap());
    let own = identity.recipients()[0].to_string();
    let recipient = own.parse().unwrap();
    Bench {
        _folder: folder,
        path,
        identity,
        recipient,
        own,
    }
});

fuzz_target!(|document: &[u8]| {
    let document = String::from_utf8_lossy(document).replace(OWN, &BENCH.own);
    let sealed = age::encrypt(&BENCH.recipient, document.as_bytes()).unwrap();
    let mut file = fs::File::create(&BENCH.path).unwrap();
    file.write_all(&sealed).unwrap();
    drop(file);
    let store = match Store::open(&BENCH.path, BENCH.identity.clone(), Clock::manual()) {
        Ok(store) => store,
        Err(error) => {
            let line = error.to_string();
            assert!(line.contains("store.age") && !line.contains('\n'), "{line}");
            return;
        }
    };
    for service in store.services() {
        for name in store.names(&service) {
            let path = SecretPath {
                service: service.clone(),
                name,
            };
            let history = store.history(&path).unwrap();
            assert!(!history.is_empty());
            // No value is there, whatever the index says.
            let error = store.get(&path, None).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
            assert!(store.get(&path, Some(&history[0].version)).is_err());
        }
    }
    // What opens can be written, unless its recipients cannot be sealed to; and then it is read again.
    let path: SecretPath = "a/b".parse().unwrap();
    let value = SecretBytes::new(b"value".to_vec());
    if let Ok(version) = store.put(&path, &value, None) {
        let read = store.get(&path, Some(&version)).unwrap();
        assert_eq!(read.value.expose(), value.expose());
        // And is as good as before: not even the last version number may lock the store.
        drop(store);
        let store = Store::open(&BENCH.path, BENCH.identity.clone(), Clock::manual()).unwrap();
        store.remove(&path, None).unwrap();
    }
});
