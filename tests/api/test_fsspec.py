"""fsspec's own tests of a file system, on a view and on snapshots; and what reads through fsspec.

A snapshot cannot be written to, so of its source directories each is made on the disk by the same
code, imported, and read from there; tests that write are left to the view.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dedupfs
from tests.api.conftest import BIG
from tests.conftest import MEMORY

fsspec = pytest.importorskip("fsspec")
abstract = pytest.importorskip("fsspec.tests.abstract")
pytestmark = [
    pytest.mark.unmeasured,
    # Those of fsspec and of what it reads with; ours are covered by the other tests.
    pytest.mark.filterwarnings("default"),
]


def file_system(store: dedupfs.Store, **options: Any) -> Any:
    from dedupfs.api.filesystem import DedupfsFileSystem

    fsspec.register_implementation("dedupfs", DedupfsFileSystem, clobber=True)
    return fsspec.filesystem("dedupfs", store=str(store.path), **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dedupfs.Store]:
    """One store for all of fsspec's tests, in memory if it can be; checked when they are done."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path_factory.mktemp("shared")
    with (
        tempfile.TemporaryDirectory(prefix="dedupfs-", dir=place) as directory,
        dedupfs.Store.create(Path(directory) / "store") as store,
    ):
        yield store
        assert store.check() == []


@pytest.fixture(scope="module")
def view_fs(shared: dedupfs.Store) -> Iterator[Any]:
    fs = file_system(shared, view="tests")
    fs.mkdir("scratch")
    yield fs
    fs.close()


@pytest.fixture(scope="module")
def snapshots_fs(shared: dedupfs.Store) -> Iterator[Any]:
    fs = file_system(shared)
    yield fs
    fs.close()


class ViewFixtures(abstract.AbstractFixtures):  # type: ignore[misc, name-defined]
    """A view whose directory ``scratch`` is the tests' own."""

    @pytest.fixture
    def fs(self, view_fs: Any) -> Any:
        return view_fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "scratch"


class TestCopy(abstract.AbstractCopyTests, ViewFixtures):  # type: ignore[misc, name-defined]
    pass


class TestGet(abstract.AbstractGetTests, ViewFixtures):  # type: ignore[misc, name-defined]
    pass


class TestPut(abstract.AbstractPutTests, ViewFixtures):  # type: ignore[misc, name-defined]
    pass


class TestOpen(abstract.AbstractOpenTests, ViewFixtures):  # type: ignore[misc, name-defined]
    pass


class TestPipe(abstract.AbstractPipeTests, ViewFixtures):  # type: ignore[misc, name-defined]
    pass


def imported(maker: str) -> Any:
    """Return a fixture: a snapshot of what ``maker`` makes in a directory."""

    @pytest.fixture
    def source(
        self: Any, shared: dedupfs.Store, local_fs: Any, local_join: Any, tmp_path: Path
    ) -> Iterator[str]:
        made = getattr(self, maker)(local_fs, local_join, str(tmp_path / "made"))
        snapshot = shared.import_tree(tmp_path / "made", "made")
        shutil.rmtree(tmp_path / "made")
        yield f"made/{Path(made).relative_to(tmp_path / 'made')}"
        snapshot.remove()

    return source


class TestGetFromSnapshot(abstract.AbstractGetTests, abstract.AbstractFixtures):  # type: ignore[misc, name-defined]
    @pytest.fixture
    def fs(self, snapshots_fs: Any) -> Any:
        return snapshots_fs

    fs_bulk_operations_scenario_0 = imported("_bulk_operations_scenario_0")
    fs_glob_edge_cases_files = imported("_glob_edge_cases_files")
    fs_dir_and_file_with_same_name_prefix = imported("_dir_and_file_with_same_name_prefix")
    fs_10_files_with_hashed_names = imported("_10_files_with_hashed_names")
    test_get_directory_recursive = None  # it writes


@pytest.fixture
def fs(store: dedupfs.Store) -> Iterator[Any]:
    fs = file_system(store)
    yield fs
    fs.close()


def test_a_snapshot_is_listed_and_read_by_its_url(fs: Any, store: dedupfs.Store) -> None:
    assert fs.ls("", detail=False) == ["one"]
    assert fs.ls("dedupfs://one/a", detail=False) == ["one/a/b", "one/a/link", "one/a/x.txt"]
    assert [one["name"] for one in fs.ls("one/a/b")] == ["one/a/b/big"]
    assert sorted(fs.find("one/a")) == ["one/a/b/big", "one/a/link", "one/a/x.txt"]
    assert fs.isdir("one/to-a")
    assert fs.info("one/to-a/x.txt")["size"] == 6
    assert not fs.exists("one/out/x")
    assert not fs.exists("two/x")
    assert fs.cat_file("one/a/b/big", start=10, end=30) == BIG[10:30]
    assert fs.created("one/a") == store["one"].created
    assert fs.info("one/a/x.txt")["mtime_ns"] == store["one"].stat("a/x.txt").mtime_ns
    assert int(fs.modified("one/a/x.txt").timestamp()) == int(store["one"].stat("a/x.txt").mtime)
    options = {"store": str(store.path)}
    with fsspec.open("dedupfs://one/a/link", "rt", **options) as file:
        assert file.read() == "hello\n"


def test_a_snapshot_cannot_be_written_to_and_the_error_says_what_to_do(fs: Any) -> None:
    writes: list[Callable[[], Any]] = [
        lambda: fs.open("one/new", "wb"),
        lambda: fs.rm("one", recursive=True),
        lambda: fs.mkdir("one/d"),
        lambda: fs.pipe_file("one/a/x.txt", b""),
    ]
    for write in writes:
        with pytest.raises(OSError, match="view=NAME"):
            write()


def test_the_store_must_be_named(monkeypatch: pytest.MonkeyPatch, store: dedupfs.Store) -> None:
    monkeypatch.delenv("DEDUPFS_STORE", raising=False)
    file_system(store).close()
    with pytest.raises(ValueError, match="DEDUPFS_STORE"):
        fsspec.filesystem("dedupfs")
    monkeypatch.setenv("DEDUPFS_STORE", str(store.path))
    fs = fsspec.filesystem("dedupfs")
    assert fs.cat("one/a/x.txt") == b"hello\n"
    fs.close()


def test_a_local_cache_gives_a_path_to_what_needs_one(store: dedupfs.Store, fs: Any) -> None:
    url = "simplecache::dedupfs://one/a/b/big"
    path = fsspec.open_local(url, dedupfs={"store": str(store.path)})
    assert Path(path).read_bytes() == BIG


def test_an_installed_dedupfs_tells_fsspec_of_its_protocol() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    place = project["entry-points"]["fsspec.specs"]["dedupfs"]
    program = (
        "import sys, fsspec; fsspec.register_implementation('dedupfs', sys.argv[1]);"
        "print(fsspec.get_filesystem_class('dedupfs').protocol)"
    )
    command = [sys.executable, "-c", program, place.replace(":", ".")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert done.stdout == "dedupfs\n"


def test_a_file_in_a_view_is_written_in_any_mode(store: dedupfs.Store) -> None:
    fs = file_system(store, view="modes")
    fs.pipe({"d/a": b"1", "d/b": b"2"})
    with fs.open("d/a", "ab") as file:
        file.write(b"3")
    assert fs.cat(["d/a", "d/b"]) == {"d/a": b"13", "d/b": b"2"}
    fs.mv("d/a", "d/c")
    assert fs.commit("made", "d", tags={"n": 1}).ls() == ["b", "c"]
    assert io.BytesIO(fs.cat_file("one/a/b/big")).read() == BIG
    fs.close()
