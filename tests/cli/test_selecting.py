"""The options of `import` as they are typed: what of a directory is taken, of what time it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.cli.conftest import Ran, Run


def names_in(run: Run, store: Path, snapshot: str) -> list[str]:
    return [str(entry["path"]) for entry in run("ls", "-R", store, snapshot, "--json").json]


def importing(run: Run, store: Path, data: Path, *options: object, code: int = 0) -> Ran:
    return run("import", store, data, "one", *options, code=code)


def test_patterns_of_options_win_over_those_of_files(
    run: Run, store_path: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "patterns").write_text("# all\n*.txt\n*.bin\n")
    options = ("--exclude-from", tmp_path / "patterns", "--exclude", "!b.*", "--exclude", "pointer")
    importing(run, store_path, data, *options)
    assert names_in(run, store_path, "one") == ["sub", "sub/b.bin"]


def test_gitignore_and_caches(run: Run, store_path: Path, data: Path) -> None:
    (data / ".gitignore").write_text("*.txt\n")
    (data / ".git").mkdir()
    (data / "sub" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55")
    importing(run, store_path, data, "--gitignore", "--exclude-caches")
    names = [".gitignore", "pointer", "sub", "sub/CACHEDIR.TAG"]
    assert names_in(run, store_path, "one") == names


@pytest.mark.parametrize("end", [b"\0", b"\n"])
def test_a_list_comes_from_standard_input(
    run: Run, store_path: Path, data: Path, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = end.join([b"sub/b.bin", b"gone", b""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    said = importing(run, store_path, data, "--files-from", "-", code=7)
    assert "gone: left out: there is no such file" in said.err
    assert names_in(run, store_path, "one") == ["sub", "sub/b.bin"]


def test_what_cannot_be_a_list_is_refused(
    run: Run, store_path: Path, data: Path, tmp_path: Path
) -> None:
    said = importing(run, store_path, data, "--exclude-from", tmp_path / "none", code=2)
    assert "cannot read" in said.err
    (tmp_path / "empty").write_text("\n")
    said = importing(run, store_path, data, "--files-from", tmp_path / "empty", code=2)
    assert "names nothing" in said.err
    (tmp_path / "outside").write_text("../store\n")
    said = importing(run, store_path, data, "--files-from", tmp_path / "outside", code=2)
    assert "no path below" in said.err
    both = ("--files-from", "-", "--exclude-from", "-")
    assert "read once" in importing(run, store_path, data, *both, code=2).err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2026-11-22T03:00:00+01:00", 1_795_312_800), ("@1700000000", 1_700_000_000)],
)
def test_a_snapshot_may_be_older_than_its_import(
    run: Run, store_path: Path, data: Path, text: str, seconds: int
) -> None:
    importing(run, store_path, data, "--time", text)
    [snapshot] = run("ls", store_path, "--json").json
    assert snapshot["created_ns"] == seconds * 10**9


@pytest.mark.parametrize("text", ["yesterday", "@", "1969-01-01", "9999-12-31", "@99999999999"])
def test_what_is_no_time_is_refused(run: Run, store_path: Path, data: Path, text: str) -> None:
    assert text in importing(run, store_path, data, "--time", text, code=2).err
