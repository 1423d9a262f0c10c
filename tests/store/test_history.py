"""Any history of puts, pins, frees, punches and restarts leaves what a dict would hold.

Method: Hypothesis drives a store and a dict; chunks share few contents, so that they meet again
after being freed; pages refer to chunks, so that references cascade. At the end the store is
counted anew, and its index is rebuilt from the packs alone and counted again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dedupfs.model import Extent, RecordId, RecordKind
from dedupfs.store import Store
from dedupfs.store.holes import punch
from dedupfs.store.rebuild import rebuild
from dedupfs.store.space import free_dead, release_dead_owners
from tests.store.payloads import CHUNK, VIEW, noise, piece, put_page
from tests.store.recount import recount

pytestmark = pytest.mark.unmeasured

SEEDS = st.integers(0, 12)


def content(seed: int) -> bytes:
    """Return one of few contents; some compress."""
    return noise(seed, 200) * (1 + seed % 3) + bytes([seed])


class StoreHistory(RuleBasedStateMachine):
    """``held``: what is pinned, with its count and content. ``put``: put, but not committed."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="history-"))
        self.held: dict[RecordId, list[bytes]] = {}
        self.put: list[tuple[RecordId, bytes]] = []
        self.pages: set[RecordId] = set()
        self.files = 0

    @initialize(pack_bytes_max=st.sampled_from([1, 2000, 1 << 20]))
    def make(self, pack_bytes_max: int) -> None:
        self.store = Store.create(
            self.directory / "store",
            chunk_bytes_average=1024,
            pack_bytes_max=pack_bytes_max,
            hash_seed=1,
        )

    @rule(seed=SEEDS)
    def put_chunk(self, seed: int) -> None:
        payload = content(seed)
        self.put.append((self.store.put(CHUNK, payload), payload))

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=4))
    def put_a_page(self, seeds: list[int]) -> None:
        chunks = [self.store.put(CHUNK, content(seed)) for seed in seeds]
        page = put_page(self.store, [(one, 1) for one in chunks])
        self.pages.add(page)
        self.put.append((page, self.store.get(page, RecordKind.RECIPE_PAGE)))

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=4))
    def put_a_file(self, seeds: list[int]) -> None:
        self.files += 1
        file = self.directory / f"{self.files}"
        file.write_bytes(b"".join(content(seed) for seed in seeds))
        chunks, start = [], 0
        for seed in seeds:
            chunk_id, known = self.store.probe_chunk(content(seed))
            if not known:
                chunks.append((start, Extent(chunk_id, len(content(seed)))))
            self.put.append((chunk_id, content(seed)))
            start += len(content(seed))
        self.store.put_verbatim(file, chunks)
        file.unlink()

    @rule()
    def commit(self) -> None:
        with self.store.transaction() as txn:
            for record_id, _ in self.put:
                txn.pin(VIEW, record_id)
        for record_id, payload in self.put:
            self.held.setdefault(record_id, []).append(payload)
        self.put.clear()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_one_go(self, data: st.DataObject) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.held)))
        with self.store.transaction() as txn:
            txn.unpin(VIEW, record_id)
            self.hold_all(self.put, txn.pin)
        self.take_held()
        self.held[record_id].pop()
        if not self.held[record_id]:
            del self.held[record_id]

    def hold_all(self, put: list[tuple[RecordId, bytes]], pin: object) -> None:
        assert callable(pin)
        for record_id, _ in put:
            pin(VIEW, record_id)

    def take_held(self) -> None:
        for record_id, payload in self.put:
            self.held.setdefault(record_id, []).append(payload)
        self.put.clear()

    @rule(limit=st.integers(1, 5))
    def free(self, limit: int) -> None:
        self.commit()
        free_dead(self.store, limit)

    @rule(limit=st.integers(1, 5))
    def give_back(self, limit: int) -> None:
        self.commit()
        punch(self.store, limit)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.put.clear()
        self.store = Store.open(self.directory / "store")
        release_dead_owners(self.store)

    @invariant()
    def everything_held_is_there(self) -> None:
        for record_id, payloads in self.held.items():
            self.check(record_id, payloads[0])
        for record_id, payload in self.put:
            self.check(record_id, payload)

    def check(self, record_id: RecordId, payload: bytes) -> None:
        if record_id in self.pages:
            assert self.store.get(record_id, RecordKind.RECIPE_PAGE) == payload
        else:
            assert self.store.get(record_id, CHUNK) == payload
            assert self.store.read([piece(record_id, len(payload) - 1, 1)]) == payload[1:]

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.commit()
                recount(self.store)
                self.store.close()
                self.rebuild()
        finally:
            shutil.rmtree(self.directory)

    def rebuild(self) -> None:
        shutil.rmtree(self.directory / "store" / "index")
        with Store.open(self.directory / "store", create_index=True) as self.store:
            found = rebuild(self.store)
            assert not found.damaged
            assert not found.orphans
            self.everything_held_is_there()
            self.hold_again()
            while free_dead(self.store, 100).records:
                pass
            recount(self.store)
            self.everything_held_is_there()

    def hold_again(self) -> None:
        """Pin what the lost index had pinned, as roots do, before what nobody wants is freed.

        A scan finds again what was freed and not erased yet; what that refers to may be gone, so
        that counts are whole only when such records are freed once more.
        """
        with self.store.transaction() as txn:
            for record_id in self.held:
                txn.pin(VIEW, record_id)


TestStoreHistory = StoreHistory.TestCase
TestStoreHistory.settings = settings(max_examples=60, stateful_step_count=30)
