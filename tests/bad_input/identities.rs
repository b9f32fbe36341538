//! Identities that are missing, open to others, damaged, or sealed with nobody there to open them.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use secretfs::backend::store::Identity;
use secretfs::clock::Clock;
use secretfs::secret::SecretBytes;

use crate::scratch::STRANGER;
use crate::{CANARY, Case, Place, case};

type Given = fn(&Place);

/// Each is the same for a command without a daemon and for the daemon itself.
const TABLE: &[(&str, &str, &[&str], Given)] = &[
    (
        "an identity that is missing",
        "a daemon with a missing identity",
        &["secretfs init", "a copy"],
        |place| place.remove("identity.txt"),
    ),
    (
        "an identity that others can read",
        "a daemon with an open identity",
        &["0644", "chmod 0600"],
        |place| place.chmod("identity.txt", 0o644),
    ),
    (
        "an identity that a group can read",
        "a daemon with a group's identity",
        &["0640", "chmod 0600"],
        |place| place.chmod("identity.txt", 0o640),
    ),
    (
        "an identity of somebody else",
        "a daemon with a foreign identity",
        &["65533", "chown"],
        |place| place.chown("identity.txt", STRANGER),
    ),
    (
        "an identity that is a folder",
        "a daemon with a folder for an identity",
        &["regular file", "`identity`"],
        |place| place.folder("identity.txt"),
    ),
    (
        "an identity that is a pipe",
        "a daemon with a pipe for an identity",
        &["regular file", "`identity`"],
        |place| {
            place.remove("identity.txt");
            nix::unistd::mkfifo(&place.at("identity.txt"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        },
    ),
    (
        "an identity that leads in a circle",
        "a daemon with a circle for an identity",
        &["symbolic link", "check its path"],
        |place| place.link("identity.txt", "identity.txt"),
    ),
    (
        "an empty identity",
        "a daemon with an empty identity",
        &["holds no key", "age-keygen"],
        |place| place.write("identity.txt", ""),
    ),
    (
        "an identity of comments",
        "a daemon with an identity of comments",
        &["holds no key", "age-keygen"],
        |place| place.write("identity.txt", "# my key\n\n"),
    ),
    (
        "an identity that is garbage",
        "a daemon with a garbled identity",
        &["line 1", "AGE-SECRET-KEY-1…"],
        |place| place.write("identity.txt", CANARY),
    ),
    (
        "an identity with a bad second line",
        "a daemon with a bad second line",
        &["line 4", "AGE-SECRET-KEY-1…"],
        |place| {
            let mut text = place.read("identity.txt");
            text.extend_from_slice(b"AGE-SECRET-KEY-1QQQQQQ\n");
            place.write("identity.txt", text);
        },
    ),
    (
        "a truncated identity",
        "a daemon with a truncated identity",
        &["line 3", "AGE-SECRET-KEY-1…"],
        |place| {
            let text = place.read("identity.txt");
            place.write("identity.txt", &text[..text.len() - 20]);
        },
    ),
    (
        "an identity that is too large",
        "a daemon with a large identity",
        &["65536 bytes"],
        |place| place.write("identity.txt", vec![b'#'; 1 << 17]),
    ),
    (
        "another identity",
        "a daemon with another identity",
        &[
            "@/store.age",
            "this identity does not open it",
            "doctor --repair",
        ],
        |place| {
            place.write(
                "identity.txt",
                Identity::generate()
                    .to_text(Clock::default().timestamp())
                    .expose(),
            );
        },
    ),
    (
        "an identity sealed with a passphrase, and no terminal",
        "a daemon with a sealed identity and no terminal",
        &["sealed with a passphrase", "terminal"],
        |place| {
            let identity = Identity::generate();
            let passphrase = SecretBytes::new(b"open sesame".to_vec());
            place.write(
                "identity.txt",
                identity
                    .to_sealed_text(&passphrase, Clock::default().timestamp())
                    .unwrap(),
            );
        },
    ),
    (
        "an identity that takes for ever to open",
        "a daemon with an identity that takes for ever",
        &["sealed with a passphrase"],
        |place| {
            let salt = STANDARD_NO_PAD.encode([7; 16]);
            let body = STANDARD_NO_PAD.encode([7; 32]);
            let mut text = String::new();
            write!(text, "age-encryption.org/v1\n-> scrypt {salt} 31\n{body}\n--- {body}\n0123456789abcdef0123456789abcdef").unwrap();
            place.write("identity.txt", text);
        },
    ),
    (
        "a sealed identity that is cut off",
        "a daemon with half a sealed identity",
        &["damaged", "copy"],
        |place| {
            place.write("identity.txt", "-----BEGIN AGE ENCRYPTED FILE-----\nYWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCAy\n");
        },
    ),
    (
        "a plugin's identity alone",
        "a daemon with a plugin's identity alone",
        &["age plugin", "age-keygen | age -r"],
        |place| place.write("identity.txt", "AGE-PLUGIN-NONE-1QQQQQQQQQQQ\n"),
    ),
    (
        "an identity sealed to a plugin that is not there",
        "a daemon without its plugin",
        &["age-plugin-none", "install the plugin"],
        |place| {
            place.write("identity.txt", sealed_to_a_plugin());
        },
    ),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (alone, daemon, says, given) in TABLE {
        let mut says = says.to_vec();
        if !says.iter().any(|text| text.starts_with('@')) {
            says.push("@/identity.txt");
        }
        cases.push(case(alone, "get billing/canary", 5, &says).given(given));
        cases.push(case(daemon, "mount", 5, &says).given(given));
    }
    cases.push(
        case(
            "an init beside a store without its identity",
            "init",
            5,
            &["@/identity.txt", "@/store.age", "put the identity back"],
        )
        .given(|place| place.remove("identity.txt")),
    );
    cases.push(
        case(
            "a config without an identity",
            "ls",
            5,
            &["identity = {", "secretfs-identity"],
        )
        .given(|place| place.reconfigure("identity = {", "#")),
    );
    cases.push(
        case(
            "a credential that opens nothing",
            "ls",
            5,
            &["@/secretfs-identity", "AGE-SECRET-KEY-1…"],
        )
        .given(|place| place.write("secretfs-identity", "x"))
        .environment("CREDENTIALS_DIRECTORY", "@"),
    );
    cases
}

/// A plugin's line and below it something that is sealed to it.
fn sealed_to_a_plugin() -> String {
    let name = "age-plugin-none-";
    let line = bech32(name).to_uppercase();
    let body = STANDARD_NO_PAD.encode([7; 32]);
    let sealed = format!("age-encryption.org/v1\n-> none x\n{body}\n--- {body}\n0123456789abcdef");
    let armored = base64::engine::general_purpose::STANDARD.encode(sealed);
    let lines: Vec<&str> = (0..armored.len())
        .step_by(64)
        .map(|at| &armored[at..armored.len().min(at + 64)])
        .collect();
    format!(
        "{line}\n-----BEGIN AGE ENCRYPTED FILE-----\n{}\n-----END AGE ENCRYPTED FILE-----\n",
        lines.join("\n")
    )
}

/// No data under a human-readable part, with its checksum.
fn bech32(part: &str) -> String {
    const DIGITS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    let mut values: Vec<u32> = part.bytes().map(|byte| u32::from(byte >> 5)).collect();
    values.push(0);
    values.extend(part.bytes().map(|byte| u32::from(byte & 31)));
    values.extend([0; 6]);
    let mut sum: u32 = 1;
    for value in values {
        let top = sum >> 25;
        sum = (sum & 0x01ff_ffff) << 5 ^ value;
        for (bit, generator) in [
            0x3b6a_57b2,
            0x2650_8e6d,
            0x1ea1_19fa,
            0x3d42_33dd,
            0x2a14_62b3,
        ]
        .iter()
        .enumerate()
        {
            if top >> bit & 1 == 1 {
                sum ^= generator;
            }
        }
    }
    sum ^= 1;
    let check = (0..6).map(|digit| {
        let value = usize::try_from(sum >> (5 * (5 - digit)) & 31).unwrap();
        char::from(DIGITS[value])
    });
    format!("{part}1{}", check.collect::<String>())
}
