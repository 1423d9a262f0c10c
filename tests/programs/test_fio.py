"""fio reads back what it wrote, in and out of order, before and after a remount.

Method: fio puts a checksum and a header into each block and verifies them itself.
"""

from __future__ import annotations

import pytest

from tests.conftest import Scale
from tests.programs.place import Place, run

pytestmark = [pytest.mark.unmeasured, pytest.mark.fuse, pytest.mark.program("fio")]

ENGINES = {
    "buffered": ["--ioengine=psync"],
    "direct": ["--ioengine=libaio", "--direct=1", "--iodepth=8"],
    "mmap": ["--ioengine=mmap"],
    "vectored-sync": ["--ioengine=pvsync", "--fsync=50"],
}


def fio(place: Place, engine: str, how: str, block: str, mib: int) -> list[str]:
    return [
        "fio", f"--name={how}", f"--filename={place.mount}/{engine}-{how}-{block}", f"--rw={how}",
        f"--{'bsrange' if '-' in block else 'bs'}={block}", f"--size={mib}m", *ENGINES[engine],
        "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=1",
        "--fallocate=none",
    ]  # fmt: skip


def test_every_block_is_verified(place: Place, scale: Scale) -> None:
    ways = [("write", "64k"), ("randwrite", "4k"), ("randwrite", "4k-96k")]
    jobs = [
        fio(place, engine, how, block, scale(1, 192)) for engine in ENGINES for how, block in ways
    ]
    for job in jobs:
        assert "err= 0" in run(*job, "--do_verify=1")
    for engine in ENGINES:
        mixed = fio(place, engine, "randrw", "12k", scale(1, 192))
        assert "err= 0" in run(*mixed, "--do_verify=1")
    place.remount()
    for job in jobs:
        assert "err= 0" in run(*job, "--verify_only=1")


@pytest.mark.long
def test_several_jobs_write_parts_of_one_file(place: Place) -> None:
    parts = [
        "fio", f"--filename={place.mount}/shared", "--size=64m", "--offset_increment=64m",
        "--numjobs=4", "--rw=randwrite", "--bsrange=1k-128k", "--ioengine=psync", "--loops=3",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--name=parts", "--randseed=9",
        "--group_reporting", "--fallocate=none", "--verify_state_save=0",
    ]  # fmt: skip
    assert "err= 0" in run(*parts)
    place.remount()
