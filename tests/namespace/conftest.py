"""Stores with tiny chunks, so that every path of a large file is taken by a small one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store.store import Store

CHUNK_BYTES = 256
"""Average chunk: 512 bytes are buffered, more are staged, 4 KiB may become a verbatim pack."""


def make_small_store(path: Path) -> Store:
    """Make a store whose limits are reached within a few kilobytes."""
    return Store.create(
        path,
        chunk_bytes_average=CHUNK_BYTES,
        pack_bytes_max=1 << 20,
        verbatim_bytes_min=4096,
        hash_seed=7,
    )


def assert_sound(store: Store) -> None:
    """The universal postcondition."""
    report = check(store)
    assert report.ok, [str(problem) for problem in report.problems]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with tiny chunks; it is checked when the test is done."""
    store = make_small_store(tmp_path / "store")
    yield store
    assert_sound(store)
    store.close()


StoreMaker = Callable[[Path], Store]
