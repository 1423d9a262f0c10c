"""Snapshots of a repository and a writable copy of each: small, few inodes, and nothing leaks.

Method: a generated repository is imported, changed a little and imported again; each snapshot gets
a clone in a mount, and each clone is written into in place (no rename, no truncation), as a
test of a pipeline may do. Then all files of all clones and snapshots are compared with what they
must be. What `rsync --link-dest` makes of the same is measured by bench/copies.py.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bench.commands import disk_bytes, inode_count
from bench.datasets import change_files, small_tree
from dedupfs.maintenance.check import check
from dedupfs.store import Store
from dedupfs.transfer.ingest import ingest_tree
from tests.conftest import Scale
from tests.fuse.harness import Daemons
from tests.transfer.trees import TRUSTING

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

CHANGED = 20
INODES_MAX = 49
MORE_THAN_ONE_COPY = 1.03

Contents = dict[Path, bytes]


def contents(top: Path) -> Contents:
    return {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def take_in(store_path: Path, tree: Path, name: str) -> None:
    """Import as a command does: each time a process of its own would open the store anew."""
    with Store.open(store_path) as store:
        assert not ingest_tree(store, tree, name, options=TRUSTING).problems


def stored_bytes(store: Path) -> int:
    """Return what a store takes, but for the spare room of its index, which any store has."""
    index = store / "index"
    spare = disk_bytes(index) - sum(path.stat().st_size for path in index.iterdir())
    return disk_bytes(store) - max(0, spare)


def overwrite(view: Path, expected: Contents, chance: random.Random) -> int:
    """Write into some files of a view where they are, and into what they must be.

    Return how many bytes those files have.
    """
    total = 0
    for name in chance.sample(sorted(expected), CHANGED):
        data = bytearray(expected[name])
        at = chance.randrange(len(data))
        new = chance.randbytes(chance.randint(1, 200))[: len(data) - at]
        with (view / name).open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), new, at)
        data[at : at + len(new)] = new
        expected[name] = bytes(data)
        total += len(data)
    return total


def test_copies_cost_what_changed_and_no_write_leaks(
    daemons: Daemons, tmp_path: Path, scale: Scale
) -> None:
    tree, store = small_tree(tmp_path / "tree", scale(700, 12_000)), tmp_path / "store"
    Store.create(store).close()
    states: list[Contents] = []
    changed_bytes = 0
    for number in range(scale(5, 20)):
        changed_bytes += change_files(tree, CHANGED, number) if number else 0
        take_in(store, tree, f"state-{number}")
        states.append(contents(tree))
    one_copy_bytes = sum(map(len, states[0].values()))
    limit = MORE_THAN_ONE_COPY * one_copy_bytes + changed_bytes
    assert stored_bytes(store) <= limit
    assert inode_count(store) <= INODES_MAX

    mounted = daemons.start()
    views = [mounted.path / f"view-{number}" for number in range(len(states))]
    for number, view in enumerate(views):
        view.mkdir()
        os.setxattr(view, "user.dedupfs.clone", b"state-%d" % number)
    expected = [dict(state) for state in states]
    chance = random.Random("in place")
    for view, state in zip(views, expected, strict=True):
        limit += overwrite(view, state, chance)
    for view, state in zip(views, expected, strict=True):
        assert contents(view) == state
    for number, state in enumerate(states):
        assert contents(mounted.path / f"state-{number}") == state
    assert inode_count(store) <= INODES_MAX
    assert mounted.end() == 0
    assert inode_count(store) <= INODES_MAX
    assert stored_bytes(store) <= limit
    with Store.open(store) as opened:
        assert check(opened).ok
