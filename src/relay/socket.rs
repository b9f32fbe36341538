//! An audit log that comes over a socket, to which the server connects.
//!
//! Lines are always taken from it, whatever the broker does: a server stops serving when its audit devices do.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Sink;
use super::lines::Lines;

/// How many may be connected at once.
const CONNECTIONS: usize = 16;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// How long it is waited after a connection could not be taken.
const PAUSE: Duration = Duration::from_secs(1);

/// A socket that waits for the server.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    /// What is to be removed in the end.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What one connection brings.
enum Brought {
    Line(Vec<u8>),
    Lost,
}

impl Listener {
    /// Listens at a path, or at an address of this machine's own. Within a runtime.
    ///
    /// # Errors
    /// When the place is no such one, or is taken.
    pub async fn bind(place: &str) -> io::Result<Self> {
        if let Ok(address) = place.parse::<SocketAddr>() {
            if !address.ip().is_loopback() {
                return Err(io::Error::other(
                    "write an address of this machine's own, as in 127.0.0.1:9090: what comes is not encrypted",
                ));
            }
            let kind = Kind::Tcp(TcpListener::bind(address).await?);
            return Ok(Self { kind, path: None });
        }
        let path = Path::new(place);
        if !path.is_absolute() {
            return Err(io::Error::other(
                "write an absolute path, or an address as in 127.0.0.1:9090",
            ));
        }
        // One that a relay left behind when it was killed.
        let left = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
        if left && UnixStream::connect(path).is_err() {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        // The server may run as another user of the group.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Self {
            kind: Kind::Unix(listener),
            path: Some(path.to_owned()),
        })
    }

    /// Takes what the server says, for as long as it is waited for.
    pub async fn run(self, sink: &Sink<'_>) {
        let (brought, mut lines) = mpsc::channel(256);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                    return;
                };
                let brought = brought.clone();
                let accepted = self.accept().await;
                while connections.try_join_next().is_some() {}
                match accepted {
                    Ok(stream) => {
                        connections.spawn(async move {
                            let _permit = permit;
                            read(stream, &brought).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the audit socket takes no connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        };
        let pass_on = async {
            while let Some(brought) = lines.recv().await {
                match brought {
                    Brought::Line(line) => sink.line(&line),
                    Brought::Lost => sink.missed(),
                }
            }
        };
        tokio::join!(accept, pass_on);
    }

    async fn accept(&self) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(match &self.kind {
            Kind::Unix(listener) => Box::new(listener.accept().await?.0),
            Kind::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Reads a connection to its end. The server may be silent for as long as nobody asks it for anything.
async fn read(mut stream: Box<dyn AsyncRead + Send + Unpin>, brought: &mpsc::Sender<Brought>) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; CHUNK];
    // Nobody knows what was said before.
    let mut lost = true;
    loop {
        let mut whole = Vec::new();
        if lost {
            whole.push(Brought::Lost);
        }
        let read = stream.read(&mut buffer).await.unwrap_or_default();
        let bytes = buffer.get(..read).unwrap_or_default();
        lost = lines.take(bytes, |line| whole.push(Brought::Line(line.to_vec())));
        for one in whole {
            if brought.send(one).await.is_err() {
                return;
            }
        }
        if read == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::signal::outbox::Outbox;

    const LINE: &[u8] =
        b"{\"type\":\"response\",\"request\":{\"operation\":\"update\",\"mount_type\":\"kv\",\"path\":\"kv1/a\"}}\n";

    /// What is told while a client speaks.
    async fn told(listener: Listener, client: impl Future<Output = ()>) -> Vec<Option<String>> {
        let outbox = Outbox::new("vault".parse().unwrap());
        let sink = Sink {
            namespace: "",
            outbox: &outbox,
            each: &|_| {},
        };
        let mut told = Vec::new();
        let heard = async {
            client.await;
            while !told.contains(&Some("kv1/a".to_owned())) {
                outbox.filled().await;
                told.extend(outbox.take().into_iter().map(|message| message.path));
            }
        };
        tokio::select! {
            () = listener.run(&sink) => panic!("it never ends"),
            () = heard => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("nothing is told"),
        }
        told
    }

    #[tokio::test]
    async fn a_server_connects_to_a_path_and_its_lines_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.sock");
        let place = path.to_str().unwrap();
        // One that was left behind is no hindrance, one that is in use is.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(place).await.unwrap();
        assert!(Listener::bind(place).await.is_err());
        let client = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(LINE).await.unwrap();
        };
        assert_eq!(told(listener, client).await[0], None);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_server_connects_to_an_address_of_this_machine() {
        for place in ["0.0.0.0:0", "192.0.2.1:9090", "audit.sock", ""] {
            assert!(Listener::bind(place).await.is_err(), "{place}");
        }
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let Kind::Tcp(socket) = &listener.kind else {
            panic!("{listener:?}");
        };
        let address = socket.local_addr().unwrap();
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(LINE).await.unwrap();
        };
        told(listener, client).await;
    }
}
