//! The command line's side of the control socket.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::control::protocol::{
    self, Failure, Header, Hello, MAX_CHUNK, MAX_REPLY, Part, Reply, Request, parse,
};
use crate::control::wire::{Wire, WireError};
use crate::control::{Answer, Event};
use crate::secret::{MAX_VALUE, SecretBytes};

/// How long the daemon may be silent: it sends a sign of life every two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a daemon that has said hello.
#[derive(Debug)]
pub struct Client {
    wire: Wire<UnixStream>,
    socket: PathBuf,
}

/// What goes along with a request.
pub enum Upload {
    /// Nothing.
    Empty,
    /// A value.
    Value(SecretBytes),
    /// Something long that is read meanwhile.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Value(_) => "Value",
            Self::Stream(_) => "Stream",
        })
    }
}

impl Client {
    /// Connects. `None` when nobody listens there.
    ///
    /// # Errors
    /// [`Failure`] when somebody does but cannot be spoken with.
    pub async fn connect(socket: &Path) -> Result<Option<Self>, Failure> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(Failure::failed(format!(
                    "{}: cannot connect to the daemon: {error}",
                    socket.display()
                )));
            }
        };
        let mut client = Self {
            wire: Wire::new(stream, MAX_REPLY),
            socket: socket.to_owned(),
        };
        let hello = Hello {
            secretfs: protocol::VERSION,
        };
        // A daemon that refuses us at the door hangs up at once; its word is still there to be read.
        let sent = client.wire.send(&hello, &[], PATIENCE).await;
        let line = match client.wire.line(PATIENCE).await {
            Ok(line) => line,
            Err(error) => return Err(broken(socket, &sent.err().unwrap_or(error))),
        };
        match parse::<Hello>(&line) {
            Ok(hello) if hello.secretfs == protocol::VERSION => Ok(Some(client)),
            Ok(_) | Err(_) => Err(match parse(&line) {
                Ok(Reply::Error(failure)) => failure,
                Ok(Reply::Progress { .. } | Reply::Chunk { .. } | Reply::Done { .. }) | Err(_) => {
                    Failure::failed(format!(
                        "{}: whoever listens there is not this release's daemon: restart it",
                        socket.display()
                    ))
                }
            }),
        }
    }

    /// Has one request carried out, and hands on what happens meanwhile.
    ///
    /// # Errors
    /// The daemon's [`Failure`], or one that says how the connection ended.
    pub async fn call(
        &mut self,
        request: &Request,
        upload: Upload,
        events: &mut dyn FnMut(Event) -> Result<(), Failure>,
    ) -> Result<Answer, Failure> {
        let sent = self.send(request, upload).await?;
        loop {
            let line = match self.wire.line(PATIENCE).await {
                Ok(line) => line,
                // Why sending failed says more than that nothing came back.
                Err(error) => return Err(broken(&self.socket, &sent.err().unwrap_or(error))),
            };
            match parse(&line)? {
                Reply::Progress { done, total } => events(Event::Progress { done, total })?,
                Reply::Chunk { size } if size <= MAX_CHUNK => {
                    let bytes = self
                        .wire
                        .bytes(size, PATIENCE)
                        .await
                        .map_err(|error| broken(&self.socket, &error))?;
                    events(Event::Chunk(bytes))?;
                }
                Reply::Done { answer, body } if body <= MAX_VALUE => {
                    let value = self
                        .wire
                        .value(body, PATIENCE)
                        .await
                        .map_err(|error| broken(&self.socket, &error))?;
                    return Ok(Answer {
                        json: answer,
                        value: Some(value),
                    });
                }
                Reply::Chunk { .. } | Reply::Done { .. } => {
                    return Err(Failure::failed("the daemon answered more than it may"));
                }
                Reply::Error(failure) => return Err(failure),
            }
        }
    }

    /// The inner error is the wire's: a daemon that says no may do so before it has read everything.
    async fn send(
        &mut self,
        request: &Request,
        upload: Upload,
    ) -> Result<Result<(), WireError>, Failure> {
        let mut header = Header {
            request: request.clone(),
            body: 0,
        };
        match upload {
            Upload::Empty => Ok(self.wire.send(&header, &[], PATIENCE).await),
            Upload::Value(value) => {
                header.body = value.len();
                Ok(self.wire.send(&header, value.expose(), PATIENCE).await)
            }
            Upload::Stream(mut input) => {
                let mut sent = self.wire.send(&header, &[], PATIENCE).await;
                let mut chunk = vec![0; MAX_CHUNK];
                while sent.is_ok() {
                    let size = match input.read(&mut chunk) {
                        Ok(size) => size,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(Failure::failed(error.to_string())),
                    };
                    let bytes = chunk.get(..size).unwrap_or_default();
                    sent = self.wire.send(&Part::Chunk { size }, bytes, PATIENCE).await;
                    if size == 0 {
                        break;
                    }
                }
                Ok(sent)
            }
        }
    }
}

fn broken(socket: &Path, error: &WireError) -> Failure {
    Failure::failed(format!(
        "{}: the daemon did not answer: {error}: see its log, and whether the command was done",
        socket.display()
    ))
}
