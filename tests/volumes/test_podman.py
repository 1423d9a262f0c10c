"""Podman with the volume plugin: containers that share a snapshot and do not see each other.

Method: the real podman, its storage, locks and configuration in the test's directory, an image of
nothing but busybox, no network. Podman speaks to the plugin over its socket. Where podman cannot
run a container at all, which is tried once, they are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from dedupfs.fuse.mountpoints import mount_at
from tests.conftest import detach_all_below
from tests.volumes.conftest import SEAM_BYTES_MAX, TIMEOUT_S, Plugin, image_of_busybox

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.program("podman", "runc", "busybox"),
    pytest.mark.unmeasured,
]

IMAGE = "busybox"


class Podman:
    """A podman of the test's own."""

    def __init__(self, directory: Path, socket_path: Path) -> None:
        self._directory = directory
        configuration = directory / "containers.conf"
        configuration.write_text(
            '[engine]\nlock_type = "file"\nvolume_plugin_timeout = 60\n'
            f'[engine.volume_plugins]\ndedupfs = "{socket_path}"\n'
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._command = [
            "podman",
            *("--root", str(directory / "root"), "--runroot", str(directory / "run")),
            *("--tmpdir", str(directory / "tmp"), "--storage-driver", "vfs"),
            *("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file"),
        ]

    def make_image(self) -> None:
        self._run("import", "-", IMAGE, given=image_of_busybox(self._directory))

    def __call__(self, *words: str, code: int = 0) -> str:
        return self._run(*words, code=code)

    def run(self, *words: str, code: int = 0) -> str:
        """Run a container until it ends."""
        return self._run(*self._container("run", "--rm"), *words, code=code)

    def start(self, name: str, *words: str) -> None:
        """Start a container that sleeps."""
        self._run(*self._container("run", "-d", "--name", name), *words, IMAGE, "/bin/sleep", "600")

    @staticmethod
    def _container(*words: str) -> list[str]:
        limits = ("nofile=1024:1024", "nproc=1000:1000")
        return [*words, "--network=none", *(f"--ulimit={limit}" for limit in limits)]

    def _run(self, *words: str, code: int = 0, given: bytes = b"") -> str:
        done = subprocess.run(
            [*self._command, *words],
            env=self._environment,
            input=given,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == code, done.stderr.decode(errors="replace")
        return (done.stderr if code else done.stdout).decode(errors="replace")

    def end(self) -> None:
        """Take all containers, and what podman mounted for itself, away."""
        try:
            self._run("rm", "--all", "--force", "--time", "0")
        finally:
            detach_all_below(self._directory)


@contextmanager
def podman_with(socket_path: Path) -> Iterator[Podman]:
    directory = Path(tempfile.mkdtemp(prefix="dedupfs-"))  # podman wants a short path
    podman = Podman(directory, socket_path)
    try:
        podman.make_image()
        yield podman
    finally:
        podman.end()
        shutil.rmtree(directory)


@cache
def why_no_container() -> str | None:
    """Return why podman cannot run a container here, or None when it can."""
    try:
        with podman_with(Path("/nonexistent")) as podman:
            podman.run(IMAGE, "/bin/test", "1")
    except AssertionError as exc:
        return str(exc).splitlines()[0]
    return None


@pytest.fixture
def podman(plugin: Plugin) -> Iterator[Podman]:
    reason = why_no_container()
    if reason is not None:
        pytest.skip(f"podman runs no container here: {reason}")
    with podman_with(plugin.socket_path) as podman:
        yield podman


def test_containers_that_run_read_one_snapshot_and_write_into_views_of_their_own(
    podman: Podman, plugin: Plugin
) -> None:
    before = plugin.stored_bytes()
    names = ("one", "two")
    for name in names:
        podman("volume", "create", "--driver", "dedupfs", "-o", "snapshot=base", name)
        podman.start(name, "-v", f"{name}:/data")
    script = "cat /data/large /data/large >/data/again && cat /data/file && echo $0 >/data/file"
    for name in names:
        assert podman("exec", name, "/bin/sh", "-c", script, name) == "from the snapshot\n"
    for name in names:
        script = "cat /data/file && cat /data/large /data/large | cmp - /data/again"
        assert podman("exec", name, "/bin/sh", "-c", script) == f"{name}\n"
    podman("rm", "-f", "-t", "0", *names)
    for name in names:
        said = podman.run("-v", f"{name}:/data:ro", IMAGE, "/bin/cat", "/data/file")
        assert said == f"{name}\n"
    assert plugin.dedupfs("cat", plugin.store, "base:file") == "from the snapshot\n"
    added = plugin.stored_bytes() - before
    assert 0 < added < SEAM_BYTES_MAX, added  # 4 MiB were copied
    (told,) = json.loads(podman("volume", "inspect", "one"))
    assert (told["Driver"], told["Status"]["view"]) == ("dedupfs", "one")
    assert podman("volume", "ls", "-q").split() == ["one", "two"]
    podman("volume", "rm", "one", "two")
    assert plugin.ask("List")["Volumes"] == []


def test_containers_that_run_share_a_view_while_the_plugin_is_started_again(
    podman: Podman, plugin: Plugin
) -> None:
    podman("volume", "create", "--driver", "dedupfs", "-o", "snapshot=base", "shared")
    podman("volume", "create", "--driver", "dedupfs", "-o", "ephemeral=true", "scratch")
    podman(
        "volume", "create", "--driver", "dedupfs", "-o", "snapshot=base", "-o", "ro=true", "fixed"
    )
    for name in ("a", "b"):
        podman.start(name, "-v", "shared:/data", "-v", "scratch:/scratch", "-v", "fixed:/fixed")
    podman("exec", "a", "/bin/sh", "-c", "echo from a >/data/new; echo gone >/scratch/new")
    plugin.stop()
    plugin.start()
    assert podman("exec", "b", "/bin/cat", "/data/new", "/scratch/new") == "from a\ngone\n"
    said = podman("exec", "b", "/bin/touch", "/fixed/new", code=1)
    assert "Read-only file system" in said
    podman("rm", "-f", "-t", "0", "a")
    podman("exec", "b", "/bin/sh", "-c", "echo from b >>/data/new")
    place = plugin.state / "mounts" / "shared"
    assert (place / "new").read_bytes() == b"from a\nfrom b\n"
    podman("volume", "rm", "shared", code=2)  # in use
    podman("rm", "-f", "-t", "0", "b")
    assert mount_at(place) is None
    said = podman.run("-v", "scratch:/s", "-v", "shared:/d", IMAGE, "/bin/ls", "/s", "/d")
    assert said == "/d:\nfile\nlarge\nnew\n\n/s:\nbase\n"
    podman("volume", "rm", "shared", "scratch", "fixed")
    assert plugin.ask("List")["Volumes"] == []


def test_podman_is_told_why_a_volume_cannot_be(podman: Podman, plugin: Plugin) -> None:
    words = ("volume", "create", "--driver", "dedupfs", "-o", "snapshot=missing", "job")
    assert "no snapshot 'missing'" in podman(*words, code=125)
    assert plugin.ask("List")["Volumes"] == []
