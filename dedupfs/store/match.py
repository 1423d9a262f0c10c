"""Many chunks compared with the store at once, where they lie there side by side as they do here.

The bulk form of ``Store.find_chunk`` for a file that the store has already: one look-up, one read
and one comparison for a run of chunks. Source: docs/architecture.md, "Write".
"""

from collections.abc import Sequence

from dedupfs.chunking import Buffer
from dedupfs.errors import StoreError
from dedupfs.format.keys import unpack_record_row
from dedupfs.model import Codec, Extent, RecordId, RecordKind
from dedupfs.store.store import Store

_RUN_BYTES_MAX = 4 << 20


def match_chunks(store: Store, chunks: Sequence[Extent], data: memoryview) -> list[bool]:
    """Tell of each of the chunks, which make up ``data``, whether the store has it for certain.

    True means what an id from ``Store.find_chunk`` means: the bytes were compared. False means
    that nothing was found out. HOLE extents are False.
    """
    found = [False] * len(chunks)
    rows = store.rows([chunk.chunk_id for chunk in chunks])
    first = start = 0
    while first < len(chunks):
        last, length = _run(chunks, rows, first)
        stop = start + (length or chunks[first].length)
        if length and _is_stored(store, rows[first], data[start:stop]):
            for index in range(first, last):
                row = rows[index]
                assert row is not None
                store.note_match(chunks[index].chunk_id, row)
                found[index] = True
        first, start = max(last, first + 1), stop
    return found


class Matching:
    """``match_chunks`` for chunks that lie anywhere in memory, to be run in a thread."""

    def __init__(
        self, store: Store, ids: Sequence[RecordId], payloads: Sequence[memoryview]
    ) -> None:
        """Plan it; ``ids``: what the ``payloads`` are digested to."""
        self._store = store
        self._chunks = [Extent(*pair) for pair in zip(ids, map(len, payloads), strict=True)]
        self._payloads = payloads
        self._rows = store.rows(ids)
        self._found = [False] * len(payloads)

    def run(self) -> None:
        """Compare; the only part that waits for the disk. Any thread."""
        first = 0
        while first < len(self._chunks):
            last, length = _run(self._chunks, self._rows, first)
            if length:
                stored = _stored(self._store, self._rows[first], length)
                at = 0
                for index in range(first, last):
                    self._found[index] = stored.startswith(self._payloads[index], at)
                    at += self._chunks[index].length
            first = max(last, first + 1)

    def take(self) -> list[bool]:
        """Tell what ``match_chunks`` tells, in the thread that changes the store."""
        for chunk, row, found in zip(self._chunks, self._rows, self._found, strict=True):
            if found and row is not None:
                self._store.note_match(chunk.chunk_id, row)
        return self._found


def _run(chunks: Sequence[Extent], rows: Sequence[bytes | None], first: int) -> tuple[int, int]:
    """Return the index behind the chunks that lie side by side from ``first`` on, and their bytes.

    Both are as small as they can be when not even the first is there as it is.
    """
    pack = pack_offset = length = 0
    for index in range(first, len(chunks)):
        row = rows[index]
        if row is None:
            return index, length
        kind, codec, _salt, at_pack, at_offset, _stored, logical, _refs = unpack_record_row(row)
        is_whole = kind == RecordKind.CHUNK and codec == Codec.RAW
        if not is_whole or logical != chunks[index].length:
            return index, length
        if length and (at_pack, at_offset) != (pack, pack_offset + length):
            return index, length
        if not length:
            pack, pack_offset = at_pack, at_offset
        length += logical
        if length >= _RUN_BYTES_MAX:
            return index + 1, length
    return len(chunks), length


def _is_stored(store: Store, row: bytes | None, data: Buffer) -> bool:
    stored = _stored(store, row, len(data))
    return len(stored) == len(data) and stored.startswith(data)


def _stored(store: Store, row: bytes | None, length: int) -> bytes | bytearray:
    assert row is not None
    _kind, _codec, _salt, pack, pack_offset, _stored, _logical, _refs = unpack_record_row(row)
    try:
        return store.disk.pread_once(store.reader.open_pack(pack), length, pack_offset)
    except StoreError:
        return b""  # the slow way will say what is wrong
