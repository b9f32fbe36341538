//! The only user of `fuser`: decodes a request, asks the [`Tree`], replies once. It decides nothing.
//!
//! What the tree can answer at once is answered on fuser's own thread, without tokio and without a wait. What has to wait
//! takes its reply along into a task; the tree sees to the deadline.

use std::ffi::OsStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use crate::fs::{Answer, Fh, Ino, MAX_READ, Negotiated, Readiness, Reply, Tree, Waiter};
use crate::secret::Name;

mod hand;
mod listing;
mod notify;
mod renames;
mod session;
mod takeover;
mod words;

pub use session::{Session, may_resend};

use notify::Notices;
use renames::Own;
use words::{caller, errno, file_attr, position, reply_xattr};

/// How long the kernel may keep a name without asking again. We tell it when one changes; who may open is asked at the
/// open in any case.
const ENTRY_TTL: Duration = Duration::from_secs(60);
/// Attributes are asked for each time, so that a size is never older than the value.
const ATTR_TTL: Duration = Duration::ZERO;
/// Inode numbers are never used twice, so all are of the same generation.
const INODE_GENERATION: Generation = Generation(0);
const BLOCK_SIZE: u32 = 4096;

#[derive(Debug)]
struct Adapter {
    tree: Arc<Tree>,
    runtime: Handle,
    notices: Notices,
    /// The threads of our own that come to rename.
    own: Own,
    /// What is agreed on with the kernel.
    agreed: Arc<OnceLock<Negotiated>>,
}

/// Marks a request that the kernel sends once more, because the server that had it has died.
const RESENT: u64 = 1 << 63;

impl Adapter {
    /// Has one of our own threads make a change, if this is one, or was one of the server before. Nobody else changes anything.
    fn change(
        &self,
        req: &Request,
        names: [&OsStr; 2],
        reply: ReplyEmpty,
        make: impl FnOnce([&str; 2], u64) -> Reply<()>,
    ) {
        let [Some(one), Some(other)] = names.map(OsStr::to_str) else {
            return reply.error(Errno::EROFS);
        };
        let request = req.unique().0;
        if request & RESENT != 0 && self.tree.has_made(request & !RESENT) {
            return reply.ok();
        }
        if !self.own.is_one(req.pid()) {
            return reply.error(Errno::EROFS);
        }
        match make([one, other], request) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// The number of a request for a handle. One that an earlier server has made for it goes.
    fn request(&self, req: &Request) -> u64 {
        let number = req.unique().0;
        if number & RESENT != 0 {
            self.tree.comes_again(number & !RESENT);
        }
        number & !RESENT
    }

    /// Replies now or, if the tree has to wait, from a task.
    fn answer<T: Send + 'static>(
        &self,
        answer: Answer<Reply<T>>,
        reply: impl FnOnce(Reply<T>) + Send + 'static,
    ) {
        match answer {
            Answer::Ready(result) => reply(result),
            Answer::Pending(future) => {
                self.runtime.spawn(async move { reply(future.await) });
            }
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each is an improvement that an old kernel may lack; docs/semantics.md says what then differs.
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HAS_RESEND,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "not offered by this kernel");
            }
        }
        // What is read is opened into memory that is locked, and that is as long for every thread.
        let most = u32::try_from(MAX_READ).unwrap_or(u32::MAX);
        // What it would not take it would not ask for either.
        let _ = config.set_max_write(most);
        let _ = config.set_max_readahead(most);
        let _ = self.agreed.set(Negotiated {
            minor: config.kernel_abi().1,
            flags: config.capabilities().bits(),
        });
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = Arc::clone(&self.tree);
        let found = match name.to_str() {
            Some(name) if self.own.is_one(req.pid()) => {
                Answer::Ready(self.tree.own_lookup(Ino(parent.0), name))
            }
            Some(_) | None => self.tree.lookup(caller(req), Ino(parent.0), name),
        };
        self.answer(found, move |result| match result {
            Ok(attr) => {
                tree.looked_up(attr.ino);
                reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &file_attr(&attr), INODE_GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.tree.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            self.tree.getattr(caller(req), Ino(ino.0)),
            move |result| match result {
                Ok(attr) => reply.attr(&ATTR_TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let asked = |flag| mask.contains(flag);
        let (read, write, execute) = (
            asked(AccessFlags::R_OK),
            asked(AccessFlags::W_OK),
            asked(AccessFlags::X_OK),
        );
        match self
            .tree
            .access_mode(caller(req), Ino(ino.0), read, write, execute)
        {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writing = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        let request = self.request(req);
        let (tree, notices) = (Arc::clone(&self.tree), self.notices.clone());
        self.answer(
            self.tree.open(caller(req), Ino(ino.0), writing),
            move |result| {
                let opened = match result {
                    Ok(opened) => opened,
                    Err(error) => return reply.error(errno(error)),
                };
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_pages);
                let handle = FileHandle(opened.fh.0);
                tree.given(opened.fh, request);
                match opened.tell {
                    None => reply.opened(handle, flags),
                    Some(tell) => {
                        let due = Arc::clone(&tree);
                        notices.size(
                            tell,
                            move || due.is_untold(tell),
                            move || {
                                tree.told(tell);
                                reply.opened(handle, flags);
                            },
                        );
                    }
                }
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A read(2) past the page cache names its lock owner; the page cache's own reads do not.
        let paged = lock_owner.is_none();
        let mut reply = Some(reply);
        let give = |bytes: &[u8]| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        if let Err(error) = self
            .tree
            .read(caller(req), Fh(fh.0), offset, size, paged, give)
            && let Some(reply) = reply
        {
            reply.error(errno(error));
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.release(Fh(fh.0));
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (tree, request) = (Arc::clone(&self.tree), self.request(req));
        self.answer(
            self.tree.opendir(caller(req), Ino(ino.0)),
            move |result| match result {
                Ok(fh) => {
                    tree.given(fh, request);
                    reply.opened(FileHandle(fh.0), FopenFlags::empty());
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let entries = self.tree.readdir(caller(req), Fh(fh.0));
        self.answer(entries, move |entries| match entries {
            Ok(entries) => listing::list(ino, &entries, position(offset), reply),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let tree = Arc::clone(&self.tree);
        let entries = self.tree.readdir(caller(req), Fh(fh.0));
        self.answer(entries, move |entries| match entries {
            Ok(entries) => listing::list_plus(&tree, ino, &entries, position(offset), reply),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.release(Fh(fh.0));
        reply.ok();
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let answer = self.tree.getxattr(caller(req), Ino(ino.0), name);
        self.answer(answer, move |result| reply_xattr(reply, size, result));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.tree.listxattr(caller(req), Ino(ino.0));
        let list = names.map(|names| {
            names
                .into_iter()
                .flat_map(|xattr| [xattr.name().as_bytes(), b"\0"].concat())
                .collect()
        });
        reply_xattr(reply, size, list);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let inodes = u64::try_from(self.tree.figures().inodes).unwrap_or(u64::MAX);
        let longest = u32::try_from(Name::MAX).unwrap_or(u32::MAX);
        reply.statfs(0, 0, 0, inodes, 0, BLOCK_SIZE, longest, BLOCK_SIZE);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let waits = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        let waiter = waits.then(|| Waiter(ph.handle().0));
        let readable = PollEvents::POLLIN | PollEvents::POLLRDNORM;
        let events = match self.tree.poll(Fh(fh.0), waiter) {
            Ok(Readiness { taken: true, .. }) => PollEvents::POLLPRI | PollEvents::POLLERR,
            Ok(Readiness { outdated: true, .. }) => readable | PollEvents::POLLPRI,
            Ok(_) => readable,
            Err(error) => return reply.error(errno(error)),
        };
        reply.poll(events);
    }

    // Everything below would change the tree, which nobody may, but for the rename and the unlink that we asked the kernel
    // for ourselves.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(req, [name, name], reply, |[name, _], request| {
            self.tree.own_unlink(Ino(parent.0), name, request)
        });
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != newparent || !flags.is_empty() {
            return reply.error(Errno::EROFS);
        }
        self.change(req, [name, newname], reply, |[from, to], request| {
            self.tree.own_rename(Ino(parent.0), from, to, request)
        });
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}
