//! Against Debian's `age`: it opens what we write, and we open what it writes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use super::*;

/// True if the age commands are there.
fn age_is_there() -> bool {
    let there = ["age", "age-keygen"].iter().all(|command| {
        let version = Command::new(command).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    });
    if !there {
        skipped("the `age` commands are not installed");
    }
    there
}

#[track_caller]
fn run(command: &mut Command) -> Vec<u8> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    stdout
}

#[track_caller]
fn decrypt(key: &Path, sealed: &Path) -> Vec<u8> {
    run(Command::new("age").arg("-d").arg("-i").arg(key).arg(sealed))
}

#[test]
fn stock_age_opens_index_values_and_exports() {
    if !age_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let key = at("identity.txt");
    run(Command::new("age-keygen").arg("-o").arg(&key));
    let identity = Identity::load(&key, &Prompt::nobody()).unwrap();
    let public = run(Command::new("age-keygen").arg("-y").arg(&key));
    assert_eq!(
        String::from_utf8(public).unwrap().trim(),
        identity.recipients()[0].to_string()
    );

    let store = Store::create(&at("store.age"), &identity, Clock::manual()).unwrap();
    let value: Vec<u8> = (0..200_000_usize)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    store
        .put(&path("billing/key"), &SecretBytes::new(value.clone()), None)
        .unwrap();
    let index: serde_json::Value = serde_json::from_slice(&decrypt(&key, &store.path())).unwrap();
    let file = &index["services"]["billing"]["key"]["versions"][0]["file"];
    let file = at("store.d").join(file.as_str().unwrap());
    assert_eq!(decrypt(&key, &file), value);

    let recipients = identity.recipients();
    let archive = at("export.age");
    write_whole_with(&archive, false, |output| {
        store.export(output, SealTo::Recipients(&recipients), &mut nothing)
    })
    .unwrap();
    assert_eq!(
        fs::metadata(&archive).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    fs::write(at("plain.tar"), decrypt(&key, &archive)).unwrap();
    run(Command::new("tar")
        .arg("-xf")
        .arg(at("plain.tar"))
        .arg("-C")
        .arg(folder.path()));
    assert_eq!(fs::read(at("secrets/billing/key/1")).unwrap(), value);
    assert!(at("index.json").is_file());

    // An identity that we write is one for age, also with two keys.
    let both = Identity::generate().with(&identity);
    write_whole(
        &at("both.txt"),
        both.to_text(Clock::manual().timestamp()).expose(),
        false,
    )
    .unwrap();
    assert_eq!(decrypt(&at("both.txt"), &file), value);
}

#[test]
fn an_identity_sealed_by_stock_age_opens_with_its_passphrase() {
    if !age_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    run(Command::new("age-keygen").arg("-o").arg(at("plain.txt")));
    let plain = Identity::load(&at("plain.txt"), &Prompt::nobody()).unwrap();
    for armor in ["", "-a"] {
        // age asks at a terminal only; `script` is one.
        let sealed = at(&format!("sealed{armor}.txt"));
        let line = format!(
            "age -p {armor} -o {} {}",
            sealed.display(),
            at("plain.txt").display()
        );
        let mut script = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut terminal = script.stdin.take().unwrap();
        io::Write::write_all(&mut terminal, b"a passphrase\na passphrase\n").unwrap();
        assert!(script.wait().unwrap().success());
        fs::set_permissions(&sealed, fs::Permissions::from_mode(0o600)).unwrap();
        let prompt = Prompt::new(|_| Some(bytes("a passphrase")));
        let identity = Identity::load(&sealed, &prompt).unwrap();
        assert_eq!(identity.recipients(), plain.recipients());
        assert_eq!(identity.protection(), Protection::Passphrase);
    }
}

/// A plugin that wraps a file key as itself.
const PLUGIN: &str = r#"#!/bin/sh
command=
key=
while read -r line; do
    case "$line" in
        "-> "*) set -- "$1" ${line#-> }; command="$2:$4" ;;
        *)
            case "$command" in
                wrap-file-key:* | recipient-stanza:secretfstest) key=$line ;;
                done:*) break ;;
            esac
            ;;
    esac
done
case "$1" in
    --age-plugin=recipient-v1) printf -- '-> recipient-stanza 0 secretfstest\n%s\n' "$key" ;;
    --age-plugin=identity-v1) printf -- '-> file-key 0\n%s\n' "$key" ;;
esac
read -r answer
read -r body
printf -- '-> done\n\n'
"#;

#[test]
fn an_identity_sealed_to_a_plugin_opens_with_it() {
    if !age_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plugin = at("age-plugin-secretfstest");
    fs::write(&plugin, PLUGIN).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    run(Command::new("age-keygen").arg("-o").arg(at("plain.txt")));
    let plain = Identity::load(&at("plain.txt"), &Prompt::nobody()).unwrap();
    let mut seal = Command::new("age");
    seal.env("PATH", &path)
        .args(["-e", "-a", "-j", "secretfstest"]);
    let sealed = run(seal.arg(at("plain.txt")));
    let name = age::plugin::Identity::default_for_plugin("secretfstest").unwrap();
    let text = [format!("# sealed\n{name}\n").as_bytes(), &sealed].concat();
    write_whole(&at("identity.txt"), &text, false).unwrap();

    // Without the plugin: what is missing is named.
    let error = Identity::load(&at("identity.txt"), &Prompt::nobody()).unwrap_err();
    assert!(
        error.to_string().contains("age-plugin-secretfstest"),
        "{error}"
    );
    assert!(!error.to_string().contains('\n'), "{error}");
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "backend::store::tests::interop::with_the_plugin",
        ])
        .env("PATH", &path)
        .env("SECRETFS_TEST_FOLDER", folder.path())
        .env("SECRETFS_TEST_RECIPIENT", plain.recipients()[0].to_string())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
}

#[test]
#[ignore = "a child of an_identity_sealed_to_a_plugin_opens_with_it"]
fn with_the_plugin() {
    let folder = PathBuf::from(std::env::var_os("SECRETFS_TEST_FOLDER").unwrap());
    let identity = Identity::load(&folder.join("identity.txt"), &Prompt::nobody()).unwrap();
    let recipient = std::env::var("SECRETFS_TEST_RECIPIENT").unwrap();
    assert_eq!(identity.recipients()[0].to_string(), recipient);
    assert_eq!(identity.protection(), Protection::Plugin);
}
