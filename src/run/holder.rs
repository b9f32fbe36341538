//! Who holds the mount while servers come and go, and hears how this one is: the keeper, or systemd.

use std::ffi::CString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::fs::Negotiated;
use crate::fuse::may_resend;
use crate::keeper::stored::{NotStored, Stored};
use crate::keeper::{self, upgrade};

/// How long the keeper may take to find out that no other release can take over, and how much it may say of that.
const UPGRADE: Duration = Duration::from_secs(13);
const LONGEST: u64 = 8192;

/// Who holds the mount.
#[derive(Debug)]
pub enum Holder {
    /// The parent, behind this socket.
    Keeper(UnixStream),
    /// systemd, with its descriptor store.
    Systemd(Systemd),
}

/// systemd, which holds descriptors and starts one server after the other.
#[derive(Debug)]
pub struct Systemd {
    stored: Stored,
    config: PathBuf,
    /// What another release has to say to be one that can go on.
    mark: String,
    /// The kernel sends again what a dead server has not answered.
    resends: AtomicBool,
    clock: Clock,
    wish: watch::Sender<Option<Wish>>,
}

/// What a command wants of a server that nobody keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// To end for good.
    End,
    /// To be followed by another one.
    Restart,
    /// To become this program.
    Become(PathBuf),
}

impl Holder {
    /// The keeper, with whom the server speaks through this socket.
    #[must_use]
    pub fn keeper(word: OwnedFd) -> Self {
        Self::Keeper(UnixStream::from(word))
    }

    /// `config` is what another release would be called with.
    pub(super) fn systemd(stored: Stored, config: &Path, mark: String, clock: &Clock) -> Self {
        Self::Systemd(Systemd {
            stored,
            config: config.to_owned(),
            mark,
            resends: AtomicBool::new(false),
            clock: clock.clone(),
            wish: watch::Sender::new(None),
        })
    }

    /// True if nobody but systemd would start another one.
    pub(super) fn is_systemd(&self) -> bool {
        matches!(self, Self::Systemd(_))
    }

    /// Makes the device ready for a server that takes the connection over, whose kernel had agreed on this with the first one.
    pub(super) fn renew(
        &mut self,
        device: OwnedFd,
        agreed: Negotiated,
    ) -> Result<OwnedFd, NotStored> {
        match self {
            // The keeper has seen to it.
            Self::Keeper(_) => Ok(device),
            Self::Systemd(_) if may_resend(agreed) => Ok(device),
            Self::Systemd(systemd) => systemd.stored.renew(&device),
        }
    }

    /// The mount can be served.
    pub(super) fn ready(&self, agreed: Option<Negotiated>) -> io::Result<()> {
        match self {
            Self::Keeper(word) => (&mut &*word).write_all(match agreed.is_some_and(may_resend) {
                true => &keeper::READY,
                false => &keeper::READY_WITHOUT_RESEND,
            }),
            Self::Systemd(systemd) => {
                let resends = agreed.is_some_and(may_resend);
                systemd.resends.store(resends, Ordering::Relaxed);
                sd_notify::notify(&[NotifyState::Ready])
            }
        }
    }

    /// Nobody can go on where this server ends.
    pub(super) fn last(&self) {
        match self {
            // A keeper that is gone needs no word.
            Self::Keeper(word) => drop((&mut &*word).write_all(&keeper::LAST)),
            Self::Systemd(systemd) => systemd.stored.forget(),
        }
    }

    /// Somebody wants an end for good.
    pub(super) fn end(&self) -> io::Result<()> {
        match self {
            Self::Keeper(word) => (&mut &*word).write_all(&keeper::END),
            Self::Systemd(systemd) => {
                systemd.wish.send_replace(Some(Wish::End));
                Ok(())
            }
        }
    }

    /// Somebody wants what is installed now to take over. Returns only if it cannot, or, under systemd, a moment before.
    pub(super) fn upgrade(&self) -> Result<(), String> {
        match self {
            Self::Keeper(word) => ask_keeper(word),
            Self::Systemd(systemd) => {
                let (config, mark) = (&systemd.config, &systemd.mark);
                let program = upgrade::follower(config, mark, &systemd.clock)?;
                // Where the kernel has to let go of who waits, a descriptor is needed for that which systemd gives at a start.
                let wish = match systemd.resends.load(Ordering::Relaxed) {
                    true => Wish::Become(program),
                    false => Wish::Restart,
                };
                systemd.wish.send_replace(Some(wish));
                Ok(())
            }
        }
    }

    /// Waits for a wish that this process has to fulfil itself.
    pub(super) async fn wish(&self) -> Wish {
        let Self::Systemd(systemd) = self else {
            return std::future::pending().await;
        };
        let mut wish = systemd.wish.subscribe();
        let wished = wish.wait_for(Option::is_some).await;
        let wish = wished.ok().and_then(|wish| wish.clone());
        match wish {
            Some(wish) => wish,
            // We hold the other end.
            None => std::future::pending().await,
        }
    }

    /// What the end of the mount means that nobody here has asked for: systemd has to mount it again.
    pub(super) fn judge(&self, lost: io::Result<()>) -> io::Result<()> {
        match self {
            Self::Keeper(_) => lost,
            Self::Systemd(_) => lost.and(Err(io::Error::other("somebody has unmounted it"))),
        }
    }

    /// Becomes another program, which goes on with what systemd holds. Returns only if that fails.
    pub(super) fn become_program(&self, program: &Path) -> io::Error {
        let Self::Systemd(systemd) = self else {
            return io::Error::other("the keeper does that");
        };
        if let Err(why) = systemd.stored.pass_on() {
            return why;
        }
        let words = [
            program.as_os_str(),
            "--config".as_ref(),
            systemd.config.as_ref(),
            "serve".as_ref(),
        ];
        let words = words.into_iter().map(|word| CString::new(word.as_bytes()));
        let words: Vec<CString> = match words.collect() {
            Ok(words) => words,
            Err(why) => return why.into(),
        };
        let program = words.first().map(CString::as_c_str).unwrap_or_default();
        match nix::unistd::execv(program, &words) {
            Ok(never) => match never {},
            Err(why) => why.into(),
        }
    }
}

fn ask_keeper(word: &UnixStream) -> Result<(), String> {
    let asked = word
        .set_read_timeout(Some(UPGRADE))
        .and_then(|()| (&mut &*word).write_all(&keeper::UPGRADE));
    asked.map_err(|why| format!("the keeper does not hear: {why}"))?;
    let mut why = String::new();
    let answered = BufReader::new(word.take(LONGEST)).read_line(&mut why);
    answered.map_err(|why| format!("the keeper does not answer: {why}"))?;
    Err(why.trim_end().to_owned())
}
