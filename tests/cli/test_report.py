"""`report` writes one page, or the same numbers as JSON, and leaves nothing else behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dedupfs.maintenance.usage import exclusive_bytes
from dedupfs.store import Store
from tests.cli.conftest import Run


@pytest.fixture
def filled(store_path: Path, data: Path, run: Run) -> Path:
    run("import", store_path, data, "first")
    (data / "sub" / "c.bin").write_bytes(bytes(range(255, -1, -1)) * 300)
    run("import", store_path, data, "second", "--tag", "loss=0.5")
    run("clone", store_path, "first", "third")
    run("pin", store_path, "third")
    return store_path


def test_the_page_is_written_and_only_it(filled: Path, tmp_path: Path, run: Run) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    target = directory / "report.html"
    old = os.umask(0o022)
    try:
        said = run("report", filled, "-o", target)
    finally:
        os.umask(old)
    assert said.out.startswith(f"wrote {target}: ")
    assert said.err == ""
    assert os.listdir(directory) == ["report.html"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    text = target.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "loss=0.5" in text


def test_a_dash_is_standard_output(filled: Path, run: Run) -> None:
    assert run("report", filled, "-o", "-").out.startswith("<!DOCTYPE html>")


def test_without_a_target_it_says_what_is_missing(filled: Path, run: Run) -> None:
    assert "-o report.html" in run("report", filled, code=2).err


def test_the_json_has_the_numbers_of_stats_and_of_a_removal(filled: Path, run: Run) -> None:
    run("gc", filled)
    found: dict[str, Any] = run("report", filled, "--json").json
    usage = run("stats", filled, "--json").json
    for key in ("logical_bytes", "unique_bytes", "stored_bytes", "metadata_bytes", "entries"):
        assert found["store_usage"][key] == usage[key]
    listed = {space["name"]: space for space in run("du", filled, "--json").json["snapshots"]}
    assert {space["name"] for space in found["snapshots"]} == listed.keys()
    for space in found["snapshots"]:
        assert space["logical_bytes"] == listed[space["name"]]["logical_bytes"]
    assert found["views"] == []
    assert found["matrix"]["names"] == ["first", "second", "third"]
    (prune,) = [found for found in found["prunes"] if found["rule"] == "--keep-last 2"]
    assert prune["removed"] == ["first"]
    with Store.open(filled) as store:
        assert prune["freed_bytes"] == exclusive_bytes(store, ["first"]).stored_bytes


def test_json_may_go_to_a_file(filled: Path, tmp_path: Path, run: Run) -> None:
    run("report", filled, "--json", "-o", tmp_path / "numbers.json")
    assert (tmp_path / "numbers.json").read_text().startswith("{")


def test_nothing_is_written_into_the_store(filled: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "link").symlink_to(filled / "packs")
    for target in (filled / "report.html", filled / "run" / "r", tmp_path / "link" / "r"):
        assert "lies in the store" in run("report", filled, "-o", target, code=2).err
        assert not target.exists()


def test_an_old_report_stays_when_the_new_one_fails(filled: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    run("report", tmp_path / "no store", "-o", target, code=2)
    assert target.read_text() == "old"
    run("report", filled, "--json", "-o", target)
    assert target.read_text() != "old"


def test_a_directory_that_is_not_there_is_one_line(filled: Path, tmp_path: Path, run: Run) -> None:
    said = run("report", filled, "-o", tmp_path / "none" / "report.html", code=7)
    assert said.err.count("\n") == 1
    assert "cannot write" in said.err


def test_a_directory_is_no_file_to_write(filled: Path, tmp_path: Path, run: Run) -> None:
    assert "cannot write" in run("report", filled, "--json", "-o", tmp_path, code=7).err


def test_a_link_to_a_report_stays_a_link(filled: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    run("report", filled, "--json", "-o", tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text().startswith("{")


def test_a_pipe_is_written_to_and_not_replaced(filled: Path, tmp_path: Path, run: Run) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        run("report", filled, "--json", "-o", pipe)
        out, _ = reader.communicate(timeout=60)
    assert out.startswith("{")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_empty_store_has_a_report(store_path: Path, run: Run) -> None:
    assert "This store is empty" in run("report", store_path, "-o", "-").out
    assert run("report", store_path, "--json").json["snapshots"] == []


def test_a_missing_library_is_one_line_that_says_what_to_install(filled: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dedupfs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "report", str(filled), "-o", "-"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "pip install 'dedupfs[report]'" in found.stderr
    found = subprocess.run(
        [*command[:-2], "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0
