//! What holds of every backend. Whoever adds one implements [`Subject`] for it and names it in [`suite`]: each clause is
//! then a test of its own. Unit tests and the tests against real servers share it.
//!
//! Where backends honestly differ, the subject says so in [`Can`]: nothing is left out in silence.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "it is part of tests, and each program uses its part"
)]

use std::time::Duration;

use secretfs::backend::{Backend, BackendError, Fetched, Reference, Version, field};
use secretfs::secret::MAX_VALUE;

mod subject;

pub use subject::{Can, Subject, Trouble};

/// What no error may say.
const CANARY: &str = "canary-7f3a";

/// How long what never comes is waited for.
const SHORT: Duration = Duration::from_millis(300);

/// Tests a subject: `contract::suite!(make)`, where `make("its name")` gives one, or `None` where the machine lacks it.
macro_rules! suite {
    ($make:path) => {
        contract::suite!(@ $make;
            a_value_is_read_as_it_was_written,
            a_version_is_told_without_the_value,
            names_are_listed,
            what_is_not_there_is_absent,
            what_is_refused_is_neither_absent_nor_away,
            what_is_away_is_unreachable,
            what_says_nothing_can_be_given_up,
            the_largest_value_is_shown_and_no_larger_one,
            any_value_comes_back_the_same,
            a_rotation_is_another_version,
            the_previous_value_is_the_newest_older_one_that_is_kept,
            a_version_is_read_by_its_name_until_it_is_destroyed,
            a_recreated_secret_is_another_one,
            no_text_quotes_a_value,
            many_readers_at_once_see_the_same,
        );
    };
    (@ $make:path; $($clause:ident),* $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $clause() {
            if let Some(subject) = $make(stringify!($clause)) {
                contract::$clause(&subject).await;
            }
        }
    )* };
}
pub(crate) use suite;

type Got<T> = Result<T, BackendError>;

/// What a reader would be shown: the field of what was fetched, if it is not too large.
async fn show(backend: &dyn Backend, reference: &str) -> Got<(Version, Vec<u8>)> {
    let reference = parse(reference);
    shown(&reference, backend.read(&reference).await?)
}

fn shown(reference: &Reference, fetched: Fetched) -> Got<(Version, Vec<u8>)> {
    let too_large = || BackendError::Unusable("too large".to_owned());
    if fetched.value.len() > MAX_VALUE {
        return Err(too_large());
    }
    let value = match &reference.field {
        Some(name) => field(&fetched.value, name)?,
        None => fetched.value,
    };
    Ok((fetched.version, value.expose().to_vec()))
}

fn parse(reference: &str) -> Reference {
    reference.parse().unwrap()
}

async fn version(backend: &dyn Backend, reference: &str) -> Got<Option<Version>> {
    backend.version(&parse(reference)).await
}

async fn before(backend: &dyn Backend, reference: &str, current: &str) -> Got<(Version, Vec<u8>)> {
    let reference = parse(reference);
    let fetched = backend.previous(&reference, &Version::new(current)).await?;
    shown(&reference, fetched)
}

fn is_absent<T: std::fmt::Debug>(got: &Got<T>) -> bool {
    matches!(got, Err(BackendError::Absent(_)))
}

/// Puts a value, and says its version.
async fn put(subject: &dyn Subject, name: &str, value: &str) -> Version {
    assert!(subject.put(name, value.as_bytes()));
    let (version, read) = show(subject.backend(), &subject.reference(name))
        .await
        .unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), value);
    version
}

pub async fn a_value_is_read_as_it_was_written(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    assert!(subject.put("x", b"one"));
    let fetched = backend.read(&parse(&x)).await.unwrap();
    assert_eq!(fetched.lease, None);
    assert_eq!(shown(&parse(&x), fetched).unwrap().1, b"one");
    // Asking is not changing.
    let (first, second) = (show(backend, &x).await, show(backend, &x).await);
    assert_eq!(first.unwrap(), second.unwrap());
    backend.check().await.unwrap();
}

pub async fn a_version_is_told_without_the_value(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    for value in ["one", "two", "three"] {
        let current = put(subject, "x", value).await;
        let told = version(backend, &x).await.unwrap();
        assert_eq!(told, subject.can().versions.then(|| current.clone()));
        if subject.can().versions {
            let named = format!("{x}@{current}");
            assert_eq!(version(backend, &named).await.unwrap(), Some(current));
        }
    }
    if subject.can().versions {
        let first = Version::new("1");
        assert_eq!(
            version(backend, &format!("{x}@1")).await.unwrap(),
            Some(first.clone())
        );
        subject.destroy("x", &first);
        for gone in [format!("{x}@1"), format!("{x}@77"), format!("{x}@latest")] {
            let told = version(backend, &gone).await;
            assert!(is_absent(&told), "{gone}: {told:?}");
        }
    }
}

pub async fn names_are_listed(subject: &dyn Subject) {
    let (backend, folder) = (subject.backend(), subject.folder());
    assert!(is_absent(&backend.list(&folder).await));
    let names = async || {
        let mut names: Vec<String> = backend
            .list(&folder)
            .await
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        names.sort();
        names
    };
    for name in ["b", "a", "c.d-e_f"] {
        assert!(subject.put(name, b"x"));
    }
    assert_eq!(names().await, ["a", "b", "c.d-e_f"]);
    subject.remove("b");
    assert_eq!(names().await, ["a", "c.d-e_f"]);
    for name in ["a", "c.d-e_f"] {
        subject.remove(name);
    }
    assert!(is_absent(&backend.list(&folder).await));
    assert!(subject.put("a", b"x"));
    let folders = backend.folders().await;
    match subject.can().folders {
        true => assert!(!folders.unwrap().is_empty()),
        false => assert!(matches!(folders, Err(BackendError::Unusable(_)))),
    }
}

pub async fn what_is_not_there_is_absent(subject: &dyn Subject) {
    let backend = subject.backend();
    let none = subject.reference("none");
    for there in [false, true] {
        // Neither with an empty folder around it nor with others beside it.
        if there {
            assert!(subject.put("x", br#"{"f":"one"}"#));
        }
        assert!(is_absent(&show(backend, &none).await));
        let told = version(backend, &none).await;
        assert!(is_absent(&told) || told == Ok(None), "{told:?}");
        for current in ["1", "7", "latest"] {
            assert!(is_absent(&before(backend, &none, current).await));
        }
    }
    let x = subject.reference("x");
    let (record, _) = x.split_once('#').unwrap_or((&x, ""));
    let field = show(backend, &format!("{record}#none")).await;
    assert!(is_absent(&field), "{field:?}");
    for version in ["2", "0", "latest"] {
        let named = show(backend, &format!("{x}@{version}")).await;
        assert!(is_absent(&named), "{version}: {named:?}");
    }
}

/// Each of the questions that there are, and what kind of error it ends in.
async fn errors(backend: &dyn Backend, subject: &dyn Subject) -> Vec<BackendError> {
    let x = parse(&subject.reference("x"));
    let mut errors = vec![
        backend.read(&x).await.unwrap_err(),
        backend.list(&subject.folder()).await.unwrap_err(),
    ];
    if subject.can().versions {
        errors.push(backend.version(&x).await.unwrap_err());
        errors.push(backend.previous(&x, &Version::new("2")).await.unwrap_err());
    }
    errors
}

pub async fn what_is_refused_is_neither_absent_nor_away(subject: &dyn Subject) {
    put(subject, "x", "one").await;
    put(subject, "x", "two").await;
    let Some(stranger) = subject.in_trouble(Trouble::Refused) else {
        return;
    };
    let all = errors(&*stranger, subject).await;
    assert!(
        all.iter()
            .all(|error| matches!(error, BackendError::Refused(_))),
        "{all:?}"
    );
}

pub async fn what_is_away_is_unreachable(subject: &dyn Subject) {
    put(subject, "x", "one").await;
    put(subject, "x", "two").await;
    let Some(away) = subject.in_trouble(Trouble::Down) else {
        return;
    };
    let mut all = errors(&*away, subject).await;
    all.push(away.check().await.unwrap_err());
    assert!(
        all.iter()
            .all(|error| matches!(error, BackendError::Unreachable(_))),
        "{all:?}"
    );
}

pub async fn what_says_nothing_can_be_given_up(subject: &dyn Subject) {
    let x = parse(&subject.reference("x"));
    put(subject, "x", "one").await;
    let Some(silent) = subject.in_trouble(Trouble::Silent) else {
        return;
    };
    // Twice: who has given up keeps no turn.
    for _ in 0..2 {
        assert!(tokio::time::timeout(SHORT, silent.read(&x)).await.is_err());
    }
    let folder = subject.folder();
    assert!(
        tokio::time::timeout(SHORT, silent.list(&folder))
            .await
            .is_err()
    );
    put(subject, "x", "two").await;
}

pub async fn the_largest_value_is_shown_and_no_larger_one(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let largest = vec![b'x'; subject.can().largest];
    assert!(subject.put("x", &largest));
    let (_, read) = show(backend, &x).await.unwrap();
    assert!(read == largest);
    let larger = vec![b'y'; MAX_VALUE + 1];
    if subject.put("x", &larger) {
        let error = show(backend, &x).await.unwrap_err();
        assert!(matches!(error, BackendError::Unusable(_)), "{error}");
    } else {
        // What was not taken has changed nothing.
        assert!(show(backend, &x).await.unwrap().1 == largest);
    }
}

pub async fn any_value_comes_back_the_same(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let controls: String = (0..=0x2f).filter_map(char::from_u32).collect();
    let texts = [
        "",
        " ",
        "\n",
        "{}",
        "null",
        "\"quoted\" \\u0041 \\",
        "<a href='x'>&amp;</a>",
        "zwölf \u{1f980} \u{2028}\u{feff}",
        &controls,
    ];
    for text in texts {
        assert!(subject.put("x", text.as_bytes()));
        let read = show(backend, &x).await.unwrap().1;
        assert_eq!(String::from_utf8(read).unwrap(), text);
    }
    if subject.can().bytes {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&all[..], b"\xff\xfe", b"\xc3"] {
            assert!(subject.put("x", bytes));
            assert_eq!(show(backend, &x).await.unwrap().1, bytes);
        }
    }
}

pub async fn a_rotation_is_another_version(subject: &dyn Subject) {
    let mut seen = Vec::new();
    for value in ["one", "two", "three", "two"] {
        seen.push(put(subject, "x", value).await);
    }
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
    // An earlier value that is put again is a new version where there are any.
    assert_eq!(seen[1] != seen[3], subject.can().versions, "{seen:?}");
}

pub async fn the_previous_value_is_the_newest_older_one_that_is_kept(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let mut versions = Vec::new();
    for value in ["one", r#"{"f":"two"}"#, "three"] {
        versions.push(put(subject, "x", value).await);
    }
    let [first, second, third] = &versions[..] else {
        panic!("{versions:?}");
    };
    let gives = async |current: &Version| before(backend, &x, current.as_str()).await;
    if !subject.can().versions {
        assert!(is_absent(&gives(third).await));
        return;
    }
    let one = (first.clone(), b"one".to_vec());
    let two = (second.clone(), br#"{"f":"two"}"#.to_vec());
    assert_eq!(gives(third).await.unwrap(), two);
    assert_eq!(gives(second).await.unwrap(), one);
    assert!(is_absent(&gives(first).await));
    // The record, whatever the field.
    let (record, _) = x.split_once('#').unwrap_or((&x, ""));
    let fetched = backend
        .previous(&parse(&format!("{record}#f")), third)
        .await;
    assert_eq!(fetched.unwrap().version, *second);
    // What was destroyed is no value, and leaves its place in the order.
    subject.destroy("x", second);
    assert_eq!(gives(third).await.unwrap(), one);
    assert_eq!(gives(second).await.unwrap(), one);
    subject.destroy("x", third);
    assert_eq!(gives(third).await.unwrap(), one);
    assert!(is_absent(&gives(first).await));
    // A reference that names a version has no other.
    assert!(is_absent(
        &before(backend, &format!("{x}@{third}"), third.as_str()).await
    ));
    assert!(is_absent(&before(backend, &x, "latest").await));
}

pub async fn a_version_is_read_by_its_name_until_it_is_destroyed(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let first = put(subject, "x", "one").await;
    let second = put(subject, "x", "two").await;
    let read = async |version: &Version| show(backend, &format!("{x}@{version}")).await;
    if !subject.can().versions {
        assert!(is_absent(&read(&second).await));
        return;
    }
    assert_eq!(
        read(&first).await.unwrap(),
        (first.clone(), b"one".to_vec())
    );
    assert_eq!(
        read(&second).await.unwrap(),
        (second.clone(), b"two".to_vec())
    );
    subject.destroy("x", &first);
    assert!(is_absent(&read(&first).await));
    assert_eq!(show(backend, &x).await.unwrap().1, b"two");
    let third = put(subject, "x", "three").await;
    subject.destroy("x", &third);
    let left = show(backend, &x).await;
    match subject.can().falls_back {
        true => assert_eq!(left.unwrap(), (second, b"two".to_vec())),
        false => assert!(is_absent(&left), "{left:?}"),
    }
}

pub async fn a_recreated_secret_is_another_one(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let mut seen: Vec<Version> = Vec::new();
    for value in ["one", "two", "two", "three"] {
        let now = put(subject, "x", value).await;
        let told = version(backend, &x).await.unwrap();
        assert_eq!(
            told,
            subject.can().versions.then(|| now.clone()),
            "{seen:?}"
        );
        let again = seen.last() == Some(&now);
        // Where there are no versions, an equal value is the same one.
        let same = value == "two" && !subject.can().versions;
        assert!(!again || same, "{value}: {now} after {seen:?}");
        if subject.can().versions {
            assert!(!seen.contains(&now), "{now} after {seen:?}");
            // Nobody is shown the new value as the old version.
            for old in &seen {
                let named = show(backend, &format!("{x}@{old}")).await;
                assert!(
                    !matches!(&named, Ok((version, _)) if version == old),
                    "{named:?}"
                );
            }
        }
        seen.push(now);
        subject.remove("x");
        assert!(is_absent(&show(backend, &x).await));
        let told = version(backend, &x).await;
        assert!(is_absent(&told) || told == Ok(None), "{told:?}");
    }
}

pub async fn no_text_quotes_a_value(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let mut texts = vec![format!("{backend:?}")];
    let (record, _) = x.split_once('#').unwrap_or((&x, ""));
    for value in [
        CANARY.to_owned(),
        format!(r#"{{"f":"{CANARY}"}}"#),
        format!("{{\"{CANARY}"),
    ] {
        assert!(subject.put("x", value.as_bytes()));
        texts.push(format!("{:?}", backend.read(&parse(&x)).await.unwrap()));
        for odd in [
            format!("{record}#none"),
            format!("{x}@77"),
            format!("{record}?a=b"),
            subject.reference("none"),
        ] {
            if let Err(error) = show(backend, &odd).await {
                texts.push(format!("{error} {error:?}"));
            }
        }
    }
    for trouble in [Trouble::Refused, Trouble::Down] {
        if let Some(other) = subject.in_trouble(trouble) {
            let error = other.read(&parse(&x)).await.unwrap_err();
            texts.push(format!("{other:?} {error} {error:?}"));
        }
    }
    assert!(
        texts.iter().all(|text| !text.contains(CANARY)),
        "{texts:#?}"
    );
}

pub async fn many_readers_at_once_see_the_same(subject: &dyn Subject) {
    let (backend, x) = (subject.backend(), subject.reference("x"));
    let current = put(subject, "x", "one").await;
    let reads = (0..50).map(|_| show(backend, &x));
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read.unwrap(), (current.clone(), b"one".to_vec()));
    }
}
