"""A full disk is StoreFullError; the store stays readable, and what frees space still works."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.model import RecordId
from dedupfs.store import Store
from dedupfs.store.holes import punch
from dedupfs.store.packs import BUFFER_BYTES
from dedupfs.store.space import free_dead
from tests.fakes import FaultyDisk
from tests.store.payloads import CHUNK, noise, pin, put_pinned, unpin
from tests.store.recount import recount


def test_a_full_disk_refuses_new_data_and_goes_on_when_there_is_space(path: Path) -> None:
    disk = FaultyDisk()
    with Store.create(path, compression="none", disk=disk) as store:
        old = put_pinned(store, [noise(1), noise(2)])
        disk.full = True
        new = store.put(CHUNK, noise(3))
        with pytest.raises(StoreFullError) as caught:
            pin(store, [new])
        assert caught.value.errno == errno.ENOSPC
        assert [store.get(record_id, CHUNK) for record_id in old] == [noise(1), noise(2)]
        assert store.get(new, CHUNK) == noise(3)
        disk.full = False
        pin(store, [new])
        assert store.get(new, CHUNK) == noise(3)
        recount(store)


def test_puts_beyond_the_buffer_fail_one_by_one_and_nothing_is_mixed(path: Path) -> None:
    disk = FaultyDisk()
    with Store.create(path, compression="none", disk=disk) as store:
        put_pinned(store, [noise(0)])
        disk.full = True
        kept: dict[RecordId, bytes] = {}
        failed = 0
        for seed in range(1, 10):
            payload = noise(seed, BUFFER_BYTES // 4)
            try:
                kept[store.put(CHUNK, payload)] = payload
            except StoreFullError:
                failed += 1
        assert failed
        assert {key: store.get(key, CHUNK) for key in kept} == kept
        disk.full = False
        pin(store, kept)
        assert {key: store.get(key, CHUNK) for key in kept} == kept
        recount(store)


def test_space_can_be_freed_on_a_full_disk(path: Path) -> None:
    disk = FaultyDisk()
    with Store.create(path, compression="none", disk=disk) as store:
        ids = put_pinned(store, [noise(seed, 20_000) for seed in range(4)])
        lost = store.put(CHUNK, noise(9))
        disk.full = True
        with pytest.raises(StoreFullError):
            unpin(store, ids[1:3])
        store.drop_pending()
        unpin(store, ids[1:3])
        assert free_dead(store, 10).records == 2
        disk.full = False  # a free header is written over what exists, which needs no space
        assert punch(store, 10) == 1
        assert not store.has(lost)
        recount(store)


@pytest.mark.allow_log("pack stays writable", "pack not punched")
def test_any_failing_call_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    """Method: one call fails, at every place in turn; what failed is simply done again."""

    def work(directory: Path, disk: FaultyDisk, failing: int) -> None:
        with Store.create(directory, compression="none", pack_bytes_max=3000, disk=disk) as store:
            disk.calls = 0
            disk.log.clear()
            disk.fail_at = frozenset([failing])
            held: dict[RecordId, bytes] = {}
            for number in range(4):
                added: dict[RecordId, bytes] = {}
                for seed in range(number * 2, number * 2 + 2):
                    added[again(lambda seed=seed: store.put(CHUNK, noise(seed)))] = noise(seed)
                try:
                    pin(store, added)
                except StoreError:  # a sync that failed gives up what is pending: put it again
                    for payload in added.values():
                        store.put(CHUNK, payload)
                    pin(store, added)
                held |= added
            gone = list(held)[::2]
            again(lambda: unpin(store, gone))
            again(lambda: free_dead(store, 10))
            again(lambda: punch(store, 10))
            again(lambda: punch(store, 10))
            left = {key: held[key] for key in held if key not in gone}
            assert {key: store.get(key, CHUNK) for key in left} == left
            recount(store)
            disk.fail_at = frozenset()

    def again(step: object) -> RecordId:
        assert callable(step)
        try:
            return RecordId(step())
        except StoreError:
            return RecordId(step())

    disk = FaultyDisk()
    work(tmp_path / "whole", disk, 0)
    for number in range(1, disk.calls + 1):
        faulty = FaultyDisk()
        try:
            work(tmp_path / f"{number}", faulty, number)
        except BaseException as exc:
            exc.add_note(f"call {number} failed: {faulty.log[number - 1]}")
            raise
