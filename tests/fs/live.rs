//! What happens to the tree while it is in use: values that change, and whoever waits for that.

use std::ffi::OsStr;

use secretfs::cache::legacy::Gap;
use secretfs::fs::{Attr, Fh, FsError, Ino, Readiness, Reply, Waiter};

use crate::callers::caller;
use crate::faulty::Weather;
use crate::world::World;
use crate::{SERVICES, world};

const CURRENT: Readiness = Readiness {
    outdated: false,
    taken: false,
};
const OUTDATED: Readiness = Readiness {
    outdated: true,
    taken: false,
};

fn poll(world: &World, fh: Fh, waiter: u64) -> Readiness {
    world.tree.poll(fh, Some(Waiter(waiter))).unwrap()
}

/// Whether the name `plain` has changed hands. (So has another one that comes from the same place.)
fn moved(world: &World) -> bool {
    world.kernel.names().contains(&"plain".to_owned())
}

async fn look_up(world: &World, parent: Ino, name: &str) -> Reply<Attr> {
    let found = world.tree.lookup(caller(1), parent, OsStr::new(name));
    found.wait().await
}

#[tokio::test]
async fn each_generation_has_an_inode_of_its_own_with_its_size_from_the_start() {
    let world = world();
    let mut before = world.ino("app/plain").await;
    world.open(1, before).await.unwrap();
    for value in ["longer than before", "", "xs"] {
        world.put("a:app/plain", value).await;
        assert!(moved(&world), "{value}");
        let parent = world.ino("app").await;
        let attr = look_up(&world, parent, "plain").await.unwrap();
        world.tree.looked_up(attr.ino);
        assert_ne!(attr.ino, before, "{value}");
        assert_eq!(attr.size, u64::try_from(value.len()).unwrap());
        assert_eq!(attr.links, 1);
        let old = world.tree.getattr(caller(9), before).wait().await.unwrap();
        assert_eq!(old.links, 0, "it has no name any more");
        before = attr.ino;
    }
}

#[tokio::test]
async fn a_change_that_changes_nothing_moves_no_name() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    let reference = "a:app/plain".parse().unwrap();
    for change in [secretfs::fs::Change::Written, secretfs::fs::Change::Perhaps] {
        world.tree.changed([&reference], change).await;
    }
    assert!(!moved(&world));
    assert_eq!(world.ino("app/plain").await, ino);
    assert_eq!(poll(&world, opened.fh, 1), CURRENT);
}

#[tokio::test]
async fn what_nobody_can_watch_moves_no_name_and_costs_nothing() {
    let world = world();
    for round in 0..10 {
        world.put("a:app/plain", &round.to_string()).await;
        world.put("b:free/second", &round.to_string()).await;
    }
    assert_eq!(world.asked(), (0, 0));
    assert!(world.kernel.names().is_empty());
    // With the folder in the kernel somebody may wait there for a name's first value.
    world.ino("app").await;
    world.put("a:app/brand-new", "1").await;
    assert_eq!(world.kernel.names(), ["brand-new"]);
    assert_eq!(world.asked().0, 0, "nobody has asked for the value yet");
    assert_eq!(world.cat(1, "app/brand-new").await.unwrap(), "1");
}

#[tokio::test]
async fn a_name_that_is_gone_goes_and_one_of_the_config_s_own_stays() {
    let world = world();
    let plain = world.ino("app/plain").await;
    let handle = world.open(1, plain).await.unwrap();
    let bound = world.ino("app/pass").await;
    world.open(1, bound).await.unwrap();
    for (place, name) in [("a:app/plain", "plain"), ("a:x/record", "pass")] {
        let reference: secretfs::backend::Reference = place.parse().unwrap();
        world.a.remove(&reference.path);
        let perhaps = secretfs::fs::Change::Perhaps;
        world.tree.changed([&reference], perhaps).await;
        assert!(world.kernel.names().contains(&name.to_owned()), "{name}");
    }
    let parent = world.ino("app").await;
    let gone = look_up(&world, parent, "plain").await;
    assert_eq!(gone.unwrap_err(), FsError::Absent);
    let stays = look_up(&world, parent, "pass").await.unwrap();
    assert_ne!(stays.ino, bound);
    assert_eq!(world.open(1, stays.ino).await.unwrap_err(), FsError::Absent);
    // The old value is not the current one, also where there is none.
    assert_eq!(poll(&world, handle.fh, 1), OUTDATED);
    assert_eq!(world.read(1, handle).unwrap(), "plain");
}

#[tokio::test]
async fn a_handle_that_is_polled_is_woken_by_each_newer_value_until_it_is_closed() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let first = world.open(1, ino).await.unwrap();
    let other = world.open(2, ino).await.unwrap();
    assert_eq!(poll(&world, first.fh, 11), CURRENT);
    assert_eq!(poll(&world, other.fh, 12), CURRENT);
    // Nobody is forgotten who asks twice, and nobody is woken twice.
    assert_eq!(poll(&world, first.fh, 11), CURRENT);
    world.put("a:app/plain", "second").await;
    let mut woken = world.kernel.woken();
    woken.sort_by_key(|waiter| waiter.0);
    assert_eq!(woken, [Waiter(11), Waiter(12)]);
    // It stays so for as long as the handle is open.
    assert_eq!(poll(&world, first.fh, 11), OUTDATED);
    assert_eq!(poll(&world, first.fh, 11), OUTDATED);
    let ino = world.ino("app/plain").await;
    let second = world.open(1, ino).await.unwrap();
    assert_eq!(poll(&world, second.fh, 13), CURRENT);
    // Whoever is gone is not woken.
    world.tree.release(first.fh);
    world.tree.release(other.fh);
    world.put("a:app/plain", "third").await;
    assert_eq!(world.kernel.woken(), [Waiter(13)]);
    assert_eq!(world.tree.poll(first.fh, None), Err(FsError::BadHandle));
}

#[tokio::test]
async fn who_finds_a_newer_value_wakes_the_others_whatever_way_it_came() {
    // Backend `a` is asked again when the TTL is over, and says nothing of itself.
    let ways = ["open", "bind", "get"];
    for way in ways {
        let world = world();
        let old = world.ino("app/plain").await;
        let handle = world.open(1, old).await.unwrap();
        assert_eq!(poll(&world, handle.fh, 7), CURRENT);
        world.a.put("app/plain", "second");
        world.later(61);
        match way {
            "open" => drop(world.open(1, world.ino("app/plain").await).await.unwrap()),
            "bind" => drop(world.open(1, old).await.unwrap()),
            _ => drop(world.get(1, "app/plain").await.unwrap()),
        }
        assert_eq!(world.kernel.woken(), [Waiter(7)], "{way}");
        assert!(moved(&world), "{way}");
        assert_ne!(world.ino("app/plain").await, old, "{way}");
    }
}

#[tokio::test]
async fn who_watches_a_field_is_woken_when_another_of_its_record_is_found_changed() {
    let world = world();
    world.reload(&SERVICES.replace("lost = ", "user = \"a:x/record#user\"\nlost = "));
    let pass = world.ino("app/pass").await;
    let handle = world.open(1, pass).await.unwrap();
    assert_eq!(world.cat(1, "app/user").await.unwrap(), "bo");
    assert_eq!(poll(&world, handle.fh, 7), CURRENT);
    world.a.put("x/record", r#"{"user":"al","pass":"s4"}"#);
    world.later(61);
    assert_eq!(world.cat(1, "app/user").await.unwrap(), "al");
    let keeping_up = tokio::spawn(world.tree.clone().keep_up());
    let renamed = async {
        while !world.kernel.names().contains(&"pass".to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    let renamed = tokio::time::timeout(std::time::Duration::from_secs(30), renamed);
    renamed.await.unwrap();
    keeping_up.abort();
    assert!(world.kernel.woken().contains(&Waiter(7)));
    assert_eq!(poll(&world, handle.fh, 7), OUTDATED);
    assert_eq!(world.cat(1, "app/pass").await.unwrap(), "s4");
    assert_eq!(world.a.reads(), 2);
}

#[tokio::test]
async fn rule_17_a_change_higher_up_counts_for_what_was_inherited_too() {
    const CONFIG: &str = r#"
[services.app]
source = "a:app"
allow = [{ uid = 1 }]
[services.app.secrets]
either = { from = ["a:x/first", "a:x/second"] }
"#;
    for restarted in [false, true] {
        let mut world = World::new(&[("x/second", "below")], &[], CONFIG);
        assert_eq!(world.cat(1, "app/either").await.unwrap(), "below");
        if restarted {
            world.restart(CONFIG, Gap::Moment, 1);
        }
        // It is announced, and cannot be asked for.
        world.a.weather(Weather::Down);
        world.put("a:x/first", "above").await;
        let old = world.cat(1, "app/either").await;
        assert!(old.is_err(), "{old:?} stands in for what has changed");
    }
}
