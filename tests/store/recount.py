"""The postcondition of every store test: everything the index says is counted and read anew."""

from __future__ import annotations

import itertools
from collections import Counter

from dedupfs.format.pack import HEADER_BYTES, PACK_HEADER_BYTES
from dedupfs.model import PackKind
from dedupfs.store import Store, inventory
from dedupfs.store.scan import Damage, ScannedFree, ScannedRecord

Span = tuple[int, int]


def recount(store: Store) -> None:
    """Fail unless references, live bytes, free ranges, packs and payloads agree."""
    with store.reading() as txn:
        records = list(inventory.indexed_records(txn))
        packs = dict(inventory.indexed_packs(txn))
        free = list(inventory.free_ranges(txn))
        dead = set(inventory.dead_records(txn))
        wanted = inventory.count_references(store, txn)
    assert not wanted.unreadable
    assert {r.record_id: r.references for r in records if r.references} == +wanted.counts
    assert dead == {r.record_id for r in records if not r.references}

    live: Counter[int] = Counter()
    spans: dict[int, list[Span]] = {}
    starts: dict[int, set[int]] = {}
    for record in records:
        place = record.location
        header_bytes = 0 if packs[place.pack].kind == PackKind.VERBATIM else HEADER_BYTES
        start, stop = place.pack_offset - header_bytes, place.pack_offset + place.stored_bytes
        live[place.pack] += stop - start
        spans.setdefault(place.pack, []).append((start, stop))
        starts.setdefault(place.pack, set()).add(start)
        inventory.verify(store, record.record_id, place)
    for pack, row in packs.items():
        assert row.live_bytes == live[pack]
    for gap in free:
        spans.setdefault(gap.pack, []).append((gap.start, gap.stop))
    for pack, taken in spans.items():
        ordered = sorted(taken)
        assert ordered[-1][1] <= packs[pack].committed_bytes
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(ordered))

    for pack, row in packs.items():
        if row.kind == PackKind.RECORDS:
            gaps = [(p.start, p.stop) for p in free if p.pack == pack]
            check_scan(store, pack, row.committed_bytes, starts.get(pack, set()), gaps)


def check_scan(store: Store, pack: int, stop: int, starts: set[int], free: list[Span]) -> None:
    """Fail unless a walk over the pack finds every live record, and nothing that is not free."""
    if stop <= PACK_HEADER_BYTES:
        return
    found = list(inventory.scan_pack(store, pack, stop))
    assert not [one for one in found if isinstance(one, Damage)]
    walked = {one.start for one in found if isinstance(one, ScannedRecord)}
    assert starts <= walked
    for one in found:
        is_free = isinstance(one, ScannedFree) or one.start not in starts
        covered = any(start <= one.start and one.stop <= stop for start, stop in free)
        assert covered == is_free
