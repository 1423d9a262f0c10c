"""Who holds what: for each set of snapshots and views, the bytes that just these reach.

One walk over the distinct records, each read once, whatever the number of snapshots that share it.
It needs 20 bytes of memory for each reference and some 300 for each directory and large file. No
state of the index is held for longer than a look at some rows, so it may take its time beside
others; what goes meanwhile, or cannot be read, is told as a gap. Changes nothing.
"""

import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import decode_location, decode_pack_row, encode_pack_key, split_pin_key
from dedupfs.format.pack import HEADER_BYTES, decode_chunk_table
from dedupfs.format.tree import (
    decode_recipe,
    decode_snapshot,
    decode_tree,
    decode_tree_page,
    decode_view_root,
    entry_references,
    extent_ids,
)
from dedupfs.model import HOLE, ID_BYTES, PackKind, RecordId, RecordKind, TreeEntry
from dedupfs.store import ReadTxn, Store, Table

GAPS_MAX = 100
"""How many gaps are kept; all are counted."""

_PARTS = 256
_REFERENCE = struct.Struct("<16sI")  # record id, node that refers to it (or that it is)
_pack_reference = _REFERENCE.pack

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Holder:
    """What refers to records: a snapshot, a view, a checkout; "other": commands that run now."""

    kind: str
    name: str
    roots: tuple[RecordId, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Gap:
    """A record that is missing or cannot be read, so that what it leads to is not counted."""

    what: str
    holders: tuple[str, ...]


@dataclass(slots=True)
class Held:
    """Sums of records. ``stored_bytes`` includes headers; ``logical_bytes`` is of chunks alone."""

    records: int = 0
    stored_bytes: int = 0
    logical_bytes: int = 0

    def add(self, other: "Held") -> None:
        """Add the sums of others."""
        self.records += other.records
        self.stored_bytes += other.stored_bytes
        self.logical_bytes += other.logical_bytes


@dataclass(slots=True)
class Sharing:
    """``by_mask``: bit N of a mask stands for ``holders[N]``; each record is in just one mask."""

    holders: Sequence[Holder]
    by_mask: dict[int, Held] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    gap_count: int = 0

    def reached(self) -> list[Held]:
        """Return, for each holder, all that it reaches."""
        found = [Held() for _ in self.holders]
        for mask, held in self.by_mask.items():
            for number in bits(mask):
                found[number].add(held)
        return found

    def only_in(self, numbers: Iterable[int]) -> Held:
        """Return what no other holder than these reaches."""
        inside = sum(1 << number for number in set(numbers))
        found = Held()
        for mask, held in self.by_mask.items():
            if not mask & ~inside:
                found.add(held)
        return found

    def first_in(self) -> list[Held]:
        """Return, for each holder, what it reaches and none before it does."""
        found = [Held() for _ in self.holders]
        for mask, held in self.by_mask.items():
            found[(mask & -mask).bit_length() - 1].add(held)
        return found

    def matrix(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the stored bytes that each two of these holders both reach."""
        wanted = sum(1 << number for number in set(numbers))
        merged: Counter[int] = Counter()
        for mask, held in self.by_mask.items():
            merged[mask & wanted] += held.stored_bytes
        place = {number: index for index, number in enumerate(numbers)}
        rows = [[0] * len(numbers) for _ in numbers]
        for mask, stored_bytes in merged.items():
            inside = [place[number] for number in bits(mask)]
            for one in inside:
                row = rows[one]
                for other in inside:
                    row[other] += stored_bytes
        return rows


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, the lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def pins_by_owner(txn: ReadTxn) -> dict[bytes, tuple[RecordId, ...]]:
    """Return what each owner of pins holds."""
    found: defaultdict[bytes, list[RecordId]] = defaultdict(list)
    for key, _count in txn.scan(Table.PINS):
        owner, record_id = split_pin_key(key)
        found[owner].append(record_id)
    return {owner: tuple(record_ids) for owner, record_ids in found.items()}


def measure_sharing(
    store: Store, holders: Sequence[Holder], progress: OnProgress | None = None
) -> Sharing:
    """Walk all that the holders reach, and add it up by who reaches it."""
    return _Walk(store, holders, progress).run()


class _Walk:
    """Nodes are records that refer to others; chunks are counted where they are referred to."""

    def __init__(
        self, store: Store, holders: Sequence[Holder], progress: OnProgress | None
    ) -> None:
        self._store = store
        self._progress = progress
        self._sharing = Sharing(holders)
        self._nodes: dict[RecordId, int] = {}
        self._children: list[array[int]] = []
        self._masks: list[int] = []
        self._bad: dict[int, str] = {}
        self._parts = [bytearray() for _ in range(_PARTS)]
        self._pack_masks: defaultdict[int, int] = defaultdict(int)
        self._pack_tables: dict[int, tuple[int, RecordId | None]] = {}
        self._missing: dict[RecordId, int] = {}
        self._total = 0
        self._done = 0

    def run(self) -> Sharing:
        with self._store.reading() as txn:
            self._total = txn.count(Table.RECORDS)
        order = self._explore()
        for node in order:  # parents first
            mask = self._masks[node]
            for child in self._children[node]:
                self._masks[child] |= mask
        for node, why in self._bad.items():
            self._note_gap(why, self._masks[node])
        for part in range(_PARTS):
            self._add_part(part)
        self._add_chunk_tables()
        for record_id, mask in self._missing.items():
            self._note_gap(f"record {record_id.hex()} is not in the store", mask)
        return self._sharing

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def _note_gap(self, what: str, mask: int) -> None:
        self._sharing.gap_count += 1
        if len(self._sharing.gaps) < GAPS_MAX:
            names = tuple(str(self._sharing.holders[number]) for number in bits(mask))
            self._sharing.gaps.append(Gap(what, names))

    # --- the graph ----------------------------------------------------------------------------

    def _explore(self) -> list[int]:
        """Read each record that refers to others once; return the nodes, parents first."""
        left: list[int] = []
        for number, holder in enumerate(self._sharing.holders):
            for record_id in holder.roots:
                kind = self._kind_of(record_id)
                if kind is None:
                    self._missing[record_id] = self._missing.get(record_id, 0) | 1 << number
                    continue
                node, is_new = self._node(record_id)
                self._masks[node] |= 1 << number
                if is_new:
                    left += self._explore_below(record_id, kind, node)
        left.reverse()
        return left

    def _explore_below(self, record_id: RecordId, kind: RecordKind, node: int) -> Iterator[int]:
        """Walk from one root; yield nodes whose children have all been yielded."""
        pending = [(node, iter(self._read(record_id, kind, node)))]
        while pending:
            parent, children = pending[-1]
            for child_id, child_kind in children:
                child, is_new = self._node(child_id)
                self._children[parent].append(child)
                if is_new:
                    pending.append((child, iter(self._read(child_id, child_kind, child))))
                    break
            else:
                pending.pop()
                yield parent

    def _kind_of(self, record_id: RecordId) -> RecordKind | None:
        """Return the kind of a root; None when there is no row that says so."""
        row = self._store.db.record_row(record_id)
        with suppress(CorruptError):
            return decode_location(row)[0].kind if row is not None else None
        return None

    def _node(self, record_id: RecordId) -> tuple[int, bool]:
        known = self._nodes.get(record_id)
        if known is not None:
            return known, False
        node = self._nodes[record_id] = len(self._masks)
        self._masks.append(0)
        self._children.append(array("I"))
        self._parts[record_id[0]] += _pack_reference(record_id, node)
        return node, True

    def _read(
        self, record_id: RecordId, kind: RecordKind, node: int
    ) -> list[tuple[RecordId, RecordKind]]:
        """Note the chunks that a record refers to; return the other records that it does."""
        self._tell(1)
        if kind is RecordKind.CHUNK:
            return []  # pinned by a view's journal
        try:
            return self._read_payload(kind, self._store.get(record_id, kind), node)
        except StoreError as exc:
            self._bad[node] = str(exc)
            return []

    def _read_payload(  # noqa: C901  one case a kind
        self, kind: RecordKind, payload: bytes, node: int
    ) -> list[tuple[RecordId, RecordKind]]:
        entries: Iterable[TreeEntry] = ()
        found: list[tuple[RecordId, RecordKind]] = []
        if kind is RecordKind.CHUNK_TABLE:  # pinned, so its pack stays whole
            table = decode_chunk_table(payload)
            self._note_chunks([chunk.chunk_id for chunk in table.chunks], node)
        match kind:
            case RecordKind.RECIPE_PAGE:
                self._note_chunks(extent_ids(payload), node)
            case RecordKind.RECIPE:
                found = [(page, RecordKind.RECIPE_PAGE) for page, _ in decode_recipe(payload)]
            case RecordKind.TREE:
                tree = decode_tree(payload)
                entries = tree.entries
                found = [(page.page_id, RecordKind.TREE_PAGE) for page in tree.pages]
            case RecordKind.TREE_PAGE:
                entries = decode_tree_page(payload)
            case RecordKind.SNAPSHOT:
                entries = (decode_snapshot(payload).root,)
            case RecordKind.VIEW_ROOT:
                entries = (decode_view_root(payload).root,)
        for entry in entries:
            if entry.is_directory:
                found += [(tree_id, RecordKind.TREE) for tree_id in entry_references(entry)]
            elif len(entry.content) == ID_BYTES and entry.is_file:
                found.append((RecordId(entry.content), RecordKind.RECIPE))
            else:
                self._note_chunks(entry_references(entry), node)
        return found

    def _note_chunks(self, chunk_ids: Iterable[RecordId], node: int) -> None:
        for chunk_id in chunk_ids:
            if chunk_id != HOLE:
                self._parts[chunk_id[0]] += _pack_reference(chunk_id, node)

    # --- the sums -----------------------------------------------------------------------------

    def _add_part(self, part: int) -> None:
        """Add up the records whose ids start with one byte, and forget their references."""
        masks: dict[bytes, int] = {}
        for record_id, node in _REFERENCE.iter_unpack(self._parts[part]):
            masks[record_id] = masks.get(record_id, 0) | self._masks[node]
        self._parts[part] = bytearray()
        with self._store.reading() as txn:
            for identity in sorted(masks):
                self._add_sound_record(txn, RecordId(identity), masks[identity])
        self._tell(sum(1 for identity in masks if identity not in self._nodes))

    def _add_sound_record(self, txn: ReadTxn, record_id: RecordId, mask: int) -> None:
        try:
            self._add_record(txn, record_id, mask)
        except CorruptError as exc:
            self._note_gap(f"record {record_id.hex()}: {exc}", mask)

    def _add_record(self, txn: ReadTxn, record_id: RecordId, mask: int) -> None:
        row = txn.get(Table.RECORDS, record_id)
        if row is None:
            if self._nodes.get(record_id) not in self._bad:
                self._missing[record_id] = self._missing.get(record_id, 0) | mask
            return
        location, _count = decode_location(row)
        header_bytes, _table = self._pack(txn, location.pack)
        self._pack_masks[location.pack] |= mask
        held = self._sharing.by_mask.setdefault(mask, Held())
        held.records += 1
        held.stored_bytes += location.stored_bytes + header_bytes
        if location.kind is RecordKind.CHUNK:
            held.logical_bytes += location.logical_bytes

    def _pack(self, txn: ReadTxn, pack: int) -> tuple[int, RecordId | None]:
        """Return the bytes of a header in a pack, and the pack's chunk table."""
        known = self._pack_tables.get(pack)
        if known is None:
            stored = txn.get(Table.PACKS, encode_pack_key(pack))
            row = decode_pack_row(stored) if stored is not None else None
            framed = row is None or row.kind is PackKind.RECORDS
            known = HEADER_BYTES if framed else 0, row.chunk_table if row is not None else None
            self._pack_tables[pack] = known
        return known

    def _add_chunk_tables(self) -> None:
        """A chunk table is kept as long as anything in its pack is."""
        for pack, mask in list(self._pack_masks.items()):
            table_id = self._pack_tables[pack][1]
            if table_id is not None and table_id not in self._nodes:
                with self._store.reading() as txn:
                    self._add_sound_record(txn, table_id, mask)
