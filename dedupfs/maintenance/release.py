"""What dropping some references would free: gc's first half, played through without a change.

Costs what is freed, never the whole store. Works on one state of the index, and on top of what
another release has dropped already. Knows ranges of packs but no file: ``blocks`` tells what they
are on disk.
"""

import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    PackRow,
    decode_location,
    decode_pack_row,
    decode_references,
    encode_pack_key,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import (
    decode_extents,
    decode_recipe,
    decode_snapshot,
    decode_tree,
    decode_tree_page,
    decode_view_root,
    entry_references,
)
from dedupfs.model import HOLE, ID_BYTES, Location, PackKind, RecordId, RecordKind, TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import ReadTxn, Store, Table

_LEAVES = (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)

_Child = tuple[RecordId, int | None]
"""A record and the file bytes that one reference to it stands for; None: add them up if needed."""


@dataclass(frozen=True, slots=True)
class Exclusive:
    """What only some snapshots and views hold, in bytes.

    ``logical_bytes``: the chunks that go, each once, before compression. ``stored_bytes``: all
    records that go, as they are stored, headers and metadata included. ``disk_bytes``: what the
    disk gets back (see ``maintenance.forecast``). ``shared_bytes``: what of their files others
    hold, too, as it reads. ``problems``: what could not be followed, so that more may come back.
    """

    logical_bytes: int
    stored_bytes: int
    records: int
    shared_bytes: int = 0
    disk_bytes: int = 0
    problems: tuple[str, ...] = ()


class Release:
    """Drops references and follows what that frees, recipe by recipe and tree by tree."""

    def __init__(self, store: Store, txn: ReadTxn, below: "Release | None" = None) -> None:
        """``below``: what is dropped already, and is not counted again."""
        self._store = store
        self._txn = txn
        self._below = below
        self._reader: TreeReader = below._reader if below is not None else TreeReader(store)
        self._packs: dict[int, PackRow | None] = below._packs if below is not None else {}
        self._dropped: Counter[RecordId] = Counter()
        self._freed_in: Counter[int] = Counter()
        self._weights: Counter[RecordId] = Counter()
        self._sizes: dict[RecordId, int | None] = {}
        self._held: Counter[RecordId] = Counter()
        self._held_unsized: Counter[RecordId] = Counter()
        self._paged_bytes = 0
        self.freed: set[RecordId] = set()
        self.ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Of each pack, what the freed records took; in no order."""
        self.problems: dict[str, None] = {}
        self.unreadable_snapshot = False
        self.logical_bytes = 0
        """Of the freed chunks."""
        self.stored_bytes = 0
        """Of all freed records, headers included."""

    def drop_root(self, record_id: RecordId, logical_bytes: int) -> None:
        """Drop a reference to what files are reached through: the record of a snapshot or view."""
        self._drop([(record_id, 1, logical_bytes)])

    def drop_pin(self, record_id: RecordId, count: int) -> None:
        """Drop ``count`` references to a record that were there only to keep it."""
        self._drop([(record_id, 0, None)] * count)

    def free_dead(self, record_ids: Iterable[RecordId]) -> None:
        """Free records that have no references already."""
        for record_id in record_ids:
            self._drop(self._free_if_unused(record_id))

    def _drop(self, pending: list[tuple[RecordId, int, int | None]]) -> None:
        """Drop references; ``weight``: in how many places of the dropped roots one is seen.

        A record is freed when its last referrer is, so its weight is complete by then.
        """
        while pending:
            record_id, weight, size = pending.pop()
            self._dropped[record_id] += 1
            if weight:
                self._weights[record_id] += weight
                self._sizes[record_id] = size
                if size is None:
                    self._held_unsized[record_id] += weight
                else:
                    self._held[record_id] += weight * size
            pending += self._free_if_unused(record_id)

    # --- what the layers below have done ------------------------------------------------------

    def is_freed(self, record_id: RecordId) -> bool:
        """Whether the record goes, here or below."""
        return record_id in self.freed or (
            self._below is not None and self._below.is_freed(record_id)
        )

    def _dropped_of(self, record_id: RecordId) -> int:
        below = self._below._dropped_of(record_id) if self._below is not None else 0
        return self._dropped[record_id] + below

    def live_bytes(self, pack: int) -> int:
        """Return what is left in a pack."""
        if self._below is not None:
            return self._below.live_bytes(pack) - self._freed_in[pack]
        row = self.pack_row(pack)
        return (row.live_bytes if row is not None else 0) - self._freed_in[pack]

    def is_held(self, pack: int) -> bool:
        """Whether a verbatim pack stays as it is for somebody who pins its chunk table."""
        row = self.pack_row(pack)
        if row is None or row.chunk_table is None:
            return False
        found = self._txn.get(Table.RECORDS, row.chunk_table)
        if found is None:
            return True  # as ``store.whole.is_held``
        left = decode_references(found) - self._dropped_of(row.chunk_table)
        return left > (1 if self.live_bytes(pack) else 0)  # its row's own was dropped with the last

    def pack_row(self, pack: int) -> PackRow | None:
        """Return a pack's row, or None when there is none that can be read."""
        if pack not in self._packs:
            stored = self._txn.get(Table.PACKS, encode_pack_key(pack))
            try:
                self._packs[pack] = decode_pack_row(stored) if stored is not None else None
            except CorruptError:
                self._packs[pack] = None
        return self._packs[pack]

    # --- freeing ------------------------------------------------------------------------------

    def _free_if_unused(self, record_id: RecordId) -> list[tuple[RecordId, int, int | None]]:
        """Free a record whose references are all dropped; return what it refers to.

        As gc does: what is lost already frees nothing, and what cannot be read stays.
        """
        row = self._txn.get(Table.RECORDS, record_id)
        if row is None or self.is_freed(record_id):
            return []
        try:
            location, count = decode_location(row)
            dropped = self._dropped_of(record_id)
            if count > dropped:
                return []
            if count < dropped:
                raise CorruptError(f"record {record_id.hex()} has only {count} references")
            children = self._children(record_id, location)
            pack = self.pack_row(location.pack)
            if pack is None:
                raise CorruptError(f"pack {location.pack} is not in the index")
        except StoreError as exc:
            if has_gone(self._store, self._txn, record_id):
                return []  # there is nothing left of it to free, nor to be followed
            self.problems[f"{exc}; run 'dedupfs check'"] = None
            self.unreadable_snapshot |= row[:1] == bytes([RecordKind.SNAPSHOT])
            return []
        header_bytes = HEADER_BYTES if pack.kind is PackKind.RECORDS else 0
        start = location.pack_offset - header_bytes
        stop = location.pack_offset + location.stored_bytes
        self.freed.add(record_id)
        self.stored_bytes += stop - start
        if location.kind is RecordKind.CHUNK:
            self.logical_bytes += location.logical_bytes
        self.ranges[location.pack].append((start, stop))
        self._freed_in[location.pack] += stop - start
        self._held.pop(record_id, None)
        self._held_unsized.pop(record_id, None)
        weight = self._weights.pop(record_id, 0)
        found = [(child, weight, size) for child, size in children]
        if pack.chunk_table is not None and not self.live_bytes(location.pack):
            # The pack goes, and with it the reference of its row.
            found.append((pack.chunk_table, 0, None))
        return found

    def _children(self, record_id: RecordId, location: Location) -> list[_Child]:
        if location.kind in _LEAVES:
            return []
        payload = self._store.get(record_id, location.kind)
        if location.kind is RecordKind.TREE:
            return self._children_of_tree(record_id, payload)
        if location.kind is RecordKind.TREE_PAGE:
            entries = decode_tree_page(payload)
            self._paged_bytes -= self._weights[record_id] * sum_of_sizes(entries)
            return [child for entry in entries for child in _children_of(entry)]
        if location.kind is RecordKind.RECIPE:
            return list(decode_recipe(payload))
        if location.kind is RecordKind.RECIPE_PAGE:
            return list(_chunks_of(payload))
        if location.kind is RecordKind.SNAPSHOT:
            info = decode_snapshot(payload)
            return [] if info.deleted else list(_children_of(info.root))
        return list(_children_of(decode_view_root(payload).root))

    def _children_of_tree(self, record_id: RecordId, payload: bytes) -> list[_Child]:
        tree = decode_tree(payload)
        weight = self._weights[record_id]
        if tree.pages and weight:
            # A page does not say how much its files are: all of them, but for pages that go.
            size = self._sizes[record_id]
            if size is None:
                size = sum_of_sizes(self._reader.entries(record_id))
            self._paged_bytes += weight * size
        found: list[_Child] = [(page.page_id, 0) for page in tree.pages]
        for entry in tree.entries:
            found += _children_of(entry)
        return found

    # --- what stays ---------------------------------------------------------------------------

    def shared_bytes(self) -> int:
        """Return what of the files below the dropped roots stays, as it reads in them.

        Holes in trees and recipes that stay count as well.
        """
        shared = sum(self._held.values()) + self._paged_bytes
        for tree_id, weight in self._held_unsized.items():
            try:
                shared += weight * sum_of_sizes(self._reader.entries(tree_id))
            except StoreError as exc:
                if not has_gone(self._store, self._txn, tree_id):
                    self.problems[f"{exc}; run 'dedupfs check'"] = None
        return shared


def has_gone(store: Store, txn: ReadTxn, record_id: RecordId) -> bool:
    """Whether a record of a state of the index is in the present one no more: that is no damage."""
    return txn.get(Table.RECORDS, record_id) is not None and not store.has(record_id)


def sum_of_sizes(entries: Iterable[TreeEntry]) -> int:
    """Add up the bytes of files and of all below directories, names of hard-linked files apart."""
    return sum(
        entry.size for entry in entries if stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode)
    )


def _chunks_of(packed: bytes) -> Iterator[_Child]:
    for extent in decode_extents(packed):
        if extent.chunk_id != HOLE:
            yield extent.chunk_id, extent.length


def _children_of(entry: TreeEntry) -> Iterator[_Child]:
    """Yield what an entry refers to, as ``entry_references`` does, with its share of the file."""
    if entry.is_file and len(entry.content) != ID_BYTES:
        yield from _chunks_of(entry.content)
    elif entry.is_file:
        yield RecordId(entry.content), entry.size
    elif entry.is_directory:
        found = entry_references(entry)
        # The root of a scope may or may not count the hard-linked files below it.
        size = entry.size if len(found) == 1 else None
        for record_id in found:
            yield record_id, size
