//! A runtime that is there for as long as the test program, so that a test with or without one of its own can wait for
//! what runs on it.

use std::future::Future;
use std::sync::{OnceLock, mpsc};

use tokio::runtime::{Builder, Runtime};

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

/// Runs something there and waits for it, as a plain function does.
#[track_caller]
pub(crate) fn wait_for<T: Send + 'static>(what: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    runtime().spawn(async move { done.send(what.await) });
    result.recv().unwrap()
}
