"""Making and opening a store: every refusal says what was found and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dedupfs.errors import CorruptError, FormatVersionError, StoreError, UsageError
from dedupfs.model import PackKind
from dedupfs.store import Store
from dedupfs.store.layout import Layout
from tests.fakes import Crashed, FaultyDisk


def change_config(path: Path, **changes: Any) -> None:
    file = path / "dedupfs.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_new_store_is_private_and_has_its_settings(path: Path) -> None:
    with Store.create(path, chunk_bytes_average=4096, compression="zstd") as store:
        assert path.stat().st_mode & 0o777 == 0o700
        assert (store.config.chunk_bytes_min, store.config.chunk_bytes_max) == (1024, 16384)
        assert store.chunker.params.average == 4096
    with Store.open(path) as again:
        assert again.config == store.config
        assert again.owner != store.owner


def test_two_stores_have_different_seeds(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a") as one, Store.create(tmp_path / "b") as two:
        assert one.config.hash_seed != two.config.hash_seed
        assert one.config.store_id != two.config.store_id


def test_an_empty_directory_may_become_a_store(path: Path) -> None:
    path.mkdir()
    (path / "lost+found").mkdir()
    Store.create(path).close()
    Store.open(path).close()


def test_a_store_is_not_made_over_something_else(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        Store.create(path)
    (path / "thesis.tex").unlink()
    Store.create(path).close()
    with pytest.raises(UsageError, match="already a dedupfs store"):
        Store.create(path)
    file = path / "dedupfs.json"
    with pytest.raises(UsageError, match="is a file"):
        Store.create(file)
    with pytest.raises(UsageError, match="is a file"):
        Store.open(file)
    with pytest.raises(UsageError, match="does not exist"):
        Store.create(path / "no" / "store")


@pytest.mark.parametrize(
    "settings",
    [{"chunk_bytes_average": 1000}, {"compression": "lzma"}, {"pack_bytes_max": 0}],
)
def test_a_bad_setting_makes_nothing(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Store.create(path, **settings)
    assert not path.exists()


def test_an_interrupted_init_is_completed_by_the_next(tmp_path: Path) -> None:
    disk = FaultyDisk()
    Store.create(tmp_path / "whole", disk=disk).close()
    for number in range(1, disk.calls + 1):
        path = tmp_path / f"{number}"
        with pytest.raises(Crashed):
            Store.create(path, disk=FaultyDisk(crash_at=number)).close()
        if not (path / "dedupfs.json").exists():
            Store.create(path).close()
        Store.open(path).close()


def test_what_is_no_store_is_not_opened(path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(path)
    path.mkdir()
    with pytest.raises(UsageError, match="not a dedupfs store"):
        Store.open(path)


def test_a_newer_store_is_not_opened(path: Path) -> None:
    Store.create(path).close()
    change_config(path, format_version=2, compression={"of": "another type"})
    with pytest.raises(FormatVersionError, match="format version 2"):
        Store.open(path)
    change_config(path, format_version=1, compression="auto", features=["teleport"])
    with pytest.raises(FormatVersionError, match="teleport"):
        Store.open(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hash_seed": -1},
        {"hash_seed": "7"},
        {"chunk_bytes_min": 0},
        {"compression": "lzma"},
        {"format_version": 0},
    ],
)
def test_a_damaged_config_is_named(path: Path, changes: dict[str, Any]) -> None:
    Store.create(path).close()
    change_config(path, **changes)
    with pytest.raises(CorruptError, match=r"dedupfs\.json"):
        Store.open(path)


def test_a_missing_index_asks_for_reindex(path: Path) -> None:
    Store.create(path).close()
    shutil.rmtree(path / "index")
    with pytest.raises(StoreError, match="dedupfs reindex"):
        Store.open(path)


def test_a_damaged_index_asks_for_reindex(path: Path) -> None:
    Store.create(path).close()
    (path / "index" / "data.mdb").write_bytes(b"junk" * 4096)
    with pytest.raises(CorruptError, match="dedupfs reindex"):
        Store.open(path)


def test_names_of_packs_lead_back_to_their_numbers() -> None:
    layout = Layout(Path("/store"))
    assert layout.pack(17, PackKind.RECORDS) == Path("/store/packs/00/00000017.pack")
    assert layout.pack(4096, PackKind.VERBATIM) == Path("/store/packs/01/00004096.file")
    for kind in PackKind:
        assert layout.pack_of(layout.pack(5000, kind).name) == (5000, kind)
    for name in ("junk", "1.tmp", ".pack", "x1.pack", "٣.pack"):
        assert layout.pack_of(name) is None
    assert layout.owner_of_lock(layout.owner_lock(b"p0123456789abcdef").name) == (
        b"p0123456789abcdef"
    )
    assert layout.owner_of_lock("punch.lock") is None
