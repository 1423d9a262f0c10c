"""Stores on file systems of several kinds, and what every checkout is compared with: an export."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import why_not_root


@contextmanager
def loop_image(base: Path, make: str, size_bytes: int) -> Iterator[Path]:
    """Mount a new file system of its own."""
    image, top = base / f"{make}.img", base / make
    with image.open("wb") as file:
        file.truncate(size_bytes)
    flag = "-F" if make == "ext4" else "-f"
    subprocess.run([f"mkfs.{make}", "-q", flag, str(image)], check=True, timeout=60)
    top.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(top)], check=True, timeout=60)
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
