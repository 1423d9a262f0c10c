"""Who wants to write to a file just while dedupe takes it gets it as it was; and full disks.

Each store ends sound.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe.run import dedupe
from dedupfs.checkout.dedupe.scan import Why
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.errors import StoreFullError
from dedupfs.maintenance.gc import collect
from dedupfs.store import Store
from dedupfs.transfer.report import Progress
from tests.checkout.deduped import contents_of, make_copies, options, require_sound, seen_in
from tests.transfer.trees import make_store, noise


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


# --- full disks -----------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


def make_large_copies(directory: Path) -> None:
    directory.mkdir()
    for number in range(8):
        path = directory / f"copy-{number}"
        path.write_bytes(noise(number // 2, 3 << 20))
        os.utime(path, ns=(10**18, 10**18 + number))


@pytest.mark.root
def test_a_dedupe_into_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    ckpts = tmp_path / "ckpts"
    make_large_copies(ckpts)
    before, seen = contents_of(ckpts), seen_in(ckpts)
    with small_disk(tmp_path / "disk", 18) as disk, make_store(disk / "store") as store:
        with pytest.raises(StoreFullError):
            dedupe(store, ckpts, options("symlink"))
        assert contents_of(ckpts) == before
        collect(store)
        require_sound(store)
        assert seen_in(ckpts) == seen, "nothing was replaced before all of it could be"
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True, timeout=60)
        assert dedupe(store, ckpts, options("symlink")).replaced == 8
        collect(store)
        assert contents_of(ckpts) == before
        assert undo(store, ckpts).is_complete
        assert seen_in(ckpts) == seen
        require_sound(store)


@pytest.mark.root
def test_an_undo_on_a_disk_that_gets_full_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 40) as disk, make_store(tmp_path / "store") as store:
        ckpts, filler = disk / "ckpts", disk / "filler"
        make_large_copies(ckpts)
        before, seen = contents_of(ckpts), seen_in(ckpts)
        dedupe(store, ckpts, options("symlink"))

        def fill(progress: Progress) -> None:
            if progress.files_done == 2:
                with filler.open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(bytes(1 << 20))

        report = undo(store, ckpts, progress=fill)
        assert not report.is_complete
        assert report.restored >= 2
        assert "No space left" in "\n".join(map(str, report.problems))
        collect(store)
        assert contents_of(ckpts) == before
        require_sound(store)
        filler.unlink()
        assert undo(store, ckpts).is_complete
        assert {name: what for name, what in seen_in(ckpts).items() if name != "."} == {
            name: what for name, what in seen.items() if name != "."
        }
        collect(store)
        require_sound(store)
