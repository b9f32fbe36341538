//! Every step of every change fails, and the power goes at every step: the store is then in the old state or the new.

use super::*;
use crate::backend::store::storage::fake::Fault;

type Run = dyn Fn(&Store) -> Result<(), StoreError>;

/// A change, with all that it needs to be done again and again.
struct Change {
    name: &'static str,
    run: Box<Run>,
    /// The store before it.
    base: Fake,
    /// What opens the store before the change and after it.
    identity: Identity,
}

fn base() -> (Fake, Identity) {
    let (fake, identity) = (Fake::default(), Identity::generate());
    let store = Store::create_in(Box::new(fake.clone()), &identity, Clock::manual()).unwrap();
    store.put(&path("a/x"), &bytes("old"), None).unwrap();
    store.put(&path("a/x"), &bytes("new"), None).unwrap();
    store
        .put(&path("b/y"), &bytes("other"), Some("said"))
        .unwrap();
    (fake, identity)
}

fn put_many(store: &Store, count: usize) -> Result<(), StoreError> {
    let (path, value) = (path("d/many"), bytes("many"));
    let new = NewValue {
        path: &path,
        value: &value,
        description: None,
    };
    store.put_all(&vec![new; count], &mut nothing).map(drop)
}

fn changes() -> Vec<Change> {
    let (base, identity) = base();
    let full = base.copy(None);
    put_many(&open_fake(&full, &identity).unwrap(), index::KEPT_VERSIONS).unwrap();
    let mut export = Vec::new();
    let (_folder, other, _) = new_store();
    other.put(&path("c/z"), &bytes("restored"), None).unwrap();
    let recipients = identity.recipients();
    let to = SealTo::Recipients(&recipients);
    other.export(&mut export, to, &mut nothing).unwrap();
    let next = Identity::generate();
    let both = next.with(&identity);
    let opener = identity.clone();
    let change = |name, base: &Fake, identity: &Identity, run| Change {
        name,
        run,
        base: base.copy(None),
        identity: identity.clone(),
    };
    vec![
        change(
            "put",
            &base,
            &identity,
            Box::new(|store: &Store| store.put(&path("a/x"), &bytes("newest"), None).map(drop)),
        ),
        change(
            "put_all",
            &full,
            &identity,
            // More than are kept: the oldest go.
            Box::new(|store: &Store| put_many(store, 2)),
        ),
        change(
            "rm",
            &base,
            &identity,
            Box::new(|store: &Store| store.remove(&path("a/x"), None)),
        ),
        change(
            "rm --version",
            &base,
            &identity,
            Box::new(|store: &Store| store.remove(&path("a/x"), Some(&Version::new("2")))),
        ),
        change(
            "rollback",
            &base,
            &identity,
            Box::new(|store: &Store| store.rollback(&path("a/x"), &Version::new("1")).map(drop)),
        ),
        change(
            "restore",
            &base,
            &identity,
            Box::new(move |store: &Store| {
                store.restore(
                    &mut &export[..],
                    OpenWith::Identity(&opener),
                    true,
                    &mut nothing,
                )
            }),
        ),
        change(
            "rekey",
            &base,
            &both,
            Box::new(move |store: &Store| store.rekey(&next, &[], &mut nothing)),
        ),
    ]
}

/// Exactly the files that the index names are there.
#[track_caller]
fn no_orphans(fake: &Fake, store: &Store, what: &str) {
    let mut named: Vec<_> = store
        .state()
        .index
        .records()
        .map(|record| record.file)
        .collect();
    let mut there = fake.values().unwrap();
    named.sort();
    there.sort();
    assert_eq!(there, named, "{what}");
    assert!(!fake.files().contains(&File::NewIndex), "{what}");
}

#[test]
fn a_step_that_fails_leaves_the_old_state_or_the_new() {
    for change in changes() {
        let fake = &change.base;
        let old = content(&open_fake(&fake.copy(None), &change.identity).unwrap());
        let whole = fake.copy(None);
        let store = open_fake(&whole, &change.identity).unwrap();
        (change.run)(&store).unwrap();
        let new = content(&store);
        no_orphans(&whole, &store, change.name);
        let mut step = 0;
        loop {
            let what = format!("{}, step {step} fails", change.name);
            // The sweep at open takes steps too, which are not the ones to fail.
            let disk = fake.copy(None);
            let store = open_fake(&disk, &change.identity).unwrap();
            let disk = disk.set_fault(Fault::Error(step));
            let result = (change.run)(&store);
            if !disk.struck() {
                break;
            }
            let now = content(&store);
            assert!(
                now == new || (result.is_err() && now == old),
                "{what}: {result:?}"
            );
            if let Err(error) = &result {
                let text = error.to_string();
                assert!(
                    text.contains("/fake/store") && !text.contains('\n'),
                    "{what}: {text}"
                );
            }
            // The same store goes on, and what it does next is not disturbed by what went wrong.
            store.put(&path("e/after"), &bytes("after"), None).unwrap();
            let after = content(&store);
            drop(store);
            let store = open_fake(&disk, &change.identity).unwrap();
            assert_eq!(content(&store), after, "{what}");
            no_orphans(&disk, &store, &what);
            step += 1;
        }
        assert!(step > 8, "{}: only {step} steps", change.name);
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new() {
    for change in changes() {
        let fake = &change.base;
        let old = content(&open_fake(&fake.copy(None), &change.identity).unwrap());
        let store = open_fake(&fake.copy(None), &change.identity).unwrap();
        (change.run)(&store).unwrap();
        let new = content(&store);
        let (mut olds, mut news) = (0, 0);
        for step in 0.. {
            let disk = fake.copy(None);
            let store = open_fake(&disk, &change.identity).unwrap();
            let disk = disk.set_fault(Fault::Crash(step));
            let result = (change.run)(&store);
            let struck = disk.struck();
            for found in disk.after_crash() {
                let what = format!("{}, crash at step {step}", change.name);
                let store = open_fake(&found, &change.identity)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                let now = content(&store);
                assert!(
                    now == new || (result.is_err() && now == old),
                    "{what}: {result:?}"
                );
                (olds, news) = (
                    olds + usize::from(now == old),
                    news + usize::from(now == new),
                );
                no_orphans(&found, &store, &what);
            }
            if !struck {
                break;
            }
        }
        assert!(
            olds > 0 && news > 0,
            "{}: {olds} old, {news} new",
            change.name
        );
    }
}

#[test]
fn a_crash_while_a_store_is_made_leaves_none_or_an_empty_one() {
    let identity = Identity::generate();
    let (mut none, mut empty) = (0, 0);
    for step in 0.. {
        let disk = Fake::default().copy(Some(Fault::Crash(step)));
        let made = Store::create_in(Box::new(disk.clone()), &identity, Clock::manual());
        let struck = disk.struck();
        for found in disk.after_crash() {
            match open_fake(&found, &identity) {
                Ok(store) => {
                    assert!(store.is_empty());
                    empty += 1;
                }
                Err(StoreError::Missing(_)) => {
                    assert!(made.is_err());
                    Store::create_in(Box::new(found), &identity, Clock::manual()).unwrap();
                    none += 1;
                }
                Err(other) => panic!("step {step}: {other}"),
            }
        }
        if !struck {
            break;
        }
    }
    assert!(none > 0 && empty > 0);
}

#[test]
fn after_a_rekey_the_old_identity_opens_nothing() {
    let (fake, identity) = base();
    let next = Identity::generate();
    let store = open_fake(&fake, &identity).unwrap();
    let before = content(&store);
    store.rekey(&next, &[], &mut nothing).unwrap();
    assert_eq!(content(&store), before);
    for file in fake.files() {
        let sealed = fake.read(file, usize::MAX).unwrap();
        let old = seal::open(OpenWith::Identity(&identity), &sealed, usize::MAX);
        assert!(matches!(old, Err(Unreadable::WrongKey)), "{file:?}");
    }
    assert!(matches!(
        open_fake(&fake, &identity),
        Err(StoreError::WrongIdentity(_))
    ));
    assert_eq!(content(&open_fake(&fake, &next).unwrap()), before);
}

#[test]
fn what_was_removed_is_in_no_file() {
    let (fake, identity) = base();
    let store = open_fake(&fake, &identity).unwrap();
    store.remove(&path("a/x"), None).unwrap();
    for file in fake.files() {
        let sealed = fake.read(file, usize::MAX).unwrap();
        let plain = seal::open(OpenWith::Identity(&identity), &sealed, usize::MAX).unwrap();
        let text = String::from_utf8_lossy(plain.expose()).into_owned();
        for gone in ["old", "new"] {
            assert_ne!(text, gone, "{file:?}");
            // Not even a hash of it, by which a guess could be checked.
            let hash = serde_json::to_string(&index::Sha256::of(gone.as_bytes())).unwrap();
            assert!(!text.contains(&hash), "{file:?}");
        }
    }
}

#[test]
fn a_repair_that_is_cut_short_can_be_done_again() {
    let (fake, identity) = base();
    fake.tamper(File::Index, |bytes| bytes.truncate(50));
    for age in 1..KEPT {
        // Only the oldest of all can be read: were it moved on, it would be gone.
        fake.tamper(File::Kept(age), |bytes| bytes.truncate(50));
    }
    for step in 0.. {
        let disk = fake.copy(Some(Fault::Crash(step)));
        let result = repair::repair_in(&disk, &identity, &mut nothing);
        let struck = disk.struck();
        for found in disk.after_crash() {
            if result.is_err() {
                repair::repair_in(&found, &identity, &mut nothing).unwrap();
            }
            let store = open_fake(&found, &identity).unwrap();
            assert!(store.is_empty());
            // The values that the lost indexes named are all still there.
            let lost = |file: &File| matches!(file, File::Lost(_));
            assert_eq!(
                found.files().into_iter().filter(lost).count(),
                3,
                "step {step}"
            );
        }
        if !struck {
            break;
        }
    }
}
