//! One file's inode: which generation it shows, who has it open, what the kernel was told of it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::backend::Version;
use crate::cache::{Binding, Generation};
use crate::fs::types::Waiter;
use crate::fs::{Catalogue, Fh, Ino};
use crate::secret::SecretPath;

/// Which of a secret's values a file shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum View {
    /// The current one: `<name>`.
    Current,
    /// The newest that the backend has at the moment: `.fresh/<name>`.
    Fresh,
    /// The one before the current: `.previous/<name>`.
    Previous,
    /// A version: `.versions/<version>/<name>`.
    Version(Version),
}

impl View {
    /// True if a newer value takes the place of what it shows.
    pub(super) fn follows(&self) -> bool {
        match self {
            Self::Current | Self::Fresh => true,
            Self::Previous | Self::Version(_) => false,
        }
    }
}

/// What all inodes of one secret share.
#[derive(Debug, Default)]
pub(super) struct Secret {
    /// The number of the newest generation that anybody was given; 0 before.
    newest: AtomicU64,
    /// Who polls a handle.
    waiters: Mutex<Vec<(Fh, Waiter)>>,
    /// Somebody has polled: most never do, and pay for it with one look at this.
    polled: AtomicBool,
}

impl Secret {
    /// A generation of this number is known from now on. True if it takes the place of an older one.
    pub(super) fn notice(&self, number: u64) -> bool {
        let before = self.newest.fetch_max(number, Ordering::AcqRel);
        before != 0 && before < number
    }

    /// True if a newer generation than this one is known.
    pub(super) fn outdates(&self, number: u64) -> bool {
        self.newest.load(Ordering::Acquire) > number
    }

    /// True if anybody was ever given a value.
    pub(super) fn is_in_use(&self) -> bool {
        self.newest.load(Ordering::Acquire) != 0
    }

    /// Whoever polls this handle is to be woken by the next [`Secret::wake`].
    pub(super) fn wait(&self, fh: Fh, waiter: Waiter) {
        let mut waiters = self.waiters();
        self.polled.store(true, Ordering::Release);
        waiters.retain(|(other, _)| *other != fh);
        waiters.push((fh, waiter));
    }

    /// The handle is closed.
    pub(super) fn forget(&self, fh: Fh) {
        if self.polled.load(Ordering::Acquire) {
            self.waiters().retain(|(other, _)| *other != fh);
        }
    }

    /// Those who poll, to be woken.
    pub(super) fn wake(&self) -> Vec<Waiter> {
        self.waiters().drain(..).map(|(_, waiter)| waiter).collect()
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<(Fh, Waiter)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A secret's inode.
#[derive(Debug)]
pub(super) struct SecretNode {
    pub(super) ino: Ino,
    pub(super) path: SecretPath,
    pub(super) view: View,
    pub(super) secret: Arc<Secret>,
    state: Mutex<SecretState>,
    /// Told when the last handle on a generation is closed.
    closed: Notify,
}

#[derive(Debug, Default)]
struct SecretState {
    /// The size that everyone sees: 0 until a value was fetched.
    size: u64,
    /// The size that the kernel has.
    told: u64,
    /// The generation that this inode last gave to anyone.
    shown: Option<Shown>,
    /// Open handles, by generation.
    open: Vec<Pins>,
    /// The generation whose pages the page cache may hold.
    pages: Option<u64>,
    /// A newer inode has its name.
    superseded: bool,
    /// Somebody whose handle was taken away still holds it, and could read what comes into the page cache.
    barred: bool,
    /// Where it is found, and which catalogue said so.
    binding: Option<(Weak<Catalogue>, Arc<Binding>)>,
}

/// The open handles on one generation.
#[derive(Debug)]
struct Pins {
    number: u64,
    count: usize,
    /// One of them was opened to read through the page cache.
    paged: bool,
}

#[derive(Debug)]
struct Shown {
    number: u64,
    modified: Timestamp,
}

/// What has to happen so that a new handle sees its own generation and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pinned {
    /// The size the kernel must be told of before the open is answered.
    pub(super) tell: Option<Tell>,
    /// A handle on another generation is open.
    pub(super) superseding: bool,
    /// No page cache for this one.
    pub(super) direct: bool,
    /// The page cache holds pages of this very generation.
    pub(super) keep_pages: bool,
}

/// Why a handle cannot be opened on an inode: another generation is read there through the page cache, and is shorter.
/// There is one size for both, so that the older one would come with zeros at its end, or this one without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupied;

/// What the kernel must hear about an inode before an open of it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tell {
    /// The inode.
    pub ino: Ino,
    /// Its size from now on.
    pub size: u64,
    /// The size it has grown from; the kernel believes in growth only when a byte is stored at the end.
    pub grown: bool,
}

impl SecretNode {
    pub(super) fn new(ino: Ino, path: SecretPath, view: View, secret: Arc<Secret>) -> Arc<Self> {
        Arc::new(Self {
            ino,
            path,
            view,
            secret,
            state: Mutex::default(),
            closed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, SecretState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the secret is found. Asked at every open, so it is remembered as long as `catalogue` is the same.
    pub(super) fn binding(&self, catalogue: &Arc<Catalogue>) -> Option<Arc<Binding>> {
        let mut state = self.state();
        // Not even a catalogue that is gone has its address given to another while we hold the weak pointer.
        if let Some((from, binding)) = &state.binding
            && from.as_ptr() == Arc::as_ptr(catalogue)
        {
            return Some(Arc::clone(binding));
        }
        let binding = catalogue.binding(&self.path)?;
        state.binding = Some((Arc::downgrade(catalogue), Arc::clone(&binding)));
        Some(binding)
    }

    /// The size and time to show now; the caller passes them on to the kernel.
    pub(super) fn tell(&self) -> (u64, Option<Timestamp>) {
        let mut state = self.state();
        state.told = state.size;
        (state.size, state.shown.as_ref().map(|shown| shown.modified))
    }

    /// The kernel has been told this size.
    pub(super) fn told(&self, size: u64) {
        self.state().told = size;
    }

    /// True once this inode has shown a generation.
    pub(super) fn has_shown(&self) -> bool {
        self.state().shown.is_some()
    }

    /// A newer inode has the name from now on.
    pub(super) fn supersede(&self) {
        self.state().superseded = true;
    }

    /// True if a newer inode has the name.
    pub(super) fn is_superseded(&self) -> bool {
        self.state().superseded
    }

    /// A `stat` has fetched this generation. An inode that has shown one already keeps its size.
    pub(super) fn show(&self, generation: &Generation) {
        let mut state = self.state();
        if state.shown.is_none() {
            state.size = length(generation);
            state.shown = Some(Shown::of(generation));
        }
    }

    /// A handle is opened on this generation; `cached` if its reads may go through the page cache.
    pub(super) fn pin(&self, generation: &Generation, cached: bool) -> Result<Pinned, Occupied> {
        let (number, length) = (generation.number, length(generation));
        let mut state = self.state();
        if state.is_occupied(generation) {
            return Err(Occupied);
        }
        let superseding = state.open.iter().any(|pins| pins.number != number);
        let last = state.shown.as_ref().map(|shown| shown.number);
        let outdates = last.is_some_and(|last| last < number);
        // What an overtaken fetch brought to an inode that has shown a newer generation by now.
        let behind = last.is_some_and(|last| last > number);
        let taken_over = outdates && !superseding;
        // The size is the inode's: while another handle lives it must not shrink under its mappings.
        state.size = if superseding || behind {
            state.size.max(length)
        } else {
            length
        };
        if outdates || last.is_none() {
            state.shown = Some(Shown::of(generation));
        }
        // A superseded inode may stand for one generation after the other: never through the page cache.
        let paged = cached
            && self.view == View::Current
            && !(superseding || outdates || behind || state.superseded || state.barred);
        match state.open.iter_mut().find(|pins| pins.number == number) {
            Some(pins) => {
                pins.count += 1;
                pins.paged |= paged;
            }
            None => state.open.push(Pins {
                number,
                count: 1,
                paged,
            }),
        }
        let keep_pages = paged && state.pages == Some(number);
        // A handle past the page cache fills it all the same where it is mapped.
        state.pages = paged.then_some(number);
        let tell = (state.told != state.size || taken_over).then_some(Tell {
            ino: self.ino,
            size: state.size,
            grown: state.told < state.size,
        });
        Ok(Pinned {
            tell,
            superseding,
            direct: !paged,
            keep_pages,
        })
    }

    /// Whether the kernel still has to be told this: of two opens that both had to, the first has done it for both.
    pub(super) fn is_untold(&self, tell: Tell) -> bool {
        !tell.grown || self.state().told < tell.size
    }

    /// A handle on this generation is closed.
    pub(super) fn unpin(&self, number: u64) {
        let mut state = self.state();
        if let Some(pins) = state.open.iter_mut().find(|pins| pins.number == number) {
            pins.count = pins.count.saturating_sub(1);
        }
        let before = state.open.len();
        state.open.retain(|pins| pins.count > 0);
        // With the last handle the last descriptor and the last mapping are gone.
        state.barred &= !state.open.is_empty();
        if state.open.len() < before {
            self.closed.notify_waiters();
        }
    }

    /// Waits until this generation can be opened here.
    pub(super) async fn vacated(&self, generation: &Generation) {
        loop {
            let mut closed = pin!(self.closed.notified());
            // From here on none is missed.
            closed.as_mut().enable();
            if !self.state().is_occupied(generation) {
                return;
            }
            closed.await;
        }
    }

    /// A handle was taken away whose owner still holds a descriptor: from now on, until the last handle is closed, nothing
    /// comes into the page cache.
    pub(super) fn bar(&self) {
        let mut state = self.state();
        state.barred = !state.open.is_empty();
        state.pages = None;
    }

    /// True while nothing may come into the page cache.
    pub(super) fn is_barred(&self) -> bool {
        self.state().barred
    }

    /// The kernel is asked to drop what the page cache holds. False if that can be nothing.
    pub(super) fn drop_pages(&self) -> bool {
        self.state().pages.take().is_some()
    }

    /// True while a handle on another generation is open.
    pub(super) fn is_shared_with_another_generation(&self, number: u64) -> bool {
        self.state().open.iter().any(|pins| pins.number != number)
    }
}

impl SecretState {
    /// Whether [`Occupied`] holds for this generation.
    fn is_occupied(&self, generation: &Generation) -> bool {
        let mut others = self
            .open
            .iter()
            .filter(|pins| pins.number != generation.number);
        length(generation) > self.size && others.any(|pins| pins.paged)
    }
}

impl Shown {
    fn of(generation: &Generation) -> Self {
        Self {
            number: generation.number,
            modified: generation.modified,
        }
    }
}

fn length(generation: &Generation) -> u64 {
    u64::try_from(generation.value.len()).unwrap_or(u64::MAX)
}
