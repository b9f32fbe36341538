//! Configs that cannot be trusted, read or understood.

use crate::scratch::{READER, STRANGER};
use crate::{Case, Place, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = files();
    cases.extend(grammar());
    cases.extend(meaning());
    cases.push(several());
    cases
}

fn wrong(what: &'static str, says: &[&str], given: fn(&Place)) -> Case {
    let mut says = says.to_vec();
    says.push("@/config.toml");
    case(what, "ls", 2, &says).given(given)
}

fn files() -> Vec<Case> {
    vec![
        wrong(
            "no config",
            &["no such file", "secretfs init", "--config"],
            |place| place.remove("config.toml"),
        ),
        wrong(
            "a config that is a folder",
            &["not a regular file", "--config"],
            |place| place.folder("config.toml"),
        ),
        wrong(
            "a config that is a pipe",
            &["not a regular file", "--config"],
            |place| {
                place.remove("config.toml");
                nix::unistd::mkfifo(&place.at("config.toml"), nix::sys::stat::Mode::S_IRUSR)
                    .unwrap();
            },
        ),
        wrong(
            "a config that leads in a circle",
            &["symbolic link", "--config"],
            |place| place.link("config.toml", "config.toml"),
        ),
        wrong("a config that others can write", &["chmod go-w"], |place| {
            place.chmod("config.toml", 0o646)
        }),
        wrong(
            "a config that a group can write",
            &["chmod go-w"],
            |place| place.chmod("config.toml", 0o664),
        ),
        wrong(
            "a config of somebody else",
            &["belongs to somebody else", "chown root"],
            |place| place.chown("config.toml", READER),
        ),
        wrong(
            "a config in a folder that others can write",
            &["the folder", "chmod go-w"],
            |place| place.chmod("", 0o777),
        ),
        wrong(
            "a config in a folder of somebody else",
            &["the folder", "chown root"],
            |place| place.chown("", READER),
        ),
        wrong(
            "a config that nobody may read",
            &["Permission denied", "chmod"],
            |place| place.chmod("config.toml", 0o600),
        )
        .uid(STRANGER),
        wrong(
            "a config that is too large",
            &["1 MiB", "is it the config"],
            |place| place.write("config.toml", vec![b'#'; (1 << 20) + 1]),
        ),
        wrong("a config that is no text", &["UTF-8"], |place| {
            place.write("config.toml", b"mount = \"\xff\xfe\"")
        }),
        wrong(
            "a config with a zero byte",
            &["config.toml:1", "not TOML"],
            |place| place.write("config.toml", b"mount\0= 1"),
        ),
        case(
            "an environment that names no config",
            "ls",
            2,
            &["/nowhere/at-all.toml", "no such file", "--config"],
        )
        .without_config()
        .environment("SECRETFS_CONFIG", "/nowhere/at-all.toml"),
        case(
            "an environment without a home",
            "ls",
            2,
            &["HOME", "--config"],
        )
        .without_config()
        .environment("HOME", "")
        .uid(STRANGER),
        case("a home that is no path", "ls", 2, &["HOME", "absolute"])
            .without_config()
            .environment("HOME", "relative")
            .uid(STRANGER),
    ]
}

fn grammar() -> Vec<Case> {
    vec![
        wrong(
            "an unfinished string",
            &["config.toml:1", "not TOML"],
            |place| place.write("config.toml", "mount = \"/secrets\n"),
        ),
        wrong("a key twice", &["not TOML"], |place| {
            place.reconfigure("mount =", "mount = \"/a\"\nmount =")
        }),
        wrong(
            "an unknown key",
            &["mont", "did you mean `mount`"],
            |place| place.reconfigure("mount =", "mont ="),
        ),
        wrong(
            "an unknown section",
            &["cahe", "did you mean `cache`"],
            |place| place.configure("[cahe]"),
        ),
        wrong(
            "a key that is like none",
            &["quota", "known here are"],
            |place| place.configure("[cache]\nquota = 3"),
        ),
        wrong(
            "an unknown key in a rule",
            &["user", "known here are `uid`"],
            |place| place.configure("[services.a]\nsource = \"local:a\"\nallow = [{ user = 5 }]"),
        )
        .lines(2),
        wrong(
            "a number where a text belongs",
            &["mount", "type integer"],
            |place| place.reconfigure("mount =", "mount = 7 #"),
        ),
        wrong(
            "a text where a table belongs",
            &["backends", "a table"],
            |place| place.write("config.toml", "backends = \"local\""),
        ),
        wrong(
            "a text where a list belongs",
            &["services.a.allow", "a list of rules"],
            |place| place.configure("[services.a]\nsource = \"local:a\"\nallow = \"root\""),
        ),
        wrong(
            "an empty list of rules",
            &["services.a.allow", "leave the key out"],
            |place| place.configure("[services.a]\nsource = \"local:a\"\nallow = []"),
        ),
    ]
}

fn meaning() -> Vec<Case> {
    vec![
        wrong(
            "a mountpoint that is relative",
            &["mount", "absolute path"],
            |place| place.reconfigure("mount =", "mount = \"secrets\" #"),
        ),
        wrong(
            "a mountpoint that is the root",
            &["mount", "a folder of its own"],
            |place| place.reconfigure("mount =", "mount = \"/\" #"),
        ),
        wrong(
            "a path with two dots",
            &["state", "without `..`"],
            |place| place.reconfigure("state =", "state = \"/var/../etc\" #"),
        ),
        wrong(
            "a store inside of the mount",
            &["mount", "stands inside of the mount"],
            |place| place.reconfigure("/secrets\"", "\""),
        )
        .lines(6),
        wrong(
            "a server's user that is not known",
            &["user", "useradd"],
            |place| place.reconfigure("mount =", "user = \"nobody-at-all\"\nmount ="),
        ),
        wrong(
            "a backend without a type",
            &["backends.more", "`type` is missing"],
            |place| place.configure("[backends.more]\npath = \"/x\""),
        ),
        wrong(
            "a backend of an unknown type",
            &["backends.more.type", "known are"],
            |place| place.configure("[backends.more]\ntype = \"floppy\""),
        ),
        wrong(
            "a store without a path",
            &["backends.more", "`path` is missing"],
            |place| place.configure("[backends.more]\ntype = \"store\""),
        ),
        wrong(
            "a store named like its folder",
            &["backends.more", "must not end in `.d`"],
            |place| place.configure("[backends.more]\ntype = \"store\"\npath = \"/x/store.d\""),
        ),
        wrong(
            "a service with a bad name",
            &["services", "letters, digits"],
            |place| place.configure("[services.\"a b\"]\nsource = \"local:a\""),
        ),
        wrong(
            "a service without secrets",
            &["services.a", "source ="],
            |place| place.configure("[services.a]"),
        ),
        wrong(
            "a source in no backend",
            &["services.a.source", "no backend of this name", "local"],
            |place| place.configure("[services.a]\nsource = \"vault:a\""),
        ),
        wrong(
            "a source that is one field",
            &["services.a.source", "a whole folder"],
            |place| place.configure("[services.a]\nsource = \"local:a#b\""),
        ),
        wrong(
            "a reference without a colon",
            &["services.a.secrets.b", "a colon"],
            |place| place.configure("[services.a.secrets]\nb = \"local\""),
        ),
        wrong(
            "a reference with a bad path",
            &["services.a.secrets.b", "must not be empty"],
            |place| place.configure("[services.a.secrets]\nb = \"local:/x\""),
        ),
        wrong(
            "a reference with two fields",
            &["services.a.secrets.b", "%23"],
            |place| place.configure("[services.a.secrets]\nb = \"local:x/y#a#b\""),
        ),
        wrong(
            "a reference with a bad escape",
            &["services.a.secrets.b", "%25"],
            |place| place.configure("[services.a.secrets]\nb = \"local:x/y%zz\""),
        ),
        wrong(
            "a reference with one part",
            &["services.a.secrets.b", "SERVICE/NAME"],
            |place| place.configure("[services.a.secrets]\nb = \"local:x\""),
        ),
        wrong(
            "a mode that can be written",
            &["services.a.secrets.b.mode", "read bits"],
            |place| {
                place.configure(
                    "[services.a.secrets]\nb = { from = \"local:x/y\", mode = \"0640\" }",
                )
            },
        ),
        wrong(
            "a mode that is no number",
            &["services.a.secrets.b.mode", "octal"],
            |place| {
                place
                    .configure("[services.a.secrets]\nb = { from = \"local:x/y\", mode = \"r--\" }")
            },
        ),
        wrong(
            "a way to read that is none",
            &["services.a.secrets.b.reads", "\"checked\" or \"cached\""],
            |place| {
                place.configure(
                    "[services.a.secrets]\nb = { from = \"local:x/y\", reads = \"often\" }",
                )
            },
        ),
        wrong(
            "a rule without a user",
            &["services.a.allow[0]", "a `uid`, a `uid_map` or a `gid`"],
            |place| {
                place.configure(
                    "[services.a]\nsource = \"local:a\"\nallow = [{ unit = \"a.service\" }]",
                )
            },
        ),
        wrong(
            "a rule for a wildcard",
            &["services.a.allow[0].uid", "wildcards"],
            |place| {
                place.configure("[services.a]\nsource = \"local:a\"\nallow = [{ uid = \"*\" }]")
            },
        ),
        wrong(
            "a rule for a bad unit",
            &["services.a.allow[0].unit", "billing.service"],
            |place| {
                place.configure(
                    "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 5, unit = \"a\" }]",
                )
            },
        ),
        wrong(
            "a rule for a bad container",
            &["services.a.allow[0].container", "64"],
            |place| {
                place.configure("[services.a]\nsource = \"local:a\"\nallow = [{ uid = 5, container = \"web\" }]")
            },
        ),
        wrong(
            "a watch that is a word",
            &["watch", "true or false", "type string"],
            |place| place.reconfigure("mount =", "watch = \"yes\"\nmount ="),
        ),
        wrong(
            "a time that is none",
            &["cache.ttl", "a duration"],
            |place| place.configure("[cache]\nttl = \"soon\""),
        ),
        wrong(
            "a time that is a number",
            &["cache.ttl", "a duration", "type integer"],
            |place| place.configure("[cache]\nttl = 60"),
        ),
        wrong(
            "no deadline",
            &["cache.timeout", "needs a deadline"],
            |place| place.configure("[cache]\ntimeout = \"0\""),
        ),
        wrong(
            "a deadline of a day",
            &["cache.timeout", "at most \"10m\""],
            |place| place.configure("[cache]\ntimeout = \"24h\""),
        ),
        wrong(
            "an audit log of no size",
            &["audit.max_size", "a size"],
            |place| place.reconfigure("[audit]", "[audit]\nmax_size = \"big\""),
        ),
        wrong(
            "an audit log that is too small",
            &["audit.max_size", "4KiB"],
            |place| place.reconfigure("[audit]", "[audit]\nmax_size = \"1KiB\""),
        ),
        wrong(
            "an audit log that is not kept",
            &["audit.keep", "from 1"],
            |place| place.reconfigure("[audit]", "[audit]\nkeep = 0"),
        ),
        wrong(
            "an audit failure that is ignored",
            &["audit.on_failure", "\"deny\" or \"warn\""],
            |place| place.reconfigure("[audit]", "[audit]\non_failure = \"ignore\""),
        ),
        wrong(
            "defaults without a source",
            &["defaults", "`source` is missing"],
            |place| place.reconfigure("source = \"local\"\n", ""),
        ),
        case(
            "a daemon with a wrong config",
            "mount",
            2,
            &["@/config.toml", "mont", "did you mean `mount`"],
        )
        .given(|place| place.reconfigure("mount =", "mont =")),
        case(
            "an init over a wrong config",
            "init",
            2,
            &["@/config.toml", "mont", "did you mean `mount`"],
        )
        .given(|place| place.reconfigure("mount =", "mont =")),
        case(
            "a rule for a wrong config",
            "allow billing --uid 5",
            2,
            &["@/config.toml", "mont", "did you mean `mount`"],
        )
        .given(|place| place.reconfigure("mount =", "mont =")),
        case(
            "a reload of a wrong config",
            "reload",
            2,
            &["@/config.toml", "mont", "did you mean `mount`"],
        )
        .given(|place| place.reconfigure("mount =", "mont ="))
        .served(),
        case(
            "a reload that moves the mount",
            "reload",
            2,
            &["@/config.toml", "mount cannot change", "restart"],
        )
        .given(|place| place.reconfigure("/secrets\"", "/elsewhere\""))
        .served(),
        case(
            "a reload without a daemon",
            "reload",
            1,
            &["no daemon serves @/config.toml", "secretfs mount"],
        ),
    ]
}

/// All mistakes are told at once, each in a line of its own.
fn several() -> Case {
    case(
        "several mistakes",
        "ls",
        2,
        &["mont", "cache.ttl", "audit.keep", "services.a"],
    )
    .given(|place| {
        place.reconfigure("mount =", "mont =");
        place.reconfigure("[audit]", "[audit]\nkeep = 0");
        place.configure("[cache]\nttl = \"soon\"\n[services.a]");
    })
    .lines(4)
}
