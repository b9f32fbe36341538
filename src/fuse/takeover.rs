//! How a session comes to serve a connection whose kernel has said its first word to somebody else.
//!
//! The kernel says it once, and fuser begins with nothing else. So fuser is told it by ourselves, through a socket; when it
//! has answered, the connection takes the place of the socket, under the same number.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use fuser::InitFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::fs::{MAX_READ, Negotiated};

/// The major version of the protocol.
const MAJOR: u32 = 7;
/// The number of the first word.
const INIT: u32 = 26;
/// How long a request's head is, and the first word as a whole.
const HEAD: usize = 40;
const LENGTH: usize = HEAD + 64;
/// What has the kernel send again what nobody has answered (FUSE_NOTIFY_RESEND).
const RESEND: i32 = 7;

/// The socket that fuser reads the first word from. Both ends have to be there until it has answered.
pub(super) struct Words {
    pub(super) theirs: OwnedFd,
    _ours: OwnedFd,
}

/// The first word once more, as the kernel has said it to the first server.
pub(super) fn first_word(agreed: Negotiated) -> io::Result<Words> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    nix::unistd::write(&ours, &init(agreed))?;
    Ok(Words {
        theirs,
        _ours: ours,
    })
}

/// Has the kernel send again what the server before had not answered.
pub(super) fn resend(session: BorrowedFd<'_>) -> io::Result<()> {
    // Its length, the number of the notice, and 0 for: this answers nothing.
    let mut notice = [0; 16];
    let parts = [16_u32.to_ne_bytes(), RESEND.to_ne_bytes()];
    fill(&mut notice, &parts.concat());
    nix::unistd::write(session, &notice)?;
    Ok(())
}

/// struct fuse_in_header and struct fuse_init_in.
fn init(agreed: Negotiated) -> [u8; LENGTH] {
    let flags = agreed.flags | InitFlags::FUSE_INIT_EXT.bits();
    let [low, high] = [0, u32::BITS].map(|shift| flags >> shift & u64::from(u32::MAX));
    let half = |half: u64| u32::try_from(half).unwrap_or_default();
    let length = u32::try_from(LENGTH).unwrap_or_default();
    let readahead = u32::try_from(MAX_READ).unwrap_or_default();
    let head = [length, INIT, 1, 0, 0, 0, 0, 0, 0, 0];
    let word = [MAJOR, agreed.minor, readahead, half(low), half(high)];
    let bytes = head.iter().chain(&word).flat_map(|word| word.to_ne_bytes());
    let bytes: Vec<u8> = bytes.collect();
    let mut init = [0; LENGTH];
    fill(&mut init, &bytes);
    init
}

fn fill(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
}
