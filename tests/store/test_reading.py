"""Pieces of chunks, merged into few reads, verified once."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import unpack_record_row
from dedupfs.model import RecordId
from dedupfs.recipe import Piece
from dedupfs.store import RealDisk, Store
from dedupfs.store.disk import File
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead
from tests.store.conftest import MakeStore
from tests.store.payloads import CHUNK, hole, noise, piece, pin, put_pinned, unpin


@dataclass
class CountingDisk(RealDisk):
    """Notes every read; can pretend that nothing is cached."""

    reads: list[tuple[int, int]] = field(default_factory=list)
    cached: bool = True

    def preadv(self, file: File, buffers: Sequence[memoryview], offset: int) -> int:
        self.reads.append((offset, sum(len(buffer) for buffer in buffers)))
        return super().preadv(file, buffers, offset)

    def preadv_cached(self, file: File, buffers: Sequence[memoryview], offset: int) -> bool:
        self.reads.append((offset, sum(len(buffer) for buffer in buffers)))
        return self.cached and super().preadv_cached(file, buffers, offset)


def test_pieces_are_joined_in_order(store: Store) -> None:
    one, two = put_pinned(store, [noise(1), noise(2)])
    pieces = [piece(two, 10, 990), hole(5), piece(one, 1000), piece(two, 1, 0)]
    expected = noise(2)[990:] + bytes(5) + noise(1) + noise(2)[:1]
    assert store.read(pieces) == expected
    assert store.read_cached(pieces) in (expected, None)
    assert store.read([]) == b""
    assert store.read([hole(3)]) == bytes(3)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("pending", [False, True])
def test_any_pieces_are_what_the_chunks_hold(
    make_store: MakeStore, compression: str, pending: bool
) -> None:
    store = make_store(compression=compression, pack_bytes_max=20_000)
    payloads = [noise(n, 700) + bytes(300) for n in range(40)]
    ids = [store.put(CHUNK, payload) for payload in payloads]
    if not pending:
        pin(store, ids)
    choose = random.Random(1)
    for _ in range(200):
        pieces, expected = [], b""
        start = choose.randrange(40)
        for index in range(start, min(40, start + choose.randrange(1, 8))):
            offset = choose.randrange(1000)
            length = choose.randrange(1, 1001 - offset)
            pieces.append(piece(ids[index], length, offset))
            expected += payloads[index][offset : offset + length]
        assert store.read(pieces) == expected
        assert store.read_cached(pieces) in (expected, None)
    if pending:
        pin(store, ids)


def test_neighbours_are_read_at_once_and_verified_once(make_store: MakeStore) -> None:
    disk = CountingDisk()
    store = make_store(compression="none", disk=disk)
    ids = put_pinned(store, [noise(n) for n in range(10)])
    disk.reads.clear()
    assert store.read([piece(ids[0], 10, 500)]) == noise(0)[500:510]
    assert [length for _, length in disk.reads] == [1000]  # whole, to be verified
    disk.reads.clear()
    assert store.read([piece(ids[0], 10, 500)]) == noise(0)[500:510]
    assert [length for _, length in disk.reads] == [10]
    disk.reads.clear()
    store.read([piece(record_id, 1000) for record_id in ids])
    assert len(disk.reads) == 1


def test_a_cached_read_never_waits(make_store: MakeStore) -> None:
    disk = CountingDisk(cached=False)
    store = make_store(compression="none", disk=disk)
    ids = put_pinned(store, [noise(n) for n in range(3)])
    assert store.read_cached([piece(ids[0], 10), piece(ids[1], 10)]) is None
    assert store.read_cached([hole(10)]) == bytes(10)


def test_a_short_wait_is_spared_a_thread_once_the_disk_was_quick_and_nobody_is_held_up(
    make_store: MakeStore,
) -> None:
    disk = CountingDisk(cached=False)
    store = make_store(compression="none", disk=disk)
    ids = put_pinned(store, [noise(n) for n in range(20)])
    pieces = [piece(ids[0], 10)]
    assert store.read_cached(pieces, lambda: True) is None  # nothing is known of the disk
    store.reader.patience.note(0)
    assert store.read_cached(pieces, lambda: False) is None
    assert store.read_cached(pieces, lambda: True) == noise(0)[:10]
    store.reader.patience.note(0)
    many = [piece(record_id, 10) for record_id in ids]
    assert store.read_cached(many, lambda: True) is None  # each may be a wait of its own
    store.reader.patience.note(1 << 30)
    assert store.read_cached(pieces, lambda: True) is None


def test_waiting_in_place_verifies_as_well(make_store: MakeStore) -> None:
    disk = CountingDisk(cached=False)
    store = make_store(compression="none", disk=disk)
    (chunk,) = put_pinned(store, [noise(1)])
    row = store.rows([chunk])[0]
    assert row is not None
    _kind, _codec, _salt, pack, offset, *_ = unpack_record_row(row)
    path = store.reader.open_pack(pack).path
    with path.open("r+b") as file:
        file.seek(offset + 500)
        file.write(bytes(10))
    store.reader.patience.note(0)
    with pytest.raises(CorruptError, match="expected digest"):
        store.read_cached([piece(chunk, 10)], lambda: True)
    with path.open("r+b") as file:
        file.seek(offset + 500)
        file.write(noise(1)[500:510])
    assert store.read_cached([piece(chunk, 10)], lambda: True) == noise(1)[:10]


def test_a_piece_beyond_its_chunk_is_refused(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with pytest.raises(CorruptError, match="has 1000 bytes"):
        store.read([piece(chunk, 2, 999)])


def test_an_unknown_chunk_is_named(store: Store) -> None:
    unknown = store.digest(CHUNK, b"unknown")
    with pytest.raises(MissingRecordError, match=unknown.hex()):
        store.read([piece(unknown, 1)])


def test_threads_read_while_another_puts(store: Store) -> None:
    """Goal: a record is found at every moment: buffered, flushed, synced, committed."""
    ids: list[RecordId] = []
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        choose = random.Random(1)
        while not stop.is_set():
            if ids:
                number = choose.randrange(len(ids))
                try:
                    data = store.read([piece(ids[number], 5000)])
                    if data != noise(number, 5000):
                        wrong.append(number)
                except StoreError as exc:
                    wrong.append(exc)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        ids.append(store.put(CHUNK, noise(number, 5000)))
        if number % 100 == 0:
            pin(store, ids[-100:])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    pin(store, ids)


def test_many_packs_do_not_use_up_the_descriptors(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Store.create(path, compression="none", pack_bytes_max=1) as store:
        ids = put_pinned(store, [noise(n, 20) for n in range(300)])
        assert [store.read([piece(ids[n], 20)]) for n in range(300)] == [
            noise(n, 20) for n in range(300)
        ]
        assert len(os.listdir("/proc/self/fd")) < before + 256


@dataclass
class BusyDisk(RealDisk):
    """Lets others do something while a read waits for the disk."""

    meanwhile: list[Callable[[], object]] = field(default_factory=list)
    is_cold: bool = False

    def preadv_cached(self, file: File, buffers: Sequence[memoryview], offset: int) -> bool:
        return not self.is_cold and super().preadv_cached(file, buffers, offset)

    def preadv(self, file: File, buffers: Sequence[memoryview], offset: int) -> int:
        while self.meanwhile:
            self.meanwhile.pop()()
        return super().preadv(file, buffers, offset)


def read_in_place(store: Store, pieces: Sequence[Piece]) -> bytes:
    found = None
    while found is None:  # one wait that took long is enough for the next piece to be refused
        for _ in range(40):
            store.reader.patience.note(0)  # the disk was quick lately
        found = store.read_cached(pieces, lambda: True)
    return bytes(found)


@pytest.mark.parametrize("read", [Store.read, read_in_place])
def test_a_chunk_that_goes_while_its_read_waits_is_told_and_not_zeros(
    make_store: MakeStore, read: Callable[[Store, Sequence[Piece]], bytes]
) -> None:
    """Bytes of a file that are replaced meanwhile: the caller asks again for what is there now."""
    disk = BusyDisk()
    store = make_store(compression="none", chunk_bytes_average=16 << 10, disk=disk)
    goes, stays = (random.Random(seed).randbytes(40_000) for seed in (1, 2))
    chunk, other = put_pinned(store, [goes, stays])
    pieces = [piece(chunk, 1000, 20_000), piece(other, 1000)]
    expected = goes[20_000:21_000] + stays[:1000]
    assert store.read(pieces) == expected  # verified by now
    disk.is_cold = True
    disk.meanwhile.append(lambda: pin(store, [chunk]))
    assert read(store, pieces) == expected

    def goes_now() -> None:
        unpin(store, [chunk, chunk])
        assert free_dead(store, 10).records == 1
        punch(store, 10)

    disk.meanwhile.append(goes_now)
    with pytest.raises(MissingRecordError):
        read(store, pieces)
    assert read(store, pieces[1:]) == stays[:1000]
