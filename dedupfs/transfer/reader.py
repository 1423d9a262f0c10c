"""A source file as a run of blocks: holes found, data cut; ahead of the caller when it is large.

The thread that reads ahead touches the file and the cutter, which only looks at the store.
"""

import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Self

from dedupfs.model import HOLE
from dedupfs.store.cutter import Cut, Cutter

BLOCK_BYTES = 4 << 20
BLOCKS_AHEAD = 3
_RING_BUFFERS = BLOCKS_AHEAD + 4
"""Blocks that wait, the one being stored, the one being read, the one its first bytes are from, and
one to spare. A block's bytes are good until the next block is asked for.
"""


class Block(NamedTuple):
    """Neighbouring chunks of a file, from ``file_offset`` on. Its bytes are used again later."""

    file_offset: int
    cuts: list[Cut]
    length: int
    data: memoryview | None = None
    """The bytes of all cuts, unless it is a hole."""


def data_segments(fd: int, size: int, allocated_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that hold data; what lies between them are holes."""
    if allocated_bytes >= size:
        if size:
            yield 0, size
        return
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if exc.errno != errno.EINVAL:
                raise
            start, stop = stop, size  # a file system that does not tell
        if start < size:
            yield start, min(stop, size)


def read_blocks(fd: int, status: os.stat_result, cutter: Cutter) -> Iterator[Block]:
    """Yield the whole file, holes included, as blocks of about ``BLOCK_BYTES``.

    A file that turns out shorter than its status says just ends early; the caller compares.
    """
    position = 0
    for start, stop in data_segments(fd, status.st_size, status.st_blocks * 512):
        if start > position:
            yield hole_block(position, start - position)
        for block in _read_segment(fd, start, stop, cutter):
            yield block
            position = block.file_offset + block.length
        if position < stop:
            return
    if position < status.st_size:
        yield hole_block(position, status.st_size - position)


def hole_block(file_offset: int, length: int) -> Block:
    """Return a block of zeros."""
    return Block(file_offset, [Cut(length, HOLE, None)], length)


def _read_segment(fd: int, start: int, stop: int, cutter: Cutter) -> Iterator[Block]:
    """Read ``[start, stop)``; bytes whose cut is undecided go in front of the next read."""
    block_start = start
    carried: memoryview | bytes = b""
    ring: deque[bytearray] = deque(maxlen=_RING_BUFFERS)
    while True:
        wanted = min(BLOCK_BYTES, stop - start)
        buffer = _next_buffer(ring, len(carried) + wanted)
        buffer[: len(carried)] = carried
        count = os.preadv(fd, [buffer[len(carried) :]], start) if wanted else 0
        start += count
        data = buffer[: len(carried) + count]
        final = count == 0 or start == stop
        cuts, used = cutter.cut(data, final=final)
        if cuts:
            yield Block(block_start, cuts, used, data[:used])
        block_start += used
        carried = data[used:]
        if final:
            return


def _next_buffer(ring: deque[bytearray], length: int) -> memoryview:
    """Return a buffer that nobody uses any more; to zero a new one would cost like a copy."""
    used = ring[0] if len(ring) == _RING_BUFFERS else None
    if used is None or len(used) < length:
        used = bytearray(length)
    ring.append(used)
    return memoryview(used)[:length]


class ReadAhead:
    """Runs an iterator of blocks in a thread, a few blocks ahead; ``close`` it, or use ``with``."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._queue: queue.Queue[Block | BaseException | None] = queue.Queue(BLOCKS_AHEAD)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; it may be in the middle of the file."""
        self._stopped = True
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.01)

    def _run(self) -> None:
        try:
            for block in self._blocks:
                self._queue.put(block)
                if self._stopped:
                    return
        except BaseException as exc:  # noqa: BLE001  handed to the thread that waits for blocks
            self._queue.put(exc)
            return
        self._queue.put(None)

    def __iter__(self) -> Iterator[Block]:
        while True:
            block = self._queue.get()
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block
