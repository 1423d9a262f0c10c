"""`dedupfs run` on a real terminal: what is typed there reaches the command, and jobs stop.

Method: an interactive bash, leader of a session whose terminal is a pseudo-terminal of ours, starts
the run; what is typed is written to the other end, and what is shown is read there.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_run import (
    assert_nothing_left,
    children_of,
    first_process_of,
    snapshot,
    state_of,
)
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, eventually

__all__ = ["snapshot"]

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured, pytest.mark.program("bash", "stty")]

CONTROL_C, CONTROL_D, CONTROL_Z = "\x03", "\x04", "\x1a"


class Terminal:
    """The other end of a shell's terminal."""

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.environ["PYTHONPATH"] = str(REPOSITORY)
            os.environ["PS1"] = ""
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.seen = ""
        self._position = 0

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until something is shown, behind what was waited for before."""
        until_s = time.monotonic() + END_TIMEOUT_S
        while (found := re.compile(pattern).search(self.seen, self._position)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self._fd, 4096).decode(errors="replace")
        self._position = found.end()
        return found

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def foreground(self) -> int:
        """Return the process group that has the terminal."""
        packed = fcntl.ioctl(self._fd, termios.TIOCGPGRP, bytes(4))
        return int(struct.unpack("i", packed)[0])

    def hang_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        self.hang_up()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(snapshot: Path) -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()
    assert_nothing_left(snapshot)


def run_on(terminal: Terminal, store: Path, script: str, *options: str) -> None:
    words = [sys.executable, "-m", "dedupfs", "run", str(store), "snap", *options]
    words += ["--", "bash", "-c", script]
    terminal.type(f"{shlex.join(words)}; echo code=$((0+$?))\n")


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_what_is_typed_reaches_the_command_and_the_window_has_its_size(
    terminal: Terminal, snapshot: Path, engine: str
) -> None:
    terminal.resize(24, 80)
    script = (
        "test -t 0 && test -t 1 && stty size; trap 'echo now $(stty size)' WINCH;"
        "read line; echo got:$line:; until read -t 1 line; do test $? -gt 128; done;"
        "echo then:$line:; cat >file; wc -c <file; exit 7"
    )
    run_on(terminal, snapshot, script, "--engine", engine)
    terminal.wait_for("24 80")
    terminal.type("one\n")
    terminal.wait_for("got:one:")
    terminal.resize(30, 100)
    terminal.wait_for("now 30 100")
    terminal.type("two\n")
    terminal.wait_for("then:two:")
    terminal.type(f"123\n{CONTROL_D}")
    terminal.wait_for(r"(?m)^4\r")
    terminal.wait_for("code=7")


def test_the_key_that_interrupts_ends_the_command_and_all_that_it_started(
    terminal: Terminal, snapshot: Path
) -> None:
    script = "setsid sleep 1000 & echo ready; exec sleep 1000"
    run_on(terminal, snapshot, script, "--commit", "never")
    terminal.wait_for("(?m)^ready")
    terminal.type(CONTROL_C)
    terminal.wait_for("code=130")
    assert_nothing_left(snapshot)


def test_a_command_that_handles_an_interrupt_gets_one_and_goes_on(
    terminal: Terminal, snapshot: Path
) -> None:
    script = "trap 'n=$((n+1))' INT; echo ready; until read -t 1 line; do :; done; echo $n.$line."
    run_on(terminal, snapshot, script)
    terminal.wait_for("(?m)^ready")
    terminal.type(CONTROL_C)
    terminal.wait_for(r"\^C")
    terminal.type("on\n")
    terminal.wait_for(r"1\.on\.")
    terminal.wait_for("code=0")


def test_it_stops_and_goes_on_in_the_shells_job_control(terminal: Terminal, snapshot: Path) -> None:
    run_on(terminal, snapshot, "echo ready; read line; echo got:$line:")
    terminal.wait_for("(?m)^ready")
    job = terminal.foreground()
    assert job != terminal.pid
    (command,) = children_of(first_process_of(job))
    terminal.type(CONTROL_Z)
    terminal.wait_for("Stopped")
    assert state_of(job) == "T"
    assert eventually(lambda: state_of(command) == "T")
    assert eventually(lambda: terminal.foreground() == terminal.pid)
    terminal.type("fg\n")
    assert eventually(lambda: "T" not in (state_of(job), state_of(command)))
    terminal.type("typed\n")
    terminal.wait_for("got:typed:")
    terminal.type("echo o''ver\n")  # which the shell reads when the run has ended
    terminal.wait_for("over")


def test_a_terminal_that_goes_away_takes_the_run_along(terminal: Terminal, snapshot: Path) -> None:
    run_on(terminal, snapshot, "echo ready; exec sleep 1000")
    terminal.wait_for("(?m)^ready")
    terminal.hang_up()
    assert_nothing_left(snapshot)
