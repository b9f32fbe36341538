"""Sixteen readers, who read until somebody makes /stop: what each saw that was wrong, how often it read and how long it waited."""

import mmap
import os
import sys
import time

VALUE, CACHED = b"canary of who is killed\n", b"canary of who is mapped\n"
SERVICE = "/secrets/demo"
X = SERVICE + "/x"


def cat(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def turns():
    held = os.open(X, os.O_RDONLY)
    cached = os.open(SERVICE + "/cached", os.O_RDONLY)
    mapped = mmap.mmap(cached, len(CACHED), mmap.MAP_PRIVATE, mmap.PROT_READ)
    folder = os.open(SERVICE, os.O_RDONLY | os.O_DIRECTORY)
    opened = lambda: os.open("x", os.O_RDONLY, dir_fd=folder)
    return [
        lambda: cat(X) == VALUE,
        lambda: cat("/bound/file") == VALUE,
        lambda: cat("/bound/folder/x") == VALUE,
        lambda: cat(SERVICE + "/cached") == CACHED,
        lambda: os.pread(held, 100, 0) == VALUE,
        lambda: mapped[:] == CACHED and os.pread(cached, 100, 0) == CACHED,
        lambda: sorted(os.listdir(SERVICE)) == ["cached", "x"] and os.close(opened()) is None,
        lambda: os.getxattr(X, "user.secretfs.version") == b"1" and os.stat(X).st_size == len(VALUE),
    ]


def read(number, done):
    turn = turns()[number % 8]
    count, longest, wrong = 0, 0, ""
    while not os.path.exists("/stop"):
        began = time.monotonic()
        try:
            if not turn():
                wrong = "not what it was"
        except OSError as error:
            wrong = str(error)
        longest = max(longest, time.monotonic() - began)
        count += 1
        if wrong:
            break
    os.write(done, f"{number} {count} {longest:.3f} {wrong}\n".encode())


said, done = os.pipe()
for number in range(16):
    if os.fork() == 0:
        read(number, done)
        os._exit(0)
os.close(done)
open("/reading", "w").close()
sys.stdout.buffer.write(b"".join(iter(lambda: os.read(said, 4096), b"")))
