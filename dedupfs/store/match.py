"""Many chunks compared with the store at once, where they lie there side by side as they do here.

The bulk form of ``Store.find_chunk`` for a file that the store has already: one look-up, one read
and one comparison for a run of chunks. Source: docs/architecture.md, "Store".
"""

from collections.abc import Sequence

from dedupfs.chunking import Buffer
from dedupfs.errors import StoreError
from dedupfs.format.keys import unpack_record_row
from dedupfs.model import Codec, Extent, RecordKind
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
    assert row is not None
    _kind, _codec, _salt, pack, pack_offset, _stored, _logical, _refs = unpack_record_row(row)
    try:
        stored = store.disk.pread_once(store.reader.open_pack(pack), len(data), pack_offset)
    except StoreError:
        return False  # the slow way will say what is wrong
    return len(stored) == len(data) and stored.startswith(data)
