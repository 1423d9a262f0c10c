"""Peers of the control socket that say nothing, half of it, too much, or nonsense, many at once.

Method: the real server over a fake view in this process; for lack of descriptors a real daemon.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

trio = pytest.importorskip("trio")
pytest.importorskip("pyfuse3")

from dedupfs.errors import StoreError  # noqa: E402
from dedupfs.fuse.control import ControlServer  # noqa: E402
from dedupfs.fuse.housekeeping import Housekeeper  # noqa: E402
from dedupfs.namespace import live  # noqa: E402
from tests.fuse.fakes import FakeView  # noqa: E402
from tests.fuse.harness import Daemons, run_code  # noqa: E402

RUNNING = live.Running(os.getpid(), "fake", "/mnt", read_only=False)
NOBODY = 65534
NESTED = b'{"type":"status","x":' + b"[" * 60_000 + b"\n"


LIMIT_S = 60


@asynccontextmanager
async def serving(path: Path, idle_s_max: float) -> AsyncIterator[Path]:
    """A server that gives a peer so much time; at the end it still answers."""
    keeper = Housekeeper(FakeView().as_view())
    async with trio.open_nursery() as nursery:
        server = ControlServer(path, RUNNING, keeper, lambda: None, idle_s_max=idle_s_max)
        await nursery.start(server.run)
        yield path
        assert await trio.to_thread.run_sync(ask, path) == RUNNING
        nursery.cancel_scope.cancel()


def ask(path: Path) -> live.Reply:
    """Ask until there is an answer: a busy machine may hold us up for longer than a peer may take,
    and then we are hung up on like anybody.
    """
    until_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return live.ask(path, live.Status(), timeout_s=LIMIT_S)
        except StoreError:
            if time.monotonic() > until_s:
                raise


@pytest.fixture
async def socket_path(open_directory: Path) -> AsyncIterator[Path]:
    """The socket of a server that waits for whoever is slow; other users can reach it."""
    async with serving(open_directory / "control.sock", LIMIT_S) as path:
        yield path


@pytest.fixture
async def hurried_path(open_directory: Path) -> AsyncIterator[Path]:
    """The socket of a server that gives a peer little time."""
    async with serving(open_directory / "hurried.sock", 0.3) as path:
        yield path


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    with live.short_address(path) as address:
        connection.connect(address)
    connection.settimeout(2 * LIMIT_S)
    return connection


def conversation(path: Path, *parts: bytes) -> bytes:
    """Say the parts and nothing more; return all that comes back until the server hangs up."""
    with connect(path) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        said = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                said += part
        return said


@pytest.mark.parametrize(
    "parts",
    [(), (b'{"type":',), (b'{"type":"stop"}',), (b"\n" * 3,), (b"x" * 100_000,)],
    ids=["silent", "half", "no end of line", "empty lines", "too long"],
)
async def test_a_peer_without_a_request_is_hung_up_on(
    hurried_path: Path, parts: tuple[bytes, ...]
) -> None:
    said = await trio.to_thread.run_sync(conversation, hurried_path, *parts)
    assert said == b"" or b"not a control request" in said


@pytest.mark.parametrize(
    "line",
    [NESTED, b'{"type":"commit","name":"\xff"}\n', b'{"type":"commit","name":"\\udcff"}\n'],
    ids=["nested", "no UTF-8", "lone surrogate"],
)
async def test_nonsense_is_answered_and_is_no_bug(socket_path: Path, line: bytes) -> None:
    said = await trio.to_thread.run_sync(conversation, socket_path, line)
    assert b"not a control request" in said


async def test_a_flood_is_cut_off(socket_path: Path) -> None:
    """A gigabyte is offered; far less is taken."""

    def flood() -> int:
        block = memoryview(bytes(1 << 20))
        sent = 0
        with connect(socket_path) as connection, suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1 << 30:
                sent += connection.send(block)
        return sent

    assert await trio.to_thread.run_sync(flood) < 8 << 20


async def test_many_silent_peers_keep_nobody_waiting_for_ever(hurried_path: Path) -> None:
    """More than are served at once, more than the backlog holds; then somebody with a request."""

    def crowd_and_ask() -> live.Reply:
        with ExitStack() as crowd:
            threads = [
                threading.Thread(target=conversation, args=(hurried_path,)) for _ in range(80)
            ]
            for thread in threads:
                thread.start()
                crowd.callback(thread.join)
            return ask(hurried_path)

    assert await trio.to_thread.run_sync(crowd_and_ask) == RUNNING


@pytest.mark.root
async def test_other_users_do_not_take_the_places(socket_path: Path) -> None:
    """Even where the mode lets them connect, they are answered at once and hung up on."""
    socket_path.chmod(0o666)
    code = (
        "cs = [];\n"
        "for _ in range(100):\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        f"    s.connect({str(socket_path)!r}); s.settimeout(60); cs.append(s)\n"
        "    assert b'NotPermittedError' in s.recv(1000)\n"
        "    assert s.recv(1000) == b''\n"
        "print(len(cs))"
    )
    done = await trio.to_thread.run_sync(run_code, code, NOBODY)
    assert done.stdout == "100\n", done.stderr


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Forbid a process any other number than those of its standard streams, which are taken.

    Not all above the highest that it has now: what it holds for a moment would leave a gap.
    """
    assert {"0", "1", "2"} <= set(os.listdir(f"/proc/{pid}/fd"))
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


@pytest.mark.fuse
@pytest.mark.root
def test_a_daemon_without_descriptors_goes_on_and_answers_later(daemons: Daemons) -> None:
    mounted = daemons.start()
    path = mounted.store / "run" / (live.stem("default") + live.SOCKET_SUFFIX)
    with no_more_descriptors(mounted.process.pid), connect(path):
        while "no control connection" not in mounted.log:
            assert mounted.process.poll() is None
            os.listdir(mounted.path)  # which is served meanwhile
    assert isinstance(live.ask(path, live.Status(), timeout_s=60), live.Running)


@pytest.mark.parametrize("name", ["errno", "annotations", "DedupfsError", "__builtins__", "x y"])
def test_a_reply_can_name_any_error(name: str) -> None:
    raised = live.Failed(name, "said by somebody").raised()
    assert isinstance(raised, StoreError) or name == "DedupfsError"


def test_a_reply_that_is_none_is_an_error(tmp_path: Path) -> None:
    for answer in (b"", b"{}\n", b"\xff\n", NESTED, b'{"type":"running","pid":"x"}\n'):
        path = tmp_path / "answering.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            with live.short_address(path) as address:
                listener.bind(address)
            listener.listen()

            def reply(listener: socket.socket = listener, answer: bytes = answer) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

            thread = threading.Thread(target=reply)
            thread.start()
            with pytest.raises(StoreError):
                live.ask(path, live.Status(), timeout_s=60)
            thread.join()
        path.unlink()
