//! Words that are missing, too many, or no names.

use crate::{CANARY, Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = words();
    cases.extend(names());
    cases.extend(generated());
    cases
}

fn words() -> Vec<Case> {
    vec![
        case(
            "no such command",
            "frobnicate",
            2,
            &["no such command", "secretfs --help"],
        ),
        case(
            "a command mistyped",
            "putt billing/two",
            2,
            &["no such command", "secretfs --help"],
        ),
        case(
            "no such flag",
            "--colour ls",
            2,
            &["not known", "secretfs ls --help"],
        ),
        case(
            "no path",
            "get",
            2,
            &["missing", "PATH", "secretfs get --help"],
        ),
        case(
            "a path too many",
            "get billing/two billing/three",
            2,
            &["secretfs get --help"],
        ),
        case(
            "a flag without its value",
            "get billing/two --version",
            2,
            &["--version", "secretfs get --help"],
        ),
        case(
            "a value as an argument",
            "put billing/two",
            2,
            &["`ps` shows it", "--file FILE", "change this one"],
        )
        .word(CANARY.as_bytes())
        .or_served(),
        case(
            "a value that looks like a flag",
            "put billing/two",
            2,
            &["`ps` shows it"],
        )
        .word(format!("-{CANARY}").as_bytes()),
        case("a value instead of a path", "put", 2, &["PATH"])
            .word(CANARY.as_bytes())
            .or_served(),
        case(
            "a file and a generator",
            "put billing/two --file @/x --generate hex:16",
            2,
            &["--file", "--generate", "cannot stand together"],
        ),
        case(
            "json for a value",
            "get billing/two --json=yes",
            2,
            &["--json", "secretfs get --help"],
        ),
        case(
            "no version to roll back to",
            "rollback billing/two",
            2,
            &["--to", "secretfs rollback --help"],
        ),
        case(
            "nothing to revoke",
            "revoke",
            2,
            &["PATH|SERVICE", "--all", "secretfs revoke --help"],
        ),
        case(
            "a version of everything",
            "revoke --all --version 3",
            2,
            &["--version", "secretfs revoke --help"],
        ),
        case(
            "a version of a service",
            "revoke billing --version 3",
            2,
            &["--version", "SERVICE/NAME"],
        ),
        case(
            "a time that is none to revoke for",
            "revoke billing/two --for",
            2,
            &["--for", "10m"],
        )
        .word(CANARY.as_bytes()),
        case(
            "nothing to import from",
            "import billing",
            2,
            &["--env", "secretfs import --help"],
        ),
        case(
            "two things to import from",
            "import billing --env @/a --dir @/b",
            2,
            &["cannot stand together"],
        ),
        case(
            "an unknown shell",
            "completions tcl",
            2,
            &["SHELL", "secretfs completions --help"],
        ),
        case(
            "a folder for manuals that is a file",
            "man @/config.toml",
            1,
            &["@/config.toml", "name a folder"],
        ),
        case(
            "an argument that is no text",
            "get",
            2,
            &["UTF-8", "secretfs get --help"],
        )
        .word(b"billing/\xff"),
        case(
            "a folder and a config",
            "init @/new",
            2,
            &["--config", "DIR/config.toml"],
        ),
        case(
            "init below a file",
            "init @/config.toml/new",
            1,
            &["@/config.toml/new", "name another folder"],
        )
        .without_config(),
        case(
            "up below a file",
            "up @/config.toml/new",
            1,
            &["@/config.toml/new", "name another folder"],
        )
        .without_config(),
        case(
            "init in a file",
            "init @/config.toml",
            1,
            &["@/config.toml", "name another"],
        )
        .without_config(),
        case(
            "the server by hand",
            "serve-handed --device 77 --word 78 --control 79 --values 80 --values-key 81 --ledger 82",
            1,
            &["only the keeper passes", "secretfs mount"],
        ),
        case(
            "the keeper of another release by hand",
            "keep --server 1 --word 78 --device 77 --ledger 82 --control 79 --lock 83 --values 80 --values-key 81",
            1,
            &["only the keeper passes", "secretfs mount"],
        ),
        case(
            "an upgrade of a daemon that does not run",
            "upgrade",
            1,
            &["no daemon serves", "secretfs mount"],
        ),
        case(
            "the server by hand, without anything",
            "serve-handed",
            2,
            &["--device", "secretfs serve-handed --help"],
        ),
        case(
            "the server by hand, without systemd",
            "serve",
            1,
            &["systemd holds no mount", "secretfs mount"],
        ),
        case(
            "a mount for systemd by hand",
            "premount secretfs.service",
            2,
            &["systemd's unit", "secretfs mount"],
        ),
    ]
}

fn names() -> Vec<Case> {
    let long = "n".repeat(129);
    let name = |what, path: &[u8], says: &[&str]| case(what, "get", 2, says).word(path).or_served();
    let shape: &[&str] = &["SERVICE/NAME", "billing/db-password"];
    let letters: &[&str] = &["1 to 128 letters", "a letter or digit first"];
    vec![
        name("an empty path", b"", shape),
        name("a service alone", b"billing", shape),
        name("three parts", b"billing/two/three", shape),
        name(
            "a path from the root that is not below the mount",
            b"/billing/two",
            shape,
        ),
        name("a path out of the mount", b"/secrets/../etc/passwd", shape),
        name("a name that is empty", b"billing/", letters),
        name("a service that is empty", b"/two", letters),
        name("a folder above", b"billing/..", letters),
        name("a hidden name", b"billing/.two", letters),
        name("a dash first", b"billing/-two", letters),
        name("a blank in a name", b"billing/t wo", letters),
        name("a newline in a name", b"billing/t\nwo", letters),
        name("an escape in a name", b"billing/\x1b[31mtwo", letters),
        name(
            "a letter with an accent",
            "billing/zwölf".as_bytes(),
            letters,
        ),
        name(
            "a name of 129 letters",
            format!("billing/{long}").as_bytes(),
            letters,
        ),
        case("a list of no service", "ls billing/two", 2, letters).or_served(),
        case("a rule for no service", "allow two! --uid 1", 2, letters).or_served(),
        case(
            "an import into no service",
            "import a/b --env @/config.toml",
            2,
            letters,
        )
        .or_served(),
        case(
            "a secret that is not there",
            "get billing/none",
            3,
            &["billing/none", "secretfs ls"],
        )
        .or_served(),
        case(
            "a service that is not there",
            "get none/none",
            3,
            &["none/none", "secretfs ls"],
        )
        .or_served(),
        case(
            "a list of a service that is not there",
            "ls none",
            3,
            &["none", "secretfs ls"],
        )
        .or_served(),
        case(
            "the history of nothing",
            "history billing/none",
            3,
            &["billing/none", "secretfs ls"],
        )
        .or_served(),
        case(
            "the removal of nothing",
            "rm billing/none",
            3,
            &["billing/none", "secretfs ls"],
        )
        .or_served(),
        case(
            "a rollback of nothing",
            "rollback billing/none --to 1",
            3,
            &["billing/none", "secretfs ls"],
        )
        .or_served(),
        case("an explanation of no path", "explain billing", 2, shape).or_served(),
        case(
            "a version that never was",
            "get billing/two --version 9",
            3,
            &["billing/two", "secretfs history billing/two"],
        )
        .or_served(),
        case(
            "a version that is no number",
            "get billing/two --version new",
            3,
            &["billing/two", "secretfs history billing/two"],
        )
        .or_served(),
        case(
            "a version with a control character",
            "get billing/two --version",
            3,
            &["billing/two", "secretfs history billing/two"],
        )
        .word(b"1\n2")
        .or_served(),
        case(
            "a rollback to what never was",
            "rollback billing/two --to 9",
            3,
            &["billing/two", "secretfs history billing/two"],
        )
        .or_served(),
        case(
            "the removal of a version that never was",
            "rm billing/two --version 9",
            3,
            &["billing/two", "secretfs history billing/two"],
        )
        .or_served(),
        case(
            "a value into a service without a place",
            "put other/x",
            2,
            &["other/x", "[services.other]", "secretfs allow other"],
        )
        .input("x")
        .given(|place| {
            place.reconfigure("[defaults]\nsource = \"local\"\nallow = [{ uid = 0 }]", "")
        }),
    ]
}

fn generated() -> Vec<Case> {
    let spec = |what, spec: &[u8], says: &[&str]| {
        case(what, "put billing/new --generate", 2, says)
            .word(spec)
            .or_served()
    };
    vec![
        spec("nothing generated", b"", &["--generate", "password, hex"]),
        spec(
            "an unknown kind",
            b"passphrase",
            &["--generate", "password, hex"],
        ),
        spec(
            "a short password",
            b"password:7",
            &["--generate", "8 to 1024"],
        ),
        spec(
            "a long password",
            b"password:1025",
            &["--generate", "8 to 1024"],
        ),
        spec(
            "a length that is no number",
            b"password:long",
            &["--generate", "8 to 1024"],
        ),
        spec(
            "a negative length",
            b"hex:-16",
            &["--generate", "8 to 1024"],
        ),
        spec("a weak RSA key", b"rsa:1024", &["--generate", "3072"]),
        spec(
            "a UUID with a length",
            b"uuid:4",
            &["--generate", "no length"],
        ),
        spec(
            "a certificate for nobody",
            b"certificate",
            &["--generate", "certificate:NAME"],
        ),
        spec(
            "a certificate for no host",
            b"certificate:a b",
            &["--generate", "certificate:NAME"],
        ),
    ]
}
