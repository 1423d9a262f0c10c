"""P3: a hash match is a hint. With a hash of one byte everything collides, and nothing is mixed.

Method: a Store whose ids are the first byte of the real digest, so that 255 ids serve everything.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.errors import MissingRecordError
from dedupfs.model import Extent, RecordId, RecordKind
from dedupfs.store import Store
from dedupfs.store.disk import Buffer
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead
from tests.store.payloads import CHUNK, VIEW, as_another_process, noise, pin, put_pinned, unpin
from tests.store.recount import recount


class WeakStore(Store):
    """A store with 256 ids."""

    def digest(self, kind: RecordKind, payload: Buffer, salt: int = 0) -> RecordId:
        return RecordId(super().digest(kind, payload, salt)[:1] + bytes(15))


@pytest.fixture
def weak(path: Path) -> Iterator[WeakStore]:
    with WeakStore.create(path, compression="none", hash_seed=7) as store:
        yield store
        recount(store)


def colliding(store: Store, count: int) -> list[bytes]:
    """Return payloads of one length that have the same id under salt 0."""
    wanted = store.digest(CHUNK, noise(0))
    payloads = [noise(0)]
    seed = 0
    while len(payloads) < count:
        seed += 1
        if store.digest(CHUNK, noise(seed)) == wanted:
            payloads.append(noise(seed))
    return payloads


def test_colliding_chunks_are_kept_apart(weak: WeakStore) -> None:
    payloads = [noise(seed, 100) for seed in range(120)]
    ids = put_pinned(weak, payloads)
    assert len(set(ids)) == len(payloads)
    assert [weak.get(record_id, CHUNK) for record_id in ids] == payloads
    assert [weak.put(CHUNK, payload) for payload in payloads] == ids


def test_zero_is_never_given_out_as_an_id(weak: WeakStore) -> None:
    ids = put_pinned(weak, [noise(seed, 50) for seed in range(150)])
    assert bytes(16) not in ids


def test_a_random_history_never_mixes_two_chunks(weak: WeakStore) -> None:
    choose = random.Random(3)
    expected: dict[RecordId, bytes] = {}
    for _ in range(300):
        if expected and choose.random() < 0.45:
            gone = choose.choice(list(expected))
            unpin(weak, [gone])
            del expected[gone]
            free_dead(weak, 100)
        else:
            payload = noise(choose.randrange(200), 60)
            if payload in expected.values():
                continue
            record_id = weak.put(CHUNK, payload)
            assert record_id not in expected
            pin(weak, [record_id])
            expected[record_id] = payload
    while punch(weak, 10):
        pass
    assert {key: weak.get(key, CHUNK) for key in expected} == expected


def test_a_chunk_for_a_verbatim_pack_gets_a_free_id(weak: WeakStore, tmp_path: Path) -> None:
    one, two = colliding(weak, 2)
    (first,) = put_pinned(weak, [one])
    second, known = weak.probe_chunk(two)
    assert not known
    assert second != first
    file = tmp_path / "file"
    file.write_bytes(two)
    weak.put_verbatim(file, [(0, Extent(second, len(two)))])
    pin(weak, [second])
    assert weak.get(first, CHUNK) == one
    assert weak.get(second, CHUNK) == two


def test_a_verbatim_pack_whose_chunks_collide_is_refused(weak: WeakStore, tmp_path: Path) -> None:
    one, two = colliding(weak, 2)
    taken = weak.digest(CHUNK, one)
    file = tmp_path / "file"
    file.write_bytes(one + two)
    chunks = [(0, Extent(taken, len(one))), (len(one), Extent(taken, len(two)))]
    with pytest.raises(MissingRecordError):
        weak.put_verbatim(file, chunks)
    ids = put_pinned(weak, [one, two])
    assert [weak.get(record_id, CHUNK) for record_id in ids] == [one, two]


def test_an_id_that_another_process_takes_first_is_put_again(weak: WeakStore) -> None:
    """Method: the other process's chunk is committed while ours is set aside, then put back."""
    one, two = colliding(weak, 2)
    mine = weak.put(CHUNK, one)
    with as_another_process(weak):
        assert put_pinned(weak, [two]) == [mine]
    with pytest.raises(MissingRecordError), weak.transaction() as txn:
        txn.pin(VIEW, mine)
    again = weak.put(CHUNK, one)
    assert again != mine
    pin(weak, [again])
    assert weak.get(mine, CHUNK) == two
    assert weak.get(again, CHUNK) == one
    assert weak.has(mine)


def test_an_equal_chunk_that_another_process_commits_first_is_used(weak: WeakStore) -> None:
    mine = weak.put(CHUNK, noise(1))
    with as_another_process(weak):
        assert put_pinned(weak, [noise(1)]) == [mine]
        theirs = weak.locate(mine)
    pin(weak, [mine])
    assert weak.locate(mine) == theirs
    assert weak.get(mine, CHUNK) == noise(1)


def test_the_salt_of_a_probed_id_outlives_other_transactions(
    weak: WeakStore, tmp_path: Path
) -> None:
    one, two = colliding(weak, 2)
    (first,) = put_pinned(weak, [one])
    second, _known = weak.probe_chunk(two)
    put_pinned(weak, [noise(9, 77)])  # another file's, while this one is still being written
    file = tmp_path / "file"
    file.write_bytes(two)
    weak.put_verbatim(file, [(0, Extent(second, len(two)))])
    pin(weak, [second])
    assert weak.get(second, CHUNK) == two
    assert weak.get(first, CHUNK) == one
