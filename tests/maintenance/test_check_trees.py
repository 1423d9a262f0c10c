"""check names trees, recipes and links that disagree with each other.

Method: snapshots are made of trees that no command would make; check must name what is wrong.
"""

from __future__ import annotations

import stat
from typing import Any

import msgspec
import pytest

from dedupfs.format.tree import encode_extents, encode_tree
from dedupfs.maintenance.check import check
from dedupfs.model import LINK_MODE, Extent, RecordId, RecordKind, Tree, TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import directory_entry, put_tree
from dedupfs.store import Store
from tests.maintenance.samples import any_row, noise, problems_of, rows

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


def add(
    store: Store,
    entries: list[TreeEntry],
    *,
    next_slot: int = 100,
    name: str = "made",
    links: list[TreeEntry] | None = None,
    **claims: Any,
) -> RecordId:
    """Make a snapshot of these entries, whose root says what ``claims`` says."""
    tree_id = put_tree(store, entries, next_slot)
    root = directory_entry(
        b"",
        0,
        entries,
        tree_id,
        mode=DIRECTORY,
        uid=0,
        gid=0,
        mtime_ns=1,
        links_id=put_tree(store, links, 100) if links else None,
    )
    SnapshotCatalog(store).add(name, msgspec.structs.replace(root, **claims), created_ns=1)
    return tree_id


def chunk(store: Store, length: int) -> bytes:
    return encode_extents([Extent(store.put(RecordKind.CHUNK, noise(0, length)), length)])


def test_the_trees_that_these_tests_make_are_sound(store: Store) -> None:
    file = TreeEntry(b"a", 1, FILE, size=300, content=chunk(store, 300))
    link = TreeEntry(b"b", 2, LINK_MODE, content=bytes(8))
    other = TreeEntry(b"c", 3, LINK_MODE, content=bytes(8))
    inode = TreeEntry(bytes(8), 1, FILE, size=300, content=file.content, nlink=2)
    add(store, [file, link, other], links=[inode])
    report = check(store)
    assert report.ok, report.problems


@pytest.mark.parametrize("claim", [{"size": 5}, {"count": 2}, {"nlink": 3}, {"has_links": True}])
def test_a_directory_that_says_something_else_than_it_holds_is_named(
    store: Store, claim: dict[str, Any]
) -> None:
    tree_id = add(store, [TreeEntry(b"a", 1, FILE)], **claim)
    (problem,) = problems_of(store, "tree")
    assert problem.record_id == tree_id.hex()
    assert problem.uses == ("snapshot made: /",)


def empty(name: bytes, slot: int) -> TreeEntry:
    return TreeEntry(name, slot, FILE)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([empty(b"b", 1), empty(b"a", 2)], "sorted"),
        ([empty(b"a", 1), empty(b"a", 2)], "sorted"),
        ([empty(b"a", 1), empty(b"b", 1)], "twice"),
        ([empty(b"a", 0)], "slots"),
        ([empty(b"a", 100)], "slots"),
        ([empty(b"a/b", 1)], "name"),
        ([empty(b"..", 1)], "name"),
        ([empty(b"a", 1), empty(b"", 2)], "sorted"),
        ([TreeEntry(b"a", 1, 0o050000)], "mode"),
        ([TreeEntry(b"a", 1, FILE, size=7)], "extents"),
        ([TreeEntry(b"a", 1, stat.S_IFLNK | 0o777, size=7, content=b"abc")], "target"),
        ([TreeEntry(b"a", 1, DIRECTORY, nlink=3)], "empty directory"),
        ([TreeEntry(b"a", 1, LINK_MODE, content=b"abc")], "link"),
        ([TreeEntry(b"a", 1, LINK_MODE, content=bytes(8))], "no links tree"),
    ],
)
def test_a_bad_tree_is_named(store: Store, entries: list[TreeEntry], what: str) -> None:
    add(store, entries)
    report = check(store)
    assert any(what in f"{problem.where} {problem.what}" for problem in report.problems), (
        report.problems
    )


def test_slots_that_do_not_rise_though_the_tree_says_so_are_named(store: Store) -> None:
    entries = (empty(b"a", 2), empty(b"b", 1))
    tree_id = store.put(RecordKind.TREE, encode_tree(Tree(9, entries, (), slots_sorted=True)))
    root = directory_entry(b"", 0, entries, tree_id, mode=DIRECTORY, uid=0, gid=0, mtime_ns=0)
    SnapshotCatalog(store).add("made", root)
    assert "rise" in problems_of(store, "tree")[0].what


@pytest.mark.parametrize("nlink", [1, 3])
def test_a_wrong_link_count_is_named(store: Store, nlink: int) -> None:
    names = [TreeEntry(b"%d" % slot, slot, LINK_MODE, content=bytes(8)) for slot in (1, 2)]
    add(store, names, links=[TreeEntry(bytes(8), 1, FILE, nlink=nlink)])
    assert f"it says {nlink} names and has 2" in problems_of(store, "links")[0].what


def test_a_hard_link_to_no_inode_is_named(store: Store) -> None:
    names = [TreeEntry(b"%d" % slot, slot, LINK_MODE, content=bytes(8)) for slot in (1, 2)]
    add(store, names, links=[TreeEntry(b"\1" * 8, 1, FILE, nlink=2)])
    assert any("no inode" in problem.what for problem in check(store).problems)


def test_a_file_whose_size_is_not_that_of_its_chunks_is_named(store: Store) -> None:
    extents = encode_extents([Extent(store.put(RecordKind.CHUNK, noise(0, 300)), 299)])
    add(store, [TreeEntry(b"a", 1, FILE, size=299, content=extents)])
    (problem,) = problems_of(store, "length")
    assert problem.uses == ("snapshot made: /a",)


def test_a_file_whose_size_is_not_that_of_its_recipe_is_named(filled: Store) -> None:
    recipe = any_row(filled, RecordKind.RECIPE)
    entry = TreeEntry(b"a", 1, FILE, size=7, content=bytes(recipe.record_id))
    add(filled, [entry])
    assert problems_of(filled, "recipe")[0].record_id == recipe.record_id.hex()


def test_a_record_that_is_used_as_another_kind_is_named(filled: Store) -> None:
    page = any_row(filled, RecordKind.RECIPE_PAGE)
    add(filled, [TreeEntry(b"a", 1, FILE, size=1, content=bytes(page.record_id))])
    assert problems_of(filled, "kind")[0].record_id == page.record_id.hex()


def test_large_directories_in_pages_are_sound(store: Store) -> None:
    entries = [
        TreeEntry(b"%06d" % number, number + 1, FILE, size=0, content=b"") for number in range(5000)
    ]
    add(store, entries, next_slot=5001)
    assert rows(store, RecordKind.TREE_PAGE)
    assert check(store).ok
