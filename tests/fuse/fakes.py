"""A view in a dictionary, for tests of the FUSE layer alone; and a stand-in for a request.

It has the names, arguments and errors of ``namespace.view.View`` and none of its machinery, so that
what a test finds is the adapter's. ``fail_with`` makes the next call of an operation raise.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import pyfuse3
from msgspec.structs import replace

from dedupfs.errors import (
    ExistsError,
    NoAttributeError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    StaleError,
)
from dedupfs.model import Attr, SnapshotInfo, TreeEntry
from dedupfs.namespace.handover import Handover
from dedupfs.namespace.ledger import Ledger
from dedupfs.namespace.view import AttrChange, Caller, StatFs, View

ROOT = 1


@dataclass(frozen=True)
class FakeContext:
    """Who sends a request; duck-typed, since pyfuse3's own cannot be made."""

    uid: int = 0
    gid: int = 0
    pid: int = 1
    umask: int = 0o022


def context(uid: int = 0, gid: int = 0, umask: int = 0o022) -> pyfuse3.RequestContext:
    return cast(pyfuse3.RequestContext, FakeContext(uid, gid, umask=umask))


@dataclass
class FakePlan:
    """A read that may have to wait for its disk, or a sync."""

    work: Callable[[], bytes] = lambda: b""
    cached: bool = True
    is_done: bool = False

    def run_cached(self, may_wait: Callable[[], bool] | None = None) -> bytes | None:
        if self.cached or (may_wait is not None and may_wait()):
            return self.work()
        return None

    def run(self) -> bytes:
        return self.work()


@dataclass
class Node:
    """An inode with its content."""

    attr: Attr
    children: dict[bytes, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class NoLimits:
    """Of a view without a limit."""

    reloads = 0

    def reload(self) -> None:
        self.reloads += 1

    @staticmethod
    def count() -> None:
        """Nothing is to be counted."""


class FakeView:
    """See the module."""

    name = "fake"

    def __init__(self, *, read_only: bool = False, cached: bool = True) -> None:
        self.read_only = read_only
        self.cached = cached
        self.volatile: set[int] = set()
        self.nodes: dict[int, Node] = {}
        self.handles: dict[int, int] = {}
        self.forgotten: list[tuple[int, int]] = []
        self.synced: list[int | None] = []
        self.calls: list[str] = []
        self.closed = False
        self.fold_wanted = False
        self.room_low = False
        self.is_waited_for = False
        self.gained_bytes = 0
        self.has_changes = False
        self.makes_room_later = False
        self.relief = self  # one fake is enough for both
        self.ledger = Ledger()
        self.quota = NoLimits()
        self._failures: dict[str, Exception] = {}
        self._add(stat.S_IFDIR | 0o755, Caller(os.geteuid(), os.getegid()))

    def as_view(self) -> View:
        return cast(View, self)

    def fail_with(self, operation: str, error: Exception) -> None:
        self._failures[operation] = error

    def _call(self, operation: str) -> None:
        self.calls.append(operation)
        if operation in self._failures:
            raise self._failures.pop(operation)

    def _add(self, mode: int, caller: Caller, rdev: int = 0) -> Node:
        now = time.time_ns()
        inode = len(self.nodes) + 1
        nlink = 2 if stat.S_ISDIR(mode) else 1
        attr = Attr(inode, mode, nlink, caller.uid, caller.gid, rdev, 0, 0, now, now, now)
        self.nodes[inode] = Node(attr)
        return self.nodes[inode]

    def _enter(self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0) -> Node:
        children = self._directory(parent)
        if name in children:
            raise ExistsError(os.fsdecode(name))
        node = self._add(mode, caller, rdev)
        children[name] = node.attr.inode
        return node

    def _node(self, inode: int) -> Node:
        if inode not in self.nodes:
            raise StaleError(str(inode))
        return self.nodes[inode]

    def _directory(self, inode: int) -> dict[bytes, int]:
        node = self._node(inode)
        if not stat.S_ISDIR(node.attr.mode):
            raise NotADirectoryNameError(str(inode))
        return node.children

    def _child(self, parent: int, name: bytes) -> Node:
        children = self._directory(parent)
        if name not in children:
            raise NotFoundError(os.fsdecode(name))
        return self.nodes[children[name]]

    def _open(self, inode: int) -> int:
        handle = 100 + len(self.handles)
        self.handles[handle] = inode
        return handle

    def close(self) -> None:
        self._call("close")
        self.closed = True

    def lookup(self, parent: int, name: bytes) -> Attr:
        self._call("lookup")
        return self._child(parent, name).attr

    def getattr(self, inode: int) -> Attr:
        self._call("getattr")
        return self._node(inode).attr

    def setattr(self, inode: int, change: AttrChange) -> Attr:
        self._call("setattr")
        node = self._node(inode)
        old = node.attr
        if change.size is not None:
            del node.data[change.size :]
            node.data.extend(bytes(change.size - len(node.data)))
        node.attr = replace(
            old,
            mode=old.mode if change.mode is None else stat.S_IFMT(old.mode) | change.mode,
            uid=old.uid if change.uid is None else change.uid,
            gid=old.gid if change.gid is None else change.gid,
            size=old.size if change.size is None else change.size,
            atime_ns=old.atime_ns if change.atime_ns is None else change.atime_ns,
            mtime_ns=old.mtime_ns if change.mtime_ns is None else change.mtime_ns,
        )
        return node.attr

    def readlink(self, inode: int) -> bytes:
        self._call("readlink")
        return self._node(inode).target

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[int, Attr]:
        self._call("create")
        attr = self._enter(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller).attr
        return self._open(attr.inode), attr

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attr:
        self._call("mknod")
        return self._enter(parent, name, mode, caller, rdev).attr

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        self._call("mkdir")
        return self._enter(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller).attr

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attr:
        self._call("symlink")
        node = self._enter(parent, name, stat.S_IFLNK | 0o777, caller)
        node.target = target
        node.attr = replace(node.attr, size=len(target))
        return node.attr

    def link(self, inode: int, new_parent: int, new_name: bytes) -> Attr:
        self._call("link")
        node = self._node(inode)
        if new_name in self._directory(new_parent):
            raise ExistsError(os.fsdecode(new_name))
        self._directory(new_parent)[new_name] = inode
        node.attr = replace(node.attr, nlink=node.attr.nlink + 1)
        return node.attr

    def unlink(self, parent: int, name: bytes) -> None:
        self._call("unlink")
        node = self._child(parent, name)
        del self._directory(parent)[name]
        node.attr = replace(node.attr, nlink=node.attr.nlink - 1)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._call("rmdir")
        if self._child(parent, name).children:
            raise NotEmptyError(os.fsdecode(name))
        del self._directory(parent)[name]

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        self._call("rename")
        moved = self._child(old_parent, old_name).attr.inode
        if flags == 1 and new_name in self._directory(new_parent):
            raise ExistsError(os.fsdecode(new_name))
        del self._directory(old_parent)[old_name]
        self._directory(new_parent)[new_name] = moved

    def open(self, inode: int, flags: int, *, privileged: bool = False) -> int:
        self._call("open")
        node = self._node(inode)
        if flags & os.O_TRUNC:
            node.data.clear()
            node.attr = replace(node.attr, size=0)
        return self._open(inode)

    def plan_read(self, handle: int, file_offset: int, size: int) -> FakePlan:
        self._call("plan_read")
        data = bytes(self.nodes[self.handles[handle]].data[file_offset : file_offset + size])
        return FakePlan(lambda: data, self.cached)

    def write(self, handle: int, file_offset: int, data: bytes) -> int:
        self._call("write")
        node = self.nodes[self.handles[handle]]
        node.data.extend(bytes(max(0, file_offset - len(node.data))))
        node.data[file_offset : file_offset + len(data)] = data
        node.attr = replace(node.attr, size=len(node.data))
        return len(data)

    def release(self, handle: int) -> None:
        self._call("release")
        del self.handles[handle]

    def plan_fsync(self, inode: int | None) -> FakePlan:
        self._call("plan_fsync")

        def work() -> bytes:
            self.synced.append(inode)
            return b""

        return FakePlan(work)

    def inode_of(self, handle: int) -> int:
        return self.handles[handle]

    def opendir(self, inode: int) -> int:
        self._call("opendir")
        self._directory(inode)
        return self._open(inode)

    def directory_of(self, handle: int) -> int:
        return self.handles[handle]

    def handover(self) -> Handover:
        return Handover(self.name, b"", b"", {})

    def begin_request(self, opcode: int, inode: int, pid: int) -> None:
        self.ledger.begin(opcode, inode, pid, 0, 0)

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[int, bytes, Attr]]:
        self._call("readdir")
        children = self._directory(self.handles[handle])
        for index, (name, inode) in enumerate(sorted(children.items()), start=1):
            if index > cookie:
                yield index, name, self.nodes[inode].attr

    def releasedir(self, handle: int) -> None:
        self._call("releasedir")
        del self.handles[handle]

    def statfs(self) -> StatFs:
        self._call("statfs")
        return StatFs(4096, 1000, 500, 400, 100, 50, 255)

    def getxattr(self, inode: int, name: bytes) -> bytes:
        self._call("getxattr")
        xattrs = self._node(inode).xattrs
        if name not in xattrs:
            raise NoAttributeError(os.fsdecode(name))
        return xattrs[name]

    def setxattr(
        self,
        inode: int,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        is_member: Callable[[int], bool] = lambda _gid: True,
    ) -> None:
        self._call("setxattr")
        self._node(inode).xattrs[name] = value

    def listxattr(self, inode: int, *, privileged: bool = True) -> list[bytes]:
        self._call("listxattr")
        return list(self._node(inode).xattrs)

    def removexattr(self, inode: int, name: bytes) -> None:
        self._call("removexattr")
        if self._node(inode).xattrs.pop(name, None) is None:
            raise NoAttributeError(os.fsdecode(name))

    def forget(self, inodes: Iterable[tuple[int, int]]) -> None:
        self._call("forget")
        self.forgotten.extend(inodes)

    def may_become_clone(self, inode: int) -> bool:
        return False

    def is_volatile(self, inode: int) -> bool:
        return inode in self.volatile

    def can_keep_listing(self, inode: int) -> bool:
        return inode not in self.volatile

    def is_room_low(self) -> bool:
        return self.room_low

    def making_room(self) -> Generator[Callable[[], object], None, int]:
        self._call("making_room")
        yield from ()  # trio's jumping clock would not wait for a thread
        return self.gained_bytes

    def giving_back(self, *, hurried: bool = False) -> Iterator[Callable[[], None]]:
        return iter(())

    def wants_fold(self) -> bool:
        return self.fold_wanted

    def prepare_fold(self) -> FakePlan:
        self._call("prepare_fold")
        return FakePlan()

    def fold(self) -> None:
        self._call("fold")
        self.fold_wanted = False

    def commit(
        self, snapshot: str, *, path: bytes = b"", tags: dict[str, str], created_ns: int
    ) -> SnapshotInfo:
        self._call("commit")
        root = TreeEntry(b"", 0, stat.S_IFDIR, count=len(self.nodes))
        return SnapshotInfo(1, snapshot, root, created_ns, tags=tags)
