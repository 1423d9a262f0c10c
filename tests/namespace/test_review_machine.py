"""A view over a catalogue must behave like a dict of paths, whatever others and crashes do.

Method: as test_view_names.py, with more that happens between two calls: files stay open across
everything, directories are committed as snapshots that appear in the same view, unused ones become
clones of snapshots, anything is copied inside the view, other processes remove and rename snapshots
and collect garbage, and the daemon dies inside a fold or with the power. Everything is synced
before the power goes, so nothing may be lost.
"""

import copy
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from dedupfs.errors import (
    CrossScopeError,
    InvalidError,
    NamespaceError,
    NotEmptyError,
    NotPermittedError,
    StoreError,
    StoreFullError,
)
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.directory import CatalogDirectory
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, View
from dedupfs.store.store import Store
from tests.fakes import Crashed, FaultyDisk
from tests.namespace.test_view_names import PATHS, NamesMachine, Node, Path_

pytestmark = pytest.mark.unmeasured

SNAPSHOT_NAMES = st.sampled_from([b"a", b"b", b"c"])
FILE_BYTES_MAX = 12_000


@dataclass
class Committed:
    """A snapshot in the catalogue: what it holds, and what the view shows of it."""

    sequence: int
    frozen: Node
    shown: Node


class CatalogMachine(NamesMachine):
    """The view under test, its model, open handles and the snapshots of the store."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[tuple[int, Node]] = []
        self.snapshots: dict[bytes, Committed] = {}
        self.burned: set[bytes] = set()
        self.gone: list[Node] = []
        self.disk = FaultyDisk()
        self.die_and_mount()

    def both(self, modelled: Callable[[], Any], real: Callable[[], Any]) -> int | None:
        """As above, but a hard link that cannot leave its snapshot is no change."""
        raised: NamespaceError | None = None
        found: Any = None
        try:
            found = real()
        except CrossScopeError:
            return None
        except NamespaceError as exc:
            raised = exc

        def outcome() -> Any:
            if raised is not None:
                raise raised
            return found

        return super().both(modelled, outcome)

    def file_at(self, path: Path_) -> Node | None:
        try:
            node = self.find(path)
        except NamespaceError:
            return None
        return None if node.names is not None or node.target else node

    @initialize()
    def make_something(self) -> None:
        self.mkdir((b"a",))
        self.create((b"a", b"b"), random.Random(9).randbytes(3000))
        self.link((b"a", b"b"), (b"a", b"c"))
        self.mkdir((b"b",))
        self.create((b"b", b"a"), b"small")
        self.commit(b"c", (b"a",))
        self.view_shows_the_model()
        self.open((b"c", b"b"))
        self.open((b"b", b"a"))

    # --- files ---------------------------------------------------------------------------------

    @rule(path=PATHS)
    def open(self, path: Path_) -> None:
        node = self.file_at(path)
        if node is not None:
            self.handles.append((self.view.open(node.inode, os.O_RDWR), node))

    @rule(
        index=st.integers(0, 9),
        offset=st.integers(0, 9000),
        seed=st.integers(0, 3),
        length=st.integers(1, 9000),
    )
    def write(self, index: int, offset: int, seed: int, length: int) -> None:
        if index >= len(self.handles):
            return
        handle, node = self.handles[index]
        if any(node is other for other in self.gone):
            return
        data = random.Random(seed).randbytes(length)[: FILE_BYTES_MAX - offset]
        self.view.write(handle, offset, data)
        content = bytearray(node.content.ljust(offset, b"\0"))
        content[offset : offset + len(data)] = data
        node.content = bytes(content)

    @rule(path=PATHS, size=st.integers(0, 9000))
    def truncate(self, path: Path_, size: int) -> None:
        node = self.file_at(path)
        if node is not None:
            self.view.setattr(node.inode, AttrChange(size=size))
            node.content = node.content[:size].ljust(size, b"\0")

    @rule(index=st.integers(0, 9))
    def close_handle(self, index: int) -> None:
        if index < len(self.handles):
            handle, _ = self.handles.pop(index)
            self.view.release(handle)

    # --- snapshots -----------------------------------------------------------------------------

    @rule(name=SNAPSHOT_NAMES, path=PATHS)
    def commit(self, name: bytes, path: Path_) -> None:
        taken = name in self.snapshots or name in (self.root.names or {}) or name in self.burned
        try:
            node = self.find(path)
        except NamespaceError:
            return
        if taken or node.names is None:
            return
        info = self.view.commit(name.decode(), path=b"/".join(path))
        shown = copy.deepcopy(node)
        for copied in [shown, *self.all_below(shown)]:
            copied.inode = 0
        shown.xattrs = dict(node.xattrs)
        self.snapshots[name] = Committed(info.sequence, copy.deepcopy(shown), shown)
        assert self.root.names is not None
        self.root.names[name] = shown

    @rule(index=st.integers(0, 2), path=PATHS)
    def clone(self, index: int, path: Path_) -> None:
        self.mkdir(path)
        try:
            node = self.find(path)
        except NamespaceError:
            return
        if not self.snapshots or node.names is None:
            return
        name = sorted(self.snapshots)[index % len(self.snapshots)]
        try:
            self.view.clone(node.inode, name, privileged=True)
        except CrossScopeError:
            return
        except NotPermittedError:
            assert any(node is snapshot.shown for snapshot in self.snapshots.values())
            return
        except NotEmptyError:
            assert not self.view.may_become_clone(node.inode)
            return
        assert not node.names
        copied = copy.deepcopy(self.snapshots[name].frozen)
        node.names, node.xattrs = copied.names, copied.xattrs
        for child in self.all_below(node):
            child.inode = 0

    @rule(index=st.integers(0, 50), to=PATHS)
    def copy_inside(self, index: int, to: Path_) -> None:
        known = self.all_below(self.root)
        if not known:
            return
        node = known[index % len(known)]

        def modelled() -> Node:
            made = self.make(to, self.separate(node))
            above = self.parent_of(to)
            if any(above is one for one in (node, *self.all_below(node))):
                assert above.names is not None
                del above.names[to[-1]]
                raise InvalidError
            return made

        self.both(
            modelled,
            lambda: self.view.copy(node.inode, self.real_parent(to), to[-1]).inode,
        )

    def separate(self, node: Node) -> Node:
        """Return a copy in which no two names are of one inode."""
        made = Node(0, None, node.content, node.target, dict(node.xattrs))
        if node.names is not None:
            made.names = {name: self.separate(child) for name, child in node.names.items()}
        return made

    def owned(self, snapshot: Committed) -> bool:
        root = self.view._state.root
        assert isinstance(root, CatalogDirectory)
        return root.stands_in(snapshot.sequence)

    @rule(name=SNAPSHOT_NAMES)
    def others_remove(self, name: bytes) -> None:
        snapshot = self.snapshots.pop(name, None)
        if snapshot is None:
            return
        owned = self.owned(snapshot)
        SnapshotCatalog(self.store).remove([name.decode()])
        if not owned:
            assert self.root.names is not None
            if self.root.names.get(name) is snapshot.shown:
                del self.root.names[name]
                self.gone += [snapshot.shown, *self.all_below(snapshot.shown)]

    @rule(name=SNAPSHOT_NAMES, new=SNAPSHOT_NAMES)
    def others_rename(self, name: bytes, new: bytes) -> None:
        names = self.root.names
        assert names is not None
        if name not in self.snapshots or new in self.snapshots or new in names:
            return
        snapshot = self.snapshots[name]
        owned = self.owned(snapshot)
        if names.get(name) is not snapshot.shown and name in names:
            return  # a directory of the view's own hides it by its name
        if not owned and names.get(name) is not snapshot.shown:
            return
        SnapshotCatalog(self.store).rename(name.decode(), new.decode())
        self.snapshots[new] = self.snapshots.pop(name)
        if owned:
            self.burned |= {name, new}
        else:
            names[new] = names.pop(name)

    @rule()
    def collect_garbage(self) -> None:
        collect(self.store)

    # --- crashes -------------------------------------------------------------------------------

    @rule()
    def unmount_and_mount(self) -> None:
        for handle, _ in self.handles:
            self.view.release(handle)
        self.handles.clear()
        super().unmount_and_mount()

    @rule()
    def die_and_mount(self) -> None:
        if not hasattr(self, "disk"):
            return
        self.end(power=False)

    def end(self, *, power: bool) -> None:
        self.handles.clear()
        self.disk.crash()
        self.view._opened.release()
        self.store.db.close()
        if power:
            self.disk.lose_unsynced()
        self.disk = FaultyDisk()
        self.store = Store.open(self.directory / "store", disk=self.disk)
        self.view = View.bring_back(self.store)

    @rule(fold=st.booleans(), calls=st.integers(1, 40), power=st.booleans())
    def die_in_a_fold(self, fold: bool, calls: int, power: bool) -> None:
        for inode in [None, *self.view._state.files]:
            self.view.plan_fsync(inode).run()
        if fold:
            self.disk.crash_at = self.disk.calls + calls
            with suppress(Crashed):
                self.view.fold()
        self.end(power=power)

    @rule(at=st.integers(1, 30))
    def fail_in_a_fold(self, at: int) -> None:
        self.disk.fault = StoreFullError
        self.disk.fail_at = frozenset({self.disk.calls + at})
        with suppress(StoreError):
            self.view.fold()
        self.disk.fail_at = frozenset()

    # --- comparing -----------------------------------------------------------------------------

    def compare(self, inode: int, node: Node, links: dict[int, int]) -> None:
        assert node.names is not None
        for name, child in node.names.items():
            if child.inode == 0:
                child.inode = self.view.lookup(inode, name).inode
                assert child.inode not in self.numbers_seen
                self.numbers_seen.add(child.inode)
        super().compare(inode, node, links)

    @invariant()
    def open_files_read_like_the_model(self) -> None:
        for handle, node in getattr(self, "handles", []):
            assert self.view.plan_read(handle, 0, FILE_BYTES_MAX + 10).run() == node.content

    def teardown(self) -> None:
        for handle, _ in self.handles:
            self.view.release(handle)
        frozen = {name: snapshot.frozen for name, snapshot in self.snapshots.items()}
        self.view.fold()
        mine = self.view
        for name, node in frozen.items():
            self.view = View.open_read_only(self.store, snapshot=name.decode())
            self.same_content(1, node)
        self.view = mine
        super().teardown()

    def same_content(self, inode: int, node: Node) -> None:
        handle = self.view.opendir(inode)
        listed = {name: attr for _, name, attr in self.view.readdir(handle, 0)}
        assert set(listed) == set(node.names or {})
        for name, child in (node.names or {}).items():
            if child.names is not None:
                self.same_content(listed[name].inode, child)
            elif not child.target:
                opened = self.view.open(listed[name].inode, os.O_RDONLY)
                assert self.view.plan_read(opened, 0, FILE_BYTES_MAX).run() == child.content


# A fold that is committed goes on when the disk refuses to clear up behind it, and says so.
TestCatalog = pytest.mark.allow_log("left for the next mount")(CatalogMachine.TestCase)
TestCatalog.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
