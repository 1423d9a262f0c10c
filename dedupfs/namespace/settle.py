"""Settling: the changed bytes of an open file become chunks, at the cost of what changed.

Only what lies around dirty ranges is cut again: from the boundary before, to the first cut that
meets an old boundary. A large new file becomes a verbatim pack as it is; anything else is poured
into the record pack. Everything put here is pending until the caller's transaction.
Source: docs/architecture.md, "Settling".
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.errors import MissingRecordError, StoreError
from dedupfs.model import HOLE, Extent, RecordId, RecordKind
from dedupfs.namespace.contents import is_zero, put_chunk, store_content
from dedupfs.namespace.openfile import OpenFile
from dedupfs.ranges import Ranges
from dedupfs.recipe import append_extent, hole_extents, plan_recut, resync_limit

WINDOW_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk of the settled file; ``chunk_id`` None: to be stored from the file's own bytes, and
    ``free_id`` is the id that it can have."""

    start: int
    length: int
    chunk_id: RecordId | None
    free_id: RecordId = HOLE


def settle(file: OpenFile) -> None:
    """Make all bytes of ``file`` chunks (pending in the store); the file is clean afterwards.

    Raises:
        StoreFullError, StoreError: the file is as it was.
    """
    if file.buffer is not None:
        extents = _settle_buffer(file)
    elif file.staging is not None:
        extents = _Settling(file).run()
    else:
        return
    content = store_content(file.store, extents)
    file.become_clean(content, extents)


def _settle_buffer(file: OpenFile) -> list[Extent]:
    data = bytes(file.buffer or b"")
    extents: list[Extent] = []
    start = 0
    for length in file.store.chunker.cut(data, final=True):
        append_extent(extents, put_chunk(file.store, data[start : start + length]))
        start += length
    return extents


class _Settling:
    """One staged file on its way; holds what is known of its chunks so far."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._store = file.store
        self._base = file.recipe
        self._parts: list[_Part] = []
        self._fresh: dict[RecordId, _Part] = {}
        self._collided = False
        self._packed: set[RecordId] = set()

    def run(self) -> list[Extent]:
        start = self._take_known_cuts()
        dirty = Ranges()
        for range_start, range_stop in self._file.dirty.within(start, self._file.size):
            dirty.add(range_start, range_stop)
        self._cut_runs(start, plan_recut(self._base, dirty, self._file.size))
        self._pack_verbatim()
        return self._pour()

    def _take_known_cuts(self) -> int:
        """Use what was cut while the file was written; return how far that goes."""
        cutter = self._file.cutter
        if cutter is None:
            return 0
        for cut in cutter.cuts:
            if cut.found:
                self._parts.append(_Part(cut.start, cut.length, cut.chunk_id))
            else:
                self._add_fresh(cut.start, cut.length, cut.chunk_id)
        return cutter.frontier

    def _cut_runs(self, position: int, runs: list[tuple[int, int]]) -> None:
        size, base = self._file.size, self._base
        index = 0
        while index < len(runs):
            start, stop = runs[index]
            index += 1
            start = max(start, position)  # the last chunk adopted was cut with what follows it
            self._keep(position, start)
            position = start
            while position < stop:
                limit = resync_limit(base, stop, size)
                for cut_stop in self._cut(position, limit):
                    position = cut_stop
                    while index < len(runs) and runs[index][0] < position:
                        stop = max(stop, runs[index][1])
                        index += 1
                    if position >= stop and base.starts_extent(position):
                        break
                    if stop > limit:
                        break
        self._keep(position, size)

    def _cut(self, start: int, limit: int) -> Iterator[int]:
        """Cut from ``start`` to ``limit``, where a cut is forced; yield each chunk's end.

        A hole is not read: it may be a terabyte. Zeros are cut into chunks of the greatest length,
        so many whole ones are left out, and what comes then is cut as if they had been read.
        """
        longest = self._store.chunker.params.maximum
        while start < limit:
            data_start = self._file.next_data(start, limit)
            skipped = data_start - start
            skipped -= skipped % longest if data_start < limit else 0
            if skipped:
                self._parts.append(_Part(start, skipped, HOLE))
                start += skipped
                yield start
                continue
            stop = min(start + WINDOW_BYTES, limit)
            data = self._file.read(start, stop)
            offset = 0
            for length in self._store.chunker.cut(data, final=stop == limit):
                self._add(start, data[offset : offset + length])
                start += length
                offset += length
                yield start

    def _keep(self, start: int, stop: int) -> None:
        """Keep the settled extents in ``[start, stop)``; past them there are zeros."""
        for piece in self._base.cut(start, stop):
            self._parts.append(_Part(piece.file_offset, piece.length, piece.chunk_id))
        covered = max(start, min(stop, self._base.size))
        if covered < stop:
            self._parts.append(_Part(covered, stop - covered, HOLE))

    def _add(self, start: int, data: bytes) -> None:
        if is_zero(data):
            self._parts.append(_Part(start, len(data), HOLE))
            return
        chunk_id, found = self._store.probe_chunk(data)
        if found:
            self._parts.append(_Part(start, len(data), chunk_id))
        else:
            self._add_fresh(start, len(data), chunk_id)

    def _add_fresh(self, start: int, length: int, free_id: RecordId) -> None:
        part = _Part(start, length, None, free_id)
        twin = self._fresh.get(free_id)
        if twin is None:
            self._fresh[free_id] = part
        elif self._bytes_of(twin) != self._bytes_of(part):
            self._collided = True
        self._parts.append(part)

    def _bytes_of(self, part: _Part) -> bytes:
        return self._file.read(part.start, part.start + part.length)

    def _pack_verbatim(self) -> None:
        """Make the staging file a pack when it holds much that is new and little else."""
        file = self._file
        assert file.staging is not None
        staged = [
            part
            for part in self._fresh.values()
            if file.dirty.within(part.start, part.start + part.length)
            == [(part.start, part.start + part.length)]
        ]
        staged_bytes = sum(part.length for part in staged)
        wanted = staged_bytes >= self._store.config.verbatim_bytes_min
        if self._collided or not wanted or 2 * staged_bytes < file.staging.stored_bytes:
            return
        if file.staging.syncer.failed:
            return  # its bytes must be written anew
        chunks = [(part.start, Extent(part.free_id, part.length)) for part in staged]
        try:
            self._store.put_verbatim(file.staging.path, chunks)
        except MissingRecordError:
            return  # an id was taken by other bytes meanwhile: ``put`` finds another for it
        except StoreError:
            file.staging.syncer.failed = True  # perhaps: then no later sync would tell
            raise
        self._packed = {part.free_id for part in staged}

    def _pour(self) -> list[Extent]:
        """Store what is not stored yet and return the extents of the whole file."""
        extents: list[Extent] = []
        for part in self._parts:
            if part.chunk_id == HOLE:
                for extent in hole_extents(part.length):
                    append_extent(extents, extent)
                continue
            chunk_id = part.chunk_id or (part.free_id if part.free_id in self._packed else None)
            if chunk_id is None:
                chunk_id = self._store.put(RecordKind.CHUNK, self._bytes_of(part))
            extents.append(Extent(chunk_id, part.length))
        return extents
