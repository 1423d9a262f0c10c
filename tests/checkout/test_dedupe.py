"""Dedupe: links to one copy, the space back, and everything as it was after the undo."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe.run import dedupe, plan
from dedupfs.checkout.dedupe.scan import Why
from dedupfs.checkout.dedupe.state import find_deduped
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.checkout.verify import verify_checkout
from dedupfs.errors import NotFoundError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from dedupfs.transfer.report import Progress
from tests.checkout.conftest import loop_image
from tests.checkout.deduped import (
    COPIES,
    SIZE,
    contents_of,
    make_copies,
    options,
    require_sound,
    seen_in,
)
from tests.transfer.trees import make_store, noise

LINKS = ["hardlink", "symlink"]
IS_ROOT = os.geteuid() == 0


def messages(problems: list[object]) -> str:
    return "\n".join(map(str, problems))


def kept_in(store: Store) -> dict[str, object]:
    """Return what a store keeps: all but the table of LMDB's readers."""
    return {name: what for name, what in seen_in(store.path).items() if "lock.mdb" not in name}


@pytest.mark.parametrize("link", LINKS)
def test_duplicates_become_links_and_files_again(store: Store, ckpts: Path, link: str) -> None:
    duplicate_bytes = make_copies(ckpts)
    before, seen = contents_of(ckpts), seen_in(ckpts)

    report = dedupe(store, ckpts, options(link))
    assert not report.problems
    assert report.freed_bytes >= duplicate_bytes
    assert contents_of(ckpts) == before
    require_sound(store)
    copies = [ckpts / f"ckpt-{copy}" / "model" / "model-0.bin" for copy in range(COPIES)]
    assert len({path.stat().st_ino for path in copies}) == 1
    assert not copies[0].stat().st_mode & 0o222
    assert (ckpts / "ckpt-1" / "model").stat().st_mtime_ns == 10**18 + 1

    manifest = find_deduped(store, ckpts)
    assert manifest is not None
    verified = verify_checkout(store, manifest, ckpts, full=True)
    assert verified.ok
    assert not verified.findings

    again = dedupe(store, ckpts, options(link))
    assert (again.replaced, again.kept) == (0, 2 * COPIES)
    collect(store)
    assert contents_of(ckpts) == before

    undone = undo(store, ckpts)
    assert undone.is_complete
    assert seen_in(ckpts) == seen
    collect(store)
    assert not list((store.path / "packs").rglob("*.file"))
    with pytest.raises(NotFoundError):
        undo(store, ckpts)


def test_the_first_file_is_adopted_without_a_copied_byte(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    inodes = {path.stat().st_ino for path in ckpts.rglob("model-*.bin")}
    dedupe(store, ckpts, options("hardlink"))
    packs = {path.stat().st_ino for path in (store.path / "packs").rglob("*.file")}
    assert len(packs) == 2
    assert packs <= inodes


def test_a_plan_changes_nothing(store: Store, ckpts: Path) -> None:
    duplicate_bytes = make_copies(ckpts)
    before = seen_in(ckpts), kept_in(store)
    found = plan(store, ckpts, options())
    assert len([group for group in found.groups if group.duplicates]) == 2
    assert found.duplicate_bytes >= duplicate_bytes
    assert (seen_in(ckpts), kept_in(store)) == before


def test_what_the_store_has_in_one_piece_is_not_kept_twice(
    store: Store, ckpts: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").write_bytes(noise(1, SIZE))
    ingest_tree(store, source, "imported")
    (ckpts / "copy").write_bytes(noise(1, SIZE))
    before = seen_in(ckpts)
    report = dedupe(store, ckpts, options("hardlink"))
    assert report.replaced == 1
    assert len(list((store.path / "packs").rglob("*.file"))) == 1
    assert (ckpts / "copy").read_bytes() == noise(1, SIZE)
    require_sound(store)
    assert undo(store, ckpts).is_complete
    assert seen_in(ckpts) == before


def test_new_files_join_and_the_snapshot_is_of_all(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    first = dedupe(store, ckpts, options("hardlink"))
    late = ckpts / "ckpt-0" / "late.bin"
    late.write_bytes((ckpts / "ckpt-0" / "model" / "model-1.bin").read_bytes())
    report = dedupe(store, ckpts, options())
    assert (report.replaced, report.kept) == (1, 2 * COPIES)
    assert report.snapshot == first.snapshot
    assert [info.name for info in SnapshotCatalog(store).list()] == [first.snapshot]
    with pytest.raises(UsageError, match="--link hardlink"):
        dedupe(store, ckpts, options("symlink"))
    assert undo(store, ckpts).restored == 2 * COPIES + 1
    assert not SnapshotCatalog(store).list()


@pytest.mark.parametrize("link", LINKS)
def test_what_the_user_did_since_is_left_alone(store: Store, ckpts: Path, link: str) -> None:
    make_copies(ckpts)
    dedupe(store, ckpts, options(link))
    model = ckpts / "ckpt-1" / "model"
    (model / "new").write_bytes(b"mine")
    (model / "new").replace(model / "model-0.bin")
    (model / "model-1.bin").unlink()
    (ckpts / "added").write_bytes(b"added")
    report = undo(store, ckpts)
    assert report.is_complete
    assert report.restored == 2 * COPIES - 2
    assert "model-0.bin" in messages(list(report.problems))
    assert (model / "model-0.bin").read_bytes() == b"mine"
    assert not (model / "model-1.bin").exists()
    assert (ckpts / "added").read_bytes() == b"added"


@pytest.mark.parametrize("link", LINKS)
def test_hard_links_of_the_tree_come_back_as_hard_links(
    store: Store, ckpts: Path, link: str
) -> None:
    make_copies(ckpts)
    os.link(ckpts / "ckpt-1" / "model" / "model-0.bin", ckpts / "other name")
    seen = seen_in(ckpts)
    dedupe(store, ckpts, options(link))
    assert not undo(store, ckpts).problems
    assert seen_in(ckpts) == seen


def test_a_file_with_a_name_elsewhere_stays(store: Store, ckpts: Path, tmp_path: Path) -> None:
    make_copies(ckpts)
    inside = ckpts / "ckpt-1" / "model" / "model-0.bin"
    os.link(inside, tmp_path / "outside")
    report = dedupe(store, ckpts, options("hardlink"))
    assert messages(list(report.problems)) == f"ckpt-1/model/model-0.bin: {Why.OUTSIDE}"
    assert os.path.samefile(inside, tmp_path / "outside")


def test_a_file_that_is_open_for_writing_stays(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    busy = ckpts / "ckpt-1" / "model" / "model-0.bin"
    with busy.open("r+b") as file:
        report = dedupe(store, ckpts, options("hardlink"))
        assert "somebody has it open for writing" in messages(list(report.problems))
        file.write(b"changed")
    assert busy.read_bytes().startswith(b"changed")
    assert report.replaced == 2 * COPIES - 3


def test_other_modes_and_attributes_need_to_be_ignored(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    (ckpts / "ckpt-1" / "model" / "model-0.bin").chmod(0o600)
    os.setxattr(ckpts / "ckpt-2" / "model" / "model-1.bin", "user.a", b"b")
    seen = seen_in(ckpts)
    report = dedupe(store, ckpts, options("hardlink"))
    assert messages(list(report.problems)).count(Why.ATTRIBUTES) == 2
    report = dedupe(store, ckpts, options("hardlink", ignore_attributes=True))
    assert not report.problems
    assert report.replaced == 2
    assert undo(store, ckpts).is_complete
    assert seen_in(ckpts) == seen


@pytest.mark.parametrize("link", LINKS)
def test_holes_stay_holes(store: Store, ckpts: Path, link: str) -> None:
    for name in ("a", "b"):
        with (ckpts / name).open("wb") as file:
            file.write(noise(3, SIZE))
            file.seek(8 << 20)
            file.write(noise(4, SIZE))
            file.truncate(16 << 20)
    before = contents_of(ckpts)
    dedupe(store, ckpts, options(link))
    assert contents_of(ckpts) == before
    assert (ckpts / "a").stat().st_blocks * 512 < 1 << 20
    undo(store, ckpts)
    assert contents_of(ckpts) == before
    assert (ckpts / "b").stat().st_blocks * 512 < 1 << 20


@pytest.mark.root
def test_files_that_may_not_be_changed_stay(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    fixed = ckpts / "ckpt-1" / "model" / "model-0.bin"
    foreign = ckpts / "ckpt-2" / "model" / "model-1.bin"
    os.chown(foreign, 12345, 12345)
    fd = os.open(fixed, os.O_RDONLY)
    flags = bytearray(8)
    fcntl.ioctl(fd, 0x80086601, flags)  # FS_IOC_GETFLAGS
    try:
        fcntl.ioctl(fd, 0x40086602, struct.pack("=q", struct.unpack("=q", flags)[0] | 0x10))
        report = dedupe(store, ckpts, options("hardlink", ignore_attributes=True))
    finally:
        fcntl.ioctl(fd, 0x40086602, bytes(flags))
        os.close(fd)
    assert Why.FIXED in messages(list(report.problems))
    assert Why.OWNER in messages(list(report.problems))
    assert foreign.stat().st_nlink == 1


def test_the_store_is_not_deduped_into_itself(store: Store, tmp_path: Path) -> None:
    for directory in (tmp_path, store.path, store.path / "packs"):
        with pytest.raises(UsageError, match="lie in each other"):
            dedupe(store, directory)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own: what is free in it is counted."""
    with loop_image(tmp_path, "xfs", 400 << 20) as top:
        yield top


@pytest.mark.root
@pytest.mark.program("mkfs.xfs")
def test_files_share_blocks_and_stay_what_they_are(xfs: Path) -> None:
    ckpts = xfs / "ckpts"
    for copy in range(5):
        (ckpts / str(copy)).mkdir(parents=True)
        (ckpts / str(copy) / "model").write_bytes(noise(1, 8 << 20))
    with make_store(xfs / "store") as store, (ckpts / "1" / "model").open("r+b") as busy:
        subprocess.run(["sync", "--file-system", xfs], check=True)
        seen, free_before = seen_in(ckpts), os.statvfs(xfs)
        report = dedupe(store, ckpts, options())
        assert (report.link, report.replaced) == ("reflink", 5)
        subprocess.run(["sync", "--file-system", xfs], check=True)
        free_after = os.statvfs(xfs)
        gained = (free_after.f_bfree - free_before.f_bfree) * free_after.f_frsize
        assert gained >= (32 << 20) - (10 << 20)  # the index keeps 8 MiB in reserve
        assert seen_in(ckpts) == seen
        busy.write(b"mine")
        busy.flush()
        assert (ckpts / "0" / "model").read_bytes() == noise(1, 8 << 20)
        require_sound(store)
        again = dedupe(store, ckpts, options())
        assert (again.replaced, again.kept) == (0, 4)
        assert undo(store, ckpts).is_complete
        collect(store)
        require_sound(store)
        assert (ckpts / "2" / "model").read_bytes() == noise(1, 8 << 20)


# --- import --adopt ---------------------------------------------------------------------------


def test_an_import_takes_large_files_over_as_they_are(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    seen = seen_in(ckpts)
    os.link(ckpts / "alone.bin", ckpts / "other name")
    inodes = {path.stat().st_ino for path in ckpts.rglob("*.bin")}
    report = ingest_tree(store, ckpts, "adopted", options=IngestOptions(adopt=True))
    assert (report.linked, report.cloned, report.problems) == (2, 0, [])
    packs = {path.stat().st_ino for path in (store.path / "packs").rglob("*.file")}
    assert len(packs & inodes) == 2
    adopted = [path for path in ckpts.rglob("*.bin") if path.stat().st_ino in packs]
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in adopted)
    root = SnapshotCatalog(store).get("adopted").root
    entry = TreeReader(store).walk_path(root, b"ckpt-0/model/model-0.bin")
    assert (entry.mode & 0o777, entry.mtime_ns) == (0o644, 10**18 + 123_456_789)
    target = ckpts.with_name("exported")
    assert not export_tree(store, root, target).problems
    (target / "other name").unlink()
    wanted = {name: what[-2] for name, what in seen.items()}  # type: ignore[index]
    assert {name: what[-2] for name, what in seen_in(target).items()} == wanted  # type: ignore[index]


def test_an_import_copies_what_is_in_use(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    busy = ckpts / "alone.bin"
    with busy.open("r+b") as file:
        report = ingest_tree(store, ckpts, "adopted", options=IngestOptions(adopt=True))
        file.write(b"more")
    assert report.linked == 2
    assert busy.stat().st_nlink == 1


# --- others at work meanwhile -----------------------------------------------------------------


def test_what_others_rename_meanwhile_is_theirs(store: Store, ckpts: Path, tmp_path: Path) -> None:
    make_copies(ckpts)
    model = ckpts / "ckpt-1" / "model"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model-1.bin").write_bytes(b"not yours")
    theirs = iter(range(1000))

    def meddle(progress: Progress) -> None:
        """Have names and a directory become something else while the run goes on."""
        if next(theirs) == 0:
            (tmp_path / "new").write_bytes(b"theirs")
            (tmp_path / "new").replace(model / "model-0.bin")
            (ckpts / "ckpt-2" / "model").rename(tmp_path / "moved")
            (ckpts / "ckpt-2" / "model").symlink_to(outside)

    report = dedupe(store, ckpts, options("hardlink"), progress=meddle)
    assert report.problems
    assert (model / "model-0.bin").read_bytes() == b"theirs"
    assert (outside / "model-1.bin").read_bytes() == b"not yours"
    assert sorted(os.listdir(outside)) == ["model-1.bin"]
