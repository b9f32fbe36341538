//! export, restore, rekey: the store as a whole.

use std::io::{self, Read, Write};
use std::path::Path;

use tokio::sync::mpsc;

use super::{Job, answer, failed, settle, store_failure};
use crate::access::Mandate;
use crate::audit::Outcome;
use crate::backend::store::{Identity, OpenWith, Prompt, Recipient, SealTo, Store, StoreError};
use crate::control::answers::Stored;
use crate::control::protocol::MAX_CHUNK;
use crate::control::{Answer, Event, Failure, Interrupted};
use crate::secret::{Name, SecretBytes};

impl Job<'_> {
    pub(super) fn export(&self, backend: Option<&Name>) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "export", None)?;
        let (name, store) = self.store(backend)?;
        let mut output = Chunks {
            events: &self.events,
            held: Vec::with_capacity(MAX_CHUNK),
        };
        let recipients = store.recipients();
        let exported = store
            .export(
                &mut output,
                SealTo::Recipients(&recipients),
                &mut |done, total| {
                    self.progress(done, total);
                },
            )
            .and_then(|()| output.flush().map_err(StoreError::Export));
        ended(mandate, name, store, exported)
    }

    pub(super) fn restore(
        &self,
        backend: Option<&Name>,
        replace: bool,
        copy: mpsc::Receiver<Result<Vec<u8>, Interrupted>>,
    ) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "restore", None)?;
        let (name, store) = self.store(backend)?;
        let identity = store.identity();
        let mut input = Parts {
            parts: copy,
            held: io::Cursor::new(Vec::new()),
        };
        let with = OpenWith::Identity(&identity);
        let doubt = self.parts.tree.doubt(name);
        let restored = store.restore(&mut input, with, replace, &mut |done, total| {
            self.progress(done, total);
        });
        // What failed late may have changed something all the same.
        self.runtime.block_on(self.parts.tree.invalidate_all());
        drop(doubt);
        ended(mandate, name, store, restored)
    }

    /// `identity` is the content of the identity file that opens the store afterwards.
    pub(super) fn rekey(
        &self,
        backend: Option<&Name>,
        recipients: &[String],
        identity: &SecretBytes,
    ) -> Result<Answer, Failure> {
        let mandate = self.mandate(None, "rekey", None)?;
        let (name, store) = self.store(backend)?;
        let others: Result<Vec<Recipient>, _> =
            recipients.iter().map(|text| text.parse()).collect();
        let others = others.map_err(|error| Failure::usage(format!("--recipient: {error}")))?;
        let identity = Identity::parse(identity, Path::new("the new identity"), &Prompt::nobody())
            .map_err(|error| Failure::usage(error.to_string()))?;
        let rekeyed = store.rekey(&identity, &others, &mut |done, total| {
            self.progress(done, total);
        });
        // Nobody waits for the network to have the old identity out of use; `doctor` says what is wrong with the file.
        if let Some(daemon) = &self.parts.daemon {
            let _ = daemon.renew_offline();
        }
        ended(mandate, name, store, rekeyed)
    }
}

/// Writes down how it ended, and says what the store is now.
fn ended(
    mandate: Mandate,
    name: &Name,
    store: &Store,
    result: Result<(), StoreError>,
) -> Result<Answer, Failure> {
    if let Err(error) = result {
        return Err(failed(mandate, store_failure(&error)));
    }
    settle(mandate, Outcome::Allowed, None)?;
    let recipients = store.recipients();
    answer(&Stored {
        backend: name.clone(),
        secrets: store.len(),
        recipients: recipients.iter().map(Recipient::to_string).collect(),
    })
}

/// What is written becomes chunks of the answer. Ciphertext only.
struct Chunks<'a> {
    events: &'a mpsc::Sender<Event>,
    held: Vec<u8>,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_CHUNK.saturating_sub(self.held.len());
        let taken = bytes.len().min(room);
        self.held
            .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.held.len() >= MAX_CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.held, Vec::with_capacity(MAX_CHUNK));
        self.events
            .blocking_send(Event::Chunk(chunk))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, Interrupted))
    }
}

/// The chunks of a request, read as one.
struct Parts {
    parts: mpsc::Receiver<Result<Vec<u8>, Interrupted>>,
    held: io::Cursor<Vec<u8>>,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.held.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.parts.blocking_recv() {
                Some(Ok(part)) => self.held = io::Cursor::new(part),
                Some(Err(interrupted)) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, interrupted));
                }
                None => return Ok(0),
            }
        }
    }
}
