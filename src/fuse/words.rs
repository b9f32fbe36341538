//! From the kernel's words into ours, and back.

use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyXattr, Request};

use super::BLOCK_SIZE;
use crate::caller::Caller;
use crate::fs::{Attr, FsError, Ino, Kind, Reply};
use crate::sys::{Gid, Tid, Uid};

pub(super) fn caller(req: &Request) -> Caller {
    Caller::new(Uid(req.uid()), Gid(req.gid()), Tid(req.pid()))
}

pub(super) fn errno(error: FsError) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// The offset of the line that follows the one at `index`.
pub(super) fn after(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1)
}

pub(super) fn dot(ino: Ino) -> Attr {
    let (uid, gid, modified) = (Uid::ROOT, Gid(0), jiff::Timestamp::UNIX_EPOCH);
    Attr {
        ino,
        kind: Kind::Directory,
        links: 2,
        size: 0,
        mode: 0o555,
        uid,
        gid,
        modified,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let time = SystemTime::from(attr.modified);
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.links,
        uid: attr.uid.0,
        gid: attr.gid.0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Answers the two questions that one call asks: how long (`size` 0), or what.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, result: Reply<Vec<u8>>) {
    match result {
        Ok(bytes) => match u32::try_from(bytes.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(&bytes),
            Ok(_) | Err(_) => reply.error(errno(FsError::TooSmall)),
        },
        Err(error) => reply.error(errno(error)),
    }
}
