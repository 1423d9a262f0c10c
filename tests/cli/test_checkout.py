"""The command checkout: its words, its exit codes, what it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

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
