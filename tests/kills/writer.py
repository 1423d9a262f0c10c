"""A process that makes calls in one directory of a mount until the mount dies under it.

    python -m tests.kills.writer SEED STORE DIRECTORY PROGRESS_FD cached|uncached

It keeps the model of what it has done, writes one byte to PROGRESS_FD for each call that has
returned, and obeys lines on standard input, each answered by one JSON line:

    write       make calls; "paused" at the next line of input, or "stopped" once the mount is dead
    verify      compare the directory (of a mount that was made anew) with the model

On a mount whose writes the kernel keeps, each write is followed by a close, as nothing before that
need survive the mount.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.kills.model import Call, Node, Tree, read_tree

_REALTIME_COARSE = 5  # linux/time.h
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
COMMAND_TIMEOUT_S = 200
TREE_BYTES_MAX = 6 << 20
OPEN_MAX = 4
SNAPSHOTS_MAX = 4
COMMANDS = os.fdopen(0, "rb", buffering=0, closefd=False)
"""Not buffered: select(2) would not see a second one that came with the first."""
POOL = random.Random("pool").randbytes(3 << 20)
"""What all writers write pieces of, so that they share chunks."""
MAY_FAIL = {0, 3, 8}
"""How a command may end whose daemon dies under it: docs/cli.md, "Exit codes"."""


class Writer:
    """Makes random calls and knows what they must have done."""

    def __init__(self, seed: str, store: Path, top: Path, progress: int, *, closes: bool) -> None:
        self.closes = closes
        self.random = random.Random(seed)
        self.store = store
        self.top = top
        self.progress = progress
        self.tree = Tree()
        self.open: dict[int, Node] = {}
        self.snapshots: dict[str, Tree] = {}
        self.unsure: dict[str, Tree] = {}
        self.in_flight: Call | None = None
        self.calls = 0
        self.number = 0
        self.last_fd = -1

    # --- one call --------------------------------------------------------------------------------

    def do(self, call: Call, action: Callable[[], object]) -> None:
        """Make a call; it is in flight until it returns."""
        call.time_ns = time.clock_gettime_ns(_REALTIME_COARSE)  # by which the kernel marks files
        self.in_flight = call
        done = action()
        self.in_flight = None
        rest = None
        if call.name == "write" and isinstance(done, int) and done < len(call.data):
            # The kernel sends a write in pieces; a later one was in flight when the mount died.
            rest = Call("write", call.path, call.data[done:], call.number + done)
            call.data = call.data[:done]
        self.tree.apply(call)
        self.count()
        if rest is not None:
            self.in_flight = rest
            raise OSError(errno.ENOTCONN, "a short write")

    def count(self) -> None:
        self.calls += 1
        with suppress(BlockingIOError):  # nobody counts at the moment
            os.write(self.progress, b".")

    # --- choosing --------------------------------------------------------------------------------

    def paths(self, kind: Callable[[Node], bool]) -> list[str]:
        return sorted(path for path, node in self.tree.nodes.items() if kind(node))

    def files(self) -> list[str]:
        return self.paths(lambda node: node.is_file)

    def new_path(self) -> str:
        self.number += 1
        directory = self.random.choice(["", *self.paths(lambda node: node.is_directory)])
        return f"{directory}/n{self.number}".lstrip("/")

    def payload(self) -> bytes:
        kind = self.random.random()
        if kind < 0.1:
            return bytes(self.random.randrange(1, 20_000))
        if kind < 0.3:
            return self.random.randbytes(self.random.randrange(1, 20_000))
        start = self.random.randrange(len(POOL))
        return POOL[start : start + self.random.choice([100, 3000, 20_000, 200_000])]

    def name_of(self, node: Node) -> str | None:
        return next((path for path, other in self.tree.nodes.items() if other is node), None)

    # --- kinds of calls --------------------------------------------------------------------------

    def create(self) -> None:
        path = self.new_path()
        self.close_some()
        mode = self.random.choice([0o600, 0o644, 0o755, 0o400])

        def action() -> None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self.last_fd = os.open(self.top / path, flags, mode)

        self.do(Call("create", path, number=mode), action)
        self.open[self.last_fd] = self.tree.nodes[path]

    def reopen(self) -> None:
        if self.files():
            path = self.random.choice(self.files())
            self.close_some()
            self.open[os.open(self.top / path, os.O_RDWR)] = self.tree.nodes[path]

    def close_some(self) -> None:
        while len(self.open) >= OPEN_MAX:
            descriptor = self.random.choice(list(self.open))
            del self.open[descriptor]
            os.close(descriptor)

    def write(self) -> None:
        for descriptor, node in self.some_open():
            self.pwrite(descriptor, node, self.payload())

    def pwrite(self, descriptor: int, node: Node, data: bytes) -> None:
        size = len(node.data)
        offset = self.random.choice([size, size, 0, self.random.randrange(size + 5000)])
        path = self.name_of(node)
        if path is None:
            self.put(descriptor, data, offset)
            node.splice(offset, data)
        else:
            call = Call("write", path, data, offset)
            self.do(call, lambda: self.put(descriptor, data, offset))

    def put(self, descriptor: int, data: bytes, offset: int) -> int:
        done = os.pwrite(descriptor, data, offset)
        if self.closes:
            os.close(os.dup(descriptor))
        return done

    def write_much(self) -> None:
        """A long file in order: staged, cut while it comes, partly adopted, packed verbatim."""
        self.create()
        descriptor, node = self.last_fd, self.open[self.last_fd]
        start = self.random.randrange(len(POOL))
        data = POOL[start:] + self.random.randbytes(self.random.choice([0, 600_000]))
        for offset in range(0, len(data), 120_000):
            path = self.name_of(node)
            assert path is not None
            piece = data[offset : offset + 120_000]
            call = Call("write", path, piece, len(node.data))
            self.do(call, partial(self.put, descriptor, piece, call.number))
        del self.open[descriptor]
        os.close(descriptor)

    def some_open(self) -> list[tuple[int, Node]]:
        return [self.random.choice(list(self.open.items()))] if self.open else []

    def truncate(self) -> None:
        for descriptor, node in self.some_open():
            size = self.random.choice([0, len(node.data) // 2, len(node.data) + 3000])
            path = self.name_of(node)
            if path is not None:
                call = Call("truncate", path, number=size)
                self.do(call, partial(os.ftruncate, descriptor, size))

    def fsync(self) -> None:
        for descriptor, node in self.some_open():
            path = self.name_of(node)
            if path is not None:
                self.do(Call("fsync", path), partial(os.fsync, descriptor))

    def read(self) -> None:
        for descriptor, node in self.some_open():
            offset = self.random.randrange(len(node.data) + 1)
            wanted = node.data[offset : offset + 100_000]
            data = os.pread(descriptor, 100_000, offset)
            assert data == wanted[: len(data)], f"other bytes at {offset} of a live file"
            if data != wanted:  # cut short by the mount's death, which the next call tells
                os.fstat(descriptor)
                os.listxattr(descriptor)
                raise AssertionError(f"read {len(data)} bytes instead of {len(wanted)}")
            self.count()

    def mkdir(self) -> None:
        path = self.new_path()
        self.do(Call("mkdir", path, number=0o755), lambda: os.mkdir(self.top / path, 0o755))

    def symlink(self) -> None:
        path, target = self.new_path(), f"target-{self.number}"
        self.do(Call("symlink", path, text=target), lambda: os.symlink(target, self.top / path))

    def link(self) -> None:
        if self.files():
            old, new = self.random.choice(self.files()), self.new_path()
            self.do(Call("link", old, text=new), lambda: os.link(self.top / old, self.top / new))

    def rename(self) -> None:
        if self.tree.nodes:
            old, new = self.random.choice(sorted(self.tree.nodes)), self.new_path()
            others = [path for path in self.files() if path != old]
            if self.tree.nodes[old].is_file and others and self.random.random() < 0.4:
                new = self.random.choice(others)
            if not new.startswith(old + "/"):
                call = Call("rename", old, text=new)
                self.do(call, lambda: os.rename(self.top / old, self.top / new))

    def remove(self) -> None:
        paths = self.paths(lambda node: not node.is_directory)
        if paths:
            path = self.random.choice(paths)
            self.do(Call("unlink", path), lambda: os.unlink(self.top / path))

    def rmdir(self) -> None:
        full = {os.path.dirname(path) for path in self.tree.nodes}
        for path in [p for p in self.paths(lambda node: node.is_directory) if p not in full][:1]:
            self.do(Call("rmdir", path), partial(os.rmdir, self.top / path))

    def attributes(self) -> None:
        if not self.files():
            return
        path = self.random.choice(self.files())
        where = self.top / path
        xattrs = self.tree.nodes[path].xattrs
        kinds = ["chmod", "utime", "setxattr", "setxattr", "removexattr", "chown"]
        kind = self.random.choice(kinds)
        if kind == "chmod":
            mode = self.random.choice([0o600, 0o640, 0o755, 0o444])
            self.do(Call("chmod", path, number=mode), lambda: os.chmod(where, mode))
        elif kind == "utime":
            ns = self.random.randrange(10**18)
            self.do(Call("utime", path, number=ns), lambda: os.utime(where, ns=(ns, ns)))
        elif kind == "setxattr":
            name, value = f"user.x{self.random.randrange(3)}", self.random.randbytes(30)
            call = Call("setxattr", path, value, text=name)
            self.do(call, lambda: os.setxattr(where, name, value))
        elif kind == "removexattr" and xattrs:
            name = self.random.choice(sorted(xattrs))
            self.do(Call("removexattr", path, text=name), lambda: os.removexattr(where, name))
        elif kind == "chown" and os.geteuid() == 0:
            uid = self.random.randrange(5)
            self.do(Call("chown", path, number=uid), lambda: os.chown(where, uid, uid))

    # --- commands --------------------------------------------------------------------------------

    def dedupfs(self, *words: str | Path) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "dedupfs", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert done.returncode in MAY_FAIL, f"{words}: exit {done.returncode}, {done.stderr}"
        assert done.stderr.count("\n") <= 1, done.stderr
        return done.returncode

    def commit(self) -> None:
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            self.forget()  # all of them are compared after each death
            return
        self.number += 1
        name = f"{self.top.parent.name}-{self.top.name}-{self.number}"
        self.unsure[name] = self.tree.copy()
        if self.dedupfs("commit", self.top, name) == 0:
            self.snapshots[name] = self.unsure.pop(name)
            self.count()

    def forget(self) -> None:
        if self.snapshots:
            name = self.random.choice(sorted(self.snapshots))
            self.unsure[name] = self.snapshots.pop(name)
            if self.dedupfs("rm", self.store, name) == 0:
                del self.unsure[name]
                self.count()

    # --- what is asked for -----------------------------------------------------------------------

    def step(self) -> None:
        if sum(len(node.data) for node in self.tree.nodes.values()) > TREE_BYTES_MAX:
            self.remove()
            return
        kinds = {
            self.write: 30, self.create: 8, self.reopen: 5, self.truncate: 4, self.fsync: 3,
            self.read: 8, self.mkdir: 3, self.symlink: 2, self.link: 3, self.rename: 6,
            self.remove: 6, self.rmdir: 1, self.attributes: 12, self.write_much: 0.6,
            self.commit: 0.25, self.forget: 0.1,
        }  # fmt: skip
        self.random.choices(list(kinds), list(kinds.values()))[0]()

    def make_calls(self) -> dict[str, object]:
        while not select.select([COMMANDS], [], [], 0)[0]:
            try:
                self.step()
            except OSError as exc:
                if exc.errno not in DEAD and not (exc.errno == errno.EIO and self.is_dead()):
                    raise
                return {"answer": "stopped"}
        return {"answer": "paused"}

    def is_dead(self) -> bool:
        """Whether the mount has ended.

        Where the kernel keeps writes it tells close(2) of those that came too late as EIO, whatever
        the reason was (mm/filemap.c, filemap_check_errors).
        """
        try:
            os.statvfs(self.top)
        except OSError as exc:
            return exc.errno in DEAD
        return False

    def verify(self) -> dict[str, object]:
        """Compare, and go on from what is there."""
        for descriptor in self.open:
            with suppress(OSError):  # of a dead mount
                os.close(descriptor)
        self.open.clear()
        found = read_tree(self.top)
        call, self.in_flight = self.in_flight, None
        candidates = [self.tree] if call is None else list(self.tree.outcomes(call, found))
        told = [tree.differences(found) for tree in candidates]
        wrong = [] if [] in told else told[0]
        if wrong and call is not None:
            shown = {**asdict(call), "data": len(call.data)}
            wrong.append(f"call in flight: {shown}; if it was done: {told[1]}")
        if not wrong:
            self.tree = candidates[told.index([])]
        wrong += self.verify_snapshots()
        return {"answer": "verified", "wrong": wrong, "calls": self.calls}

    def verify_snapshots(self) -> list[str]:
        root = self.top.parent
        there = set(os.listdir(root))
        wrong = [f"{name}: snapshot lost" for name in self.snapshots.keys() - there]
        self.snapshots |= {name: tree for name, tree in self.unsure.items() if name in there}
        self.unsure.clear()
        for name in sorted(self.snapshots.keys() & there):
            told = self.snapshots[name].differences(read_tree(root / name))
            wrong += [f"{name}: {what}" for what in told]
        return wrong


def main() -> None:
    seed, store, top, progress, writes = sys.argv[1:]
    os.umask(0)
    os.set_blocking(int(progress), False)
    closes = writes == "cached"
    writer = Writer(seed, Path(store), Path(top), int(progress), closes=closes)
    for line in COMMANDS:
        done = writer.make_calls() if line == b"write\n" else writer.verify()
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
