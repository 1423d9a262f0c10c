"""Trees, recipes, snapshots and view roots as record payloads, and what each refers to.

Knows no files and no index. Source: docs/format.md, "Payloads".
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import TypeVar

import msgspec

from dedupfs.errors import CorruptError
from dedupfs.model import (
    HOLE,
    ID_BYTES,
    Extent,
    RecordId,
    RecordKind,
    SnapshotInfo,
    Tree,
    TreeEntry,
    ViewRoot,
)

T = TypeVar("T")

_EXTENT = struct.Struct("<16sI")
EXTENT_BYTES = _EXTENT.size
INLINE_EXTENTS_MAX = 8
"""A file of at most this many extents keeps them in its tree entry; more make a recipe record."""
RECIPE_PAGE_EXTENTS_MAX = 1024
_RECIPE_PAGE_EXTENTS_MIN = 64
_RECIPE_PAGE_MASK = 0xFF  # a page ends after a chunk whose id has these bits zero: 256 on average
_PAGE_ENTRY = struct.Struct("<16sQ")
PAGE_ENTRY_BYTES = _PAGE_ENTRY.size
TREE_ENTRIES_MAX = 1024
"""A directory with more entries is kept in pages, so that a change rewrites one page."""
_TREE_PAGE_MIN = 64
_TREE_PAGE_MAX = 2048
_TREE_PAGE_MASK = 0xFF

_encode = msgspec.msgpack.Encoder().encode
_tree_decoder = msgspec.msgpack.Decoder(Tree)
_page_decoder = msgspec.msgpack.Decoder(tuple[TreeEntry, ...])
_snapshot_decoder = msgspec.msgpack.Decoder(SnapshotInfo)
_view_decoder = msgspec.msgpack.Decoder(ViewRoot)


def _decode(decoder: Callable[[bytes], T], payload: bytes, what: str) -> T:
    try:
        return decoder(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise CorruptError(f"not a {what}: {exc}") from exc


def encode_extents(extents: Iterable[Extent]) -> bytes:
    """Pack extents, 20 bytes each: chunk id, length in bytes (u32)."""
    return b"".join([_EXTENT.pack(extent.chunk_id, extent.length) for extent in extents])


def decode_extents(packed: bytes) -> list[Extent]:
    """Unpack what ``encode_extents`` packed.

    Raises:
        CorruptError: the length is no multiple of an extent, or an extent is empty.
    """
    if len(packed) % EXTENT_BYTES:
        raise CorruptError(f"{len(packed)} bytes are no whole number of extents")
    extents = list(starmap(Extent, _EXTENT.iter_unpack(packed)))
    if 0 in [extent.length for extent in extents]:
        raise CorruptError("an extent of no bytes")
    return extents


def extent_ids(packed: bytes) -> list[RecordId]:
    """Return the chunks that packed extents refer to, with repetitions; errors as above."""
    if len(packed) % EXTENT_BYTES:
        raise CorruptError(f"{len(packed)} bytes are no whole number of extents")
    found = []
    for chunk_id, length in _EXTENT.iter_unpack(packed):
        if not length:
            raise CorruptError("an extent of no bytes")
        if chunk_id != HOLE:
            found.append(RecordId(chunk_id))
    return found


def split_recipe(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    """Split extents into pages whose ends depend on content, so that shifted files share pages."""
    start = 0
    for index, extent in enumerate(extents):
        count = index + 1 - start
        ends = extent.chunk_id[0] & _RECIPE_PAGE_MASK == 0 and extent.chunk_id != HOLE
        if count >= RECIPE_PAGE_EXTENTS_MAX or (ends and count >= _RECIPE_PAGE_EXTENTS_MIN):
            yield extents[start : index + 1]
            start = index + 1
    if start < len(extents):
        yield extents[start:]


def encode_recipe(pages: Iterable[tuple[RecordId, int]]) -> bytes:
    """Encode a RECIPE payload: page ids, each with the file bytes it covers."""
    return b"".join([_PAGE_ENTRY.pack(page_id, length) for page_id, length in pages])


def decode_recipe(payload: bytes) -> list[tuple[RecordId, int]]:
    """Decode a RECIPE payload into (page id, bytes covered).

    Raises:
        CorruptError: the length is no multiple of a page entry.
    """
    if len(payload) % PAGE_ENTRY_BYTES:
        raise CorruptError(f"{len(payload)} bytes are no whole number of recipe pages")
    return [(RecordId(page_id), length) for page_id, length in _PAGE_ENTRY.iter_unpack(payload)]


def split_entries(entries: Sequence[TreeEntry]) -> Iterator[Sequence[TreeEntry]]:
    """Split a large directory's sorted entries into pages; ends depend on names alone."""
    start = 0
    for index, entry in enumerate(entries):
        count = index + 1 - start
        ends = _name_ends_page(entry.name)
        if count >= _TREE_PAGE_MAX or (ends and count >= _TREE_PAGE_MIN):
            yield entries[start : index + 1]
            start = index + 1
    if start < len(entries):
        yield entries[start:]


def _name_ends_page(name: bytes) -> bool:
    """Whether a page ends behind ``name``; FNV-1a, since it must be the same in every process."""
    value = 0x811C9DC5
    for byte in name[-16:]:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return (value ^ value >> 15) & _TREE_PAGE_MASK == 0


def encode_tree(tree: Tree) -> bytes:
    """Encode a TREE payload."""
    return _encode(tree)


def decode_tree(payload: bytes) -> Tree:
    """Decode a TREE payload.

    Raises:
        CorruptError: the bytes are no tree.
    """
    return _decode(_tree_decoder.decode, payload, "tree")


def encode_tree_page(entries: Sequence[TreeEntry]) -> bytes:
    """Encode a TREE_PAGE payload: entries sorted by name."""
    return _encode(tuple(entries))


def decode_tree_page(payload: bytes) -> tuple[TreeEntry, ...]:
    """Decode a TREE_PAGE payload.

    Raises:
        CorruptError: the bytes are no page of a tree.
    """
    return _decode(_page_decoder.decode, payload, "tree page")


def encode_snapshot(info: SnapshotInfo) -> bytes:
    """Encode a SNAPSHOT payload."""
    return _encode(info)


def decode_snapshot(payload: bytes) -> SnapshotInfo:
    """Decode a SNAPSHOT payload.

    Raises:
        CorruptError: the bytes are no snapshot.
    """
    return _decode(_snapshot_decoder.decode, payload, "snapshot")


def encode_view_root(root: ViewRoot) -> bytes:
    """Encode a VIEW_ROOT payload."""
    return _encode(root)


def decode_view_root(payload: bytes) -> ViewRoot:
    """Decode a VIEW_ROOT payload.

    Raises:
        CorruptError: the bytes are no view root.
    """
    return _decode(_view_decoder.decode, payload, "view root")


def entry_references(entry: TreeEntry) -> list[RecordId]:
    """Return the records that a tree entry refers to, with repetitions.

    Raises:
        CorruptError: the entry's content has no length that its type can have.
    """
    content = entry.content
    if entry.is_file:
        if len(content) == ID_BYTES:
            return [RecordId(content)]
        return extent_ids(content)
    if entry.is_directory:
        if len(content) == ID_BYTES:
            return [RecordId(content)]
        if len(content) == 2 * ID_BYTES:
            return [RecordId(content[:ID_BYTES]), RecordId(content[ID_BYTES:])]
        if content:
            raise CorruptError(f"a directory with {len(content)} bytes of content")
    return []


def references(kind: RecordKind, payload: bytes) -> list[RecordId]:
    """Return the records that a record refers to, with repetitions: one reference count each.

    Raises:
        CorruptError: the payload is not of this kind.
    """
    if kind == RecordKind.RECIPE_PAGE:
        return extent_ids(payload)
    if kind == RecordKind.RECIPE:
        return [page_id for page_id, _ in decode_recipe(payload)]
    if kind == RecordKind.TREE:
        tree = decode_tree(payload)
        found = [page.page_id for page in tree.pages]
        for entry in tree.entries:
            found += entry_references(entry)
        return found
    if kind == RecordKind.TREE_PAGE:
        found = []
        for entry in decode_tree_page(payload):
            found += entry_references(entry)
        return found
    if kind == RecordKind.SNAPSHOT:
        info = decode_snapshot(payload)
        return [] if info.deleted else entry_references(info.root)
    if kind == RecordKind.VIEW_ROOT:
        return entry_references(decode_view_root(payload).root)
    return []
