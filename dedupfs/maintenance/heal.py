"""Damaged records are looked for elsewhere in the store: in rows, and under other salts.

- A record whose header alone is damaged has its own bytes. Readers find them by the index, but a
  rebuild would not find the record.
- The row of a snapshot holds the payload of its SNAPSHOT record.
- Bytes that are put again while their record is damaged are stored under another salt, because a
  damaged record compares unequal: import the files again, and their old record can be mended.

Reads nothing but such candidates and what they could mend. Source: docs/format.md, "Ids".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from dedupfs.errors import StoreError
from dedupfs.format.keys import decode_location
from dedupfs.model import HOLE, ID_BYTES, Location, RecordId, RecordKind
from dedupfs.store import Store, Table
from dedupfs.store.inventory import payload_of
from dedupfs.store.mend import mend

_UNSALTED = (b"", b"\0")
"""The salt's byte of a row (``format.keys``) that names the record of its bytes alone."""


@dataclass(frozen=True, slots=True)
class Healed:
    """A damaged record and where its bytes are."""

    record_id: RecordId
    kind: RecordKind
    source: str

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.kind.name.lower()} {self.record_id.hex()} is written again from {self.source}"
        )


def heal(store: Store, suspects: Iterable[RecordId] = (), *, dry_run: bool = False) -> list[Healed]:
    """Write damaged records again of which the store has the bytes; return them.

    ``suspects``: records of which check found the header or the payload to be damaged.
    """
    healed = []
    for record_id, payload, source in chain(_readable(store, suspects), _candidates(store)):
        location = store.locate(record_id)
        if not dry_run:
            mend(store, record_id, payload)
        healed.append(Healed(record_id, location.kind, source))
    return healed


def _readable(store: Store, suspects: Iterable[RecordId]) -> Iterator[tuple[RecordId, bytes, str]]:
    """Yield the suspects whose payload is sound: so their header is not."""
    for record_id in suspects:
        row = store.db.record_row(record_id)
        if row is None:
            continue
        try:
            payload = bytes(payload_of(store, record_id, decode_location(row)[0]))
        except StoreError:
            continue
        yield record_id, payload, "its own bytes, whose header is damaged"


def _damaged(store: Store, record_id: RecordId) -> Location | None:
    """Return where a record lies, if it cannot be read there."""
    row = store.db.record_row(record_id)
    if row is None:
        return None
    try:
        location = decode_location(row)[0]
    except StoreError:
        return None  # a rebuild finds out where it is
    try:
        payload_of(store, record_id, location)
    except StoreError:
        return location
    return None


def _candidates(store: Store) -> Iterator[tuple[RecordId, bytes, str]]:
    """Yield damaged records with a payload that was found elsewhere; one at a time in memory.

    The rows are those of the beginning: what is mended meanwhile changes them.
    """
    for record_id, payload, source in _payloads(store):
        location = _damaged(store, record_id)
        if location is not None and record_id == store.digest(
            location.kind, payload, location.salt
        ):
            yield record_id, payload, source


def _payloads(store: Store) -> Iterator[tuple[RecordId, bytes, str]]:
    """Yield what may be the payload of a record, and where it was found."""
    with store.reading() as txn:
        snapshots = list(txn.scan(Table.SNAPSHOTS))
        salted = [(key, row) for key, row in txn.scan(Table.RECORDS) if row[2:3] not in _UNSALTED]
    for key, row in snapshots:
        name = key.decode(errors="replace")
        yield RecordId(row[:ID_BYTES]), row[ID_BYTES:], f"the row of snapshot {name}"
    for key, row in salted:
        yield from _under_lower_salts(store, RecordId(key), row)


def _under_lower_salts(
    store: Store, record_id: RecordId, row: bytes
) -> Iterator[tuple[RecordId, bytes, str]]:
    try:
        location = decode_location(row)[0]
        payload = bytes(payload_of(store, record_id, location))
    except StoreError:
        return
    for salt in range(location.salt):
        lower = store.digest(location.kind, payload, salt)
        if lower != HOLE and store.db.record_row(lower) is not None:
            yield lower, payload, f"its copy {record_id.hex()}"
