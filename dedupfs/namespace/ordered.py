"""Cuts a file while it is written in order: duplicates are found before they reach the disk.

Works on bytes and offsets alone; what it finds is a plan for ``OpenFile.adopt`` and for settling.
"""

from dataclasses import dataclass

from dedupfs.model import HOLE, Extent, RecordId
from dedupfs.namespace.contents import is_zero
from dedupfs.recipe import hole_extents
from dedupfs.store.store import Store

CUT_CHUNKS = 64
"""How many chunks of average length are gathered before they are cut: 4 MiB by default."""
ADOPT_CHUNKS = 512
"""How many duplicate chunks are gathered before they are adopted: 32 MiB by default, since each
adoption is a durable transaction and a journal sync."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A decided chunk: ``chunk_id`` is its id (or HOLE) when ``found``, else the id it can have."""

    start: int
    length: int
    chunk_id: RecordId
    found: bool


class OrderedCutter:
    """Follows a file from offset 0 for as long as it is written in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cut_bytes = CUT_CHUNKS * store.config.chunk_bytes_average
        self._adopt_bytes = ADOPT_CHUNKS * store.config.chunk_bytes_average
        self._tail = bytearray()
        self._following = True
        self.cuts: list[Cut] = []
        self.frontier = 0
        """Up to here the file is cut."""
        self._found_from = 0
        self._found_bytes = 0

    def feed(self, file_offset: int, data: bytes) -> None:
        """Take what was written; out of order, the cuts before it stay and nothing is added."""
        if self._following and file_offset == self.frontier + len(self._tail):
            self._tail += data
            if len(self._tail) >= self._cut_bytes:
                self._cut()
        else:
            self.stop_at(file_offset)

    def stop_at(self, file_offset: int) -> None:
        """Bytes from ``file_offset`` on are not what was seen: follow no further."""
        self._following = False
        self._tail.clear()
        while self.cuts and self.frontier > file_offset:
            self.frontier = self.cuts.pop().start
        self._found_from = min(self._found_from, len(self.cuts))

    def _cut(self) -> None:
        data = bytes(self._tail)
        start = 0
        for length in self._store.chunker.cut(data, final=False):
            chunk = data[start : start + length]
            if is_zero(chunk):
                cut = Cut(self.frontier, length, HOLE, found=True)
            else:
                chunk_id, found = self._store.probe_chunk(chunk)
                cut = Cut(self.frontier, length, chunk_id, found)
            if cut.found:
                self._found_bytes += length
            self.cuts.append(cut)
            self.frontier += length
            start += length
        del self._tail[:start]

    def wants_adoption(self) -> bool:
        """Whether enough duplicates were found that adopting them is worth a transaction."""
        return self._found_bytes >= self._adopt_bytes

    def take_found(self) -> list[tuple[int, list[Extent]]]:
        """Return the runs of found chunks since the last call: (file offset, extents)."""
        runs: list[tuple[int, list[Extent]]] = []
        stop = -1
        for cut in self.cuts[self._found_from :]:
            if cut.found:
                extents = (
                    list(hole_extents(cut.length))
                    if cut.chunk_id == HOLE
                    else [Extent(cut.chunk_id, cut.length)]
                )
                if cut.start == stop:
                    runs[-1][1].extend(extents)
                else:
                    runs.append((cut.start, extents))
                stop = cut.start + cut.length
        self._found_from = len(self.cuts)
        self._found_bytes = 0
        return runs
