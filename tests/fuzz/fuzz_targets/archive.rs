//! Exports: what is restored has names, versions and sizes that a store can have; what is not leaves the store as it was.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use secretfs::backend::store::{Identity, OpenWith, Store};
use secretfs::clock::Clock;
use secretfs::secret::{MAX_VALUE, SecretBytes, SecretPath};
use tempfile::TempDir;

struct Bench {
    _folder: TempDir,
    identity: Identity,
    recipient: age::x25519::Recipient,
    store: Store,
    path: SecretPath,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let folder = TempDir::new_in("/dev/shm").unwrap();
    let identity = Identity::generate();
    let store = Store::create(&folder.path().join("store.age"), &identity, Clock::manual()).unwrap();
    let recipient = identity.recipients()[0].to_string().parse().unwrap();
    let path: SecretPath = "mine/mine".parse().unwrap();
    Bench {
        _folder: folder,
        identity,
        recipient,
        store,
        path,
    }
});

fuzz_target!(|archive: &[u8]| {
    let Bench {
        identity,
        recipient,
        store,
        path,
        ..
    } = &*BENCH;
    if store.is_empty() {
        store.put(path, &SecretBytes::new(b"mine".to_vec()), None).unwrap();
    }
    let before = (store.len(), store.services());
    let sealed = age::encrypt(recipient, archive).unwrap();
    let with = OpenWith::Identity(identity);
    let restored = store.restore(&mut &sealed[..], with, true, &mut |_, _| {});
    if let Err(error) = restored {
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_eq!((store.len(), store.services()), before);
        return;
    }
    for service in store.services() {
        for name in store.names(&service) {
            let path = SecretPath {
                service: service.clone(),
                name,
            };
            let mut sizes = 0;
            for version in store.history(&path).unwrap() {
                let read = store.get(&path, Some(&version.version)).unwrap();
                assert_eq!(read.value.len(), version.size);
                assert!(version.size <= MAX_VALUE);
                sizes += version.size;
            }
            assert!(sizes <= archive.len());
        }
    }
});
