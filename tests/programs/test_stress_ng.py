"""stress-ng's file-system stressors find nothing wrong with a mount.

Method: a few of them at once for seconds; with --long each of the whole class alone, and then all
at once. stress-ng checks what it does (--verify) and exits with 0 only when all of it was right.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

from tests.programs.place import Place, run

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.program("stress-ng")]

LEFT_OUT = {
    "bind-mount": "mounts / somewhere, and leaves the place that it is given alone",
    "binderfs": "mounts binderfs",
    "eventfd": "uses no file system",
    "fiemap": "FUSE has no FIEMAP: it skips itself",
    "io": "syncs every mount of the machine: another's broken disk fails it",
    "ioprio": "uses no file system",
    "procfs": "reads /proc",
    "verity": "skips itself on ext4 as well: it needs fs-verity",
}
SEVERAL = ["access", "chmod", "dentry", "dir", "dirdeep", "fcntl", "filename", "getdent", "hdd",
           "lockf", "mknod", "open", "rename", "symlink", "touch", "utime"]  # fmt: skip
SMALLER = {
    "copy-file": ["--copy-file-bytes", "128m"],
    "fallocate": ["--fallocate-bytes", "4m"],  # is emulated, a write for each block
    "hdd": ["--hdd-bytes", "16m"],
    "iomix": ["--iomix-bytes", "4m"],
    "sync-file": ["--sync-file-bytes", "4m"],
}
MAY_DO_NOTHING = {
    "chdir": "first makes 8,192 directories",
    "fpunch": "needs FALLOC_FL_PUNCH_HOLE",
    "inode-flags": "needs ioctl",
    "link": "counts rounds of 8,192 links",
    "symlink": "counts rounds of 8,192 links",
    "xattr": "counts rounds of 4,096 attributes of one file, each of which is journaled with all",
}


@cache
def file_system_class() -> list[str]:
    """Ask this stress-ng what is in its class, so that a newer one is tested as a whole, too."""
    if shutil.which("stress-ng") is None:
        return []
    done = subprocess.run(
        ["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=False
    )
    _, _, names = (done.stdout + done.stderr).partition("stressors:")
    return names.split()


def stress(place: Place, names: list[str], seconds: int) -> str:
    directory = place.mount / "stress"
    directory.mkdir(exist_ok=True)
    words = [word for name in names for word in (f"--{name}", "1", *SMALLER.get(name, []))]
    said = run(
        "stress-ng", *words, "--timeout", str(seconds), "--verify", "--metrics", "--seed", "1",
        "--temp-path", directory,
    )  # fmt: skip
    assert list(directory.iterdir()) == []
    return said


def test_several_stressors_at_once(place: Place) -> None:
    (place.mount / "kept").write_bytes(b"kept" * 100_000)
    stress(place, SEVERAL, 4)
    assert (place.mount / "kept").read_bytes() == b"kept" * 100_000


def test_nothing_is_left_out_that_there_is_not() -> None:
    assert set(LEFT_OUT) <= set(file_system_class())
    assert set(SEVERAL) <= set(file_system_class())


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(file_system_class()) - set(LEFT_OUT)))
def test_each_stressor_alone(name: str, place: Place) -> None:
    said = stress(place, [name], 15)
    done = re.search(rf"metrc: +\[\d+\] {name} +(\d+) ", said)
    assert done is not None
    assert int(done[1]) > 0 or name in MAY_DO_NOTHING


@pytest.mark.long
def test_all_stressors_at_once(place: Place) -> None:
    stress(place, sorted(set(file_system_class()) - set(LEFT_OUT)), 60)
