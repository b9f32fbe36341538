//! Lines and raw bytes on a stream, both with a limit and a deadline.
//!
//! The read buffer is fixed and wiped, and bytes that belong to a value go from it straight to where they stay: no copy
//! is left behind in a buffer that grew.

use std::io;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

const BUFFER: usize = 16 << 10;

/// One side of a connection.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    longest: usize,
    buffer: Zeroizing<Vec<u8>>,
    start: usize,
    end: usize,
}

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer has closed the connection between two lines.
    #[error("the connection was closed")]
    Closed,
    /// It was silent, or too slow.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Slow(Duration),
    /// A line longer than this side takes.
    #[error("a line of more than {0} bytes")]
    Long(usize),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Takes over a connected stream, whose lines are at most `longest` bytes.
    pub fn new(stream: S, longest: usize) -> Self {
        Self {
            stream,
            longest,
            buffer: Zeroizing::new(vec![0; BUFFER]),
            start: 0,
            end: 0,
        }
    }

    /// The next line, without its newline; all of it must have come after `limit`.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn line(&mut self, limit: Duration) -> Result<Vec<u8>, WireError> {
        timeout(limit, self.line_unlimited())
            .await
            .map_err(|_| WireError::Slow(limit))?
    }

    /// Waits until something can be read, without reading it.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn ready(&mut self, limit: Duration) -> Result<(), WireError> {
        if self.start < self.end {
            return Ok(());
        }
        timeout(limit, self.fill())
            .await
            .map_err(|_| WireError::Slow(limit))?
    }

    /// Exactly `size` raw bytes; all of them must have come after `limit`.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn bytes(&mut self, size: usize, limit: Duration) -> Result<Vec<u8>, WireError> {
        timeout(limit, self.bytes_unlimited(size))
            .await
            .map_err(|_| WireError::Slow(limit))?
            .map(|mut bytes| std::mem::take(&mut *bytes))
    }

    /// As [`Wire::bytes`], for a value.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn value(&mut self, size: usize, limit: Duration) -> Result<SecretBytes, WireError> {
        self.bytes(size, limit).await.map(SecretBytes::new)
    }

    /// Writes one line of JSON and the raw bytes that it announces.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn send(
        &mut self,
        line: &impl Serialize,
        body: &[u8],
        limit: Duration,
    ) -> Result<(), WireError> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        let sending = async {
            self.stream.write_all(&text).await?;
            self.stream.write_all(body).await
        };
        timeout(limit, sending)
            .await
            .map_err(|_| WireError::Slow(limit))?
            .map_err(WireError::Broken)
    }

    async fn line_unlimited(&mut self) -> Result<Vec<u8>, WireError> {
        let mut line = Vec::new();
        loop {
            let held = self.buffer.get(self.start..self.end).unwrap_or_default();
            let (taken, ended) = match held.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at, true),
                None => (held.len(), false),
            };
            line.extend_from_slice(held.get(..taken).unwrap_or_default());
            self.start += taken + usize::from(ended);
            if line.len() > self.longest {
                return Err(WireError::Long(self.longest));
            }
            if ended {
                return Ok(line);
            }
            match self.fill().await {
                Err(WireError::Closed) if !line.is_empty() => return Err(cut_off()),
                other => other?,
            }
        }
    }

    async fn bytes_unlimited(&mut self, size: usize) -> Result<Zeroizing<Vec<u8>>, WireError> {
        let mut bytes = Zeroizing::new(vec![0; size]);
        let held = self.buffer.get(self.start..self.end).unwrap_or_default();
        let taken = held.len().min(size);
        let (head, rest) = bytes.split_at_mut(taken);
        head.copy_from_slice(held.get(..taken).unwrap_or_default());
        self.start += taken;
        match self.stream.read_exact(rest).await {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(cut_off()),
            Err(error) => Err(error.into()),
        }
    }

    /// Called only when everything in the buffer was taken.
    async fn fill(&mut self) -> Result<(), WireError> {
        (self.start, self.end) = (0, 0);
        self.end = self.stream.read(&mut self.buffer).await?;
        if self.end == 0 {
            return Err(WireError::Closed);
        }
        Ok(())
    }
}

fn cut_off() -> WireError {
    WireError::Broken(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "closed in the middle",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Part, parse};

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn lines_and_bytes_follow_each_other() {
        let (near, far) = tokio::io::duplex(64);
        let (mut near, mut far) = (Wire::new(near, 100), Wire::new(far, 100));
        let body: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = body.clone();
        let writer = tokio::spawn(async move {
            for _ in 0..3 {
                near.send(&Part::Chunk { size: sent.len() }, &sent, SOON)
                    .await
                    .unwrap();
            }
        });
        for _ in 0..3 {
            let line = far.line(SOON).await.unwrap();
            let Part::Chunk { size } = parse(&line).unwrap();
            assert_eq!(far.bytes(size, SOON).await.unwrap(), body);
        }
        writer.await.unwrap();
        assert!(matches!(far.line(SOON).await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&vec![b'x'; 2 * BUFFER]).await.unwrap();
        assert!(matches!(
            Wire::new(far, BUFFER).line(SOON).await,
            Err(WireError::Long(BUFFER))
        ));
    }

    #[tokio::test]
    async fn silence_and_a_cut_are_told_apart() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut far = Wire::new(far, 100);
        near.write_all(b"half a li").await.unwrap();
        let silent = far.line(Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(WireError::Slow(_))));
        near.write_all(b"more").await.unwrap();
        drop(near);
        assert!(matches!(far.line(SOON).await, Err(WireError::Broken(_))));
    }
}
