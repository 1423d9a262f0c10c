"""A checkout in each mode is what an export is, but for what a link cannot have."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.errors import UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.checkouts import list_numbers, read_checkouts
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.checkout.places import (
    SETTINGS,
    check_out,
    exported,
    picture,
    remove,
    sound,
    update,
)
from tests.maintenance.samples import import_directory, make_directory, noise


def make_second(top: Path) -> Path:
    """A directory that differs from the first in every way that a tree can differ."""
    make_directory(top)
    (top / "large").write_bytes(noise("large 2", 90_000))
    (top / "sub" / "small").chmod(0o640)
    (top / "sub" / "text").unlink()
    (top / "empty").rmdir()
    (top / "empty").write_bytes(noise("not empty", 40_000))
    (top / "pointer").unlink()
    (top / "pointer").mkdir()
    (top / "pointer" / "new").write_bytes(noise("new", 70_000))
    (top / "third name").hardlink_to(top / "second name")
    os.setxattr(top / "sub", "user.colour", b"blue")
    (top / "sub" / "deep").chmod(0o555)
    os.utime(top, ns=(5, 5))
    return top


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.create(place / "store", **SETTINGS) as opened:
        import_directory(opened, make_directory(place / "one"), "one")
        import_directory(opened, make_second(place / "two"), "two")
        yield opened
        sound(opened)


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_a_checkout_is_what_an_export_is(store: Store, place: Path, link: str) -> None:
    report = check_out(store, "one", place / "out", link)
    assert not report.problems
    links = link != "copy"
    wanted = picture(exported(store, "one", place / "exported"), links=links)
    assert picture(place / "out", links=links) == wanted
    assert report.linked_files == (2 if links else 0)
    for name in ("large", "sub/holes"):
        assert (place / "out" / name).is_symlink() == (link == "symlink")
        assert ((place / "out" / name).lstat().st_nlink == 2) == (link == "hardlink")
    collect(store)
    assert picture(place / "out", links=links) == wanted


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_an_update_makes_it_the_other_snapshot(store: Store, place: Path, link: str) -> None:
    check_out(store, "one", place / "out", link)
    links = link != "copy"
    untouched = (place / "out" / "medium").stat().st_ino
    for name in ("two", "one", "two"):
        report = update(store, place / "out", name)
        assert not report.problems
        assert not report.kept
        shutil.rmtree(place / "exported", ignore_errors=True)
        wanted = picture(exported(store, name, place / "exported"), links=links)
        assert picture(place / "out", links=links) == wanted
        collect(store)
        sound(store)
    assert (place / "out" / "medium").stat().st_ino == untouched
    assert not update(store, place / "out", "two").files


def test_its_files_outlive_the_snapshot_and_go_with_it(store: Store, place: Path) -> None:
    wanted = picture(exported(store, "one", place / "exported"), links=True)
    check_out(store, "one", place / "out", "symlink")
    check_out(store, "one", place / "again", "symlink")
    assert len({p.pack for m in read_checkouts(store)[0] for p in m.packs}) == 2, "kept once"
    SnapshotCatalog(store).remove(["one", "two"])
    collect(store)
    assert picture(place / "out", links=True) == wanted
    report = remove(store, place / "out")
    assert not report.kept
    assert not (place / "out").exists()
    collect(store)
    assert picture(place / "again", links=True) == wanted
    remove(store, place / "again")
    collect(store)
    assert not list_numbers(store)
    assert not list((place / "store" / "packs").rglob("*.file"))
    with store.reading() as txn:
        assert not txn.count(Table.RECORDS)


def test_the_mode_of_the_links_can_be_changed(store: Store, place: Path) -> None:
    check_out(store, "one", place / "out", "symlink")
    wanted = picture(exported(store, "one", place / "exported"))
    for link, links in (("hardlink", True), ("copy", False), ("symlink", True), ("copy", False)):
        assert update(store, place / "out", None, link=link).link == link
        if not links:
            assert picture(place / "out") == wanted
        assert (place / "out" / "large").is_symlink() == (link == "symlink")
        collect(store)
    remove(store, place / "out", keep_files=True)
    assert picture(place / "out") == wanted


def test_what_its_user_changed_is_not_overwritten(store: Store, place: Path) -> None:
    check_out(store, "one", place / "out", "symlink")
    out = place / "out"
    (out / "large").unlink()
    (out / "large").write_bytes(b"mine")
    (out / "sub" / "text").write_bytes(b"mine as well")
    (out / "third name").write_bytes(b"and this")
    before = picture(out)
    with pytest.raises(UsageError, match="large, sub/text, third name"):
        update(store, out, "two")
    assert picture(out) == before
    update(store, out, "two", force=True)
    wanted = picture(exported(store, "two", place / "exported"), links=True)
    assert picture(out, links=True) == wanted


def test_removal_leaves_what_its_user_added(store: Store, place: Path) -> None:
    check_out(store, "one", place / "out", "copy")
    (place / "out" / "sub" / "mine").write_bytes(b"mine")
    (place / "out" / "medium").write_bytes(b"changed")
    report = remove(store, place / "out")
    assert sorted(report.kept) == [b"medium", b"sub"]
    left = {str(path.relative_to(place / "out")) for path in (place / "out").rglob("*")}
    assert left == {"medium", "sub", "sub/mine"}


def test_removal_takes_along_what_an_interrupted_run_left(store: Store, place: Path) -> None:
    check_out(store, "one", place / "out", "copy")
    (manifest,) = read_checkouts(store)[0]
    for directory in (place / "out", place / "out" / "sub" / "deep"):
        (directory / f".dedupfs-{manifest.token}.new").write_bytes(b"half")
    assert not remove(store, place / "out").kept
    assert not (place / "out").exists()


def test_a_directory_of_a_snapshot_and_where_it_may_not_be(store: Store, place: Path) -> None:
    from dedupfs.checkout.make import make_checkout
    from tests.checkout.places import what

    make_checkout(store, what(store, "one", b"sub"), place / "out", "hardlink")
    whole = exported(store, "one", place / "exported")
    assert (place / "out" / "deep" / "linked").read_bytes() == (
        whole / "sub" / "deep" / "linked"
    ).read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        check_out(store, "one", place / "out", "copy")
    with pytest.raises(UsageError, match="in the store"):
        check_out(store, "one", store.path / "out", "copy")
    with tempfile.TemporaryDirectory(prefix="dedupfs-", dir="/dev/shm") as elsewhere:
        with pytest.raises(UsageError, match="no hardlink"):
            check_out(store, "one", Path(elsewhere, "out"), "hardlink")
        assert not os.listdir(elsewhere)
    assert len(list_numbers(store)) == 1


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV])
def test_a_pack_that_cannot_have_another_name_is_copied(
    store: Store, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """ext4 lets a file have 65,000 names; a mount point below a checkout is another file system."""
    link = os.link

    def refuse(source: object, *arguments: object, **more: object) -> None:
        if str(source).find("packs") >= 0:
            raise OSError(number, os.strerror(number))
        link(source, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", refuse)
    report = check_out(store, "one", place / "out", "hardlink")
    assert report.fallbacks == 2
    wanted = picture(exported(store, "one", place / "exported"))
    assert picture(place / "out") == wanted


@pytest.mark.root
def test_blocks_are_shared_where_the_file_system_can(xfs: Path, tmp_path: Path) -> None:
    top = xfs / "reflink"
    top.mkdir()
    with Store.create(top / "store", **SETTINGS) as store:
        import_directory(store, make_directory(tmp_path / "one"), "one")
        import_directory(store, make_second(tmp_path / "two"), "two")
        report = check_out(store, "one", top / "out", "auto")
        assert report.link == "reflink"
        assert report.shared_bytes >= 120_000
        wanted = picture(exported(store, "one", tmp_path / "exported"))
        assert picture(top / "out") == wanted
        SnapshotCatalog(store).remove(["one", "two"])
        collect(store)
        assert picture(top / "out") == wanted
        (top / "out" / "large").write_bytes(b"independent")
        sound(store)
        check_out_links = check_out  # an assembled file shares blocks with the packs it came from
        import_directory(store, tmp_path / "one", "one")
        check_out_links(store, "one", top / "links", "symlink")
        links = picture(exported(store, "one", tmp_path / "again"), links=True)
        assert picture(top / "links", links=True) == links
        sound(store)
    shutil.rmtree(top)
