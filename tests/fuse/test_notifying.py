"""What a service manager hears: from ``ServiceManager`` alone, and from a supervisor.

Method: the manager is a real datagram socket. The supervisor is that of test_supervisor.py, whose
daemons do as they are told; tests/cli/test_service_manager.py has real mounts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dedupfs.fuse.notifying import ServiceManager
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY

UNHEARD = "the service manager was not told"


@dataclass
class Listener:
    """Who wants to know, and where."""

    socket: socket.socket
    address: str

    def hear(self) -> list[str]:
        """Return the assignments of the next datagram."""
        return self.socket.recv(4096).decode(errors="surrogateescape").split("\n")

    def hear_all(self) -> list[list[str]]:
        """Return those of all datagrams that have come."""
        heard = []
        self.socket.setblocking(False)
        while True:
            try:
                heard.append(self.hear())
            except BlockingIOError:
                return heard


@pytest.fixture
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """A socket in a file, or an abstract one whose name is no text."""
    path, name = tmp_path / "notify", b"dedupfs-%d-\xff" % os.getpid()
    is_abstract = getattr(request, "param", "file") == "abstract"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(b"\0" + name if is_abstract else str(path))
        address = "@" + os.fsdecode(name) if is_abstract else str(path)
        opened.settimeout(END_TIMEOUT_S)
        yield Listener(opened, address)


@pytest.mark.parametrize("listener", ["file", "abstract"], indirect=True)
def test_each_state_is_one_datagram_as_sd_notify_specifies_it(listener: Listener) -> None:
    manager = ServiceManager(listener.address, 8.0, "/s on /m")
    manager.ready(7)
    manager.alive()
    manager.waiting(7)
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.stopping()
    assert listener.hear() == ["READY=1", "STATUS=/s on /m, answered by process 7"]
    assert listener.hear() == ["WATCHDOG=1"]
    assert listener.hear() == ["STATUS=/s on /m: process 7 ended, another one takes over"]
    reloading, when, status = listener.hear()
    assert (reloading, status) == ("RELOADING=1", "STATUS=/s on /m: another program takes over")
    name, _, value_us = when.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value_us) <= after_us
    assert listener.hear() == ["STOPPING=1", "STATUS=/s on /m: ending"]
    assert listener.hear_all() == []


def test_a_hostile_path_adds_nothing_and_any_bytes_arrive(listener: Listener) -> None:
    manager = ServiceManager(listener.address, subject="/a\nMAINPID=1\n\udcff on /m")
    manager.ready(7)
    ready, status = listener.hear()
    assert ready == "READY=1"
    assert status == "STATUS=/a MAINPID=1 \udcff on /m, answered by process 7"


def test_nobody_is_told_that_it_is_alive_who_does_not_watch(listener: Listener) -> None:
    ServiceManager(listener.address).alive()
    ServiceManager().ready(7)
    assert listener.hear_all() == []


@pytest.mark.allow_log(UNHEARD)
def test_a_manager_that_does_not_listen_is_not_waited_for(listener: Listener) -> None:
    manager = ServiceManager(listener.address, 8.0)
    for _ in range(1000):  # many more than its queue holds: net.unix.max_dgram_qlen
        manager.alive()
    heard = listener.hear_all()
    assert 0 < len(heard) < 1000
    assert all(said == ["WATCHDOG=1"] for said in heard)
    manager.alive()
    assert listener.hear_all() == [["WATCHDOG=1"]]


@pytest.mark.parametrize(
    "address", ["/none/notify", "/" + "long" * 100, "@none", "@" + "long" * 100, "vsock:2:9"]
)
def test_a_manager_that_is_gone_is_a_line_in_the_log(
    address: str, caplog: pytest.LogCaptureFixture, allow_log: object
) -> None:
    assert callable(allow_log)
    allow_log(UNHEARD)
    manager = ServiceManager(address, 8.0)
    manager.ready(7)
    for _ in range(3):  # at every sign of life the log would fill
        manager.alive()
    (said,) = caplog.messages
    assert said.startswith(f"{UNHEARD} READY=1: ")


def test_a_manager_that_goes_again_is_another_line_in_the_log(
    listener: Listener, caplog: pytest.LogCaptureFixture, allow_log: object
) -> None:
    assert callable(allow_log)
    allow_log(UNHEARD)
    manager = ServiceManager(listener.address, 8.0)
    for expected in (1, 2):
        while len(caplog.messages) < expected:  # until its queue is full: net.unix.max_dgram_qlen
            manager.alive()
        manager.stopping()
        assert len(caplog.messages) == expected
        assert listener.hear_all()[:1] == [["WATCHDOG=1"]]
        manager.alive()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_who_watches_is_said_by_the_environment(
    environment: dict[str, str], watchdog_s: float
) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": "@x", **environment}, 7, "")
    assert (manager.address, manager.watchdog_s) == ("@x", watchdog_s)
    assert (manager.patience_s is None) == (not watchdog_s)
    assert ServiceManager.from_environment(environment, 7, "").heartbeat_s == 0.0


PROGRAM = """
import os, signal, socket
from dedupfs.fuse import supervisor
from dedupfs.fuse.notifying import ServiceManager
from dedupfs.fuse.relay import Baton

def serve(baton, ready):
    if baton is None:
        here, there = socket.socketpair()
        ready(Baton('v', b'', b'p', {'device': here.fileno(), 'other end': there.fileno()}))
        BODY
    else:
        ready(None)

class Renewal:
    def is_possible(self):
        return False

manager = ServiceManager.from_environment(os.environ, os.getpid(), "S")
supervisor.supervise(serve, lambda: print("ready", flush=True), Renewal(), manager=manager)
"""


def supervised(body: str, listener: Listener, **environment: str) -> subprocess.Popen[bytes]:
    """Start a supervisor whose first daemon does this once it has answered."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("BODY", body)],
        cwd=REPOSITORY,
        env={**os.environ, "NOTIFY_SOCKET": listener.address, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_daemon_is_alive_as_often_as_it_says_so_and_ready_again_is_the_next_one(
    listener: Listener,
) -> None:
    body = "ready(None); ready(None); signal.pause()"
    with supervised(body, listener, WATCHDOG_USEC="8000000") as process:
        heard = [listener.hear()[0] for _ in range(7)]
        _out, said = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0
    assert heard[:4] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    assert heard[4].endswith("ended, another one takes over")
    assert heard[5:] == ["READY=1", "WATCHDOG=1"]
    assert b"no sign of life for 2.0 s" in said
    assert listener.hear_all() == []


def test_a_daemon_that_puts_away_what_somebody_has_unmounted_is_watched_no_longer(
    listener: Listener,
) -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
    body = blocked + "here.shutdown(socket.SHUT_RDWR); ready(None); signal.sigwait([15])"
    with supervised(body, listener, WATCHDOG_USEC="8000000") as process:
        heard = [listener.hear()[0] for _ in range(4)]
        process.terminate()
        _out, said = process.communicate(timeout=END_TIMEOUT_S)
    assert heard == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
    assert (process.returncode, said) == (0, b"")


def test_a_daemon_that_does_not_answer_is_not_ready(listener: Listener) -> None:
    body = "pass"
    program = PROGRAM.replace("        ready(Baton", "        raise OSError(")
    with subprocess.Popen(
        [sys.executable, "-c", program.replace("BODY", body)],
        cwd=REPOSITORY,
        env={**os.environ, "NOTIFY_SOCKET": listener.address},
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.wait(END_TIMEOUT_S) != 0
    assert listener.hear_all() == []


def test_a_reload_that_is_not_possible_and_an_end_are_told(listener: Listener) -> None:
    body = "signal.sigwait([signal.SIGTERM])"
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
    with supervised(blocked + body, listener) as process:
        assert listener.hear()[0] == "READY=1"
        process.send_signal(signal.SIGUSR2)
        assert listener.hear()[0] == "RELOADING=1"
        assert listener.hear()[0] == "READY=1"
        process.terminate()
        assert listener.hear()[0] == "STOPPING=1"
        process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0
    more_time = ["EXTEND_TIMEOUT_USEC=30000000"]  # an end takes as long as it takes
    assert [heard for heard in listener.hear_all() if heard != more_time] == []


def test_more_time_is_asked_for_as_long_as_a_daemon_gets_on_that_puts_things_away(
    listener: Listener,
) -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [10, 15]); "
    body = "ready(None); signal.sigwait([15])\n        while 10 not in signal.sigpending(): pass"
    with supervised(blocked + body, listener, WATCHDOG_USEC="600000000") as process:
        # The last one comes from a daemon that a signal does not end any more.
        assert [listener.hear()[0] for _ in range(3)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
        daemon = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.terminate()
        assert listener.hear()[0] == "STOPPING=1"
        try:
            for _ in range(2):
                assert listener.hear() == ["EXTEND_TIMEOUT_USEC=30000000"]
        finally:
            os.kill(daemon, signal.SIGUSR1)
        process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0
