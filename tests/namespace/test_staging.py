"""Staging files by themselves."""

import gc
import os
from pathlib import Path

from dedupfs.namespace.staging import Staging
from dedupfs.store.disk import RealDisk


def test_a_deleted_staging_file_gives_its_blocks_back_at_once(tmp_path: Path) -> None:
    gc.disable()
    try:
        staging = Staging(RealDisk(), tmp_path, 1)
        staging.write(0, b"bytes", 0)
        link = Path(f"/proc/self/fd/{staging.file.fd}")
        assert os.readlink(link) == os.fspath(staging.path)
        staging.remove()
        del staging
        assert not os.path.lexists(link)
    finally:
        gc.enable()
