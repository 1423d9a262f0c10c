"""limit, and what commands do at a limit: exit code 5, nothing half made, and no limit lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import view_directory
from dedupfs.store import Store
from dedupfs.store.limits import LIMIT_NAME
from tests.cli.conftest import Run

MIB = 1 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory of 4 MiB that no zstd shrinks: half of it in small files."""
    directory = tmp_path / "large"
    directory.mkdir()
    bytes_of = random.Random(1).randbytes
    (directory / "one").write_bytes(bytes_of(2 * MIB))
    for number in range(32):
        (directory / f"small{number}").write_bytes(bytes_of(64 << 10))
    return directory


def make_view(store_path: Path, name: str, size: int) -> None:
    with Store.open(store_path) as store:
        view = View.bring_back(store, name)
        handle, _attr = view.create(1, b"file", 0o644, Caller(0, 0, 0))
        view.write(handle, 0, random.Random(name).randbytes(size))
        view.release(handle)
        view.close()


def test_a_limit_is_shown_and_set_and_taken_away(run: Run, store_path: Path, large: Path) -> None:
    assert run("limit", store_path, "--json").json["limit_bytes"] is None
    run("import", store_path, large)
    shown = run("limit", store_path, "10MiB", "--json").json
    assert shown["limit_bytes"] == 10 * MIB
    assert 4 * MIB < shown["used_bytes"] < 5 * MIB
    assert shown["left_bytes"] == 10 * MIB - shown["used_bytes"]
    assert "10.0 MiB" in run("limit", store_path).out
    assert run("stats", store_path, "--json").json["limit_bytes"] == 10 * MIB
    run("limit", store_path, "none")
    assert run("limit", store_path, "--json").json["left_bytes"] is None


def test_the_limit_of_a_view_is_in_the_list_of_views(run: Run, store_path: Path) -> None:
    make_view(store_path, "job", MIB)
    make_view(store_path, "other", MIB)
    run("limit", store_path, "3MiB", "--view", "job")
    listed = {row["name"]: row for row in run("view", "list", store_path, "--json").json}
    assert listed["job"]["limit_bytes"] == 3 * MIB
    assert MIB < listed["job"]["used_bytes"] < 2 * MIB
    assert listed["other"]["limit_bytes"] is None
    assert "3.0 MiB" in run("view", "list", store_path).out


def test_what_cannot_be_a_limit_is_refused(run: Run, store_path: Path) -> None:
    run("limit", store_path, "much", code=2)
    run("limit", store_path, "-1", code=2)
    run("limit", store_path, str(1 << 64), code=2)
    run("limit", store_path, "1MiB", "--view", "../x", code=2)
    run("limit", store_path, "1MiB", "--view", "nobody", code=1)
    run("limit", store_path, "--view", "nobody", code=1)
    run("limit", store_path / "nowhere", code=2)
    assert not list(store_path.rglob(LIMIT_NAME))


def test_an_import_over_the_limit_makes_no_snapshot(
    run: Run, store_path: Path, large: Path, data: Path
) -> None:
    run("import", store_path, data, "first")
    run("limit", store_path, "1MiB")
    assert "limit" in run("import", store_path, large, code=5).err
    assert [row["name"] for row in run("ls", store_path, "--json").json] == ["first"]
    run("gc", store_path)
    assert run("limit", store_path, "--json").json["used_bytes"] < MIB
    run("import", store_path, data, "again")
    run("rm", store_path, "first")
    run("limit", store_path, "6MiB")
    run("import", store_path, large)
    run("import", store_path, large, "same", "--reread")


def test_a_store_at_its_limit_takes_what_it_has(run: Run, store_path: Path, large: Path) -> None:
    run("import", store_path, large)
    used = run("limit", store_path, "--json").json["used_bytes"]
    run("limit", store_path, str(used + (64 << 10)))
    run("import", store_path, large, "same", "--reread")
    run("limit", store_path, "0")
    run("clone", store_path, "large", "third")
    run("tag", store_path, "third", "a=b")
    run("rm", store_path, "large", "same", "third")


def test_reindex_keeps_limits(run: Run, store_path: Path, large: Path) -> None:
    run("import", store_path, large)
    make_view(store_path, "job", MIB)
    run("limit", store_path, "10MiB")
    run("limit", store_path, "3MiB", "--view", "job")
    before = run("limit", store_path, "--view", "job", "--json").json
    for path in (store_path / "index").iterdir():
        path.unlink()
    run("reindex", store_path)
    assert run("limit", store_path, "--json").json["limit_bytes"] == 10 * MIB
    after = run("limit", store_path, "--view", "job", "--json").json
    assert after["limit_bytes"] == before["limit_bytes"]
    assert abs(after["used_bytes"] - before["used_bytes"]) < 8192
    with Store.open(store_path) as store:
        view = View.bring_back(store, "job")
        assert view.quota.use_bytes() >= after["used_bytes"]
        view.close()


def test_a_limit_that_a_newer_dedupfs_has_set_is_not_ignored(
    run: Run, store_path: Path, data: Path
) -> None:
    make_view(store_path, "job", 1000)
    for directory in (store_path, view_directory(store_path, "job")):
        (directory / LIMIT_NAME).write_text('{"format_version": 9, "limit_bytes": 1}')
    assert "newer" in run("limit", store_path, code=4).err
    assert "newer" in run("limit", store_path, "--view", "job", code=4).err
    assert "newer" in run("import", store_path, data, code=4).err
    run("limit", store_path, "none")
    run("limit", store_path, "none", "--view", "job")
    run("import", store_path, data)


def test_a_dedupe_leaves_alone_what_the_limit_leaves_no_room_for(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for name, seed in (("a1", 1), ("a2", 1), ("b1", 2), ("b2", 2)):
        (copies / name).write_bytes(random.Random(seed).randbytes(MIB))
    run("limit", store_path, "1500KiB")
    report = run("dedupe", store_path, copies, "--link", "hardlink", "--json").json
    assert report["replaced"] == 1
    assert [problem["path"] for problem in report["problems"]] == ["b1"]
    assert "the store's limit" in report["problems"][0]["message"]
    assert (copies / "b1").stat().st_mode & 0o200
    run("limit", store_path, "none")
    assert run("dedupe", store_path, copies, "--json").json["replaced"] == 1
    run("dedupe", "--undo", store_path, copies)
    run("check", store_path)


def test_a_checkout_does_not_put_files_together_beyond_the_limit(
    run: Run, store_path: Path, large: Path, tmp_path: Path
) -> None:
    run("import", store_path, large, "one")
    run("limit", store_path, "5MiB")
    out = tmp_path / "out"
    arguments = ("checkout", store_path, "one", out, "--link", "symlink", "--link-min", "1MiB")
    assert "the store's limit" in run(*arguments, code=5).err
    run("limit", store_path, "8MiB")
    run(*arguments)
    assert (out / "one").is_symlink()
    assert (out / "one").read_bytes() == (large / "one").read_bytes()
    run("checkout", "verify", out, "--full")
    run("check", store_path)
