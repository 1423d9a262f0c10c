"""A verbatim pack whose chunk table is pinned stays whole; a file in pieces can be made one.

Each store is counted anew at the end (conftest), so that moved chunks, free ranges and references
agree.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.model import HOLE, Extent, PackKind, RecordId
from dedupfs.recipe import Recipe
from dedupfs.store import Store, inventory
from dedupfs.store.assemble import assemble
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead
from dedupfs.store.whole import candidate_pack, hold, is_held, is_whole
from tests.store.payloads import CHUNK, noise, pin, put_pinned, unpin

HOLDER = b"c\0\0\0\1"
LENGTH = 5000


def make_recipe(ids: list[RecordId | int]) -> Recipe:
    """Chunks of LENGTH bytes, and holes of as many bytes as the numbers say."""
    return Recipe(
        Extent(HOLE, item) if isinstance(item, int) else Extent(item, LENGTH) for item in ids
    )


def content(store: Store, recipe: Recipe) -> bytes:
    return store.read(recipe.cut(0, recipe.size))


def pack_bytes(store: Store, pack: int) -> bytes:
    return store.layout.pack(pack, PackKind.VERBATIM).read_bytes()


def held(store: Store, pack: int) -> bool:
    with store.reading() as txn:
        row = inventory.indexed_pack(txn, pack)
        return row is not None and is_held(txn, row)


def collect(store: Store) -> None:
    while free_dead(store, 1000).records or punch(store, 1000):
        pass


def drop_holder(store: Store) -> None:
    with store.transaction() as txn:
        txn.release_pins(HOLDER)


def payloads(count: int) -> list[bytes]:
    return [noise(("whole", number), LENGTH) for number in range(count)]


def test_chunks_move_into_the_pack_that_is_made_of_their_file(store: Store) -> None:
    one, two, three = put_pinned(store, payloads(3))
    recipe = make_recipe([one, 9000, two, one, three])
    wanted = content(store, recipe)
    made = assemble(store, recipe, HOLDER)
    assert (made.moved_bytes, made.left_bytes) == (3 * LENGTH, 0)
    assert pack_bytes(store, made.pack) == wanted
    assert content(store, recipe) == wanted
    assert {store.locate(chunk).pack for chunk in (one, two, three)} == {made.pack}
    assert held(store, made.pack)
    assert candidate_pack(store, recipe) == made.pack
    assert is_whole(store, recipe, made.pack)
    collect(store)
    assert pack_bytes(store, made.pack) == wanted


def test_what_only_the_pack_holder_needs_is_given_back_when_it_lets_go(store: Store) -> None:
    one, two = put_pinned(store, payloads(2))
    recipe = make_recipe([one, two, one])
    wanted = content(store, recipe)
    pack = assemble(store, recipe, HOLDER).pack
    unpin(store, [two])
    collect(store)
    assert not store.has(two)
    assert pack_bytes(store, pack) == wanted, "held: not even what no chunk covers is punched"
    drop_holder(store)
    collect(store)
    left = pack_bytes(store, pack)
    assert left[:LENGTH] == wanted[:LENGTH]
    assert left != wanted
    unpin(store, [one])
    collect(store)
    assert not store.layout.pack(pack, PackKind.VERBATIM).exists()


def test_a_held_pack_without_live_chunks_is_not_removed(store: Store) -> None:
    (one,) = put_pinned(store, payloads(1))
    pack = assemble(store, make_recipe([one]), HOLDER).pack
    unpin(store, [one])
    collect(store)
    assert pack_bytes(store, pack) == payloads(1)[0]
    drop_holder(store)
    collect(store)
    assert not store.layout.pack(pack, PackKind.VERBATIM).exists()


def test_chunks_of_a_held_pack_stay_in_it(store: Store) -> None:
    one, two, three = put_pinned(store, payloads(3))
    first = assemble(store, make_recipe([one, two]), HOLDER)
    second = assemble(store, make_recipe([three, two, one]), HOLDER)
    assert (second.moved_bytes, second.left_bytes) == (LENGTH, 2 * LENGTH)
    assert store.locate(two).pack == first.pack
    collect(store)
    assert is_whole(store, make_recipe([three, two, one]), second.pack)
    assert is_whole(store, make_recipe([one, two]), first.pack)
    assert not is_whole(store, make_recipe([two, one]), first.pack)


def test_a_pack_that_came_whole_is_found_and_needs_no_copy(store: Store, tmp_path: Path) -> None:
    parts = payloads(4)
    file = tmp_path / "file"
    file.write_bytes(b"".join(parts))
    chunks = [
        (LENGTH * number, Extent(store.probe_chunk(part)[0], LENGTH))
        for number, part in enumerate(parts)
    ]
    pack = store.put_verbatim(file, chunks)
    ids = [extent.chunk_id for _, extent in chunks]
    with store.transaction() as txn:
        hold(store, txn, HOLDER, pack)
        for chunk_id in ids:
            txn.pin(b"v\0\0\0\1", chunk_id)
    recipe = make_recipe(list(ids))
    assert candidate_pack(store, recipe) == pack
    assert is_whole(store, recipe, pack)
    assert candidate_pack(store, make_recipe([*ids, 1])) is None
    shorter = make_recipe([*ids[:3], LENGTH])
    assert candidate_pack(store, shorter) == pack
    assert not is_whole(store, shorter, pack), "its hole is not zeros there"


@pytest.mark.parametrize("compression", ["zstd"])
def test_a_compressed_chunk_moves_too(make_store: object, compression: str) -> None:
    store: Store = make_store(compression=compression)  # type: ignore[operator]
    text = (b"all work and no play " * 300)[:LENGTH]
    chunk = store.put(CHUNK, text)
    pin(store, [chunk])
    pack = assemble(store, make_recipe([chunk]), HOLDER).pack
    assert pack_bytes(store, pack) == text
    assert content(store, make_recipe([chunk])) == text
    collect(store)
