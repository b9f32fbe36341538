//! Threads that the kernel may keep.
//!
//! Some calls wait in the kernel for a folder or a page that somebody else holds, or for the answer to a request of our own, and not
//! even SIGKILL ends that wait. A process has ended, and what it had open is closed, when its last thread has: a server that was
//! killed while one waits would keep the locks of its stores. The next one waits for those, and it may be its answer that the
//! thread waits for.
//!
//! So such calls have threads that have nothing open but what they need, and do nothing else.

use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc;
use std::thread;

use crate::sys;

type Call = Box<dyn FnOnce() + Send>;

/// A thread that makes calls for one other. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Hand {
    calls: mpsc::Sender<Call>,
}

impl Hand {
    /// Starts one, which has only these descriptors. What `enter` gives stays as long as the thread.
    pub(super) fn start<T: 'static>(
        name: &str,
        descriptors: Vec<RawFd>,
        enter: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (calls, work) = mpsc::channel::<Call>();
        let work = move || {
            if let Err(error) = sys::keep_only(&descriptors) {
                tracing::debug!(%error, "a thread that the kernel may keep has everything open");
            }
            let _here = enter();
            work.into_iter().for_each(|call| call());
        };
        thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { calls })
    }

    /// Waits for a call. What it has of others it must not be the last to drop: it cannot close what they have open.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = mpsc::channel();
        let call = move || drop(answer.send(call()));
        // If the thread is gone so is the other end of `answered`.
        let _ = self.calls.send(Box::new(call));
        answered.recv().map_err(io::Error::other).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read, Write};
    use std::os::fd::AsRawFd;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_others_close_a_hand_does_not_hold() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut held, kept) = io::pipe().unwrap();
        let kept = Arc::new(kept);
        let hand = Hand::start("hand", vec![kept.as_raw_fd()], || {}).unwrap();
        let write = |to: &Arc<PipeWriter>| {
            let to = Arc::clone(to);
            hand.call(move || (&*to).write_all(b"x"))
        };
        write(&kept).unwrap();
        let mut byte = [0];
        held.read_exact(&mut byte).unwrap();
        let writer = Arc::new(writer);
        let error = write(&writer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
        // The end of it is seen although the hand lives on.
        drop(writer);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
        write(&kept).unwrap();
    }

    #[test]
    fn what_a_hand_s_thread_was_entered_with_ends_with_it() {
        let (entered, left) = mpsc::channel::<()>();
        let hand = Hand::start("hand", Vec::new(), move || entered).unwrap();
        hand.call(|| Ok(())).unwrap();
        assert_eq!(left.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(hand);
        assert_eq!(left.recv(), Err(mpsc::RecvError));
    }
}
