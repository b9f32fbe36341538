//! What comes from elsewhere: exports, other recipients, and secrets to import.

use crate::{CANARY, Case, Place, case};

/// A value that needs no quotes in any format.
const PLAIN: &str = "canary-Pq4nMw8";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = exports();
    cases.extend(imports());
    cases
}

fn exports() -> Vec<Case> {
    vec![
        case(
            "an export onto a file",
            "export @/copy.age",
            1,
            &["@/copy.age", "is there already", "name another file"],
        )
        .or_served(),
        case(
            "an export onto a folder",
            "export @/store.d",
            1,
            &["@/store.d", "is there already", "name another file"],
        )
        .or_served(),
        case(
            "an export into no folder",
            "export @/none/copy.age",
            1,
            &["@/none/copy.age", "make the folder"],
        )
        .or_served(),
        case(
            "an export onto a full disk",
            "export /dev/full",
            1,
            &["/dev/full", "is there already", "name another file"],
        ),
        case(
            "an export of no backend",
            "export @/new.age --backend none",
            2,
            &["--backend", "no store of this name"],
        )
        .or_served(),
        case(
            "an export of a bad name",
            "export @/new.age --backend a/b",
            2,
            &["--backend", "[backends]"],
        ),
        case(
            "a restore of nothing",
            "restore @/none.age",
            1,
            &["@/none.age", "name a file"],
        )
        .or_served(),
        case(
            "a restore of a folder",
            "restore @/store.d --replace",
            1,
            &["@/store.d", "name a file"],
        )
        .or_served(),
        case(
            "a restore into a store that is not empty",
            "restore @/copy.age",
            1,
            &["@/store.age", "not empty", "--replace"],
        )
        .or_served(),
        case(
            "a restore of garbage",
            "restore @/garbage --replace",
            1,
            &["@/garbage", "damaged", "use another export"],
        )
        .given(|place| place.write("garbage", CANARY))
        .or_served(),
        case(
            "a restore of an empty file",
            "restore @/empty --replace",
            1,
            &["@/empty", "damaged", "use another export"],
        )
        .given(|place| place.write("empty", ""))
        .or_served(),
        case(
            "a restore of half a copy",
            "restore @/half.age --replace",
            1,
            &["@/half.age", "damaged"],
        )
        .given(|place| {
            place.write("half.age", place.read("copy.age"));
            place.truncate("half.age");
        })
        .or_served(),
        case(
            "a restore of a copy with a flipped bit",
            "restore @/flipped.age --replace",
            1,
            &["@/flipped.age", "damaged"],
        )
        .given(|place| {
            place.write("flipped.age", place.read("copy.age"));
            place.flip("flipped.age");
        })
        .or_served(),
        case(
            "a restore of another identity's copy",
            "restore @/other.age --replace",
            1,
            &["@/other.age", "identity"],
        )
        .given(|place| place.write("other.age", foreign_copy()))
        .or_served(),
        case(
            "a restore of a value",
            "restore @/value.age --replace",
            1,
            &["@/value.age", "damaged", "use another export"],
        )
        .given(|place| place.write("value.age", place.read(place.newest_value())))
        .or_served(),
        case(
            "a recipient that is none",
            "rekey --recipient age1nobody",
            2,
            &["--recipient", "age1…"],
        )
        .or_served(),
        case(
            "a recipient that is a secret key",
            "rekey --recipient AGE-SECRET-KEY-1QQPQQQQ",
            2,
            &["--recipient", "age1…"],
        ),
        case(
            "a rekeying of no backend",
            "rekey --backend none",
            2,
            &["--backend", "no store of this name"],
        ),
    ]
}

/// A copy of a store that another identity opens.
fn foreign_copy() -> Vec<u8> {
    let other = Place::empty();
    let init = crate::run(other.bare().arg("init").arg(other.root()), b"").unwrap();
    assert_eq!(init.code, 0);
    other.ok(&["put", "a/b"], b"x");
    let copy = other.at("copy.age");
    other.ok(&["export", copy.to_str().unwrap()], b"");
    other.read("copy.age")
}

fn imports() -> Vec<Case> {
    let env = |what, text: &'static str, says: &[&str]| {
        let mut says = says.to_vec();
        says.extend(["@/.env", "nothing was imported"]);
        case(what, "import billing --env @/.env", 1, &says)
            .given(move |place| place.write(".env", text.replace("CANARY", PLAIN)))
            .or_served()
    };
    let json = |what, text: &'static str, says: &[&str]| {
        let mut says = says.to_vec();
        says.extend(["@/s.json", "nothing was imported"]);
        case(what, "import billing --json @/s.json", 1, &says)
            .given(move |place| place.write("s.json", text.replace("CANARY", PLAIN)))
            .or_served()
    };
    let dir = |what, says: &[&str], given: fn(&Place)| {
        let mut says = says.to_vec();
        says.extend(["@/in", "nothing was imported"]);
        case(what, "import billing --dir @/in", 1, &says)
            .given(|place| {
                let _ = std::fs::remove_dir_all(place.at("in"));
                place.write("in/good", CANARY);
            })
            .given(given)
            .or_served()
    };
    vec![
        case(
            "an import from nowhere",
            "import billing --env @/none",
            1,
            &["@/none", "name a file"],
        )
        .or_served(),
        case(
            "an import from a folder as a file",
            "import billing --env @/store.d",
            1,
            &["@/store.d", "name a file"],
        ),
        case(
            "an import from a file as a folder",
            "import billing --dir @/config.toml",
            1,
            &["@/config.toml", "name another"],
        ),
        env(
            "a line that is no assignment",
            "A=x\nCANARY\n",
            &["line 2", "NAME=VALUE"],
        ),
        env(
            "a name that is none",
            "A=x\nB!=CANARY\n",
            &["line 2", "NAME=VALUE"],
        ),
        env(
            "a name twice",
            "A=x\nB=y\nA=CANARY\n",
            &["A more than once", "leave one"],
        ),
        env("an unfinished quote", "A=\"CANARY\n", &["line 1"]),
        env(
            "a variable in a value",
            "A=$HOME/CANARY\n",
            &["line 1", "single quotes"],
        ),
        env(
            "no line at all",
            "# nothing\n",
            &["there is no secret in it"],
        ),
        json(
            "no JSON",
            "{\"a\": CANARY",
            &["line 1, column", "mend it there"],
        ),
        json(
            "a list",
            "[\"CANARY\"]",
            &["line 1, column", "mend it there"],
        ),
        json(
            "a JSON name that is none",
            "{\"a b\": \"CANARY\"}",
            &["rename", "1 to 128 letters"],
        ),
        json(
            "a JSON name twice",
            "{\"a\": \"x\", \"a\": \"CANARY\"}",
            &["a more than once", "leave one"],
        ),
        json("an empty object", "{}", &["there is no secret in it"]),
        dir(
            "a file with a bad name",
            &["rename", "1 to 128 letters"],
            |place| place.write("in/bad name", CANARY),
        ),
        dir("a link in a folder", &["not a regular file"], |place| {
            place.link("in/link", "good")
        }),
        dir("a folder in a folder", &["not a regular file"], |place| {
            place.folder("in/more")
        }),
        dir(
            "a file in a folder that is too large",
            &["more than 1 MiB"],
            |place| place.write("in/large", vec![b'x'; (1 << 20) + 1]),
        ),
    ]
}
