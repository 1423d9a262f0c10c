"""What is asked of the disk before it is wanted: only where reads wait and come in order."""

from __future__ import annotations

from pathlib import Path

from dedupfs.store.ahead import ReadAhead
from dedupfs.store.disk import File
from dedupfs.store.realdisk import RealDisk

MIB = 1 << 20
FILE = File(-1, Path("a pack"))


class AskedDisk(RealDisk):
    """Notes what it is asked to have ready."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def will_need(self, file: File, start: int, stop: int) -> None:
        assert file is FILE
        self.asked.append((start // MIB, stop // MIB))


def test_reads_in_order_that_wait_are_read_ahead_of_ever_further() -> None:
    disk = AskedDisk()
    ahead = ReadAhead(disk)
    for number in range(3):
        ahead.waits(7, FILE, number * MIB, (number + 1) * MIB)
    assert disk.asked == [(2, 3), (3, 5)]
    for number in range(3, 30):
        ahead.waits(7, FILE, number * MIB, (number + 1) * MIB)
    assert [start for start, _ in disk.asked[1:]] == [stop for _, stop in disk.asked[:-1]]
    assert disk.asked[-1][1] <= 30 + 8


def test_reads_that_do_not_wait_go_on_with_what_was_begun_and_begin_nothing() -> None:
    disk = AskedDisk()
    ahead = ReadAhead(disk)
    for number in range(10):
        ahead.passes(7, FILE, number * MIB, (number + 1) * MIB)
    assert not disk.asked
    ahead.waits(7, FILE, 10 * MIB, 11 * MIB)
    ahead.waits(7, FILE, 11 * MIB, 12 * MIB)
    ahead.passes(7, FILE, 12 * MIB, 13 * MIB)
    assert disk.asked == [(12, 13), (13, 14)]


def test_reads_here_and_there_are_left_alone() -> None:
    disk = AskedDisk()
    ahead = ReadAhead(disk)
    for number in range(0, 1000, 10):
        ahead.waits(number % 3, FILE, number * MIB, number * MIB + 4096)
    assert not disk.asked
