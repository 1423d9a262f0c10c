"""What its user moves in a deduped directory, or out of it, is not lost by the next run nor by gc.

Symbolic links hold nothing by themselves, so their packs must be kept for as long as one may be
anywhere. Each store ends sound.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dedupfs.checkout.dedupe.forget import forget
from dedupfs.checkout.dedupe.links import find_links
from dedupfs.checkout.dedupe.run import dedupe
from dedupfs.checkout.dedupe.state import find_deduped, taken_before
from dedupfs.checkout.dedupe.take import Link
from dedupfs.checkout.dedupe.undo import undo
from dedupfs.errors import SourceError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.checkouts import list_numbers, open_checkout
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from tests.checkout.deduped import contents_of, make_copies, options, require_sound, seen_in
from tests.transfer.trees import make_store, noise

LINKS = ["hardlink", "symlink"]


def values(contents: dict[str, str]) -> list[str]:
    return sorted(contents.values())


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("action", ["dedupe", "undo"])
def test_links_that_were_renamed_below_the_directory_go_on(
    store: Store, ckpts: Path, link: str, action: str
) -> None:
    make_copies(ckpts)
    before, seen = contents_of(ckpts), seen_in(ckpts)
    dedupe(store, ckpts, options(link))
    for copy in range(3):
        (ckpts / f"ckpt-{copy}").rename(ckpts / f"renamed-{copy}")
    if action == "dedupe":
        assert dedupe(store, ckpts, options(link)).kept == 6
        collect(store)
        assert values(contents_of(ckpts)) == values(before)
    assert undo(store, ckpts).is_complete
    collect(store)
    assert values(contents_of(ckpts)) == values(before)
    for copy in range(3):
        (ckpts / f"renamed-{copy}").rename(ckpts / f"ckpt-{copy}")
    now = seen_in(ckpts)
    assert {name: what for name, what in now.items() if name != "."} == {
        name: what for name, what in seen.items() if name != "."
    }


def test_links_that_were_copied_become_files_too(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    dedupe(store, ckpts, options("symlink"))
    (ckpts / "copied").symlink_to(os.readlink(ckpts / "ckpt-0" / "model" / "model-0.bin"))
    before = contents_of(ckpts)
    assert undo(store, ckpts).restored == 7
    collect(store)
    assert contents_of(ckpts) == before
    assert not (ckpts / "copied").is_symlink()


@pytest.mark.parametrize("link", LINKS)
def test_a_store_that_is_reached_by_another_path_knows_its_links(
    tmp_path: Path, ckpts: Path, link: str
) -> None:
    make_copies(ckpts)
    before, seen = contents_of(ckpts), seen_in(ckpts)
    with make_store(tmp_path / "store") as store:
        dedupe(store, ckpts, options(link))
    (tmp_path / "alias").symlink_to(tmp_path / "store")
    with Store.open(tmp_path / "alias") as store:
        assert dedupe(store, ckpts, options(link)).kept == 6
        collect(store)
        assert contents_of(ckpts) == before
        require_sound(store)
        assert undo(store, ckpts).is_complete
        assert seen_in(ckpts) == seen
        require_sound(store)


def test_links_of_a_store_that_was_moved_become_files_again(tmp_path: Path, ckpts: Path) -> None:
    make_copies(ckpts)
    seen = seen_in(ckpts)
    with make_store(tmp_path / "store") as store:
        dedupe(store, ckpts, options("symlink"))
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with Store.open(tmp_path / "elsewhere") as store:
        assert undo(store, ckpts).is_complete
        assert seen_in(ckpts) == seen
        require_sound(store)


def move_one_content_out(ckpts: Path, outside: Path) -> Path:
    """Move the one link of one content out, and remove its other copies."""
    outside.mkdir()
    for copy in (1, 2):
        (ckpts / f"ckpt-{copy}" / "model" / "model-0.bin").unlink()
    moved = outside / "model"
    (ckpts / "ckpt-0" / "model" / "model-0.bin").rename(moved)
    return moved


@pytest.mark.parametrize("link", LINKS)
def test_a_link_that_was_moved_out_leads_to_its_bytes_after_the_next_run(
    store: Store, ckpts: Path, tmp_path: Path, link: str
) -> None:
    make_copies(ckpts)
    wanted = (ckpts / "ckpt-0" / "model" / "model-0.bin").read_bytes()
    dedupe(store, ckpts, options(link))
    moved = move_one_content_out(ckpts, tmp_path / "outside")
    for number in range(2):
        (ckpts / f"new-{number}").write_bytes(noise(7, 50_000))
        report = dedupe(store, ckpts, options(link))
        collect(store)
        assert moved.read_bytes() == wanted
        if link == "symlink":
            assert "--forget" in "\n".join(map(str, report.problems))
    if link == "symlink":
        assert not undo(store, ckpts).is_complete, "it might be the end of what was moved out"
        collect(store)
        assert moved.read_bytes() == wanted
        (ckpts / "another").write_bytes((ckpts / "ckpt-0" / "model" / "model-1.bin").read_bytes())
    report = dedupe(store, ckpts, options(link, forget=True))
    assert not report.problems
    manifest = find_deduped(store, ckpts)
    assert manifest is not None
    assert len(manifest.packs) == 2


def test_what_undo_finds_no_link_of_stays_in_the_snapshot(
    store: Store, ckpts: Path, tmp_path: Path
) -> None:
    make_copies(ckpts)
    wanted = (ckpts / "ckpt-0" / "model" / "model-0.bin").read_bytes()
    name = dedupe(store, ckpts, options("symlink")).snapshot
    move_one_content_out(ckpts, tmp_path / "outside")
    report = undo(store, ckpts)
    assert report.is_complete
    assert name in "\n".join(map(str, report.problems))
    assert not list_numbers(store)
    collect(store)
    root = SnapshotCatalog(store).get(name).root
    assert TreeReader(store).walk_path(root, b"ckpt-0/model/model-0.bin").size == len(wanted)
    export_tree(store, root, tmp_path / "exported")
    assert (tmp_path / "exported" / "ckpt-0" / "model" / "model-0.bin").read_bytes() == wanted


@pytest.mark.root
def test_what_cannot_be_looked_at_is_not_taken_for_gone(store: Store, ckpts: Path) -> None:
    make_copies(ckpts)
    dedupe(store, ckpts, options("symlink"))
    taken = list(taken_before(store, find_deduped(store, ckpts)))
    (ckpts / "ckpt-1" / "model").chmod(0)
    top_fd = os.open(ckpts, os.O_RDONLY)
    os.seteuid(65_534)
    try:
        with pytest.raises(SourceError, match=r"ckpt-1/model/.*Permission denied"):
            find_links(store, top_fd, taken, {}, Link.SYMLINK)
    finally:
        os.seteuid(0)
        os.close(top_fd)


# --- directories that are gone --------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS)
def test_a_directory_that_was_deleted_is_forgotten_and_its_snapshot_stays(
    store: Store, ckpts: Path, tmp_path: Path, link: str
) -> None:
    make_copies(ckpts)
    before = contents_of(ckpts)
    report = dedupe(store, ckpts, options(link))
    with open_checkout(store, report.number) as registration:
        with pytest.raises(UsageError, match="--undo"):
            forget(store, registration)
        shutil.rmtree(ckpts)
        assert forget(store, registration) == [report.snapshot]
    assert not list_numbers(store)
    collect(store)
    require_sound(store)
    root = SnapshotCatalog(store).get(report.snapshot).root
    export_tree(store, root, tmp_path / "exported")
    now = contents_of(tmp_path / "exported")
    assert now == {name: what for name, what in before.items() if "model-" in name}
    SnapshotCatalog(store).remove([report.snapshot])
    collect(store)
    assert not list((store.path / "packs").rglob("*.file"))


def bind(source: Path, target: Path) -> None:
    """Have a file system at another place, too."""
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True, timeout=60)


@pytest.mark.root
def test_a_directory_of_a_disk_that_is_not_mounted_is_not_forgotten(
    store: Store, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True, timeout=60)
    try:
        ckpts = disk / "below" / "ckpts"
        ckpts.mkdir(parents=True)
        make_copies(ckpts)
        before = contents_of(ckpts)
        number = dedupe(store, ckpts, options("symlink")).number
        bind(disk, tmp_path / "elsewhere")
        subprocess.run(["umount", disk], check=True, timeout=60)
        with open_checkout(store, number) as registration:
            with pytest.raises(UsageError, match="not mounted"):
                forget(store, registration)
            (disk / "below").mkdir()
            with pytest.raises(UsageError, match="not mounted"):
                forget(store, registration)
        collect(store)
        assert contents_of(tmp_path / "elsewhere" / "below" / "ckpts") == before
    finally:
        for place in (disk, tmp_path / "elsewhere"):
            if os.path.ismount(place):
                subprocess.run(["umount", place], check=True, timeout=60)
