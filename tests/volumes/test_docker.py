"""Docker with the volume plugin: its containers share a view, and its daemon is started again.

Method: the real dockerd with its data, its socket and its containerd in the test's directory, no
network, the images of nothing but busybox. It finds the plugin by a file with a name of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.fuse.mountpoints import mount_at
from tests.conftest import detach_all_below
from tests.fuse.harness import eventually
from tests.volumes.conftest import SEAM_BYTES_MAX, TIMEOUT_S, Plugin, image_of_busybox

pytestmark = [
    pytest.mark.long,
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.program("dockerd", "docker", "containerd", "runc", "busybox"),
    pytest.mark.unmeasured,
]

IMAGE = "busybox"
PLUGINS = Path("/etc/docker/plugins")


class Docker:
    """A Docker of the test's own."""

    def __init__(self, directory: Path, socket_path: Path) -> None:
        self._directory = directory
        self._address = f"unix://{directory}/d.sock"
        self.driver = directory.name
        self._plugin = PLUGINS / f"{self.driver}.spec"
        self._plugin.parent.mkdir(parents=True, exist_ok=True)
        self._plugin.write_text(f"unix://{socket_path}")
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start dockerd, whose containers outlive it, and return when it answers."""
        directory = self._directory
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
            (directory / "log").open("ab") as log,
        ):
            ready.bind(f"{directory}/ready")
            ready.settimeout(TIMEOUT_S)
            self._daemon = subprocess.Popen(
                [
                    *("dockerd", "--host", self._address, "--pidfile", directory / "pid"),
                    *("--data-root", directory / "data", "--exec-root", directory / "exec"),
                    *("--iptables=false", "--ip6tables=false", "--bridge=none", "--live-restore"),
                    *("--storage-driver=vfs", "--log-level=warn"),
                ],
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": f"{directory}/ready"},
            )
            while b"READY=1" not in ready.recv(4096):
                continue
        (directory / "ready").unlink()

    def stop(self, number: int) -> None:
        """End dockerd; its containerd goes with it.

        The next dockerd would take a pid file for a containerd that runs, even if that is a zombie.
        """
        assert self._daemon is not None
        containerd = (self._directory / "exec" / "containerd" / "containerd.pid").read_text()
        self._daemon.send_signal(number)
        self._daemon.wait(TIMEOUT_S)
        assert eventually(lambda: not Path("/proc", containerd).exists())

    def __call__(self, *words: str, code: int = 0, given: bytes = b"") -> str:
        done = subprocess.run(
            ["docker", "--host", self._address, *words],
            input=given,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        log = (self._directory / "log").read_text(errors="replace")
        assert done.returncode == code, f"{done.stderr.decode(errors='replace')}\n{log}"
        return (done.stderr if code else done.stdout).decode(errors="replace")

    def run(self, *words: str) -> str:
        return self("run", "--rm", "--network=none", *words)

    def run_and_leave(self, name: str, *words: str) -> None:
        detached = ("run", "-d", "--name", name, "--network=none")
        self(*detached, *words, IMAGE, "/bin/sleep", "600")

    def end_containers(self) -> None:
        try:
            left = self("ps", "-aq").split()
            if left:
                self("rm", "-f", *left)
        finally:
            self.stop(signal.SIGTERM)

    def end(self) -> None:
        self._plugin.unlink()
        detach_all_below(self._directory)


@pytest.fixture
def docker(plugin: Plugin) -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="dedupfs-"))
    docker = Docker(directory, plugin.socket_path)
    try:
        docker.start()
        try:
            docker("import", "-", IMAGE, given=image_of_busybox(directory))
            yield docker
        finally:
            docker.end_containers()
    finally:
        docker.end()
        shutil.rmtree(directory)


def test_containers_of_docker_write_into_views_of_their_own(docker: Docker, plugin: Plugin) -> None:
    before = plugin.stored_bytes()
    names = ("one", "two")
    for name in names:
        docker("volume", "create", "-d", docker.driver, "-o", "snapshot=base", name)
        docker.run_and_leave(name, "-v", f"{name}:/data")
    script = "cat /data/large /data/large >/data/again && cat /data/file && echo $0 >/data/file"
    for name in names:
        assert docker("exec", name, "/bin/sh", "-c", script, name) == "from the snapshot\n"
    for name in names:
        assert docker("exec", name, "/bin/cat", "/data/file") == f"{name}\n"
    docker("rm", "-f", *names)
    assert 0 < plugin.stored_bytes() - before < SEAM_BYTES_MAX
    assert docker("volume", "ls", "-q").split() == ["one", "two"]
    docker("volume", "rm", *names)
    assert plugin.ask("List")["Volumes"] == []


def test_a_docker_that_is_started_again_among_its_containers_loses_no_volume(
    docker: Docker, plugin: Plugin
) -> None:
    docker("volume", "create", "-d", docker.driver, "-o", "snapshot=base", "shared")
    for name in ("first", "second"):
        docker.run_and_leave(name, "-v", "shared:/data")
    docker("exec", "first", "/bin/sh", "-c", "echo from a >/data/new")
    docker.stop(signal.SIGTERM)
    plugin.stop()
    plugin.start()
    docker.start()
    assert docker("exec", "second", "/bin/cat", "/data/new") == "from a\n"
    place = plugin.state / "mounts" / "shared"
    docker("rm", "-f", "first")
    assert mount_at(place) is not None
    docker("exec", "second", "/bin/sh", "-c", "echo from b >>/data/new")
    docker("volume", "rm", "shared", code=1)  # in use
    docker("rm", "-f", "second")
    assert mount_at(place) is None
    said = docker.run("-v", "shared:/data:ro", IMAGE, "/bin/cat", "/data/new")
    assert said == "from a\nfrom b\n"
    docker("volume", "rm", "shared")
    assert plugin.ask("List")["Volumes"] == []


@pytest.mark.parametrize("killed", ["docker", "plugin", "docker plugin", "plugin docker"])
def test_a_docker_or_a_plugin_that_is_killed_among_containers_loses_no_volume(
    docker: Docker, plugin: Plugin, killed: str
) -> None:
    kill = {"docker": lambda: docker.stop(signal.SIGKILL), "plugin": lambda: plugin.stop(9)}
    start = {"docker": docker.start, "plugin": plugin.start}
    docker("volume", "create", "-d", docker.driver, "-o", "snapshot=base", "shared")
    docker("volume", "create", "-d", docker.driver, "-o", "ephemeral=true", "scratch")
    for name in ("first", "second", "third"):
        docker.run_and_leave(name, "-v", "shared:/data:z", "-v", "scratch:/scratch")
    docker("exec", "first", "/bin/sh", "-c", "echo from a | tee /data/new >/scratch/new")
    for name in killed.split():
        kill[name]()
    for name in ("plugin", "docker"):  # which waits for a plugin whose socket is there
        if name in killed.split():
            start[name]()
    assert docker("exec", "second", "/bin/cat", "/data/new", "/scratch/new") == "from a\n" * 2
    assert users(plugin) == {"shared": 3, "scratch": 3}
    docker("rm", "-f", "first")
    docker("restart", "-t", "0", "second")
    docker("exec", "second", "/bin/sh", "-c", "echo from b >>/data/new")
    assert users(plugin) == {"shared": 2, "scratch": 2}
    docker("rm", "-f", "second", "third")
    assert users(plugin) == {"shared": 0, "scratch": 0}
    for name in ("shared", "scratch"):
        assert mount_at(plugin.state / "mounts" / name) is None
    said = docker.run("-v", "shared:/d", "-v", "scratch:/s", IMAGE, "/bin/cat", "/d/new")
    assert said == "from a\nfrom b\n"
    docker("volume", "rm", "shared", "scratch")
    assert plugin.ask("List")["Volumes"] == []


def users(plugin: Plugin) -> dict[str, int]:
    return {row["Name"]: row["Status"]["users"] for row in plugin.ask("List")["Volumes"]}


def test_docker_is_told_why_a_volume_cannot_be(docker: Docker, plugin: Plugin) -> None:
    words = ("volume", "create", "-d", docker.driver, "-o", "snapshot=missing", "job")
    assert "no snapshot 'missing'" in docker(*words, code=1)
    assert plugin.ask("List")["Volumes"] == []
