"""Packs that links point at, beside whatever else moves or frees their chunks: no byte goes.

Method: a pack is held at each moment of a compaction of it; chunks lie in other packs than the held
one while holds are dropped, the index is lost and gc runs. After each step a link reads what it
did, and the store every file. Each store ends with `check` and `scrub` clean.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import PackKind
from dedupfs.namespace.checkouts import begin_checkout, open_checkout
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.recipe import Recipe
from dedupfs.store import Store
from dedupfs.store import compact as compact_module
from dedupfs.store.assemble import assemble
from dedupfs.store.holes import PUNCH_LOCK
from dedupfs.store.owner import exclusive
from dedupfs.store.whole import is_whole, wait_for_punches
from tests.maintenance.samples import (
    SMALL,
    import_directory,
    lose_index,
    noise,
    pack_path,
    read_back,
)
from tests.maintenance.test_checkouts import make
from tests.maintenance.test_compact import ALL, large_pack, pack_path_exists, without_holes

LARGE = noise("large", 150_000)
KEPT_BYTES = 30_000


@pytest.fixture
def path(memory_path: Path) -> Path:
    """A store with the verbatim pack of a file that is gone, of which another needs the head."""
    for name, data in (("all", LARGE), ("some", LARGE[:KEPT_BYTES])):
        (memory_path / name).mkdir()
        (memory_path / name / "file").write_bytes(data)
    with Store.create(memory_path / "store", **SMALL) as store:
        import_directory(store, memory_path / "all", "all")
        import_directory(store, memory_path / "some", "some")
    return memory_path / "store"


def recipe_of(store: Store, name: str, file: bytes = b"file") -> Recipe:
    root = SnapshotCatalog(store).get(name).root
    return load_recipe(store, TreeReader(store).walk_path(root, file).content)


def require_sound(path: Path) -> None:
    with Store.open(path) as store:
        assert check(store).ok
        assert scrub(store).ok
        assert read_back(store, "some")["file"][-1] == LARGE[:KEPT_BYTES]


@pytest.mark.parametrize("at", [0, 2])
def test_a_pack_that_is_held_while_it_is_rewritten_stays_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Some of its chunks have moved by then; their bytes stay, too."""
    with without_holes(path) as store:
        pack = large_pack(store)
        holder = begin_checkout(store)
        SnapshotCatalog(store).remove(["all"])
        commits = [0]
        plain = compact_module._commit

        def commit(*arguments: object) -> None:
            if arguments[1] == pack:
                if commits[0] == at:
                    holder.hold((), [pack])
                commits[0] += 1
            plain(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(compact_module, "_commit", commit)
        monkeypatch.setattr(compact_module, "SLICE_BYTES", 1)
        collect(store, options=ALL)
        monkeypatch.undo()
        assert commits[0] == at + 1, "it went on though somebody needed the pack"
        assert pack_path(store, pack).read_bytes() == LARGE
        assert is_whole(store, recipe_of(store, "some"), pack) is False, "it is longer"
        collect(store, options=ALL)
        assert pack_path(store, pack).read_bytes() == LARGE
        holder.close()
    require_sound(path)
    with without_holes(path) as store:
        collect(store, options=ALL)
        assert not pack_path_exists(store, pack)
    require_sound(path)


def test_a_pack_is_not_rewritten_while_somebody_waits_for_punches_to_end(path: Path) -> None:
    """What ``wait_for_punches`` relies on: compaction moves nothing but under the lock."""
    with without_holes(path) as store:
        SnapshotCatalog(store).remove(["all"])
        seen: list[bool] = []
        with pytest.MonkeyPatch.context() as patch:
            plain = compact_module._commit

            def commit(*arguments: object) -> None:
                with exclusive(store.layout, store.disk, PUNCH_LOCK, wait=False) as mine:
                    seen.append(mine)
                plain(*arguments)  # type: ignore[arg-type]

            patch.setattr(compact_module, "_commit", commit)
            collect(store, options=ALL)
        assert seen
        assert not any(seen), "somebody else could have had the lock"
        wait_for_punches(store)  # and it is free again
    require_sound(path)


@pytest.mark.parametrize("first_goes", [True, False])
@pytest.mark.parametrize("index", ["kept", "lost"])
def test_two_held_packs_with_the_same_chunks_end_in_any_order(
    path: Path, first_goes: bool, index: str
) -> None:
    """The rows point at one of them; the other one's bytes are nobody's once it is let go of."""
    with Store.open(path) as store:
        first = large_pack(store)
        holders = [begin_checkout(store), begin_checkout(store)]
        holders[0].hold((), [first])
        made = assemble(store, recipe_of(store, "some"), holders[1].owner)
        assert made.left_bytes > made.moved_bytes > 0
        held = [(first, LARGE), (made.pack, LARGE[:KEPT_BYTES])]
        SnapshotCatalog(store).remove(["all"])
        holders.pop(int(not first_goes)).close()
        pack, data = held[int(first_goes)]
        for _ in range(2):
            collect(store, options=ALL)
            assert pack_path(store, pack).read_bytes() == data
        if index == "kept":
            holders[0].close()
        else:
            holders[0]._lock.close()  # as when it dies
    if index == "lost":
        lose_index(path)
        assert reindex(path).snapshots == ["some"]
    with Store.open(path) as store:
        collect(store, options=ALL)
    require_sound(path)


@pytest.mark.parametrize("collect_first", [True, False])
def test_links_stay_right_when_moved_chunks_are_found_in_their_old_places_again(
    memory_path: Path, collect_first: bool
) -> None:
    """Reindex finds a chunk where it was before, unless its place was punched."""
    source = memory_path / "source"
    source.mkdir()
    data = noise("medium", 20_000)
    (source / "medium").write_bytes(data)
    (source / "other").write_bytes(data[:9000])
    path = memory_path / "store"
    with Store.create(path, **SMALL) as store:
        import_directory(store, source, "one")
        registration, pack = make(store, SnapshotCatalog(store).get("one"))
        registration.close()
        expected = read_back(store, "one")
        if collect_first:
            collect(store, options=ALL)
    for _ in range(2):
        lose_index(path)
        assert reindex(path).ok
        with Store.open(path) as store:
            collect(store, options=ALL)
            assert store.layout.pack(pack, PackKind.VERBATIM).read_bytes() == data
            assert read_back(store, "one") == expected
            assert check(store).ok
    with Store.open(path) as store:
        with open_checkout(store, registration.number) as again:
            again.drop()
        collect(store, options=ALL)
        assert read_back(store, "one") == expected
        assert scrub(store).ok
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        collect(store, options=ALL)
        assert read_back(store, "one") == expected
        assert check(store).ok
