//! The tree as an earlier server has left it to us.
//!
//! First what the ledger says is taken up. Then what may have happened while nobody was there is made good: what was taken
//! away meanwhile, changes of names that were under way, values that were changed and not told.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream;

use crate::backend::{BackendError, Reference, Version};
use crate::cache::Generation;
use crate::fs::handles::{Lost, Open, OpenFile, Pin};
use crate::fs::ledger::Entry;
use crate::fs::ledger::lines::{FileLine, GenerationLine, Number};
use crate::fs::node::{SecretNode, View};
use crate::fs::{Change, Fh, Left, Tree, Waiter};
use crate::secret::{Sealed, SecretPath};

/// The values that have outlived the server that fetched them, by their numbers.
pub type Values = HashMap<u64, Arc<Sealed>>;

/// What is left to do when the kernel is there.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Who polled.
    waiters: Vec<Waiter>,
    /// Changes that were under way.
    changes: HashMap<SecretPath, Vec<Entry>>,
    /// What was last shown of the secrets that are in use.
    shown: HashMap<SecretPath, GenerationLine>,
}

/// So many secrets are looked after at once.
const AT_ONCE: usize = 8;

impl Unfinished {
    /// A secret shows this generation. What is under way may have given it another value.
    fn was_shown(&mut self, path: &SecretPath, line: &GenerationLine) {
        if self.changes.contains_key(path) {
            return;
        }
        let shown = self.shown.entry(path.clone());
        let shown = shown.or_insert_with(|| line.clone());
        if shown.number < line.number {
            *shown = line.clone();
        }
    }
}

impl Tree {
    /// Takes up what an earlier server has left. Nobody has asked anything of this tree yet.
    pub fn restore(&self, left: Left, values: &Values) -> Unfinished {
        let mut unfinished = Unfinished::default();
        let nodes = self.inodes.restore(left.inodes.into_values(), left.next);
        for found in left.changes {
            self.inodes.go_on_changing(&found);
            let changes = unfinished.changes.entry(found.line.path);
            changes.or_default().push(found.entry);
        }
        let mut generations = HashMap::new();
        for (key, found) in left.generations {
            let Some((node, shown)) = nodes.get(&key.0) else {
                continue;
            };
            let is_shown = *shown == Some(key.1);
            node.restore_generation(&found.line, found.entry, is_shown);
            if node.view.follows() {
                node.secret.notice(key.1);
            }
            if is_shown && node.view.follows() && !node.is_superseded() {
                unfinished.was_shown(&node.path, &found.line);
            }
            generations.insert(key, found.line);
        }
        let mut shared = Shared::new(values);
        for found in left.files {
            let (fh, request) = (found.line.fh, found.number(Number::Given));
            let (taken, waiter) = (found.number(Number::Taken), found.number(Number::Waiter));
            let node = nodes.get(&found.line.ino);
            let generation = generations.get(&(found.line.ino, found.line.number));
            let Some(((node, _), generation)) = node.zip(generation) else {
                continue;
            };
            if waiter != 0 {
                unfinished.waiters.push(Waiter(waiter));
            }
            let open = shared.open(found.line, taken != 0, node, generation);
            self.handles.restore(fh, found.entry, request, open);
        }
        for found in left.folders {
            let (fh, request) = (found.line.fh, found.number(Number::Given));
            let open = Open::Unlisted(found.line.ino);
            self.handles.restore(fh, found.entry, request, open);
        }
        for (node, _) in nodes.into_values() {
            if node.view == View::Current && node.is_superseded() {
                // It was removed, or replaced by what nobody has seen yet: whoever has it open has an old value.
                let current = self.inodes.current(&node.path);
                if !current.is_some_and(|current| current.has_shown()) {
                    node.secret.notice(self.cache.next_number());
                }
            }
            node.settle_restored();
        }
        self.inodes.sweep();
        for (path, line) in &unfinished.shown {
            // A value that is the same keeps its number.
            let version = (&line.version, line.modified);
            self.cache
                .go_on_showing(path, version, &line.reference, line.number);
        }
        unfinished
    }

    /// The kernel is about to be given this handle, in answer to this request.
    pub fn given(&self, fh: Fh, request: u64) {
        self.handles.given(fh, request);
    }

    /// A request for a handle comes again because the server that was to answer it has died. What it has left of its answer
    /// goes.
    pub fn comes_again(&self, request: u64) {
        self.handles.comes_again(request);
    }

    /// True of a request to change a name that comes again and is to be answered as if it were the first time: the server that
    /// has died had made the change.
    #[must_use]
    pub fn has_made(&self, request: u64) -> bool {
        self.inodes.has_made(request)
    }

    /// Finishes what was left unfinished.
    pub fn finish(self: &Arc<Self>, unfinished: Unfinished) -> BoxFuture<'static, ()> {
        let tree = Arc::clone(self);
        async move {
            if let Some(kernel) = tree.kernel.get() {
                // They ask again, of us.
                let waiters = unfinished.waiters.into_iter();
                waiters.for_each(|waiter| kernel.wake(waiter));
            }
            let tree = &tree;
            let again = |(path, lines)| async move {
                tree.follow_one(&path, Change::Again).await;
                drop(lines);
            };
            let changes = stream::iter(unfinished.changes);
            changes.for_each_concurrent(AT_ONCE, again).await;
            let follow = |(path, line): (SecretPath, GenerationLine)| async move {
                if tree.has_changed(&line.version, line.reference).await {
                    tree.follow_one(&path, Change::Perhaps).await;
                }
            };
            let shown = stream::iter(unfinished.shown);
            shown.for_each_concurrent(AT_ONCE, follow).await;
        }
        .boxed()
    }

    /// Whether there is another version now, where that is told and the one who was told may have died of it.
    async fn has_changed(&self, version: &Version, reference: Reference) -> bool {
        let backend = self.cache.backends().get(&reference.backend);
        if !backend.is_some_and(|backend| backend.announces_changes()) {
            return false;
        }
        let record = Reference {
            field: None,
            ..reference
        };
        match self.cache.ask_version(record).await {
            Ok(now) => now.is_some_and(|now| now != *version),
            Err(error) => matches!(error, BackendError::Absent(_)),
        }
    }
}

/// Files are put together again; those of one value share it.
struct Shared<'a> {
    values: &'a Values,
    /// By the numbers of generation and value.
    generations: HashMap<(u64, u64), Arc<Generation>>,
}

impl<'a> Shared<'a> {
    fn new(values: &'a Values) -> Self {
        let generations = HashMap::new();
        Self {
            values,
            generations,
        }
    }

    fn open(
        &mut self,
        line: FileLine,
        taken: bool,
        node: &Arc<SecretNode>,
        shown: &GenerationLine,
    ) -> Open {
        let generation = match taken {
            true => None,
            false => self.generation(line.sealed, shown),
        };
        node.restore_pin(&line, generation.as_ref());
        let pin = Arc::new(Pin {
            node: Arc::clone(node),
            number: line.number,
        });
        match generation {
            _ if taken => Open::Taken(pin),
            Some(generation) => Open::File(Arc::new(OpenFile {
                pin,
                generation,
                reads: line.reads,
                opener: line.opener,
                superseding: line.superseding,
            })),
            None => Open::Lost(Arc::new(Lost {
                pin,
                reads: line.reads,
                version: shown.version.clone(),
            })),
        }
    }

    fn generation(&mut self, sealed: u64, shown: &GenerationLine) -> Option<Arc<Generation>> {
        let value = Arc::clone(self.values.get(&sealed)?);
        let generation = self.generations.entry((shown.number, sealed));
        let generation = generation.or_insert_with(|| {
            Arc::new(Generation {
                number: shown.number,
                version: shown.version.clone(),
                reference: shown.reference.clone(),
                value,
                description: shown.description.clone(),
                modified: shown.modified,
            })
        });
        Some(Arc::clone(generation))
    }
}
