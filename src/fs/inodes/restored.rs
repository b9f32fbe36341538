//! Inodes as an earlier server has written them down.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Ino, Inodes, Known, Node};
use crate::fs::ledger::Found;
use crate::fs::ledger::lines::{ChangeLine, InodeLine, Number, What, mark};
use crate::fs::node::{Secret, SecretNode, View};
use crate::secret::SecretPath;

/// Inodes of secrets, and which generation each has shown last.
pub(in crate::fs) type Files = HashMap<Ino, (Arc<SecretNode>, Option<u64>)>;

impl Inodes {
    /// Takes these up, and gives the secrets' among them, each with the number of the generation that it showed last. No number
    /// below `next` is given any more.
    pub(in crate::fs) fn restore(
        &self,
        found: impl Iterator<Item = Found<InodeLine>>,
        next: u64,
    ) -> Files {
        let mut table = self.table_mut();
        let (mut secrets, mut files) = (HashMap::<SecretPath, Arc<Secret>>::new(), Files::new());
        for found in found {
            let (ino, facts) = (found.line.ino, found.line.facts);
            let lookups = found.number(Number::Lookups);
            if lookups > 0 {
                table.lookups.insert(ino, lookups);
            }
            match found.line.what.clone() {
                What::Service(name) => {
                    table.folders.insert(ino, found.entry);
                    table.nodes.insert(ino, Node::Service(name.clone()));
                    table.services.insert(name, ino);
                }
                What::Hidden(service, hidden) => {
                    table.folders.insert(ino, found.entry);
                    let node = Node::Hidden(service.clone(), hidden.clone());
                    table.nodes.insert(ino, node);
                    table.hidden.insert((service, hidden), ino);
                }
                What::Secret(path, view) => {
                    let secret = Arc::clone(secrets.entry(path.clone()).or_default());
                    let (shared, ledger) = (Arc::clone(&secret), Arc::clone(&table.ledger));
                    let place = (path.clone(), view.clone());
                    let node = SecretNode::restored(found, place, shared, ledger);
                    table.nodes.insert(ino, Node::Secret(Arc::clone(&node)));
                    files.insert(ino, (node, facts.shown));
                    match view {
                        View::Current if facts.named => {
                            let current = ino;
                            table.secrets.insert(path, Known { secret, current });
                        }
                        // Another has its name, or none.
                        View::Current => {}
                        view @ (View::Fresh | View::Previous | View::Version(_)) => {
                            table.views.insert((path, view), ino);
                        }
                    }
                }
            }
        }
        table.next = table.next.max(next);
        files
    }

    /// Makes what is missing of a change of this name, if an earlier server had begun to make it. The kernel, which may not have
    /// been answered, asks once more then, and is to get the answer that it would have got.
    pub(in crate::fs) fn go_on_changing(&self, change: &Found<ChangeLine>) {
        let given = change.number(Number::Given);
        if given == 0 {
            return;
        }
        let [loses, gets] = [Number::Loses, Number::Gets].map(|which| Ino(change.number(which)));
        let path = &change.line.path;
        let mut table = self.table_mut();
        table.made.insert(given);
        if let Some(node) = table.current(path)
            && node.ino == loses
        {
            node.supersede();
            table.secrets.remove(path);
        }
        if let Some(Node::Secret(node)) = table.nodes.get(&gets).cloned()
            && !table.secrets.contains_key(path)
        {
            node.name();
            let (secret, current) = (Arc::clone(&node.secret), gets);
            table
                .secrets
                .insert(path.clone(), Known { secret, current });
        }
    }

    /// True of a request that an earlier server was about to answer, as it had begun to make the change.
    pub(in crate::fs) fn has_made(&self, request: u64) -> bool {
        self.table().made.contains(&mark(request))
    }

    /// Drops what neither the kernel nor a name nor a handle leads to.
    pub(in crate::fs) fn sweep(&self) {
        let mut table = self.table_mut();
        let all: Vec<Ino> = table.nodes.keys().copied().collect();
        all.into_iter().for_each(|ino| table.drop_unnamed(ino));
    }
}
