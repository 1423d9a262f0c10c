"""A mount starts, is found, survives what it must and ends in order.

Method: real daemons in processes of their own, ended by signals, by umount(8), by SIGKILL and over
their control socket; then the view is mounted again and compared with what system calls had
completed.
"""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dedupfs import errors
from dedupfs.namespace import live
from tests.fuse.harness import (
    DaemonError,
    Daemons,
    Mounted,
    detach,
    eventually,
    is_mounted,
    read_until,
    run,
)

pytestmark = pytest.mark.fuse

WRITER = """
import os, sys
directory, number = sys.argv[1], 0
log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
while True:
    content = b"%09d" % number * 700
    file = os.open(f"{directory}/{number}.tmp", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, content)
    os.pwrite(file, b"middle", 3000)
    os.close(file)
    os.rename(f"{directory}/{number}.tmp", f"{directory}/{number}")
    os.write(log, b"%09d\\n" % number)
    os.write(1, b"%09d\\n" % number)
    number += 1
"""


def live_daemon(mounted: Mounted) -> live.Daemon:
    daemon = live.daemon_at(mounted.store, mounted.path)
    assert daemon is not None
    return daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_in_order_and_the_view_comes_back(
    daemons: Daemons, number: signal.Signals
) -> None:
    first = daemons.start()
    (first.path / "d").mkdir()
    (first.path / "d" / "f").write_bytes(b"kept")
    inode = (first.path / "d" / "f").stat().st_ino
    assert first.end(number) == 0
    assert not is_mounted(first.path)
    assert "ended" in first.log
    again = daemons.start()
    assert (again.path / "d" / "f").read_bytes() == b"kept"
    assert (again.path / "d" / "f").stat().st_ino == inode


@pytest.mark.root
def test_umount_from_outside_ends_in_order(daemons: Daemons) -> None:
    mounted = daemons.start()
    (mounted.path / "f").write_bytes(b"kept")
    run("umount", mounted.path)
    assert mounted.wait() == 0
    assert (daemons.start().path / "f").read_bytes() == b"kept"


def test_the_control_socket_can_end_it(daemons: Daemons) -> None:
    mounted = daemons.start()
    assert live.ask(live_daemon(mounted).socket_path, live.Stop()) == live.Done()
    assert mounted.wait() == 0
    assert not is_mounted(mounted.path)
    assert list((mounted.store / "run").glob("*.sock")) == []


def _write_through(file: int, data: bytes) -> None:
    """Write, and wait for what a kernel does with it that keeps writes."""
    os.write(file, data)
    os.fsync(file)


@pytest.mark.parametrize("cached", [False, True], ids=["as written", "kept by the kernel"])
def test_a_mount_in_use_is_detached_at_the_end_and_loses_nothing(
    daemons: Daemons, cached: bool
) -> None:
    mounted = daemons.start(supervisor=os.getpid() if cached else 0)
    file = os.open(mounted.path / "f", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, b"kept")
    assert mounted.end() == 0
    assert not is_mounted(mounted.path)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        _write_through(file, b"late")
    with pytest.raises(OSError):  # noqa: PT011 - it has nobody to tell of times, or of the end
        os.close(file)
    assert "still in use" in mounted.log
    assert (daemons.start().path / "f").read_bytes() == b"kept"


HOLDER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"kept")
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@pytest.mark.program("unshare")
@pytest.mark.parametrize("cached", [False, True], ids=["as written", "kept by the kernel"])
def test_what_a_container_has_written_is_kept_when_the_mount_ends_without_it(
    daemons: Daemons, cached: bool
) -> None:
    mounted = daemons.start(supervisor=os.getpid() if cached else 0)
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        [*command, mounted.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"written\n"
        assert mounted.end() == 0  # nothing in this namespace uses it, and so it is not busy
    assert (daemons.start().path / "f").read_bytes() == b"kept"


def test_what_the_mount_table_shows(daemons: Daemons) -> None:
    mounted = daemons.start()
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    (line,) = [line for line in table.splitlines() if f" {mounted.path} " in line]
    assert f" - fuse.dedupfs {mounted.store} " in line
    assert "noatime" in line
    assert "default_permissions" in line
    device = line.split(" ")[2]
    if os.geteuid() == 0:
        assert Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text() == "1024\n"


def test_a_second_mount_of_a_view_is_refused_and_names_the_first(daemons: Daemons) -> None:
    first = daemons.start()
    with pytest.raises(DaemonError) as caught:
        daemons.start("second")
    assert caught.value.code == errors.StoreBusyError.exit_code
    assert str(first.process.pid) in caught.value.said
    assert str(first.path) in caught.value.said
    with pytest.raises(DaemonError) as caught:
        daemons.start(view="other")
    assert caught.value.code == errors.MountError.exit_code
    assert "already a mount" in caught.value.said


def test_two_views_never_see_each_other_but_both_see_a_commit(daemons: Daemons) -> None:
    writer = daemons.start("writer", view="writer")
    reader = daemons.start("reader", view="reader")
    (writer.path / "step-1").mkdir()
    (writer.path / "step-1" / "weights").write_bytes(b"w" * 300_000)
    (reader.path / "mine").write_bytes(b"reader's")
    assert os.listdir(reader.path) == ["mine"]
    assert os.listdir(writer.path) == ["step-1"]
    request = live.Commit("step-1", b"step-1", {"loss": "0.1"})
    reply = live.ask(live_daemon(writer).socket_path, request)
    assert reply == live.Committed("step-1", 1, 300_000)
    assert eventually((reader.path / "step-1").exists)
    assert (reader.path / "step-1" / "weights").read_bytes() == b"w" * 300_000
    (reader.path / "step-1" / "weights").write_bytes(b"changed")
    assert (writer.path / "step-1" / "weights").read_bytes() == b"w" * 300_000


def test_a_commit_of_a_name_that_exists_is_the_daemon_s_error(daemons: Daemons) -> None:
    mounted = daemons.start()
    (mounted.path / "d").mkdir()
    socket_path = live_daemon(mounted).socket_path
    live.ask(socket_path, live.Commit("s", b"d"))
    with pytest.raises(errors.ExistsError):
        live.ask(socket_path, live.Commit("s", b"d"))
    with pytest.raises(errors.NamespaceError, match="missing"):
        live.ask(socket_path, live.Commit("t", b"missing"))


def test_a_snapshot_mounts_as_the_root_and_stays_as_it_was(daemons: Daemons) -> None:
    mounted = daemons.start()
    (mounted.path / "d").mkdir()
    (mounted.path / "d" / "f").write_bytes(b"first")
    live.ask(live_daemon(mounted).socket_path, live.Commit("s", b"d"))
    on_top = daemons.start("on-top", view="on-top", snapshot="s")
    (on_top.path / "f").write_bytes(b"second")
    (on_top.path / "g").write_bytes(b"new")
    read_only = daemons.start("read-only", snapshot="s", read_only=True)
    assert (read_only.path / "f").read_bytes() == b"first"
    assert os.listdir(read_only.path) == ["f"]
    for write in (lambda: (read_only.path / "f").write_bytes(b""), (read_only.path / "d").mkdir):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            write()


def test_an_ephemeral_mount_leaves_nothing(daemons: Daemons) -> None:
    mounted = daemons.start(ephemeral=True)
    (mounted.path / "f").write_bytes(b"gone soon")
    assert mounted.end() == 0
    again = daemons.start(ephemeral=True)
    assert os.listdir(again.path) == []


def test_an_ephemeral_view_of_a_dead_daemon_goes_with_the_next_mount(daemons: Daemons) -> None:
    mounted = daemons.start(ephemeral=True)
    (mounted.path / "f").write_bytes(b"gone soon")
    (left,) = (mounted.store / "views").glob("ephemeral-*")
    mounted.kill()
    detach(mounted.path)
    again = daemons.start()
    assert not left.exists()
    assert [path.suffix for path in (again.store / "run").glob("mount-*")] == []


def test_a_dead_mount_is_taken_away_by_the_next(daemons: Daemons) -> None:
    mounted = daemons.start()
    (mounted.path / "f").write_bytes(b"kept")
    mounted.kill()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(mounted.path)
    again = daemons.start()
    assert (again.path / "f").read_bytes() == b"kept"
    assert "dead mount taken away" in again.log


@pytest.mark.slow
@pytest.mark.parametrize("acknowledged_min", [1, 50, 400])
def test_killing_the_daemon_loses_nothing_that_a_system_call_completed(
    daemons: Daemons, acknowledged_min: int
) -> None:
    mounted = daemons.start()
    writer = subprocess.Popen(
        [sys.executable, "-S", "-c", WRITER, str(mounted.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert writer.stdout is not None
    said = read_until(writer.stdout, lambda said: said.count(b"\n") >= acknowledged_min)
    mounted.kill()
    said += writer.stdout.read()
    writer.wait()
    writer.stdout.close()
    detach(mounted.path)
    again = daemons.start()
    count = said.count(b"\n")
    for number in range(count):
        content = b"%09d" % number * 700
        expected = content[:3000] + b"middle" + content[3006:]
        assert (again.path / str(number)).read_bytes() == expected
    log = (again.path / "log").read_bytes()
    assert log.startswith(b"".join(b"%09d\n" % number for number in range(count)))
    assert len(log) <= (count + 1) * 10


def test_a_bug_in_the_view_is_an_error_for_one_request_alone(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path, command=[sys.executable, "-m", "tests.fuse.fake_daemon"])
    try:
        mounted = daemons.start()
        (mounted.path / "f").write_bytes(b"before")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (mounted.path / "bug").stat()
        assert (mounted.path / "f").read_bytes() == b"before"
        (mounted.path / "g").write_bytes(b"after")
        assert sorted(os.listdir(mounted.path)) == ["f", "g"]
        assert mounted.end() == 0
        assert "bug op=lookup" in mounted.log
        assert "ZeroDivisionError" in mounted.log
    finally:
        daemons.end_all()
