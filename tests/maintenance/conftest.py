"""Small stores that must be without a problem when the test that filled them is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.maintenance.samples import SMALL, import_directory, make_directory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's store is."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store.create(path, **SMALL) as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with every kind of content."""
    return make_directory(tmp_path / "source")


@pytest.fixture
def filled(store: Store, source: Path) -> Store:
    """A store with the snapshot ``first`` of ``source``; it is sound to begin with."""
    import_directory(store, source, "first")
    report = check(store)
    assert report.ok, report.problems
    return store
