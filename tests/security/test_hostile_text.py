"""Names, tags and messages cannot act on a terminal, forge a line or a log record, or lead astray.

Method: real commands over a tree of hostile names; progress is drawn on a real pseudo-terminal.
"""

from __future__ import annotations

import io
import logging
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.cli.output import LineFormatter
from dedupfs.errors import StoreError
from dedupfs.namespace import live
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY

TITLE = "\x1b]0;pwned\x07"
HOSTILE = [
    f"{TITLE}red\x1b[31m",
    "two\nlines: dedupfs: forged",
    "back\b\b\bspace\r",
    "right\u202eot left",
    "not text \udcff",
    "c1 \x9b31m",
    "[bold]markup[bold]",
    "-rf",
]


def is_plain(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.fixture
def store_path(tmp_path: Path, run: Run) -> Iterator[Path]:
    source = tmp_path / "source"
    source.mkdir()
    for name in HOSTILE:
        (source / name).write_bytes(b"1")
        (source / f"{name}-link").symlink_to(name)
    path = tmp_path / "store"
    run("init", path, "--chunk-size", "4KiB")
    run("import", path, source, "s")
    (source / HOSTILE[0]).unlink()
    run("import", path, source, "t")
    yield path
    run("check", path)


def test_listings_are_plain_and_json_is_exact(store_path: Path, run: Run) -> None:
    for arguments in (
        ["ls", store_path, "s"],
        ["ls", "-l", "-R", store_path, "s"],
        ["find", store_path, "*"],
        ["diff", store_path, "s", "t"],
        ["ls", store_path],
    ):
        text = run(*arguments).out
        assert is_plain(text), arguments
    assert len(run("ls", store_path, "s").out.splitlines()) == 2 * len(HOSTILE)
    listed = run("ls", "--json", store_path, "s").json
    assert {entry["path"] for entry in listed if "target" not in entry} == set(HOSTILE)
    assert {entry["target"] for entry in listed if "target" in entry} == set(HOSTILE)
    (difference,) = run("diff", "--json", store_path, "s", "t").json[-1:]
    assert difference["path"] == HOSTILE[0]


@pytest.mark.parametrize("name", HOSTILE[:-1], ids=ascii)
def test_a_store_can_lie_at_any_path(tmp_path: Path, run: Run, name: str) -> None:
    path, data = tmp_path / name, tmp_path / "data"
    data.mkdir()
    (data / "file").write_bytes(b"x" * 10_000)
    run("init", path)
    run("import", path, data, "one")
    assert run("cat", path, "one:file").out == "x" * 10_000
    for arguments in (["stats", path], ["status", path], ["view", "list", path], ["gc", path]):
        assert is_plain(run(*arguments).out)
    run("reindex", path)
    run("check", path)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_errors_are_one_plain_line(store_path: Path, tmp_path: Path, run: Run, name: str) -> None:
    for arguments in (
        ["ls", store_path, "--", name],
        ["ls", tmp_path / name],
        ["cat", store_path, "--", f"s:{name}/x"],
        ["import", store_path, tmp_path / name],
        ["import", store_path, tmp_path / "source", "--", name],
        ["export", store_path, "--", f"s:{name}", tmp_path / "out"],
        ["umount", "--", name],
        ["view", "rm", store_path, "--", name],
        ["commit", store_path, "--", name],
        ["rename", store_path, "--", "s", name],
    ):
        from dedupfs.cli import main

        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            code = main([str(argument) for argument in arguments])
            said = sys.stderr.getvalue()
        finally:
            sys.stderr = stderr
        assert code in (1, 2, 3, 7), (arguments, said)
        assert len(said.splitlines()) == 1, said
        assert said.startswith("dedupfs: ")
        assert is_plain(said), ascii(said)


def test_tags_are_plain_and_json_is_exact(store_path: Path, run: Run) -> None:
    tags = {f"key-{number}": text for number, text in enumerate(HOSTILE) if text.isascii()}
    run("tag", store_path, "s", *[f"{key}={value}" for key, value in tags.items()])
    for arguments in (["tag", store_path, "s"], ["ls", store_path]):
        assert is_plain(run(*arguments).out)
    assert len(run("ls", store_path).out.splitlines()) == 3
    assert run("tag", "--json", store_path, "s").json == tags
    assert {info["name"]: info["tags"] for info in run("ls", "--json", store_path).json}[
        "s"
    ] == tags
    assert "UTF-8" in run("tag", store_path, "s", "a=\udcff", code=2).err


@pytest.mark.root
def test_problems_are_plain_lines(store_path: Path, tmp_path: Path, run: Run) -> None:
    """Method: sockets have no place in a tar stream, so each is a problem."""
    source = tmp_path / "sockets"
    source.mkdir()
    for name in HOSTILE:
        os.mknod(source / name, stat.S_IFSOCK | 0o600)
    run("import", store_path, source, "sockets")
    said = run("export", store_path, "sockets", "--tar", tmp_path / "out.tar", code=7).err
    assert len(said.splitlines()) == len(HOSTILE) + 1
    assert is_plain(said)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/abs", "-x", ".x", "x" * 256, "a\n"]
)
def test_names_of_snapshots_and_views_that_lead_elsewhere(
    store_path: Path, tmp_path: Path, run: Run, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    mountpoint = tmp_path / "mnt"
    for arguments in (
        ["import", store_path, tmp_path / "source", "--", name],
        ["clone", store_path, "--", "s", name],
        ["rename", store_path, "--", "s", name],
        ["view", "rm", store_path, "--", name],
    ):
        assert run(*arguments, code=2).err.count("\n") == 1
    from dedupfs.namespace.view import View

    with Store.open(store_path) as store, pytest.raises(Exception, match="view name"):
        View.bring_back(store, name, mountpoint=str(mountpoint))
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_on_a_terminal_shows_no_escapes_of_names(store_path: Path, tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "dedupfs", "import", "--reread"]
    process = subprocess.Popen(
        [*command, str(store_path), str(tmp_path / "source"), "again"],
        stderr=terminal,
        stdout=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(terminal)
    said = b""
    try:
        while part := os.read(master, 65536):
            said += part
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(master)
    assert process.wait() == 0
    assert said, "a bar was drawn"
    for forbidden in (b"\x1b]0;", b"\x1b[31mr", b"\b\b\b", "\u202e".encode(), b"\nlines"):
        assert forbidden not in said


def test_a_log_record_is_one_line_and_a_traceback_stays() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("tests.security.text")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        for name in HOSTILE:
            logger.info("removed %s", name)
            logger.warning("removed %s: %s", name, StoreError(name))
        try:
            raise StoreError("x")
        except StoreError:
            logger.exception("bug name=%s", HOSTILE[1])
    finally:
        logger.removeHandler(handler)
    lines = out.getvalue().splitlines()
    assert is_plain(out.getvalue())
    assert len([line for line in lines if line.startswith("WARNING")]) == len(HOSTILE)
    assert lines[-1].endswith("StoreError: x")
    assert "  Traceback (most recent call last):" in lines


def test_what_a_daemon_says_is_escaped_too(capfd: pytest.CaptureFixture[str]) -> None:
    from dedupfs.cli.failures import _say

    _say(str(live.Failed("StoreError", f"{TITLE}\nforged").raised()))
    said = capfd.readouterr().err
    assert is_plain(said)
    assert said.count("\n") == 1


@pytest.mark.fuse
@pytest.mark.parametrize("name", [TITLE, "two\nlines", "no text \udcff", "caf\xe9"], ids=ascii)
def test_a_mount_point_can_have_any_name(tmp_path: Path, run: Run, name: str) -> None:
    store, path = tmp_path / "store", tmp_path / name
    path.mkdir()
    run("init", store)
    command = [sys.executable, "-m", "dedupfs", "mount", str(store), str(path)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    try:
        (path / "f").write_bytes(b"1")
        assert run("commit", path, "s").out == "s: 1 entry, 1 B\n"
        assert is_plain(run("view", "list", store).out)
        again = subprocess.run(
            command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )
        assert again.returncode == 8
        assert len(again.stderr.splitlines()) == 1
        assert is_plain(again.stderr)
    finally:
        run("umount", path)
    assert os.listdir(path) == []
    run("check", store)
