//! export, restore, rekey, and a store that was damaged.

use std::fs;

use crate::Demo;

#[test]
fn a_copy_brings_back_what_was_lost() {
    let demo = Demo::new();
    demo.put("billing/pw", b"canary-7f3a");
    demo.put("billing/pw", b"second");
    let copy = demo.arg("backup.age");
    demo.run(&["export", &copy]).done();
    let bytes = fs::read(&copy).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1"));
    demo.run(&["export", &copy]).failed(1, "backup.age");
    assert_eq!(fs::read(&copy).unwrap(), bytes);

    demo.run(&["rm", "billing/pw"]).done();
    demo.put("billing/later", b"x");
    demo.run(&["restore", &copy]).failed(1, "--replace");
    let stored = demo.json(&["restore", &copy, "--replace"]);
    assert_eq!(stored["secrets"], 1);
    assert_eq!(demo.get("billing/pw"), b"second");
    let first = demo.run(&["get", "billing/pw", "--version", "1"]).done();
    assert_eq!(first.stdout, b"canary-7f3a");
    demo.run(&["get", "billing/later"])
        .failed(3, "billing/later");

    fs::write(demo.path("cut.age"), &bytes[..bytes.len() - 10]).unwrap();
    demo.run(&["restore", &demo.arg("cut.age"), "--replace"])
        .failed(1, "restored");
    demo.run(&["restore", &demo.arg("nosuch"), "--replace"])
        .failed(1, "nosuch");
    assert_eq!(demo.get("billing/pw"), b"second");
}

#[test]
fn another_identity_opens_everything_and_the_old_one_nothing() {
    let demo = Demo::new();
    demo.put("billing/pw", b"value");
    let old = fs::read_to_string(demo.path("identity.txt")).unwrap();
    let copy = demo.arg("backup.age");
    demo.run(&["export", &copy]).done();
    let stored = demo.json(&["rekey"]);
    assert_eq!(stored["recipients"].as_array().unwrap().len(), 1);
    let new = fs::read_to_string(demo.path("identity.txt")).unwrap();
    assert_eq!(new.matches("AGE-SECRET-KEY-1").count(), 1);
    assert_ne!(old, new);
    assert_eq!(demo.get("billing/pw"), b"value");

    fs::write(demo.path("identity.txt"), &old).unwrap();
    demo.run(&["get", "billing/pw"]).failed(5, "store.age");
    fs::write(demo.path("identity.txt"), &new).unwrap();

    // What the old one opens is not lost to whoever kept it.
    let restore = ["restore", copy.as_str(), "--replace"];
    demo.run(&restore)
        .failed(1, "as a line to the identity file");
    demo.edit("identity.txt", |new| new + &old);
    demo.run(&restore).done();
    assert_eq!(demo.get("billing/pw"), b"value");

    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let stored = demo.json(&["rekey", "--recipient", recipient]);
    assert!(
        stored["recipients"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one == recipient)
    );
    assert_eq!(demo.get("billing/pw"), b"value");
    demo.run(&["rekey", "--recipient", "canary-7f3a"])
        .failed(2, "--recipient");
}

#[test]
fn a_rekey_that_ended_early_is_done_again() {
    let demo = Demo::new();
    demo.put("billing/pw", b"value");
    let old = fs::read_to_string(demo.path("identity.txt")).unwrap();
    demo.run(&["rekey"]).done();
    let new = fs::read_to_string(demo.path("identity.txt")).unwrap();
    // As it is left behind by an end before the store was rekeyed, or after it.
    for (first, second) in [(&old, &new), (&new, &old)] {
        fs::write(demo.path("identity.txt"), format!("{first}{second}")).unwrap();
        assert_eq!(demo.get("billing/pw"), b"value");
    }
    // A key that was about to be written must not outlive the rekey that forgets it.
    let left = demo.path(".identity.txt.new");
    fs::write(&left, &new).unwrap();
    demo.run(&["rekey"]).done();
    assert!(!left.exists());
    let last = fs::read_to_string(demo.path("identity.txt")).unwrap();
    assert_eq!(last.matches("AGE-SECRET-KEY-1").count(), 1);
    assert_eq!(demo.get("billing/pw"), b"value");
}

#[test]
fn of_many_rekeys_at_once_none_locks_the_store_for_ever() {
    for _ in 0..4 {
        let demo = Demo::new();
        demo.put("billing/pw", b"value");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| demo.run(&["rekey"]));
            }
        });
        assert_eq!(demo.get("billing/pw"), b"value");
    }
}

#[test]
fn doctor_finds_damage_and_mends_what_can_be_mended() {
    let demo = Demo::new();
    demo.put("billing/one", b"one");
    demo.put("billing/two", b"two");
    demo.run(&["doctor"]).done();

    let index = demo.path("store.age");
    let mut bytes = fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&index, bytes).unwrap();
    demo.run(&["get", "billing/one"])
        .failed(5, "doctor --repair");
    let sick = demo.run(&["doctor"]);
    assert_eq!(sick.code, 1);
    assert!(sick.text().contains("store.age"), "{}", sick.text());

    demo.run(&["doctor", "--repair"]).done();
    assert_eq!(demo.get("billing/one"), b"one");
    demo.run(&["doctor"]).done();
}
