//! Values that a backend made for us, and that end.

use super::*;

/// What was made, and for how long.
pub(super) struct Lease {
    /// When it began, or was last renewed, and how long it lasts since then.
    began: u64,
    lasts: u64,
    renewable: bool,
    /// It could not be renewed.
    broken: bool,
    /// Not to be tried again before.
    again: u64,
    /// Somebody was given its value since it began, or was renewed.
    pub(super) asked: bool,
    /// The secrets that have shown it.
    pub(super) made_for: BTreeSet<&'static str>,
    /// For how much longer the backend renews it, if it does.
    left: Option<u64>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Held,
    /// To be revoked.
    Ending,
    Over,
}

impl Lease {
    /// Whether its value is served without asking for another one.
    pub(super) fn is_current(&self, now: u64) -> bool {
        !self.broken && 100 * (now - self.began) < 85 * self.lasts
    }

    pub(super) fn is_alive(&self, now: u64) -> bool {
        now - self.began < self.lasts
    }

    fn is_to_be_renewed(&self, now: u64) -> bool {
        self.renewable && 3 * (now - self.began) >= 2 * self.lasts
    }
}

impl Model {
    /// The lease of a version of what is at a place.
    pub(super) fn lease_of(&mut self, place: &str, version: u64) -> Option<&mut Lease> {
        self.leases.get_mut(&version).filter(|_| place == LEASED)
    }

    /// Another value, under another lease.
    pub(super) fn make(&mut self) -> (String, u64) {
        let made = self.made() + 1;
        let lease = Lease {
            began: self.now,
            lasts: LEASE,
            renewable: true,
            broken: false,
            again: 0,
            asked: false,
            made_for: BTreeSet::new(),
            left: Some(LEASE),
            fate: Fate::Held,
        };
        self.leases.insert(made, lease);
        (format!(r#"{{"user":"u{made}","pass":"p{made}"}}"#), made)
    }

    /// The lease that was made last.
    fn made(&self) -> u64 {
        self.leases.last_key_value().map_or(0, |(made, _)| *made)
    }

    pub(super) fn limit(&mut self, left: Option<u64>) {
        if let Some(mut last) = self.leases.last_entry() {
            last.get_mut().left = left;
        }
    }

    /// Does what is due.
    pub(super) fn tend(&mut self) {
        self.let_end();
        let due = self.lease_due();
        let ending = self.leases.iter();
        let ending = ending.filter(|(_, lease)| lease.fate == Fate::Ending);
        let ending: Vec<u64> = ending.map(|(made, _)| *made).collect();
        self.at_once.get_or_insert_default();
        let to_replace = due.filter(|made| !self.is_renewed(*made));
        for made in ending {
            self.revoke(made);
        }
        if let Some(made) = to_replace {
            self.replace_lease(made);
        }
    }

    /// What has ended is shown to nobody.
    fn let_end(&mut self) {
        let now = self.now;
        for lease in self.leases.values_mut() {
            if lease.fate == Fate::Held && !lease.is_alive(now) {
                lease.fate = Fate::Over;
            }
        }
        if let Some(made) = self.lease_shown()
            && self.leases[&made].fate == Fate::Over
        {
            self.drop_record(LEASED);
        }
    }

    /// The lease of the record that secrets are cut from.
    fn lease_shown(&self) -> Option<u64> {
        let record = self.records.get(LEASED)?;
        self.leases
            .contains_key(&record.version)
            .then_some(record.version)
    }

    /// The lease that is in use and has to be renewed, or replaced. What was superseded ends by itself.
    fn lease_due(&self) -> Option<u64> {
        let (now, made) = (self.now, self.lease_shown()?);
        let lease = &self.leases[&made];
        let due = !lease.is_current(now) || lease.is_to_be_renewed(now);
        (due && now >= lease.again && (lease.asked || self.is_open(made))).then_some(made)
    }

    fn is_open(&self, made: u64) -> bool {
        self.handles.iter().any(|handle| {
            let shown = self.values.get(self.nodes[handle.node].path);
            let shown = shown.filter(|shown| shown.place == LEASED && shown.version == made);
            !handle.taken
                && shown.is_some_and(|shown| shown.generation.cut == handle.generation.cut)
        })
    }

    /// Has a lease renewed, if that is what is due. False if another one has to take its place.
    fn is_renewed(&mut self, made: u64) -> bool {
        let now = self.now;
        if !self.leases[&made].is_current(now) {
            return false;
        }
        let refused = match self.admits('a') {
            true => {
                self.renewals += 1;
                let storm = self.storm('a');
                let refused = self.leases[&made].left.is_none().then_some(No::Refused);
                let refused = storm.or(refused);
                self.hear('a', refused);
                refused
            }
            false => Some(No::Down),
        };
        let lease = self.leases.get_mut(&made).unwrap();
        match refused {
            None => {
                lease.began = now;
                lease.lasts = lease.left.unwrap_or(0).min(LEASE);
                // What does not get its whole time any more will not get more.
                lease.renewable = lease.lasts + 1 >= LEASE;
                lease.asked = false;
                lease.again = 0;
            }
            Some(No::Down | No::Late) => lease.again = now + PAUSE,
            Some(_) => lease.broken = true,
        }
        !lease.broken
    }

    /// Has another one in the place of a lease. Who watches what is shown of it hears of that.
    fn replace_lease(&mut self, made: u64) {
        let made_for = self.leases[&made].made_for.clone();
        match self.record(LEASED, None) {
            Ok(_) => {
                let last = self.made();
                let lease = self.leases.get_mut(&last).unwrap();
                lease.made_for.extend(made_for);
            }
            Err(_) => self.leases.get_mut(&made).unwrap().again = self.now + PAUSE,
        }
    }

    fn revoke(&mut self, made: u64) {
        let refused = match self.admits('a') {
            true => {
                let storm = self.storm('a');
                self.hear('a', storm);
                storm
            }
            false => Some(No::Down),
        };
        let alive = self.leases[&made].is_alive(self.now);
        if refused.is_none() {
            self.revoked.push(format!("l{made}"));
        }
        let again = matches!(refused, Some(No::Down | No::Late)) && alive;
        if !again {
            self.leases.get_mut(&made).unwrap().fate = Fate::Over;
        }
    }

    /// A secret is taken away: what was fetched for it, and what nobody shows. A lease is revoked when all are that it is for.
    pub(super) fn take_away(&mut self, path: &'static str) {
        self.forget(path);
        self.records.retain(|_, record| !record.users.is_empty());
        self.absences.clear();
        for lease in self.leases.values_mut() {
            let last = lease.made_for.remove(path) && lease.made_for.is_empty();
            if last && lease.fate == Fate::Held {
                lease.fate = Fate::Ending;
            }
        }
    }

    /// The daemon ends: what was made for it is revoked, if that can be.
    pub(super) fn end_leases(&mut self) {
        let now = self.now;
        let reached = self.storm('a').is_none() && self.admits('a');
        for (made, lease) in &mut self.leases {
            if reached && lease.fate != Fate::Over && lease.is_alive(now) {
                self.revoked.push(format!("l{made}"));
            }
            lease.fate = Fate::Over;
        }
    }

    /// Leases go on, but for the one of a value that has ended.
    pub(super) fn inherit_leases(&mut self) {
        let now = self.now;
        if let Some(made) = self.lease_shown()
            && !self.leases[&made].is_alive(now)
        {
            if !self.records[LEASED].users.is_empty() {
                self.leases.get_mut(&made).unwrap().fate = Fate::Over;
            }
            self.drop_record(LEASED);
        }
        for lease in self.leases.values_mut() {
            lease.broken = false;
            lease.again = 0;
            lease.asked = false;
        }
    }
}
