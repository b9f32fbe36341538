//! Listings, as the kernel wants them: as many lines as its buffer takes, from where the last one ended.

use std::time::Duration;

use fuser::{FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::INODE_GENERATION;
use super::words::{after, dot, file_attr, file_type};
use crate::fs::{DirEntry, Ino, Tree};

/// What READDIRPLUS gave, so that `ls -l` asks for each line once and not twice.
const LISTING_TTL: Duration = Duration::from_secs(1);

/// The two lines that each listing begins with, but for an empty one: that has no line at all. The kernel copies lines
/// into the caller's memory while it holds the directory's lock, and memory can be made to wait. Who may read nothing
/// here shall not be able to hold the others up with it.
const DOTS: [&str; 2] = [".", ".."];

/// The names, from this line on.
pub(super) fn list(ino: INodeNo, entries: &[DirEntry], from: usize, mut reply: ReplyDirectory) {
    if entries.is_empty() {
        return reply.ok();
    }
    for (index, name) in DOTS.into_iter().enumerate().skip(from) {
        if reply.add(ino, after(index), FileType::Directory, name) {
            return reply.ok();
        }
    }
    for (index, entry) in lines(entries, from) {
        let (ino, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
        if reply.add(ino, after(index), kind, entry.name.as_str()) {
            break;
        }
    }
    reply.ok();
}

/// The same with what each looks like, of which the kernel then holds a look-up.
pub(super) fn list_plus(
    tree: &Tree,
    ino: INodeNo,
    entries: &[DirEntry],
    from: usize,
    mut reply: ReplyDirectoryPlus,
) {
    if entries.is_empty() {
        return reply.ok();
    }
    let generation = INODE_GENERATION;
    for (index, name) in DOTS.into_iter().enumerate().skip(from) {
        // The kernel takes no look-up of these two, so what they look like does not matter.
        let attr = file_attr(&dot(Ino(ino.0)));
        let zero = Duration::ZERO;
        if reply.add(ino, after(index), name, &zero, &attr, generation) {
            return reply.ok();
        }
    }
    for (index, entry) in lines(entries, from) {
        let Some(attr) = tree.attr_of(Ino(ino.0), entry) else {
            continue;
        };
        let (line, shown) = (INodeNo(attr.ino.0), file_attr(&attr));
        let (index, name) = (after(index), entry.name.as_str());
        if reply.add(line, index, name, &LISTING_TTL, &shown, generation) {
            break;
        }
        tree.looked_up(attr.ino);
    }
    reply.ok();
}

/// Those after the dots, with their places.
fn lines(entries: &[DirEntry], from: usize) -> impl Iterator<Item = (usize, &DirEntry)> {
    let lines = entries.iter().enumerate();
    let lines = lines.skip(from.saturating_sub(DOTS.len()));
    lines.map(|(index, entry)| (index + DOTS.len(), entry))
}
