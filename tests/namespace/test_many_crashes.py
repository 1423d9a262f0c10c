"""One view through crash after crash: what one recovery leaves is where the next one begins.

Method: random calls on a view over a ``FaultyDisk``, with few names, so that they meet again and
again. The daemon is killed between two calls, or the power goes at a random call of the disk, also
during a fold, a recovery or a second one, and of each file and directory a random part of what was
not synced stays; some lose the index as well. Snapshots are removed while files of theirs are open
and changed: the view keeps the directory of one in which it has begun to change something.
Behind a kill the view must be as it was; behind a power cut as it was behind one of the calls since
the last fsync (tests/powercut/matching.py). Folds are rare: replay has to get along with what it
did to the journal before.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.namespace.openfile import BUFFER_CHUNKS
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store.store import Store
from tests.conftest import Scale
from tests.fakes import Crashed, FaultyDisk
from tests.maintenance.samples import read_back
from tests.namespace.conftest import CHUNK_BYTES, assert_sound, make_small_store
from tests.namespace.test_crash import WRITER, Hands, read_view
from tests.powercut.ledger import CUT, Op
from tests.powercut.matching import Matcher
from tests.powercut.model import FILE, Tree

pytestmark = pytest.mark.unmeasured

BUFFERED_BYTES_MAX = BUFFER_CHUNKS * CHUNK_BYTES
NAMES = [f"{WRITER}/{name}" for name in ("a", "b", "c", "d/a", "d/b")]
LENGTHS = (10, CHUNK_BYTES, BUFFERED_BYTES_MAX, 3 * BUFFERED_BYTES_MAX, 20 * BUFFERED_BYTES_MAX)
SEEDS = (1, 2, 3)
HANDLES_MAX = 3
SNAPSHOTS_MAX = 2
RECOVERY_CALLS = 12


class Machine:
    """A view whose daemon dies and whose power goes, and what it must hold."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self._path = path
        self._rng = rng
        self._tree = Tree(WRITER)
        self._ops: list[Op] = []
        self._first_number = 1
        self._snapshots = 0
        make_small_store(path).close()
        self._start(FaultyDisk())

    def _start(self, disk: FaultyDisk) -> None:
        """Open the store, and bring the view back."""
        self.disk = disk
        self.store = Store.open(self._path, disk=disk)
        try:
            self.hands = Hands(self.store, self._first_number)
        except BaseException:
            self.store.db.close()
            raise
        self.hands.ops = self._ops
        self._open: list[int] = []

    # --- working ---------------------------------------------------------------------------------

    def work(self, calls: int) -> None:
        """Make random calls; the last may be cut short."""
        for path in (WRITER, f"{WRITER}/d"):
            if not self._exists(path):
                self.hands.mkdir(path)
                self.hands.fsync_directory(path)
        table: list[tuple[int, Callable[[], None]]] = [
            (10, self._make_or_open),
            (20, self._write),
            (6, self._truncate),
            (6, self._fsync),
            (8, self._close),
            (5, self._rename),
            (3, self._link),
            (6, self._unlink),
            (3, self._set_attribute),
            (2, lambda: self.hands.fsync_directory(WRITER)),
            (2, self._commit),
            (2, self._remove_snapshot),
            (1, self.hands.fold),
            (1, self._let_go),
            (1, self._collect),
        ]
        for _ in range(calls):
            (action,) = self._rng.choices(
                [action for _, action in table], [weight for weight, _ in table]
            )
            action()

    def _exists(self, path: str) -> bool:
        return path in self._names()

    def _names(self) -> set[str]:
        return set(read_view(self.hands.view))

    def _files(self) -> list[str]:
        shown = read_view(self.hands.view)
        return sorted(path for path, found in shown.items() if found.kind == FILE)

    def _make_or_open(self) -> None:
        if len(self._open) >= HANDLES_MAX:
            return self._close()
        path = self._rng.choice([*NAMES, *self._files()])
        self._open.append(self.hands.open(path, create=not self._exists(path)))
        return None

    def _write(self) -> None:
        if not self._open:
            return self._make_or_open()
        handle = self._rng.choice(self._open)
        size = self._size(handle)
        start = self._rng.choice([0, size, size, size, size // 2, size + CHUNK_BYTES])
        length = self._rng.randrange(1, self._rng.choice(LENGTHS) + 1)
        seed = self._rng.choice([None, None, *SEEDS])
        return self.hands.write(handle, start, length, seed)

    def _size(self, handle: int) -> int:
        view = self.hands.view
        return view.getattr(view.inode_of(self.hands._handles[handle])).size

    def _truncate(self) -> None:
        if self._open:
            handle = self._rng.choice(self._open)
            size = self._size(handle)
            sizes = [0, 5, size // 2, size + 7, size - size % CHUNK_BYTES, BUFFERED_BYTES_MAX]
            self.hands.truncate(handle, self._rng.choice(sizes))

    def _fsync(self) -> None:
        if self._open:
            self.hands.fsync(self._rng.choice(self._open))

    def _close(self) -> None:
        if self._open:
            self.hands.close(self._open.pop(self._rng.randrange(len(self._open))))

    def _two(self) -> tuple[str, str] | None:
        """Choose a file and a name in the same top directory."""
        files = self._files()
        if not files:
            return None
        path = self._rng.choice(files)
        top = path.partition("/")[0]
        tops = [file for file in [*files, *NAMES] if file.partition("/")[0] == top]
        return path, self._rng.choice(tops or [path])

    def _rename(self) -> None:
        two = self._two()
        if two is not None and two[0] != two[1]:
            self.hands.rename(*two)

    def _link(self) -> None:
        two = self._two()
        if two is not None and not self._exists(two[1]):
            self.hands.link(*two)

    def _unlink(self) -> None:
        files = self._files()
        if files:
            self.hands.unlink(self._rng.choice(files))

    def _set_attribute(self) -> None:
        files = self._files()
        if files:
            self.hands.setxattr(self._rng.choice(files), "user.a", str(self._rng.random()))

    def _catalog(self) -> list[str]:
        return sorted(info.name for info in SnapshotCatalog(self.store).list())

    def _commit(self) -> None:
        catalog = self._catalog()
        if len(catalog) < SNAPSHOTS_MAX:
            self._snapshots += 1
            path = self._rng.choice([WRITER, *(name for name in catalog if self._exists(name))])
            self.hands.commit(path, f"{WRITER}-{self._snapshots}")

    def _remove_snapshot(self) -> None:
        catalog = self._catalog()
        if catalog:
            self.hands.remove_snapshot(self._rng.choice(catalog))

    def _let_go(self) -> None:
        self.hands.view._let_go()

    def _collect(self) -> None:
        collect(self.store)

    # --- dying -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """The daemon dies between two calls; what it wrote is in the page cache."""
        before = read_view(self.hands.view)
        self._stop()
        disk = FaultyDisk()
        disk._undo = self.disk._undo
        self._start(disk)
        assert read_view(self.hands.view) == before

    def cut_the_power(self) -> None:
        """The power goes, once more during some recoveries."""
        self._stop()
        for op in self._ops:
            if not op.ended:
                op.ended, op.error = True, CUT
        loses_index = self._rng.random() < 0.2
        while True:
            self.disk.lose_unsynced(self._rng if self._rng.random() < 0.8 else None)
            if loses_index:
                shutil.rmtree(self._path / "index")
                report = reindex(self._path)
                assert report.ok, report
            again = self._rng.random() < 0.3
            crash_at = self._rng.randrange(1, RECOVERY_CALLS) if again else None
            disk = FaultyDisk(crash_at=crash_at)
            try:
                self._start(disk)
            except Crashed:
                disk.crash()
                self.disk = disk
                continue
            disk.crash_at = None
            return self._compare()

    def _stop(self) -> None:
        self.disk.crash()
        self.hands.view._opened.release()
        self.store.db.close()

    def _compare(self) -> None:
        catalog = set(self._catalog())
        matcher = Matcher(self._tree, self._ops, BUFFERED_BYTES_MAX)
        for name, frozen in matcher.snapshots().items():
            assert name not in catalog or read_back(self.store, name) == frozen
        self._tree = matcher.match(read_view(self.hands.view), catalog)
        self._first_number += len(self._ops)
        self.hands.first_number = self._first_number
        self._ops.clear()
        assert_sound(self.store)

    def end(self) -> None:
        """Fold, and look once more."""
        before = read_view(self.hands.view)
        self.hands.fold()
        assert read_view(self.hands.view) == before
        self.hands.view.close()
        assert_sound(self.store)
        self.store.close()


@pytest.fixture
def seed() -> int:
    return 1 if os.environ.get("CI") == "true" else secrets.randbits(32)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.allow_log("staging file is missing")  # of bytes that nobody had synced
def test_a_view_survives_crash_after_crash(memory_path: Path, seed: int, scale: Scale) -> None:
    for number in range(scale(12, 1000)):
        rng = random.Random(f"{seed} {number}")
        directory = memory_path / str(number)
        try:
            machine = Machine(directory, rng)
            for _ in range(rng.randrange(2, 12)):
                if rng.random() < 0.4:
                    machine.work(rng.randrange(0, 12))
                    machine.kill()
                else:
                    machine.disk.crash_at = machine.disk.calls + rng.randrange(1, 80)
                    with suppress(Crashed):
                        machine.work(rng.randrange(0, 40))
                    machine.cut_the_power()
            machine.end()
        except BaseException as exc:
            exc.add_note(f"seed={seed} number={number}")
            raise
