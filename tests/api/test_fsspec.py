"""fsspec's own tests of a file system, on a view and on snapshots; and what reads through fsspec.

A snapshot cannot be written to, so of its source directories each is made on the disk by the same
code, imported, and read from there; tests that write are left to the view.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import pickle
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


def test_caches_see_that_a_name_stands_for_other_bytes(
    store: dedupfs.Store, fs: Any, tmp_path: Path
) -> None:
    store["one"].clone("two")
    told, copy = fs.info("one/a/b/big"), fs.info("two/a/b/big")
    assert (told["ETag"], told["size"]) == (copy["ETag"], len(BIG))
    assert "ETag" not in fs.info("one/a")
    keys = fs.ukey("two/a/b/big"), fs.checksum("two/a/b/big")
    assert keys == (fs.ukey("two/a/b/big"), fs.checksum("two/a/b/big"))
    cached = fsspec.filesystem("filecache", fs=fs, cache_storage=str(tmp_path / "c"), check_files=1)
    assert cached.cat_file("two/a/b/big") == BIG
    times = store["one"].stat("a/b/big")
    store["two"].remove()
    with store.scratch(snapshot="one") as view:
        view.write_bytes("a/b/big", BIG[::-1])
        view.utime("a/b/big", ns=(times.atime_ns, times.mtime_ns))
        view.commit("two")
    assert fs.info("two/a/b/big")["mtime_ns"] == times.mtime_ns
    assert fs.ukey("two/a/b/big") != keys[0]
    assert fs.checksum("two/a/b/big") != keys[1]
    assert cached.cat_file("two/a/b/big") == BIG[::-1]


def test_ranges_are_read_and_files_are_cached_by_blocks(fs: Any) -> None:
    path = "one/a/b/big"
    starts = [0, 5000, len(BIG) - 10]
    got = fs.cat_ranges([path] * 3, starts, [one + 100 for one in starts])
    assert got == [BIG[one : one + 100] for one in starts]
    assert fs.cat_ranges(["one/nope"], [0], [1], on_error="return")[0].errno == errno.ENOENT
    assert (fs.head(path, 10), fs.tail(path, 10)) == (BIG[:10], BIG[-10:])
    assert fs.read_block(path, 100, 50) == BIG[100:150]
    for kind in ("readahead", "blockcache", "none"):
        with fs.open(path, cache_type=kind, block_size=1 << 16) as file:
            file.seek(1 << 20)
            assert file.read(10) == BIG[1 << 20 : (1 << 20) + 10]


def test_a_file_system_is_pickled_and_told_by_what_it_was_made_with(
    fs: Any, store: dedupfs.Store
) -> None:
    again = pickle.loads(pickle.dumps(fs))
    assert again is fs  # fsspec keeps one for each set of arguments
    opened = pickle.loads(pickle.dumps(fsspec.core.OpenFile(fs, "one/a/x.txt", "rt")))
    with opened as file:
        assert file.read() == "hello\n"
    store["one"].clone("later")  # what the store gets meanwhile is seen
    assert fs.ls("", detail=False) == ["later", "one"]
    store["later"].remove()
    assert not fs.exists("later")


def test_errors_are_those_that_fsspec_expects(fs: Any) -> None:
    calls: list[tuple[Callable[[], Any], type[OSError]]] = [
        (lambda: fs.info("nope"), FileNotFoundError),
        (lambda: fs.open("one/nope"), FileNotFoundError),
        (lambda: fs.cat_file("one/a"), IsADirectoryError),
        (lambda: fs.ls("one/a/x.txt/y"), NotADirectoryError),
        (lambda: fs.open("one/a/x.txt", "wb"), OSError),
    ]
    for call, error in calls:
        with pytest.raises(error):
            call()


def test_hidden_and_special_names_are_globbed(store: dedupfs.Store) -> None:
    fs = file_system(store, view="names")
    fs.pipe({f"d/{name}": b"" for name in ("a b", ".hidden", "x[1]", "%41", "\u00e9")})
    assert sorted(fs.glob("d/*")) == sorted(
        f"d/{name}" for name in ("a b", ".hidden", "x[1]", "%41", "\u00e9")
    )
    assert fs.glob("d/x[[]1]") == ["d/x[1]"]
    assert fs.cat_file("dedupfs://d/%41") == b""  # a path, not a URL that is decoded
    fs.close()


def test_an_asynchronous_user_is_served(fs: Any) -> None:
    wrapper = pytest.importorskip("fsspec.implementations.asyn_wrapper")
    wrapped = wrapper.AsyncFileSystemWrapper(fs, asynchronous=True)

    async def read() -> list[bytes]:
        jobs = [wrapped._cat_file("one/a/b/big", n, n + 10) for n in range(5)]
        return list(await asyncio.gather(*jobs))

    assert asyncio.run(read()) == [BIG[n : n + 10] for n in range(5)]


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
