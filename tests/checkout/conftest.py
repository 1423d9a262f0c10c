"""Stores on file systems of several kinds, and what every checkout is compared with: an export."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.store import Store
from tests.checkout.deduped import require_sound
from tests.conftest import why_not_root
from tests.transfer.trees import make_store


@contextmanager
def loop_image(base: Path, make: str, size_bytes: int) -> Iterator[Path]:
    """Mount a new file system of its own."""
    image, top = base / f"{make}.img", base / make
    with image.open("wb") as file:
        file.truncate(size_bytes)
    flag = "-F" if make == "ext4" else "-f"
    subprocess.run([f"mkfs.{make}", "-q", flag, str(image)], check=True, timeout=60)
    top.mkdir()
    command = ["mount", "-o", "loop", str(image), str(top)]
    mounted = subprocess.run(command, check=False, timeout=60)
    if mounted.returncode and make not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"the kernel has no {make}")
    mounted.check_returncode()
    try:
        yield top
    finally:
        subprocess.run(["umount", str(top)], check=True, timeout=60)
        image.unlink()


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that shares blocks."""
    reason = why_not_root()
    if reason or shutil.which("mkfs.xfs") is None:
        pytest.skip(reason or "not installed: mkfs.xfs")
    with loop_image(tmp_path_factory.mktemp("image"), "xfs", 400 << 20) as top:
        yield top


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make_store(tmp_path / "store") as opened:
        yield opened
        require_sound(opened)


@pytest.fixture
def ckpts(tmp_path: Path) -> Path:
    directory = tmp_path / "ckpts"
    directory.mkdir()
    return directory
