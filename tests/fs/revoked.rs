//! What is taken away while the tree is in use.

use secretfs::backend::Version;
use secretfs::fs::{FsError, Ino};
use secretfs::policy::revocation::{Revocation, Target};
use secretfs::sys::Uid;

use crate::callers::caller;
use crate::world;
use crate::world::World;

fn revoke(world: &World, target: Target) {
    let revocation = Revocation {
        target,
        since: world.clock.timestamp(),
        until: None,
        by: Uid(0),
    };
    world.access.revoke(&revocation);
}

fn plain() -> Target {
    Target::Secret("app/plain".parse().unwrap())
}

#[tokio::test]
async fn a_revocation_that_comes_while_a_value_is_fetched_is_in_time() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.a.hold();
    let opening = tokio::spawn(world.tree.open(caller(1), ino, false).wait());
    while world.a.held() == 0 {
        tokio::task::yield_now().await;
    }
    revoke(&world, plain());
    world.a.let_go(0);
    let opened = opening.await.unwrap();
    assert_eq!(opened.unwrap_err(), FsError::Denied);
    assert_eq!(world.tree.figures().handles, 0);
    assert_eq!(world.log.lines(), ["1 open app/plain revoked"]);
}

#[tokio::test]
async fn an_open_file_is_read_no_further_and_no_backend_is_asked_for_what_is_revoked() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let held = world.open(1, ino).await.unwrap();
    revoke(&world, plain());
    let asked = world.asked();
    assert_eq!(world.read(1, held).unwrap_err(), FsError::Denied);
    assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Denied);
    assert_eq!(
        world.tree.access_mode(caller(1), ino, true, false, false),
        Err(FsError::Denied)
    );
    assert_eq!(world.asked(), asked);
    assert_eq!(world.cat(1, "app/cached").await.unwrap(), "cached");
    assert!(
        world
            .ls(1, "app")
            .await
            .unwrap()
            .contains(&"plain".to_owned())
    );
    world.access.unrevoke(&plain()).unwrap();
    assert_eq!(world.read(1, held).unwrap(), "plain");
}

#[tokio::test]
async fn of_a_secret_one_version_is_revoked_and_the_others_are_read() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let old = world.open(1, ino).await.unwrap();
    let name = std::ffi::OsStr::new("user.secretfs.version");
    let version = async |ino: Ino| {
        let text = world.tree.getxattr(caller(1), ino, name).wait().await;
        Version::new(String::from_utf8(text.unwrap()).unwrap())
    };
    let leaked = version(ino).await;
    world.put("a:app/plain", "renewed").await;
    let path = "app/plain".parse().unwrap();
    revoke(&world, Target::Version(path, leaked));
    assert_eq!(world.read(1, old).unwrap_err(), FsError::Denied);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "renewed");
}
