"""Mounts for tests: ``daemons`` starts any number, ``work`` is a directory in a shared one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.harness import Daemons, Mounted


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Start daemons in a directory of the test; they end with it and must not have complained."""
    started = Daemons(tmp_path)
    try:
        yield started
    finally:
        started.end_all()
    assert started.complaints() == started.expected_complaints


@pytest.fixture(scope="module")
def shared_mount(open_directory: Path) -> Iterator[Mounted]:
    """One mount for all tests of a module."""
    started = Daemons(open_directory)
    try:
        yield started.start(allow_other=os.geteuid() == 0)
    finally:
        started.end_all()
    assert started.complaints() == []


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Path]:
    """A temporary directory that other users may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def work(shared_mount: Mounted, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own in the shared mount."""
    number = len(list(shared_mount.path.iterdir()))
    directory = shared_mount.path / f"{request.node.originalname[:40]}-{number}"
    directory.mkdir()
    return directory
