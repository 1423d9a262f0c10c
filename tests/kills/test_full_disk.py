"""On a full disk every command says so (exit 5), and the store stays readable and deletable (P11).

Method: a store on a small ext4 image, filled by a foreign file until only so many bytes are left;
then each command that needs room is tried. Whatever happened, ``check`` must be clean, all that was
there must read as before, removing a snapshot and gc must give room back while the disk is still
full, and with that room the same command must work.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.store import Store
from tests.kills.place import Place
from tests.maintenance.samples import (
    import_directory,
    make_directory,
    noise,
    read_back,
    read_directory,
)

IMAGE_BYTES = 64 << 20
FULL = 5
NOT_WRITTEN = 7
LEFT_BYTES = [300_000, 7 << 20, 9 << 20]
"""What is left of the disk: part of a snapshot, and about the index's reserve. ``rm`` needs some
blocks for the record of the removal, which a foreign file may have taken to the last one."""
FAILED = 3  # LMDB says EIO where a full disk cuts a write short (mdb_page_flush)

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.program("mkfs.ext4"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Place]:
    """A place on a small file system of its own."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    place = Place(directory)
    try:
        yield place
    finally:
        place.end_all()
        subprocess.run(["umount", directory], check=True)


def leave(directory: Path, left_bytes: int) -> Path:
    """Fill the disk with a foreign file until about ``left_bytes`` are left."""
    balloon = directory / "balloon"
    with balloon.open("wb") as file:
        found = os.statvfs(directory)
        wanted = found.f_bavail * found.f_frsize - left_bytes
        step = 1 << 20
        while wanted > 0 and step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(step, wanted))
                wanted -= step
            except OSError:
                step //= 2
    return balloon


@pytest.mark.parametrize("left_bytes", LEFT_BYTES)
def test_commands_on_a_full_disk(disk: Place, tmp_path: Path, left_bytes: int) -> None:
    sources = {name: make_directory(tmp_path / name, name) for name in ("kept", "goes", "new")}
    (sources["goes"] / "much").write_bytes(noise("much", 6 << 20))
    (sources["new"] / "much").write_bytes(noise("new", 5 << 20))
    with Store.create(disk.store, pack_bytes_max=2 << 20) as store:
        for name in ("kept", "goes"):
            import_directory(store, sources[name], name)
        before = {name: read_back(store, name) for name in ("kept", "goes")}

    def unharmed(*names: str) -> None:
        disk.assert_sound()
        with Store.open(disk.store) as store:
            for name in names:
                assert read_back(store, name) == before[name]

    balloon = leave(disk.directory, left_bytes)
    said = disk.dedupfs("import", disk.store, sources["new"], "new", codes=(0, FULL))
    if left_bytes < 5 << 20:
        assert "dedupfs:" in said
        assert "space" in said or "full" in said
    unharmed("kept", "goes")
    disk.dedupfs("export", disk.store, "kept", disk.directory / "out", codes=(0, NOT_WRITTEN, FULL))
    shutil.rmtree(disk.directory / "out", ignore_errors=True)
    unharmed("kept", "goes")
    disk.dedupfs("rm", disk.store, "goes")
    disk.dedupfs("gc", disk.store)
    unharmed("kept")
    room = os.statvfs(disk.directory)
    assert room.f_bavail * room.f_frsize > 5 << 20, "what was removed is room again"
    balloon.unlink()
    if "new" not in disk.dedupfs("ls", disk.store):
        disk.dedupfs("import", disk.store, sources["new"], "new")
    disk.dedupfs("export", disk.store, "new", tmp_path / "restored")
    assert read_directory(tmp_path / "restored") == read_directory(sources["new"])
    unharmed("kept")


@pytest.mark.parametrize("left_bytes", [0, 4096, 40_000, 120_000, 1 << 20])
def test_reindex_on_a_full_disk_leaves_what_was_there(
    disk: Place, tmp_path: Path, left_bytes: int
) -> None:
    source = make_directory(tmp_path / "source")
    with Store.create(disk.store) as store:
        import_directory(store, source, "kept")
        before = read_back(store, "kept")
    balloon = leave(disk.directory, left_bytes)
    disk.dedupfs("reindex", disk.store, codes=(0, FULL, FAILED))
    disk.assert_sound()
    with Store.open(disk.store) as store:
        assert read_back(store, "kept") == before
    balloon.unlink()
    disk.dedupfs("reindex", disk.store)
    disk.assert_sound()
    with Store.open(disk.store) as store:
        assert read_back(store, "kept") == before


@pytest.mark.fuse
@pytest.mark.parametrize("left_bytes", [0, 300_000])
def test_a_mount_whose_disk_is_filled_by_somebody_else(disk: Place, left_bytes: int) -> None:
    mnt = disk.mount("mnt")
    files = {f"f{number}": noise(number, 200_000 * number + 50) for number in range(4)}
    for name, data in files.items():
        (mnt / name).write_bytes(data)
    balloon = leave(disk.directory, left_bytes)
    refused = 0
    for number in range(4):
        try:
            (mnt / f"more{number}").write_bytes(noise(("more", number), 400_000))
        except OSError as exc:
            refused += exc.errno == errno.ENOSPC
    assert refused
    disk.dedupfs("commit", mnt, "frozen", codes=(0, FULL))
    for name, data in files.items():
        assert (mnt / name).read_bytes() == data
    disk.assert_sound()
    balloon.unlink()
    for path in mnt.glob("more*"):
        path.unlink()
    (mnt / "again").write_bytes(files["f3"])
    disk.dedupfs("commit", mnt, "later")
    disk.umount("mnt")
    disk.mount("mnt")
    for name, data in [*files.items(), ("again", files["f3"])]:
        assert (mnt / name).read_bytes() == data
        assert (mnt / "later" / name).read_bytes() == data
    disk.umount("mnt")
    disk.assert_sound()


@pytest.mark.fuse
def test_damage_in_a_pack_is_told_for_its_file_alone(place: Place) -> None:
    files = {f"f{number}": noise(number, 300_000) for number in range(4)}
    mnt = place.mount("mnt")
    for name, data in files.items():
        (mnt / name).write_bytes(data)
    place.umount("mnt")
    hurt = noise(2, 300_000)[100_000:100_100]
    for pack in (place.store / "packs").rglob("*.pack"):
        offset = pack.read_bytes().find(hurt)
        if offset >= 0:
            with pack.open("r+b") as file:
                file.seek(offset)
                file.write(bytes(100))
    place.mount("mnt")
    for name, data in files.items():
        if name == "f2":
            with pytest.raises(OSError, match="Input/output error"):
                (mnt / name).read_bytes()
        else:
            assert (mnt / name).read_bytes() == data
    (mnt / "new").write_bytes(files["f1"])
    assert (mnt / "new").read_bytes() == files["f1"]
    place.umount("mnt")
    place.assert_sound()
