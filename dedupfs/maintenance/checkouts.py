"""What check and reindex do about checkouts: compare their pins, and bring them back.

Looks at manifests, pins and packs; files outside of the store are ``checkout verify``'s. Source:
docs/format.md, "Checkouts".
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError, DedupfsError, MissingRecordError
from dedupfs.format.keys import (
    META_COUNTER,
    PackRow,
    decode_count,
    encode_count,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.manifest import HeldPack, Manifest
from dedupfs.format.pack import encode_chunk_table
from dedupfs.maintenance.problems import REINDEX, Problems
from dedupfs.model import PackKind, RecordKind
from dedupfs.namespace.checkouts import (
    CHECKOUT_COUNTER,
    checkout_owner,
    list_numbers,
    needed_pins,
    number_of_owner,
    read_checkout,
    read_checkouts,
    restore_pins,
)
from dedupfs.namespace.directory import CATALOG_SLOTS_START
from dedupfs.namespace.snapshots import SEQUENCE_COUNTER
from dedupfs.store import Store, Table
from dedupfs.store.inventory import open_pack

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RestoredCheckouts:
    """What reindex found of checkouts."""

    numbers: list[int] = field(default_factory=list)
    kept_packs: set[int] = field(default_factory=set)
    """Packs without a readable chunk table, which are kept for links that point at them."""
    lost: list[str] = field(default_factory=list)
    """What a manifest needs and the packs have no more, and manifests that cannot be read."""


def restore_checkouts(store: Store) -> RestoredCheckouts:
    """Pin in a new index what the manifests of all checkouts name."""
    restored = RestoredCheckouts()
    manifests, damaged = read_checkouts(store)
    for manifest in manifests:
        for held in manifest.packs:
            if _keep_without_table(store, held):
                restored.kept_packs.add(held.pack)
        lost = restore_pins(store, manifest)
        restored.lost += [f"checkout {manifest.number}: {what} is lost" for what in lost]
        restored.numbers.append(manifest.number)
    restored.lost += [f"checkout {found.number}: {found.why}" for found in damaged]
    numbers = [*restored.numbers, *(found.number for found in damaged)]
    _raise_counter(store, CHECKOUT_COUNTER, max(numbers, default=0))
    _raise_counter(store, SEQUENCE_COUNTER, max(_sequences_in(manifests), default=0))
    return restored


def _sequences_in(manifests: Iterable[Manifest]) -> Iterator[int]:
    """Yield the sequence numbers of the snapshots that manifests say their directories show.

    Of one that was removed nothing else may be left; a new one that got its number would be taken
    for it, and removed by the next dedupe of that directory.
    """
    for manifest in manifests:
        for shown in (manifest.now, manifest.next):
            if shown is not None and shown.sequence < CATALOG_SLOTS_START:
                yield shown.sequence


def _raise_counter(store: Store, name: str, number: int) -> None:
    """Let no number up to this one be given again."""
    key = META_COUNTER + name.encode()
    with store.transaction() as txn:
        row = txn.get(Table.META, key)
        known = decode_count(row) if row is not None else 0
        if number > known:
            txn.put(Table.META, key, encode_count(number))


def _keep_without_table(store: Store, held: HeldPack) -> bool:
    """Give a pack whose chunk table is lost an empty one: its file is still what links point at."""
    key = encode_pack_key(held.pack)
    with store.reading() as txn:
        if txn.get(Table.PACKS, key) is not None:
            return False
    try:
        file = open_pack(store, held.pack, PackKind.VERBATIM)
    except CorruptError:  # it is missing
        return False
    size = store.disk.size(file)
    file.close()
    table_id = store.put(RecordKind.CHUNK_TABLE, encode_chunk_table(held.pack, size, []))
    with store.transaction() as txn:
        row = PackRow(PackKind.VERBATIM, True, size, 0, table_id)
        txn.put(Table.PACKS, key, encode_pack_row(row))
        txn.add_reference(table_id)
    return True


def _is_still(store: Store, manifest: Manifest) -> bool:
    try:
        return read_checkout(store, manifest.number) == manifest
    except DedupfsError:
        return False


def check_checkouts(store: Store, owners: set[bytes], problems: Problems) -> int:
    """Compare manifests with pins; return how many checkouts there are.

    ``owners``: of all pins. Pins that no manifest names are no problem: gc drops them.
    """
    manifests, damaged = read_checkouts(store)
    for found in damaged:
        what = f"its manifest cannot be read, so that reindex would lose what it holds: {found.why}"
        advice = f"dedupfs checkout rm {found.number}; then make it again"
        problems.add("checkout", f"checkout {found.number}", what, advice)
    for manifest in manifests:
        what = _what_is_missing(store, manifest)
        if what and _is_still(store, manifest):  # else it was changed while we looked
            problems.add("checkout", f"checkout {manifest.number}", what, REINDEX)
    known = {manifest.number for manifest in manifests}
    strange = owners - {checkout_owner(number) for number in known}
    for owner in sorted(strange):
        if number_of_owner(owner) is None:
            problems.add("pin", f"owner {owner!r}", "nobody has such a name")
    return len(list_numbers(store))


def _what_is_missing(store: Store, manifest: Manifest) -> str:
    """Compare with pins that are younger than the manifest: there are always those it names."""
    owner = checkout_owner(manifest.number)
    with store.reading() as txn:
        try:
            needed = needed_pins(store, txn, manifest)
        except MissingRecordError as exc:
            return f"its links point at a pack that is not kept: {exc}"
        missing = [i for i in needed if txn.get(Table.PINS, owner + i) is None]
    return f"{len(missing)} of its {len(needed)} pins are missing" if missing else ""
