"""statfs(2): figures that hang together (actor.py asserts that), by path and by descriptor."""

import os

import pytest

from tests.calls.conftest import Place, Places
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
statfs of a TYPE
    make TYPE x 600
    statvfs x namemax = 255

statfs by the descriptor of a file without a name
    open x O_CREAT|O_RDWR 644 as f
    unlink x
    statvfs @f namemax = 255

statfs needs no permission but to get there
    mkdir d
    chmod d 711
    create d/x
    chmod d/x 0
    alice: statvfs d/x namemax = 255
    chmod d 700
    alice: statvfs d/x namemax = EACCES
""",
    TYPE="regular dir fifo socket",
)


def test_statfs(place: Place, case: Case) -> None:
    place.run(case)


@pytest.mark.fuse
def test_a_mount_says_what_the_disk_of_its_store_says(places: Places) -> None:
    """Block size and counts are the disk's, so df shows when the store will be full."""
    mount = places.get("mount")
    on_mount, on_disk = os.statvfs(mount.top), os.statvfs(mount.other)
    assert on_mount.f_frsize == on_disk.f_frsize
    assert on_mount.f_blocks == on_disk.f_blocks
    assert on_mount.f_files == on_disk.f_files
    flags = os.ST_NOSUID | os.ST_NODEV | os.ST_NOATIME
    assert on_mount.f_flag & flags == flags
