"""Bytes -> chunks and runs of zeros; quicker where the bytes were seen before.

Cutting costs more than anything else that is done with bytes which the store has already. A chunk
that lies in a verbatim pack is followed there by what followed it in its file; as long as the next
chunk of the pack has the id of the next bytes here, its length is the cut that the chunker would
have found, for a cut depends on nothing but the bytes since the last one. Ids are only hints here:
the storing thread compares bytes. Only looks at the store, from any thread.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dedupfs.chunking import Chunker
from dedupfs.errors import StoreError
from dedupfs.format.pack import TableChunk
from dedupfs.model import HOLE, RecordId
from dedupfs.store.inventory import chunk_table, indexed_pack
from dedupfs.store.store import Store

WINDOW_BYTES = 1 << 20
"""How much is cut at once before it is looked whether it was seen before."""
_ZEROS = bytes(1 << 16)

Digest = Callable[[memoryview], RecordId]


class Cut(NamedTuple):
    """One chunk of a block: its salt-0 id and bytes; a hole has neither."""

    length: int
    digest: RecordId
    payload: memoryview | None


class Foresight:
    """Which chunks followed a chunk where it was stored. Serves one file, in one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pack = 0
        self._chunks: Sequence[TableChunk] = ()
        self._indexes: dict[RecordId, int] = {}

    def after(self, chunk_id: RecordId) -> Iterator[TableChunk]:
        """Yield the chunks that came behind ``chunk_id``, up to the last that was cut freely."""
        try:
            location = self._store.locate(chunk_id)
            if location.pack != self._pack:
                self._load(location.pack)
        except StoreError:  # not stored, or damaged: then nothing is foreseen
            return
        first = self._indexes.get(chunk_id)
        if first is None:
            return
        for index in range(first + 1, len(self._chunks) - 1):
            before, chunk, behind = self._chunks[index - 1 : index + 2]
            is_free = before.file_offset + before.length == chunk.file_offset
            if not is_free or chunk.file_offset + chunk.length != behind.file_offset or chunk.salt:
                return
            yield chunk

    def _load(self, pack: int) -> None:
        self._pack = pack
        self._chunks, self._indexes = (), {}
        with self._store.reading() as txn:
            row = indexed_pack(txn, pack)
        if row is not None and row.chunk_table is not None:
            self._chunks = chunk_table(self._store, row.chunk_table).chunks
            self._indexes = {chunk.chunk_id: i for i, chunk in enumerate(self._chunks)}


class Cutter:
    """Cuts the buffers of one file, one after the other."""

    def __init__(self, chunker: Chunker, digest: Digest, foresight: Foresight | None) -> None:
        self._chunker = chunker
        self._digest = digest
        self._foresight = foresight
        self._window_bytes = max(WINDOW_BYTES, 2 * chunker.params.maximum)
        self._last = HOLE

    def cut(self, data: memoryview, *, final: bool) -> tuple[list[Cut], int]:
        """Return the chunks at the front of ``data``, and how many bytes they are.

        ``data`` starts at a boundary. Unless ``final``, bytes at its end may be left undecided.
        """
        cuts: list[Cut] = []
        offset = 0
        is_last = False
        while not is_last:
            offset += self._take_expected(data[offset:], cuts)
            window = data[offset : offset + self._window_bytes]
            is_last = offset + len(window) == len(data)
            offset += self._take_cut(window, cuts, final=final and is_last)
            if cuts:
                self._last = cuts[-1].digest
        return cuts, offset

    def _take_expected(self, data: memoryview, cuts: list[Cut]) -> int:
        """Take chunks for as long as they are what followed last time."""
        if self._foresight is None or self._last == HOLE:
            return 0
        offset = 0
        for chunk in self._foresight.after(self._last):
            payload = data[offset : offset + chunk.length]
            if len(payload) < chunk.length or self._digest(payload) != chunk.chunk_id:
                break
            cuts.append(Cut(chunk.length, chunk.chunk_id, payload))
            offset += chunk.length
        return offset

    def _take_cut(self, window: memoryview, cuts: list[Cut], *, final: bool) -> int:
        offset = 0
        for length in self._chunker.cut(window, final=final):
            payload = window[offset : offset + length]
            offset += length
            if is_zero(payload):
                cuts.append(Cut(length, HOLE, None))
            else:
                cuts.append(Cut(length, self._digest(payload), payload))
        return offset


def is_zero(payload: memoryview) -> bool:
    """Whether all bytes are zero; two looks decide for nearly all real data."""
    if payload[0] or payload[-1]:
        return False
    return all(
        bytes(payload[start : start + len(_ZEROS)]) == _ZEROS[: len(payload) - start]
        for start in range(0, len(payload), len(_ZEROS))
    )
