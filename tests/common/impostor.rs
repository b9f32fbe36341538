//! A server that is not what it should be: it has a certificate that its clients trust, answers as it is told, and notes
//! what it is asked.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::Authority;
use super::kept::free_address;
use super::runtime::runtime;

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A status, headers and a body.
    Reply(u16, Vec<(&'static str, String)>, String),
    /// A body without an end, or at least of 10 GB.
    Endless,
    /// Bytes that are no HTTP.
    Garbage,
    /// A head that goes on and on, a byte a second, and a body never.
    SlowHeaders,
    /// Nothing, on a connection that stays.
    Silence,
}

impl Answer {
    /// A status and JSON, be it of the right shape or not.
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        let kind = ("Content-Type", "application/json".to_owned());
        Self::Reply(status, vec![kind], body.to_string())
    }

    /// Somewhere else, with the method and the body kept.
    pub(crate) fn redirect(to: &str) -> Self {
        let location = ("Location", to.to_owned());
        Self::Reply(307, vec![location], String::new())
    }
}

/// What it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    /// A header's value, whatever the case of its name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |(have, _): &&(String, String)| have.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| &**value)
    }
}

#[derive(Debug)]
pub(crate) struct Impostor {
    shared: Arc<Shared>,
    address: String,
    listener: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// By what a path begins with; the last that fits is taken.
    answers: Mutex<Vec<(String, Answer)>>,
    requests: Mutex<Vec<Request>>,
    /// Bytes of bodies that somebody took.
    sent: AtomicU64,
}

impl Impostor {
    /// Starts one that answers everything like this. It ends when dropped.
    #[track_caller]
    pub(crate) fn start(authority: &Authority, answer: Answer) -> Self {
        Self::with(authority.served(), answer)
    }

    /// The same, with this certificate and key.
    #[track_caller]
    pub(crate) fn with(
        (certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
        answer: Answer,
    ) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let here = free_address();
        let listener = std::net::TcpListener::bind(here).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            answers: Mutex::new(vec![(String::new(), answer)]),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listening = listen(listener, acceptor, Arc::clone(&shared));
        Self {
            shared,
            address: format!("https://{here}"),
            listener: runtime().spawn(listening),
        }
    }

    /// `https://127.0.0.1:…`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Answers paths that begin like this (`/v1/secret/`) otherwise from now on.
    pub(crate) fn answer(&self, prefix: &str, answer: Answer) {
        let mut answers = self.shared.answers.lock().unwrap();
        answers.push((prefix.to_owned(), answer));
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many bytes of bodies it got rid of, which for an endless one tells how soon the client had enough. What the kernel
    /// holds for both sides counts, which is some megabytes.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(listener: std::net::TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    // Connections end with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let taken: io::Result<(TcpStream, SocketAddr)> = listener.accept().await;
        let Ok((stream, _)) = taken else { continue };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            // Who goes away, or does not trust us, has a reason.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut stream = BufStream::new(stream);
            let Ok(request) = read(&mut stream).await else {
                return;
            };
            let answer = shared.note(request);
            let _ = shared.give(&answer, &mut stream).await;
            let _ = stream.shutdown().await;
        });
    }
}

async fn read(
    stream: &mut BufStream<tokio_rustls::server::TlsStream<TcpStream>>,
) -> io::Result<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let mut first = lines.first().map_or("", |line| line).split(' ');
    let mut next = || first.next().unwrap_or_default().to_owned();
    let mut request = Request {
        method: next(),
        path: next(),
        headers: lines
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: String::new(),
    };
    let length = request.header("Content-Length");
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap_or(0))];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(request)
}

impl Shared {
    /// Notes what was asked, and says what to answer.
    fn note(&self, request: Request) -> Answer {
        let answers = self.answers.lock().unwrap();
        let fits = |(prefix, _): &&(String, Answer)| request.path.starts_with(prefix);
        let answer = answers.iter().rev().find(fits).unwrap().1.clone();
        self.requests.lock().unwrap().push(request);
        answer
    }

    async fn give(&self, answer: &Answer, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match answer {
            Answer::Reply(status, headers, body) => {
                let length = body.len();
                let mut head = format!("HTTP/1.1 {status} As told\r\nContent-Length: {length}\r\n");
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                to.write_all(head.as_bytes()).await?;
                to.write_all(b"Connection: close\r\n\r\n").await?;
                self.send(body.as_bytes(), to).await?;
            }
            Answer::Endless => {
                const CHUNK: usize = 64 * 1024;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
                to.write_all(head.as_bytes()).await?;
                to.write_all(b"Transfer-Encoding: chunked\r\n\r\n").await?;
                let chunk = format!("{CHUNK:x}\r\n{}\r\n", " ".repeat(CHUNK));
                for _ in 0..10_000_000_000_usize.div_ceil(CHUNK) {
                    self.send(chunk.as_bytes(), to).await?;
                }
                to.write_all(b"0\r\n\r\n").await?;
            }
            Answer::Garbage => {
                self.send(b"\x00\xffthis is no HTTP\r\n\r\n\x16\x03", to)
                    .await?;
            }
            Answer::SlowHeaders => {
                to.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").await?;
                loop {
                    to.write_all(b"a").await?;
                    to.flush().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Answer::Silence => std::future::pending().await,
        }
        to.flush().await
    }

    async fn send(&self, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(bytes).await?;
        let length = u64::try_from(bytes.len()).unwrap();
        self.sent.fetch_add(length, Ordering::SeqCst);
        Ok(())
    }
}
