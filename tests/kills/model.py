"""What a directory must hold after the calls that were made in it: names, bytes, attributes.

A specification in plain dictionaries; knows neither dedupfs nor processes. A call is applied here
when it has returned. Of the one call that was in flight when everything died, ``outcomes`` tells
what it may have left.
"""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Node:
    """A file, directory or symbolic link. Times: exact ones that were set, or a lower bound."""

    mode: int
    data: bytes = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int | None = None
    mtime_ns_min: int = 0

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def resize(self, size: int) -> None:
        self.data = self.data[:size].ljust(size, b"\0")

    def splice(self, offset: int, data: bytes) -> None:
        if data:
            before = self.data[:offset].ljust(offset, b"\0")
            self.data = before + data + self.data[offset + len(data) :]

    def written(self, time_ns: int) -> None:
        """The bytes changed at ``time_ns`` or later."""
        self.mtime_ns, self.mtime_ns_min = None, time_ns


@dataclass
class Call:
    """One system call. ``path`` is relative; ``arguments`` are those of its name below."""

    name: str
    path: str
    data: bytes = b""
    number: int = 0
    text: str = ""
    time_ns: int = 0


@dataclass
class Tree:
    """Names below one directory; hard links are one node under several names."""

    nodes: dict[str, Node] = field(default_factory=dict)

    # --- calls -----------------------------------------------------------------------------------

    def apply(self, call: Call) -> None:
        """Take over what a call that has returned did."""
        getattr(self, f"_{call.name}")(call)

    def _create(self, call: Call) -> None:
        owner = (os.geteuid(), os.getegid())
        self.nodes[call.path] = Node(stat.S_IFREG | call.number, owner=owner)

    def _mkdir(self, call: Call) -> None:
        owner = (os.geteuid(), os.getegid())
        self.nodes[call.path] = Node(stat.S_IFDIR | call.number, owner=owner)

    def _symlink(self, call: Call) -> None:
        owner = (os.geteuid(), os.getegid())
        self.nodes[call.path] = Node(stat.S_IFLNK | 0o777, os.fsencode(call.text), owner=owner)

    def _link(self, call: Call) -> None:
        self.nodes[call.text] = self.nodes[call.path]

    def _unlink(self, call: Call) -> None:
        del self.nodes[call.path]

    _rmdir = _unlink

    def _rename(self, call: Call) -> None:
        old, new = call.path, call.text
        if self.nodes.get(new) is self.nodes[old]:
            return  # rename(2): names of one inode both stay
        moved = {
            path: path.replace(old, new, 1)
            for path in self.nodes
            if path == old or path.startswith(old + "/")
        }
        self.nodes.pop(new, None)
        for path, target in moved.items():
            self.nodes[target] = self.nodes.pop(path)

    def _write(self, call: Call) -> None:
        node = self.nodes[call.path]
        node.splice(call.number, call.data)
        node.written(call.time_ns)

    def _truncate(self, call: Call) -> None:
        node = self.nodes[call.path]
        node.resize(call.number)
        node.written(call.time_ns)

    def _chmod(self, call: Call) -> None:
        node = self.nodes[call.path]
        node.mode = stat.S_IFMT(node.mode) | call.number

    def _chown(self, call: Call) -> None:
        self.nodes[call.path].owner = (call.number, call.number)

    def _utime(self, call: Call) -> None:
        node = self.nodes[call.path]
        node.mtime_ns, node.mtime_ns_min = call.number, 0

    def _setxattr(self, call: Call) -> None:
        self.nodes[call.path].xattrs[call.text] = call.data

    def _removexattr(self, call: Call) -> None:
        del self.nodes[call.path].xattrs[call.text]

    def _fsync(self, call: Call) -> None:
        pass

    # --- what may be found -----------------------------------------------------------------------

    def copy(self) -> Tree:
        return copy.deepcopy(self)

    def outcomes(self, call: Call, found: Tree) -> Iterator[Tree]:
        """Yield what the tree may be when ``call`` was in flight: with it or without it.

        A write may have come half way, as on any file system: the kernel itself cuts a long one
        into requests. So may a truncation to fewer bytes: what only the staging file has goes
        before what the journal has. ``found`` says how far.
        """
        yield self
        done = self.copy()
        done.apply(call)
        yield done
        seen = found.nodes.get(call.path)
        if call.name == "write" and seen is not None:
            old = self.nodes[call.path].data
            for length in _prefixes(old, call, seen.data):
                part = self.copy()
                part.nodes[call.path].splice(call.number, call.data[:length])
                part.nodes[call.path].written(0)
                yield part
        if call.name == "truncate" and seen is not None:
            part = self.copy()
            node = part.nodes[call.path]
            if call.number <= len(seen.data) <= len(node.data):
                node.resize(len(seen.data))
                node.written(0)
                yield part

    def differences(self, found: Tree) -> list[str]:
        """Return what is not as it should be; ``found`` has exact times."""
        told = [f"{path}: missing" for path in self.nodes.keys() - found.nodes.keys()]
        told += [f"{path}: should not be there" for path in found.nodes.keys() - self.nodes.keys()]
        for path in sorted(self.nodes.keys() & found.nodes.keys()):
            told += [f"{path}: {what}" for what in _compare(self.nodes[path], found.nodes[path])]
        return told + self._link_differences(found)

    def _link_differences(self, found: Tree) -> list[str]:
        return [
            f"links of {path}: {sorted(there)} instead of {sorted(names)}"
            for path, names in self.links().items()
            if (there := found.links().get(path, set())) != names
        ]

    def links(self) -> dict[str, set[str]]:
        """Return, for the first name of each file with several, all of them."""
        names: dict[int, set[str]] = {}
        for path, node in self.nodes.items():
            if node.is_file:
                names.setdefault(id(node), set()).add(path)
        return {min(paths): paths for paths in names.values() if len(paths) > 1}


def _prefixes(old: bytes, call: Call, seen: bytes) -> list[int]:
    """Return how much of a write may have happened, given the bytes that are seen."""
    window = seen[call.number : call.number + len(call.data)]
    length = _equal_bytes(window, call.data)
    shorter = max(0, len(seen) - call.number) if len(seen) > len(old) else length
    return sorted({length, min(shorter, length)})


def _equal_bytes(one: bytes, other: bytes) -> int:
    """Return how many bytes at the start are equal."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(index for index in range(length) if one[index] != other[index])


def _compare(wanted: Node, seen: Node) -> Iterator[str]:
    if wanted.mode != seen.mode:
        yield f"mode {seen.mode:o} instead of {wanted.mode:o}"
    if wanted.data != seen.data:
        same = _equal_bytes(wanted.data, seen.data)
        sizes = f"{len(seen.data)} bytes instead of {len(wanted.data)}"
        yield f"{sizes}, different from offset {same} on"
    if wanted.xattrs != seen.xattrs:
        yield f"xattrs {seen.xattrs} instead of {wanted.xattrs}"
    if wanted.owner != seen.owner:
        yield f"owner {seen.owner} instead of {wanted.owner}"
    assert seen.mtime_ns is not None
    if wanted.mtime_ns not in (None, seen.mtime_ns):
        yield f"mtime {seen.mtime_ns} instead of {wanted.mtime_ns}"
    if seen.mtime_ns < wanted.mtime_ns_min:
        yield f"mtime {seen.mtime_ns} before the last write, {wanted.mtime_ns_min}"


def read_tree(top: Path) -> Tree:
    """Read a directory of the file system; equal inode numbers are one node."""
    tree = Tree()
    by_inode: dict[int, Node] = {}
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(top / directory) as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}".lstrip("/")
                found = entry.stat(follow_symlinks=False)
                node = by_inode.get(found.st_ino)
                if node is None or not node.is_file:
                    node = by_inode[found.st_ino] = _read_node(top / path, found)
                tree.nodes[path] = node
                if node.is_directory:
                    waiting.append(path)
    return tree


def _read_node(path: Path, found: os.stat_result) -> Node:
    data = b""
    if stat.S_ISREG(found.st_mode):
        data = path.read_bytes()
        assert len(data) == found.st_size, f"{path}: {len(data)} bytes, st_size {found.st_size}"
    elif stat.S_ISLNK(found.st_mode):
        data = os.fsencode(os.readlink(path))
    return Node(
        found.st_mode,
        data,
        {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
        (found.st_uid, found.st_gid),
        found.st_mtime_ns,
    )
