"""A program for the command of a run: does file operations, and says what became of each.

    python file_operations.py OPERATIONS.json RESULTS.json

Started with any Python and nothing but its standard library, in the tree that it is to change. Also
makes such operations from a seed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import random
import shutil
import socket
import stat
import struct
import sys
from collections.abc import Callable

OWN = ["n1", "n2", "n3"]
"""Names that no tree begins with, so a directory of such a name can be renamed."""
NAMES = ["a", "b", "c", *OWN]
LINKED = ["l1", "l2", "b/l3"]
"""Hard links of the tree. Whoever writes to one in an overlay parts it from the others."""
NOREPLACE, EXCHANGE = 1, 2
ACLS = ("system.posix_acl_access", "system.posix_acl_default")

Operation = list[object]


def acl(mask: int) -> bytes:
    """An ACL that names this user besides owner, group and others."""
    tags = [(1, 6, -1), (2, 5, os.geteuid()), (4, 5, -1), (16, mask, -1), (32, 1, -1)]
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, mode, number & 0xFFFFFFFF) for tag, mode, number in tags
    )


def write(path: str, offset: int, length: int, seed: int, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
    try:
        os.pwrite(fd, random.Random(seed).randbytes(length), offset)
    finally:
        os.close(fd)


def write_mapped(path: str, offset: int, seed: int) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        data = random.Random(seed).randbytes(min(len(mapped), 100))
        offset %= len(mapped) - len(data) + 1
        mapped[offset : offset + len(data)] = data


def rename(old: str, new: str, flags: int) -> None:
    """Rename, but no directory of the tree: an overlay has that copied."""
    for path in (old, new) if flags & EXCHANGE else (old,):
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and os.path.basename(path) not in OWN:
            return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


DOING: dict[str, Callable[..., object]] = {
    "write": write,
    "write_mapped": write_mapped,
    "truncate": os.truncate,
    "remove": remove,
    "unlink": os.unlink,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "rename": rename,
    "symlink": os.symlink,
    "link": os.link,
    "chmod": os.chmod,
    "chown": os.chown,
    "setxattr": lambda path, name, text: os.setxattr(path, name, text.encode()),
    "removexattr": os.removexattr,
    "acl": lambda path, name, mask: os.setxattr(path, name, acl(mask)),
    "utime": lambda path, mtime_ns: os.utime(path, ns=(0, mtime_ns)),
    "mkfifo": os.mkfifo,
    "bind": bind,
    "mknod": lambda path, minor: os.mknod(path, 0o20600, os.makedev(1, minor)),
}


def operations(seed: int, count: int, *, as_root: bool) -> list[Operation]:
    """Return operations, many of which the file system has to refuse."""
    rng = random.Random(seed)
    return [_operation(rng, as_root) for _ in range(count)]


def _path(rng: random.Random, names: list[str] = NAMES) -> str:
    above = [rng.choice(NAMES) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    return "/".join([*above, rng.choice(names)])


def _operation(rng: random.Random, as_root: bool) -> Operation:
    path, other = _path(rng), _path(rng)
    seed, offset = rng.randrange(1 << 30), rng.choice([0, 1, 5000, 70_000, 300_000])
    length = rng.choice([1, 100, 5000, 150_000])
    flags = rng.choice([0, os.O_APPEND, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT])
    choices: list[Operation] = [
        *[["write", path, offset, length, seed, flags]] * 5,
        ["write_mapped", path, offset, seed],
        ["truncate", path, offset],
        ["remove", path],
        ["unlink", path],
        *[["mkdir", path, rng.choice([0o755, 0o700, 0o2775])]] * 4,
        ["rmdir", path],
        *[["rename", path, other, rng.choice([0, 0, NOREPLACE, EXCHANGE])]] * 4,
        ["rename", _path(rng, OWN), other, rng.choice([0, 0, NOREPLACE, EXCHANGE])],
        ["symlink", rng.choice(["a", "b/c", "nowhere"]), path],
        ["link", path, other],
        ["chmod", path, rng.choice([0o600, 0o755, 0o444, 0o4755])],
        ["setxattr", path, rng.choice(["user.x", "user.y", "user.overlay.opaque"]), f"{seed}"],
        ["removexattr", path, "user.x"],
        ["acl", path, rng.choice(ACLS), rng.choice([4, 5, 7])],
        ["utime", path, rng.choice([0, 1, 1_000_000_000_123_456_789])],
        ["mkfifo", path],
        ["bind", path],
        [rng.choice(["unlink", "remove"]), rng.choice(LINKED)],
        ["rename", path, rng.choice(LINKED), 0],
    ]
    if as_root:
        choices += [
            ["chown", path, rng.choice([0, 1, 1234]), rng.choice([0, 99])],
            ["mknod", path, rng.choice([3, 5])],
        ]
    return rng.choice(choices)


def do(operation: Operation) -> str:
    name, *arguments = operation
    try:
        DOING[str(name)](*arguments)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc))
    except ValueError:
        return "nothing to map"
    return "done"


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        wanted = json.load(file)
    results = [do(operation) for operation in wanted]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
