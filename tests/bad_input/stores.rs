//! Stores that are damaged, exchanged, in use, or of another time.

use std::fs;

use crate::{Case, Place, case};

type Given = fn(&Place);

const INDEX: &[(&str, &str, &[&str], Given)] = &[
    (
        "no index",
        "a daemon without an index",
        &["the index is missing", "doctor --repair"],
        |place| place.remove("store.age"),
    ),
    (
        "no store",
        "a daemon without a store",
        &["no store", "secretfs init"],
        |place| {
            place.remove("store.age");
            place.remove("store.d");
        },
    ),
    (
        "an empty index",
        "a daemon with an empty index",
        &["damaged", "doctor --repair"],
        |place| place.write("store.age", ""),
    ),
    (
        "a truncated index",
        "a daemon with a truncated index",
        &["damaged", "doctor --repair"],
        |place| place.truncate("store.age"),
    ),
    (
        "an index with a flipped bit",
        "a daemon with a flipped bit",
        &["damaged", "doctor --repair"],
        |place| place.flip("store.age"),
    ),
    (
        "an index of zeros",
        "a daemon with an index of zeros",
        &["damaged", "doctor --repair"],
        |place| place.write("store.age", [0; 4096]),
    ),
    (
        "an index that is a folder",
        "a daemon with a folder for an index",
        &["regular file"],
        |place| place.folder("store.age"),
    ),
    (
        "an index that is a link",
        "a daemon with a link for an index",
        &["link"],
        |place| {
            fs::rename(place.at("store.age"), place.at("elsewhere.age")).unwrap();
            place.link("store.age", "elsewhere.age");
        },
    ),
    (
        "an index of somebody else's",
        "a daemon with somebody else's index",
        &["this identity does not open it"],
        |place| {
            let other = secretfs::backend::store::Identity::generate();
            secretfs::backend::store::Store::create(
                &place.at("other.age"),
                &other,
                secretfs::clock::Clock::default(),
            )
            .unwrap();
            fs::rename(place.at("other.age"), place.at("store.age")).unwrap();
        },
    ),
    (
        "an index that is a value",
        "a daemon with a value for an index",
        &["damaged", "doctor --repair"],
        |place| {
            fs::copy(place.newest_value(), place.at("store.age")).unwrap();
        },
    ),
    (
        "an index of a release to come",
        "a daemon with a store of a release to come",
        &["its format is 99", "use the secretfs that wrote it"],
        |place| {
            sealed(place, r#"{"format":99,"anything":[]}"#);
        },
    ),
    (
        "an index that is no JSON",
        "a daemon with an index that is no JSON",
        &["damaged", "doctor --repair"],
        |place| sealed(place, "hello"),
    ),
    (
        "values that are gone",
        "a daemon without its values",
        &["store.d"],
        |place| place.remove("store.d"),
    ),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (alone, daemon, says, given) in INDEX {
        let mut says = says.to_vec();
        says.push("@/store.");
        cases.push(case(alone, "get billing/two", 5, &says).given(given));
        cases.push(case(daemon, "mount", 5, &says).given(given));
    }
    let value = |what, says: &[&str], given: Given| {
        let mut says = says.to_vec();
        says.extend(["@/store.d/", "billing/canary"]);
        case(what, "get billing/canary", 1, &says).given(given)
    };
    let served = |what, says: &[&str], given: Given| {
        let mut says = says.to_vec();
        says.extend(["@/store.d/", "billing/canary"]);
        case(what, "get billing/canary", 1, &says)
            .given(given)
            .served()
    };
    cases.extend([
        value("a value that is missing", &["doctor"], |place| {
            fs::remove_file(place.newest_value()).unwrap()
        }),
        value("a value that is empty", &["damaged", "doctor"], |place| {
            fs::write(place.newest_value(), "").unwrap()
        }),
        value(
            "a value that is truncated",
            &["damaged", "doctor"],
            |place| place.truncate(place.newest_value()),
        ),
        value(
            "a value with a flipped bit",
            &["damaged", "doctor"],
            |place| place.flip(place.newest_value()),
        ),
        value(
            "a value that is another's",
            &["damaged", "doctor"],
            |place| {
                let values = place.values();
                fs::copy(&values[0], &values[2]).unwrap();
            },
        ),
        case(
            "a value that is a folder",
            "get billing/canary",
            5,
            &["@/store.d/", "not a regular file", "secretfs doctor"],
        )
        .given(|place| {
            let path = place.newest_value();
            place.folder(path);
        }),
        served(
            "a value that gets damaged",
            &["damaged", "doctor"],
            |place| place.flip(place.newest_value()),
        ),
        served(
            "a value that gets exchanged",
            &["damaged", "doctor"],
            |place| {
                let values = place.values();
                fs::copy(&values[0], &values[2]).unwrap();
            },
        ),
        case(
            "a rollback to a damaged value",
            "rollback billing/two --to 1",
            1,
            &["@/store.d/", "damaged", "doctor"],
        )
        .given(|place| place.flip(&place.values()[0])),
        case(
            "an export of a damaged store",
            "export @/new.age",
            1,
            &["@/store.d/", "damaged", "doctor"],
        )
        .given(|place| place.flip(place.newest_value())),
        case(
            "a rekeying of a damaged store",
            "rekey --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
            1,
            &[
                "@/store.d/",
                "damaged",
                "@/identity.txt now holds the old key and a new one",
            ],
        )
        .given(|place| place.flip(place.newest_value()))
        .changes("identity.txt"),
        case(
            "a repair while a daemon serves",
            "doctor --repair",
            1,
            &["secretfs unmount"],
        )
        .served(),
        case(
            "an init over a damaged store keeps it",
            "get billing/two",
            5,
            &["@/store.age", "damaged"],
        )
        .given(|place| {
            place.flip("store.age");
            let before = place.read("store.age");
            let _ = crate::run(&mut place.command(&["init"]), b"");
            assert_eq!(place.read("store.age"), before);
        }),
    ]);
    cases
}

/// An index with other content, sealed as it should be.
fn sealed(place: &Place, content: &str) {
    use std::io::Write;
    let text = String::from_utf8(place.read("identity.txt")).unwrap();
    let key: age::x25519::Identity = text
        .lines()
        .find(|line| !line.starts_with('#'))
        .unwrap()
        .parse()
        .unwrap();
    let recipient = key.to_public();
    let encryptor =
        age::Encryptor::with_recipients(std::iter::once::<&dyn age::Recipient>(&recipient))
            .unwrap();
    let mut bytes = Vec::new();
    let mut writer = encryptor.wrap_output(&mut bytes).unwrap();
    writer.write_all(content.as_bytes()).unwrap();
    writer.finish().unwrap();
    place.write("store.age", bytes);
}
