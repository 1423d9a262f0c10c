"""A mount as a volume of containers without a plugin: propagation and user namespaces.

Method: a real mount; the namespaces are unshare(1)'s, as a container's are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.cli import main
from dedupfs.namespace import live
from tests.conftest import detach, fuse_mounts_below
from tests.volumes.conftest import TIMEOUT_S

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.program("unshare", "sh")]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a mount whose mounts are passed on to others."""
    directory = tmp_path / "shared"
    directory.mkdir()
    subprocess.run(["mount", "--bind", directory, directory], check=True, timeout=60)
    try:
        subprocess.run(["mount", "--make-rshared", directory], check=True, timeout=60)
        yield directory
    finally:
        for point in fuse_mounts_below(directory):
            detach(point)
        detach(str(directory))


def dedupfs(*words: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "dedupfs", *words],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )


def test_who_began_before_a_mount_sees_it_come_and_go(shared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("from the snapshot\n")
    store = tmp_path / "store"
    assert main(["init", str(store)]) == 0
    assert main(["import", str(store), str(data), "base"]) == 0
    place = shared / "mnt"
    place.mkdir()
    command = ["unshare", "--mount", "--propagation", "slave", "sh"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as container:
        assert container.stdin is not None
        assert container.stdout is not None

        def inside(line: str) -> str:
            assert container.stdin is not None
            assert container.stdout is not None
            container.stdin.write(f"echo $({line})\n")
            return container.stdout.readline().rstrip("\n")

        assert inside(f"ls {place}") == ""
        dedupfs("mount", store, place, "--snapshot", "base", "--view", "job")
        assert inside(f"cat {place}/file") == "from the snapshot"
        assert inside(f"echo inside >{place}/new; cat {place}/new") == "inside"
        assert (place / "new").read_text() == "inside\n"
        (running,) = live.daemons(store)
        os.kill(running.running.pid, signal.SIGKILL)  # another one takes over
        assert inside(f"cat {place}/new") == "inside"
        ends = [running.running.supervisor, *(each.running.pid for each in live.daemons(store))]
        for pid in ends:  # and when none does, whoever mounts again is seen
            end = live.ProcessEnd(pid)
            os.kill(pid, signal.SIGKILL)
            assert end.wait(TIMEOUT_S)
            end.close()
        dedupfs("mount", store, place, "--snapshot", "base", "--view", "job")
        assert inside(f"cat {place}/new") == "inside"
        dedupfs("umount", place)  # also out of the container, or the daemon would not end
        assert inside(f"ls {place}") == ""
        container.stdin.close()
        assert container.wait(TIMEOUT_S) == 0
    assert main(["check", str(store)]) == 0


def test_the_root_of_a_user_namespace_is_the_user_who_mounted(tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    dedupfs("mount", tmp_path / "store", place)
    try:
        script = f"echo kept >{place}/file && chmod 640 {place}/file && stat -c %u:%a {place}/file"
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", script],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.stdout == "0:640\n"
        assert (place / "file").read_text() == "kept\n"
    finally:
        dedupfs("umount", place)
    assert main(["check", str(tmp_path / "store")]) == 0


_AS_NOBODY = """
import msgspec, os, sys
from dedupfs.errors import MountError
from dedupfs.volumes.mounts import carry_out
os.setgroups([]); os.setgid(65534); os.setuid(65534)
place = sys.argv[1]
options = {"store": "/nonexistent"}
order = {"type": "mount", "place": place, "options": options, "allow_other": False}
try:
    carry_out(msgspec.json.encode(order), lambda *_: print("mounts"))
except MountError as exc:
    print(exc)
"""


@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_nobody_is_given_a_volume_that_his_containers_would_not_see(propagation: str) -> None:
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name:  # where nobody may go, too
        Path(name).chmod(0o777)
        _refused_or_not(Path(name) / "mnt", propagation)


def _refused_or_not(place: Path, propagation: str) -> None:
    entered = ["unshare", "--mount", "--propagation", propagation]
    done = subprocess.run(
        [*entered, sys.executable, "-c", _AS_NOBODY, place],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    if propagation == "shared":
        assert done.stdout == "mounts\n"
    else:
        assert "would not see" in done.stdout
        assert "--make-rshared /" in done.stdout
        assert not place.exists()
