"""A file in a view must read like a bytearray, whatever happens to the view in between.

Method: Hypothesis drives writes, truncates, copies of earlier bytes (so that chunks are found
again), folds, commits, unmounts and deaths against both; after every step they are compared in
full, and so is every snapshot that was committed. The bytearray is the specification.
"""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dedupfs.maintenance.gc import collect
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.store import Store
from tests.namespace.conftest import assert_sound, make_small_store

CALLER = Caller(0, 0)
FILE_BYTES_MAX = 40_000
OFFSETS = st.integers(0, FILE_BYTES_MAX)


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress and are the same every time."""
    return random.Random(seed).randbytes(length)


class ContentMachine(RuleBasedStateMachine):
    """One file, its bytearray, and the snapshots that were taken of both."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="dedupfs-test-"))
        self.store = make_small_store(self.directory / "store")
        self.view = View.bring_back(self.store)
        self.expected = bytearray()
        self.committed: dict[str, bytes] = {}

    @initialize()
    def make_file(self) -> None:
        self.handle, attr = self.view.create(1, b"file", 0o644, CALLER)
        self.inode = attr.inode

    def write_at(self, offset: int, data: bytes) -> None:
        data = data[: FILE_BYTES_MAX - offset]
        if data:
            self.view.write(self.handle, offset, data)
            self.expected.extend(bytes(max(0, offset - len(self.expected))))
            self.expected[offset : offset + len(data)] = data

    @rule(offset=OFFSETS, seed=st.integers(0, 5), length=st.integers(1, 9000))
    def write(self, offset: int, seed: int, length: int) -> None:
        self.write_at(offset, noise(seed, length))

    @rule(seed=st.integers(0, 5), length=st.integers(1, 20_000), step=st.sampled_from([400, 5000]))
    def append_in_order(self, seed: int, length: int, step: int) -> None:
        data = noise(seed, length)
        for start in range(0, length, step):
            self.write_at(min(len(self.expected), FILE_BYTES_MAX), data[start : start + step])

    @rule(offset=OFFSETS, length=st.integers(1, 9000))
    def write_zeros(self, offset: int, length: int) -> None:
        self.write_at(offset, bytes(length))

    @rule(size=OFFSETS)
    def truncate(self, size: int) -> None:
        self.view.setattr(self.inode, AttrChange(size=size))
        self.expected = self.expected[:size].ljust(size, b"\0")

    @rule()
    def reopen_truncated(self) -> None:
        self.view.release(self.handle)
        self.handle = self.view.open(self.inode, os.O_RDWR | os.O_TRUNC)
        self.expected = bytearray()

    @rule()
    def reopen(self) -> None:
        self.view.release(self.handle)
        self.handle = self.view.open(self.inode, os.O_RDWR)

    @rule()
    def fold(self) -> None:
        self.view.prepare_fold().run()
        self.view.fold()

    @rule()
    def commit(self) -> None:
        name = f"s{len(self.committed)}"
        self.view.commit(name)
        self.committed[name] = bytes(self.expected)

    @rule()
    def unmount_and_mount(self) -> None:
        self.view.close()
        self.view = View.bring_back(self.store)
        self.handle = self.view.open(self.inode, os.O_RDWR)

    @rule()
    def die_and_mount(self) -> None:
        """As SIGKILL: what the kernel has of the files stays, what the process knew does not."""
        self.view._opened.release()  # the kernel lets go of a dead process's lock
        self.store.close()
        self.store = Store.open(self.directory / "store")
        self.view = View.bring_back(self.store)
        self.handle = self.view.open(self.inode, os.O_RDWR)

    @rule()
    def collect_garbage(self) -> None:
        collect(self.store)

    @invariant()
    def file_reads_like_the_bytearray(self) -> None:
        if not hasattr(self, "handle"):
            return
        size = len(self.expected)
        assert self.view.getattr(self.inode).size == size
        assert self.view.plan_read(self.handle, 0, size + 10).run() == self.expected
        middle = size // 3
        part = self.view.plan_read(self.handle, middle, 1000)
        assert part.run() == self.expected[middle : middle + 1000]

    def teardown(self) -> None:
        self.view.close()
        for name, content in self.committed.items():
            view = View.open_read_only(self.store, snapshot=name)
            handle = view.open(view.lookup(1, b"file").inode, os.O_RDONLY)
            assert view.plan_read(handle, 0, len(content) + 1).run() == content
        assert_sound(self.store)
        self.store.close()
        shutil.rmtree(self.directory)


# A fold that is committed goes on when the disk refuses to clear up behind it, and says so.
TestContent = pytest.mark.allow_log("left for the next mount")(ContentMachine.TestCase)
TestContent.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_a_hole_of_terabytes_is_settled_without_reading_it(store: Store) -> None:
    """At the front, in the middle and at the end, beside new bytes and beside settled ones."""
    size = 1 << 43
    pieces = {0: noise(1, 3000), 1 << 40: noise(2, 3000), (1 << 42) + 77: noise(3, 900)}
    view = View.bring_back(store)
    handle, attr = view.create(1, b"sparse", 0o644, CALLER)
    view.setattr(attr.inode, AttrChange(size=size))
    for offset in sorted(pieces, reverse=True):
        view.write(handle, offset, pieces[offset])
        view.commit(f"before-{offset}")
    view.write(handle, size - 5, b"last!")
    view.close()
    view = View.bring_back(store)
    handle = view.open(attr.inode, os.O_RDONLY)
    for offset, data in [*pieces.items(), (size - 5, b"last!")]:
        assert view.plan_read(handle, offset, len(data)).run() == data
        before = max(0, offset - 100)
        assert view.plan_read(handle, before, offset - before).run() == bytes(offset - before)
    assert view.getattr(attr.inode).size == size
    view.close()


def test_a_hole_is_cut_as_the_same_zeros_would_be(store: Store) -> None:
    """So that a sparse copy and a full one share their chunks."""
    view = View.bring_back(store)
    contents = []
    for name, zeros in [(b"sparse", b""), (b"full", bytes(50_123))]:
        handle, attr = view.create(1, name, 0o644, CALLER)
        if zeros:
            view.write(handle, 0, zeros)
        view.write(handle, 50_123, noise(1, 20_000))
        view.release(handle)
        view.commit(name.decode())
        contents.append(view._state.entry_of(attr.inode).content)
    assert contents[0] == contents[1] != b""
    view.close()
