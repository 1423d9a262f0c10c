"""A library that crashes on a damaged index ends a command with one line and a known exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("where", ["the main thread", "another thread"])
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGBUS", "SIGABRT"])
def test_a_crash_is_one_line_and_exit_code_3(name: str, where: str) -> None:
    number = int(signal.Signals[name])
    crash = "ctypes.string_at(8)" if name == "SIGSEGV" else f"ctypes.CDLL(None)['raise']({number})"
    if where == "another thread":
        crash = f"thread = threading.Thread(target=lambda: {crash}); thread.start(); thread.join()"
    program = (
        "import ctypes, threading; from dedupfs.cli.crashes import tell_crashes; tell_crashes();"
        + crash
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, timeout=60
    )
    assert result.returncode == 3, result
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("dedupfs: the index is damaged")
    assert name in line


@pytest.mark.unmeasured
def test_zeroed_pages_of_the_index_are_one_line(run: Run, store_path: Path, data: Path) -> None:
    """As a disk leaves them; LMDB gives up with an assertion, which it tells in its own way."""
    for number in range(10):
        run("import", store_path, data, f"s{number}")
    good = (store_path / "index" / "data.mdb").read_bytes()
    codes = set()
    for page in range(2, len(good) // 4096):
        bad = bytearray(good)
        bad[page * 4096 : (page + 1) * 4096] = bytes(4096)
        (store_path / "index" / "data.mdb").write_bytes(bad)
        command = [sys.executable, "-m", "dedupfs", "ls", str(store_path)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        codes.add(result.returncode)
        lines = [line for line in result.stderr.splitlines() if "Assertion" not in line]
        assert all(line.startswith("dedupfs: ") for line in lines), result.stderr
        assert len(lines) == (result.returncode != 0), result.stderr
    assert codes <= {0, 3}
    assert 3 in codes
    (store_path / "index" / "data.mdb").write_bytes(good)
