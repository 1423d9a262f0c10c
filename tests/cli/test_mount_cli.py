"""mount, umount, commit and view as a user types them: exit codes, one line of error, no waiting.

Method: the real program in a process of its own. ``mount`` returns when the mount answers, so what
follows it needs no waiting; ``umount`` returns when the daemon is gone.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dedupfs import errors
from dedupfs.namespace import live
from tests.fuse.harness import REPOSITORY, detach, is_mounted

pytestmark = pytest.mark.fuse

TIMEOUT_S = 120


@dataclass
class Place:
    """A store and mount points next to each other."""

    directory: Path

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def mountpoint(self, name: str = "mnt") -> Path:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path

    def dedupfs(self, *words: object, code: int = 0) -> str:
        """Run a command, check its exit code, return what it printed (its error for a failure)."""
        done = subprocess.run(
            [sys.executable, "-m", "dedupfs", *[str(word) for word in words]],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr.count("\n") == 1, done.stderr
            return done.stderr
        return done.stdout

    def daemon(self, name: str = "mnt") -> live.Running:
        found = live.daemon_at(self.store, self.directory / name)
        assert found is not None
        return found.running


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for path in sorted(tmp_path.iterdir()):
        if is_mounted(path):
            daemon = live.daemon_at(place.store, path)
            detach(path)
            if daemon is not None:
                end = live.ProcessEnd(daemon.running.pid)
                assert end.wait(TIMEOUT_S)
                end.close()


def test_mount_makes_a_store_and_returns_when_it_answers(place: Place) -> None:
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt")
    (mnt / "f").write_bytes(b"kept")
    running = place.daemon()
    assert os.getsid(running.pid) == running.supervisor
    end = live.ProcessEnd(running.pid)
    place.dedupfs("umount", "mnt")
    assert not is_mounted(mnt)
    assert end.wait(timeout_s=0)
    end.close()
    assert "mounted" in (place.store / "run" / "view-default.log").read_text()
    place.store.rename(place.directory / "moved")
    place.dedupfs("mount", "moved", "mnt")
    assert (mnt / "f").read_bytes() == b"kept"
    place.dedupfs("umount", mnt)


def test_every_umount_lets_the_next_mount_start_at_once(place: Place) -> None:
    mnt = place.mountpoint()
    for number in range(5):
        place.dedupfs("mount", "store", "mnt")
        assert len(os.listdir(mnt)) == number
        (mnt / str(number)).write_bytes(b"x" * 100_000)
        place.dedupfs("umount", "mnt")


def test_mount_in_the_foreground_tells_its_service_manager_and_ends_with_a_signal(
    place: Place,
) -> None:
    mnt = place.mountpoint()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # an abstract name of the kernel's choice: unix(7)
        manager.settimeout(TIMEOUT_S)
        process = subprocess.Popen(
            [sys.executable, "-m", "dedupfs", "mount", "--foreground", place.store, mnt],
            cwd=REPOSITORY,
            env={**os.environ, "NOTIFY_SOCKET": "@" + manager.getsockname()[1:].decode()},
            stderr=subprocess.PIPE,
        )
        ready, status = manager.recv(1000).split(b"\n")
    assert ready == b"READY=1"
    assert status.startswith(f"STATUS={place.store} on {mnt}, answered by process".encode())
    (mnt / "f").write_bytes(b"kept")
    process.send_signal(signal.SIGINT)
    _out, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert b"ended" in said


def test_nothing_that_must_not_be_forked_is_imported_before_the_fork() -> None:
    code = (
        "import sys, dedupfs.cli.mounts;"
        "print([name for name in ('trio', 'lmdb', 'pyfuse3') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_mount_that_fails_says_why_in_one_line(place: Place) -> None:
    mount_error = errors.MountError.exit_code
    said = place.dedupfs("mount", "store", "missing", code=mount_error)
    assert "does not exist" in said
    assert not place.store.exists()
    (place.directory / "file").touch()
    assert "not a directory" in place.dedupfs("mount", "store", "file", code=mount_error)
    said = place.dedupfs("mount", "store", "store", code=mount_error)
    assert "does not exist" in said
    place.mountpoint("full").joinpath("f").touch()
    place.dedupfs("mount", "full", place.mountpoint(), code=errors.UsageError.exit_code)
    place.dedupfs("mount", "nothing", "mnt", "--read-only", code=errors.UsageError.exit_code)
    assert not (place.directory / "nothing").exists()
    said = place.dedupfs("mount", "store", "mnt", "--view", "v", "--ephemeral", code=2)
    assert "exclude each other" in said
    assert not is_mounted(place.directory / "mnt")


@pytest.mark.root
def test_without_a_device_it_says_how_to_get_one(place: Place) -> None:
    place.mountpoint()
    hide_device = "mount -t tmpfs none /dev && mknod /dev/null c 1 3"
    mount = f"exec {sys.executable} -m dedupfs mount store mnt"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{hide_device} && {mount}"],
        cwd=place.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == errors.MountError.exit_code
    assert "modprobe fuse" in done.stderr


def test_a_view_in_use_is_refused_with_its_owner(place: Place) -> None:
    place.mountpoint()
    place.mountpoint("second")
    place.dedupfs("mount", "store", "mnt")
    said = place.dedupfs("mount", "store", "second", code=errors.StoreBusyError.exit_code)
    assert str(place.daemon().pid) in said
    assert str(place.directory / "mnt") in said
    said = place.dedupfs("view", "rm", "store", "default", code=errors.StoreBusyError.exit_code)
    assert str(place.daemon().pid) in said
    place.dedupfs("umount", "mnt")


@pytest.mark.root
@pytest.mark.program("unshare", "sh")
def test_umount_says_whose_namespace_it_waits_for(place: Place) -> None:
    """A container or sandbox that was started meanwhile has a copy of every mount."""
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt")
    running = place.daemon()
    ends = [live.ProcessEnd(pid) for pid in (running.pid, running.supervisor)]
    (mnt / "f").write_bytes(b"x")
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo in; read line"]
    with subprocess.Popen(
        inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sandbox:
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "in\n"
        command = [sys.executable, "-m", "dedupfs", "umount", "mnt"]
        umount = subprocess.Popen(
            command,
            cwd=place.directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with umount:
            try:
                assert umount.stderr is not None
                said = umount.stderr.readline()
                # Three are named; runs of other tests may have copies, too, and lower numbers.
                assert f"{sandbox.pid} (sh)" in said or " more: waiting until" in said, said
                assert not is_mounted(mnt)
                assert live.daemon_at(place.store, mnt) is not None
            finally:
                sandbox.stdin.close()
            assert (umount.wait(TIMEOUT_S), umount.stderr.read()) == (0, "")
    for end in ends:
        assert end.wait(0)
        end.close()
    place.dedupfs("check", "store")


def test_umount_of_what_is_busy_dead_or_no_mount(place: Place) -> None:
    mnt = place.mountpoint()
    assert "not a mount point" in place.dedupfs("umount", "mnt", code=2)
    place.dedupfs("mount", "store", "mnt")
    with (mnt / "f").open("wb"):
        said = place.dedupfs("umount", "mnt", code=errors.MountError.exit_code)
        assert "in use" in said
        assert "fuser" in said
    running = place.daemon()
    end = live.ProcessEnd(running.pid)
    os.kill(running.supervisor, signal.SIGKILL)
    os.kill(running.pid, signal.SIGKILL)
    assert end.wait(TIMEOUT_S)
    end.close()
    place.dedupfs("umount", "mnt")
    assert not is_mounted(mnt)


def test_commit_freezes_a_live_view_with_what_was_mapped(place: Place) -> None:
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt")
    (mnt / "step" / "sub").mkdir(parents=True)
    (mnt / "step" / "f").write_bytes(bytes(200_000))
    with (mnt / "step" / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[100_000:100_006] = b"mapped"
        assert "s1: 2 entries" in place.dedupfs("commit", "mnt/step", "s1", "--tag", "loss=0.1")
    place.dedupfs("commit", "store", "s2", "--path", "step/sub")
    place.dedupfs("commit", "store", "s3")
    place.dedupfs("commit", "mnt", "s3", code=errors.ExistsError.exit_code)
    place.dedupfs("commit", "mnt", "s4", "--view", "default", code=2)
    place.dedupfs("umount", "mnt")
    place.dedupfs("mount", "store", "mnt", "--snapshot", "s1", "--ephemeral")
    assert (mnt / "f").read_bytes()[100_000:100_006] == b"mapped"
    place.dedupfs("umount", "mnt")
    place.dedupfs("mount", "store", "mnt", "--snapshot", "s3", "--read-only")
    assert "step" in os.listdir(mnt)
    place.dedupfs("umount", "mnt")


def test_clone_makes_a_directory_in_a_mount(place: Place) -> None:
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt")
    (mnt / "base" / "sub").mkdir(parents=True)
    (mnt / "base" / "sub" / "f").write_text("x")
    place.dedupfs("commit", "mnt/base", "one")
    place.dedupfs("clone", "store", "one", "mnt/run1")
    place.dedupfs("clone", "store", "one:sub", mnt / "run2")
    place.dedupfs("clone", "store", "one", "mnt/run4", "mnt/run5", "two")
    assert (mnt / "run5" / "sub" / "f").read_text() == (mnt / "two" / "sub" / "f").read_text()
    (mnt / "run1" / "sub" / "f").write_text("changed")
    assert (mnt / "run2" / "f").read_text() == (mnt / "one" / "sub" / "f").read_text() == "x"
    assert "no such snapshot" in place.dedupfs("clone", "store", "none", "mnt/run3", code=1)
    assert not (mnt / "run3").exists()
    several = ("mnt/run6", "mnt/base", "mnt/run7")
    assert "held something" in place.dedupfs("clone", "store", "one", *several, code=8)
    assert ((mnt / "run6" / "sub").exists(), (mnt / "run7").exists()) == (True, False)
    assert "not in a mount" in place.dedupfs("clone", "store", "one", "./elsewhere", code=2)
    assert not (place.directory / "elsewhere").exists()
    place.dedupfs("umount", "mnt")


def test_commit_of_a_view_that_is_not_mounted(place: Place) -> None:
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt", "--view", "job")
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_bytes(b"x")
    place.dedupfs("umount", "mnt")
    place.dedupfs("commit", "store", "night", "--view", "job", "--path", "d")
    said = place.dedupfs("commit", "store", "x", "--view", "typo", code=2)
    assert "no view typo" in said
    place.dedupfs("commit", "store", "x", "--view", "job", "--tag", "nonsense", code=2)
    place.dedupfs("mount", "store", "mnt", "--read-only")
    assert (mnt / "night" / "f").read_bytes() == b"x"
    place.dedupfs("umount", "mnt")


def test_views_are_listed_and_removed(place: Place) -> None:
    mnt = place.mountpoint()
    for name in ("a", "b"):
        place.dedupfs("mount", "store", "mnt", "--view", name)
        (mnt / f"by-{name}").mkdir()
        place.dedupfs("umount", "mnt")
    place.dedupfs("mount", "store", "mnt", "--view", "a")
    listed = {
        row["name"]: row for row in json.loads(place.dedupfs("view", "list", "store", "--json"))
    }
    assert set(listed) == {"a", "b"}
    assert listed["a"]["mountpoint"] == str(mnt)
    assert listed["a"]["pid"] == place.daemon().pid
    assert listed["b"]["pid"] is None
    assert str(mnt) in place.dedupfs("view", "list", "store")
    assert "would remove view b" in place.dedupfs("view", "rm", "store", "b", "--dry-run")
    place.dedupfs("view", "rm", "store", "b")
    assert "no view b" in place.dedupfs("view", "rm", "store", "b", code=2)
    assert [
        row["name"] for row in json.loads(place.dedupfs("view", "list", "store", "--json"))
    ] == ["a"]
    place.dedupfs("umount", "mnt")


def test_view_diff_shows_what_was_written_a_moment_ago(place: Place) -> None:
    data = place.directory / "data"
    (data / "sub").mkdir(parents=True)
    (data / "a.txt").write_text("hello\n")
    (data / "sub" / "b.bin").write_bytes(b"b" * 5000)
    place.dedupfs("init", "store")
    place.dedupfs("import", "store", "data", "one")
    place.dedupfs("clone", "store", "one", "two")
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt")
    (mnt / "one" / "a.txt").write_text("hello world\n")
    (mnt / "one" / "sub" / "b.bin").unlink()
    (mnt / "new").mkdir()
    (mnt / "new" / "file").write_bytes(b"x" * 200_000)
    shutil.rmtree(mnt / "two")
    with (mnt / "one" / "open").open("wb") as file:
        file.write(b"still open" * 100_000)
        live = place.dedupfs("view", "diff", "store", "default").splitlines()
    place.dedupfs("umount", "mnt")
    assert live == [
        "+ new/",
        "+ new/file",
        "M one/a.txt (6 B -> 12 B)",
        "+ one/open",
        "- one/sub/b.bin",
        "- two/",
    ]
    assert place.dedupfs("view", "diff", "store", "default").splitlines() == live
    found = json.loads(place.dedupfs("view", "diff", "store", "default", "--json"))
    assert [(item["kind"], item["path"]) for item in found][:2] == [
        ("added", "new"),
        ("added", "new/file"),
    ]
    assert found[2]["before"]["size"] == 6
    assert "no view 'none'" in place.dedupfs("view", "diff", "store", "none", code=1)


def test_a_view_with_the_longest_name(place: Place) -> None:
    name = "v" * 255
    mnt = place.mountpoint()
    place.dedupfs("mount", "store", "mnt", "--view", name)
    (mnt / "d").mkdir()
    place.dedupfs("commit", "mnt/d", "s")
    place.dedupfs("umount", "mnt")
    place.dedupfs("commit", "store", "t", "--view", name)


def test_help_shows_an_example() -> None:
    views = [["view", command] for command in ("list", "diff", "rm")]
    for command in (["mount"], ["umount"], ["commit"], *views):
        done = subprocess.run(
            [sys.executable, "-m", "dedupfs", *command, "--help"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert "Example" in done.stdout
