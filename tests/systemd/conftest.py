"""One machine for all of these tests, or the reason why there is none."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator

import pytest

from tests.powercut.machine import Image
from tests.systemd.host import REPOSITORY, CannotBootError, Host

PROGRAMS = ("systemd-nspawn", "nsenter", "unshare", "setpriv", "mkfs.ext4")
MARKS = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.unmeasured,
    pytest.mark.program(*PROGRAMS),
]
ENVIRONMENT = "STORE=/data/store\nMOUNTPOINT=/data/mnt\nOPTIONS=--allow-other\n"
CHECK = "dedupfs check /data/store"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    image = Image(tmp_path_factory.mktemp("disk"), "ext4", random.Random(0))
    try:
        image.mount()
        yield image
    finally:
        image.remove()


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Host]:
    """A machine with our programs and units and a store in it; all tests change this one.

    The store is right in the end.
    """
    host = Host(tmp_path_factory.mktemp("host"), image.path)
    try:
        try:  # whether such a machine boots here is seen without anything of ours in it
            host.prepare()
            host.boot()
            host.run(": <>/dev/fuse && journalctl --lines=1")
        except (CannotBootError, AssertionError, subprocess.TimeoutExpired) as exc:
            pytest.skip(f"systemd-nspawn: {exc}")
        host.lose_power()
        host.install()
        host.boot()
        for command in commands_of_the_guide(
            "ln -s ", "systemctl link ", "systemctl daemon-reload"
        ):
            host.run(command)
        host.run("dedupfs init /data/store && mkdir /data/mnt /data/other")
        host.put("/etc/dedupfs/ckpts.env", ENVIRONMENT)
        yield host
        if host.nspawn is not None:  # a test that failed has said so
            host.run(CHECK)
    finally:
        host.remove()


@pytest.fixture
def host(machine: Host) -> Host:
    """The machine; up again if a test that failed has left it without power."""
    if machine.nspawn is None:
        machine.boot()
    return machine


@pytest.fixture
def service(host: Host) -> Iterator[Host]:
    """The machine with its service running, which is stopped after it."""
    host.run("systemctl reset-failed")  # and how often one was started: systemctl(1)
    host.run("systemctl start dedupfs@ckpts")
    yield host
    host.run("systemctl stop dedupfs@ckpts")
    assert host.run("systemctl is-active dedupfs@ckpts", code=3) == "inactive"
    host.run("! grep fuse.dedupfs /proc/mounts")


def commands_of_the_guide(*starts: str) -> list[str]:
    """Return those that start so, in the guide's order."""
    guide = (REPOSITORY / "docs" / "guide" / "systemd.md").read_text()
    found = [line for line in guide.splitlines() if line.startswith(starts)]
    assert len(found) >= len(starts)
    return found


def open_files(host: Host, pid: str) -> int:
    """Return how many files a process may have open."""
    return int(host.run(f"grep 'Max open files' /proc/{pid}/limits").split()[3])
