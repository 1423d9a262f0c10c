"""Which record lies where, pack by pack: the index's rows, turned round, as of one moment.

The index has no order by pack, so walkers that read packs front to back sort it here: 24 bytes a
record, packed, and Python objects for one pack at a time. Reads no pack.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError
from dedupfs.format.keys import (
    PackRow,
    decode_free,
    decode_location,
    decode_pack_key,
    decode_pack_row,
)
from dedupfs.maintenance.pack_audit import FreeSpan, Span, span_of
from dedupfs.model import Location, PackKind, RecordId
from dedupfs.store import ReadTxn, Table

_PLACE = struct.Struct(">Q16s")  # pack offset of the payload, record id: sorts by offset


@dataclass(frozen=True, slots=True)
class Member:
    """One record of a pack, as its row has it."""

    span: Span
    location: Location
    references: int


@dataclass(slots=True)
class Census:
    """All packs and the places of all records."""

    packs: dict[int, PackRow] = field(default_factory=dict)
    free: dict[int, list[FreeSpan]] = field(default_factory=lambda: defaultdict(list))
    places: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    bad_rows: list[tuple[bytes, str]] = field(default_factory=list)
    """Rows of RECORDS, PACKS and FREE that are none, with the reason."""
    records: int = 0

    def kind(self, pack: int) -> PackKind:
        """Return what kind of pack it is; one without a row is taken for a record pack."""
        row = self.packs.get(pack)
        return row.kind if row is not None else PackKind.RECORDS

    def live_bytes(self) -> int:
        """Return how many bytes of packs hold records, by the packs' own rows."""
        return sum(row.live_bytes for row in self.packs.values())

    def members(self, txn: ReadTxn, pack: int) -> list[Member]:
        """Return the records of one pack in order of offset, with their rows as ``txn`` has them.

        A record that is gone or has moved since the census is left out.
        """
        kind = self.kind(pack)
        found = []
        for _offset, identity in sorted(_PLACE.iter_unpack(self.places.get(pack, b""))):
            row = txn.get(Table.RECORDS, identity)
            if row is None:
                continue
            location, references = decode_location(row)
            if location.pack == pack:
                span = span_of(RecordId(identity), location, kind)
                found.append(Member(span, location, references))
        return found


def take_census(txn: ReadTxn) -> Census:
    """Read RECORDS, PACKS and FREE once."""
    census = Census()
    for key, row in txn.scan(Table.PACKS):
        try:
            census.packs[decode_pack_key(key)] = decode_pack_row(row)
        except CorruptError as exc:
            census.bad_rows.append((key, str(exc)))
    for key, row in txn.scan(Table.FREE):
        try:
            pack, start, stop, punched = decode_free(key, row)
        except CorruptError as exc:
            census.bad_rows.append((key, str(exc)))
        else:
            census.free[pack].append(FreeSpan(start, stop, punched))
    for key, location in _locations(txn, census):
        census.records += 1
        census.places[location.pack] += _PLACE.pack(location.pack_offset, key)
    return census


def _locations(txn: ReadTxn, census: Census) -> Iterator[tuple[bytes, Location]]:
    for key, row in txn.scan(Table.RECORDS):
        try:
            location, _references = decode_location(row)
        except CorruptError as exc:
            census.bad_rows.append((key, str(exc)))
        else:
            yield key, location
