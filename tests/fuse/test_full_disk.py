"""A full disk is ENOSPC to the writer, and the store stays readable, deletable and clean (P11).

Method: the store lies on a small ext4 image on a loop device; a mount is written to until it says
no. Needs root for the loop device.
"""

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.model import RecordKind
from dedupfs.store.store import Store
from tests.fuse.harness import Daemons

IMAGE_BYTES = 96 << 20
PIECE_BYTES = 1 << 20

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own; made before ``daemons``, so unmounted after them."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(path: Path) -> int:
    """Write until the disk is full; return how many bytes were taken."""
    written = subprocess.run(
        ["dd", "if=/dev/urandom", f"of={path}", f"bs={PIECE_BYTES}"],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    assert "No space left on device" in written.stderr
    return path.stat().st_size


def test_a_full_disk_refuses_data_and_can_be_emptied(small_disk: Path, daemons: Daemons) -> None:
    mounted = daemons.start(store=str(small_disk / "store"))
    (mounted.path / "kept").write_bytes(b"kept " * 1000)
    taken = fill(mounted.path / "big")
    assert taken > IMAGE_BYTES // 2
    assert (mounted.path / "big").stat().st_size == taken
    with pytest.raises(OSError, match="No space left") as refused:
        (mounted.path / "more").write_bytes(random.Random(1).randbytes(PIECE_BYTES))
    assert refused.value.errno == errno.ENOSPC
    assert (mounted.path / "kept").read_bytes() == b"kept " * 1000
    (mounted.path / "big").unlink()
    (mounted.path / "more").unlink()
    assert fill(mounted.path / "again") > taken // 2, "what was deleted is room again"
    (mounted.path / "again").unlink()
    mounted.end()
    with Store.open(small_disk / "store") as store:
        report = check(store)
        assert report.ok, [str(problem) for problem in report.problems]


def leave_garbage(store_path: Path, length: int) -> None:
    """Have a process store bytes, hold them, and die."""
    pid = os.fork()
    if pid == 0:
        try:
            store = Store.create(store_path)
            rng = random.Random(7)
            ids = [store.put(RecordKind.CHUNK, rng.randbytes(1 << 17)) for _ in range(length >> 17)]
            with store.transaction() as txn:
                for record_id in ids:
                    txn.pin(store.owner, record_id)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("auto_gc", [True, False], ids=["by itself", "not asked to"])
def test_a_full_disk_has_the_garbage_of_others_given_back(
    small_disk: Path, daemons: Daemons, auto_gc: bool
) -> None:
    """Of a process that died: no fold of this view lets go of that."""
    garbage_bytes = 40 << 20
    leave_garbage(small_disk / "store", garbage_bytes)
    mounted = daemons.start(store=str(small_disk / "store"), auto_gc=auto_gc)
    taken = fill(mounted.path / "big")
    assert (taken > IMAGE_BYTES - garbage_bytes) == auto_gc, taken
    (mounted.path / "big").unlink()
    mounted.end()
    with Store.open(small_disk / "store") as store:
        report = check(store)
        assert report.ok, [str(problem) for problem in report.problems]
