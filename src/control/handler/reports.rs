//! status, explain, doctor, audit: what changes nothing.

use std::time::Duration;

use tokio::time::timeout;

use super::{Job, answer, settle};
use crate::audit::{Filter, Outcome, Reader, Report};
use crate::caller::{Caller, Evidence};
use crate::config::AuditTarget;
use crate::control::answers::{
    AuditLine, AuditSummary, BackendStatus, BrokerStatus, Check, DaemonStatus, Explained, Health,
    LeaseStatus, SignalStatus, Status,
};
use crate::control::protocol::{AuditQuery, Subject};
use crate::control::{Answer, Event, Failure};
use crate::secret::{Name, SecretPath};
use crate::sys::{Gid, Tid, Uid};

/// How long a backend may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a log that is followed is looked at.
const FOLLOW: Duration = Duration::from_millis(250);

impl Job<'_> {
    pub(super) fn status(&self) -> Result<Answer, Failure> {
        self.may_steer("status")?;
        let figures = self.parts.tree.figures();
        let daemon = self.parts.daemon.as_deref();
        answer(&Status {
            daemon: daemon.map(|daemon| DaemonStatus {
                pid: std::process::id(),
                uid: Uid::effective().0,
                mount: daemon.mount(),
                since: daemon.since(),
                release: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            backends: self.backends(),
            broker: daemon
                .and_then(|daemon| daemon.broker())
                .map(|broker| BrokerStatus {
                    url: broker.url,
                    connected: broker.connected,
                    trouble: broker.trouble,
                }),
            cached: figures.cache.values,
            cached_bytes: figures.cache.bytes,
            fetching: figures.cache.flights,
            handles: figures.handles,
            audit_failure: self.parts.audit.failure().map(|error| error.to_string()),
            audit_lines: self.parts.audit.last_line(),
            unknown: daemon.map(|daemon| daemon.unknown()).unwrap_or_default(),
            revoked: self
                .parts
                .tree
                .access()
                .revocations()
                .in_force(self.parts.clock.timestamp())
                .cloned()
                .collect(),
            offline: daemon.and_then(|daemon| daemon.offline()),
        })
    }

    fn backends(&self) -> Vec<BackendStatus> {
        let backends = self.parts.cache.backends();
        let mut status: Vec<BackendStatus> = backends
            .iter()
            .map(|(name, backend)| {
                let checking = async { timeout(PATIENCE, backend.check()).await };
                let trouble = match self.runtime.block_on(checking) {
                    Ok(checked) => checked.err().map(|error| error.to_string()),
                    Err(_) => Some(format!("no answer within {PATIENCE:?}")),
                };
                BackendStatus {
                    name: name.to_string(),
                    kind: backend.kind().to_owned(),
                    trouble,
                    secrets: self.parts.stores.get(name).map(|store| store.len()),
                    signals: self.signals(name),
                    leases: self.leases(name),
                }
            })
            .collect();
        status.sort_by(|one, other| one.name.cmp(&other.name));
        status
    }

    fn signals(&self, backend: &Name) -> Option<SignalStatus> {
        let report = self.parts.daemon.as_deref()?.signals(backend)?;
        Some(SignalStatus {
            polled: report.polled,
            heard: report.heard,
            in_use: report.in_use,
            refused: report.refused,
        })
    }

    fn leases(&self, backend: &Name) -> Option<LeaseStatus> {
        let (held, soon) = self.parts.cache.leases(backend);
        let now = self.parts.clock.timestamp();
        Some(LeaseStatus {
            held,
            next_end: now.saturating_add(soon?).unwrap_or(now),
        })
    }

    pub(super) fn explain(
        &self,
        path: &SecretPath,
        subject: Option<Subject>,
    ) -> Result<Answer, Failure> {
        let access = self.parts.tree.access();
        let manages = access.may_manage(self.caller.clone(), Some(&path.service));
        let other = subject.is_some();
        if other && !manages {
            // Asked once more for the sake of the audit log.
            drop(self.mandate(Some(&path.service), "explain", Some(path))?);
        }
        let caller = match subject {
            None => self.caller.clone(),
            Some(Subject::Ids { uid, gid, groups }) => Caller {
                groups: Some(groups.into_iter().map(Gid).collect()),
                cgroup: Some(crate::caller::Cgroup::default()),
                ..Caller::new(Uid(uid), Gid(gid), Tid(std::process::id()))
            },
            Some(Subject::Process { pid }) => self.process(pid)?,
        };
        let explanation = access.explain(caller, path);
        let allowed = explanation.decision.is_ok();
        let reason = match explanation.decision {
            Ok(rule) => rule.to_string(),
            Err(denied) => denied.to_string(),
        };
        let binding = self.parts.tree.catalogue().binding(path);
        let shown = binding.filter(|_| manages || (allowed && !other));
        let cached = shown
            .as_ref()
            .and_then(|binding| self.parts.cache.fresh(path, binding));
        let caller = explanation.caller;
        let cgroup = caller.cgroup.unwrap_or_default();
        answer(&Explained {
            path: path.clone(),
            allowed,
            reason,
            uid: caller.uid.0,
            gid: caller.gid.0,
            groups: caller
                .groups
                .map(|groups| groups.into_iter().map(|gid| gid.0).collect()),
            unit: cgroup.unit,
            container: cgroup.container,
            references: shown.map_or_else(Vec::new, |binding| {
                binding.references.iter().map(ToString::to_string).collect()
            }),
            cached: cached.map(|generation| generation.version.clone()),
        })
    }

    /// A process as the policy would see it now.
    fn process(&self, pid: u32) -> Result<Caller, Failure> {
        let unknown = |why: &str| Failure::failed(format!("--pid: {why}: see `ps -p {pid}`"));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|_| unknown("there is no such process"))?;
        // The file-system ids, the last of the four, are what the kernel gives with a request.
        let id = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().nth(3)?.parse::<u32>().ok()
        };
        let (Some(uid), Some(gid)) = (id("Uid:"), id("Gid:")) else {
            return Err(unknown("its user cannot be read"));
        };
        let mut caller = Caller::new(Uid(uid), Gid(gid), Tid(pid));
        for evidence in [Evidence::Groups, Evidence::Cgroup] {
            caller
                .find_out(evidence, &*self.parts.lookup)
                .map_err(|error| unknown(&error.to_string()))?;
        }
        Ok(caller)
    }

    pub(super) fn doctor(&self) -> Result<Answer, Failure> {
        self.may_steer("doctor")?;
        let mut checks = Vec::new();
        for (name, store) in &self.parts.stores {
            let report = store.verify(&mut |done, total| self.progress(done, total));
            let check = format!("store {name}");
            if report.damaged.is_empty() {
                let detail = format!("{} values, every one can be read", report.sound);
                checks.push(good(check, detail));
            }
            for damage in &report.damaged {
                let detail = format!(
                    "{} version {}: {}",
                    damage.path, damage.version, damage.error
                );
                checks.push(wrong(format!("store {name}"), detail));
            }
        }
        for status in self.backends() {
            let check = format!("backend {}", status.name);
            match status.trouble {
                Some(trouble) => checks.push(wrong(check, trouble)),
                // Of a store its values were read.
                None if status.secrets.is_some() => {}
                None => checks.push(good(check, "answers, and lets us in".to_owned())),
            }
        }
        checks.push(match self.parts.audit.healthy() {
            Ok(()) => good("audit log".to_owned(), "can be written".to_owned()),
            Err(trouble) => {
                let why = self.parts.audit.failure();
                let detail = why.map_or_else(|| trouble.to_string(), |why| why.to_string());
                wrong("audit log".to_owned(), detail)
            }
        });
        checks.push(self.chain());
        let daemon = self.parts.daemon.as_ref();
        if let Some(offline) = daemon.and_then(|daemon| daemon.offline()) {
            let check = "offline".to_owned();
            checks.push(match offline.trouble {
                Some(trouble) => wrong(check, trouble),
                None => good(check, offline.path),
            });
        }
        for unknown in self.parts.daemon.iter().flat_map(|daemon| daemon.unknown()) {
            checks.push(wrong("accounts".to_owned(), unknown));
        }
        answer(&checks)
    }

    fn chain(&self) -> Check {
        let check = "audit chain".to_owned();
        let read = self.reader().and_then(|mut reader| {
            while reader.read().map_err(unreadable)?.is_some() {}
            Ok(reader.report())
        });
        match read {
            Ok(Report {
                broken: Some(broken),
                ..
            }) => wrong(
                check,
                format!("{broken}: keep the files as evidence, and compare them with a copy"),
            ),
            Ok(report) => good(check, format!("{} lines, unbroken", report.lines)),
            Err(failure) => Check {
                check,
                state: Health::Warning,
                detail: failure.message,
            },
        }
    }

    pub(super) fn audit(&self, query: AuditQuery) -> Result<Answer, Failure> {
        if query.follow {
            self.daemon()?;
        }
        let mandate = self.mandate(None, "audit", None)?;
        settle(mandate, Outcome::Allowed, None)?;
        let mut reader = self.reader()?;
        let filter = Filter {
            secret: query.path,
            uid: query.uid.map(Uid),
            since: query.since,
            denied: query.denied,
        };
        loop {
            while let Some(line) = reader.read().map_err(unreadable)? {
                if filter.wants(&line.record) {
                    self.show(AuditLine {
                        record: line.record,
                        verified: line.verified,
                    })?;
                }
            }
            if !query.follow {
                break;
            }
            if self.events.is_closed() {
                break;
            }
            std::thread::sleep(FOLLOW);
        }
        let report = reader.report();
        answer(&AuditSummary {
            lines: report.lines,
            verified: report.keyed,
            broken: report.broken.map(|broken| broken.to_string()),
            torn: report.torn,
            lost: report.lost,
        })
    }

    fn show(&self, line: AuditLine) -> Result<(), Failure> {
        let mut text =
            serde_json::to_vec(&line).map_err(|error| Failure::failed(error.to_string()))?;
        text.push(b'\n');
        self.events
            .blocking_send(Event::Chunk(text))
            .map_err(|_| Failure::failed("nobody listens any more"))
    }

    fn reader(&self) -> Result<Reader, Failure> {
        match &self.parts.audit_target {
            AuditTarget::File(path) => Reader::files(path, Some(&self.parts.audit_key))
                .map_err(|error| Failure::failed(error.to_string())),
            AuditTarget::Journal => Err(Failure::failed(
                "the audit log is in the journal: read it with `journalctl -t secretfs -o cat`",
            )),
        }
    }

    /// Leave to look at the daemon, which is only worth a line in the audit log when refused.
    fn may_steer(&self, action: &'static str) -> Result<(), Failure> {
        let access = self.parts.tree.access();
        if access.may_manage(self.caller.clone(), None) {
            return Ok(());
        }
        let mandate = self.mandate(None, action, None)?;
        settle(mandate, Outcome::Allowed, None)
    }
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::failed(format!(
        "the audit log cannot be read: {error}: see `path` in [audit] of the config"
    ))
}

fn good(check: String, detail: String) -> Check {
    Check {
        check,
        state: Health::Good,
        detail,
    }
}

fn wrong(check: String, detail: String) -> Check {
    Check {
        check,
        state: Health::Wrong,
        detail,
    }
}
