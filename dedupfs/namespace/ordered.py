"""Cuts a file while it is written in order: duplicates are found before they reach the disk.

Works on bytes and offsets alone; what it finds is a plan for adopting and for settling.
Bytes are compared with the store's, and handed to the disk, in a thread: a write does not wait.
When what was compared is taken over depends on nothing but what was written.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dedupfs.model import HOLE, Extent, RecordId, RecordKind
from dedupfs.namespace.arrivals import Arrivals
from dedupfs.recipe import hole_extents
from dedupfs.store.cutter import Cut as Chunk
from dedupfs.store.cutter import Cutter, Foresight
from dedupfs.store.match import Matching
from dedupfs.store.store import Store

CUT_CHUNKS = 16
"""How many chunks of average length are gathered before they are cut: 1 MiB by default, as much as
the kernel writes at once, and little enough to be in the processor's cache still."""
ADOPT_CHUNKS = 1536
"""How many duplicate chunks are gathered before they are adopted: 96 MiB by default, since each
adoption is a durable transaction and a journal sync."""
MATCH_CHUNKS = 64
"""How many chunks are compared at once: 4 MiB by default."""
MATCHES_AHEAD = 2
"""How many comparisons may be under way while writing goes on."""
WRITE_OUT_CHUNKS = 128
"""How many new chunks are gathered before the disk begins with them: 8 MiB by default."""
PAGE_BYTES = 4096
"""So many of the last bytes are not cut yet: a page that was not full is written once more."""


@dataclass(slots=True)
class Cut:
    """A decided chunk: ``chunk_id`` is its id (or HOLE) when ``found``, else the id it can have."""

    start: int
    length: int
    chunk_id: RecordId
    found: bool


@dataclass(slots=True)
class _Comparison:
    """Chunks whose ids the store has: whether it has their bytes, too."""

    first: int
    """Index of the first of ``cuts``."""
    cuts: list[Cut]
    payloads: list[memoryview]
    length: int = 0


class OrderedCutter:
    """Follows a file from offset 0 for as long as it is written in order, or nearly so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        average = store.config.chunk_bytes_average
        self._cut_bytes = max(CUT_CHUNKS * average, 4 * PAGE_BYTES)
        self._adopt_bytes = ADOPT_CHUNKS * average
        self._match_bytes = MATCH_CHUNKS * average
        self._write_out_bytes = WRITE_OUT_CHUNKS * average
        self._arrivals = Arrivals()
        self._cutter = Cutter(store.chunker, self._digest, Foresight(store))
        self._following = True
        self._cuts: list[Cut] = []
        self.frontier = 0
        """Up to here the file is cut."""
        self._thread: ThreadPoolExecutor | None = None
        self._gathered: _Comparison | None = None
        self._compared: deque[tuple[_Comparison, Matching, Future[None]]] = deque()
        self._fresh: list[tuple[int, int]] = []
        self._fresh_bytes = 0
        self._found_from = 0
        self._found_bytes = 0

    @property
    def cuts(self) -> list[Cut]:
        """All chunks up to ``frontier``; waits until they have been compared."""
        self._compare()
        self._take_compared(0)
        return self._cuts

    def _digest(self, payload: memoryview) -> RecordId:
        return self._store.digest(RecordKind.CHUNK, payload)

    def feed(self, file_offset: int, data: bytes) -> None:
        """Take what was written; too far out of order, the cuts before it stay and that is all."""
        if not self._following or not self._arrivals.add(file_offset, data):
            self.stop_at(file_offset)
        elif self._arrivals.length >= self._cut_bytes:
            self._cut()

    def stop_at(self, file_offset: int) -> None:
        """Bytes from ``file_offset`` on are not what was seen: follow no further."""
        self._following = False
        self._arrivals = Arrivals()
        self._fresh, self._fresh_bytes = [], 0
        self._thread = None  # it ends by itself, when it has done what it had to do
        while self._cuts and self.frontier > file_offset:
            self.frontier = self._cuts.pop().start
        self._found_from = min(self._found_from, len(self._cuts))

    def _cut(self) -> None:
        """Cut what has gathered; most of it without a copy."""
        first, *others = self._arrivals.parts
        chunks: list[Chunk] = []
        used = 0
        data = memoryview(first)
        if others:
            # Only the chunk that lies in both is put together.
            behind = memoryview(others[0] if len(others) == 1 else b"".join(others))
            across = behind[: max(0, self._store.chunker.params.maximum - len(first))]
            chunks, used = self._cutter.cut(memoryview(b"".join([first, across])), final=False)
            if used >= len(first):
                data = behind[used - len(first) :]
            else:
                data = memoryview(b"".join([first, behind]))[used:]
        more, length = self._cutter.cut(data[:-PAGE_BYTES], final=False)
        chunks += more
        self._look_up(chunks)
        self._arrivals.take(used + length, bytes(data[length:]))
        if self._gathered is not None and self._gathered.length >= self._match_bytes:
            self._compare()
        self._take_compared(MATCHES_AHEAD)

    def _look_up(self, chunks: list[Chunk]) -> None:
        """Tell new chunks from those that have to be compared."""
        rows = self._store.rows([chunk.digest for chunk in chunks])
        probed = [
            self._store.probe_chunk(chunk.payload, digest=chunk.digest)[0]
            if row is None and chunk.payload is not None
            else chunk.digest
            for chunk, row in zip(chunks, rows, strict=True)
        ]
        for chunk, row, chunk_id in zip(chunks, rows, probed, strict=True):
            cut = Cut(self.frontier, chunk.length, chunk_id, found=chunk.payload is None)
            if cut.found:
                self._found_bytes += cut.length
            elif row is None:
                self._note_fresh(cut)
            elif chunk.payload is not None:
                self._gather(cut, chunk.payload)
            self._cuts.append(cut)
            self.frontier += cut.length

    def _note_fresh(self, cut: Cut) -> None:
        stop = cut.start + cut.length
        if self._fresh and self._fresh[-1][1] == cut.start:
            self._fresh[-1] = (self._fresh[-1][0], stop)
        else:
            self._fresh.append((cut.start, stop))
        self._fresh_bytes += cut.length

    def _gather(self, cut: Cut, payload: memoryview) -> None:
        gathered = self._gathered
        if gathered is None:
            gathered = self._gathered = _Comparison(len(self._cuts), [], [])
        gathered.cuts.append(cut)
        gathered.payloads.append(payload)
        gathered.length += cut.length

    def _compare(self) -> None:
        """Begin to compare what was gathered."""
        gathered, self._gathered = self._gathered, None
        if gathered is None:
            return
        ids = [cut.chunk_id for cut in gathered.cuts]
        matching = Matching(self._store, ids, gathered.payloads)
        self._compared.append((gathered, matching, self._in_thread(matching.run)))

    def _take_compared(self, left: int) -> None:
        """Take over what was compared, until ``left`` comparisons are under way."""
        while len(self._compared) > left:
            comparison, matching, done = self._compared[0]
            done.result()
            matches = matching.take()
            for cut, payload, found in zip(
                comparison.cuts, comparison.payloads, matches, strict=True
            ):
                cut.found = found
                if not found:
                    cut.chunk_id, cut.found = self._store.probe_chunk(payload)
                if cut.found:
                    self._found_bytes += cut.length
            self._compared.popleft()

    def _in_thread(self, run: Callable[[], None]) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "compare and write out")
        return self._thread.submit(run)

    def write_out(self, begin: Callable[[int, int], None]) -> None:
        """Call ``begin`` in a thread for ranges of new chunks, when enough have gathered."""
        if self._fresh_bytes < self._write_out_bytes:
            return
        fresh, self._fresh = self._fresh, []
        self._fresh_bytes = 0

        def run() -> None:
            for start, stop in fresh:
                begin(start, stop)

        self._in_thread(run)

    def wants_adoption(self) -> bool:
        """Whether enough duplicates were found that adopting them is worth a transaction."""
        return self._found_bytes >= self._adopt_bytes

    def finds_much(self) -> bool:
        """Whether adopting what is found now spares more than it costs; waits for comparisons."""
        waiting = sum([comparison.length for comparison, *_ in self._compared])
        waiting += self._gathered.length if self._gathered is not None else 0
        if self._found_bytes + waiting < self._match_bytes:
            return False
        self._compare()
        self._take_compared(0)
        return self._found_bytes >= self._match_bytes

    def take_found(self) -> list[tuple[int, list[Extent]]]:
        """Return the runs of found chunks since the last call: (file offset, extents)."""
        runs: list[tuple[int, list[Extent]]] = []
        stop = -1
        last = self._first_undecided()
        for cut in self._cuts[self._found_from : last]:
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
        self._found_from = last
        self._found_bytes = 0
        return runs

    def _first_undecided(self) -> int:
        first = len(self._cuts)
        if self._compared:
            return min(first, self._compared[0][0].first)
        return min(first, self._gathered.first) if self._gathered is not None else first
