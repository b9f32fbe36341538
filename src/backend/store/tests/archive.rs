//! Exports, whole and hostile.

use tar::{EntryType, Header};

use super::*;

fn export(store: &Store, to: SealTo<'_>) -> Vec<u8> {
    let mut export = Vec::new();
    store.export(&mut export, to, &mut nothing).unwrap();
    export
}

fn filled() -> (tempfile::TempDir, Store, Identity) {
    let (folder, store, identity) = new_store();
    let long = "n".repeat(Name::MAX);
    store
        .put(&path(&format!("{long}/{long}")), &bytes("long"), None)
        .unwrap();
    // Would stand in the way of the archive's own index if the services stood beside it.
    store
        .put(&path("index.json/x"), &bytes("one"), Some("said"))
        .unwrap();
    store
        .put(
            &path("index.json/x"),
            &SecretBytes::new(vec![0; 1000]),
            None,
        )
        .unwrap();
    store.put(&path("gone/x"), &bytes("gone"), None).unwrap();
    store.remove(&path("gone/x"), None).unwrap();
    (folder, store, identity)
}

#[test]
fn a_restore_brings_back_what_was_exported() {
    let (_folder, store, identity) = filled();
    let phrase = bytes("a passphrase");
    let recipients = identity.recipients();
    let sealed = export(&store, SealTo::Recipients(&recipients));
    let phrased = export(&store, SealTo::Passphrase(&phrase));
    let openers = [
        (sealed, OpenWith::Identity(&identity)),
        (phrased, OpenWith::Passphrase(&phrase)),
    ];
    for (export, with) in openers {
        let (_folder, other, own) = new_store();
        let key = other.audit_key().expose().to_vec();
        other
            .restore(&mut &export[..], with, false, &mut nothing)
            .unwrap();
        assert_eq!(content(&other), content(&store));
        assert_eq!(
            other.description(&path("index.json/x")).unwrap().as_deref(),
            Some("said")
        );
        assert_eq!(
            other.history(&path("index.json/x")).unwrap(),
            store.history(&path("index.json/x")).unwrap()
        );
        // Numbers go on where they were, also those of what was removed.
        assert_eq!(
            other
                .put(&path("gone/x"), &bytes(""), None)
                .unwrap()
                .as_str(),
            "2"
        );
        assert_eq!(other.audit_key().expose(), key);
        let (file, now) = (other.path(), content(&other));
        drop(other);
        assert_eq!(
            content(&Store::open(&file, own, Clock::manual()).unwrap()),
            now
        );
    }
}

#[test]
fn what_is_there_is_replaced_only_on_request() {
    let (_folder, store, identity) = filled();
    let recipients = identity.recipients();
    let export = export(&store, SealTo::Recipients(&recipients));
    let (_folder, other, _) = new_store();
    for _ in 0..5 {
        other
            .put(&path("index.json/x"), &bytes("mine"), None)
            .unwrap();
    }
    let before = content(&other);
    let with = OpenWith::Identity(&identity);
    let refused = other.restore(&mut &export[..], with, false, &mut nothing);
    assert!(matches!(refused, Err(StoreError::NotEmpty(_))));
    assert_eq!(content(&other), before);
    other
        .restore(&mut &export[..], with, true, &mut nothing)
        .unwrap();
    assert_eq!(content(&other), content(&store));
    assert_eq!(
        other
            .put(&path("index.json/x"), &bytes(""), None)
            .unwrap()
            .as_str(),
        "6"
    );
}

#[test]
fn a_damaged_export_changes_nothing() {
    let (_folder, store, identity) = new_store();
    store
        .put(&path("a/x"), &bytes("canary-7f3a"), None)
        .unwrap();
    let recipients = identity.recipients();
    let export = export(&store, SealTo::Recipients(&recipients));
    let (_folder, other, _) = new_store();
    let restore = |export: &[u8]| {
        other.restore(
            &mut &*export,
            OpenWith::Identity(&identity),
            false,
            &mut nothing,
        )
    };
    for at in (0..export.len()).step_by(37) {
        let mut flipped = export.clone();
        flipped[at] ^= 1 << (at % 8);
        for damaged in [&export[..at], &flipped] {
            let error = restore(damaged).unwrap_err();
            assert!(matches!(error, StoreError::Archive(_)), "{error}");
            assert!(other.is_empty() && other.storage().values().unwrap().is_empty());
        }
    }
    restore(&export).unwrap();
}

#[test]
fn an_export_needs_what_it_was_sealed_with() {
    let (_folder, store, identity) = new_store();
    let (right, wrong) = (bytes("right"), bytes("wrong"));
    let (stranger, recipients) = (Identity::generate(), identity.recipients());
    let phrased = export(&store, SealTo::Passphrase(&right));
    let sealed = export(&store, SealTo::Recipients(&recipients));
    let restore = |export: &[u8], with| store.restore(&mut &*export, with, false, &mut nothing);
    let error = restore(&phrased, OpenWith::Identity(&identity)).unwrap_err();
    assert!(matches!(error, StoreError::NeedsPassphrase), "{error}");
    let error = restore(&phrased, OpenWith::Passphrase(&wrong)).unwrap_err();
    assert!(error.to_string().contains("not its passphrase"), "{error}");
    let error = restore(&sealed, OpenWith::Identity(&stranger)).unwrap_err();
    assert!(error.to_string().contains("another identity"), "{error}");
}

/// A member of a forged archive: its kind, its name, the size that it claims, its bytes.
type Forged<'a> = (EntryType, &'a str, u64, &'a [u8]);

fn forge(identity: &Identity, members: &[Forged<'_>]) -> Vec<u8> {
    let recipients = identity.recipients();
    seal::seal(SealTo::Recipients(&recipients), 0, |writer| {
        for (kind, name, size, bytes) in members {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(*size);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            writer.write_all(header.as_bytes())?;
            writer.write_all(bytes)?;
            writer.write_all(&vec![0; (512 - bytes.len() % 512) % 512])?;
        }
        writer.write_all(&[0; 1024])
    })
    .unwrap()
}

#[test]
fn a_hostile_archive_changes_nothing() {
    use EntryType::{Directory, Fifo, GNULongName, GNUSparse, Link, Regular, Symlink, XHeader};
    let version = r#"{"version":1,"size":2,"created":"2026-01-01T00:00:00Z"}"#;
    let listing = |versions: &str, next: u64| {
        format!(
            r#"{{"format":1,"services":{{"a":{{"x":{{"next":{next},"versions":[{versions}]}}}}}}}}"#
        )
    };
    let good = listing(version, 2);
    let index = |text: &'static str| -> Forged<'static> {
        (
            Regular,
            "index.json",
            u64::try_from(text.len()).unwrap(),
            text.as_bytes(),
        )
    };
    let good: &'static str = good.leak();
    let value: Forged<'_> = (Regular, "secrets/a/x/1", 2, b"ok");
    let large = vec![0; MAX_VALUE + 1];
    let (_folder, store, identity) = new_store();
    let restore = |members: &[Forged<'_>]| {
        let export = forge(&identity, members);
        store.restore(
            &mut &export[..],
            OpenWith::Identity(&identity),
            true,
            &mut nothing,
        )
    };
    let too_large = u64::try_from(large.len()).unwrap();
    let huge = u64::from(u32::MAX) * 2;
    let hostile: Vec<Vec<Forged<'_>>> = vec![
        vec![],
        vec![value],
        vec![index(good)],
        vec![value, value, index(good)],
        vec![value, index(good), index(good)],
        vec![value, (Regular, "secrets/a/x/2", 2, b"ok"), index(good)],
        vec![(Regular, "secrets/a/x/1", 3, b"too"), index(good)],
        vec![(Regular, "secrets/a/x/1", huge, b"ok"), index(good)],
        vec![(Regular, "secrets/a/x/1", too_large, &large), index(good)],
        vec![value, (Regular, "index.json", huge, b"{}")],
        vec![value, index(listing(version, 1).leak())],
        vec![value, index(listing(version, u64::MAX).leak())],
        vec![
            value,
            index(listing(&format!("{version},{version}"), 3).leak()),
        ],
        vec![
            value,
            index(good.replace("format\":1", "format\":2").leak()),
        ],
        vec![value, index(good.replace("\"x\"", "\"../x\"").leak())],
        vec![
            value,
            index(
                good.replace("\"next\"", "\"description\":\"a\\u001b[0m\",\"next\"")
                    .leak(),
            ),
        ],
        vec![value, index("canary-7f3a")],
        vec![(Directory, "secrets/a/", 0, b""), value, index(good)],
        vec![(Symlink, "secrets/a/x/1", 0, b""), index(good)],
        vec![(Link, "secrets/a/x/1", 0, b""), index(good)],
        vec![(Fifo, "secrets/a/x/1", 0, b""), index(good)],
        vec![(GNUSparse, "secrets/a/x/1", 2, b"ok"), index(good)],
        vec![
            (XHeader, "pax", 20, b"19 path=../../evil\n "),
            value,
            index(good),
        ],
        vec![
            (GNULongName, "././@LongLink", huge, b"x"),
            value,
            index(good),
        ],
        vec![
            (GNULongName, "././@LongLink", 11, b"../../evil\0"),
            value,
            index(good),
        ],
    ];
    for (case, members) in hostile.iter().enumerate() {
        let error = restore(members).unwrap_err().to_string();
        assert!(
            !error.contains("canary") && !error.contains('\n'),
            "{case}: {error}"
        );
        assert!(
            store.is_empty() && store.storage().values().unwrap().is_empty(),
            "{case}"
        );
    }
    let names = [
        "/etc/passwd",
        "../x",
        "secrets/a/x",
        "secrets/a/x/0",
        "secrets/a/x/01",
        "secrets/a/x/-1",
        "secrets/a/x/1/2",
        "secrets/../x/1",
        "secrets//x/1",
        "secrets/a/.x/1",
        "/secrets/a/x/1",
        "./secrets/a/x/1",
        "secrets/a/x/1 ",
        "secrets/a/x/99999999999999999999",
        "index.json/",
        "",
    ];
    for name in names {
        let error = restore(&[(Regular, name, 2, b"ok"), index(good)]).unwrap_err();
        assert!(matches!(error, StoreError::Archive(_)), "{name}: {error}");
    }
    // The forger knows the form: what is not hostile goes through.
    restore(&[value, index(good)]).unwrap();
    shows(&store, "a/x", None, "ok");
}
