//! Who may do what, what is written down, and what everyone sees afterwards: the handler over a real store.

use std::collections::HashMap;
use std::path::Path;

use super::*;
use crate::access::{Access, Authority};
use crate::audit::Reader;
use crate::backend::Backend;
use crate::backend::store::Identity;
use crate::cache::Times;
use crate::caller::{CallerError, Cgroup};
use crate::config::{Config, accounts::Listed};
use crate::control::Interrupted;
use crate::control::protocol::{AuditQuery, Subject};
use crate::fs::{Catalogue, Ledger};
use crate::secret::SealedMemory;
use crate::sys::{Gid, Tid, Uid};

mod following;

const READER: u32 = 100;
const MANAGER: u32 = 200;
const STRANGER: u32 = 300;
const ROOT: u32 = 0;

#[derive(Debug)]
struct Nobody;

impl Lookup for Nobody {
    fn groups(&self, _: Tid) -> Result<Vec<Gid>, CallerError> {
        Ok(Vec::new())
    }

    fn cgroup(&self, _: Tid) -> Result<Cgroup, CallerError> {
        Ok(Cgroup::default())
    }

    fn comm(&self, _: Tid) -> Option<String> {
        None
    }
}

mod revoked;
mod status;

/// What it was told, why it cannot write to its state folder, and why not to the file for a start without a network.
#[derive(Debug, Default)]
struct FakeDaemon(
    std::sync::Mutex<Vec<&'static str>>,
    std::sync::Mutex<Option<String>>,
    std::sync::Mutex<Option<String>>,
);

impl Daemon for FakeDaemon {
    fn upgrade(&self) -> Result<(), String> {
        Ok(())
    }

    fn reload(&self) -> Result<Reloaded, String> {
        self.0.lock().unwrap().push("reload");
        Ok(Reloaded {
            changes: Vec::new(),
            unknown: Vec::new(),
        })
    }

    fn keep_revocations(&self) -> Result<(), String> {
        self.0.lock().unwrap().push("keep");
        self.1.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn renew_offline(&self) -> Result<(), String> {
        self.2.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn stop(&self) {
        self.0.lock().unwrap().push("stop");
    }

    fn unknown(&self) -> Vec<String> {
        Vec::new()
    }

    fn signals(&self, backend: &Name) -> Option<Report> {
        (backend.as_str() == "local").then_some(Report {
            polled: Some(Timestamp::UNIX_EPOCH),
            heard: None,
            in_use: 5,
            refused: 2,
        })
    }

    fn offline(&self) -> Option<OfflineStatus> {
        let trouble = self.2.lock().unwrap().clone();
        trouble.map(|trouble| OfflineStatus {
            path: "/offline.age".to_owned(),
            secrets: 0,
            written: None,
            trouble: Some(trouble),
        })
    }

    fn broker(&self) -> Option<BrokerReport> {
        Some(BrokerReport {
            url: "tls://n.example:4222".to_owned(),
            connected: None,
            trouble: Some("no route".to_owned()),
        })
    }

    fn mount(&self) -> String {
        "/secrets".to_owned()
    }

    fn since(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
}

struct World {
    handler: Handler,
    daemon: Arc<FakeDaemon>,
    folder: tempfile::TempDir,
    key: SecretBytes,
}

fn world(authority: Authority) -> World {
    world_with(authority, "")
}

fn world_with(authority: Authority, sections: &str) -> World {
    world_over(authority, sections, |store| Arc::new(store.clone()))
}

/// The same, whose values come from another backend than the store.
fn world_over(
    authority: Authority,
    sections: &str,
    backend: impl FnOnce(&Store) -> Arc<dyn Backend>,
) -> World {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let clock = Clock::default();
    let store = Store::create(&at("store.age"), &Identity::generate(), clock.clone()).unwrap();
    let text = format!(
        r#"
mount = "/secrets"
runtime = "{0}/run"
state = "{0}/state"
manage = [{{ uid = {ROOT} }}]
[backends.local]
type = "store"
path = "{0}/store.age"
identity = {{ file = "{0}/identity.txt" }}
[services.billing]
source = "local:billing"
allow = [{{ uid = {READER} }}]
manage = [{{ uid = {MANAGER} }}]
[services.billing.secrets]
elsewhere = "local:shared/one"
part = "local:billing/record#password"
[services.shared]
source = "local:shared"
allow = [{{ uid = {ROOT} }}]
[audit]
path = "{0}/audit.jsonl"
{sections}
"#,
        folder.path().display()
    );
    std::fs::write(at("config.toml"), &text).unwrap();
    let config = Config::parse(&text, Path::new("config.toml")).unwrap();
    let accounts = Listed::default();
    let key = store.audit_key();
    let audit = Audit::start(&config.audit, &key, clock.clone()).unwrap();
    let access = Access::new(
        authority,
        config.policy(&accounts).0,
        Arc::new(Nobody),
        audit.clone(),
        false,
        clock.clone(),
    );
    let local: Name = "local".parse().unwrap();
    let backend = backend(&store);
    let times = Times {
        ttl: config.cache.ttl,
        timeout: config.cache.timeout,
    };
    let backends = HashMap::from([(local.clone(), backend)]);
    let cache = Arc::new(Cache::new(
        backends,
        times,
        1,
        SealedMemory::new().unwrap(),
        clock.clone(),
    ));
    let tree = Tree::new(
        Catalogue::new(&config, &accounts),
        Arc::new(access),
        Arc::clone(&cache),
        Ledger::nowhere(),
        clock.timestamp(),
    );
    let daemon = Arc::<FakeDaemon>::default();
    let handler = Handler::new(Parts {
        tree,
        cache,
        stores: BTreeMap::from([(local, store)]),
        audit,
        audit_target: config.audit.target.clone(),
        audit_key: SecretBytes::new(key.expose().to_vec()),
        lookup: Arc::new(Nobody),
        daemon: Some(daemon.clone()),
        clock,
    });
    World {
        handler,
        daemon,
        folder,
        key,
    }
}

impl World {
    async fn call(&self, uid: u32, request: Request, body: Body) -> Result<Answer, Failure> {
        let (events, mut happening) = mpsc::channel(8);
        tokio::spawn(async move { while happening.recv().await.is_some() {} });
        let mut caller = Caller::new(Uid(uid), Gid(uid), Tid(std::process::id()));
        caller.groups = Some(Vec::new());
        caller.cgroup = Some(Cgroup::default());
        self.handler
            .handle(caller, request, Exchange { body, events })
            .await
    }

    async fn put(&self, uid: u32, path: &str, value: &[u8]) -> Result<Answer, Failure> {
        let put = Request::Put {
            path: path.parse().unwrap(),
        };
        let value = SecretBytes::new(value.to_vec());
        self.call(uid, put, Body::Value(value)).await
    }

    async fn get(&self, uid: u32, path: &str) -> Result<Vec<u8>, Failure> {
        let get = Request::Get {
            path: path.parse().unwrap(),
            version: None,
        };
        let answer = self.call(uid, get, Body::Empty).await?;
        Ok(answer.value.unwrap().expose().to_vec())
    }

    /// What the log says of commands, as it is on the disk now.
    fn logged(&self) -> Vec<String> {
        let path = self.folder.path().join("audit.jsonl");
        let mut reader = Reader::files(&path, Some(&self.key)).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = reader.read().unwrap() {
            assert!(line.verified);
            if let crate::audit::Body::Entry(entry) = line.record.body {
                let event = entry.event;
                let path = event.path.as_deref().unwrap_or("-");
                lines.push(format!(
                    "{} {path} {:?} {}",
                    event.action, event.outcome, event.uid
                ));
            }
        }
        lines
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_see_into_no_service_does_not_hear_which_there_are() {
    let sections = format!("[defaults]\nsource = \"local\"\nallow = [{{ uid = {READER} }}]\n");
    let world = world_with(Authority::Policy, &sections);
    world.put(ROOT, "payroll/one", b"x").await.unwrap();
    let list = async |uid, service: &str| {
        let service = Some(service.parse().unwrap());
        let listed = world.call(uid, Request::List { service }, Body::Empty);
        listed.await.map(drop).map_err(|failure| failure.kind)
    };
    assert_eq!(list(STRANGER, "payroll").await, Err(Kind::Denied));
    assert_eq!(list(STRANGER, "nothing").await, Err(Kind::Denied));
    for uid in [READER, ROOT] {
        assert_eq!(list(uid, "payroll").await, Ok(()));
        assert_eq!(list(uid, "nothing").await, Err(Kind::Absent));
        assert_eq!(list(uid, "billing").await, Ok(()));
    }
    let all = Request::List { service: None };
    let seen = world.call(STRANGER, all, Body::Empty).await.unwrap();
    assert_eq!(seen.json, serde_json::json!([]));
}

fn path(text: &str) -> SecretPath {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_asks_its_rules() {
    let version = Version::new("1");
    let one = path("billing/one");
    // Who may, of reader, manager of the service, root (who manages everything), and a stranger.
    type Make = Box<dyn Fn() -> (Request, Body)>;
    let simple = |request: Request| -> Make { Box::new(move || (request.clone(), Body::Empty)) };
    let table: Vec<(Make, [bool; 4])> = vec![
        (
            simple(Request::Get {
                path: one.clone(),
                version: None,
            }),
            [true, false, false, false],
        ),
        (
            simple(Request::Get {
                path: one.clone(),
                version: Some(version.clone()),
            }),
            [true, false, false, false],
        ),
        (
            Box::new({
                let path = one.clone();
                move || {
                    let value = SecretBytes::new(b"x".to_vec());
                    (Request::Put { path: path.clone() }, Body::Value(value))
                }
            }),
            [false, true, true, false],
        ),
        (
            simple(Request::Rollback {
                path: one.clone(),
                to: version,
            }),
            [false, true, true, false],
        ),
        (
            simple(Request::History { path: one.clone() }),
            [true, true, true, false],
        ),
        (
            simple(Request::List {
                service: Some("billing".parse().unwrap()),
            }),
            [true, true, true, false],
        ),
        (
            simple(Request::Explain {
                path: one.clone(),
                subject: None,
            }),
            [true, true, true, true],
        ),
        (
            simple(Request::Explain {
                path: one.clone(),
                subject: Some(Subject::Ids {
                    uid: READER,
                    gid: 1,
                    groups: Vec::new(),
                }),
            }),
            [false, true, true, false],
        ),
        (
            simple(Request::Export { backend: None }),
            [false, false, true, false],
        ),
        (
            Box::new(|| {
                let text = Identity::generate().to_text(Timestamp::UNIX_EPOCH);
                let rekey = Request::Rekey {
                    backend: None,
                    recipients: Vec::new(),
                };
                (rekey, Body::Value(text))
            }),
            [false, false, true, false],
        ),
        (simple(Request::Status {}), [false, false, true, false]),
        (simple(Request::Doctor {}), [false, false, true, false]),
        (
            simple(Request::Audit(AuditQuery::default())),
            [false, false, true, false],
        ),
        (simple(Request::Reload {}), [false, false, true, false]),
        (simple(Request::Upgrade {}), [false, false, true, false]),
        (simple(Request::Unmount {}), [false, false, true, false]),
    ];
    let world = world(Authority::Policy);
    world
        .put(ROOT, "billing/one", b"canary-7f3a")
        .await
        .unwrap();
    for (make, may) in table {
        for (uid, may) in [READER, MANAGER, ROOT, STRANGER].into_iter().zip(may) {
            let (request, body) = make();
            let shown = format!("uid {uid}: {request:?}");
            match world.call(uid, request, body).await {
                Ok(_) => assert!(may, "{shown}"),
                Err(failure) => {
                    assert!(!may, "{shown}: {failure}");
                    assert_eq!(failure.kind, Kind::Denied, "{shown}: {failure}");
                    assert!(!failure.message.contains("canary"), "{shown}");
                }
            }
        }
    }
    // These leave nothing to ask a second time for.
    for uid in [READER, STRANGER] {
        let remove = Request::Remove {
            path: one.clone(),
            version: None,
        };
        let failure = world.call(uid, remove, Body::Empty).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Denied);
    }
    for uid in [READER, MANAGER, STRANGER] {
        let restore = Request::Restore {
            backend: None,
            replace: true,
        };
        let (_, stream) = mpsc::channel(1);
        let failure = world
            .call(uid, restore, Body::Stream(stream))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, Kind::Denied);
    }
    assert_eq!(*world.daemon.0.lock().unwrap(), ["reload", "stop"]);
    let log = world.logged();
    for denied in [
        "get billing/one Denied 300",
        "put billing/one Denied 100",
        "history billing/one Denied 300",
        "explain billing/one Denied 100",
        "export - Denied 200",
        "unmount - Denied 300",
    ] {
        assert!(log.iter().any(|line| line == denied), "{denied}: {log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_on_the_disk_and_seen_when_the_answer_comes() {
    let world = world(Authority::Policy);
    for value in [&b"one"[..], b"two", b"", b"\0\xff\n"] {
        world.put(MANAGER, "billing/one", value).await.unwrap();
        assert_eq!(
            world.logged().last().unwrap(),
            "put billing/one Allowed 200"
        );
        assert_eq!(world.get(READER, "billing/one").await.unwrap(), value);
        assert_eq!(
            world.logged().last().unwrap(),
            "get billing/one Allowed 100"
        );
    }
    let rollback = Request::Rollback {
        path: path("billing/one"),
        to: Version::new("1"),
    };
    world.call(MANAGER, rollback, Body::Empty).await.unwrap();
    assert_eq!(world.get(READER, "billing/one").await.unwrap(), b"one");
    let remove = Request::Remove {
        path: path("billing/one"),
        version: None,
    };
    world.call(MANAGER, remove, Body::Empty).await.unwrap();
    let failure = world.get(READER, "billing/one").await.unwrap_err();
    assert_eq!(failure.kind, Kind::Absent, "{failure}");
    assert_eq!(world.logged().last().unwrap(), "get billing/one Absent 100");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_written_where_its_binding_points() {
    let world = world(Authority::Policy);
    world
        .put(MANAGER, "billing/elsewhere", b"bound")
        .await
        .unwrap();
    assert_eq!(world.get(ROOT, "shared/one").await.unwrap(), b"bound");
    assert_eq!(
        world.get(READER, "billing/elsewhere").await.unwrap(),
        b"bound"
    );
    // Everyone who is shown the same place sees a change of it at once.
    world.put(ROOT, "shared/one", b"changed").await.unwrap();
    assert_eq!(
        world.get(READER, "billing/elsewhere").await.unwrap(),
        b"changed"
    );

    let failure = world
        .put(MANAGER, "billing/part", b"canary-7f3a")
        .await
        .unwrap_err();
    assert_eq!(failure.kind, Kind::Usage, "{failure}");
    assert!(
        failure.message.contains("local:billing/record#password"),
        "{failure}"
    );
    let failure = world
        .put(ROOT, "nosuch/one", b"canary-7f3a")
        .await
        .unwrap_err();
    assert_eq!(failure.kind, Kind::Usage, "{failure}");
    assert!(failure.message.contains("[services.nosuch]"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_is_authority_enough_and_is_named_in_the_log() {
    let world = world(Authority::Identity);
    world.put(STRANGER, "billing/one", b"one").await.unwrap();
    assert_eq!(world.get(STRANGER, "billing/one").await.unwrap(), b"one");
    let text = std::fs::read_to_string(world.folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(text.matches(r#""rule":"identity""#).count(), 2, "{text}");
    // What the policy says is another matter.
    let explain = Request::Explain {
        path: path("billing/one"),
        subject: None,
    };
    let answer = world.call(STRANGER, explain, Body::Empty).await.unwrap();
    assert_eq!(answer.json["allowed"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_breaks_off_changes_nothing() {
    let world = world(Authority::Policy);
    world.put(ROOT, "shared/one", b"kept").await.unwrap();
    for end in [Some(Err(Interrupted)), None] {
        let (parts, stream) = mpsc::channel(4);
        parts
            .send(Ok(b"age-encryption.org/v1\n".to_vec()))
            .await
            .unwrap();
        if let Some(end) = end {
            parts.send(end).await.unwrap();
        }
        drop(parts);
        let restore = Request::Restore {
            backend: None,
            replace: true,
        };
        let failure = world
            .call(ROOT, restore, Body::Stream(stream))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, Kind::Failed, "{failure}");
        assert_eq!(world.logged().last().unwrap(), "restore - Error 0");
        assert_eq!(world.get(ROOT, "shared/one").await.unwrap(), b"kept");
    }
}
