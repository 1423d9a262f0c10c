"""Small stores that must be without a problem when the test that filled them is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
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


@pytest.fixture
def history(path: Path, tmp_path: Path) -> Path:
    """The path of a closed store with a history: several imports, clones, removals, one gc."""
    with Store.create(path, **SMALL) as store:
        catalog = SnapshotCatalog(store)
        for number in range(3):
            import_directory(store, make_directory(tmp_path / f"d{number}", number), f"s{number}")
        catalog.clone("s1", "copy")
        catalog.rename("s2", "renamed")
        catalog.tag("copy", {"a": "b"})
        catalog.remove(["s0"])
        collect(store)
    with Store.open(path) as store:
        import_directory(store, tmp_path / "d0", "again")
    return path
