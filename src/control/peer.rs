//! Who is at the other end of the control socket.
//!
//! Everything is found out once, when the connection is accepted. The kernel's word of uid, gid and groups is that of
//! the moment of connecting. The cgroup has to be read by process id, which could have passed to someone else: it
//! counts only if the process behind SO_PEERPIDFD (Linux 6.5) is still alive after it was read. Where that cannot be
//! had, the peer is in no unit and in no container, so that rules which need one deny.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use crate::caller::{Caller, Cgroup, Lookup};
use crate::sys::{self, Gid, Tid, Uid};

/// The caller behind a connected socket, with nothing left to look up.
///
/// # Errors
/// What the kernel fails with; the connection must then be refused.
pub fn identify(socket: BorrowedFd<'_>, lookup: &dyn Lookup) -> io::Result<Caller> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    let tid = Tid(u32::try_from(peer.pid()).unwrap_or(0));
    let mut caller = Caller::new(Uid(peer.uid()), Gid(peer.gid()), tid);
    caller.groups = Some(sys::peer_groups(socket)?);
    caller.cgroup = Some(cgroup(socket, tid, lookup).unwrap_or_default());
    Ok(caller)
}

fn cgroup(socket: BorrowedFd<'_>, tid: Tid, lookup: &dyn Lookup) -> Option<Cgroup> {
    if tid == Tid(0) {
        return None;
    }
    let process = getsockopt(&socket, sockopt::PeerPidfd).ok()?;
    let cgroup = lookup.cgroup(tid).ok()?;
    // A pidfd becomes readable when its process ends, and only then may the number pass to another one.
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ended, PollTimeout::ZERO) {
        Ok(0) => Some(cgroup),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::CallerError;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    /// Says the same of everyone.
    #[derive(Debug)]
    struct Everyone(Cgroup);

    impl Lookup for Everyone {
        fn groups(&self, _: Tid) -> Result<Vec<Gid>, CallerError> {
            panic!("groups come from the socket");
        }

        fn cgroup(&self, _: Tid) -> Result<Cgroup, CallerError> {
            Ok(self.0.clone())
        }

        fn comm(&self, _: Tid) -> Option<String> {
            None
        }
    }

    fn in_a_unit() -> Everyone {
        Everyone(Cgroup {
            unit: Some("billing.service".into()),
            container: None,
        })
    }

    #[test]
    fn we_know_ourselves() {
        let (near, _far) = UnixStream::pair().unwrap();
        let caller = identify(near.as_fd(), &in_a_unit()).unwrap();
        assert_eq!(
            (caller.uid, caller.gid, caller.tid),
            (Uid::effective(), Gid::effective(), Tid(std::process::id()))
        );
        let own: Vec<Gid> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(|gid| Gid(gid.as_raw()))
            .collect();
        assert_eq!(caller.groups, Some(own));
    }

    #[test]
    fn a_peer_that_is_gone_is_in_no_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // The child connects, and leaves its end to its own child before it exits.
        let mut child = Command::new("python3")
            .args([
                "-c",
                "import os,socket,sys,time\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nif os.fork()==0:\n sys.stdin.read()\nos._exit(0)",
            ])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (near, _) = listener.accept().unwrap();
        let keep = child.stdin.take();
        assert!(child.wait().unwrap().success());
        let caller = identify(near.as_fd(), &in_a_unit()).unwrap();
        drop(keep);
        assert_eq!(caller.cgroup, Some(Cgroup::default()));
    }

    #[test]
    fn a_living_peer_is_in_its_unit_where_the_kernel_can_prove_it() {
        let (near, _far) = UnixStream::pair().unwrap();
        let provable = getsockopt(&near, sockopt::PeerPidfd).is_ok();
        let caller = identify(near.as_fd(), &in_a_unit()).unwrap();
        assert_eq!(caller.cgroup.unwrap().unit.is_some(), provable);
    }
}
