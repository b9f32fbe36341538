"""Makes system calls as somebody else and says how they ended.

Standard input is a socket. A request is a line {"op": NAME, "args": [...]}; the answer is {"ok": RESULT} or
{"errno": NUMBER}. Bytes go as hexadecimal digits.
"""

import errno
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import time

PIPE = 65536
kept = []


def described(stat):
    return {
        "size": stat.st_size,
        "mode": stat.st_mode,
        "uid": stat.st_uid,
        "gid": stat.st_gid,
        "ino": stat.st_ino,
    }


def through_a_pipe(move):
    """What `move(write end, offset)` moves until it moves nothing."""
    read, write = os.pipe()
    moved = b""
    try:
        while True:
            count = move(write, len(moved))
            if count == 0:
                return moved
            part = b""
            while len(part) < count:
                part += os.read(read, count - len(part))
            moved += part
    finally:
        os.close(read)
        os.close(write)


class Watched:
    """A secret that is watched, by "folder", "file", "poll" or "epoll"."""

    MOVED_TO, ATTRIB = 0x80, 0x4

    def __init__(self, path, way):
        import ctypes

        self.libc = ctypes.CDLL(None, use_errno=True)
        self.path = path
        self.way = way
        self.begin()

    def begin(self):
        if self.way == "folder":
            self.listen(os.path.dirname(self.path), self.MOVED_TO)
        elif self.way == "file":
            self.listen(self.path, self.ATTRIB)
        else:
            self.held = os.open(self.path, os.O_RDONLY)
            self.poll = getattr(select, self.way)()
            self.poll.register(self.held, select.POLLPRI)

    def listen(self, path, mask):
        self.inotify = os.fdopen(self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0)
        if self.libc.inotify_add_watch(self.inotify.fileno(), path.encode(), mask) < 0:
            raise OSError(0, "inotify_add_watch")

    def wake(self):
        """Waits for one change and reads the secret at once. Says what it read, and how many more changes could be heard of
        then."""
        more = 0
        if self.way in ("folder", "file"):
            select.select([self.inotify], [], [])
            read = self.read()
        else:
            self.poll.poll()
            read = self.read()
        if self.way == "folder":
            time.sleep(0.005)
            more = self.events().count(os.path.basename(self.path)) - 1
        elif self.way == "file":
            # This file has had its one change. The next watch is on the file that is there now.
            self.inotify.close()
            self.begin()
        else:
            os.close(self.held)
            self.begin()
            more = len(self.poll.poll(0))
        return {"read": read, "more": more}

    def read(self):
        with open(self.path, encoding="ascii") as file:
            return file.read()

    def events(self):
        """The names of the events that are there."""
        names, read = [], self.inotify.read(65536) or b""
        while read:
            length = int.from_bytes(read[12:16], sys.byteorder)
            names.append(read[16 : 16 + length].rstrip(b"\0").decode())
            read = read[16 + length :]
        return names


class Churn:
    """Looks up, lists, opens, reads and maps in one folder, over and over."""

    # A page of another generation is an error and never a mix, and a reader of an old inode may have to come again.
    EXPECTED = {errno.EIO, errno.EFAULT, errno.ESTALE}

    def __init__(self, folder, names, bound):
        self.folder, self.names, self.bound = folder, names, bound
        self.held = []
        self.done = {}
        self.wrong = []

    def turn(self):
        for name in self.names:
            path = os.path.join(self.folder, name)
            self.attempt("read", lambda: self.whole(path), {errno.ENOENT})
            self.attempt("stat", lambda: os.stat(path), {errno.ENOENT})
            self.attempt("map", lambda: self.map(path), self.EXPECTED | {errno.ENOENT})
            self.attempt("sendfile", lambda: self.sendfile(path), self.EXPECTED | {errno.ENOENT})
            self.attempt("hold", lambda: self.hold(path), {errno.ENOENT})
            self.attempt("absent", lambda: os.stat(path + ".absent"), {errno.ENOENT})
        for path in self.bound:
            self.attempt("bound", lambda: self.whole(path), {errno.ESTALE})
        self.attempt("list", lambda: os.listdir(self.folder), set())
        self.attempt("list long", lambda: [entry.stat() for entry in os.scandir(self.folder)], {errno.ENOENT})

    def attempt(self, what, call, expected):
        try:
            call()
        except OSError as error:
            if error.errno not in expected:
                self.wrong.append(f"{what}: {error}")
        self.done[what] = self.done.get(what, 0) + 1

    def one_value(self, what, value):
        """A value is one word, over and over."""
        if not value or len(set(value.split(b" "))) != 1:
            self.wrong.append(f"{what} is torn: {value[:100]}")

    def whole(self, path):
        with open(path, "rb", buffering=0) as file:
            self.one_value(path, b"".join(iter(lambda: file.read(1 << 16), b"")))

    def hold(self, path):
        self.held.append(os.open(path, os.O_RDONLY))
        if len(self.held) > 8:
            os.close(self.held.pop(0))

    def map(self, path):
        with open(path, "rb", buffering=0) as file:
            length = min(os.fstat(file.fileno()).st_size, PIPE)
            if length == 0:
                self.wrong.append(f"{path} is open and has no size")
                return
            with mmap.mmap(file.fileno(), length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
                # A page that cannot be had ends who touches it. A system call only fails.
                through_a_pipe(lambda out, at: os.write(out, memoryview(mapping)[at:]) if at < length else 0)

    def sendfile(self, path):
        with open(path, "rb", buffering=0) as file:
            through_a_pipe(lambda out, at: os.sendfile(out, file.fileno(), at, PIPE))


class Calls:
    def open(self, path, flags):
        return os.open(path, flags)

    def close(self, fd):
        os.close(fd)

    def pread(self, fd, length, offset):
        return os.pread(fd, length, offset).hex()

    def cat(self, path):
        fd = os.open(path, os.O_RDONLY)
        try:
            whole = b""
            while part := os.read(fd, 1 << 17):
                whole += part
            return whole.hex()
        finally:
            os.close(fd)

    def stat(self, path):
        return described(os.stat(path))

    def fstat(self, fd):
        return described(os.fstat(fd))

    def access(self, path, mode):
        # os.access hides the errno, which is what we are here for.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.access(path.encode(), mode) != 0:
            raise OSError(ctypes.get_errno(), "access")

    def list(self, path):
        return sorted(os.listdir(path))

    def getxattr(self, path, name):
        return os.getxattr(path, name).hex()

    def listxattr(self, path):
        return sorted(os.listxattr(path))

    def map(self, fd, length):
        """Maps a file and keeps the mapping."""
        mapping = mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        kept.append(mapping)
        return mapping[:].hex()

    def mapped(self, index):
        return kept[index][:].hex()

    def mapped_if_there(self, index):
        """Whether a mapping's first page can be had. A page that cannot ends who touches it; a system call only fails."""
        read, write = os.pipe()
        try:
            return os.write(write, memoryview(kept[index])[:64]) == 64
        finally:
            os.close(read)
            os.close(write)

    def unmap(self, index):
        kept[index].close()

    def poll(self, fd, milliseconds):
        """poll(2) for POLLPRI alone: the events."""
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        return sum(events for _, events in poll.poll(milliseconds))

    def borrow(self, path):
        """Maps a file's first page to write to, and does not touch it yet."""
        fd = os.open(path, os.O_RDONLY)
        length = os.fstat(fd).st_size
        self.borrowed = mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(fd)

    def list_into(self, path):
        """getdents(2) of a directory into the borrowed page: the bytes it wrote."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        written = libc.getdents64(fd, ctypes.byref(ctypes.c_char.from_buffer(self.borrowed)), 4096)
        os.close(fd)
        if written < 0:
            raise OSError(ctypes.get_errno(), "getdents64")
        return written

    def utime(self, path, seconds):
        """os.utime takes no such times."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        times = (ctypes.c_int64 * 4)(seconds, 0, seconds, 0)
        if libc.utimensat(-100, path.encode(), times, 0) != 0:
            raise OSError(ctypes.get_errno(), "utimensat")

    def sendfile(self, fd):
        return through_a_pipe(lambda out, at: os.sendfile(out, fd, at, PIPE)).hex()

    def splice(self, fd):
        return through_a_pipe(lambda out, at: os.splice(fd, out, PIPE, offset_src=at)).hex()

    def statvfs(self, path):
        stat = os.statvfs(path)
        return {"namemax": stat.f_namemax, "flag": stat.f_flag}

    def listen(self, path):
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(path)
        os.chmod(path, 0o777)

    def pass_on(self, fd, path):
        door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        door.connect(path)
        socket.send_fds(door, [b"fd"], [fd])

    def accept(self):
        return socket.recv_fds(self.door, 16, 1)[1][0]

    def run(self, command, fds):
        """A child with these descriptors, under their own numbers."""
        done = subprocess.run(command, pass_fds=fds, input=b"", capture_output=True, timeout=20)
        return {"code": done.returncode, "stdout": done.stdout.hex(), "stderr": done.stderr.hex()}

    def pid(self):
        return os.getpid()

    def churn(self, folder, names, bound, until):
        """Goes on until there is a file of this name."""
        churn = Churn(folder, names, bound)
        while not os.path.exists(until):
            churn.turn()
        for fd in churn.held:
            os.close(fd)
        return {"done": churn.done, "wrong": churn.wrong[:5]}

    def watch(self, path, way):
        self.watched = Watched(path, way)

    def wake(self):
        return self.watched.wake()

    def os(self, name, *args):
        """Any function of the module `os` whose result does not matter."""
        args = [arg["bytes"].encode() if isinstance(arg, dict) else arg for arg in args]
        args = [tuple(arg) if isinstance(arg, list) else arg for arg in args]
        getattr(os, name)(*args)


def main():
    calls = Calls()
    wire = socket.socket(fileno=os.dup(0)).makefile("rwb")
    for line in wire:
        asked = json.loads(line)
        try:
            answer = {"ok": getattr(calls, asked["op"])(*asked["args"])}
        except OSError as error:
            answer = {"errno": error.errno or 0}
        wire.write(json.dumps(answer).encode() + b"\n")
        wire.flush()


if sys.argv[1:2] == ["read"]:
    # `read FD`: what a program does that was handed a descriptor.
    try:
        print(os.pread(int(sys.argv[2]), 1 << 17, 0).hex())
    except OSError as error:
        sys.exit(error.errno)
else:
    main()
