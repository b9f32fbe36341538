//! What the clients do, and how long each turn of it takes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{AccessFlags, Pid, access};
use secretfs::clock::Clock;
use serde::Serialize;

use crate::tree::{KILO, SMALL, Service, numbered};

/// One turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// open, read, close of one secret.
    Open(Service, &'static str),
    /// The same of all of [`Service::Many`] in turn, so that no two lines of the audit log can be one.
    OpenEach,
    /// stat(2)
    Stat,
    /// access(2)
    Access,
    /// pread(2) of 1 KiB on an open handle.
    Pread,
    /// A listing of [`Service::Many`].
    ReadDir,
    /// `ls -l` of it, after the kernel was made to forget names and inodes.
    ColdList,
}

impl Work {
    /// What the table calls it.
    pub(crate) fn name(self, many: usize) -> String {
        match self {
            Self::Open(Service::Warm, SMALL) => "open+read+close 64 B".to_owned(),
            Self::Open(Service::Warm, _) => "open+read+close 1 KiB".to_owned(),
            Self::Open(_, SMALL) => "… 64 B, `reads = \"cached\"`".to_owned(),
            Self::Open(_, _) => "… 1 KiB, `reads = \"cached\"`".to_owned(),
            Self::OpenEach => format!("… 1 KiB, {many} secrets in turn"),
            Self::Stat => "stat".to_owned(),
            Self::Access => "access".to_owned(),
            Self::Pread => "pread 1 KiB".to_owned(),
            Self::ReadDir => format!("readdir of {many}"),
            Self::ColdList => format!("cold `ls -l` of {many}"),
        }
    }

    /// A client's turns below `root`. Each says how long it took.
    fn turns<'a>(
        self,
        root: &Path,
        client: usize,
        many: usize,
        clock: &'a Clock,
    ) -> Box<dyn FnMut() -> Duration + 'a> {
        let timed = move |work: &mut dyn FnMut()| {
            let start = clock.now();
            work();
            clock.now() - start
        };
        let warm = root.join(Service::Warm.name());
        let folder = root.join(Service::Many.name());
        let mut buffer = [0_u8; 4096];
        match self {
            Self::Open(service, name) => {
                let size = if name == SMALL { 64 } else { 1024 };
                opens(root.join(service.name()).join(name), size, clock)
            }
            Self::OpenEach => {
                let paths = (0..many).map(|index| folder.join(numbered(index)));
                let paths: Vec<_> = paths.collect();
                let mut next = client * 997;
                Box::new(move || {
                    next += 1;
                    timed(&mut || read(&paths[next % many], &mut buffer, 1024))
                })
            }
            Self::Stat => {
                let path = warm.join(KILO);
                Box::new(move || {
                    timed(&mut || assert_eq!(fs::metadata(&path).expect("stat").len(), 1024))
                })
            }
            Self::Access => {
                let path = warm.join(KILO);
                Box::new(move || timed(&mut || access(&path, AccessFlags::R_OK).expect("may read")))
            }
            Self::Pread => {
                let file = File::open(warm.join(KILO)).expect("opens");
                Box::new(move || {
                    timed(&mut || {
                        assert_eq!(file.read_at(&mut buffer[..1024], 0).expect("pread"), 1024)
                    })
                })
            }
            Self::ReadDir => Box::new(move || {
                timed(&mut || assert_eq!(fs::read_dir(&folder).expect("lists").count(), many))
            }),
            Self::ColdList => Box::new(move || {
                forget_names();
                timed(&mut || list(&folder))
            }),
        }
    }
}

/// open, read, close of a file of this size, turn by turn.
pub(crate) fn opens(
    path: PathBuf,
    size: usize,
    clock: &Clock,
) -> Box<dyn FnMut() -> Duration + '_> {
    let mut buffer = [0_u8; 4096];
    Box::new(move || {
        let start = clock.now();
        read(&path, &mut buffer, size);
        clock.now() - start
    })
}

/// open, read, close of a file of this size.
pub(crate) fn read(path: &Path, buffer: &mut [u8], size: usize) {
    let mut file = File::open(path).expect("opens");
    assert_eq!(file.read(buffer).expect("reads"), size);
}

/// `ls -l`, as people type it.
pub(crate) fn list(folder: &Path) {
    let mut ls = Command::new("ls");
    ls.arg("-l").arg(folder).stdout(Stdio::null());
    assert!(ls.status().expect("ls runs").success());
}

/// Makes the kernel drop the names and inodes that nobody uses.
pub(crate) fn forget_names() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
}

/// Which cores the clients and the server run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// One client, on the server's own core: nobody else has to be woken, so that what a request costs is all there is.
    One,
    /// One client on the first core, the server on the second.
    Two,
    /// So many clients, spread over the cores, and the server where the kernel wants it.
    All(usize),
}

impl Cores {
    pub(crate) fn clients(self) -> usize {
        match self {
            Self::One | Self::Two => 1,
            Self::All(clients) => clients,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::One => "1, same core".to_owned(),
            Self::Two => "1, other core".to_owned(),
            Self::All(clients) => clients.to_string(),
        }
    }

    fn of_client(self, client: usize) -> Vec<usize> {
        match self {
            Self::One | Self::Two => vec![0],
            Self::All(_) => vec![client % cores()],
        }
    }

    fn of_server(self) -> Vec<usize> {
        match self {
            Self::One => vec![0],
            Self::Two => vec![1],
            Self::All(_) => (0..cores()).collect(),
        }
    }
}

/// How many cores there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What one round of one contender came to.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
    /// Microseconds.
    pub(crate) longest: f64,
    /// Turns a second, of all clients together.
    pub(crate) rate: f64,
}

impl Sample {
    /// Of turns that took so long, in `wall` altogether.
    pub(crate) fn of(mut turns: Vec<Duration>, wall: Duration) -> Self {
        turns.sort_unstable();
        let at = |share: f64| {
            let index = ((turns.len() - 1) as f64 * share).round() as usize;
            turns[index].as_secs_f64() * 1e6
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            longest: at(1.0),
            rate: turns.len() as f64 / wall.as_secs_f64(),
        }
    }
}

/// Has each client do its work so many times, after some that do not count.
pub(crate) fn run(
    work: Work,
    cores: Cores,
    turns: usize,
    many: usize,
    root: &Path,
    server: Option<u32>,
    clock: &Clock,
) -> Sample {
    let of_client = |client| work.turns(root, client, many, clock);
    drive(cores, turns, server, clock, of_client)
}

/// The same for any work: `of_client` gives a client's turns, each of which says how long it took.
pub(crate) fn drive<'a>(
    cores: Cores,
    turns: usize,
    server: Option<u32>,
    clock: &Clock,
    of_client: impl Fn(usize) -> Box<dyn FnMut() -> Duration + 'a> + Sync,
) -> Sample {
    if let Some(server) = server {
        pin_process(server, &cores.of_server());
    }
    let clients = cores.clients();
    let all_ready = Barrier::new(clients + 1);
    let (taken, wall) = std::thread::scope(|scope| {
        let client = |client| {
            let (all_ready, of_client) = (&all_ready, &of_client);
            scope.spawn(move || {
                pin(Pid::from_raw(0), &cores.of_client(client));
                let mut turn = of_client(client);
                for _ in 0..turns.div_ceil(20) {
                    turn();
                }
                all_ready.wait();
                (0..turns).map(|_| turn()).collect::<Vec<_>>()
            })
        };
        let clients: Vec<_> = (0..clients).map(client).collect();
        all_ready.wait();
        let start = clock.now();
        let taken = clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"));
        let taken: Vec<Duration> = taken.collect();
        (taken, clock.now() - start)
    });
    Sample::of(taken, wall)
}

fn pin_process(pid: u32, cores: &[usize]) {
    // Threads may come and go meanwhile.
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let tid = task.file_name().to_string_lossy().parse();
        pin(Pid::from_raw(tid.expect("a number")), cores);
    }
}

fn pin(tid: Pid, cores: &[usize]) {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).expect("a core");
    }
    let _ = sched_setaffinity(tid, &set);
}
