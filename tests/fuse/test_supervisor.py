"""The supervisor: when it starts another daemon, when it gives up, and what it tells its caller.

Method: it runs in a process of its own (it forks), with daemons that do as they are told and a pipe
in the place of the connection to the kernel. tests/takeover/ has real mounts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from dedupfs.errors import MountError, StoreError
from dedupfs.fuse.supervisor import DEATHS_MAX, UNREADY_MAX
from dedupfs.namespace.live import ProcessEnd
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY

PROGRAM = """
import logging, os, signal, sys, time
from dedupfs.errors import DedupfsError, StoreError
from dedupfs.fuse import supervisor
from dedupfs.fuse.relay import Baton

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)

def say(word):
    os.write(1, f"{word}\\n".encode())  # one write: daemon and supervisor speak at once

def serve(baton, ready):
    say(f"daemon {'first' if baton is None else 'next'}")
BODY

class Renewal:
    def is_possible(self):
        say("asked")
        return "POSSIBLE" == "yes"

    def execute(self, baton):
        EXECUTE

try:
    supervisor.supervise(serve, lambda: say("ready"), Renewal())
except DedupfsError as exc:
    print(f"{type(exc).__name__}: {exc}")
    sys.exit(exc.exit_code)
say("ended")
"""

LEAVE = """
if baton is None:
    reader, writer = os.pipe()  # a connection: it is there while somebody holds the other end
    ready(Baton('v', b'', b'p', {'device': reader, 'other end': writer}))
else:
    ready(None)
"""
LEAVE_ALONE = LEAVE.replace(", 'other end': writer", "")
BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


EXECUTE = "say('executed'); os._exit(0)"
SLOWLY_BECOME = (
    "say('executed'); os.execv(sys.executable, [sys.executable, '-c', "
    "'import signal, sys; sys.stdin.read(1); "
    "print([s.name for s in sorted(signal.sigpending())])'])"
)


def start(body: str, possible: str = "no", execute: str = EXECUTE) -> subprocess.Popen[str]:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    program = PROGRAM.replace("BODY", indented).replace("POSSIBLE", possible)
    program = program.replace("EXECUTE", execute)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def run(body: str) -> tuple[int, list[str]]:
    process = start(body)
    said, _ = process.communicate(timeout=END_TIMEOUT_S)
    return process.returncode, said.splitlines()


def rest_of(process: subprocess.Popen[str], given: str = "") -> str:
    """Return what it says until it ends.

    Not by ``communicate``, which knows nothing of what ``readline`` has read ahead.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as asked, process.stdout as said:
        asked.write(given)
        asked.flush()
        process.wait(END_TIMEOUT_S)
        return said.read()


def test_a_daemon_that_ends_in_order_is_the_end() -> None:
    assert run(LEAVE) == (0, ["daemon first", "ready", "ended"])


def test_a_killed_daemon_is_followed_by_one_with_its_descriptors() -> None:
    code, said = run(
        f"{LEAVE}\nif baton is None: {DIE}\nsay(sorted(baton.fds))\nos.fstat(baton.device)"
    )
    assert code == 0
    assert said[:2] == ["daemon first", "ready"]
    assert "SIGKILL" in said[2]
    assert said[3:] == ["daemon next", "['device', 'other end']", "ended"]


def test_an_error_before_it_answers_is_the_callers() -> None:
    code, said = run("raise StoreError('no store here')")
    assert code == StoreError.exit_code
    assert said == ["daemon first", "StoreError: no store here"]


def test_a_death_before_it_answers_is_told() -> None:
    code, said = run(DIE)
    assert code == MountError.exit_code
    assert said[-1] == "MountError: the daemon ended with SIGKILL before it was ready"


def test_daemons_that_never_answer_are_given_up() -> None:
    code, said = run(f"if baton is not None: {DIE}\n{LEAVE}\n{DIE}")
    assert code == MountError.exit_code
    assert said.count("daemon next") == UNREADY_MAX
    assert any("giving up" in line for line in said)


def test_a_request_that_kills_every_daemon_ends_the_mount() -> None:
    code, said = run(f"{LEAVE}\nos.kill(os.getpid(), signal.SIGABRT)")
    assert code == MountError.exit_code
    assert said.count("daemon next") == DEATHS_MAX - 1
    assert any("giving up" in line for line in said)


def test_a_mount_that_is_gone_needs_no_daemon() -> None:
    code, said = run(f"{LEAVE_ALONE}\n{DIE}")
    assert said.count("daemon next") == 0
    assert code == MountError.exit_code


def test_ending_signals_reach_the_daemon() -> None:
    process = start(f"{BLOCK}\n{LEAVE}\nsay(signal.sigwait([signal.SIGTERM]).name)")
    assert process.stdout is not None
    said = [process.stdout.readline(), process.stdout.readline()]
    process.terminate()
    rest = rest_of(process)
    assert said == ["daemon first\n", "ready\n"]
    assert rest.splitlines() == ["SIGTERM", "ended"]
    assert process.returncode == 0


@pytest.mark.parametrize("possible", ["yes", "no"])
def test_another_program_takes_over_when_it_can(possible: str) -> None:
    process = start(f"{BLOCK}\n{LEAVE}\nsignal.sigwait([signal.SIGTERM])", possible)
    assert process.stdout is not None
    for _line in ("daemon first", "ready"):
        process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == "asked\n"
    if possible == "yes":
        assert rest_of(process).splitlines()[-1] == "executed"
        assert process.returncode == 0
        return
    assert "going on as before" in process.stdout.readline()
    process.terminate()
    assert rest_of(process).splitlines() == ["ended"]


UNTIL_THE_SUPERVISOR_WAITS = """
while open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[0] != 'S':
    os.sched_yield()
"""


def test_another_program_asked_for_before_a_daemon_answers_takes_over_then() -> None:
    asks = f"os.kill(os.getppid(), signal.SIGUSR2)\n{UNTIL_THE_SUPERVISOR_WAITS}"
    process = start(f"{asks}{LEAVE}\nsignal.sigwait([signal.SIGTERM])", "yes")
    said = rest_of(process)
    assert [line for line in said.splitlines() if "INFO" not in line] == [
        "daemon first",
        "ready",
        "asked",
        "executed",
    ]


def test_another_program_asked_for_while_a_daemon_dies_takes_over_from_the_next() -> None:
    process = start(f"{BLOCK}\n{LEAVE}\nsay(os.getpid())\nsignal.sigwait([signal.SIGTERM])", "yes")
    assert process.stdout is not None
    daemon = 0
    while not daemon:  # behind "daemon first", "ready" and what is logged, in any order
        line = process.stdout.readline()
        assert line, "it has ended"
        daemon = int(line) if line.strip().isdigit() else 0
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    process.send_signal(signal.SIGUSR2)
    with closing(ProcessEnd(daemon)) as end:
        os.kill(daemon, signal.SIGKILL)
        assert end.wait(END_TIMEOUT_S)
    process.send_signal(signal.SIGCONT)
    rest = rest_of(process)
    assert "daemon next" in rest.splitlines()
    assert rest.splitlines()[-1] == "executed"


def test_signals_wait_for_the_program_that_takes_over() -> None:
    """Their default action would end it, and the mount with it, before it can say otherwise."""
    process = start(f"{BLOCK}\n{LEAVE}\nsignal.sigwait([signal.SIGTERM])", "yes", SLOWLY_BECOME)
    assert process.stdout is not None
    for _line in ("daemon first", "ready"):
        process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    while process.stdout.readline() != "executed\n":
        continue
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    said = rest_of(process, "x")
    assert said == "['SIGUSR2', 'SIGTERM']\n"


def test_a_program_that_cannot_be_executed_leaves_the_mount_as_it_is() -> None:
    process = start(
        f"{BLOCK}\n{LEAVE}\nsignal.sigwait([signal.SIGTERM])", "yes", "os.execv('/nowhere', ['x'])"
    )
    assert process.stdout is not None
    for _line in ("daemon first", "ready"):
        process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    while process.stdout.readline() != "daemon next\n":
        continue
    process.terminate()
    assert rest_of(process).splitlines() == ["ended"]


def test_a_mount_that_ends_meanwhile_is_not_handed_over() -> None:
    process = start(f"{BLOCK}\n{LEAVE}\nsignal.sigwait([signal.SIGTERM])", "yes")
    assert process.stdout is not None
    for _line in ("daemon first", "ready"):
        process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    said = rest_of(process)
    assert said.splitlines()[-1] == "ended"
    assert "executed" not in said


def test_a_supervisor_waits_for_its_daemons_though_it_was_told_to_ignore_children() -> None:
    process = start("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + LEAVE)
    said = rest_of(process)
    assert (process.returncode, said.splitlines()[-1]) == (0, "ended")


def test_a_daemon_inherits_nothing_that_it_was_not_given() -> None:
    code, said = run("say(len([n for n in os.listdir('/proc/self/fd') if int(n) > 2]))")
    assert said[:2] == ["daemon first", "2"], "its line to the supervisor, and this listing"
    assert code == 0
