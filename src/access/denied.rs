//! What `access` answers when it is not a permit.

use std::sync::Arc;

use super::{Limited, Spread};
use crate::audit::Outcome;
use crate::caller::{Caller, CallerError};
use crate::policy::revocation::Revocation;
use crate::policy::{Reason, RuleName};

/// Why an access was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// By the policy.
    #[error(transparent)]
    Policy(#[from] Reason),
    /// What a rule needs to know of the caller cannot be found out.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// The rules would allow it, but it was taken away.
    #[error("{0}")]
    Revoked(Arc<Revocation>),
    /// The handle was taken away, and may be opened anew.
    #[error("the handle was taken away when rules or revocations changed: open the file again")]
    Taken,
    /// It could not have been written down.
    #[error("the audit log cannot be written: {0}")]
    Audit(String),
    /// The rules were replaced again and again while they were asked.
    #[error("the config is being replaced")]
    Unsettled,
    /// The policy allows it, but the caller's uid asked for the newest too often.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// The policy allows it, but too many different secrets were fetched for the caller's uid.
    #[error(transparent)]
    Spread(#[from] Spread),
}

impl Denied {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Policy(_)
            | Self::Caller(_)
            | Self::Audit(_)
            | Self::Unsettled
            | Self::Limited(_)
            | Self::Spread(_) => Outcome::Denied,
            Self::Revoked(_) | Self::Taken => Outcome::Revoked,
        }
    }
}

/// Whether an open handle may stay.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recheck {
    /// Yes.
    Allowed,
    /// A rule wants to know something of the opener that was not known when it opened.
    Unsure,
    /// No: what it was opened for may not be read any more.
    Revoked,
}

/// What the policy says of a caller, with everything that it wanted to know.
#[derive(Debug)]
pub struct Explanation {
    /// The rule that allows, or why none does.
    pub decision: Result<RuleName, Denied>,
    /// The caller, as far as it was found out.
    pub caller: Caller,
}
