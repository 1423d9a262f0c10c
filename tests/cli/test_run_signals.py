"""Signals while `dedupfs run --commit` makes its snapshot: what is there then, and who is told.

Method: FUSE: the test itself writes to the store, which the daemon's commit has to wait for.
Overlay: the run sends itself real signals before chosen lines of what takes in. The exit code
must be 0 if and only if there is a snapshot, and all that was written is in it or is kept.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.cli.test_run import (
    assert_next_command_clears,
    daemons_of,
    snapshot,
    start,
    state_of,
)
from tests.cli.test_run_overlay import in_overlay, upper_dir
from tests.conftest import Scale
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, eventually, read_until

__all__ = ["snapshot", "upper_dir"]

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

MAKING = b"dedupfs: made is being made; once more stops that\n"
MADE = b"dedupfs: made was made\n"


def names_in(store: Path, run: Run) -> list[str]:
    return [row["name"] for row in run("ls", store, "--json").json]


class Committing:
    """A run whose command has ended, and whose commit waits while the test writes to the store."""

    def __init__(self, store: Path) -> None:
        words = ["--commit", "made", "--", "sh", "-c", "echo new >a.txt; echo ready; read x"]
        self.run = start(store, "snap", *words)
        assert self.run.stdout is not None
        read_until(self.run.stdout, lambda said: said == b"ready\n")
        self.daemon = daemons_of(self.run.pid)[1]
        self.writing = ExitStack()
        self.writing.enter_context(self.writing.enter_context(Store.open(store)).transaction())
        assert self.run.stdin is not None
        self.run.stdin.write(b"\n")
        self.run.stdin.flush()

    def end(self) -> tuple[int, bytes, bytes]:
        out, err = self.run.communicate(timeout=END_TIMEOUT_S)
        return self.run.returncode, out, err


@pytest.fixture
def committing(snapshot: Path) -> Iterator[Committing]:
    found = Committing(snapshot)
    yield found
    found.writing.close()
    found.run.kill()
    found.run.communicate(timeout=END_TIMEOUT_S)


def hears(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal once none is passed on to the command any more, and wait for what is said."""
    assert process.stderr is not None
    assert eventually(lambda: is_ending(process.pid) and state_of(process.pid) == "S")
    process.send_signal(number)
    read_until(process.stderr, lambda said: said == MAKING)


def has_ended(pid: int) -> bool:
    try:
        return state_of(pid) in "ZX"
    except OSError:
        return True


def is_ending(pid: int) -> bool:
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(ignored, 16) & 1 << (signal.SIGUSR1 - 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_signal_does_not_stop_a_commit_of_the_daemon(
    committing: Committing, snapshot: Path, run: Run, number: signal.Signals
) -> None:
    hears(committing.run, number)
    committing.run.send_signal(signal.SIGHUP)  # which is never a second one
    committing.run.send_signal(signal.SIGUSR1)  # and that was the command's
    committing.writing.close()
    assert committing.end() == (0, b"", MADE)
    assert run("cat", snapshot, "made:a.txt").out == "new\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(
    committing: Committing, snapshot: Path, run: Run, number: signal.Signals
) -> None:
    hears(committing.run, signal.SIGINT)
    committing.run.send_signal(number)
    assert eventually(lambda: has_ended(committing.daemon)), "it still waits to commit"
    committing.writing.close()
    said = f"dedupfs: stopped by {number.name}: there is no snapshot made\n".encode()
    assert committing.end() == (128 + number, b"", said)
    assert names_in(snapshot, run) == ["snap"]
    assert_next_command_clears(snapshot, run)


def test_what_cannot_be_looked_up_is_not_called_made_or_unmade(
    committing: Committing, snapshot: Path, run: Run
) -> None:
    """Method: the store's settings are away when the run looks."""
    hears(committing.run, signal.SIGINT)
    (snapshot / "dedupfs.json").rename(snapshot / "away")
    committing.run.send_signal(signal.SIGINT)
    code, _, err = committing.end()
    (snapshot / "away").rename(snapshot / "dedupfs.json")
    committing.writing.close()
    assert code == 130
    assert b"whether there is a snapshot made cannot be told: " in err
    assert_next_command_clears(snapshot, run)


SIGNALLED = """
import os, runpy, signal, sys
from dedupfs.cli import ending
from tests.interrupting import PACKAGE

numbers = [int(number) for number in sys.argv.pop(1).split(",")]
files = tuple(PACKAGE + file for file in sys.argv.pop(1).split(","))
me, lines, ahead = os.getpid(), 0, False

def trace(frame, event, arg):
    global lines, ahead
    code = frame.f_code
    if code.co_name == "begin" and code.co_filename == ending.__file__:
        ahead = os.getpid() == me
    if not ahead or not code.co_filename.startswith(files):
        return None
    if event == "line":
        lines += 1
        for number in numbers:
            if number == lines:
                signal.raise_signal(signal.SIGINT)
    return trace

sys.settrace(trace)
try:
    runpy.run_module("dedupfs", run_name="__main__")
finally:
    sys.settrace(None)
    print(lines)
"""
FILES = "cli/run.py,cli/keeping.py,cli/ending.py,cli/scratch.py,transfer/takein.py"
FILES += ",namespace/snapshots.py"


def run_signalled(store: Path, upper: Path, *numbers: int) -> tuple[int, int, str]:
    """Take in with Ctrl-C before some lines; return the exit code, all lines, and what it said."""
    words = [sys.executable, "-c", SIGNALLED, ",".join(map(str, numbers)), FILES, "run", store]
    words += ["snap", "--engine", "overlay", "--upper-dir", upper, "--commit", "made"]
    words += ["--", "sh", "-c", "echo new >a.txt; ln a.txt b; rm -r sub; mkdir sub; echo >sub/c"]
    done = subprocess.run(
        ["env", "--default-signal", *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    return done.returncode, int(done.stdout or 0), done.stderr


def assert_told(store: Path, upper: Path, run: Run, code: int, err: str) -> None:
    """Compare the exit code and the lines with what is there, and put it away."""
    is_made = "made" in names_in(store, run)
    assert (code == 0) == is_made, (code, err)
    kept = list(upper.glob("dedupfs-run-*"))
    if is_made:
        leaves = "once more leaves what is left to be removed"
        assert "made was made\n" in err or leaves in err, err
        assert not any((path / "kept.json").exists() for path in kept)
    else:
        assert code == 130, err
        assert err.endswith("dedupfs: stopped by SIGINT: there is no snapshot made\n")
        (path,) = kept
        assert f"dedupfs commit {store} NAME --upper {path}" in err
        assert not (path / "boot").exists(), "it was not synced"
        run("commit", store, "made", "--upper", path)
    assert run("ls", store, "made").out.split() == ["a.txt", "b", "pointer", "sub"]
    assert run("ls", store, "made:sub").out == "c\n"
    run("rm", store, "made")


@pytest.mark.root
def test_two_signals_at_any_line_leave_a_snapshot_or_what_was_written(
    snapshot: Path, upper_dir: Path, run: Run, scale: Scale
) -> None:
    code, count, err = run_signalled(snapshot, upper_dir, 1)
    assert (code, err) == (0, (MAKING + MADE).decode())
    run("rm", snapshot, "made")
    assert count > 100
    seed = 1 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 30)
    print(f"{seed=} {count=}")  # noqa: T201  to repeat it
    rng = random.Random(seed)
    for second in sorted(rng.sample(range(2, count), scale(2, 100))):
        first = rng.choice([1, second - 1, second])
        code, _, err = run_signalled(snapshot, upper_dir, first, second)
        print(first, second, code)  # noqa: T201
        assert_told(snapshot, upper_dir, run, code, err)
    in_overlay(snapshot, upper_dir, "true")  # removes what is left of those that are made


@pytest.fixture
def unmade(snapshot: Path, upper_dir: Path, run: Run) -> Callable[[str], tuple[Path, str]]:
    """Has the commit of a script fail; returns what is kept, and what was said."""

    def fail(script: str) -> tuple[Path, str]:
        run("limit", snapshot, "1KiB")
        _, err = in_overlay(snapshot, upper_dir, script, "--commit", "made", code=5)
        run("limit", snapshot, "none")
        (kept,) = upper_dir.glob("dedupfs-run-*")
        return kept, err

    return fail


Unmade = Callable[[str], tuple[Path, str]]


@pytest.mark.root
def test_what_was_not_synced_before_the_machine_went_down_is_refused(
    snapshot: Path, unmade: Unmade, run: Run
) -> None:
    kept, err = unmade("echo new >a.txt")
    assert "limit of 1024 bytes is reached" in err.splitlines()[-1], err
    (kept / "boot").write_text("another boot\n")
    said = run("commit", snapshot, "made", "--upper", kept, code=7).err
    assert "the machine went down before" in said
    (kept / "boot").write_bytes(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    run("commit", snapshot, "made", "--upper", kept)
    assert run("cat", snapshot, "made:a.txt").out == "new\n"


@pytest.mark.root
def test_what_cannot_be_synced_says_so_behind_why_it_was_kept(
    snapshot: Path, upper_dir: Path, unmade: Unmade, run: Run
) -> None:
    """Method: the command takes away what tells that it was not synced yet."""
    kept, err = unmade(f"echo new >a.txt; rm {upper_dir}/dedupfs-run-*/boot")
    named, failed = err.splitlines()
    assert f"--upper {kept}" in named
    limit, _, sync = failed.partition("; what is kept may not survive a power cut: ")
    assert "limit of 1024 bytes is reached" in limit
    assert "No such file" in sync
    run("commit", snapshot, "made", "--upper", kept)
