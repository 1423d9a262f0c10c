"""Long work in slices gives way to whoever waits to write, and its slices are as long as told.

Method: processes that hold the index's one write transaction, or wait for it; who waits is seen in
/proc/locks.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from dedupfs.store import Store
from dedupfs.store.pace import Pace
from tests.store.recount import recount

LIMIT_S = 60.0


class Writer:
    """A process that writes when it is told to, until it is told to end."""

    def __init__(self, path: Path) -> None:
        order_reader, self._order = os.pipe()
        self._said, said_writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._order)
            code = 1
            try:
                with Store.open(path) as store:
                    os.write(said_writer, b"r")
                    os.read(order_reader, 1)
                    with store.transaction():
                        os.read(order_reader, 1)
                code = 0
            finally:
                os._exit(code)
        os.close(order_reader)
        os.close(said_writer)
        assert os.read(self._said, 1) == b"r"

    def go_on(self) -> None:
        os.write(self._order, b"g")

    def end(self) -> None:
        self.go_on()
        assert os.waitpid(self._pid, 0)[1] == 0
        os.close(self._order)
        os.close(self._said)


def wait_for_locks(path: Path, count: int) -> None:
    """Wait until so many processes write into an index or wait to."""
    inode = f":{path.stat().st_ino} "
    until_s = time.monotonic() + LIMIT_S
    while True:
        lines = Path("/proc/locks").read_text().splitlines()
        found = [line for line in lines if "FLOCK" in line and "READ" in line and inode in line]
        if len(found) == count:
            return
        assert time.monotonic() < until_s, lines
        os.sched_yield()


def test_long_work_waits_for_all_who_want_to_write(path: Path) -> None:
    with Store.create(path) as store:
        index = store.db.data_path
    first, second = Writer(path), Writer(path)
    with Store.open(path) as store:
        first.go_on()
        wait_for_locks(index, 1)
        second.go_on()
        wait_for_locks(index, 2)
        assert not store.db.give_way(0)
        first.end()
        assert not store.db.give_way(0), "the second has waited, so it is its turn"
        second.end()
        assert store.db.give_way(LIMIT_S)
        with store.transaction():
            assert not store.db.give_way(0), "nor is it anybody's while we write ourselves"
        recount(store)


def test_a_slice_becomes_as_long_as_it_should_be() -> None:
    pace = Pace(100, least=10, most=1000, slice_s=0.01)
    pace.note(100, 0.1)
    assert pace.limit == 10
    pace.note(10, 0.001)
    assert pace.limit == 20, "it grows no faster than twofold"
    for _ in range(20):
        pace.note(pace.limit, pace.limit * 0.00001)
    assert pace.limit == 1000
    pace.note(1000, 10.0)
    assert pace.limit == 10, "it never gets stuck"


def test_a_short_slice_does_not_make_the_next_one_longer() -> None:
    pace = Pace(100, least=10, most=1000, slice_s=0.01)
    pace.note(3, 0.000001)
    pace.note(0, 5.0)
    assert pace.limit == 100
    pace.note(3, 0.003)
    assert pace.limit == 10
