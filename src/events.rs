//! What happens, told to whoever listens: a bus without memory.
//!
//! Telling never waits and costs next to nothing while nobody listens. Who listens and is too slow misses events, and
//! hears how many. Nothing here asks who may hear what: whoever hands events on sees to that. Never a value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use crate::backend::Version;
use crate::clock::Clock;
use crate::secret::{Name, SecretPath};
use crate::sys::{Gid, Uid};

/// How many events one listener may be behind.
const BACKLOG: usize = 1024;

/// For how long denials are counted together.
const WINDOW: Duration = Duration::from_secs(1);
/// How many denials of one user are told in that time: who is denied in a loop must not drown what others hear.
const TOLD_PER_UID: u32 = 20;
/// How many denials are told in that time in all: a user may have many numbers.
const TOLD: u32 = 200;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What. Its name and its fields stand beside the time in the JSON object.
    #[serde(flatten)]
    pub what: What,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A secret has another value: the next open gives it.
    Rotated {
        /// The secret.
        path: SecretPath,
        /// The number of the new generation, where it is known already.
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        /// The backend's word for it, where it is known already.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<Version>,
    },
    /// A secret is gone.
    Removed {
        /// The secret.
        path: SecretPath,
    },
    /// Something was taken away.
    Revoked {
        /// What or whom, as `revoke` was told.
        target: String,
        /// Until then.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// A revocation was lifted.
    Unrevoked {
        /// What or whom, as `revoke` was told.
        target: String,
        /// Until when it would have been.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// Somebody was denied something.
    Denied {
        /// What he wanted: a secret or a service; nothing where it was the daemon itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<Arc<str>>,
        /// Who.
        uid: Uid,
        /// His group.
        gid: Gid,
        /// What he tried: `open`, `read`, or a command's name.
        action: &'static str,
        /// Why not.
        rule: Arc<str>,
    },
    /// A backend cannot be reached any more.
    BackendDown {
        /// Its name in the config.
        backend: Name,
        /// Why.
        why: String,
    },
    /// A backend answers again.
    BackendUp {
        /// Its name in the config.
        backend: Name,
    },
    /// Another config is in force.
    Reloaded {
        /// What is different, one text each.
        changes: Vec<String>,
    },
    /// Events were not told, to this listener or to all.
    Missed {
        /// How many.
        count: u64,
    },
}

impl What {
    /// The service whose matter it is; `None` for what concerns the daemon as a whole.
    #[must_use]
    pub fn service(&self) -> Option<Name> {
        match self {
            Self::Rotated { path, .. } | Self::Removed { path } => Some(path.service.clone()),
            Self::Denied { path, .. } => path.as_deref()?.split('/').next()?.parse().ok(),
            Self::Revoked { .. }
            | Self::Unrevoked { .. }
            | Self::BackendDown { .. }
            | Self::BackendUp { .. }
            | Self::Reloaded { .. }
            | Self::Missed { .. } => None,
        }
    }
}

/// Where events are told. Cheap to clone; all clones are one bus.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    denials: Arc<Mutex<Denials>>,
    clock: Clock,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Events {
    /// A bus that nobody listens to yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let denials = Denials {
            since: clock.now(),
            told: HashMap::new(),
            all: 0,
            untold: 0,
        };
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            denials: Arc::new(Mutex::new(denials)),
            clock,
        }
    }

    /// Whether anybody listens: where nobody does, an event need not even be made.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// How many listen.
    #[cfg(test)]
    pub(crate) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Tells an event. Never waits.
    pub fn send(&self, event: Event) {
        if self.is_watched() {
            let _ = self.sender.send(Arc::new(event));
        }
    }

    /// Tells what happens just now; it is made only if somebody listens. Never waits.
    pub fn tell(&self, what: impl FnOnce() -> What) {
        if self.is_watched() {
            let time = self.clock.timestamp();
            let _ = self.sender.send(Arc::new(Event { time, what: what() }));
        }
    }

    /// As [`Events::tell`], for a denial of `uid`. Of many within a second only the first are told, and the next one after
    /// that says how many were not: they are in the audit log.
    pub fn tell_denial(&self, uid: Uid, what: impl FnOnce() -> What) {
        if !self.is_watched() {
            return;
        }
        let now = self.clock.now();
        let told = self
            .denials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(uid, now);
        let Some(untold) = told else { return };
        if untold > 0 {
            self.tell(|| What::Missed { count: untold });
        }
        self.tell(what);
    }

    /// Listens, from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription {
            receiver: self.sender.subscribe(),
            bus: self.clone(),
        }
    }
}

/// How many denials were told lately.
#[derive(Debug)]
struct Denials {
    since: Instant,
    told: HashMap<Uid, u32>,
    all: u32,
    untold: u64,
}

impl Denials {
    /// Whether one more may be told and, if so, how many were not since the last one.
    fn take(&mut self, uid: Uid, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.told.clear();
            self.all = 0;
        }
        if self.all >= TOLD {
            self.untold += 1;
            return None;
        }
        let own = self.told.entry(uid).or_default();
        if *own >= TOLD_PER_UID {
            self.untold += 1;
            return None;
        }
        *own += 1;
        self.all += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// One listener.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    /// As long as somebody listens, more can come.
    bus: Events,
}

impl Subscription {
    /// The next event; [`What::Missed`] where this listener was too slow. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Arc<Event> {
        match self.receiver.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(count)) => self.missed(count),
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// The same, if it is there already.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Lagged(count)) => Some(self.missed(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    fn missed(&self, count: u64) -> Arc<Event> {
        Arc::new(Event {
            time: self.bus.clock.timestamp(),
            what: What::Missed { count },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(name: &str) -> What {
        What::Removed {
            path: format!("billing/{name}").parse().unwrap(),
        }
    }

    fn denied(uid: u32) -> What {
        What::Denied {
            path: Some("billing/x".into()),
            uid: Uid(uid),
            gid: Gid(5),
            action: "open",
            rule: "no rule allows this caller".into(),
        }
    }

    #[tokio::test]
    async fn everyone_who_listens_hears_everything_in_order() {
        let events = Events::default();
        let mut early = [events.subscribe(), events.clone().subscribe()];
        events.tell(|| removed("a"));
        let mut late = events.subscribe();
        let time = Timestamp::UNIX_EPOCH;
        events.send(Event {
            time,
            what: removed("b"),
        });
        for each in &mut early {
            assert_eq!(each.next().await.what, removed("a"));
            assert_eq!(each.next().await.time, time);
            assert_eq!(each.try_next(), None);
        }
        assert_eq!(late.next().await.what, removed("b"));
    }

    #[test]
    fn nothing_is_made_while_nobody_listens() {
        let events = Events::default();
        assert!(!events.is_watched());
        events.tell(|| panic!("made for nobody"));
        events.tell_denial(Uid(1), || panic!("made for nobody"));
        let listener = events.subscribe();
        assert!(events.is_watched());
        drop(listener);
        assert!(!events.is_watched());
        events.tell(|| panic!("made for nobody"));
    }

    #[tokio::test]
    async fn who_is_too_slow_hears_how_much_it_missed_and_goes_on() {
        let events = Events::default();
        let mut slow = events.subscribe();
        for n in 0..BACKLOG + 7 {
            events.tell(|| removed(&format!("n{n}")));
        }
        assert_eq!(slow.next().await.what, What::Missed { count: 7 });
        for n in 7..BACKLOG + 7 {
            assert_eq!(slow.next().await.what, removed(&format!("n{n}")));
        }
        assert_eq!(slow.try_next(), None);
    }

    #[tokio::test]
    async fn who_is_denied_in_a_loop_does_not_drown_the_rest() {
        let clock = Clock::manual();
        let events = Events::new(clock.clone());
        let mut listener = events.subscribe();
        for _ in 0..100_000 {
            events.tell_denial(Uid(1), || denied(1));
        }
        events.tell_denial(Uid(2), || denied(2));
        events.tell(|| removed("a"));
        for _ in 0..TOLD_PER_UID {
            assert_eq!(listener.next().await.what, denied(1));
        }
        let untold = u64::from(100_000 - TOLD_PER_UID);
        assert_eq!(listener.next().await.what, What::Missed { count: untold });
        assert_eq!(listener.next().await.what, denied(2));
        assert_eq!(listener.next().await.what, removed("a"));

        // Nor does who has many numbers.
        clock.advance(WINDOW);
        for uid in 0..100_000 {
            events.tell_denial(Uid(uid), || denied(uid));
        }
        let told = std::iter::from_fn(|| listener.try_next()).count();
        assert_eq!(told, usize::try_from(TOLD).unwrap());
        clock.advance(WINDOW);
        events.tell_denial(Uid(1), || denied(1));
        let untold = u64::from(100_000 - TOLD);
        assert_eq!(listener.next().await.what, What::Missed { count: untold });
        assert_eq!(listener.next().await.what, denied(1));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let time: Timestamp = "2026-11-23T08:00:00Z".parse().unwrap();
        let billing: SecretPath = "billing/db-password".parse().unwrap();
        let table = [
            (
                What::Rotated {
                    path: billing.clone(),
                    generation: Some(4_294_967_299),
                    version: Some(Version::new("7")),
                },
                r#""event":"rotated","path":"billing/db-password","generation":4294967299,"version":"7""#,
            ),
            (
                What::Rotated {
                    path: billing.clone(),
                    generation: None,
                    version: None,
                },
                r#""event":"rotated","path":"billing/db-password""#,
            ),
            (
                What::Removed { path: billing },
                r#""event":"removed","path":"billing/db-password""#,
            ),
            (
                What::Revoked {
                    target: "uid 1000".into(),
                    until: Some(time),
                },
                r#""event":"revoked","target":"uid 1000","until":"2026-11-23T08:00:00Z""#,
            ),
            (
                What::Unrevoked {
                    target: "billing".into(),
                    until: None,
                },
                r#""event":"unrevoked","target":"billing""#,
            ),
            (
                denied(7),
                r#""event":"denied","path":"billing/x","uid":7,"gid":5,"action":"open","rule":"no rule allows this caller""#,
            ),
            (
                What::BackendDown {
                    backend: "vault".parse().unwrap(),
                    why: "no route".into(),
                },
                r#""event":"backend-down","backend":"vault","why":"no route""#,
            ),
            (
                What::BackendUp {
                    backend: "vault".parse().unwrap(),
                },
                r#""event":"backend-up","backend":"vault""#,
            ),
            (
                What::Reloaded {
                    changes: vec!["services.billing".into()],
                },
                r#""event":"reloaded","changes":["services.billing"]"#,
            ),
            (What::Missed { count: 3 }, r#""event":"missed","count":3"#),
        ];
        for (what, fields) in table {
            let text = serde_json::to_string(&Event { time, what }).unwrap();
            assert_eq!(
                text,
                format!(r#"{{"time":"2026-11-23T08:00:00Z",{fields}}}"#)
            );
        }
    }

    #[test]
    fn events_belong_to_the_service_of_their_path() {
        let service = |what: What| what.service().map(|name| name.to_string());
        assert_eq!(service(removed("x")).as_deref(), Some("billing"));
        assert_eq!(service(denied(1)).as_deref(), Some("billing"));
        let target = "billing".to_owned();
        for what in [
            What::Missed { count: 1 },
            What::Reloaded { changes: vec![] },
            What::Revoked {
                target,
                until: None,
            },
        ] {
            assert_eq!(service(what), None);
        }
    }
}
