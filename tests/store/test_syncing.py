"""One sync serves all who wait for it, and a failed one is never forgotten."""

import threading
from pathlib import Path

import pytest

from dedupfs.errors import StoreError
from dedupfs.store.syncing import Syncer

PATH = Path("file")
LIMIT_S = 60


def test_who_comes_while_a_sync_is_under_way_shares_the_next_one() -> None:
    begun, end = threading.Event(), threading.Event()
    count = 0

    def sync() -> None:
        nonlocal count
        count += 1
        begun.set()
        assert end.wait(LIMIT_S)

    syncer = Syncer(PATH, sync)
    syncer.changed()
    threads = [threading.Thread(target=syncer.sync, args=(1,))]
    threads[0].start()
    assert begun.wait(LIMIT_S)
    syncer.changed()  # may have come too late for the sync that is under way
    threads += [threading.Thread(target=syncer.sync, args=(2,)) for _ in range(5)]
    for thread in threads[1:]:
        thread.start()
    assert not syncer.is_synced(1)
    end.set()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    assert count == 2
    assert syncer.is_synced(2)


def test_what_did_not_change_is_not_synced_again() -> None:
    calls: list[int] = []
    syncer = Syncer(PATH, lambda: calls.append(1))
    assert syncer.is_synced(0)
    for _ in range(3):
        syncer.changed()
        for _ in range(3):
            syncer.sync(syncer.changes)
    assert len(calls) == 3


def test_a_failure_is_told_to_everybody_until_all_is_durable_in_another_way() -> None:
    failures = [StoreError("injected")]

    def sync() -> None:
        if failures:
            raise failures.pop()

    syncer = Syncer(PATH, sync)
    syncer.changed()
    with pytest.raises(StoreError, match="injected"):
        syncer.sync(1)
    for changes in (0, 1):
        assert not syncer.is_synced(changes)
        with pytest.raises(StoreError, match="an earlier sync failed"):
            syncer.sync(changes)
    syncer.renew()
    syncer.sync(1)
    assert syncer.is_synced(1)
