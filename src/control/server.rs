//! The daemon's side of the control socket.
//!
//! A peer can be slow, silent, hostile or many: every wait has a deadline, every line and body a limit, and there are
//! only so many connections, in all and for each uid. What a peer has started is carried through and audited also when
//! the peer hangs up meanwhile; its place is free again only after that. What has no end of its own (`watch`, `wait`,
//! `audit --follow`) ends with its peer or the daemon, and leaves places for commands.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use crate::caller::{Caller, Lookup};
use crate::control::protocol::{
    self, Failure, Header, Hello, Kind, MAX_CHUNK, MAX_REQUEST, Part, Reply, parse, parse_header,
};
use crate::control::wire::{Wire, WireError};
use crate::control::{Answer, Body, Commands, Event, Exchange, Interrupted, peer};
use crate::sys::Uid;

/// How much the socket bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, but for those of root and of the daemon's own user.
    pub connections: usize,
    /// Connections at once of one uid.
    pub per_uid: usize,
    /// How many of those that one uid may have can be used for what has no end: the others are for commands.
    pub endless: usize,
    /// How long a connection may be silent between two requests.
    pub idle: Duration,
    /// How long one line or one body may take, either way.
    pub transfer: Duration,
    /// How often a peer that waits is told that the command still runs.
    pub heartbeat: Duration,
    /// How long commands that run may go on when the daemon ends.
    pub drain: Duration,
}

/// How long what has no end of its own may take to write down that it has ended.
const ENDING: Duration = Duration::from_secs(1);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_uid: 64,
            endless: 48,
            idle: Duration::from_secs(30),
            transfer: Duration::from_secs(10),
            heartbeat: Duration::from_secs(2),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves the socket until `shutdown` is there, then lets the commands that run come to their end.
///
/// # Errors
/// When the listener cannot be used at all.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    commands: Arc<dyn Commands>,
    lookup: Arc<dyn Lookup>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let seats = Arc::new(Seats::new(limits));
    let mut connections = JoinSet::new();
    let (end, ending) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let seats = Arc::clone(&seats);
                let (commands, lookup) = (Arc::clone(&commands), Arc::clone(&lookup));
                let ending = ending.clone();
                connections.spawn(async move {
                    let served = welcome(stream, &seats, commands, &*lookup, limits, ending).await;
                    if let Err(error) = served {
                        tracing::debug!(%error, "a control connection ended early");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: nothing is won by asking again at once.
                tracing::warn!(%error, "the control socket cannot accept");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((listener, end));
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("commands were still running when the daemon ended");
    }
    Ok(())
}

async fn welcome(
    stream: UnixStream,
    seats: &Arc<Seats>,
    commands: Arc<dyn Commands>,
    lookup: &dyn Lookup,
    limits: Limits,
    ending: watch::Receiver<()>,
) -> Result<(), WireError> {
    let caller = peer::identify(stream.as_fd(), lookup)?;
    let mut wire = Wire::new(stream, MAX_REQUEST);
    let Some(seat) = seats.take(caller.uid) else {
        let busy = Failure::new(
            Kind::Busy,
            "too many control connections are open: try again in a moment",
        );
        return wire.send(&Reply::Error(busy), &[], limits.transfer).await;
    };
    let mut connection = Connection {
        wire,
        caller,
        commands,
        limits,
        seat: Arc::new(seat),
        ending,
    };
    connection.run().await
}

#[derive(Debug)]
struct Connection {
    wire: Wire<UnixStream>,
    caller: Caller,
    commands: Arc<dyn Commands>,
    limits: Limits,
    seat: Arc<Seat>,
    /// Closed when the daemon ends.
    ending: watch::Receiver<()>,
}

impl Connection {
    async fn run(&mut self) -> Result<(), WireError> {
        let hello = self.wire.line(self.limits.transfer).await?;
        match parse::<Hello>(&hello) {
            Ok(hello) if hello.secretfs == protocol::VERSION => {}
            Ok(_) => {
                let other = "the daemon is of another release: restart it, or use its own program";
                return self.send(&Reply::Error(Failure::usage(other)), &[]).await;
            }
            Err(failure) => return self.send(&Reply::Error(failure), &[]).await,
        }
        let hello = Hello {
            secretfs: protocol::VERSION,
        };
        self.wire.send(&hello, &[], self.limits.transfer).await?;
        loop {
            let ready = tokio::select! {
                ready = self.wire.ready(self.limits.idle) => ready,
                // Nobody waits for this one.
                _ = self.ending.changed() => return Ok(()),
            };
            match ready {
                Err(WireError::Closed | WireError::Slow(_)) => return Ok(()),
                other => other?,
            }
            let line = self.wire.line(self.limits.transfer).await?;
            match parse_header(&line) {
                Ok(header) => {
                    if let Next::HangUp = self.request(header).await? {
                        return Ok(());
                    }
                }
                // Where the next request would start is not known any more.
                Err(failure) => return self.send(&Reply::Error(failure), &[]).await,
            }
        }
    }

    async fn request(&mut self, header: Header) -> Result<Next, WireError> {
        let streams_in = header.request.streams_in();
        let endless = header.request.is_endless();
        let stay = endless.then(|| self.seat.stay());
        if let Some(None) = stay {
            let busy = Failure::new(
                Kind::Busy,
                "too many `watch`, `wait` and `audit --follow` of yours run: end one of them",
            );
            self.send(&Reply::Error(busy), &[]).await?;
            return Ok(Next::Request);
        }
        let (parts, stream) = mpsc::channel(4);
        let body = if streams_in {
            Body::Stream(stream)
        } else if header.body > 0 || header.request.max_body() > 0 {
            let value = self.wire.value(header.body, self.limits.transfer).await?;
            Body::Value(value)
        } else {
            Body::Empty
        };
        let (events, mut happening) = mpsc::channel(8);
        let mut running = Running(tokio::spawn({
            let (commands, caller) = (Arc::clone(&self.commands), self.caller.clone());
            let seat = Arc::clone(&self.seat);
            async move {
                let exchange = Exchange { body, events };
                let result = commands.handle(caller, header.request, exchange).await;
                drop((stay, seat));
                result
            }
        }));
        if streams_in && let Some(result) = self.feed(parts, &mut running).await? {
            // The rest of the stream is still under way: this connection is of no further use.
            self.finish(result, &mut happening).await?;
            return Ok(Next::HangUp);
        }
        let mut heartbeat = interval(self.limits.heartbeat);
        heartbeat.reset();
        let mut last = Reply::Progress { done: 0, total: 0 };
        // Who waits for something that may never come says no more until he hangs up.
        let mut silent = endless;
        let result = loop {
            tokio::select! {
                result = running.result() => break result,
                Some(event) = happening.recv() => {
                    last = self.tell(event, last).await?;
                    heartbeat.reset();
                }
                _ = heartbeat.tick() => self.send(&last, &[]).await?,
                heard = self.wire.ready(self.limits.idle), if silent => match heard {
                    Ok(()) => silent = false,
                    Err(WireError::Slow(_)) => {}
                    Err(error) => return Err(error),
                },
                _ = self.ending.changed(), if endless => {
                    // It hears by this that nobody listens any more, and writes down how it ended.
                    happening.close();
                    let ended = Reply::Error(Failure::failed("the daemon has ended"));
                    let (sent, _) = tokio::join!(
                        self.send(&ended, &[]),
                        timeout(ENDING, running.result()),
                    );
                    sent?;
                    return Ok(Next::HangUp);
                }
            }
        };
        self.finish(result, &mut happening).await?;
        Ok(Next::Request)
    }

    /// Hands the parts of a stream on as they come. `Some` when the command ended before the stream did.
    async fn feed(
        &mut self,
        parts: mpsc::Sender<Result<Vec<u8>, Interrupted>>,
        running: &mut Running,
    ) -> Result<Option<Result<Answer, Failure>>, WireError> {
        loop {
            let part = tokio::select! {
                result = running.result() => return Ok(Some(result)),
                part = read_part(&mut self.wire, self.limits.transfer) => part,
            };
            let part = match part {
                Ok(part) => part,
                Err(error) => {
                    // Without this word the command would take what came for the whole.
                    let _ = parts.send(Err(Interrupted)).await;
                    return Err(error);
                }
            };
            if part.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                result = running.result() => return Ok(Some(result)),
                _ = parts.send(Ok(part)) => {}
            }
        }
    }

    async fn tell(&mut self, event: Event, last: Reply) -> Result<Reply, WireError> {
        match event {
            Event::Progress { done, total } => {
                let reply = Reply::Progress { done, total };
                self.send(&reply, &[]).await?;
                Ok(reply)
            }
            Event::Chunk(bytes) => {
                for part in bytes.chunks(MAX_CHUNK) {
                    self.send(&Reply::Chunk { size: part.len() }, part).await?;
                }
                Ok(last)
            }
        }
    }

    async fn finish(
        &mut self,
        result: Result<Answer, Failure>,
        happening: &mut mpsc::Receiver<Event>,
    ) -> Result<(), WireError> {
        while let Ok(event) = happening.try_recv() {
            self.tell(event, Reply::Progress { done: 0, total: 0 })
                .await?;
        }
        match result {
            Ok(answer) => {
                let body = answer
                    .value
                    .as_ref()
                    .map_or(&[][..], |value| value.expose());
                let done = Reply::Done {
                    answer: answer.json,
                    body: body.len(),
                };
                self.send(&done, body).await
            }
            Err(failure) => self.send(&Reply::Error(failure), &[]).await,
        }
    }

    async fn send(&mut self, reply: &Reply, body: &[u8]) -> Result<(), WireError> {
        self.wire.send(reply, body, self.limits.transfer).await
    }
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Request,
    HangUp,
}

async fn read_part(wire: &mut Wire<UnixStream>, limit: Duration) -> Result<Vec<u8>, WireError> {
    let line = wire.line(limit).await?;
    match parse(&line) {
        Ok(Part::Chunk { size }) if size <= MAX_CHUNK => wire.bytes(size, limit).await,
        Ok(Part::Chunk { .. }) | Err(_) => Err(WireError::Broken(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a part of a stream",
        ))),
    }
}

/// A command in a task of its own. When the connection breaks it goes on: what was done must be audited.
#[derive(Debug)]
struct Running(JoinHandle<Result<Answer, Failure>>);

impl Running {
    async fn result(&mut self) -> Result<Answer, Failure> {
        (&mut self.0).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a command ended unexpectedly");
            Err(Failure::failed(
                "the command ended unexpectedly: see the daemon's log",
            ))
        })
    }
}

/// The places that connections take.
#[derive(Debug)]
struct Seats {
    limits: Limits,
    taken: Mutex<HashMap<Uid, usize>>,
    /// Those that are taken by what has no end.
    endless: Mutex<HashMap<Uid, usize>>,
}

impl Seats {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            taken: Mutex::default(),
            endless: Mutex::default(),
        }
    }

    fn take(self: &Arc<Self>, uid: Uid) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or_default();
        // Whoever has a range of uids could take every place: whom the daemon belongs to finds one all the same.
        let ours = uid == Uid::ROOT || uid == Uid::effective();
        if (all >= self.limits.connections && !ours) || own >= self.limits.per_uid {
            return None;
        }
        taken.insert(uid, own + 1);
        Some(Seat {
            seats: Arc::clone(self),
            uid,
        })
    }
}

/// One place; free again when dropped.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    uid: Uid,
}

impl Seat {
    /// Takes the place for something that has no end; `None` if too many of this user's are taken like that.
    fn stay(&self) -> Option<Stay> {
        let seats = &self.seats;
        let mut endless = seats.endless.lock().unwrap_or_else(PoisonError::into_inner);
        let own = endless.entry(self.uid).or_default();
        if *own >= seats.limits.endless {
            return None;
        }
        *own += 1;
        Some(Stay {
            seats: Arc::clone(seats),
            uid: self.uid,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        give_back(&self.seats.taken, self.uid);
    }
}

/// Something without an end; over when dropped.
#[derive(Debug)]
struct Stay {
    seats: Arc<Seats>,
    uid: Uid,
}

impl Drop for Stay {
    fn drop(&mut self) {
        give_back(&self.seats.endless, self.uid);
    }
}

fn give_back(taken: &Mutex<HashMap<Uid, usize>>, uid: Uid) {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = taken.get_mut(&uid) {
        *own -= 1;
        if *own == 0 {
            taken.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests;
