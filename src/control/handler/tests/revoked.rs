//! revoke and unrevoke: who may, in which order, and what everyone sees afterwards.

use std::time::Duration;

use super::*;
use crate::control::answers::{Status, Unrevoked};
use crate::policy::revocation::{Revocation, Target};

const ONE: &str = "billing/one";

fn secret(text: &str) -> Target {
    Target::Secret(path(text))
}

fn version(number: &str) -> Target {
    Target::Version(path(ONE), Version::new(number))
}

fn service(text: &str) -> Target {
    Target::Service(text.parse().unwrap())
}

impl World {
    async fn revoke(&self, uid: u32, target: &Target) -> Result<Revocation, Failure> {
        self.revoke_for(uid, target, None).await
    }

    async fn revoke_for(
        &self,
        uid: u32,
        target: &Target,
        seconds: Option<u64>,
    ) -> Result<Revocation, Failure> {
        let target = target.clone();
        let revoke = Request::Revoke { target, seconds };
        let answer = self.call(uid, revoke, Body::Empty).await?;
        Ok(serde_json::from_value(answer.json).unwrap())
    }

    async fn unrevoke(&self, uid: u32, target: &Target) -> Result<Unrevoked, Failure> {
        let target = target.clone();
        let unrevoke = Request::Unrevoke { target };
        let answer = self.call(uid, unrevoke, Body::Empty).await?;
        Ok(serde_json::from_value(answer.json).unwrap())
    }

    async fn get_version(&self, number: &str) -> Result<Vec<u8>, Failure> {
        let get = Request::Get {
            path: path(ONE),
            version: Some(Version::new(number)),
        };
        let answer = self.call(READER, get, Body::Empty).await?;
        Ok(answer.value.unwrap().expose().to_vec())
    }

    /// What the daemon was told since the last time.
    fn told(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.daemon.0.lock().unwrap())
    }

    fn access(&self) -> &Access {
        self.handler.0.tree.access()
    }

    async fn with_two_versions() -> Self {
        let world = world(Authority::Policy);
        for value in [&b"first"[..], b"second"] {
            world.put(MANAGER, ONE, value).await.unwrap();
        }
        world.put(ROOT, "shared/one", b"shared").await.unwrap();
        world
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_s_manager_takes_away_what_is_the_service_s_and_nothing_else() {
    let world = World::with_two_versions().await;
    // Who may, of reader, manager of billing, root and stranger.
    let table = [
        (secret(ONE), [false, true, true, false]),
        (version("1"), [false, true, true, false]),
        (service("billing"), [false, true, true, false]),
        (secret("shared/one"), [false, false, true, false]),
        (service("shared"), [false, false, true, false]),
        (Target::User(Uid(READER)), [false, false, true, false]),
        (Target::All, [false, false, true, false]),
    ];
    for (target, may) in table {
        for (uid, may) in [READER, MANAGER, ROOT, STRANGER].into_iter().zip(may) {
            let kind = |failure: Failure| failure.kind;
            let expected = if may { Ok(()) } else { Err(Kind::Denied) };
            let revoked = world.revoke(uid, &target).await;
            assert_eq!(revoked.map(drop).map_err(kind), expected, "{uid} {target}");
            let lifted = world.unrevoke(uid, &target).await;
            assert_eq!(lifted.map(drop).map_err(kind), expected, "{uid} {target}");
        }
    }
    let log = world.logged();
    for line in [
        "revoke billing/one Allowed 200",
        "unrevoke billing Allowed 200",
        "revoke shared Denied 200",
        "revoke --all Denied 200",
        "unrevoke --uid 100 Denied 200",
        "revoke --uid 100 Allowed 0",
        "unrevoke --all Allowed 0",
    ] {
        assert!(log.iter().any(|one| one == line), "{line}: {log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_is_given_to_nobody_until_it_is_given_back() {
    let world = World::with_two_versions().await;
    for target in [
        secret(ONE),
        service("billing"),
        Target::User(Uid(READER)),
        Target::All,
    ] {
        assert_eq!(world.get(READER, ONE).await.unwrap(), b"second");
        world.told();
        let revocation = world.revoke(ROOT, &target).await.unwrap();
        assert_eq!((&revocation.target, revocation.by), (&target, Uid(ROOT)));
        assert_eq!(world.told(), ["keep"]);
        let line = format!("revoke {} Allowed 0", target.subject());
        assert_eq!(world.logged().last(), Some(&line));
        let wiped = target.covers(&path(ONE));
        let held = world.handler.0.cache.figures().values;
        assert_eq!(held == 0, wiped, "{target}: {held} values in memory");
        let failure = world.get(READER, ONE).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Denied);
        let mend = format!("secretfs unrevoke {}", target.words());
        assert!(failure.message.contains(&mend), "{failure}");
        let line = format!("get {ONE} Revoked {READER}");
        assert_eq!(world.logged().last(), Some(&line));
        // Its managers still do what they do.
        world.put(MANAGER, ONE, b"second").await.unwrap();
        let explain = Request::Explain {
            path: path(ONE),
            subject: None,
        };
        let explained = world.call(READER, explain, Body::Empty).await.unwrap();
        assert_eq!(explained.json["allowed"], false);
        let reason = explained.json["reason"].as_str().unwrap();
        assert!(reason.contains("is revoked since"), "{reason}");
        let status = world.call(ROOT, Request::Status {}, Body::Empty).await;
        let status: Status = serde_json::from_value(status.unwrap().json).unwrap();
        assert_eq!(status.revoked, std::slice::from_ref(&revocation));
        world.told();
        let done = world.unrevoke(ROOT, &target).await.unwrap();
        assert_eq!(done.lifted, revocation);
        assert_eq!(world.told(), ["keep"]);
    }
    assert_eq!(world.get(READER, ONE).await.unwrap(), b"second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_version_is_gone_and_does_not_come_back_by_another_number() {
    let world = World::with_two_versions().await;
    let failure = world.revoke(MANAGER, &version("2")).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Usage, "{failure}");
    assert!(
        failure.message.contains("put a new value first"),
        "{failure}"
    );
    assert_eq!(world.get(READER, ONE).await.unwrap(), b"second");
    world.revoke(MANAGER, &version("1")).await.unwrap();
    assert_eq!(world.get(READER, ONE).await.unwrap(), b"second");
    assert_eq!(world.get_version("2").await.unwrap(), b"second");
    let failure = world.get_version("1").await.unwrap_err();
    assert_eq!(failure.kind, Kind::Denied, "{failure}");
    assert_eq!(
        world.logged().last().unwrap(),
        "get billing/one Revoked 100"
    );
    let rollback = Request::Rollback {
        path: path(ONE),
        to: Version::new("1"),
    };
    let failure = world.call(MANAGER, rollback.clone(), Body::Empty).await;
    let failure = failure.unwrap_err();
    assert!(
        failure.message.contains("unrevoke billing/one --version 1"),
        "{failure}"
    );
    world.unrevoke(MANAGER, &version("1")).await.unwrap();
    assert_eq!(world.get_version("1").await.unwrap(), b"first");
    world.call(MANAGER, rollback, Body::Empty).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_down_stays_as_it_is_now_and_the_command_says_so() {
    let world = World::with_two_versions().await;
    *world.daemon.1.lock().unwrap() = Some("/state: no space left".to_owned());
    let failure = world.revoke(MANAGER, &secret(ONE)).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Failed);
    assert!(
        failure.message.contains("not survive a restart"),
        "{failure}"
    );
    assert!(failure.message.contains("no space left"), "{failure}");
    assert_eq!(
        world.logged().last().unwrap(),
        "revoke billing/one Error 200"
    );
    assert_eq!(world.get(READER, ONE).await.unwrap_err().kind, Kind::Denied);
    let failure = world.unrevoke(MANAGER, &secret(ONE)).await.unwrap_err();
    assert!(failure.message.contains("stays revoked"), "{failure}");
    assert_eq!(world.get(READER, ONE).await.unwrap_err().kind, Kind::Denied);
    *world.daemon.1.lock().unwrap() = None;
    world.unrevoke(MANAGER, &secret(ONE)).await.unwrap();
    world.get(READER, ONE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_may_still_be_on_the_disk_is_told_of_and_keeps_nobody_from_giving_back() {
    let world = World::with_two_versions().await;
    *world.daemon.2.lock().unwrap() = Some("/offline.age: no space left".to_owned());
    let failure = world.revoke(MANAGER, &secret(ONE)).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Failed);
    assert!(
        failure.message.contains("may still have a value") && failure.message.contains("no space"),
        "{failure}"
    );
    assert_eq!(world.get(READER, ONE).await.unwrap_err().kind, Kind::Denied);
    let doctor = world.call(ROOT, Request::Doctor {}, Body::Empty).await;
    let doctor = doctor.unwrap().json;
    let mut checks = doctor.as_array().unwrap().iter();
    let offline = checks.find(|check| check["check"] == "offline").unwrap();
    assert_eq!(offline["state"], "wrong");
    // Its revocation stands in the state folder, and so must its end.
    world.unrevoke(MANAGER, &secret(ONE)).await.unwrap();
    world.get(READER, ONE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_never_there_is_absent_and_one_that_was_is_not() {
    let sections = "[defaults]\nsource = \"local\"\nallow = [{ uid = 1 }]\n";
    let world = world_with(Authority::Policy, sections);
    world.put(ROOT, "payroll/one", b"x").await.unwrap();
    world.put(MANAGER, ONE, b"x").await.unwrap();
    let absent = [
        secret("billing/typo"),
        service("nothing"),
        secret("nothing/one"),
    ];
    for target in absent {
        let failure = world.revoke(ROOT, &target).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Absent, "{failure}");
        let now = world.handler.0.clock.timestamp();
        assert_eq!(world.access().revocations().in_force(now).count(), 0);
    }
    // In the config, in the store, a folder of the store.
    for target in [
        secret("billing/elsewhere"),
        secret(ONE),
        service("shared"),
        service("payroll"),
        secret("payroll/one"),
    ] {
        world.revoke(ROOT, &target).await.unwrap();
        world.unrevoke(ROOT, &target).await.unwrap();
    }
    // What was read and is removed may still be open.
    world.get(READER, ONE).await.unwrap();
    let remove = Request::Remove {
        path: path(ONE),
        version: None,
    };
    world.call(MANAGER, remove, Body::Empty).await.unwrap();
    world.revoke(MANAGER, &secret(ONE)).await.unwrap();
    world.unrevoke(MANAGER, &secret(ONE)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrevoke_lifts_what_it_names_and_says_what_stays() {
    let world = World::with_two_versions().await;
    let failure = world.unrevoke(ROOT, &Target::All).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Absent, "{failure}");
    for target in [
        Target::All,
        secret(ONE),
        secret("shared/one"),
        Target::User(Uid(READER)),
    ] {
        world.revoke(ROOT, &target).await.unwrap();
    }
    // A manager sees what bears on the service.
    let failure = world.unrevoke(MANAGER, &service("billing")).await;
    let failure = failure.unwrap_err();
    assert_eq!(failure.kind, Kind::Absent);
    assert!(
        failure.message.contains("everything, billing/one") && !failure.message.contains("user"),
        "{failure}"
    );
    let targets = |done: Unrevoked| -> Vec<String> {
        let still = done.still.into_iter();
        still.map(|one| one.target.to_string()).collect()
    };
    let done = world.unrevoke(ROOT, &Target::All).await.unwrap();
    assert_eq!(targets(done), ["billing/one", "shared/one", "user 100"]);
    let done = world.unrevoke(MANAGER, &secret(ONE)).await.unwrap();
    assert_eq!(targets(done), Vec::<String>::new());
    assert_eq!(world.get(READER, ONE).await.unwrap_err().kind, Kind::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_is_a_time_from_now() {
    let world = World::with_two_versions().await;
    let revocation = world.revoke_for(ROOT, &Target::All, Some(3600)).await;
    let revocation = revocation.unwrap();
    let until = revocation.since + Duration::from_secs(3600);
    assert_eq!(revocation.until, Some(until));
    for seconds in [0, u64::MAX] {
        let failure = world.revoke_for(ROOT, &Target::All, Some(seconds)).await;
        assert_eq!(failure.unwrap_err().kind, Kind::Usage, "{seconds}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(
    clippy::await_holding_lock,
    reason = "it is the disk that hangs while others go on"
)]
async fn a_revocation_is_in_force_before_it_is_written_down() {
    let world = World::with_two_versions().await;
    // The store's disk and the daemon's may hang; who is denied is denied at once.
    let turn = world.daemon.1.lock().unwrap();
    let target = secret(ONE);
    let revoking = world.revoke(MANAGER, &target);
    let reading = async {
        let mut reads = 0;
        while world.get(READER, ONE).await.is_ok() {
            reads += 1;
            assert!(reads < 10_000, "never denied");
        }
        drop(turn);
    };
    let (revoked, ()) = tokio::join!(revoking, reading);
    revoked.unwrap();
}
