//! Many at once: threads, openers, processes.

use std::process::Command;
use std::thread;

use super::*;

const CROWD: usize = 40;

#[test]
fn forty_threads_lose_nothing() {
    let (_folder, store, identity) = new_store();
    thread::scope(|scope| {
        for number in 0..CROWD {
            let store = &store;
            scope.spawn(move || {
                let (own, shared) = (path(&format!("own/s{number}")), path("shared/s"));
                store.put(&own, &bytes(&number.to_string()), None).unwrap();
                store
                    .put(&shared, &bytes(&number.to_string()), None)
                    .unwrap();
            });
        }
    });
    let (file, before) = (store.path(), content(&store));
    drop(store);
    let store = Store::open(&file, identity, Clock::manual()).unwrap();
    assert_eq!(content(&store), before);
    for number in 0..CROWD {
        shows(&store, &format!("own/s{number}"), None, &number.to_string());
    }
    let newest = store.history(&path("shared/s")).unwrap();
    assert_eq!(newest[0].version.as_str(), CROWD.to_string());
}

#[test]
fn a_reader_beside_a_writer_sees_whole_versions() {
    let (_folder, store, _) = new_store();
    let secret = path("a/x");
    store.put(&secret, &bytes("v1"), None).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 2..60 {
                // The file of each version is gone ten versions later.
                store
                    .put(&secret, &bytes(&format!("v{number}")), None)
                    .unwrap();
            }
        });
        while !writer.is_finished() {
            let fetched = store.get(&secret, None).unwrap();
            let expected = format!("v{}", fetched.version);
            assert_eq!(fetched.value.expose(), expected.as_bytes());
        }
    });
}

#[test]
fn forty_processes_lose_nothing() {
    let (folder, store, identity) = new_store();
    let file = store.path();
    drop(store);
    let key = folder.path().join("identity.txt");
    let text = identity.to_text(Clock::manual().timestamp());
    write_whole(&key, text.expose(), false).unwrap();
    let children: Vec<_> = (0..CROWD)
        .map(|number| {
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "--ignored",
                    "backend::store::tests::crowd::one_of_forty",
                ])
                .env("SECRETFS_TEST_FOLDER", folder.path())
                .env("SECRETFS_TEST_NUMBER", number.to_string())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = Store::open(&file, identity, Clock::manual()).unwrap();
    assert_eq!(content(&store).len(), CROWD);
    for number in 0..CROWD {
        shows(&store, &format!("own/s{number}"), None, &number.to_string());
    }
}

#[test]
#[ignore = "a child of forty_processes_lose_nothing"]
fn one_of_forty() {
    let folder = PathBuf::from(std::env::var_os("SECRETFS_TEST_FOLDER").unwrap());
    let number = std::env::var("SECRETFS_TEST_NUMBER").unwrap();
    let identity = Identity::load(&folder.join("identity.txt"), &Prompt::nobody()).unwrap();
    let store = loop {
        match Store::open(
            &folder.join("store.age"),
            identity.clone(),
            Clock::default(),
        ) {
            // A busy machine may not get forty of us through in the time that one waits.
            Err(StoreError::Locked(_)) => {}
            other => break other.unwrap(),
        }
    };
    store
        .put(&path(&format!("own/s{number}")), &bytes(&number), None)
        .unwrap();
}

#[test]
fn a_store_in_use_is_locked() {
    let (_folder, store, identity) = new_store();
    let other = Store::open(&store.path(), identity.clone(), Clock::manual());
    let error = other.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    let clone = store.clone();
    let file = store.path();
    drop(store);
    clone.put(&path("a/x"), &bytes(""), None).unwrap();
    drop(clone);
    Store::open(&file, identity, Clock::manual()).unwrap();
}
