"""Commands reach a live view over its socket, and nobody's but its owner's.

Method: the real server in this process over a view in a dictionary, the real blocking client in a
thread; no mount.
"""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

trio = pytest.importorskip("trio")
pytest.importorskip("pyfuse3")

from dedupfs.errors import CorruptError, StoreBusyError, StoreError, UsageError  # noqa: E402
from dedupfs.fuse.control import ControlServer  # noqa: E402
from dedupfs.fuse.housekeeping import Housekeeper  # noqa: E402
from dedupfs.namespace import live  # noqa: E402
from tests.fuse.fakes import FakeView  # noqa: E402
from tests.fuse.harness import run_code  # noqa: E402

RUNNING = live.Running(os.getpid(), "fake", "/mnt", read_only=False)
NOBODY = 65534


class Served:
    """A server, its view, and whether it was asked to stop."""

    def __init__(self, store: Path, view: FakeView) -> None:
        self.store = store
        self.view = view
        self.stopped = trio.Event()
        self.counted = live.Counted(1, {"read": 2}, {"read_bytes": 3}, {"open_files": 4})
        self.path = store / "run" / (live.stem("fake") + live.SOCKET_SUFFIX)

    async def ask(self, request: live.Request) -> live.Reply:
        reply: live.Reply = await trio.to_thread.run_sync(live.ask, self.path, request)
        return reply


@pytest.fixture
async def served(open_directory: Path) -> AsyncIterator[Served]:
    store = open_directory / ("long" * 40)  # beyond the 108 bytes of sockaddr_un
    (store / "run").mkdir(parents=True, exist_ok=True)
    view = FakeView()
    served = Served(store, view)
    keeper = Housekeeper(view.as_view())
    async with trio.open_nursery() as nursery:
        server = ControlServer(
            served.path, RUNNING, keeper, served.stopped.set, lambda: served.counted
        )
        await nursery.start(server.run)
        yield served
        nursery.cancel_scope.cancel()
    assert not served.path.exists()


async def test_status_fold_and_stop(served: Served) -> None:
    assert await served.ask(live.Status()) == RUNNING
    assert await served.ask(live.Fold()) == live.Done()
    assert served.view.calls == ["prepare_fold", "fold"]
    assert await served.ask(live.Stop()) == live.Done()
    assert served.stopped.is_set()


async def test_counters_and_limits(served: Served) -> None:
    assert await served.ask(live.Counters()) == served.counted
    assert await served.ask(live.LookAtLimits()) == live.Done()
    assert served.view.quota.reloads == 1


async def test_a_commit_is_prepared_in_a_thread_first(served: Served) -> None:
    reply = await served.ask(live.Commit("s", b"\xff/dir", {"k": "v"}))
    assert reply == live.Committed("s", 1, 0)
    assert served.view.calls == ["prepare_fold", "commit"]


async def test_an_error_arrives_as_itself(served: Served) -> None:
    served.view.fail_with("commit", CorruptError("pack 7"))
    with pytest.raises(CorruptError, match="pack 7"):
        await served.ask(live.Commit("s"))


@pytest.mark.allow_log("bug in a control command")
async def test_a_bug_is_reported_and_the_server_lives_on(served: Served) -> None:
    served.view.fail_with("fold", ZeroDivisionError())
    with pytest.raises(StoreError, match="a bug in the daemon"):
        await served.ask(live.Fold())
    assert await served.ask(live.Status()) == RUNNING


async def test_a_request_that_is_none_is_refused(served: Served) -> None:
    def send(line: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            with live.short_address(served.path) as address:
                connection.connect(address)
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").readline()

    for line in (b"", b"{}\n", b"\xff\n", b'{"type":"explode"}\n', b'{"type":"commit"}\n'):
        assert b"not a control request" in await trio.to_thread.run_sync(send, line)
    assert await served.ask(live.Status()) == RUNNING


async def test_only_its_owner_can_open_the_socket(served: Served) -> None:
    assert served.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.root
async def test_another_user_is_refused_even_where_the_mode_lets_him_in(served: Served) -> None:
    served.path.chmod(0o666)
    code = (
        "s = socket.socket(socket.AF_UNIX);"
        f"d = os.open({str(served.path.parent)!r}, os.O_PATH);"
        f"s.connect('/proc/self/fd/%d/{served.path.name}' % d);"
        '\ntry: s.sendall(b\'{"type":"stop"}\\n\')'
        "\nexcept BrokenPipeError: pass"  # it is not even listened to
        "\nprint(s.makefile().readline())"
    )
    done = await trio.to_thread.run_sync(run_code, code, NOBODY)
    assert "NotPermittedError" in done.stdout, done.stderr
    assert not served.stopped.is_set()


async def test_the_client_finds_the_daemon_by_view_and_by_mount_point(served: Served) -> None:
    dead = served.path.parent / "view-dead.sock"
    dead.touch()

    def find() -> list[live.Daemon | None]:
        return [
            live.daemon_of_view(served.store, "fake"),
            live.daemon_at(served.store, Path("/mnt")),
            live.daemon_of_view(served.store, "dead"),
            live.daemon_at(served.store, Path("/elsewhere")),
        ]

    daemon = live.Daemon(served.path, RUNNING)
    assert await trio.to_thread.run_sync(find) == [daemon, daemon, None, None]
    dead.unlink()


def test_a_daemon_that_does_not_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "view-hung.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        with live.short_address(path) as address:
            listener.bind(address)
        listener.listen()
        with pytest.raises(StoreBusyError, match="view-hung"):
            live.ask(path, live.Status(), timeout_s=0.05)


def test_names_of_files_stay_short_and_apart() -> None:
    long = "v" * 255
    assert live.stem("job17") == "view-job17"
    assert len(live.stem(long)) < 100
    assert live.stem(long) != live.stem(long[:-1] + "w")


def test_leftovers_of_dead_anonymous_mounts_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    ours, dead = f"mount-{os.getpid()}.sock", "mount-999999999.log"
    for name in (ours, dead, "view-default.sock", "mount-x.sock"):
        (run / name).touch()
    live.remove_leftovers(tmp_path)
    assert sorted(path.name for path in run.iterdir()) == sorted(
        [ours, "view-default.sock", "mount-x.sock"]
    )


def test_an_error_of_another_module_travels_as_its_nearest_known_class() -> None:
    class Special(UsageError):
        pass

    assert isinstance(live.Failed.of(Special("x")).raised(), UsageError)
    assert isinstance(live.Failed("NoSuchClass", "x").raised(), StoreError)
