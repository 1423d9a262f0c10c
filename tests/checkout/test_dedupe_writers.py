"""Who wants to write to a file just while dedupe takes it gets it as it was; and full disks.

Each store ends sound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe import dedupe
from dedupfs.checkout.dedupe_scan import Why
from dedupfs.checkout.dedupe_undo import undo
from dedupfs.maintenance.gc import collect
from dedupfs.store import Store
from dedupfs.transfer.report import Progress
from tests.checkout.deduped import contents_of, make_copies, options, require_sound, seen_in
from tests.transfer.trees import make_store


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


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_writer_who_comes_while_a_file_is_taken_keeps_it(
    store: Store, ckpts: Path, link: str
) -> None:
    make_copies(ckpts)
    before, seen = contents_of(ckpts), seen_in(ckpts)
    wanted: list[bytes] = []

    def meddle(progress: Progress) -> None:
        """Want to write, without waiting for the lease, while the first file is read."""
        if progress.path and not wanted:
            wanted.append(progress.path)
            with pytest.raises(BlockingIOError):
                os.open(ckpts / os.fsdecode(progress.path), os.O_RDWR | os.O_NONBLOCK)

    report = dedupe(store, ckpts, options(link), progress=meddle)
    (victim,) = wanted
    assert f"{os.fsdecode(victim)}: {Why.CHANGED}" in map(str, report.problems)
    path = ckpts / os.fsdecode(victim)
    assert path.stat().st_nlink == 1
    assert path.stat().st_mode & 0o200
    assert contents_of(ckpts) == before
    path.write_bytes(b"mine")
    collect(store)
    require_sound(store)
    assert contents_of(ckpts) == {
        **before,
        os.fsdecode(victim): contents_of(ckpts)[os.fsdecode(victim)],
    }
    assert undo(store, ckpts).is_complete
    left = seen_in(ckpts)
    del left[os.fsdecode(victim)], seen[os.fsdecode(victim)]
    assert left == seen
