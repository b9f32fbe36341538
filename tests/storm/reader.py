"""Reads one secret again and again, in one way, and says at the end what it saw.

Arguments: the file of numbers that the test shares, the secret's index there, the way, the paths. Each number there is
8 bytes long: whether to end, then for each secret the generation that was acknowledged last.

A value is its generation's number, repeated, and a checksum; see values.rs.
"""

import errno
import json
import mmap
import os
import random
import struct
import sys
import time
import zlib

MOST = 5
PAUSE = 0.02
PATIENCE = 0.15


class Numbers:
    def __init__(self, path, index):
        with open(path, "rb") as file:
            self.shared = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.index = index

    def at(self, index):
        return struct.unpack_from("=Q", self.shared, 8 * index)[0]

    def ended(self):
        return self.at(0) != 0

    def acknowledged(self):
        return self.at(1 + self.index)


def generation(value):
    """The number of a whole value; None if it is torn."""
    head = value[:20].split(b",", 1)[0]
    if not head.isdigit() or len(value) < 9:
        return None
    body, checksum = value[:-8], value[-8:]
    line = head + b","
    whole = (line * (len(body) // len(line) + 1))[: len(body)]
    return int(head) if body == whole and checksum == b"%08x" % zlib.adler32(body) else None


def by_read(fd, scratch):
    value = b""
    while part := os.read(fd, 1 << 17):
        value += part
    return value


def by_map(fd, scratch):
    """Copied by write(2), which says of a page that cannot be read what would otherwise be a signal."""
    size = os.fstat(fd).st_size
    if size == 0:
        return b""
    os.ftruncate(scratch, 0)
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
        copied = os.pwrite(scratch, mapping, 0)
        if copied < size:
            copied += os.pwrite(scratch, memoryview(mapping)[copied:], copied)
    return os.pread(scratch, copied, 0)


def by_sendfile(fd, scratch):
    os.ftruncate(scratch, 0)
    os.lseek(scratch, 0, os.SEEK_SET)
    at = 0
    while count := os.sendfile(scratch, fd, at, 1 << 17):
        at += count
    return os.pread(scratch, at, 0)


READS = {"read": by_read, "map": by_map, "sendfile": by_sendfile}


class Reader:
    def __init__(self, numbers, way, paths, read):
        self.numbers, self.way, self.read = numbers, way, READS[read]
        self.path = paths[way] if way in paths else paths["path"]
        self.held, self.value = None, None
        self.last = 0
        self.scratch = os.memfd_create("scratch")
        self.reads, self.refused, self.wrong = 0, {}, []

    def target(self):
        """What to open. What is reopened is held for a while: as a handle, which must not change, or as an inode."""
        if self.way != "reopen":
            return self.path
        if self.held is None or random.random() < 0.02:
            self.hold()
        return f"/proc/self/fd/{self.held}"

    def hold(self):
        if self.held is not None:
            if self.value is not None and os.pread(self.held, 1 << 17, 0) != self.value:
                self.complain("a handle's value changed")
            os.close(self.held)
        as_handle = self.read is by_read
        self.held = os.open(self.path, os.O_RDONLY if as_handle else os.O_PATH)
        self.value = os.pread(self.held, 1 << 17, 0) if as_handle else None

    def turn(self):
        target = self.target()
        least = self.numbers.acknowledged()
        step, begun = "open", time.monotonic()
        try:
            fd = os.open(target, os.O_RDONLY)
            try:
                step = "read"
                value = self.read(fd, self.scratch)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
        except OSError as error:
            return self.count(f"{step}: {errno.errorcode[error.errno]}", begun)
        except ValueError:
            # Python looks at the size itself before it maps.
            return self.count("another size", begun)
        self.judge(value, size, least, begun)

    def judge(self, value, size, least, begun):
        self.reads += 1
        number = generation(value)
        if number is None:
            number = generation(value.rstrip(b"\0"))
            if number is None:
                return self.complain(f"torn: {len(value)} bytes, size {size}: {describe(value)}")
            self.count("zeros after the end", begun)
        elif size != len(value):
            self.count("another size", begun)
        if number < least:
            self.complain(f"{number} after {least} was acknowledged")
        if number < self.last:
            self.complain(f"{number} after {self.last} was read")
        self.last = max(self.last, number)

    def count(self, name, begun):
        """What others wait for before they share an inode with an older handle has an end."""
        late = time.monotonic() - begun > PATIENCE
        name = f"{name}, late" if late else name
        self.refused[name] = self.refused.get(name, 0) + 1

    def complain(self, what):
        if len(self.wrong) < MOST:
            self.wrong.append(what)


def describe(value):
    """The numbers that a torn value is made of, and where each begins."""
    parts, last = [], None
    for index in range(0, len(value), 8):
        piece = value[index : index + 40].split(b",")
        number = piece[1] if len(piece) > 2 else piece[0]
        number = number[:12].decode(errors="replace")
        if number != last and len(parts) < 6:
            parts.append(f"{number!r} at {index}")
            last = number
    return ", ".join(parts)


def main():
    shared, index, way, read, paths = sys.argv[1:]
    numbers = Numbers(shared, int(index))
    reader = Reader(numbers, way, json.loads(paths), read)
    os.nice(10)
    while not numbers.ended():
        reader.turn()
        time.sleep(random.random() * PAUSE)
    said = {"reads": reader.reads, "refused": reader.refused, "wrong": reader.wrong}
    print(json.dumps(said))


main()
