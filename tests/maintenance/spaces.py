"""Random histories of a store, each operation in a process of its own, some of which die in it.

What a history leaves is at rest: nobody has the store open, so that a copy of its files is it.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dedupfs.errors import DedupfsError, UsageError
from dedupfs.maintenance.garbage import free_garbage
from dedupfs.maintenance.gc import collect
from dedupfs.model import RecordKind
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.namespace.views import list_views, remove_view
from dedupfs.store import Store
from dedupfs.store.holes import punch
from dedupfs.store.pace import run_steps
from tests.maintenance.samples import import_directory, noise

CALLER = Caller(0, 0)
SETTINGS: dict[str, Any] = {
    "chunk_bytes_average": 1024,
    "hash_seed": 7,
    "pack_bytes_max": 48 << 10,
    "verbatim_bytes_min": 24 << 10,
}
SNAPSHOTS_MAX = 6
VIEWS = ("default", "job")
EXIT_BUG = 70


def content(rng: random.Random) -> bytes:
    """Return a few runs out of a small set, so that files share chunks at shifted offsets."""
    runs = []
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        length = rng.choice((100, 900, 5000, 30_000))
        seed = rng.randrange(9)
        text = b"%d all work and no play\n" % seed
        runs.append(
            bytes(length)
            if seed == 0
            else (text * (length // 20))[:length]
            if seed < 3
            else noise(seed, length)
        )
    return b"".join(runs)


class History:
    """A store and a source directory that change step by step. One seed, one history."""

    def __init__(self, top: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.path = top / "store"
        self.source = top / "source"
        self.source.mkdir(parents=True)
        Store.create(self.path, **SETTINGS).close()
        self.steps: list[str] = []
        self._made = 0

    def step(self) -> str:
        """Do something and return what it was."""
        weighted = {
            self._import: 5,
            self._write_in_view: 6,
            self._ephemeral: 1,
            self._clone: 1,
            self._rename: 1,
            self._remove: 3,
            self._remove_view: 1,
            self._prune: 1,
            self._collect: 2,
            self._give_up: 1,
            self._half_a_gc: 1,
        }
        (work,) = self.rng.choices(list(weighted), list(weighted.values()))
        name = work.__name__.strip("_")
        self.steps.append(name)
        work()
        return name

    def _in_process(self, work: Callable[[Store], None], *, may_die: bool = False) -> None:
        """Do ``work`` in a process that ends in order, or as SIGKILL ends it."""
        dies = may_die and self.rng.random() < 0.5
        pid = os.fork()
        if pid == 0:
            status = EXIT_BUG
            try:
                store = Store.open(self.path)
                work(store)
                if not dies:
                    store.close()
                status = 0
            except BaseException:  # noqa: BLE001, it is a fork: pytest must not go on in it
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, self.steps

    def _names(self) -> list[str]:
        with Store.open(self.path) as store:
            return [info.name for info in SnapshotCatalog(store).list()]

    def _new_name(self) -> str:
        self._made += 1
        return f"s{self._made}"

    # --- operations ---------------------------------------------------------------------------

    def _import(self) -> None:
        for _ in range(self.rng.choice((1, 2, 4))):
            self._change_source()
        if len(self._names()) < SNAPSHOTS_MAX:
            name = self._new_name()
            with Store.open(self.path) as store:
                import_directory(store, self.source, name)

    def _change_source(self) -> None:
        rng = self.rng
        path = self.source / rng.choice(("a", "b", "d/a", "d/b", "d/e/a", "f/a"))
        chance = rng.random()
        if path.exists() and chance < 0.3:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance > 0.9 and not path.exists():
            files = [found for found in sorted(self.source.rglob("*")) if found.is_file()]
            if files:
                os.link(rng.choice(files), path)
                return
        if chance > 0.85:
            directory = path.parent / "many"
            directory.mkdir(exist_ok=True)
            for number in range(rng.randrange(1500)):
                (directory / f"{number}").write_bytes(b"%d" % (number % 50))
            return
        path.unlink(missing_ok=True)
        path.write_bytes(content(rng))

    def _write_in_view(self) -> None:
        name = self.rng.choice(VIEWS)
        seed = self.rng.randrange(1 << 30)
        commits = self._new_name() if len(self._names()) < SNAPSHOTS_MAX else None

        def work(store: Store) -> None:
            rng = random.Random(seed)
            view = View.bring_back(store, name)
            for _ in range(rng.choice((1, 3, 6))):
                change_view(view, store, rng)
                if rng.random() < 0.2:
                    view.fold()
            if commits is not None and rng.random() < 0.3:
                with suppress(UsageError):  # hard links would be cut
                    view.commit(commits)
            if rng.random() < 0.5:
                run_steps(view.relief.giving_back())
            if rng.random() < 0.5:
                view.close()

        self._in_process(work, may_die=True)

    def _ephemeral(self) -> None:
        """Write in a view that goes with its process, or with the gc after that."""
        seed = self.rng.randrange(1 << 30)
        names = self._names()
        base = self.rng.choice(names) if names and self.rng.random() < 0.5 else None

        def work(store: Store) -> None:
            rng = random.Random(seed)
            view = View.open_ephemeral(store, snapshot=base)
            for _ in range(3):
                change_view(view, store, rng)
                if rng.random() < 0.3:
                    view.fold()
            if rng.random() < 0.3:
                view.close()

        self._in_process(work, may_die=True)

    def _clone(self) -> None:
        names = self._names()
        if names and len(names) < SNAPSHOTS_MAX:
            new_name = self._new_name()
            with Store.open(self.path) as store:
                SnapshotCatalog(store).clone(self.rng.choice(names), new_name)

    def _rename(self) -> None:
        names = self._names()
        if names:
            with Store.open(self.path) as store:
                SnapshotCatalog(store).rename(self.rng.choice(names), self._new_name())

    def _remove(self) -> None:
        names = self._names()
        if names:
            with Store.open(self.path) as store:
                SnapshotCatalog(store).remove([self.rng.choice(names)])

    def _prune(self) -> None:
        """Keep the newest two, as a retention policy does, and collect in the same process."""
        names = self._names()[:-2]
        if names:
            with Store.open(self.path) as store:
                SnapshotCatalog(store).remove(names)
                collect(store)

    def _remove_view(self) -> None:
        with Store.open(self.path) as store:
            names = [row.name for row in list_views(store) if row.name in VIEWS]
            if names:
                remove_view(store, self.rng.choice(names))

    def _collect(self) -> None:
        with Store.open(self.path) as store:
            collect(store)

    def _give_up(self) -> None:
        """Put what nothing will refer to, as an import that fails; it may die doing it."""
        seed = self.rng.randrange(1 << 30)

        def work(store: Store) -> None:
            rng = random.Random(seed)
            for _ in range(rng.randrange(12)):
                chunk = store.put(RecordKind.CHUNK, noise(rng.random(), rng.randrange(1, 9000)))
                if rng.random() < 0.5:
                    with store.transaction() as txn:
                        if rng.random() < 0.3:
                            txn.pin(store.owner, chunk)
            store.sync()

        self._in_process(work, may_die=True)

    def _half_a_gc(self) -> None:
        """Stop a gc anywhere between its steps."""
        with Store.open(self.path) as store:
            free_garbage(store, lambda _freed: None)
            for _ in range(self.rng.randrange(3)):
                punch(store, self.rng.choice((1, 2, 500)))


def change_view(view: View, store: Store, rng: random.Random) -> None:
    """Change one thing in a view; what is not possible is left."""
    change = rng.choices(list(CHANGES), list(CHANGES.values()))[0]
    with suppress(DedupfsError):  # the name is taken, or is no file
        change(view, store, rng)


def any_directory(view: View, rng: random.Random) -> int:
    directories = [
        attr.inode
        for _cookie, _name, attr in list(view.readdir(view.opendir(ROOT_INODE), 0))
        if stat.S_ISDIR(attr.mode)
    ]
    return rng.choice(directories) if directories and rng.random() < 0.5 else ROOT_INODE


def any_name(rng: random.Random) -> bytes:
    return rng.choice((b"x", b"y", b"z"))


def unlink(view: View, _store: Store, rng: random.Random) -> None:
    view.unlink(any_directory(view, rng), any_name(rng))


def clone(view: View, store: Store, rng: random.Random) -> None:
    made = view.mkdir(any_directory(view, rng), any_name(rng), 0o755, CALLER)
    infos = SnapshotCatalog(store).list()
    if infos:
        view.clone(made.inode, rng.choice(infos).name.encode(), privileged=True)


def rename(view: View, _store: Store, rng: random.Random) -> None:
    view.rename(any_directory(view, rng), any_name(rng), ROOT_INODE, any_name(rng), 0)


def link(view: View, _store: Store, rng: random.Random) -> None:
    parent = any_directory(view, rng)
    view.link(view.lookup(parent, any_name(rng)).inode, parent, b"linked")


def overwrite(view: View, _store: Store, rng: random.Random) -> None:
    attr = view.lookup(any_directory(view, rng), any_name(rng))
    handle = view.open(attr.inode, os.O_RDWR)
    view.write(handle, rng.randrange(attr.size + 1), content(rng))
    if rng.random() < 0.5:
        view.setattr(attr.inode, AttrChange(size=rng.randrange(attr.size + 1)))
    view.release(handle)


def create(view: View, _store: Store, rng: random.Random) -> None:
    handle, _attr = view.create(any_directory(view, rng), any_name(rng), 0o644, CALLER)
    view.write(handle, 0, content(rng))
    if rng.random() < 0.8:
        view.release(handle)


CHANGES = {unlink: 1, clone: 1, rename: 1, link: 1, overwrite: 2, create: 4}


def copy_of(path: Path, target: Path) -> Path:
    """Copy a store that is at rest, block by block and hole by hole; return where the copy is.

    cp(1) makes holes of zeros, and zeros of holes.
    """
    shutil.rmtree(target, ignore_errors=True)
    seen: dict[int, Path] = {}
    for directory, _names, files in os.walk(path):
        there = target / Path(directory).relative_to(path)
        there.mkdir()
        for name in files:
            status = os.stat(Path(directory) / name)
            if status.st_ino in seen:
                os.link(seen[status.st_ino], there / name)
                continue
            seen[status.st_ino] = there / name
            _copy_file(Path(directory) / name, there / name)
            os.chmod(there / name, stat.S_IMODE(status.st_mode))
            os.utime(there / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    return target


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as found, target.open("wb") as made:
        size = os.fstat(found.fileno()).st_size
        made.truncate(size)
        position = 0
        while position < size:
            try:
                position = os.lseek(found.fileno(), position, os.SEEK_DATA)
            except OSError:
                break  # a hole up to the end
            stop = os.lseek(found.fileno(), position, os.SEEK_HOLE)
            os.pwrite(made.fileno(), os.pread(found.fileno(), stop - position, position), position)
            position = stop
