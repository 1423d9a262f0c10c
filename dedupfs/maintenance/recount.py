"""Counting references anew: who is referred to how often, as what, with which length. Pure.

Knows no store: it is fed payloads and compared with rows. Ids are kept as packed bytes in 256
parts, by their first byte, so that counting needs about 21 bytes a reference instead of a Python
object each.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dedupfs.format.tree import (
    EXTENT_BYTES,
    decode_extents,
    decode_recipe,
    decode_snapshot,
    decode_tree,
    decode_tree_page,
    decode_view_root,
    entry_references,
)
from dedupfs.model import HOLE, ID_BYTES, RecordId, RecordKind, TreeEntry

_TARGET = struct.Struct("<16sBI")  # record id, kind that it must have, length of the extent or 0
_pack_target = _TARGET.pack
_EXTENT = struct.Struct("<16sI")
_PARTS = 256


@dataclass(slots=True)
class Target:
    """What is demanded of one record: how often it is referred to, and what it must be."""

    count: int
    kind: int
    length: int
    contradictory: bool = False
    """Two referrers demand different kinds or lengths."""


class ReferenceCounter:
    """Counts references; ``targets`` gives the sums, one part of the id space at a time."""

    def __init__(self) -> None:
        self._parts = [bytearray() for _ in range(_PARTS)]
        self._pins: Counter[RecordId] = Counter()

    def add(self, record_id: bytes, kind: int, length: int = 0) -> None:
        """Count one reference to a record that must be of ``kind`` (and ``length`` bytes)."""
        self._parts[record_id[0]] += _pack_target(record_id, kind, length)

    def add_pins(self, record_id: RecordId, count: int) -> None:
        """Count references that say nothing about what the record is."""
        self._pins[record_id] += count

    def add_extents(self, packed: bytes) -> None:
        """Count what packed extents refer to."""
        parts = self._parts
        for chunk_id, length in _EXTENT.iter_unpack(packed):
            if chunk_id != HOLE:
                parts[chunk_id[0]] += _pack_target(chunk_id, RecordKind.CHUNK, length)

    def add_entry(self, entry: TreeEntry) -> None:
        """Count what a tree entry refers to; agrees with ``format.tree.entry_references``."""
        content = entry.content
        if entry.is_file:
            if len(content) == ID_BYTES:
                self.add(content, RecordKind.RECIPE)
            else:
                decode_extents(content)
                self.add_extents(content)
        elif entry.is_directory:
            for tree_id in entry_references(entry):
                self.add(tree_id, RecordKind.TREE)

    def add_entries(self, entries: Iterable[TreeEntry]) -> None:
        """Count what tree entries refer to."""
        for entry in entries:
            self.add_entry(entry)

    def add_payload(self, kind: RecordKind, payload: bytes) -> None:
        """Count what a record refers to; agrees with ``format.tree.references``.

        Raises:
            CorruptError: the payload is not of this kind.
        """
        match kind:
            case RecordKind.RECIPE_PAGE:
                decode_extents(payload)
                self.add_extents(payload)
            case RecordKind.RECIPE:
                for page_id, _ in decode_recipe(payload):
                    self.add(page_id, RecordKind.RECIPE_PAGE)
            case RecordKind.TREE:
                tree = decode_tree(payload)
                for page in tree.pages:
                    self.add(page.page_id, RecordKind.TREE_PAGE)
                self.add_entries(tree.entries)
            case RecordKind.TREE_PAGE:
                self.add_entries(decode_tree_page(payload))
            case RecordKind.SNAPSHOT:
                info = decode_snapshot(payload)
                self.add_entries(() if info.deleted else (info.root,))
            case RecordKind.VIEW_ROOT:
                self.add_entry(decode_view_root(payload).root)

    def targets(self, part: int) -> dict[RecordId, Target]:
        """Return what is demanded of each record whose id starts with byte ``part``."""
        found: dict[RecordId, Target] = {}
        for identity, kind, length in _TARGET.iter_unpack(self._parts[part]):
            target = found.get(identity)
            if target is None:
                found[identity] = Target(1, kind, length)
                continue
            target.count += 1
            if kind and target.kind and kind != target.kind:
                target.contradictory = True
            if length and target.length and length != target.length:
                target.contradictory = True
            target.kind = target.kind or kind
            target.length = target.length or length
        for record_id, count in self._pins.items():
            if record_id[0] == part:
                found.setdefault(record_id, Target(0, 0, 0)).count += count
        return found

    @staticmethod
    def parts() -> Iterator[int]:
        """Yield the numbers of the parts, in the order of the ids."""
        yield from range(_PARTS)


assert _EXTENT.size == EXTENT_BYTES
