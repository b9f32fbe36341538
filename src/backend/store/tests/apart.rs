//! Files apart from the store.

use std::fs;

use super::super::apart::ApartError;
use super::super::seal::{self, SealTo};
use super::*;

const CANARY: &[u8] = b"canary-51c0";

fn store(folder: &tempfile::TempDir) -> Store {
    let identity = Identity::generate();
    Store::create(
        &folder.path().join("store.age"),
        &identity,
        Clock::default(),
    )
    .unwrap()
}

#[test]
fn a_file_apart_is_read_again_by_whoever_has_the_store_and_by_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offline.age");
    let ours = store(&folder);
    assert!(ours.read_apart(&path, 100).unwrap().is_none());
    ours.write_apart(&path, |to| to.write_all(b"before"))
        .unwrap();
    ours.write_apart(&path, |to| to.write_all(CANARY)).unwrap();
    let read = ours.read_apart(&path, CANARY.len()).unwrap().unwrap();
    assert_eq!(read.expose(), CANARY);
    let whole = fs::read(&path).unwrap();
    assert!(!whole.windows(CANARY.len()).any(|part| part == CANARY));

    let too_long = ours.read_apart(&path, CANARY.len() - 1);
    assert!(matches!(too_long, Err(ApartError::Damaged)));
    let other = tempfile::tempdir().unwrap();
    let theirs = store(&other).read_apart(&path, 100);
    assert!(matches!(theirs, Err(ApartError::Foreign)));
    Store::remove_apart(&path).unwrap();
    Store::remove_apart(&path).unwrap();
    assert!(ours.read_apart(&path, 100).unwrap().is_none());
}

#[test]
fn a_file_apart_that_is_not_as_it_was_written_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("offline.age");
    let ours = store(&folder);
    ours.write_apart(&path, |to| to.write_all(CANARY)).unwrap();
    let whole = fs::read(&path).unwrap();
    for cut in [0, 1, 100, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let read = ours.read_apart(&path, 100);
        assert!(matches!(read, Err(ApartError::Damaged)), "{cut}");
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(ours.read_apart(&path, 100).is_err(), "{at}");
    }
    // Whoever knows whom the store is sealed to can seal something to them.
    let recipients = ours.recipients();
    let forged = seal::seal(SealTo::Recipients(&recipients), 0, |to| {
        to.write_all(CANARY)?;
        to.write_all(&[7; 32])
    });
    fs::write(&path, forged.unwrap()).unwrap();
    let read = ours.read_apart(&path, 100);
    assert!(matches!(read, Err(ApartError::Damaged)));
    // Nothing that could be waited for, or that leads elsewhere.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(folder.path().join("store.age"), &path).unwrap();
    assert!(ours.read_apart(&path, 100).is_err());
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(ours.read_apart(&path, 100).is_err());
}
