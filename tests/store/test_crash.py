"""A machine may stop at any moment: what was committed is whole, and the store opens by itself.

Method: a history of puts, verbatim packs, frees and punches runs on a ``FaultyDisk`` that stops at
its n-th changing call, for every n; then nothing, all or a random part of what was not synced is
taken back, and the store is opened again and compared with what had been acknowledged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dedupfs.errors import UsageError
from dedupfs.model import Extent, RecordId
from dedupfs.store import Store, inventory
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead, release_dead_owners
from tests.fakes import Crashed, FaultyDisk
from tests.store.payloads import CHUNK, VIEW, noise, pin
from tests.store.recount import recount

pytestmark = pytest.mark.unmeasured


@dataclass
class History:
    """What happened until the crash.

    ``held``: acknowledged as pinned. ``unsure``: in the transaction that was under way.
    """

    held: dict[RecordId, bytes] = field(default_factory=dict)
    unsure: dict[RecordId, bytes] = field(default_factory=dict)

    def run(self, path: Path, disk: FaultyDisk) -> None:
        with Store.create(
            path,
            compression="none",
            hash_seed=7,
            chunk_bytes_average=1024,
            pack_bytes_max=9000,
            disk=disk,
        ) as store:
            for number in range(4):
                self.hold(store, {seed: noise(seed) for seed in range(number * 4, number * 4 + 4)})
            self.hold_verbatim(store, path.parent / "file", noise("file", 9000))
            self.let_go(store, list(self.held)[1:8] + list(self.held)[10::2])
            while free_dead(store, 3).more:
                pass
            while punch(store, 2):
                pass
            self.hold(store, {seed: noise(seed) for seed in range(50, 60)})

    def hold(self, store: Store, payloads: dict[int, bytes]) -> None:
        added = {store.put(CHUNK, payload): payload for payload in payloads.values()}
        self.commit(store, added)

    def hold_verbatim(self, store: Store, file: Path, payload: bytes) -> None:
        added: dict[RecordId, bytes] = {}
        chunks = []
        for start in range(0, len(payload), 3000):
            part = payload[start : start + 3000]
            chunk_id, known = store.probe_chunk(part)
            assert not known
            added[chunk_id] = part
            chunks.append((start, Extent(chunk_id, len(part))))
        source = store.disk.open(file, create=True)
        store.disk.pwrite(source, [payload], 0)
        store.put_verbatim(file, chunks)
        self.commit(store, added)
        store.disk.unlink(file)

    def commit(self, store: Store, added: dict[RecordId, bytes]) -> None:
        self.unsure = added
        pin(store, added)
        self.held |= added
        self.unsure = {}

    def let_go(self, store: Store, ids: list[RecordId]) -> None:
        for record_id in ids:
            self.unsure[record_id] = self.held.pop(record_id)
        with store.transaction() as txn:
            for record_id in ids:
                txn.unpin(VIEW, record_id)
        self.unsure = {}


def calls_of_a_whole_history(memory_path: Path) -> int:
    disk = FaultyDisk()
    History().run(memory_path / "whole" / "store", disk)
    return disk.calls


def crash_in_history(path: Path, crash_at: int, loss: str) -> History:
    """Run a history until the n-th call, then do to the files what the crash does."""
    from dedupfs.store import db

    disk = FaultyDisk(crash_at=crash_at)
    history = History()
    opened: list[db.Database] = []
    plain_init = db.Database.__init__

    def init(self: db.Database, *args: object, **kwargs: object) -> None:
        plain_init(self, *args, **kwargs)  # type: ignore[arg-type]
        opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db.Database, "__init__", init)
        with pytest.raises(Crashed):
            history.run(path, disk)
    disk.crash()
    for database in opened:
        database.close()
    if loss == "all":
        disk.lose_unsynced()
    elif loss == "some":
        disk.lose_unsynced(random.Random(crash_at))
    return history


def check_what_is_left(path: Path, history: History) -> None:
    try:
        store = Store.open(path)
    except UsageError:  # it never became a store
        assert not history.held
        Store.create(path).close()
        return
    with store:
        release_dead_owners(store)
        assert {key: store.get(key, CHUNK) for key in history.held} == history.held
        for record_id, payload in history.unsure.items():
            if store.has(record_id):
                assert store.get(record_id, CHUNK) == payload
        recount(store)
        pin(store, [store.put(CHUNK, noise("after the crash"))])
        while free_dead(store, 100).more:
            pass
        while punch(store, 100):
            pass
        assert {key: store.get(key, CHUNK) for key in history.held} == history.held
        recount(store)
        release_dead_owners(store)
        with store.reading() as txn:
            packs = dict(inventory.indexed_packs(txn))
        files = {pack for pack, _, _ in inventory.pack_files(store)}
        # A new pack's row comes before its file.
        assert {pack for pack, row in packs.items() if row.committed_bytes} <= files <= set(packs)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nothing", "all", "some"])
def test_committed_data_survives_a_crash_at_every_call(memory_path: Path, loss: str) -> None:
    (memory_path / "whole").mkdir()
    calls = calls_of_a_whole_history(memory_path)
    assert calls > 60
    for crash_at in range(1, calls + 1):
        directory = memory_path / f"{crash_at}"
        directory.mkdir()
        history = crash_in_history(directory / "store", crash_at, loss)
        try:
            check_what_is_left(directory / "store", history)
        except BaseException as exc:
            exc.add_note(f"crash at call {crash_at} of {calls}")
            raise
