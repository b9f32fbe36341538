//! The socket with real peers: friendly, slow, rude and many.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::caller::{CallerError, Cgroup};
use crate::control::client::{Client, Upload};
use crate::control::protocol::Request;
use crate::secret::{MAX_VALUE, SecretBytes};
use crate::sys::{Gid, Tid};

#[derive(Debug)]
struct Nowhere;

impl Lookup for Nowhere {
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

/// Answers `put` with what it was given, counts what `restore` streams in, streams on `export`, panics on `reload` and
/// tells on `unmount` that it has come to its end. `watch` says one thing and ends when nobody listens.
#[derive(Debug)]
struct Echo {
    watches: Arc<AtomicUsize>,
    ended: Mutex<Option<oneshot::Sender<Result<usize, Interrupted>>>>,
}

impl Commands for Echo {
    fn handle(
        &self,
        caller: Caller,
        request: Request,
        exchange: Exchange,
    ) -> BoxFuture<'_, Result<Answer, Failure>> {
        Box::pin(async move {
            let mut count = Ok(0);
            let value = match (request, exchange.body) {
                (Request::Put { .. }, Body::Value(value)) => Some(value),
                (Request::Restore { .. }, Body::Stream(mut parts)) => {
                    while let Some(part) = parts.recv().await {
                        match part {
                            Ok(part) => count = count.map(|count| count + part.len()),
                            Err(error) => count = Err(error),
                        }
                    }
                    if let Some(ended) = self.ended.lock().unwrap().take() {
                        ended.send(count).unwrap();
                    }
                    None
                }
                (Request::Export { .. }, Body::Empty) => {
                    for done in 0..5 {
                        let progress = Event::Progress { done, total: 5 };
                        exchange.events.send(progress).await.unwrap();
                        let chunk = Event::Chunk(vec![7; 100_000]);
                        exchange.events.send(chunk).await.unwrap();
                    }
                    None
                }
                (Request::Watch {}, Body::Empty) => {
                    self.watches.fetch_add(1, Ordering::SeqCst);
                    let chunk = Event::Chunk(b"watching".to_vec());
                    exchange.events.send(chunk).await.unwrap();
                    exchange.events.closed().await;
                    // It has something to write down.
                    sleep(Duration::from_millis(50)).await;
                    self.watches.fetch_sub(1, Ordering::SeqCst);
                    None
                }
                (Request::Status {}, Body::Empty) => {
                    sleep(Duration::from_millis(200)).await;
                    None
                }
                (request, _) => panic!("{request:?}"),
            };
            Ok(Answer {
                json: serde_json::json!({ "uid": caller.uid, "count": count.ok() }),
                value,
            })
        })
    }
}

struct Daemon {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    ended: oneshot::Receiver<Result<usize, Interrupted>>,
    watches: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

fn daemon(limits: Limits) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (sender, ended) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let watches = Arc::new(AtomicUsize::new(0));
    let echo = Arc::new(Echo {
        watches: Arc::clone(&watches),
        ended: Mutex::new(Some(sender)),
    });
    let serving = tokio::spawn(serve(listener, echo, Arc::new(Nowhere), limits, async {
        let _ = stopped.await;
    }));
    Daemon {
        _folder: folder,
        socket,
        ended,
        watches,
        stop,
        serving,
    }
}

async fn client(socket: &Path) -> Client {
    Client::connect(socket).await.unwrap().unwrap()
}

fn ignore(_: Event) -> Result<(), Failure> {
    Ok(())
}

async fn echoed(client: &mut Client, value: Vec<u8>) -> Vec<u8> {
    let put = Request::Put {
        path: "a/b".parse().unwrap(),
    };
    let upload = Upload::Value(SecretBytes::new(value));
    let answer = client.call(&put, upload, &mut ignore).await.unwrap();
    answer.value.unwrap().expose().to_vec()
}

/// Sends raw bytes after the hello, and reads what comes until the daemon hangs up.
async fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"{\"secretfs\":1}\n").await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_peers_get_their_own_bytes_back() {
    let limits = Limits {
        per_uid: 100,
        connections: 100,
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let peer = async |n: u8| {
        let mut client = client(&daemon.socket).await;
        for size in [0, 1, 5000, MAX_VALUE / 8] {
            assert_eq!(echoed(&mut client, vec![n; size]).await, vec![n; size]);
        }
    };
    futures_util::future::join_all((0..100).map(peer)).await;
    daemon.stop.send(()).unwrap();
    daemon.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_largest_value_passes_and_one_byte_more_does_not() {
    let daemon = daemon(Limits::default());
    let mut client = client(&daemon.socket).await;
    assert_eq!(
        echoed(&mut client, vec![7; MAX_VALUE]).await.len(),
        MAX_VALUE
    );
    let put = Request::Put {
        path: "a/b".parse().unwrap(),
    };
    let upload = Upload::Value(SecretBytes::new(vec![7; MAX_VALUE + 1]));
    let failure = client.call(&put, upload, &mut ignore).await.unwrap_err();
    assert_eq!(failure.kind, Kind::Usage, "{failure}");
}

#[tokio::test]
async fn rude_peers_are_cut_off_and_others_served() {
    let limits = Limits {
        transfer: Duration::from_millis(100),
        idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let table: [(&[u8], &str); 7] = [
        (b"garbage\n", "usage"),
        (b"\xff\xfe\n", "usage"),
        (
            b"{\"request\":{\"command\":\"put\",\"path\":\"a/b\"},\"body\":999999999}\n",
            "usage",
        ),
        (
            b"{\"request\":{\"command\":\"reload\"}}\n",
            "ended unexpectedly",
        ),
        // Cut off by their deadlines, without a word.
        (b"{\"request\":", ""),
        (
            b"{\"request\":{\"command\":\"put\",\"path\":\"a/b\"},\"body\":10}\nshort",
            "",
        ),
        (b"", ""),
    ];
    for (bytes, word) in table {
        let answer = raw(&daemon.socket, bytes).await;
        assert!(answer.contains(word), "{answer}");
        assert_eq!(answer.contains("error"), !word.is_empty(), "{answer}");
    }
    let endless = vec![b'x'; MAX_REQUEST * 2];
    raw(&daemon.socket, &endless).await;
    let mut client = client(&daemon.socket).await;
    assert_eq!(
        echoed(&mut client, b"still here".to_vec()).await,
        b"still here"
    );
}

#[tokio::test]
async fn one_uid_cannot_take_every_place() {
    let limits = Limits {
        per_uid: 2,
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let first = client(&daemon.socket).await;
    let _second = client(&daemon.socket).await;
    let failure = Client::connect(&daemon.socket).await.unwrap_err();
    assert!(failure.message.contains("too many"), "{failure}");
    drop(first);
    // The place is free as soon as the daemon has seen the end of the first.
    for _ in 0..500 {
        if Client::connect(&daemon.socket).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the place never became free");
}

#[test]
fn root_finds_a_place_when_many_uids_have_taken_all() {
    let limits = Limits {
        connections: 4,
        per_uid: 2,
        ..Limits::default()
    };
    let seats = Arc::new(Seats::new(limits));
    let mut taken = Vec::new();
    for uid in 100_000..100_010 {
        taken.extend(seats.take(Uid(uid)));
        taken.extend(seats.take(Uid(uid)));
    }
    assert_eq!(taken.len(), 4);
    let root = (seats.take(Uid::ROOT), seats.take(Uid::ROOT));
    assert!(root.0.is_some() && root.1.is_some());
    assert!(seats.take(Uid::ROOT).is_none(), "its own limit holds");
    drop((taken, root));
    assert!(seats.taken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn another_release_is_told_so() {
    let daemon = daemon(Limits::default());
    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    stream.write_all(b"{\"secretfs\":2}\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("another release"), "{answer}");
}

#[tokio::test]
async fn streams_go_both_ways() {
    let daemon = daemon(Limits::default());
    let mut client = client(&daemon.socket).await;
    let copy = vec![9; 300_001];
    let upload = Upload::Stream(Box::new(io::Cursor::new(copy)));
    let restore = Request::Restore {
        backend: None,
        replace: false,
    };
    let answer = client.call(&restore, upload, &mut ignore).await.unwrap();
    assert_eq!(answer.json["count"], 300_001);

    let (mut bytes, mut steps) = (0, 0);
    let export = Request::Export { backend: None };
    client
        .call(&export, Upload::Empty, &mut |event| {
            match event {
                Event::Progress { .. } => steps += 1,
                Event::Chunk(chunk) => bytes += chunk.len(),
            }
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((bytes, steps), (500_000, 5));
}

#[tokio::test]
async fn a_peer_that_leaves_in_the_middle_of_a_stream_is_not_taken_for_its_end() {
    let daemon = daemon(Limits::default());
    let socket = daemon.socket.clone();
    tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let restore = b"{\"secretfs\":1}\n{\"request\":{\"command\":\"restore\",\"backend\":null,\"replace\":false}}\n{\"chunk\":{\"size\":5}}\nhello";
        stream.write_all(restore).unwrap();
        // The hello has come when the request is read.
        stream.read_exact(&mut [0; 15]).unwrap();
    })
    .await
    .unwrap();
    assert_eq!(daemon.ended.await.unwrap(), Err(Interrupted));
}

#[tokio::test]
async fn a_long_command_gives_signs_of_life() {
    let limits = Limits {
        heartbeat: Duration::from_millis(10),
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let mut client = client(&daemon.socket).await;
    let mut signs = 0;
    client
        .call(&Request::Status {}, Upload::Empty, &mut |_| {
            signs += 1;
            Ok(())
        })
        .await
        .unwrap();
    assert!(signs > 0);
}

#[tokio::test]
async fn an_idle_peer_does_not_hold_up_the_end() {
    let hour = Duration::from_secs(3600);
    let limits = Limits {
        idle: hour,
        drain: hour,
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let mut client = client(&daemon.socket).await;
    assert_eq!(echoed(&mut client, b"x".to_vec()).await, b"x");
    daemon.stop.send(()).unwrap();
    // Would take an hour.
    timeout(Duration::from_secs(60), daemon.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// Watches until the connection ends, and gives what came over it.
fn watcher(socket: &Path) -> JoinHandle<String> {
    let socket = socket.to_owned();
    let watch = b"{\"request\":{\"command\":\"watch\"}}\n";
    tokio::spawn(async move { raw(&socket, watch).await })
}

impl Daemon {
    async fn watched(&self, count: usize) {
        for _ in 0..1000 {
            if self.watches.load(Ordering::SeqCst) == count {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("{} and not {count}", self.watches.load(Ordering::SeqCst));
    }
}

#[tokio::test]
async fn what_has_no_end_ends_at_once_with_its_peer() {
    let limits = Limits {
        // Nothing is sent that would fail.
        heartbeat: Duration::from_secs(3600),
        idle: Duration::from_millis(20),
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let watchers: Vec<_> = (0..10).map(|_| watcher(&daemon.socket)).collect();
    daemon.watched(10).await;
    // Silence is what it is about.
    sleep(Duration::from_millis(200)).await;
    daemon.watched(10).await;
    for watcher in watchers {
        watcher.abort();
    }
    daemon.watched(0).await;
}

#[tokio::test]
async fn what_has_no_end_leaves_places_for_what_has() {
    let limits = Limits {
        per_uid: 6,
        endless: 4,
        ..Limits::default()
    };
    let daemon = daemon(limits);
    let watchers: Vec<_> = (0..4).map(|_| watcher(&daemon.socket)).collect();
    daemon.watched(4).await;
    let mut one = client(&daemon.socket).await;
    let failure = one
        .call(&Request::Watch {}, Upload::Empty, &mut ignore)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, Kind::Busy, "{failure}");
    // It is refused the watch and nothing else.
    assert_eq!(echoed(&mut one, b"x".to_vec()).await, b"x");
    watchers[0].abort();
    daemon.watched(3).await;
    drop(one);
    let again = watcher(&daemon.socket);
    daemon.watched(4).await;
    again.abort();
}

#[tokio::test]
async fn what_has_no_end_ends_in_order_with_the_daemon() {
    let daemon = daemon(Limits::default());
    let watchers: Vec<_> = (0..10).map(|_| watcher(&daemon.socket)).collect();
    daemon.watched(10).await;
    daemon.stop.send(()).unwrap();
    daemon.serving.await.unwrap().unwrap();
    // What they had to write down is written.
    assert_eq!(daemon.watches.load(Ordering::SeqCst), 0);
    for watcher in watchers {
        let heard = watcher.await.unwrap();
        assert!(heard.contains("watching"), "{heard}");
        assert!(heard.contains("the daemon has ended"), "{heard}");
    }
}
