"""An index that is empty or older than the packs is refused: what it does not know is not nobody's.

Method: the index of an earlier moment is put back, as a careless restore would; commands that write
must fail and change no pack, and reindex must bring everything back.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.store import Store
from tests.maintenance.samples import SMALL, contents, import_directory, make_directory, sound


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A store whose index is that of its first snapshot; it has a second one in other packs."""
    path = tmp_path / "store"
    with Store.create(path, **SMALL) as store:
        import_directory(store, make_directory(tmp_path / "one", 1), "one")
    kept = shutil.copytree(path / "index", tmp_path / "kept")
    with Store.open(path) as store:
        import_directory(store, make_directory(tmp_path / "two", 2), "two")
        import_directory(store, make_directory(tmp_path / "three", 3), "three")
    shutil.rmtree(path / "index")
    shutil.move(kept, path / "index")
    return path


def packs(path: Path) -> dict[Path, bytes]:
    found = (path / "packs").glob("*/*")
    return {pack: pack.read_bytes() for pack in found if not pack.stat().st_mode & 0o222}


@pytest.mark.allow_log(".*")
def test_nothing_is_removed_or_overwritten_under_an_older_index(
    stale: Path, tmp_path: Path
) -> None:
    before = packs(stale)
    with Store.open(stale) as store, pytest.raises(CorruptError, match="reindex"):
        collect(store)
    with Store.open(stale) as store, pytest.raises(CorruptError, match="older than the packs"):
        import_directory(store, make_directory(tmp_path / "four", 4), "four")
    assert packs(stale) == before
    reindex(stale)
    assert set(contents(stale)) >= {"one", "two"}
    sound(stale)


def test_an_empty_index_is_refused(stale: Path) -> None:
    os.truncate(stale / "index" / "data.mdb", 0)
    with pytest.raises(CorruptError, match="is empty; run dedupfs reindex"):
        Store.open(stale)
    assert reindex(stale).ok
    sound(stale)
