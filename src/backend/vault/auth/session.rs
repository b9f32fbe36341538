//! Who we are, for the server after this one: it goes on with the same token, because what was leased with it ends with it,
//! and because a secret id is unwrapped only once.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::Auth;
use super::token::{Print, Token, header};
use crate::secret::SecretBytes;

#[derive(serde::Serialize, serde::Deserialize)]
struct Session<'a> {
    #[serde(borrow)]
    token: Option<Held<'a>>,
    #[serde(borrow)]
    unwrapped: Option<(Print, Cow<'a, str>)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Held<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    /// Until when it is good, unless it does not end; by the clock that runs with the machine.
    ends: Option<Timestamp>,
    /// When it is to be renewed or replaced.
    due: Option<Timestamp>,
    lives: Duration,
    renewable: bool,
    policies: Vec<String>,
}

/// More than what stands around a token, escapes and all.
const ROOM: usize = 16 << 10;

impl Auth {
    /// Who we are, and the number by which that is known; `None` if it is what is called `known` already, or somebody
    /// signs in just now.
    pub(in super::super) fn session(&self, known: u64) -> Option<(u64, SecretBytes)> {
        let turn = self.turn.try_lock().ok()?;
        let (number, token) = {
            let signed_in = self.signed_in.borrow();
            (signed_in.number, signed_in.token.clone())
        };
        if number == known {
            return None;
        }
        let at = self.clock.running();
        // One that was given to us is read where it was read before.
        let ours = token.as_ref().filter(|token| token.ours);
        let held = ours.and_then(|token| {
            Some(Held {
                text: token.header.to_str().ok()?.into(),
                ends: token.ends.map(|ends| at.wall(ends)),
                due: token.due.map(|due| at.wall(due)),
                lives: token.lives,
                renewable: token.renewable,
                policies: token.policies.clone(),
            })
        });
        let unwrapped = turn.unwrapped.as_ref();
        let session = Session {
            token: held,
            unwrapped: unwrapped.and_then(|(print, secret_id)| {
                Some((*print, std::str::from_utf8(secret_id.expose()).ok()?.into()))
            }),
        };
        // With room from the start: what grows leaves copies behind.
        let policies = ours.map_or(0, |token| token.policies.iter().map(String::len).sum());
        let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM + 6 * policies));
        serde_json::to_writer(&mut *bytes, &session).ok()?;
        Some((number, SecretBytes::new(std::mem::take(&mut *bytes))))
    }

    /// Goes on as the server before this one. What is no use of it is left out: then we sign in.
    pub(in super::super) fn resume(&self, session: &SecretBytes) {
        let Ok(Session { token, unwrapped }) = serde_json::from_slice(session.expose()) else {
            return;
        };
        if let (Ok(mut turn), Some((print, secret_id))) = (self.turn.try_lock(), unwrapped) {
            let secret_id = SecretBytes::new(secret_id.as_bytes().to_vec());
            turn.unwrapped.get_or_insert((print, secret_id));
        }
        let at = self.clock.running();
        let token = token.and_then(|held| {
            Some(Token {
                header: header(held.text.as_bytes()).ok()?,
                ours: true,
                policies: held.policies,
                lives: held.lives,
                ends: held.ends.map(|ends| at.now + at.until(ends)),
                due: held.due.map(|due| at.now + at.until(due)),
                ..Token::life(at.now, Duration::ZERO, held.renewable)
            })
        });
        if let Some(token) = token {
            self.set(Some(token.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Method;
    use super::*;
    use crate::clock::Clock;

    const CANARY: &str = "canary-2e\"\\9d";

    fn auth(clock: &Clock) -> Auth {
        let method = Method::AppRole {
            mount: "approle".to_owned(),
            role_id: "role".to_owned(),
            secret_id: "/nowhere".into(),
            wrapped: true,
        };
        Auth::new(method, &|_| None, clock.clone())
    }

    #[test]
    fn a_session_goes_on_with_its_token_its_times_and_what_was_unwrapped() {
        let clock = Clock::manual();
        let before = auth(&clock);
        let token = Token {
            header: header(CANARY.as_bytes()).unwrap(),
            ours: true,
            policies: vec!["p".to_owned()],
            ..Token::life(clock.now(), Duration::from_secs(90), true)
        };
        let (ends, due) = (token.ends, token.due);
        before.set(Some(Arc::new(token)));
        let print = (1, 2, 3, 4);
        let secret_id = SecretBytes::new(b"secret id".to_vec());
        before.turn.try_lock().unwrap().unwrapped = Some((print, secret_id));
        let (number, session) = before.session(0).unwrap();
        assert!(before.session(number).is_none(), "it is known");

        clock.advance(Duration::from_secs(30));
        clock.set(Timestamp::UNIX_EPOCH);
        let after = auth(&clock);
        after.resume(&session);
        let token = after.good().unwrap();
        assert_eq!(token.header.as_bytes(), CANARY.as_bytes());
        assert_eq!((token.ends, token.due), (ends, due));
        assert!(token.ours && token.renewable && token.header.is_sensitive());
        assert_eq!(token.policies, ["p"]);
        let turn = after.turn.try_lock().unwrap();
        let (kept, secret_id) = turn.unwrapped.as_ref().unwrap();
        assert_eq!((*kept, secret_id.expose()), (print, &b"secret id"[..]));
    }

    #[test]
    fn what_is_no_session_or_not_ours_changes_nothing() {
        let clock = Clock::manual();
        let after = auth(&clock);
        for session in ["", "{}", "[]", r#"{"token":{"text":"x"}}"#] {
            after.resume(&SecretBytes::new(session.as_bytes().to_vec()));
            assert!(after.current().is_none(), "{session}");
        }
        // A token that was given to us is not kept beside its file.
        let before = auth(&clock);
        before.set(Some(Arc::new(Token {
            header: header(CANARY.as_bytes()).unwrap(),
            ..Token::life(clock.now(), Duration::from_secs(90), true)
        })));
        let (_, session) = before.session(0).unwrap();
        after.resume(&session);
        assert!(after.current().is_none());
        before.set(None);
        assert!(before.session(1).is_some());
    }
}
