"""A view over its limit when its daemon dies: the next one knows, and there is a way out."""

from __future__ import annotations

import errno
import os
import random

import pytest

from tests.takeover.conftest import Mount
from tests.takeover.harness import Supervised

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

LIMIT_BYTES = 4 << 20


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_a_takeover_over_the_limit(mount: Mount) -> None:
    mounted = mount("mnt", "--limit", str(LIMIT_BYTES))
    kept = noise(1, LIMIT_BYTES // 4)
    (mounted.path / "kept").write_bytes(kept)
    fd = os.open(mounted.path / "big", os.O_CREAT | os.O_RDWR)
    first = noise(2, LIMIT_BYTES // 4)
    os.write(fd, first)
    os.fsync(fd)
    os.write(fd, noise(3, 2 * LIMIT_BYTES))  # the kernel takes it, and hands it over when asked
    with pytest.raises(OSError, match="quota") as refused:
        os.fsync(fd)
    assert refused.value.errno == errno.EDQUOT
    os.fsync(fd)  # told once
    mounted.kill_daemon()
    assert os.pread(fd, len(first), 0) == first, "what was acknowledged stays"
    os.pwrite(fd, noise(4, LIMIT_BYTES), LIMIT_BYTES)
    with pytest.raises(OSError, match="quota"):
        os.fsync(fd)
    os.ftruncate(fd, 0)
    os.close(fd)
    mounted.kill_daemon()
    (mounted.path / "big").unlink()
    again = noise(5, LIMIT_BYTES // 2)
    with (mounted.path / "again").open("wb") as file:
        file.write(again)
        file.flush()
        os.fsync(file.fileno())
    assert (mounted.path / "kept").read_bytes() == kept
    assert (mounted.path / "again").read_bytes() == again
    mounted.upgrade()
    with pytest.raises(OSError, match="quota"):
        fill(mounted)


def fill(mounted: Supervised) -> None:
    with (mounted.path / "more").open("wb") as file:
        file.write(noise(6, LIMIT_BYTES))
        file.flush()
        os.fsync(file.fileno())


def test_a_damaged_limit_keeps_nobody_from_going_on(mount: Mount) -> None:
    mounted = mount("mnt", "--limit", str(LIMIT_BYTES))
    directory = mounted.store / "views" / "default"
    (directory / "limit.json").write_text("{}")
    mounted.kill_daemon()
    (mounted.path / "file").write_bytes(b"bytes")
    mounted.command("limit", mounted.store, str(LIMIT_BYTES), "--view", "default")
    with pytest.raises(OSError, match="quota"):
        fill(mounted)
