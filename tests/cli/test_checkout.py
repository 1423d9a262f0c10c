"""The command checkout: its words, its exit codes, what it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.store import Store
from tests.checkout.places import SETTINGS, sound
from tests.maintenance.samples import import_directory, make_directory


def run(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "dedupfs", *map(str, arguments)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def test_a_checkout_from_its_making_to_its_end(tmp_path: Path) -> None:
    path, out = tmp_path / "store", tmp_path / "out"
    with Store.create(path, **SETTINGS) as store:
        import_directory(store, make_directory(tmp_path / "one"), "one")
    made = json.loads(run("checkout", path, "one", out, "--link", "symlink", "--json"))
    assert made["linked_files"] == 2
    assert (out / "large").read_bytes() == (tmp_path / "one" / "large").read_bytes()
    (listed,) = json.loads(run("checkout", "list", path, "--json"))
    assert (listed["directory"], listed["state"]) == (str(out), "complete")
    (verified,) = json.loads(run("checkout", "verify", out, "--full", "--json"))
    assert verified["ok"]
    assert verified["saved_bytes"] >= 150_000
    (out / "medium").unlink()
    assert "missing: medium" in run("checkout", "verify", path, code=7)
    run("checkout", "update", out)
    run("checkout", "verify", out)
    run("checkout", "rm", out, "--keep-files", code=2)
    run("checkout", "rm", out)
    assert not out.exists()
    assert json.loads(run("checkout", "list", path, "--json")) == []
    run("checkout", "rm", "--store", path, 1, code=1)
    with Store.open(path) as store:
        sound(store)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Have nothing changed in a directory meanwhile, not even by root."""
    subprocess.run(["mount", "--bind", directory, directory], check=True, timeout=60)
    try:
        command = ["mount", "-o", "remount,bind,ro", str(directory)]
        subprocess.run(command, check=True, timeout=60)
        yield
    finally:
        subprocess.run(["umount", directory], check=True, timeout=60)


@pytest.mark.root
@pytest.mark.parametrize("what", ["rm", "update"])
def test_a_link_that_cannot_be_removed_does_not_break(tmp_path: Path, what: str) -> None:
    path, out, source = tmp_path / "store", tmp_path / "out", tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "large").write_bytes(bytes(range(256)) * 1000)
    with Store.create(path, **SETTINGS) as store:
        import_directory(store, make_directory(tmp_path / "other"), "other")
        import_directory(store, source, "one")
    run("checkout", path, "one", out, "--link", "symlink")
    run("rm", path, "one")
    with read_only(out / "sub"):
        more = ["other"] if what == "update" else []
        told = json.loads(run("checkout", what, out, *more, "--json", code=7))
        assert {"sub", "sub/large"} <= {problem["path"] for problem in told["problems"]}
        run("gc", path)
        assert (out / "sub/large").read_bytes() == (source / "sub/large").read_bytes()
        assert len(json.loads(run("checkout", "list", path, "--json"))) == 1
    assert json.loads(run("checkout", "rm", out, "--json"))["problems"] == []
    assert out.exists() == (what == "update")  # which has told of a file that is nobody's now
    assert json.loads(run("checkout", "list", path, "--json")) == []
    with Store.open(path) as store:
        sound(store)


def test_a_deduped_directory_that_was_deleted_is_forgotten_by_its_number(tmp_path: Path) -> None:
    path, copies = tmp_path / "store", tmp_path / "copies"
    copies.mkdir()
    for name in ("a", "b"):
        (copies / name).write_bytes(bytes(range(256)) * 400)
    Store.create(path, **SETTINGS).close()
    run("dedupe", path, copies, "--link", "symlink", "--min-size", "4KiB")
    run("checkout", "rm", "--gone", "--store", path, 1, code=2)
    shutil.rmtree(copies)
    assert "gone" in run("checkout", "list", path)
    run("checkout", "rm", "--store", path, 1, code=2)
    assert "copies-deduped" in run("checkout", "rm", "--gone", "--store", path, 1)
    assert json.loads(run("checkout", "list", path, "--json")) == []
    with Store.open(path) as store:
        sound(store)
