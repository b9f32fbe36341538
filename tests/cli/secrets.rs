//! put, get, ls, history, rm, rollback, import.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Demo;

#[test]
fn a_value_comes_back_byte_for_byte() {
    let demo = Demo::new();
    let all: Vec<u8> = (0..=255).collect();
    for value in [&b"hunter2"[..], b"line\n", b"\r\n\0\n", b"", &all] {
        demo.put("billing/one", value);
        assert_eq!(demo.get("billing/one"), value);
    }
    let largest = vec![7; 1 << 20];
    demo.put("billing/large", &largest);
    assert_eq!(demo.get("billing/large"), largest);
}

#[test]
fn a_path_may_start_with_the_mountpoint() {
    let demo = Demo::new();
    demo.put(&demo.arg("secrets/billing/one"), b"x");
    assert_eq!(demo.get("billing/one"), b"x");
    let listed = demo.run(&["ls", &demo.arg("secrets/billing/")]).done();
    assert_eq!(listed.text(), "billing/one\n");
}

#[test]
fn versions_go_up_back_and_away() {
    let demo = Demo::new();
    for value in [b"one", b"two"] {
        demo.put("billing/pw", value);
    }
    let rollback = demo.json(&["rollback", "billing/pw", "--to", "1"]);
    assert_eq!(rollback["version"], "3");
    assert_eq!(demo.get("billing/pw"), b"one");
    let second = demo.run(&["get", "billing/pw", "--version", "2"]).done();
    assert_eq!(second.stdout, b"two");

    let history = demo.json(&["history", "billing/pw"]);
    let versions: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["version"].as_str().unwrap())
        .collect();
    assert_eq!(versions, ["3", "2", "1"]);

    demo.run(&["rm", "billing/pw", "--version", "2"]).done();
    demo.run(&["get", "billing/pw", "--version", "2"])
        .failed(3, "secretfs history billing/pw");
    let removed = demo.json(&["rm", "billing/pw"]);
    assert_eq!(removed["path"], "billing/pw");
    demo.run(&["get", "billing/pw"]).failed(3, "billing/pw");
    demo.run(&["rm", "billing/pw"]).failed(3, "billing/pw");
    demo.run(&["history", "billing/pw"]).failed(3, "billing/pw");
    demo.run(&["rollback", "billing/pw", "--to", "1"])
        .failed(3, "billing/pw");
}

#[test]
fn listings_are_one_secret_a_line() {
    let demo = Demo::new();
    assert_eq!(demo.run(&["ls"]).done().text(), "");
    for path in ["billing/b", "billing/a", "web/tls-key"] {
        demo.put(path, b"x");
    }
    let all = demo.run(&["ls"]).done();
    assert_eq!(all.text(), "billing/a\nbilling/b\nweb/tls-key\n");
    assert_eq!(demo.run(&["ls", "web"]).done().text(), "web/tls-key\n");
    demo.run(&["ls", "nosuch"]).failed(3, "nosuch");
    let json = demo.json(&["ls", "web"]);
    assert_eq!(json[0]["path"], "web/tls-key");
    assert_eq!(json[0]["size"], 1);
}

#[test]
fn json_carries_a_value_in_base64_with_its_version() {
    let demo = Demo::new();
    for value in [&b"\xff\x00 any"[..], b"a"] {
        demo.put("billing/pw", value);
        let got = demo.json(&["get", "billing/pw"]);
        let decoded = STANDARD.decode(got["value"].as_str().unwrap()).unwrap();
        assert_eq!(decoded, value);
        assert_eq!(got["path"], "billing/pw");
        assert!(got["version"].is_string());
    }
}

#[test]
fn what_put_refuses() {
    let demo = Demo::new();
    for value in ["canary-7f3a", "-canary-7f3a", "--canary-7f3a"] {
        demo.run(&["put", "billing/pw", value])
            .failed(2, "`ps` shows it");
    }
    let large = vec![7; (1 << 20) + 1];
    demo.feed(&["put", "billing/pw"], &large).failed(1, "1 MiB");
    demo.run(&["put", "billing/pw", "--file", &demo.arg("nosuch")])
        .failed(1, "nosuch");
    demo.run(&["put", "billing/pw", "--generate", "canary-7f3a"])
        .failed(2, "--generate");
    demo.run(&["put", "billing", "--generate", "uuid"])
        .failed(2, "SERVICE/NAME");
    demo.run(&["get", "billing/pw"]).failed(3, "billing/pw");
}

#[test]
fn values_come_from_files_and_from_nowhere() {
    let demo = Demo::new();
    fs::write(demo.path("key.pem"), b"\x00pem\n").unwrap();
    let put = demo
        .run(&["put", "web/key", "--file", &demo.arg("key.pem")])
        .done();
    assert_eq!(put.text(), "web/key: version 1\n");
    assert_eq!(demo.get("web/key"), b"\x00pem\n");

    let made = demo.json(&["put", "web/token", "--generate", "hex:16"]);
    assert_eq!(made["version"], "1");
    let token = demo.get("web/token");
    assert_eq!(token.len(), 32);
    assert!(token.iter().all(u8::is_ascii_hexdigit));
    demo.run(&["put", "web/token", "--generate", "hex:16"])
        .done();
    assert_ne!(demo.get("web/token"), token);
}

#[test]
fn many_at_once_and_what_to_delete_afterwards() {
    let demo = Demo::new();
    fs::write(demo.path("env"), "DB_PASSWORD='hunter 2'\nTOKEN=abc\n").unwrap();
    let imported = demo
        .run(&["import", "billing", "--env", &demo.arg("env")])
        .done();
    assert!(
        imported.stderr.contains("2 imported"),
        "{}",
        imported.stderr
    );
    assert!(
        imported.stderr.contains(&demo.arg("env")),
        "{}",
        imported.stderr
    );
    assert!(!imported.stderr.contains("hunter"), "{}", imported.stderr);
    assert_eq!(demo.get("billing/DB_PASSWORD"), b"hunter 2");

    fs::create_dir(demo.path("folder")).unwrap();
    fs::write(demo.path("folder/cert.pem"), b"\xff\n").unwrap();
    demo.run(&["import", "web", "--dir", &demo.arg("folder")])
        .done();
    assert_eq!(demo.get("web/cert.pem"), b"\xff\n");

    fs::write(demo.path("doc.json"), r#"{"user": "bob", "port": 5432}"#).unwrap();
    let done = demo.json(&["import", "db", "--json", &demo.arg("doc.json")]);
    assert_eq!(done.as_array().unwrap().len(), 2);
    assert_eq!(demo.get("db/user"), b"bob");
    assert_eq!(demo.get("db/port"), b"5432");

    fs::write(demo.path("bad.json"), r#"{"user": canary-7f3a}"#).unwrap();
    demo.run(&["import", "db", "--json", &demo.arg("bad.json")])
        .failed(1, "bad.json");
}

#[test]
fn an_import_that_fails_on_its_way_imports_nothing() {
    let demo = Demo::new();
    demo.edit("config.toml", |text| {
        format!("{text}\n[services.db]\nsource = \"local:db\"\nallow = [{{ uid = 0 }}]\n[services.db.secrets]\nuser = \"local:db/record#user\"\n")
    });
    fs::write(demo.path("env"), "first='canary-7f3a'\nuser=bob\n").unwrap();
    demo.run(&["import", "db", "--env", &demo.arg("env")])
        .failed(2, "db/user: is a part of local:db/record#user");
    demo.run(&["get", "db/first"]).failed(3, "db/first");

    fs::create_dir(demo.path("folder")).unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(demo.path(&format!("folder/{name}")), vec![b'x'; 1 << 20]).unwrap();
    }
    demo.run(&["import", "web", "--dir", &demo.arg("folder")])
        .failed(1, "import them in parts");
}

#[test]
fn forty_writers_at_once_lose_nothing() {
    let demo = Demo::new();
    std::thread::scope(|scope| {
        for n in 0..40 {
            let demo = &demo;
            scope.spawn(move || demo.put(&format!("many/n{n}"), format!("value {n}").as_bytes()));
        }
    });
    let listed = demo.run(&["ls", "many"]).done();
    assert_eq!(listed.text().lines().count(), 40);
    for n in [0, 20, 39] {
        let value = format!("value {n}");
        assert_eq!(demo.get(&format!("many/n{n}")), value.as_bytes());
    }
}
