"""top: what a mount does, in numbers that only grow, for people, pipes and programs."""

from __future__ import annotations

import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dedupfs.namespace import live
from tests.cli.conftest import Run, answering
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, Daemons, Mounted

pytest.importorskip("pyfuse3")
FILE_BYTES = 3 << 20


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    daemons = Daemons(tmp_path)
    yield daemons.start()
    daemons.end_all()


def look(run: Run, store: Path) -> Any:
    document = run("top", store, "--once", "--json", "--interval", "0.1").json
    (mount,) = document["mounts"]
    return mount


@pytest.mark.fuse
def test_numbers_grow_by_what_was_done(run: Run, mounted: Mounted) -> None:
    before = look(run, mounted.store)
    data = random.Random("top").randbytes(FILE_BYTES)
    for name in ("a", "b"):
        (mounted.path / name).write_bytes(data)
    with (mounted.path / "a").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == data
        during = look(run, mounted.store)
    (daemon,) = live.daemons(mounted.store)
    live.ask(daemon.socket_path, live.Fold())
    after = look(run, mounted.store)
    assert during["gauges"]["open_files"] == 1
    assert after["gauges"]["open_files"] == 0
    assert after["requests_total"]["create"] - before["requests_total"]["create"] == 2
    grown = {name: total - before["totals"][name] for name, total in after["totals"].items()}
    assert grown["written_bytes"] == 2 * FILE_BYTES
    assert 0 < grown["read_bytes"] <= 2 * FILE_BYTES
    assert FILE_BYTES <= grown["inserted_bytes"] < FILE_BYTES * 1.1, "the second file is the first"
    assert grown["found_bytes"] >= FILE_BYTES * 0.9
    assert after["since_ns"] == before["since_ns"]
    assert after["mountpoint"] == str(mounted.path)
    assert after["pid"] == mounted.process.pid
    with pytest.raises(FileNotFoundError):
        (mounted.path / "nothing").stat()
    for names in (after["totals"], after["gauges"]):
        for name in names:
            assert name in (REPOSITORY / "docs" / "cli.md").read_text(), "every name is documented"


@pytest.mark.fuse
def test_a_table_for_a_pipe(run: Run, mounted: Mounted) -> None:
    shown = run("top", mounted.store, "--once", "--interval", "0.1").out
    head, row = shown.splitlines()
    assert head.startswith("MOUNTED ON")
    assert str(mounted.path) in row
    assert str(mounted.process.pid) in row


@pytest.mark.fuse
@pytest.mark.unmeasured
@pytest.mark.parametrize("terminal", [False, True])
def test_it_goes_on_until_interrupted_and_that_is_no_failure(
    mounted: Mounted, terminal: bool
) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    words = [str(mounted.store), "--interval", "0.1", *([] if terminal else ["--json"])]
    top = subprocess.Popen(
        ["env", "--default-signal", sys.executable, "-m", "dedupfs", "top", *words],
        stdout=theirs,
        cwd=REPOSITORY,
    )
    os.close(theirs)
    said = b""
    while said.count(b"requests") < (3 if terminal else 4):
        assert select.select([ours], [], [], END_TIMEOUT_S)[0], said
        said += os.read(ours, 65536)
    top.send_signal(signal.SIGINT)
    reader = threading.Thread(target=drain, args=(ours,))
    reader.start()
    assert top.wait(END_TIMEOUT_S) == 0
    reader.join()
    os.close(ours)
    if not terminal:
        first = said.split(b"\n")[0]
        assert json.loads(first)["mounts"][0]["pid"] == mounted.process.pid


def drain(fd: int) -> None:
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        return  # a terminal whose other side is closed


def test_nothing_is_mounted(run: Run, store_path: Path) -> None:
    assert run("top", store_path, "--once", "--interval", "0.1").out == "nothing is mounted\n"
    assert run("top", store_path, "--once", "--json", "--interval", "0.1").json["mounts"] == []


def test_what_cannot_be_is_refused(run: Run, store_path: Path) -> None:
    run("top", store_path, "--interval", "0", code=2)
    run("top", store_path, "--interval", "nan", code=2)
    run("top", store_path / "nowhere", "--once", code=2)


def test_an_older_daemon_is_shown_without_numbers(run: Run, store_path: Path) -> None:
    """It answers what it does not know as the control server of version 0.1 does."""
    running = live.Running(os.getpid(), "old", "/mnt/old", read_only=False)
    unknown = live.Failed("UsageError", "not a control request: Invalid value 'counters'")
    with answering(
        store_path, "old", 4, lambda asked: running if asked == live.Status() else unknown
    ):
        (mount,) = run("top", store_path, "--once", "--json", "--interval", "0.1").json["mounts"]
    assert mount["view"] == "old"
    assert "older" in mount["problem"]
    assert mount["totals"] is None
