//! watch and wait: who hears what, when it ends, and that nothing falls between.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::backend::tests::faulty::{Faulty, Weather};
use crate::events::What;
use crate::policy::{Policy, ServicePolicy};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for what should not happen.
const WHILE: Duration = Duration::from_millis(150);

/// A command that lasts, and what it says meanwhile.
struct Running {
    ended: JoinHandle<Result<Answer, Failure>>,
    happening: mpsc::Receiver<Event>,
    held: Vec<u8>,
}

impl World {
    fn begin(&self, uid: u32, request: Request) -> Running {
        let (events, happening) = mpsc::channel(8);
        let mut caller = Caller::new(Uid(uid), Gid(uid), Tid(std::process::id()));
        caller.groups = Some(Vec::new());
        caller.cgroup = Some(Cgroup::default());
        let handler = self.handler.clone();
        let body = Body::Empty;
        let ended = tokio::spawn(async move {
            let exchange = Exchange { body, events };
            handler.handle(caller, request, exchange).await
        });
        Running {
            ended,
            happening,
            held: Vec::new(),
        }
    }

    /// A watch that sees everything from now on.
    async fn watch(&self, uid: u32) -> Running {
        let running = self.begin(uid, Request::Watch {});
        self.written(&format!("watch - Allowed {uid}")).await;
        running
    }

    /// A wait that has seen what is current.
    async fn wait(&self, uid: u32, path: &str) -> Running {
        let reads = self.listening();
        let path = path.parse().unwrap();
        let running = self.begin(uid, Request::Wait { path, after: None });
        eventually(|| self.listening() > reads).await;
        // It listens first and looks then; what it looks at is in the cache.
        tokio::time::sleep(WHILE).await;
        running
    }

    fn listening(&self) -> usize {
        self.events().listeners()
    }

    fn events(&self) -> &crate::events::Events {
        self.handler.0.tree.access().events()
    }

    /// How often a line stands in the log. Of two who end at once either may be the last.
    fn times(&self, line: &str) -> usize {
        let logged = self.logged();
        logged.iter().filter(|logged| *logged == line).count()
    }

    async fn written(&self, line: &str) {
        eventually(|| self.logged().iter().any(|logged| logged == line)).await;
    }

    fn tell(&self, what: What) {
        self.events().tell(|| what);
    }

    fn replace_policy(&self, change: impl FnOnce(&mut Policy)) {
        let text = std::fs::read_to_string(self.folder.path().join("config.toml")).unwrap();
        let config = Config::parse(&text, Path::new("config.toml")).unwrap();
        let mut policy = config.policy(&Listed::default()).0;
        change(&mut policy);
        let access = self.handler.0.tree.access();
        access.replace_policy(policy, access.edition());
    }

    async fn remove(&self, path: &str) {
        let remove = Request::Remove {
            path: path.parse().unwrap(),
            version: None,
        };
        self.call(ROOT, remove, Body::Empty).await.unwrap();
    }
}

impl Running {
    /// The next line of a stream.
    async fn line(&mut self) -> serde_json::Value {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            match timeout(SOON, self.happening.recv()).await.unwrap().unwrap() {
                Event::Chunk(bytes) => self.held.extend(bytes),
                event @ Event::Progress { .. } => panic!("{event:?}"),
            }
        }
    }

    async fn silent(&mut self) {
        let line = timeout(WHILE, self.happening.recv()).await;
        assert!(line.is_err(), "{line:?}");
    }

    async fn end(self) -> Result<Answer, Failure> {
        timeout(SOON, self.ended).await.unwrap().unwrap()
    }

    async fn changed(self) -> serde_json::Value {
        self.end().await.unwrap().json
    }
}

async fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came to that");
}

fn reloaded(change: &str) -> What {
    What::Reloaded {
        changes: vec![change.to_owned()],
    }
}

fn rotated(text: &str) -> What {
    What::Rotated {
        path: path(text),
        generation: Some(7),
        version: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_hears_what_they_manage_and_nobody_else_anything() {
    let world = world(Authority::Policy);
    for uid in [READER, STRANGER] {
        let failure = world.begin(uid, Request::Watch {}).end().await.unwrap_err();
        assert_eq!(failure.kind, Kind::Denied, "{failure}");
        assert!(failure.message.contains("manage"), "{failure}");
        let line = format!("watch - Denied {uid}");
        assert!(world.logged().contains(&line));
    }
    let (mut all, mut one) = (world.watch(ROOT).await, world.watch(MANAGER).await);
    world.tell(rotated("billing/one"));
    world.tell(rotated("shared/one"));
    world.tell(reloaded("x"));
    let denied = world.get(STRANGER, "billing/one").await.unwrap_err();
    assert_eq!(denied.kind, Kind::Denied);
    world.get(STRANGER, "shared/one").await.unwrap_err();
    world.tell(What::Missed { count: 3 });
    let mut heard = Vec::new();
    for _ in 0..6 {
        let line = all.line().await;
        let of = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        heard.push(format!("{} {}", of("event"), of("path")));
    }
    let everything = [
        "rotated billing/one",
        "rotated shared/one",
        "reloaded -",
        "denied billing/one",
        "denied shared/one",
        "missed -",
    ];
    assert_eq!(heard, everything);
    let line = one.line().await;
    assert_eq!(
        (&line["event"], &line["generation"]),
        (&"rotated".into(), &7.into())
    );
    let line = one.line().await;
    assert_eq!(
        (&line["event"], &line["uid"]),
        (&"denied".into(), &STRANGER.into())
    );
    assert_eq!(line["path"], "billing/one");
    assert_eq!(one.line().await["count"], 3);
    one.silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_its_peer_and_leaves_nothing_behind() {
    let world = world(Authority::Policy);
    let mut watch = world.watch(ROOT).await;
    assert_eq!(world.listening(), 1);
    watch.happening.close();
    watch.end().await.unwrap();
    assert_eq!(world.listening(), 0);
    // Also one who does not read what comes.
    let watch = world.watch(ROOT).await;
    for n in 0..3000 {
        world.tell(reloaded(&format!("{n} {}", "x".repeat(1000))));
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(watch.happening);
    timeout(SOON, watch.ended).await.unwrap().unwrap().unwrap();
    eventually(|| world.listening() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_hears_what_was_missed() {
    let world = world(Authority::Policy);
    let mut watch = world.watch(ROOT).await;
    // More than the channel, the batch and the backlog hold.
    for n in 0..20_000 {
        world.tell(reloaded(&format!("{n} {}", "x".repeat(1000))));
    }
    world.tell(reloaded("last"));
    let (mut seen, mut missed) = (0, 0);
    loop {
        let line = watch.line().await;
        match line["event"].as_str().unwrap() {
            "missed" => missed += line["count"].as_u64().unwrap(),
            "reloaded" => seen += 1,
            other => panic!("{other}"),
        }
        if line["changes"][0] == "last" {
            break;
        }
    }
    assert!(missed > 0);
    assert_eq!(seen + missed, 20_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_asked_for_each_event() {
    let world = world(Authority::Policy);
    let mut watch = world.watch(MANAGER).await;
    world.tell(rotated("billing/one"));
    watch.line().await;
    world.replace_policy(|policy| {
        let billing: Name = "billing".parse().unwrap();
        let shared: Name = "shared".parse().unwrap();
        let billing = policy.services.get_mut(&billing).unwrap();
        let manage = std::mem::take(&mut billing.manage);
        policy.services.get_mut(&shared).unwrap().manage = manage;
    });
    world.tell(rotated("billing/one"));
    watch.silent().await;
    world.tell(rotated("shared/one"));
    assert_eq!(watch.line().await["path"], "shared/one");
    world.replace_policy(|policy| {
        policy
            .services
            .values_mut()
            .for_each(|service| service.manage.clear());
    });
    world.tell(rotated("shared/one"));
    let failure = watch.end().await.unwrap_err();
    assert_eq!(failure.kind, Kind::Denied, "{failure}");
    let line = format!("watch - Denied {MANAGER}");
    assert_eq!(*world.logged().last().unwrap(), line);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_the_generation_changes_and_only_then() {
    let world = world(Authority::Policy);
    world.put(ROOT, "billing/one", b"canary-1").await.unwrap();
    let wait = world.wait(READER, "billing/one").await;
    // Of others' changes, and of words without a change, it takes no notice.
    world.put(ROOT, "billing/two", b"x").await.unwrap();
    world.tell(rotated("billing/one"));
    tokio::time::sleep(WHILE).await;
    assert!(!wait.ended.is_finished());
    world.put(ROOT, "billing/one", b"canary-2").await.unwrap();
    let first = wait.changed().await;
    assert_eq!(
        (&first["path"], &first["version"]),
        (&"billing/one".into(), &"2".into())
    );
    assert!(first.get("removed").is_none(), "{first}");
    assert!(!first.to_string().contains("canary"), "{first}");
    let line = format!("wait billing/one Allowed {READER}");
    assert_eq!(world.times(&line), 1);
    assert_eq!(world.listening(), 0);

    let after = |after: u64| Request::Wait {
        path: path("billing/one"),
        after: Some(after),
    };
    let current = first["generation"].as_u64().unwrap();
    let at_once = world.begin(READER, after(current - 1)).changed().await;
    assert_eq!(at_once, first);
    let wait = world.begin(READER, after(current));
    tokio::time::sleep(WHILE).await;
    assert!(!wait.ended.is_finished());
    world.put(ROOT, "billing/one", b"canary-3").await.unwrap();
    let second = wait.changed().await;
    assert_eq!(second["version"], "3");
    assert!(second["generation"].as_u64().unwrap() > current);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_needs_a_secret_and_ends_when_it_is_gone() {
    let world = world(Authority::Policy);
    let wait = |after| Request::Wait {
        path: path("billing/one"),
        after,
    };
    let failure = world.begin(READER, wait(None)).end().await.unwrap_err();
    assert_eq!(failure.kind, Kind::Absent, "{failure}");
    let line = format!("wait billing/one Absent {READER}");
    assert_eq!(world.times(&line), 1);

    world.put(ROOT, "billing/one", b"x").await.unwrap();
    let waiting = world.wait(READER, "billing/one").await;
    world.remove("billing/one").await;
    let gone = serde_json::json!({ "path": "billing/one", "removed": true });
    assert_eq!(waiting.changed().await, gone);
    assert_eq!(world.times(&line), 2);
    // Who knows a generation of it has missed the removal.
    assert_eq!(world.begin(READER, wait(Some(1))).changed().await, gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_needs_the_right_to_read_all_the_time() {
    let world = world(Authority::Policy);
    world.put(ROOT, "billing/one", b"x").await.unwrap();
    let wait = || Request::Wait {
        path: path("billing/one"),
        after: None,
    };
    for uid in [MANAGER, STRANGER, ROOT] {
        let failure = world.begin(uid, wait()).end().await.unwrap_err();
        assert_eq!(failure.kind, Kind::Denied, "{failure}");
        let line = format!("wait billing/one Denied {uid}");
        assert_eq!(*world.logged().last().unwrap(), line);
    }
    let shut = |policy: &mut Policy| {
        let services = policy.services.values_mut();
        services.for_each(|service: &mut ServicePolicy| service.allow.clear());
    };
    let denied = format!("wait billing/one Denied {READER}");
    // It hears of the new rules, or finds them when the secret changes.
    for (change, times) in [(false, 1), (true, 2)] {
        world.replace_policy(|_| {});
        let waiting = world.wait(READER, "billing/one").await;
        world.replace_policy(shut);
        match change {
            false => world.tell(reloaded("services.billing")),
            true => drop(world.put(ROOT, "billing/one", b"y").await.unwrap()),
        }
        let failure = waiting.end().await.unwrap_err();
        assert_eq!(failure.kind, Kind::Denied, "{failure}");
        assert_eq!(world.times(&denied), times);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_its_peer_and_is_written_down() {
    let world = world(Authority::Policy);
    world.put(ROOT, "billing/one", b"x").await.unwrap();
    let mut waiting = world.wait(READER, "billing/one").await;
    waiting.happening.close();
    waiting.end().await.unwrap();
    let line = format!("wait billing/one Allowed {READER}");
    assert_eq!(*world.logged().last().unwrap(), line);
    assert_eq!(world.listening(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_who_wait_hold_no_threads() {
    let world = world(Authority::Policy);
    world.put(ROOT, "billing/one", b"x").await.unwrap();
    let waits: Vec<Running> = (0..1000)
        .map(|_| {
            let (path, after) = (path("billing/one"), None);
            world.begin(READER, Request::Wait { path, after })
        })
        .collect();
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(world.watch(ROOT).await);
    }
    eventually(|| world.listening() == 1003).await;
    // There are 512 threads for what blocks, and this needs one.
    world.put(ROOT, "billing/two", b"x").await.unwrap();
    assert_eq!(world.get(READER, "billing/two").await.unwrap(), b"x");
    tokio::time::sleep(WHILE).await;
    world.put(ROOT, "billing/one", b"y").await.unwrap();
    for wait in waits {
        assert_eq!(wait.changed().await["version"], "2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_announces_nothing_is_asked_when_the_ttl_is_over() {
    let backend = Arc::new(Faulty::new(&[("billing/one", "x")]));
    let ttl = "[cache]\nttl = \"1s\"\nstale = \"0\"\n";
    let faulty: Arc<dyn Backend> = backend.clone();
    let world = world_over(Authority::Policy, ttl, |_| faulty);
    let wait = world.wait(READER, "billing/one").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // It looks as often as it may, and no more.
    assert!((2..=4).contains(&backend.reads()), "{}", backend.reads());
    // What is broken for a while does not end it.
    backend.weather(Weather::Down);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!wait.ended.is_finished());
    backend.put("billing/one", "y");
    backend.weather(Weather::Fine);
    assert_eq!(wait.changed().await["version"], "2");

    // What is broken from the first does, and so does a no.
    for (weather, kind) in [
        (Weather::Down, Kind::Unavailable),
        (Weather::Refusing, Kind::Denied),
        (Weather::Garbled, Kind::Failed),
    ] {
        world.handler.0.cache.invalidate_all();
        backend.weather(weather);
        let (path, after) = (path("billing/one"), Some(1));
        let wait = world.begin(READER, Request::Wait { path, after });
        assert_eq!(wait.end().await.unwrap_err().kind, kind);
    }
    backend.weather(Weather::Fine);
    let wait = world.wait(READER, "billing/one").await;
    backend.weather(Weather::Refusing);
    let failure = wait.end().await.unwrap_err();
    assert_eq!(failure.kind, Kind::Denied, "{failure}");
    let line = format!("wait billing/one Refused {READER}");
    assert_eq!(*world.logged().last().unwrap(), line);
}
