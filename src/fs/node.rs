//! One file's inode: which generation it shows, who has it open, what the kernel was told of it.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::backend::Version;
use crate::cache::{Binding, Generation};
use crate::fs::ledger::Ledger;
use crate::fs::{Catalogue, Ino};
use crate::secret::SecretPath;
use crate::sys::Tid;

mod secret;
mod written;

pub(super) use secret::{Secret, Sent};
use written::Written;

/// Which of a secret's values a file shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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

/// A secret's inode.
#[derive(Debug)]
pub(super) struct SecretNode {
    pub(super) ino: Ino,
    pub(super) path: SecretPath,
    pub(super) view: View,
    pub(super) secret: Arc<Secret>,
    ledger: Arc<Ledger>,
    /// An earlier server knew it, and it had lost its name then.
    inherited: bool,
    state: Mutex<SecretState>,
    /// Told when the last handle on a generation is closed, and when the name goes to another inode.
    moved: Notify,
}

#[derive(Debug, Default)]
struct SecretState {
    /// The size that everyone sees: 0 until a value was fetched.
    size: u64,
    /// The size that the kernel has for sure: the first that it was given, until it is told another. What a reply says
    /// of another size does not count, because the kernel drops replies that others overtook.
    told: Option<u64>,
    /// The generation that this inode last gave to anyone.
    shown: Option<Shown>,
    /// Open handles, by generation.
    open: Vec<Pins>,
    /// The first generation that it gave to anyone; of an inode that was made for a generation, that one.
    first: Option<u64>,
    /// The newest generation that waited in vain to have the inode for itself.
    waited: Option<u64>,
    /// The generation whose pages the page cache may hold.
    pages: Option<u64>,
    /// An earlier server has shown it, and the page cache may still hold what nobody knows.
    unsure: bool,
    /// A newer inode has its name.
    superseded: bool,
    /// It has no name yet.
    nameless: bool,
    /// Somebody whose handle was taken away still holds it, and could read what comes into the page cache.
    barred: bool,
    /// Where it is found, and which catalogue said so.
    binding: Option<(Weak<Catalogue>, Arc<Binding>)>,
    written: Written,
}

/// The open handles on one generation.
#[derive(Debug)]
struct Pins {
    number: u64,
    /// There for as long as one of them was not taken away.
    generation: Weak<Generation>,
    count: usize,
    /// One of them was opened to read through the page cache, and may be closed by now: its pages are still there.
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

/// Why a handle is not opened on an inode: another generation is open there.
///
/// An inode has one size and one set of pages. With two generations open the older one may come with zeros at its end, or
/// this one without its end; and what the older one's readers have in the page cache a `sendfile` from this one would find
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupied;

/// With whom a new handle may share its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// With nobody who has seen another generation, so that size and pages are this generation's.
    Never,
    /// With those on other generations, unless they read through the page cache. read(2) is right on each of them.
    Unpaged,
    /// With any.
    Any,
}

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
    pub(super) fn new(
        ino: Ino,
        path: SecretPath,
        view: View,
        secret: Arc<Secret>,
        ledger: Arc<Ledger>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ino,
            path,
            view,
            secret,
            ledger,
            inherited: false,
            state: Mutex::default(),
            moved: Notify::new(),
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
        let size = state.size;
        state.told.get_or_insert(size);
        self.keep_written(&mut state);
        (size, state.shown.as_ref().map(|shown| shown.modified))
    }

    /// The kernel has been told this size.
    pub(super) fn told(&self, size: u64) {
        let mut state = self.state();
        state.told = Some(size);
        state.unsure = false;
        self.keep_written(&mut state);
    }

    /// True once this inode has shown a generation.
    pub(super) fn has_shown(&self) -> bool {
        self.state().shown.is_some()
    }

    /// A newer inode has the name from now on.
    pub(super) fn supersede(&self) {
        let mut state = self.state();
        state.superseded = true;
        self.keep_written(&mut state);
        drop(state);
        self.moved.notify_waiters();
    }

    /// It has no name before it is [named](Self::name).
    pub(super) fn without_name(self: Arc<Self>) -> Arc<Self> {
        self.state().nameless = true;
        self
    }

    /// It has the name from now on.
    pub(super) fn name(&self) {
        let mut state = self.state();
        // An earlier server may have begun to name it.
        (state.nameless, state.superseded) = (false, false);
        self.keep_written(&mut state);
    }

    /// True if a newer inode has the name.
    pub(super) fn is_superseded(&self) -> bool {
        self.state().superseded
    }

    /// A `stat` has fetched this generation. An inode that has shown one already keeps its size.
    pub(super) fn show(&self, generation: &Generation) {
        let mut state = self.state();
        if state.shown.is_none() {
            state.shows_first(generation);
            self.keep_generation(&mut state, generation);
        }
    }

    /// It is about to get the name for this generation, perhaps instead of an older one that it was made for.
    pub(super) fn make_for(&self, generation: &Generation) {
        let mut state = self.state();
        let newer = |shown: &Shown| shown.number < generation.number;
        if state.open.is_empty() && state.shown.as_ref().is_none_or(newer) {
            state.shows_first(generation);
            self.keep_generation(&mut state, generation);
        }
    }

    /// True if a newer inode has the name, and this one shows an older generation than the newest. Mostly.
    pub(super) fn is_outdated(&self) -> bool {
        let state = self.state();
        let newest = self.secret.newest.load(Ordering::Acquire);
        state.superseded && self.view == View::Current && !state.is_at(newest)
    }

    /// Whence this thread was sent away just now. Who comes to an inode that had lost its name when an earlier server was
    /// there may have been sent away by that one, and the kernel tries no third time.
    pub(super) fn came_back(&self, tid: Tid) -> Option<Sent> {
        let here = || Sent {
            ino: self.ino,
            newest: self.secret.newest.load(Ordering::Acquire),
        };
        let sent = self.secret.came_back(tid);
        sent.or_else(|| self.inherited.then(here))
    }

    /// Sends an open away.
    pub(super) fn send_away(&self, tid: Tid) {
        self.secret.send_away(tid, self.ino);
    }

    /// True if it has shown a newer generation than this one.
    pub(super) fn is_beyond(&self, number: u64) -> bool {
        let state = self.state();
        state
            .shown
            .as_ref()
            .is_some_and(|shown| shown.number > number)
    }

    /// The generation that it shows to whoever has it open, if it is not older than `least`. That is new enough for who came
    /// by a name that led here after `least` was the newest.
    pub(super) fn own(&self, least: u64) -> Option<Arc<Generation>> {
        let state = self.state();
        let number = state.shown.as_ref()?.number;
        let pins = state.open.iter().find(|pins| pins.number == number)?;
        let own = pins.generation.upgrade()?;
        (number >= least).then_some(own)
    }

    /// True if it was made for an older generation than this one.
    pub(super) fn is_older_than(&self, number: u64) -> bool {
        self.state().first.is_some_and(|first| first < number)
    }

    /// A handle is opened on this generation; `cached` if its reads may go through the page cache.
    pub(super) fn pin(
        &self,
        generation: &Arc<Generation>,
        cached: bool,
        sharing: Sharing,
    ) -> Result<Pinned, Occupied> {
        let (number, length) = (generation.number, length(generation));
        let mut state = self.state();
        let mut others = state.open.iter().filter(|pins| pins.number != number);
        let last = state.shown.as_ref().map(|shown| shown.number);
        // What an overtaken fetch brought to an inode that has shown a newer generation by now.
        let behind = last.is_some_and(|last| last > number);
        let occupied = match sharing {
            Sharing::Never => last.is_some_and(|last| last != number) || others.next().is_some(),
            // Then it is fetched again: a handle on the newer one would take this for its own size and pages.
            Sharing::Unpaged | Sharing::Any if behind && self.view == View::Current => true,
            Sharing::Unpaged => others.any(|pins| pins.paged),
            Sharing::Any => false,
        };
        if occupied {
            return Err(Occupied);
        }
        let superseding = state.open.iter().any(|pins| pins.number != number);
        let outdates = last.is_some_and(|last| last < number);
        let taken_over = outdates && !superseding;
        // The size is the inode's: while another handle lives it must not shrink under its mappings.
        state.size = if superseding || behind {
            state.size.max(length)
        } else {
            length
        };
        if outdates || last.is_none() {
            state.shown = Some(Shown::of(generation));
            state.first.get_or_insert(number);
        }
        // A superseded inode may stand for one generation after the other: never through the page cache. Of an empty
        // file the kernel answers such reads itself, and would after a revocation.
        let paged = cached
            && length > 0
            && self.view == View::Current
            && !(superseding || outdates || behind || state.superseded || state.barred);
        match state.open.iter_mut().find(|pins| pins.number == number) {
            Some(pins) => {
                pins.count += 1;
                pins.paged |= paged;
            }
            None => state.open.push(Pins {
                number,
                generation: Arc::downgrade(generation),
                count: 1,
                paged,
            }),
        }
        let keep_pages = paged && state.pages == Some(number);
        // A handle past the page cache fills it all the same where it is mapped.
        state.pages = paged.then_some(number);
        let told = state.told.unwrap_or_default();
        let tell = (told != state.size || taken_over || state.unsure).then_some(Tell {
            ino: self.ino,
            size: state.size,
            grown: told < state.size,
        });
        self.keep_generation(&mut state, generation);
        Ok(Pinned {
            tell,
            superseding,
            direct: !paged,
            keep_pages,
        })
    }

    /// Whether the kernel still has to be told this: of two opens that both had to, the first has done it for both.
    pub(super) fn is_untold(&self, tell: Tell) -> bool {
        !tell.grown || self.state().told < Some(tell.size)
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
            self.drop_generations(&mut state);
            self.moved.notify_waiters();
        }
    }

    /// Waits until `done`.
    async fn until(&self, done: impl Fn(&SecretState, u64) -> bool) {
        loop {
            let mut moved = pin!(self.moved.notified());
            // From here on none is missed.
            moved.as_mut().enable();
            let newest = self.secret.newest.load(Ordering::Acquire);
            if done(&self.state(), newest) {
                return;
            }
            moved.await;
        }
    }

    /// Waits until the name has gone to another inode, unless this is the newest generation's own.
    pub(super) async fn moved(&self, within: Duration) {
        let done = |state: &SecretState, newest| state.superseded || state.is_at(newest);
        let _ = tokio::time::timeout(within, self.until(done)).await;
    }

    /// Waits until the inode is free for this generation. One wait in vain is enough for each.
    pub(super) async fn free_for(&self, number: u64, within: Duration) {
        if self.state().waited >= Some(number) {
            return;
        }
        let free = self.until(SecretState::is_free);
        if tokio::time::timeout(within, free).await.is_err() {
            let mut state = self.state();
            state.waited = state.waited.max(Some(number));
        }
    }

    /// A handle was taken away whose owner still holds a descriptor: from now on, until the last handle is closed, nothing
    /// comes into the page cache.
    pub(super) fn bar(&self) {
        let mut state = self.state();
        state.barred = !state.open.is_empty();
        state.pages = None;
        self.keep_written(&mut state);
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
    /// True if nobody has another than the newest generation open.
    fn is_free(&self, newest: u64) -> bool {
        self.open.iter().all(|pins| pins.number >= newest)
    }

    /// True if it shows the newest generation to everyone, or nothing to anyone.
    fn is_at(&self, newest: u64) -> bool {
        let current = |shown: &Shown| shown.number >= newest;
        self.shown.as_ref().is_none_or(current) && self.is_free(newest)
    }

    fn shows_first(&mut self, generation: &Generation) {
        self.size = length(generation);
        self.shown = Some(Shown::of(generation));
        self.first = Some(generation.number);
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
