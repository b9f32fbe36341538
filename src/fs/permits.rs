//! Permits, and where what they are for is found: both by one and the same config, whatever is reloaded meanwhile.

use std::sync::Arc;

use crate::access::{Denied, Permit};
use crate::cache::{Binding, Served};
use crate::caller::Caller;
use crate::fs::node::SecretNode;
use crate::fs::open::settle;
use crate::fs::{Catalogue, FsError, Opened, Reply, Tree};
use crate::policy::Policy;

/// How often rules are asked that are replaced twice meanwhile. A reload reads a file: nobody does that so fast.
const TRIES: usize = 8;

impl Tree {
    /// Puts the rules and the places of another config in force, for every call from now on. No open pairs those of two.
    pub fn put_in_force(&self, policy: Policy, catalogue: Catalogue) {
        self.editions.replace(catalogue, |edition| {
            self.access.replace_policy(policy, edition);
        });
    }

    /// A permit, and what the catalogue says of the very config that it was given under.
    ///
    /// # Errors
    /// [`Denied`], as `ask` says.
    pub fn permitted<R>(
        &self,
        ask: impl Fn() -> Result<Permit, Denied>,
        places: impl Fn(&Arc<Catalogue>) -> R,
    ) -> Result<(Permit, R), Denied> {
        for _ in 0..TRIES {
            let permit = ask()?;
            match self.editions.of(permit.edition()) {
                Some(catalogue) => return Ok((permit, places(&catalogue))),
                None => permit.waive(),
            }
        }
        Err(Denied::Unsettled)
    }

    /// Leave to find out what is no access of its own, and where the secret is found.
    pub(super) fn peek(
        &self,
        caller: &Caller,
        node: &SecretNode,
        action: &'static str,
    ) -> Option<(Permit, Option<Arc<Binding>>)> {
        let ask = || {
            let permit = self.access.peek(caller.clone(), &node.path, action);
            permit.ok_or(Denied::Unsettled)
        };
        self.permitted(ask, |catalogue| node.binding(catalogue))
            .ok()
    }

    /// Gives a handle away, unless what has changed since it was allowed does not allow it any more: whoever checks open
    /// handles again may have been there before this one was.
    pub(super) fn give(&self, permit: Permit, served: Served, opened: Opened) -> Reply<Opened> {
        match self.access.still(permit, &served.generation.version) {
            Ok(permit) => {
                settle(permit, &Ok(served));
                Ok(opened)
            }
            Err(_) => {
                self.release(opened.fh);
                Err(FsError::Denied)
            }
        }
    }
}
