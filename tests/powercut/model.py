"""What one writer's part of a view must hold: a tree of nodes that repeats the writer's calls.

A file also keeps which bytes it may hold after a power cut: those of its last completed fsync, and
those of every call since then. Knows no mount.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tests.powercut.ledger import Op
from tests.powercut.patterns import CELL_BYTES, describe, pattern

Listing = dict[str, tuple[int, bytes]]
"""Path -> mode with type, and bytes: of a file, or of a symlink's target."""

FILE, DIRECTORY, SYMLINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO


@dataclass
class Content:
    """Bytes of a file.

    Attributes:
        now: as the writer sees them.
        synced: as of the last completed fsync.
        later: writes since then, (start, stop, seed).
        sizes: every size since then, the synced one included.
        peak: the largest size ever.
        seams: where any write ever began or ended: bytes before may come back from the journal,
            and those behind from a later write.
    """

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    later: list[tuple[int, int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    peak: int = 0
    seams: frozenset[int] = frozenset()

    @classmethod
    def durable(cls, data: bytes, peak: int, seams: frozenset[int] = frozenset()) -> Content:
        return cls(bytearray(data), data, [], [len(data)], max(peak, len(data)), seams)

    def write(self, start: int, stop: int, seed: int) -> None:
        if start > len(self.now):
            self.now.extend(bytes(start - len(self.now)))
        self.now[start:stop] = pattern(seed, start, stop)
        self.later.append((start, stop, seed))
        self.seams |= {start, stop}
        self._resized()

    def truncate(self, size: int) -> None:
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))
        self._resized()

    def _resized(self) -> None:
        self.sizes.append(len(self.now))
        self.seams |= {len(self.now)}
        self.peak = max(self.peak, len(self.now))

    def sync(self) -> None:
        if self.later or len(self.sizes) > 1:
            self.synced, self.later, self.sizes = bytes(self.now), [], [len(self.now)]

    def problem(self, data: bytes) -> str | None:
        """Say what is wrong with bytes found after a power cut; None when they are allowed."""
        if data in (self.now, self.synced) and len(data) in self.sizes:
            return None
        if not min(self.sizes) <= len(data) <= max(self.sizes):
            return f"size {len(data)}, not {min(self.sizes)} to {max(self.sizes)}"
        edges = {0, len(data)}
        for start, stop, _ in self.later:
            edges |= {start, stop, *range(-(-start // CELL_BYTES) * CELL_BYTES, stop, CELL_BYTES)}
        edges |= {*self.sizes, *self.seams, len(self.synced)}
        inside = sorted(edge for edge in edges if 0 <= edge <= len(data))
        for start, stop in pairwise(inside):
            piece = data[start:stop]
            if not any(piece == allowed for allowed in self._allowed(start, stop)):
                wanted = describe(self.synced[start:stop], start)
                return f"[{start}, {stop}): {describe(piece, start)}; synced was {wanted}"
        return None

    def _allowed(self, start: int, stop: int) -> Iterator[bytes]:
        if stop <= len(self.synced):
            yield self.synced[start:stop]
        if start >= min(self.sizes):
            yield bytes(stop - start)
        for write_start, write_stop, seed in self.later:
            if write_start <= start and stop <= write_stop:
                yield pattern(seed, write_start, write_stop)[
                    start - write_start : stop - write_start
                ]


@dataclass
class Node:
    """An inode. ``ident`` tells which call made it, so it is the same in every replay.

    ``mtime_ns`` is None when the clock of the daemon has set it.
    """

    ident: str
    kind: int
    mode: int
    xattrs: dict[str, str] = field(default_factory=dict)
    mtime_ns: int | None = None
    target: str = ""
    children: dict[str, Node] = field(default_factory=dict)
    content: Content = field(default_factory=Content)


@dataclass
class Snapshot:
    """A directory that was committed; ``frozen`` is its listing then.

    ``owned``: the view has changed something in it, so it stays when the snapshot is removed; None
    when a power cut left that open. ``gone``: its directory, if it was removed; who has a file of
    it open and changes that brings it back, as the view's own.
    """

    frozen: Listing
    owned: bool | None = False
    in_catalog: bool = True
    gone: Node | None = None


class Tree:
    """One writer's directory and snapshots. Paths are relative to the mount's root."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.tops: dict[str, Node] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.handles: dict[int, Node] = {}

    # --- finding ---------------------------------------------------------------------------------

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield every path and its node, a directory before what is in it."""
        waiting = [(name, node) for name, node in sorted(self.tops.items(), reverse=True)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            waiting += [(f"{path}/{name}", child) for name, child in node.children.items()]

    def files(self) -> Iterator[Node]:
        """Yield every file that has a name or a handle."""
        seen = {id(node): node for _, node in self.walk()}
        seen |= {id(node): node for node in self.handles.values()}
        return (node for node in seen.values() if node.kind == FILE)

    def find(self, path: str) -> Node:
        top, *rest = path.split("/")
        node = self.tops[top]
        for name in rest:
            node = node.children[name]
        return node

    def _holder(self, path: str) -> tuple[dict[str, Node], str]:
        above, slash, name = path.rpartition("/")
        return (self.find(above).children if slash else self.tops), name

    # --- repeating calls -------------------------------------------------------------------------

    def apply(self, op: Op) -> None:
        """Do what a call did (if it succeeded)."""
        if op.name == "rename" and self._is_one_inode(op):
            return  # rename(2): both names stay
        getattr(self, f"_do_{op.name}")(op)
        for key in ("path", "to"):
            top = str(op.arguments.get(key, "")).partition("/")[0]
            if top in self.snapshots and op.name in CHANGES_NAMES:
                self.snapshots[top].owned = True

    def _own(self, node: Node) -> None:
        """Note that a file of a snapshot was changed through a handle."""
        for name, snapshot in self.snapshots.items():
            top = self.tops.get(name) or snapshot.gone
            if top is not None and any(found is node for found in nodes_below(top)):
                self.own(name)

    def own(self, name: str) -> None:
        """Note that a snapshot's directory is the view's, also if the snapshot was removed."""
        snapshot = self.snapshots[name]
        if snapshot.gone is not None:
            self.tops[name], snapshot.gone = snapshot.gone, None
        snapshot.owned = True

    def not_owned(self) -> set[str]:
        """Return the snapshots that the view has changed nothing in, or that a cut left open."""
        return {name for name, snapshot in self.snapshots.items() if not snapshot.owned}

    def _put(self, path: str, node: Node) -> None:
        holder, name = self._holder(path)
        holder[name] = node

    def _take(self, path: str) -> Node:
        holder, name = self._holder(path)
        return holder.pop(name)

    def _do_open(self, op: Op) -> None:
        path, mode = op.arguments["path"], op.arguments["create"]
        holder, name = self._holder(path)
        if name not in holder:
            self._put(path, Node(str(op.number), FILE, mode))
            self._own(holder[name])
        self.handles[op.number] = holder[name]

    def _do_write(self, op: Op) -> None:
        node = self.handles[op.arguments["h"]]
        start = op.arguments["at"]
        node.content.write(start, start + op.arguments["bytes"], op.arguments["seed"])
        node.mtime_ns = None
        self._own(node)

    def _do_truncate(self, op: Op) -> None:
        node = self.handles[op.arguments["h"]]
        node.content.truncate(op.arguments["size"])
        node.mtime_ns = None
        self._own(node)

    def _do_fsync(self, op: Op) -> None:
        if op.promised:
            self.handles[op.arguments["h"]].content.sync()

    def _do_close(self, op: Op) -> None:
        del self.handles[op.arguments["h"]]

    def _do_fsyncdir(self, op: Op) -> None:
        """Names are not in the tree's hands: see the window of calls in matching.py."""

    def _do_gc(self, op: Op) -> None:
        """Nothing that anybody can see."""

    def _do_mkdir(self, op: Op) -> None:
        self._put(op.arguments["path"], Node(str(op.number), DIRECTORY, op.arguments["mode"]))

    def _do_mkfifo(self, op: Op) -> None:
        self._put(op.arguments["path"], Node(str(op.number), FIFO, op.arguments["mode"]))

    def _do_symlink(self, op: Op) -> None:
        target = op.arguments["target"]
        self._put(op.arguments["path"], Node(str(op.number), SYMLINK, 0o777, target=target))

    def _do_unlink(self, op: Op) -> None:
        self._take(op.arguments["path"])

    def _do_rmdir(self, op: Op) -> None:
        self._take(op.arguments["path"])

    def _do_rename(self, op: Op) -> None:
        self._put(op.arguments["to"], self._take(op.arguments["path"]))

    def _is_one_inode(self, op: Op) -> bool:
        holder, name = self._holder(op.arguments["to"])
        return holder.get(name) is self.find(op.arguments["path"])

    def _do_link(self, op: Op) -> None:
        self._put(op.arguments["to"], self.find(op.arguments["path"]))

    def _do_chmod(self, op: Op) -> None:
        self.find(op.arguments["path"]).mode = op.arguments["mode"]

    def _do_setxattr(self, op: Op) -> None:
        self.find(op.arguments["path"]).xattrs[op.arguments["name"]] = op.arguments["value"]

    def _do_removexattr(self, op: Op) -> None:
        del self.find(op.arguments["path"]).xattrs[op.arguments["name"]]

    def _do_utime(self, op: Op) -> None:
        self.find(op.arguments["path"]).mtime_ns = op.arguments["mtime_ns"]

    def _do_commit(self, op: Op) -> None:
        """A commit makes all of the view durable first."""
        if op.promised:
            for file in self.files():
                file.content.sync()
        name = op.arguments["name"]
        copied = copy_node(self.find(op.arguments["path"]), {}, made_by=op.number)
        self.tops[name] = copied
        self.snapshots[name] = Snapshot(listing(copied))

    def _do_remove_snapshot(self, op: Op) -> None:
        """Remove the directory unless the view owns it, which the writer has looked at."""
        if not op.done:
            return
        name, stays = op.arguments["name"], op.results["stays"]
        snapshot = self.snapshots[name]
        assert snapshot.owned in (None, stays), f"{op}: owned {snapshot.owned}, stays {stays}"
        snapshot.owned, snapshot.in_catalog = stays, False
        if not stays:
            snapshot.gone = self.tops.pop(name, None)

    # --- copies ----------------------------------------------------------------------------------

    def copy(self) -> Tree:
        """Return a tree that can go its own way; it has the same handles."""
        made = Tree(self.writer)
        seen: dict[int, Node] = {}
        made.tops = {name: copy_node(node, seen) for name, node in self.tops.items()}
        made.handles = {number: copy_node(node, seen) for number, node in self.handles.items()}
        for name, snapshot in self.snapshots.items():
            gone = None if snapshot.gone is None else copy_node(snapshot.gone, seen)
            made.snapshots[name] = replace(snapshot, gone=gone)
        return made


CHANGES_NAMES = frozenset(
    (
        *("mkdir", "mkfifo", "symlink", "unlink", "rmdir", "rename", "link"),
        *("chmod", "setxattr", "removexattr", "utime"),
    )
)


def nodes_below(node: Node) -> Iterator[Node]:
    """Yield a node and all below."""
    yield node
    for child in node.children.values():
        yield from nodes_below(child)


def copy_node(node: Node, seen: dict[int, Node], *, made_by: int = 0) -> Node:
    """Copy a node with all below; names of one inode stay names of one.

    A copy ``made_by`` a commit is durable, and its inodes are others than those it was made of.
    """
    if id(node) in seen:
        return seen[id(node)]
    old = node.content
    if made_by:
        content = Content.durable(bytes(old.now), old.peak)
        ident = f"{made_by}/{node.ident}"
    else:
        content = replace(old, now=bytearray(old.now), later=list(old.later), sizes=list(old.sizes))
        ident = node.ident
    made = replace(node, ident=ident, content=content, xattrs=dict(node.xattrs), children={})
    seen[id(node)] = made
    made.children = {
        name: copy_node(child, seen, made_by=made_by) for name, child in node.children.items()
    }
    return made


def listing(top: Node) -> Listing:
    """List what is below a directory, in the form of ``tests.maintenance.samples.read_back``."""
    found: Listing = {}
    waiting = [("", top)]
    while waiting:
        prefix, directory = waiting.pop()
        for name, node in directory.children.items():
            data = node.target.encode() if node.kind == SYMLINK else bytes(node.content.now)
            found[prefix + name] = node.kind | node.mode, data
            waiting.append((f"{prefix}{name}/", node))
    return found
