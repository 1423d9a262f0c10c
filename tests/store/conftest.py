"""A store that is counted anew when the test is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dedupfs.store import Store
from tests.store.recount import recount

MakeStore = Callable[..., Store]

SMALL = {"chunk_bytes_average": 1024, "hash_seed": 7}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's store is, or will be."""
    return tmp_path / "store"


@pytest.fixture
def make_store(path: Path) -> Iterator[MakeStore]:
    """Return a function that makes the store with other settings."""
    made: list[Store] = []

    def make(**settings: Any) -> Store:
        made.append(Store.create(path, **(SMALL | settings)))
        return made[-1]

    yield make
    for store in made:
        recount(store)
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """An empty store that keeps chunks as they are."""
    return make_store(compression="none")
