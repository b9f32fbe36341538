//! The file system to compare with: fuser, the same tree, the same answers, no question asked.
//!
//! It runs in a process of its own, as the server does, on a mount made in the same way, with as many threads, the
//! same abilities, times to live and reply flags. What it does not do is what secretfs adds: who calls, whether they
//! may, which version it is, and writing it down.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request, Session,
    SessionACL,
};
use secretfs::keeper::mountpoint::Mountpoint;

use crate::tree::{Service, value};

// As in src/fuse.rs.
const ENTRY_TTL: Duration = Duration::from_secs(60);
const ATTR_TTL: Duration = Duration::ZERO;
const LISTING_TTL: Duration = Duration::from_secs(1);
const ROOT: u64 = 1;

/// Mounts on `folder` and serves until standard input ends.
pub(crate) fn serve(folder: &Path, many: usize) {
    let mountpoint = Mountpoint::new(folder, Path::new("bare"));
    let device = mountpoint.mount().expect("mounts").device;
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = mountpoint.detach();
    });
    let mut config = Config::default();
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
    config.n_threads = Some(cores);
    let session = Session::from_fd(Bare::new(many), device, SessionACL::All, config);
    let session = session.and_then(Session::spawn).expect("serves");
    let _ = session.join();
}

struct Bare {
    nodes: HashMap<u64, Node>,
}

enum Node {
    Directory {
        lines: Vec<(u64, String)>,
        names: HashMap<OsString, u64>,
    },
    File {
        bytes: Vec<u8>,
        paged: bool,
    },
}

impl Node {
    fn directory(lines: Vec<(u64, String)>) -> Self {
        let names = lines.iter().map(|(ino, name)| (name.into(), *ino));
        Self::Directory {
            names: names.collect(),
            lines,
        }
    }
}

impl Bare {
    fn new(many: usize) -> Self {
        let mut nodes = HashMap::new();
        let mut services = Vec::new();
        let mut last = ROOT;
        let mut next = move || {
            last += 1;
            last
        };
        for service in Service::ALL {
            let mut lines = Vec::new();
            for (name, size) in service.secrets(many) {
                let ino = next();
                let (bytes, paged) = (value(size), service == Service::Paged);
                nodes.insert(ino, Node::File { bytes, paged });
                lines.push((ino, name));
            }
            let ino = next();
            nodes.insert(ino, Node::directory(lines));
            services.push((ino, service.name().to_owned()));
        }
        nodes.insert(ROOT, Node::directory(services));
        Self { nodes }
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match self.nodes.get(&ino)? {
            Node::Directory { .. } => (FileType::Directory, 0, 0o555, 2),
            Node::File { bytes, .. } => (FileType::RegularFile, bytes.len() as u64, 0o440, 1),
        };
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn lines(&self, ino: INodeNo) -> &[(u64, String)] {
        match self.nodes.get(&ino.0) {
            Some(Node::Directory { lines, .. }) => lines,
            Some(Node::File { .. }) | None => &[],
        }
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match self.nodes.get(&parent.0) {
            Some(Node::Directory { names, .. }) => names.get(name),
            Some(Node::File { .. }) | None => None,
        };
        match ino.and_then(|ino| self.attr(*ino)) {
            Some(attr) => reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&ATTR_TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.nodes.get(&ino.0) {
            Some(Node::File { paged: true, .. }) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Some(Node::File { paged: false, .. }) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Some(Node::Directory { .. }) | None => reply.error(Errno::EISDIR),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Node::File { bytes, .. }) = self.nodes.get(&ino.0) else {
            return reply.error(Errno::EISDIR);
        };
        let start = (offset as usize).min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        reply.data(&bytes[start..end]);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let lines = self.lines(ino).iter().enumerate();
        for (index, (child, name)) in lines.skip(offset as usize) {
            let kind = match self.nodes[child] {
                Node::Directory { .. } => FileType::Directory,
                Node::File { .. } => FileType::RegularFile,
            };
            if reply.add(INodeNo(*child), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let lines = self.lines(ino).iter().enumerate();
        for (index, (child, name)) in lines.skip(offset as usize) {
            let Some(attr) = self.attr(*child) else {
                continue;
            };
            let after = index as u64 + 1;
            if reply.add(
                INodeNo(*child),
                after,
                name,
                &LISTING_TTL,
                &attr,
                Generation(0),
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        // Not ENOSYS, which the kernel would remember: the same requests are to be answered.
        reply.error(Errno::NO_XATTR);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        match size {
            0 => reply.size(0),
            _ => reply.data(&[]),
        }
    }
}
