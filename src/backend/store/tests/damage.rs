//! Files that are not as they were written: a clear refusal that names the file, never a wrong value.

use super::*;
use crate::backend::store::repair::repair_in;

fn base() -> (Fake, Identity) {
    let (fake, identity) = (Fake::default(), Identity::generate());
    let store = Store::create_in(Box::new(fake.clone()), &identity, Clock::manual()).unwrap();
    store
        .put(&path("a/x"), &bytes("canary-7f3a"), None)
        .unwrap();
    store.put(&path("b/y"), &bytes("other"), None).unwrap();
    (fake, identity)
}

fn file_of(store: &Store, name: &str) -> File {
    File::Value(store.state().index.record(&path(name), None).unwrap().file)
}

type Damaging = Box<dyn Fn(&mut Vec<u8>)>;

/// Every truncation, every `stride`th bit flipped, and something added.
fn damages(length: usize, stride: usize) -> Vec<Damaging> {
    let mut damages: Vec<Damaging> = Vec::new();
    for length in 0..length {
        damages.push(Box::new(move |bytes| bytes.truncate(length)));
    }
    for bit in (0..length * 8).step_by(stride) {
        damages.push(Box::new(move |bytes| bytes[bit / 8] ^= 1 << (bit % 8)));
    }
    damages.push(Box::new(|bytes| bytes.push(0)));
    damages.push(Box::new(|bytes| bytes.extend(bytes.clone())));
    damages.push(Box::new(|bytes| bytes.fill(0)));
    damages
}

#[test]
fn a_damaged_index_is_refused_and_nothing_else_is_used_in_its_place() {
    let (fake, identity) = base();
    let length = fake.read(File::Index, usize::MAX).unwrap().len();
    for damage in damages(length, 11) {
        let disk = fake.copy(None);
        disk.tamper(File::Index, |bytes| damage(bytes));
        let before = disk.files();
        let error = open_fake(&disk, &identity).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Damaged { .. } | StoreError::WrongIdentity(_)
            ),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("/fake/store.age:") && text.contains("doctor --repair"),
            "{text}"
        );
        // What no index names may be all that is left: nothing is swept.
        assert_eq!(disk.files(), before);
    }
}

#[test]
fn a_damaged_value_is_refused_and_the_others_are_given() {
    let (fake, identity) = base();
    let store = open_fake(&fake, &identity).unwrap();
    let file = file_of(&store, "a/x");
    let length = fake.read(file, usize::MAX).unwrap().len();
    for damage in damages(length, 1) {
        let disk = fake.copy(None);
        disk.tamper(file, |bytes| damage(bytes));
        let store = open_fake(&disk, &identity).unwrap();
        shows(&store, "b/y", None, "other");
        let error = store.get(&path("a/x"), None).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&disk.path(file).display().to_string()) && text.contains("a/x@1"),
            "{text}"
        );
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn a_value_in_the_place_of_another_is_refused() {
    let (fake, identity) = base();
    let store = open_fake(&fake, &identity).unwrap();
    store
        .put(&path("a/x"), &bytes("CANARY-7F3A"), None)
        .unwrap();
    // Of the same length, sealed to the same key, and older: all that tells them apart is the index.
    let older = File::Value(
        store
            .state()
            .index
            .record(&path("a/x"), Some(&Version::new("1")))
            .unwrap()
            .file,
    );
    let stale = fake.read(older, usize::MAX).unwrap();
    fake.tamper(file_of(&store, "a/x"), |bytes| *bytes = stale);
    assert!(matches!(
        store.get(&path("a/x"), None),
        Err(StoreError::Damaged { .. })
    ));
    shows(&store, "a/x", Some("1"), "canary-7f3a");
}

#[test]
fn a_format_from_the_future_is_named() {
    let (fake, identity) = base();
    let sealed = fake.read(File::Index, usize::MAX).unwrap();
    let plain = seal::open(OpenWith::Identity(&identity), &sealed, usize::MAX).unwrap();
    let plain = String::from_utf8(plain.expose().to_vec()).unwrap();
    let later = plain.replacen("\"format\":1", "\"format\":7,\"more\":[]", 1);
    let recipients = identity.recipients();
    let write = |writer: &mut dyn io::Write| writer.write_all(later.as_bytes());
    let later = seal::seal(SealTo::Recipients(&recipients), 0, write).unwrap();
    fake.tamper(File::Index, |bytes| *bytes = later);
    let error = open_fake(&fake, &identity).unwrap_err();
    assert!(
        matches!(error, StoreError::Format { found: 7, .. }),
        "{error}"
    );
    // Nor does the repair go back in time behind the back of the secretfs that wrote it.
    assert!(matches!(
        repair_in(&fake, &identity, &mut nothing),
        Err(StoreError::Format { .. })
    ));
}

#[test]
fn a_repair_goes_by_the_newest_index_that_can_be_read_and_says_what_is_lost() {
    let (fake, identity) = base();
    let sound = fake.files();
    let repaired = repair_in(&fake, &identity, &mut nothing).unwrap();
    assert!(repaired.from.is_none() && repaired.lost.is_empty() && repaired.unnamed.is_empty());
    assert_eq!(fake.files(), sound);

    fake.tamper(File::Index, |bytes| bytes.truncate(100));
    let repaired = repair_in(&fake, &identity, &mut nothing).unwrap();
    assert_eq!(repaired.from, Some(PathBuf::from("/fake/store.age.1")));
    assert_eq!((repaired.lost.len(), repaired.unnamed.len()), (0, 1));
    let store = open_fake(&fake, &identity).unwrap();
    assert_eq!(content(&store).len(), 1);
    shows(&store, "a/x", None, "canary-7f3a");
    // The value that no index names is kept, and opens.
    let lost = fake
        .files()
        .into_iter()
        .find(|file| matches!(file, File::Lost(_)))
        .unwrap();
    assert_eq!(fake.path(lost), repaired.unnamed[0]);
    let sealed = fake.read(lost, usize::MAX).unwrap();
    assert_eq!(
        seal::open(OpenWith::Identity(&identity), &sealed, 99)
            .unwrap()
            .expose(),
        b"other"
    );
}

#[test]
fn a_repair_takes_out_what_cannot_be_read() {
    let (fake, identity) = base();
    let store = open_fake(&fake, &identity).unwrap();
    store.put(&path("a/x"), &bytes("second"), None).unwrap();
    fake.tamper(file_of(&store, "a/x"), |bytes| bytes[40] ^= 1);
    let report = store.verify(&mut nothing);
    let named: Vec<_> = report
        .damaged
        .iter()
        .map(|damage| format!("{}@{}", damage.path, damage.version))
        .collect();
    assert_eq!((report.sound, named), (2, vec!["a/x@2".to_owned()]));
    drop(store);

    let repaired = repair_in(&fake, &identity, &mut nothing).unwrap();
    assert_eq!((repaired.from, repaired.lost.len()), (None, 1));
    let store = open_fake(&fake, &identity).unwrap();
    assert!(store.verify(&mut nothing).damaged.is_empty());
    shows(&store, "a/x", None, "canary-7f3a");
    assert_eq!(
        store
            .put(&path("a/x"), &bytes("third"), None)
            .unwrap()
            .as_str(),
        "3"
    );
}

#[test]
fn a_missing_index_beside_its_values_is_no_empty_store() {
    let (fake, identity) = base();
    fake.remove(File::Index).unwrap();
    assert!(matches!(
        open_fake(&fake, &identity),
        Err(StoreError::Damaged { .. })
    ));
    let made = Store::create_in(Box::new(fake.clone()), &identity, Clock::manual());
    assert!(matches!(made, Err(StoreError::Exists(_))));
    repair_in(&fake, &identity, &mut nothing).unwrap();
    assert_eq!(content(&open_fake(&fake, &identity).unwrap()).len(), 1);
}
