//! What threads share where a reload meets an open: the same code over the real thing and under shuttle.
//!
//! Under the cargo feature `shuttle`, which is for `tests/races` alone, each use of these types is a point where another
//! thread may come in between, and the test tries out which.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::Mutex;

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::Mutex;

pub(crate) use swap::{Guard, Swap};

#[cfg(not(feature = "shuttle"))]
mod swap {
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    /// A value that is replaced as a whole while others look at it. Looking never waits.
    #[derive(Debug)]
    pub(crate) struct Swap<T>(ArcSwap<T>);

    /// The value as it was when it was looked at.
    pub(crate) type Guard<T> = arc_swap::Guard<Arc<T>>;

    impl<T> Swap<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(ArcSwap::from_pointee(value))
        }

        pub(crate) fn load(&self) -> Guard<T> {
            self.0.load()
        }

        pub(crate) fn store(&self, value: T) {
            self.0.store(Arc::new(value));
        }
    }
}

#[cfg(feature = "shuttle")]
mod swap {
    use std::sync::{Arc, PoisonError};

    use shuttle::sync::RwLock;

    /// A value that is replaced as a whole while others look at it.
    #[derive(Debug)]
    pub(crate) struct Swap<T>(RwLock<Arc<T>>);

    /// The value as it was when it was looked at.
    pub(crate) type Guard<T> = Arc<T>;

    impl<T> Swap<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(RwLock::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Guard<T> {
            Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
        }

        pub(crate) fn store(&self, value: T) {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        }
    }
}
