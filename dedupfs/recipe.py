"""Extent algebra: which chunk bytes make a file, and what to cut again after a change. Pure.

A recipe is an ordered, gapless run of whole chunks and holes. Offsets into the file are
``file_offset``, into a chunk ``chunk_offset``; ranges are half open.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from dedupfs.model import HOLE, Extent, RecordId
from dedupfs.ranges import Ranges

HOLE_BYTES_MAX = (1 << 32) - 1
"""The longest single hole extent; a longer run of zeros is several (docs/format.md)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes from ``chunk_offset`` of one chunk, for ``file_offset`` of the file."""

    chunk_id: RecordId
    chunk_offset: int
    length: int
    file_offset: int


class Recipe:
    """The extents of one file, held as arrays so that a read is a bisect. Grows at its end only."""

    __slots__ = ("_stops", "ids")

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self.ids: list[RecordId] = []
        self._stops = array("Q")
        self.extend(extents)

    def extend(self, extents: Iterable[Extent]) -> None:
        """Append extents at the end of the file."""
        extents = list(extents)
        self.ids += [extent.chunk_id for extent in extents]
        stops = accumulate([extent.length for extent in extents], initial=self.size)
        self._stops.extend(islice(stops, 1, None))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._stops[-1] if self._stops else 0

    def __len__(self) -> int:
        """Count of extents."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Extent]:
        start = 0
        for chunk_id, stop in zip(self.ids, self._stops, strict=True):
            yield Extent(chunk_id, stop - start)
            start = stop

    def bounds(self, index: int) -> tuple[int, int]:
        """Return ``[start, stop)`` in the file of extent ``index``."""
        return (self._stops[index - 1] if index else 0), self._stops[index]

    def index_at(self, file_offset: int) -> int:
        """Return the index of the extent that holds ``file_offset``; ``len(self)`` past the end."""
        return bisect_right(self._stops, file_offset)

    def starts_extent(self, file_offset: int) -> bool:
        """Whether ``file_offset`` is a boundary: an extent starts there, or the file ends."""
        index = bisect_right(self._stops, file_offset)
        return file_offset == (self._stops[index - 1] if index else 0)

    def cut(self, start: int, stop: int) -> list[Piece]:
        """Return the pieces that make ``[start, stop)``, clipped to the file."""
        pieces = []
        stop = min(stop, self.size)
        index = bisect_right(self._stops, start)
        while start < stop:
            extent_start = self._stops[index - 1] if index else 0
            piece_stop = min(stop, self._stops[index])
            pieces.append(Piece(self.ids[index], start - extent_start, piece_stop - start, start))
            start = piece_stop
            index += 1
        return pieces

    def slice(self, first: int, last: int) -> Iterator[Extent]:
        """Yield the extents with index in ``[first, last)``."""
        start = self._stops[first - 1] if first else 0
        for index in range(first, last):
            yield Extent(self.ids[index], self._stops[index] - start)
            start = self._stops[index]


def hole_extents(length: int) -> Iterator[Extent]:
    """Yield the extents of a run of ``length`` zeros."""
    while length > 0:
        part = min(length, HOLE_BYTES_MAX)
        yield Extent(HOLE, part)
        length -= part


def append_extent(extents: list[Extent], extent: Extent) -> None:
    """Append ``extent``, merging a hole into the hole before it."""
    if extent.chunk_id == HOLE and extents and extents[-1].chunk_id == HOLE:
        length = extents.pop().length + extent.length
        extents.extend(hole_extents(length))
    else:
        extents.append(extent)


def plan_recut(base: Recipe, dirty: Ranges, size: int) -> list[tuple[int, int]]:
    """Return the runs ``[start, stop)`` that cannot keep their old extents, widened to boundaries.

    ``dirty`` are the changed ranges; ``size`` is the file's size now, ``base`` what it was made of.
    A run starts at an old boundary (or inside a hole); the caller cuts from there and may stop at
    the first cut at or past ``stop`` that ``base.starts_extent`` (``resync_limit`` says where it
    must stop at the latest). Source: docs/architecture.md, "Settling".
    """
    changed = Ranges()
    for start, stop in dirty.within(0, size):
        changed.add(start, stop)
    if size != base.size:
        # The old end of data was a forced cut, and a shorter file ends inside an old chunk: both
        # need their last chunk cut again. Zeros past the old end are a hole, which needs nothing.
        edge = min(size, base.size)
        index = base.index_at(edge - 1) if edge else 0
        if edge and base.ids[index] != HOLE:
            start, stop = base.bounds(index)
            if size < stop or changed.within(stop, stop + 1):
                changed.add(start, min(stop, size))
    runs = Ranges()
    for start, stop in changed:
        index = base.index_at(start)
        if index < len(base) and base.ids[index] != HOLE:
            start = base.bounds(index)[0]
        runs.add(start, stop)
    return list(runs)


def resync_limit(base: Recipe, stop: int, size: int) -> int:
    """Return where a run that must reach ``stop`` has to end at the latest.

    Inside a hole (or past the old data) any place is a boundary, so that is ``stop`` itself;
    otherwise the next hole's start, or the end of the file.
    """
    index = base.index_at(stop - 1) if stop else 0
    if index >= len(base) or base.ids[index] == HOLE:
        return stop
    while index < len(base) and base.ids[index] != HOLE:
        index += 1
    end = base.bounds(index - 1)[1]
    return max(stop, min(end, size))
