//! Which identity files are taken, and what is said of the others.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use age::secrecy::ExposeSecret;

use super::*;

fn load(text: &[u8]) -> Result<Identity, IdentityError> {
    let text = SecretBytes::new(text.to_vec());
    Identity::parse(&text, Path::new("/x/identity.txt"), &Prompt::nobody())
}

fn secret_key() -> String {
    let key = age::x25519::Identity::generate();
    key.to_string().expose_secret().to_owned()
}

#[test]
fn a_file_may_hold_several_keys_and_comments() {
    let (one, two) = (secret_key(), secret_key());
    let text = format!("# created: now\r\n\n{one}\r\n  # more\n\t{two}\n\n");
    let identity = load(text.as_bytes()).unwrap();
    assert_eq!(identity.recipients().len(), 2);
    assert_eq!(identity.protection(), Protection::Plain);
    // What we write is read as the same.
    let again = load(identity.to_text(Clock::manual().timestamp()).expose()).unwrap();
    assert_eq!(again.recipients(), identity.recipients());
    let text = format!("{identity:?}");
    assert!(!text.contains("SECRET"), "{text}");
}

#[test]
fn a_wrong_file_is_refused_by_the_line_and_never_quoted() {
    let (good, canary) = (secret_key(), "AGE-SECRET-KEY-1CANARY7F3A");
    let plugin = "AGE-PLUGIN-YUBIKEY-1QQQQQQQQQQQQQQQQQQQQ";
    let cases: [(String, &str); 8] = [
        (String::new(), "holds no key"),
        ("# only a comment\n".into(), "holds no key"),
        (canary.into(), "line 1 is no"),
        (format!("{good}\n\n{canary}"), "line 3 is no"),
        (format!("{good} {good}"), "line 1 is no"),
        (plugin.into(), "only an age plugin"),
        ("age-encryption.org/v1\ncanary-7f3a".into(), "damaged"),
        (
            "-----BEGIN AGE ENCRYPTED FILE-----\ncanary-7f3a\n".into(),
            "damaged",
        ),
    ];
    for (text, expected) in cases {
        let error = load(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(
            error.starts_with("/x/identity.txt: ") && !error.contains('\n'),
            "{error}"
        );
        assert!(!error.to_lowercase().contains("canary"), "{error}");
    }
}

#[test]
fn only_a_file_that_others_cannot_open_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.txt");
    assert!(matches!(
        identity::open(&file),
        Err(IdentityError::Missing(_))
    ));
    write_whole(&file, secret_key().as_bytes(), false).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    Identity::load(&file, &Prompt::nobody()).unwrap();
    for (mode, good) in [
        (0o400, true),
        (0o700, true),
        (0o640, false),
        (0o604, false),
        (0o620, false),
        (0o601, false),
    ] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        match identity::open(&file) {
            Ok(_) => assert!(good, "{mode:o}"),
            Err(IdentityError::Mode { .. }) => assert!(!good, "{mode:o}"),
            Err(other) => panic!("{mode:o}: {other}"),
        }
    }
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(matches!(
        identity::open(&link),
        Err(IdentityError::Mode { .. })
    ));
    assert!(matches!(
        identity::open(folder.path()),
        Err(IdentityError::NotAFile(_))
    ));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(
        identity::open(&pipe),
        Err(IdentityError::NotAFile(_))
    ));
    assert!(matches!(
        identity::open(Path::new("/dev/null")),
        Err(IdentityError::NotAFile(_))
    ));

    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can give a file away");
    }
    chown(&file, Some(65_534), None).unwrap();
    assert!(matches!(
        identity::open(&file),
        Err(IdentityError::Owner { .. })
    ));
    // Whoever opened a descriptor has judged it; it is read from the start, as often as it is passed on.
    let mut opened = fs::File::open(&file).unwrap();
    for _ in 0..2 {
        Identity::read(&mut opened, &file, &Prompt::nobody()).unwrap();
    }
    // An identity that is replaced stays its owner's.
    write_whole(&file, b"another", true).unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 65_534);
    assert!(matches!(
        write_whole(&file, b"third", false),
        Err(StoreError::Exists(_))
    ));
    assert_eq!(fs::read(&file).unwrap(), b"another");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn a_passphrase_opens_what_was_sealed_with_it() {
    let identity = Identity::generate();
    let now = Clock::manual().timestamp();
    let sealed = identity.to_sealed_text(&bytes("right"), now).unwrap();
    let sealed = SecretBytes::new(sealed);
    let file = Path::new("/x/identity.txt");
    let ask = |answer: &'static str| {
        Prompt::new(move |question| {
            assert!(question.contains("/x/identity.txt"));
            Some(bytes(answer))
        })
    };
    let opened = Identity::parse(&sealed, file, &ask("right")).unwrap();
    assert_eq!(opened.recipients(), identity.recipients());
    assert_eq!(opened.protection(), Protection::Passphrase);
    let error = Identity::parse(&sealed, file, &ask("canary-7f3a")).unwrap_err();
    assert!(
        matches!(error, IdentityError::WrongPassphrase(_)),
        "{error}"
    );
    assert!(!error.to_string().contains("canary"));
    let error = Identity::parse(&sealed, file, &Prompt::nobody()).unwrap_err();
    assert!(matches!(error, IdentityError::NobodyToAsk(_)), "{error}");
    assert!(identity.to_sealed_text(&bytes(""), now).is_err());
}

#[test]
fn a_work_factor_above_the_cap_is_refused_before_any_work() {
    let phrase = bytes("right");
    let sealed = seal::seal(SealTo::Passphrase(&phrase), 0, |writer| {
        writer.write_all(b"x")
    })
    .unwrap();
    let end = sealed.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let line = sealed[end..]
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap()
        + end;
    assert_eq!(&sealed[line - 2..line], b" 4");
    for factor in ["21", "63"] {
        let forged = [&sealed[..line - 1], factor.as_bytes(), &sealed[line..]].concat();
        let text = SecretBytes::new(forged);
        let ask = Prompt::new(|_| Some(bytes("right")));
        let error = Identity::parse(&text, Path::new("/x/i"), &ask).unwrap_err();
        assert!(matches!(error, IdentityError::WorkFactor { .. }), "{error}");
    }
}

#[test]
fn a_store_is_sealed_to_every_recipient() {
    let (_folder, store, identity) = new_store();
    let (next, other) = (Identity::generate(), Identity::generate());
    store.put(&path("a/x"), &bytes("value"), None).unwrap();
    store
        .rekey(&next, &other.recipients(), &mut nothing)
        .unwrap();
    store.put(&path("a/y"), &bytes("later"), None).unwrap();
    let (file, before) = (store.path(), content(&store));
    drop(store);
    assert!(Store::open(&file, identity.clone(), Clock::manual()).is_err());
    for identity in [next.clone(), other, identity.with(&next)] {
        let store = Store::open(&file, identity, Clock::manual()).unwrap();
        assert_eq!(content(&store), before);
    }
    for wrong in ["", "age1", "canary-7f3a", &secret_key()] {
        let error = wrong.parse::<Recipient>().unwrap_err().to_string();
        assert!(!error.contains("canary") && !error.contains("SECRET-KEY-1"));
    }
}

#[test]
fn what_could_not_be_read_again_is_not_sealed() {
    let (_folder, store, identity) = new_store();
    let large = SecretBytes::new(vec![7; MAX_VALUE]);
    store.put(&path("a/x"), &large, None).unwrap();
    let others: Vec<Recipient> = std::iter::repeat_with(Identity::generate)
        .take(3000)
        .flat_map(|identity| identity.recipients())
        .collect();
    let error = store.rekey(&identity, &others, &mut nothing).unwrap_err();
    assert!(error.to_string().contains("recipients"), "{error}");
    assert_eq!(
        store.get(&path("a/x"), None).unwrap().value.len(),
        MAX_VALUE
    );
}

#[test]
fn a_systemd_credential_wins() {
    let folder = tempfile::tempdir().unwrap();
    let credential = folder.path().join("secretfs-identity");
    fs::write(&credential, secret_key()).unwrap();
    // How systemd shows an access list for the unit's user.
    fs::set_permissions(&credential, Permissions::from_mode(0o440)).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "backend::store::tests::identities::with_a_credential",
        ])
        .env("CREDENTIALS_DIRECTORY", folder.path())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
}

#[test]
#[ignore = "a child of a_systemd_credential_wins"]
fn with_a_credential() {
    let folder = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY").unwrap());
    let credential = folder.join("secretfs-identity");
    for configured in [None, Some(Path::new("/x/identity.txt"))] {
        assert_eq!(identity::locate(configured).unwrap(), credential);
    }
    Identity::load(&credential, &Prompt::nobody()).unwrap();
    fs::copy(&credential, folder.join("other")).unwrap();
    let other = Identity::load(&folder.join("other"), &Prompt::nobody());
    assert!(matches!(other, Err(IdentityError::Mode { .. })));
    fs::remove_file(&credential).unwrap();
    assert_eq!(
        identity::locate(Some(Path::new("/x"))).unwrap(),
        Path::new("/x")
    );
    assert!(matches!(
        identity::locate(None),
        Err(IdentityError::Nowhere)
    ));
}
