"""A file's content: extents <-> recipe records, and bytes in order -> extents.

Knows chunks by id only, never where they lie. Source: docs/format.md, "Payloads".
"""

from collections.abc import Iterable, Sequence

from dedupfs.chunking import Buffer
from dedupfs.errors import CorruptError
from dedupfs.format.tree import (
    EXTENT_BYTES,
    INLINE_EXTENTS_MAX,
    decode_extents,
    decode_recipe,
    encode_extents,
    encode_recipe,
    split_recipe,
)
from dedupfs.model import HOLE, ID_BYTES, Extent, RecordId, RecordKind
from dedupfs.recipe import Recipe, append_extent, hole_extents
from dedupfs.store.store import Store

FEED_BYTES_MAX = 4 << 20
"""How much the writer gathers before it cuts: enough that each cut pass is long."""


def store_content(store: Store, extents: Sequence[Extent]) -> bytes:
    """Return the ``TreeEntry.content`` of these extents, putting a recipe when they are many.

    Pages end where content says so, so two files that share a run of chunks share its pages.
    """
    if len(extents) <= INLINE_EXTENTS_MAX:
        return encode_extents(extents)
    pages = []
    for page in split_recipe(extents):
        page_id = store.put(RecordKind.RECIPE_PAGE, encode_extents(page))
        pages.append((page_id, sum(extent.length for extent in page)))
    return bytes(store.put(RecordKind.RECIPE, encode_recipe(pages)))


def load_recipe(store: Store, content: bytes) -> Recipe:
    """Return the recipe of a regular file's ``TreeEntry.content``; ``b""`` is the empty file.

    Raises:
        MissingRecordError, CorruptError: the recipe's records are not there or not whole.
    """
    if len(content) != ID_BYTES:
        return Recipe(decode_extents(content))
    extents: list[Extent] = []
    for page_id, length in decode_recipe(store.get(RecordId(content), RecordKind.RECIPE)):
        page = decode_extents(store.get(page_id, RecordKind.RECIPE_PAGE))
        if total_bytes(page) != length:
            raise CorruptError(f"recipe page {page_id.hex()} does not cover {length} bytes")
        extents += page
    return Recipe(extents)


def is_inline(content: bytes) -> bool:
    """Whether a regular file's content lies in its entry, so that it refers to chunks itself."""
    return len(content) % EXTENT_BYTES == 0


def put_chunk(store: Store, data: bytes | memoryview) -> Extent:
    """Store one chunk, or a hole when it is all zeros (which stores nothing)."""
    if is_zero(data):
        return Extent(HOLE, len(data))
    return Extent(store.put(RecordKind.CHUNK, data), len(data))


def is_zero(data: Buffer) -> bool:
    """Whether all bytes are zero; the first look decides for nearly all real data."""
    if data[0] or data[-1]:
        return False
    return not any(memoryview(data)[:64]) and bytes(data).count(0) == len(data)


class ContentWriter:
    """Bytes in order -> extents: cuts, stores, and keeps the undecided tail."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tail = bytearray()
        self._extents: list[Extent] = []

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the file."""
        self._tail += data
        if len(self._tail) >= FEED_BYTES_MAX:
            self._cut(final=False)

    def skip_hole(self, length: int) -> None:
        """Take ``length`` zeros; the bytes before are cut as if the data ended there."""
        self._cut(final=True)
        for extent in hole_extents(length):
            append_extent(self._extents, extent)

    def finish(self) -> list[Extent]:
        """End the file and return all its extents."""
        self._cut(final=True)
        return self._extents

    def _cut(self, *, final: bool) -> None:
        data = bytes(self._tail)
        start = 0
        for length in self._store.chunker.cut(data, final=final):
            append_extent(self._extents, put_chunk(self._store, data[start : start + length]))
            start += length
        del self._tail[:start]


def hole_bytes(extents: Iterable[Extent]) -> int:
    """Return how many bytes of a file are holes."""
    return sum(extent.length for extent in extents if extent.chunk_id == HOLE)


def total_bytes(extents: Iterable[Extent]) -> int:
    """Return how many bytes of a file the extents make."""
    return sum([extent.length for extent in extents])
