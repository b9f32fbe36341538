//! What the cache and the tree reply: now, or from a task.

use futures_util::future::BoxFuture;

/// An answer at once, or one that has to be waited for.
pub enum Answer<T> {
    /// At once.
    Ready(T),
    /// From a task.
    Pending(BoxFuture<'static, T>),
}

impl<T: Send + 'static> Answer<T> {
    /// The same answer, turned into something else.
    pub fn map<U>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Answer<U> {
        match self {
            Self::Ready(value) => Answer::Ready(change(value)),
            Self::Pending(future) => Answer::Pending(Box::pin(async move { change(future.await) })),
        }
    }

    /// The same answer, turned into another that may have to be waited for, too.
    pub fn then<U>(self, change: impl FnOnce(T) -> Answer<U> + Send + 'static) -> Answer<U>
    where
        U: Send + 'static,
    {
        match self {
            Self::Ready(value) => change(value),
            Self::Pending(future) => {
                Answer::Pending(Box::pin(async move { change(future.await).wait().await }))
            }
        }
    }

    /// Waits for it.
    pub async fn wait(self) -> T {
        match self {
            Self::Ready(value) => value,
            Self::Pending(future) => future.await,
        }
    }
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}
