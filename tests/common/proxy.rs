//! A network between a client and a server on loopback, to be broken while the test runs. It passes bytes on and knows
//! nothing of TLS, which goes from end to end; a server's certificate is for 127.0.0.1 at every port.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use secretfs::clock::Clock;

use super::kept::free_address;
use super::{DEADLINE, eventually};

/// How soon a connection notices that the network has changed.
const TICK: Duration = Duration::from_millis(10);
/// How long a byte takes in [`Mode::Drip`].
const DRIP: Duration = Duration::from_secs(1);

/// What the network does, to the connections that there are as to new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes on what comes.
    Pass,
    /// Nobody is there; who was connected is no longer.
    Refuse,
    /// Takes connections and passes nothing on, either way, until that changes.
    Stall,
    /// Closes after so many bytes of an answer: of what the server sends after a client's last words. The server's part of
    /// the TLS handshake is passed on whole; the tickets that follow it count.
    Cut(usize),
    /// Passes the server's bytes on one a second, those of the handshake too.
    Drip,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: String,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    here: SocketAddr,
    there: SocketAddr,
    mode: Mutex<Mode>,
    ended: AtomicBool,
    listens: AtomicBool,
    /// Connections so far, and now.
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Bytes that reached the client.
    answered: AtomicUsize,
}

impl Proxy {
    /// One that passes everything on to a server: `https://127.0.0.1:…`
    #[track_caller]
    pub(crate) fn to(address: &str) -> Self {
        let there = address.trim_start_matches("https://").parse().unwrap();
        let here = free_address();
        let shared = Arc::new(Shared {
            here,
            there,
            mode: Mutex::new(Mode::Pass),
            ended: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        });
        let acceptor = Arc::clone(&shared);
        let acceptor = thread::spawn(move || acceptor.accept());
        let proxy = Self {
            shared,
            address: format!("https://{here}"),
            acceptor: Some(acceptor),
        };
        proxy.set(Mode::Pass);
        proxy
    }

    /// Where a client finds the server through it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Changes what it does, and returns when that is so.
    #[track_caller]
    pub(crate) fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
        let settled = eventually(DEADLINE, || {
            let listens = self.shared.listens.load(Ordering::SeqCst);
            match mode {
                Mode::Refuse => !listens && self.open() == 0,
                Mode::Pass | Mode::Stall | Mode::Cut(_) | Mode::Drip => listens,
            }
        });
        assert!(settled, "the proxy does not change to {mode:?}");
    }

    /// How many connections it has taken so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many there are now.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many bytes have come back to clients so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        if self.ended.load(Ordering::SeqCst) {
            return Mode::Refuse;
        }
        *self.mode.lock().unwrap()
    }

    fn accept(self: Arc<Self>) {
        let mut listener = None;
        while !self.ended.load(Ordering::SeqCst) {
            if self.mode() == Mode::Refuse {
                listener = None;
                self.listens.store(false, Ordering::SeqCst);
                thread::sleep(TICK);
                continue;
            }
            let listener = listener.get_or_insert_with(|| TcpListener::bind(self.here).unwrap());
            self.listens.store(true, Ordering::SeqCst);
            if readable(&[listener.as_fd()]) == [true]
                && let Ok((client, _)) = listener.accept()
            {
                self.accepted.fetch_add(1, Ordering::SeqCst);
                self.open.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&self);
                thread::spawn(move || {
                    let _ = shared.serve(client);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }

    /// One connection. An error is the end of it, which the client sees as a reset.
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        setsockopt(&client, sockopt::Linger, &RESET)?;
        self.wait_while_stalled()?;
        let server = TcpStream::connect(self.there)?;
        setsockopt(&server, sockopt::Linger, &RESET)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(TICK))?;
        }
        let clock = Clock::default();
        let mut pipe = Pipe {
            client,
            server,
            client_ended: false,
            server_ended: false,
            words: 0,
            since: 0,
            next_drop: clock.now(),
        };
        while !(pipe.client_ended && pipe.server_ended) {
            self.wait_while_stalled()?;
            if self.pass(&mut pipe, &clock)? {
                break;
            }
        }
        // Ended in order, so without a reset.
        let in_order = libc::linger {
            l_onoff: 0,
            l_linger: 0,
        };
        setsockopt(&pipe.client, sockopt::Linger, &in_order)?;
        setsockopt(&pipe.server, sockopt::Linger, &in_order)?;
        Ok(())
    }

    /// Passes on what there is; true if this was the last of it.
    fn pass(&self, pipe: &mut Pipe, clock: &Clock) -> io::Result<bool> {
        let mode = self.mode();
        let dripping = mode == Mode::Drip;
        let [from_client, from_server] = pipe.readable(!dripping || clock.now() >= pipe.next_drop);
        let mut bytes = [0_u8; 16 * 1024];
        if from_client {
            let length = pipe.client.read(&mut bytes)?;
            pipe.client_ended = length == 0;
            (pipe.words, pipe.since) = (pipe.words + 1, 0);
            self.send(&mut pipe.server, &bytes[..length])?;
        }
        if from_server {
            // The first words are the client's half of the handshake.
            let most = match mode {
                Mode::Drip => 1,
                Mode::Cut(after) if pipe.words > 1 => after.saturating_sub(pipe.since),
                Mode::Pass | Mode::Refuse | Mode::Stall | Mode::Cut(_) => bytes.len(),
            };
            let most = most.min(bytes.len());
            if most == 0 {
                return Ok(true);
            }
            let length = pipe.server.read(&mut bytes[..most])?;
            pipe.server_ended = length == 0;
            pipe.since += length;
            pipe.next_drop = clock.now() + DRIP;
            self.send(&mut pipe.client, &bytes[..length])?;
            self.answered.fetch_add(length, Ordering::SeqCst);
        }
        Ok(false)
    }

    /// Sends all of it, or the end where there is nothing. Whoever does not take it keeps us no longer than the connection
    /// is to last.
    fn send(&self, to: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return to.shutdown(Shutdown::Write);
        }
        while !bytes.is_empty() {
            self.wait_while_stalled()?;
            match to.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fails when nobody is there any more.
    fn wait_while_stalled(&self) -> io::Result<()> {
        loop {
            match self.mode() {
                Mode::Refuse => return Err(ErrorKind::ConnectionReset.into()),
                Mode::Stall => thread::sleep(TICK),
                Mode::Pass | Mode::Cut(_) | Mode::Drip => return Ok(()),
            }
        }
    }
}

/// Closing throws away what is on its way and tells the other side at once.
const RESET: libc::linger = libc::linger {
    l_onoff: 1,
    l_linger: 0,
};

#[derive(Debug)]
struct Pipe {
    client: TcpStream,
    server: TcpStream,
    client_ended: bool,
    server_ended: bool,
    /// How often the client has spoken, and how many bytes the server has sent since.
    words: usize,
    since: usize,
    next_drop: Instant,
}

impl Pipe {
    /// Whether there is something from the client and from the server, after a moment's wait for it.
    fn readable(&self, from_server: bool) -> [bool; 2] {
        let wanted = [!self.client_ended, !self.server_ended && from_server];
        let streams = [self.client.as_fd(), self.server.as_fd()];
        let asked: Vec<_> = streams
            .into_iter()
            .zip(wanted)
            .filter_map(|(stream, wanted)| wanted.then_some(stream))
            .collect();
        let mut found = readable(&asked).into_iter();
        wanted.map(|wanted| wanted && found.next() == Some(true))
    }
}

/// Which of these have something to read, or an end or an error, after a moment's wait for it.
fn readable(streams: &[std::os::fd::BorrowedFd<'_>]) -> Vec<bool> {
    let mut asked: Vec<PollFd<'_>> = streams
        .iter()
        .map(|stream| PollFd::new(*stream, PollFlags::POLLIN))
        .collect();
    let tick = PollTimeout::try_from(TICK).unwrap();
    if poll(&mut asked, tick).is_err() {
        return vec![false; streams.len()];
    }
    asked.iter().map(|fd| fd.any() == Some(true)).collect()
}
