"""A view after a stop at every single call that its store makes to the disk.

Method: one story of a view runs on a ``FaultyDisk`` that stops at its n-th changing call, for every
n; then nothing, all or a random part of what was not synced is lost. The store must open by itself
and be sound, and the view must be as it was behind one of the story's calls since the last fsync
(tests/powercut/matching.py), snapshots as they were made. With the index lost as well, ``reindex``
must bring back as much.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.openfile import BUFFER_CHUNKS
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.pace import run_steps
from dedupfs.store.store import Store
from tests.conftest import Scale
from tests.fakes import Crashed, FaultyDisk
from tests.maintenance.samples import read_back
from tests.namespace.conftest import CHUNK_BYTES, assert_sound, make_small_store
from tests.powercut.ledger import Op
from tests.powercut.matching import Found, Matcher, Shown
from tests.powercut.model import Tree
from tests.powercut.patterns import pattern

pytestmark = pytest.mark.unmeasured

ROOT = Caller(0, 0)
WRITER = "w"
VERBATIM_BYTES = 9000
ADOPTED_BYTES = 600 * CHUNK_BYTES


class Hands:
    """Makes a writer's calls on a view itself, and notes them as the writers of a mount do."""

    def __init__(self, store: Store, first_number: int = 1) -> None:
        self.store = store
        self.view = View.bring_back(store)
        self.ops: list[Op] = []
        self.first_number = first_number
        self._handles: dict[int, int] = {}

    @contextmanager
    def noted(self, call: str, /, **arguments: Any) -> Iterator[Op]:
        op = Op(self._next_number(), call, arguments)
        self.ops.append(op)
        yield op
        op.ended = True

    def _next_number(self) -> int:
        return self.first_number + len(self.ops)

    def at(self, path: str) -> tuple[int, bytes]:
        """Return the directory that holds a path, and the last name."""
        inode = ROOT_INODE
        *above, name = path.encode().split(b"/")
        for part in above:
            inode = self.view.lookup(inode, part).inode
        return inode, name

    def inode(self, path: str) -> int:
        return self.view.lookup(*self.at(path)).inode

    def mkdir(self, path: str) -> None:
        with self.noted("mkdir", path=path, mode=0o755):
            self.view.mkdir(*self.at(path), 0o755, ROOT)

    def open(self, path: str, *, create: bool = False) -> int:
        with self.noted("open", path=path, create=0o644 if create else None) as op:
            if create:
                self._handles[op.number] = self.view.create(*self.at(path), 0o644, ROOT)[0]
            else:
                self._handles[op.number] = self.view.open(self.inode(path), os.O_RDWR)
        return op.number

    def write(self, handle: int, start: int, length: int, seed: int | None = None) -> None:
        seed = self._next_number() if seed is None else seed
        with self.noted("write", h=handle, at=start, bytes=length, seed=seed):
            self.view.write(self._handles[handle], start, pattern(seed, start, start + length))

    def truncate(self, handle: int, size: int) -> None:
        with self.noted("truncate", h=handle, size=size):
            self.view.setattr(self.view.inode_of(self._handles[handle]), AttrChange(size=size))

    def fsync(self, handle: int) -> None:
        with self.noted("fsync", h=handle):
            self.view.plan_fsync(self.view.inode_of(self._handles[handle])).run()

    def fsync_directory(self, path: str) -> None:
        with self.noted("fsyncdir", path=path):
            self.view.plan_fsync(None).run()

    def close(self, handle: int) -> None:
        with self.noted("close", h=handle):
            self.view.release(self._handles.pop(handle))

    def rename(self, path: str, to: str) -> None:
        with self.noted("rename", path=path, to=to):
            self.view.rename(*self.at(path), *self.at(to), 0)

    def link(self, path: str, to: str) -> None:
        with self.noted("link", path=path, to=to):
            self.view.link(self.inode(path), *self.at(to))

    def unlink(self, path: str) -> None:
        with self.noted("unlink", path=path):
            self.view.unlink(*self.at(path))

    def setxattr(self, path: str, name: str, value: str) -> None:
        with self.noted("setxattr", path=path, name=name, value=value):
            self.view.setxattr(self.inode(path), name.encode(), value.encode())

    def commit(self, path: str, name: str) -> None:
        with self.noted("commit", path=path, name=name):
            self.view.commit(name, path=path.encode())

    def remove_snapshot(self, name: str) -> None:
        with self.noted("remove_snapshot", name=name) as op:
            SnapshotCatalog(self.store).remove([name])
            shown = self.view.readdir(self.view.opendir(ROOT_INODE), 0)
            op.results["stays"] = name.encode() in [found for _, found, _ in shown]

    def fold(self) -> None:
        self.view.prepare_fold().run()
        self.view.fold()
        run_steps(self.view.relief.giving_back())


def save(hands: Hands, path: str, length: int, *, seed: int | None = None, sync: bool) -> None:
    handle = hands.open(path, create=True)
    seed = handle if seed is None else seed
    for start in range(0, length, 4000):
        hands.write(handle, start, min(4000, length - start), seed)
    if sync:
        hands.fsync(handle)
    hands.close(handle)


def write_and_fold(hands: Hands) -> None:
    """Small files, one that grows, one that becomes a verbatim pack, names, a fold amid all."""
    hands.mkdir("w")
    hands.fsync_directory("w")
    save(hands, "w/verbatim", VERBATIM_BYTES, sync=True)
    save(hands, "w/small", 300, sync=False)
    growing = hands.open("w/growing", create=True)
    hands.write(growing, 0, 400)
    hands.fsync(growing)
    hands.fold()
    hands.write(growing, 400, 3000)
    hands.write(growing, 100, 50)
    over = hands.open("w/verbatim")
    hands.write(over, 4000, 700)
    hands.fsync(over)
    hands.truncate(over, 6000)
    hands.write(over, 6000, 2000)
    hands.rename("w/small", "w/renamed")
    hands.link("w/renamed", "w/linked")
    hands.setxattr("w/renamed", "user.a", "value")
    hands.fold()
    hands.write(growing, 3400, 500)
    hands.fsync(growing)
    hands.truncate(growing, 200)
    hands.close(growing)
    hands.close(over)
    hands.unlink("w/renamed")
    hands.fsync_directory("w")
    hands.fold()


def commit_and_remove(hands: Hands) -> None:
    """Snapshots that are made, written into and removed, and files that repeat each other."""
    hands.mkdir("w")
    save(hands, "w/verbatim", VERBATIM_BYTES, sync=False)
    save(hands, "w/small", 300, sync=False)
    hands.link("w/small", "w/linked")
    hands.commit("w", "w-1")
    over = hands.open("w-1/verbatim")
    hands.write(over, 100, 700)
    hands.fsync(over)
    hands.close(over)
    hands.commit("w-1", "w-2")
    hands.remove_snapshot("w-2")
    hands.unlink("w/verbatim")
    hands.remove_snapshot("w-1")
    collect(hands.store)
    save(hands, "w/again", VERBATIM_BYTES, sync=True)
    hands.commit("w", "w-3")


def adopt(hands: Hands) -> None:
    """A file written in order that repeats a snapshot's, so that its blocks go while it grows."""
    hands.mkdir("w")
    save(hands, "w/first", ADOPTED_BYTES, seed=99, sync=False)
    hands.commit("w", "w-1")
    save(hands, "w/second", ADOPTED_BYTES + 5000, seed=99, sync=True)
    hands.fold()


STORIES = [write_and_fold, commit_and_remove, adopt]
LOSSES = ["nothing", "all", "some", "some more"]


def crash_in(
    story: Callable[[Hands], None], path: Path, crash_at: int, loss: str
) -> tuple[list[Op], bool]:
    """Run a story to the n-th call, then lose what was not synced.

    Returns the story's calls, and whether it came to the n-th one of the disk.
    """
    disk = FaultyDisk(crash_at=crash_at)
    store = Store.open(path, disk=disk)
    hands: Hands | None = None
    stopped = False
    try:
        hands = Hands(store)
        story(hands)
    except Crashed:
        stopped = True
    finally:
        disk.crash()
        if hands is not None:
            hands.view._opened.release()
        store.db.close()
    if loss == "all":
        disk.lose_unsynced()
    elif loss != "nothing":
        disk.lose_unsynced(random.Random(f"{loss} {crash_at}"))
    return (hands.ops if hands is not None else []), stopped


def read_view(view: View) -> Shown:
    return dict(_read(view, ROOT_INODE, ""))


def _read(view: View, inode: int, prefix: str) -> Iterator[tuple[str, Found]]:
    for _, name, attr in list(view.readdir(view.opendir(inode), 0)):
        path = f"{prefix}{name.decode()}"
        data = b""
        if stat.S_ISREG(attr.mode):
            handle = view.open(attr.inode, os.O_RDONLY)
            data = view.plan_read(handle, 0, 1 << 24).run()
            view.release(handle)
        names = view.listxattr(attr.inode)
        xattrs = {name.decode(): view.getxattr(attr.inode, name).decode() for name in names}
        kind, mode = stat.S_IFMT(attr.mode), stat.S_IMODE(attr.mode)
        yield path, Found(kind, mode, attr.inode, attr.nlink, attr.mtime_ns, xattrs, data)
        if stat.S_ISDIR(attr.mode):
            yield from _read(view, attr.inode, f"{path}/")


def compare(path: Path, ops: list[Op]) -> None:
    """The store opens by itself, is sound, and has what it must have."""
    matcher = Matcher(Tree(WRITER), ops, BUFFER_CHUNKS * CHUNK_BYTES)
    with Store.open(path) as store:
        assert_sound(store)
        assert scrub(store, from_disk=False).ok
        catalog = {info.name for info in SnapshotCatalog(store).list()}
        for name, frozen in matcher.snapshots().items():
            assert name not in catalog or read_back(store, name) == frozen
        view = View.bring_back(store)
        matcher.match(read_view(view), catalog)
        view.close()
        collect(store)
        assert_sound(store)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.allow_log("staging file is missing")  # of bytes that nobody had synced
@pytest.mark.parametrize("story", STORIES, ids=[story.__name__ for story in STORIES])
def test_a_view_survives_a_stop_at_every_call(
    story: Callable[[Hands], None], memory_path: Path, scale: Scale
) -> None:
    """In the long mode each call has every kind of loss, in the short one one of them in turn; of
    the longest story only every seventh call then.
    """
    stride = scale(7, 1) if story is adopt else 1
    template = memory_path / "template"
    make_small_store(template).close()
    crash_at, stopped = 1 - stride, True
    while stopped:
        crash_at += stride
        for turn in range(scale(1, 2 * len(LOSSES))):
            loss = LOSSES[(crash_at + turn) % len(LOSSES)]
            loses_index = (crash_at + turn) // len(LOSSES) % 2 == 1
            path = memory_path / "store"
            shutil.copytree(template, path)
            ops, stopped = crash_in(story, path, crash_at, loss)
            try:
                if loses_index:
                    shutil.rmtree(path / "index")
                    report = reindex(path)
                    # A root without a journal: the view was just being made.
                    assert report.ok or not ops, report
                compare(path, ops)
            except BaseException as exc:
                exc.add_note(f"crash_at={crash_at} loss={loss} loses_index={loses_index}")
                raise
            shutil.rmtree(path)
