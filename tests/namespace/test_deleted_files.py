"""Deleted files of a view give their blocks back at once: a full disk cannot wait for them."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.namespace.journal import Journal
from dedupfs.namespace.staging import Staging
from dedupfs.store.realdisk import RealDisk


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_staging_file(tmp_path: Path) -> None:
    staging = Staging(RealDisk(), tmp_path, 1)
    staging.write(0, b"bytes", 0)
    link = Path(f"/proc/self/fd/{staging.file.fd}")
    assert os.readlink(link) == os.fspath(staging.path)
    staging.remove()
    del staging
    assert not os.path.lexists(link)


@pytest.mark.usefixtures("no_collector")
def test_a_journal(tmp_path: Path) -> None:
    disk, path = RealDisk(), tmp_path / "journal"
    journal = Journal(disk, path, disk.open(path, write=True, create=True), 0, 1)
    journal.sync()
    link = Path(f"/proc/self/fd/{journal.fd}")
    assert os.readlink(link) == os.fspath(path)
    journal.remove()
    del journal
    assert not os.path.lexists(link)
