"""What a mount shows after a power cut, compared with what its writers had done.

A view's journal is one file, so what comes back is the view as it was behind one of the writer's
calls: the last completed fsync (of a file or directory) or commit, or any later one. Bytes of large
files are not in the journal: each may be that of the file's own last fsync or of any later write,
and when one of those has come through the file tells its time (docs/format.md, edit 6 "Stage").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from tests.powercut.ledger import Op
from tests.powercut.model import DIRECTORY, FILE, SYMLINK, Content, Listing, Node, Tree

MAKES_FILES = frozenset({"open", "commit"})
CHANGES_BYTES = frozenset({"write", "truncate"})
SYNCING = frozenset({"fsync", "fsyncdir", "commit"})


class LostError(AssertionError):
    """The mount shows what no state of the writer explains."""


@dataclass(frozen=True)
class Found:
    """One name in the mount."""

    kind: int
    mode: int
    inode: int
    links: int
    mtime_ns: int
    xattrs: dict[str, str]
    data: bytes


Shown = dict[str, Found]


def read_mount(mount: Path, writer: str) -> Shown:
    """Read everything of one writer."""
    tops = [name for name in os.listdir(mount) if belongs_to(name, writer)]
    return {path: found for top in tops for path, found in _read(mount, top)}


def belongs_to(name: str, writer: str) -> bool:
    """Whether a name in the root is a writer's directory or snapshot."""
    return name == writer or name.startswith(f"{writer}-")


def _read(mount: Path, path: str) -> Iterator[tuple[str, Found]]:
    real = mount / path
    status = real.lstat()
    kind = stat.S_IFMT(status.st_mode)
    data = b""
    if kind == FILE:
        data = real.read_bytes()
        assert len(data) == status.st_size, f"{path}: stat says {status.st_size}, read {len(data)}"
    elif kind == SYMLINK:
        data = os.fsencode(os.readlink(real))
    xattrs = {
        name: os.getxattr(real, name, follow_symlinks=False).decode()
        for name in os.listxattr(real, follow_symlinks=False)
    }
    mode = stat.S_IMODE(status.st_mode)
    yield path, Found(kind, mode, status.st_ino, status.st_nlink, status.st_mtime_ns, xattrs, data)
    if kind == DIRECTORY:
        for name in os.listdir(real):
            yield from _read(mount, f"{path}/{name}")


class Matcher:
    """One writer's calls since the last power cut, over the tree that it had then."""

    def __init__(self, before: Tree, ops: Sequence[Op], buffered_bytes_max: int) -> None:
        self._before = before
        self._ops = [op for op in ops if op.done or op.unsure]
        self._buffered_bytes_max = buffered_bytes_max
        self._last_change: dict[str, int] = {}
        """Node -> behind how many calls its bytes had changed for the last time."""
        self._contents = self._contents_of_all()
        self.lost_calls = 0

    def _contents_of_all(self) -> dict[str, Content]:
        """Repeat all calls; return what each file may hold, whether or not it kept a name."""
        tree = self._before.copy()
        contents = {node.ident: node.content for node in tree.files()}
        for count, op in enumerate(self._ops, 1):
            tree.apply(op)
            if op.name in CHANGES_BYTES:
                self._last_change[tree.handles[op.arguments["h"]].ident] = count
            if op.name in MAKES_FILES:
                contents |= {node.ident: node.content for node in tree.files()}
        return contents

    def snapshots(self) -> dict[str, Listing]:
        """Return what each of the writer's snapshots holds."""
        tree = self._before.copy()
        found = {name: snapshot.frozen for name, snapshot in tree.snapshots.items()}
        for op in self._ops:
            tree.apply(op)
            if op.name == "commit":
                found[op.arguments["name"]] = tree.snapshots[op.arguments["name"]].frozen
        return found

    def match(self, shown: Shown, catalog: Set[str]) -> Tree:
        """Return the state that the mount shows, with the bytes that it shows.

        ``catalog``: names of the store's snapshots.

        Raises:
            LostError: there is none.
        """
        synced = (op.promised and op.name in SYNCING for op in self._ops)
        durable = max((i for i, is_synced in enumerate(synced, 1) if is_synced), default=0)
        state = self._before.copy()
        best: Tree | None = None
        best_count = 0
        problems: list[tuple[int, list[str]]] = []
        owned: dict[str, set[bool | None]] = {}
        for count in range(len(self._ops) + 1):
            taken: set[str] = set()
            if count:
                taken = state.not_owned()
                state.apply(self._ops[count - 1])
                taken -= state.not_owned()
            if count < durable:
                continue
            candidates = [(state, count)]
            if taken and count > durable:
                candidates.insert(0, (self._half_done(count, taken), count - 1))
            for candidate, done in candidates:
                found = self._problems(candidate, done, shown, catalog)
                if found:
                    problems.append((done, found))
                    continue
                best, best_count = candidate.copy(), done
                for name, snapshot in candidate.snapshots.items():
                    owned.setdefault(name, set()).add(snapshot.owned)
        if best is None:
            raise LostError(self._explain(problems, durable))
        self.lost_calls = len(self._ops) - best_count
        self._catalog_has_what_it_must(best, catalog)
        return self._adopt(best, shown, catalog, owned)

    def _half_done(self, count: int, taken: Set[str]) -> Tree:
        """Return the state in which the last of ``count`` calls had not changed anything yet.

        But the snapshots in which it was about to were the view's: that is journaled before.
        """
        state = self._before.copy()
        for op in self._ops[: count - 1]:
            state.apply(op)
        for name in taken & state.snapshots.keys():
            state.own(name)
        return state

    def _catalog_has_what_it_must(self, state: Tree, catalog: Set[str]) -> None:
        changes = {
            op.arguments["name"]: op for op in self._ops if op.name in ("commit", "remove_snapshot")
        }
        for name, snapshot in state.snapshots.items():
            last = changes.get(name)
            if last is not None and last.unsure:
                continue
            wanted = snapshot.in_catalog if last is None else last.name == "commit"
            if wanted != (name in catalog):
                raise LostError(f"snapshot {name}: {'lost' if wanted else 'was removed'}")

    @staticmethod
    def _expected(state: Tree, shown: Shown, catalog: Set[str]) -> dict[str, Node]:
        """List what has to be there: of a removed snapshot's directory, what the view owns."""
        hidden = {
            name
            for name, snapshot in state.snapshots.items()
            if name not in catalog
            and not snapshot.owned
            and (snapshot.owned is False or name not in shown)
        }
        return {path: node for path, node in state.walk() if path.split("/")[0] not in hidden}

    def _problems(self, state: Tree, count: int, shown: Shown, catalog: Set[str]) -> list[str]:
        """Say what is not as it was behind ``count`` calls."""
        expected = self._expected(state, shown, catalog)
        found = [f"{path}: lost" for path in expected.keys() - shown.keys()]
        found += [
            f"{path}: was never there, or was removed" for path in shown.keys() - expected.keys()
        ]
        if found:
            return found
        inodes: dict[int, str] = {}
        counts: dict[str, int] = {}
        for node in expected.values():
            counts[node.ident] = counts.get(node.ident, 0) + 1
        for path, node in expected.items():
            there = shown[path]
            found += [f"{path}: {what}" for what in self._differences(node, there, counts, count)]
            if inodes.setdefault(there.inode, node.ident) != node.ident:
                found.append(f"{path}: same inode as {inodes[there.inode]}")
        return found

    def _differences(
        self, node: Node, there: Found, counts: dict[str, int], count: int
    ) -> Iterator[str]:
        if (node.kind, node.mode) != (there.kind, there.mode):
            yield f"mode {there.kind | there.mode:o}, not {node.kind | node.mode:o}"
            return
        if node.xattrs != there.xattrs:
            yield f"xattrs {there.xattrs}, not {node.xattrs}"
        if node.kind != DIRECTORY and there.links != counts[node.ident]:
            yield f"{there.links} links, not {counts[node.ident]}"
        if not self._fits_time(node, there.mtime_ns, count):
            yield f"mtime {there.mtime_ns}, not {node.mtime_ns}"
        if node.kind == SYMLINK and node.target.encode() != there.data:
            yield f"target {there.data!r}, not {node.target!r}"
        if node.kind == FILE:
            content = self._contents[node.ident]
            problem = content.problem(there.data)
            if problem is not None:
                yield problem
            elif content.peak <= self._buffered_bytes_max and node.content.now != there.data:
                yield "bytes of another moment than the names"

    def _fits_time(self, node: Node, mtime_ns: int, count: int) -> bool:
        """Whether behind ``count`` calls a file may have this time.

        That of a later change is right as well where the bytes are not in the journal.
        """
        if node.mtime_ns in (None, mtime_ns):
            return True
        is_buffered = self._contents[node.ident].peak <= self._buffered_bytes_max
        changed_later = self._last_change.get(node.ident, 0) > count
        return not is_buffered and changed_later and mtime_ns > node.mtime_ns

    def _explain(self, problems: list[tuple[int, list[str]]], durable: int) -> str:
        """Show the state that fits best, and the calls that may have been lost."""
        fewest = min(len(found) for _, found in problems)
        best = [(count, found) for count, found in problems if len(found) == fewest]
        calls = [f"  {op}" for op in self._ops[max(0, durable - 15) :]]
        calls.insert(min(durable, 15), "  -- durable up to here --")
        lines = [f"{self._before.writer}: no state from call {durable} to {len(self._ops)} fits"]
        for count, found in best[:5]:
            lines += [f"behind call {count}:", *[f"  {problem}" for problem in sorted(found)[:20]]]
        lines += calls[:40]
        return "\n".join(lines)

    def _adopt(
        self,
        state: Tree,
        shown: Shown,
        catalog: Set[str],
        owned: dict[str, set[bool | None]],
    ) -> Tree:
        """Make what is shown the state of the next round: it came from the disk, so it is there."""
        expected = self._expected(state, shown, catalog)
        state.tops = {name: node for name, node in state.tops.items() if name in expected}
        state.handles.clear()
        for path, node in expected.items():
            if node.kind == FILE:
                node.mtime_ns = shown[path].mtime_ns
                whole = self._contents[node.ident]
                node.content = Content.durable(shown[path].data, whole.peak, whole.seams)
        for name, snapshot in state.snapshots.items():
            snapshot.in_catalog = name in catalog
            snapshot.gone = None
            if len(owned[name]) > 1:
                snapshot.owned = None
        return state
