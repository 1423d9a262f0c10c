"""A store with one snapshot of every kind of thing, opened as a program opens it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import dedupfs

BIG = random.Random(7).randbytes(3 << 20)


def make_tree(directory: Path) -> Path:
    """Make a directory of files, links inside and outside, and one large file."""
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "x.txt").write_text("hello\n")
    (directory / "a" / "b" / "big").write_bytes(BIG)
    (directory / "empty").mkdir()
    os.symlink("../a/x.txt", directory / "a" / "link")
    os.symlink("a", directory / "to-a")
    os.symlink("/etc/passwd", directory / "out")
    os.symlink("../../up", directory / "up")
    os.symlink("round", directory / "round")
    os.link(directory / "a" / "x.txt", directory / "hard")
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dedupfs.Store]:
    """A store with the snapshot ``one``; it is checked when the test is done."""
    with dedupfs.Store.create(tmp_path / "store", chunk_size=4096) as store:
        store.import_tree(make_tree(tmp_path / "src"), "one", tags={"loss": 1.5})
        yield store
        assert store.check() == []


@pytest.fixture
def one(store: dedupfs.Store) -> dedupfs.Snapshot:
    """The snapshot of ``make_tree``."""
    return store["one"]
