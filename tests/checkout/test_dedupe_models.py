"""The job that dedupe is for: a directory of model files and their copies gets its space back.

7 GB in a long run (as much as the disk has room for), some files of a few MiB otherwise. What a run
gives back is counted in blocks of every inode of the directory and the store, the index included.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe.run import DedupeOptions, dedupe
from dedupfs.checkout.dedupe.take import Link
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.maintenance.gc import collect
from dedupfs.store import Store
from tests.checkout.deduped import contents_of, require_sound, seen_in
from tests.conftest import Scale

pytestmark = pytest.mark.unmeasured

FILES = 5
COPIES = 3
INDEX_RESERVE_BYTES = 8 << 20
"""What the index keeps allocated behind its end, however small it is."""
SPREAD_BYTES = 512 << 10
"""How full the pages of an index are, and how many its commits have left free, is another matter in
each run: ids are random. Less than what a chunk of each copy that is left behind would be.
"""


def taken_bytes(*directories: Path) -> int:
    """Return what all inodes below take, each once."""
    blocks = {}
    for directory in directories:
        for path in directory.rglob("*"):
            status = path.lstat()
            blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512


def link_bytes(directory: Path) -> int:
    """Return what the symbolic links below take."""
    links = [path.lstat() for path in directory.rglob("*") if path.is_symlink()]
    return sum(status.st_blocks for status in links) * 512


def make_models(directory: Path, size_bytes: int) -> int:
    """Fill a directory with model files and copies of them; return what the copies take."""
    random_bytes = random.Random(size_bytes)
    each = size_bytes // (FILES * COPIES)
    for number in range(FILES):
        first = directory / "ckpt-0" / f"model-{number}.safetensors"
        first.parent.mkdir(exist_ok=True)
        with first.open("wb") as file:
            for start in range(0, each, 1 << 20):
                file.write(random_bytes.randbytes(min(1 << 20, each - start)))
        for copy in range(1, COPIES):
            (directory / f"ckpt-{copy}").mkdir(exist_ok=True)
            shutil.copy2(first, directory / f"ckpt-{copy}" / first.name)
    return FILES * (COPIES - 1) * each


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_copied_models_give_their_space_back(tmp_path: Path, link: str, scale: Scale) -> None:
    room = os.statvfs(tmp_path)
    size_bytes = min(scale(135 << 20, 7 << 30), room.f_bavail * room.f_frsize // 3)
    size_bytes = int(os.environ.get("DEDUPE_BYTES", size_bytes))
    ckpts = tmp_path / "ckpts"
    ckpts.mkdir()
    duplicate_bytes = make_models(ckpts, size_bytes)
    before, seen = contents_of(ckpts), seen_in(ckpts)
    with Store.create(tmp_path / "store") as store:
        taken = taken_bytes(ckpts, store.path)
        report = dedupe(store, ckpts, DedupeOptions(Link(link)))
        gained = taken - taken_bytes(ckpts, store.path)
        tree_gained = report.freed_bytes
        assert tree_gained >= 0.999 * duplicate_bytes
        # The index has a row of some 100 bytes for each chunk of 80 KiB that it knows now, and a
        # symbolic link with a long target takes a block.
        cost_bytes = INDEX_RESERVE_BYTES + size_bytes // COPIES // 400 + link_bytes(ckpts)
        cost_bytes += SPREAD_BYTES
        assert gained + cost_bytes >= 0.999 * duplicate_bytes
        assert contents_of(ckpts) == before
        require_sound(store)
        assert undo(store, ckpts).is_complete
        assert seen_in(ckpts) == seen
        collect(store)
        require_sound(store)
    print(f"{link}: {duplicate_bytes} duplicate, {tree_gained} freed, {gained} net")  # noqa: T201
