//! Values that are too large, cannot be read, or are not what a binding takes them for.

use crate::scratch::STRANGER;
use crate::{CANARY, Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let large = [CANARY.as_bytes(), &vec![b'x'; 1 << 20]].concat();
    let file = large.clone();
    vec![
        case("a value that is too large", "put billing/new", 1, &["stdin", "1 MiB"]).input(large).or_served(),
        case("a file that is too large", "put billing/new --file @/large", 1, &["@/large", "1 MiB"])
            .given(move |place| place.write("large", &file))
            .or_served(),
        case("a file without an end", "put billing/new --file /dev/zero", 1, &["/dev/zero", "1 MiB"]).or_served(),
        case("a file that is not there", "put billing/new --file @/none", 1, &["@/none", "name a file"]).or_served(),
        case("a folder for a file", "put billing/new --file @/store.d", 1, &["@/store.d", "name a file"]).or_served(),
        case("a file that is not ours to read", "put billing/new --file @/identity.txt", 1, &["@/identity.txt", "Permission denied", "name a file"]).uid(STRANGER),
        case("a field of what is no JSON", "get app/key", 1, &["app/key", "#key", "not a JSON object", "secretfs explain app/key"])
            .given(|place| place.configure("[services.app.secrets]\nkey = { from = \"local:billing/canary#key\", allow = [{ uid = 0 }] }\n[services.app]\nallow = [{ uid = 0 }]")),
        case("a field that the record lacks", "get app/key", 3, &["app/key", "secretfs ls app"])
            .given(|place| {
                place.ok(&["put", "billing/record"], format!("{{\"other\":{CANARY:?}}}").as_bytes());
                place.configure("[services.app]\nallow = [{ uid = 0 }]\n[services.app.secrets]\nkey = \"local:billing/record#key\"");
            }),
        case("a value for one field of a record", "put app/key", 2, &["app/key", "is a part", "change the whole record"])
            .input(CANARY)
            .given(|place| place.configure("[services.app]\nallow = [{ uid = 0 }]\n[services.app.secrets]\nkey = \"local:billing/canary#key\"")),
    ]
}
