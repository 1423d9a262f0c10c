"""An upper directory is taken in as the overlay would have shown it, whoever made it.

Method: upper directories made by hand, with the kernel's marks, over a small imported tree; what is
taken in is exported and compared with the directory that an overlay of the two would show.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from dedupfs.errors import ExistsError, MissingRecordError, SourceError
from dedupfs.model import TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.entries import entries_below
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import ingest_tree
from dedupfs.transfer.metadata import Xattrs
from dedupfs.transfer.takein import Upper, take_in
from dedupfs.transfer.upper import ROOTS_PREFIX, USERS_PREFIX
from tests.transfer.trees import acl_bytes, differences, noise

pytestmark = pytest.mark.root

NOBODY = 65534


@dataclass
class Layers:
    """A tree in the store, an upper directory over it, and what the two should show."""

    store: Store
    base: TreeEntry
    upper: Path
    wanted: Path
    prefix: bytes = ROOTS_PREFIX

    def mark(self, path: str, name: str, value: bytes = b"y") -> None:
        os.setxattr(self.upper / path, self.prefix + name.encode(), value, follow_symlinks=False)

    def whiteout(self, path: str) -> None:
        os.mknod(self.upper / path, stat.S_IFCHR, os.makedev(0, 0))

    def take_in(self, name: str = "made", top_xattrs: Xattrs = ()) -> TreeEntry:
        fd = os.open(self.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            top = (stat.S_IFDIR | 0o755, 0, 0)
            upper = Upper(fd, self.prefix, top, top_xattrs)
            return take_in(self.store, self.base, upper, name, tags={}, source="test").root
        finally:
            os.close(fd)

    def assert_taken_in(self, name: str = "made") -> TreeEntry:
        """Compare what is taken in with what is wanted; return the root."""
        root = self.take_in(name)
        target = self.wanted.with_name(f"exported {name}")
        target.mkdir()
        assert not export_tree(self.store, root, target).problems
        assert differences(self.wanted, target) == []
        return root


def fill(top: Path) -> None:
    """Make the tree below."""
    top.chmod(0o755)
    for path in ("d", "d/in", "other", "linked"):
        (top / path).mkdir()
    (top / "file").write_bytes(b"file")
    (top / "d/a").write_bytes(noise(1, 5000))
    (top / "d/in/deep").write_bytes(b"deep")
    (top / "other/kept").write_bytes(b"kept")
    (top / "linked/1").write_bytes(b"one inode")
    os.link(top / "linked/1", top / "linked/2")
    os.link(top / "linked/1", top / "other/3")
    settle(top)


def settle(top: Path) -> None:
    """Give all the same time, so that only what a test changes differs."""
    for path in [top, *top.rglob("*")]:
        os.utime(path, ns=(0, 1_500_000_000_000_000_000), follow_symlinks=False)


@pytest.fixture(params=[ROOTS_PREFIX, USERS_PREFIX], ids=["root's", "a user's"])
def layers(
    store: Store, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Layers]:
    wanted, upper = tmp_path / "wanted", tmp_path / "upper"
    for directory in (wanted, upper):
        directory.mkdir()
    fill(source)
    fill(wanted)
    report = ingest_tree(store, source, "base")
    assert report.snapshot is not None
    upper.chmod(0o755)
    made = Layers(store, report.snapshot.root, upper, wanted, request.param)
    try:
        os.setxattr(upper, made.prefix + b"impure", b"y")
    except OSError as exc:
        pytest.skip(f"no such attributes here: {exc}")
    yield made
    with pytest.raises(ExistsError):
        made.take_in("base")


def both(layers: Layers) -> tuple[Path, Path]:
    return layers.upper, layers.wanted


def test_an_empty_upper_directory_is_the_tree(layers: Layers) -> None:
    settle(layers.upper)
    assert layers.assert_taken_in() == layers.base


def test_names_that_are_gone(layers: Layers) -> None:
    """Whiteouts are one inode with many names, as the kernel makes them."""
    layers.whiteout("d")
    for name in ("file", "never there"):
        os.link(layers.upper / "d", layers.upper / name)
    for top in (layers.upper / "linked", layers.upper / "other"):
        top.mkdir()
    layers.whiteout("linked/2")
    layers.whiteout("other/3")
    for path in ("d/in/deep", "d/a", "file", "linked/2", "other/3"):
        (layers.wanted / path).unlink()
    (layers.wanted / "d/in").rmdir()
    (layers.wanted / "d").rmdir()
    for top in both(layers):
        settle(top)
    root = layers.assert_taken_in()
    (only,) = [e for _, e in entries_below(TreeReader(layers.store), root) if e.is_link]
    assert only.name == b"1"
    for name in ("linked/1", "other/kept"):
        (layers.upper / name).unlink(missing_ok=True)
    layers.whiteout("linked/1")
    assert not layers.take_in("none").has_links


def test_whiteouts_that_are_files(layers: Layers) -> None:
    """Since Linux 6.7, where a directory says that it has some; elsewhere they are files."""
    for name in ("d", "other"):
        (layers.upper / name).mkdir()
    layers.mark("d", "opaque", b"x")
    for name in ("d/a", "other/kept"):
        (layers.upper / name).touch()
        layers.mark(name, "whiteout")
    (layers.upper / "d/empty").touch()
    (layers.wanted / "d/empty").touch()
    (layers.wanted / "d/a").unlink()
    (layers.wanted / "other/kept").write_bytes(b"")
    for top in both(layers):
        settle(top)
    layers.assert_taken_in()


def test_an_opaque_directory_hides_all_below_it(layers: Layers) -> None:
    for name in ("d", "linked", "other"):
        (layers.upper / name).mkdir()
        layers.mark(name, "opaque")
    (layers.upper / "d/in").mkdir()
    (layers.upper / "d/in/new").write_bytes(b"new")
    layers.whiteout("d/a")
    for path in sorted(layers.wanted.rglob("*/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (layers.wanted / "d/in").mkdir()
    (layers.wanted / "d/in/new").write_bytes(b"new")
    for top in both(layers):
        settle(top)
    root = layers.assert_taken_in()
    assert not root.has_links


def test_a_file_in_the_place_of_a_directory_and_the_other_way_round(layers: Layers) -> None:
    for top in both(layers):
        if top is layers.wanted:
            for path in ("d/in/deep", "d/a", "file", "linked/1", "linked/2"):
                (top / path).unlink()
            for path in ("d/in", "d", "linked"):
                (top / path).rmdir()
        (top / "d").write_bytes(b"a file now")
        (top / "linked").symlink_to("d")
        (top / "file").mkdir()
        (top / "file/in it").write_bytes(b"x")
        settle(top)
    layers.assert_taken_in()


def test_hard_links_between_new_files_and_old(layers: Layers) -> None:
    for top in both(layers):
        for name in ("new", "linked", "other"):
            (top / name).mkdir(exist_ok=True)
        (top / "new/1").write_bytes(noise(3, 7000))
        (top / "linked/1").unlink(missing_ok=True)
        for name in ("new/2", "linked/1", "z"):
            os.link(top / "new/1", top / name)
        os.mkfifo(top / "pipe")
        os.link(top / "pipe", top / "other/pipe")
        settle(top)
    layers.assert_taken_in()


def test_objects_of_every_kind(layers: Layers) -> None:
    for top in both(layers):
        os.mkfifo(top / "fifo")
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.open(top, os.O_PATH)
            bound.bind(f"/proc/self/fd/{here}/socket")
            os.close(here)
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "block 0:0", stat.S_IFBLK, os.makedev(0, 0))
        os.symlink(b"\xff/nowhere", os.fsencode(top) + b"/not UTF-8 \xfe\n")
        with (top / "sparse").open("wb") as sparse:
            sparse.seek(16 << 20)
            sparse.write(b"end")
        (top / "program").write_bytes(b"#!")
        os.chown(top / "program", NOBODY, NOBODY)
        (top / "program").chmod(0o6711)
        (top / "program").chmod(0o6711)
        os.setxattr(top / "program", "system.posix_acl_access", acl_bytes(1234, 7))
        settle(top)
    layers.assert_taken_in()
    assert (layers.wanted / "sparse").stat().st_blocks < 1000


def test_metadata_alone(layers: Layers) -> None:
    """What copying up makes of a directory whose mode, owner or time alone is changed."""
    for top in both(layers):
        for name in ("d", "d/in", "other"):
            (top / name).mkdir(exist_ok=True)
        settle(top)
        (top / "d").chmod(0o2700)
        os.chown(top / "other", NOBODY, 1)
        os.setxattr(top / "d/in", "user.mine", b"1")
        os.utime(top / "d/in", ns=(0, -7))
        top.chmod(0o1777)
        os.setxattr(top, "user.root", b"2")
        os.utime(top, ns=(0, 123_456_789))
    layers.assert_taken_in()


def test_a_programs_own_attributes_under_the_kernels_prefix(layers: Layers) -> None:
    for name in ("origin", "nlink", "uuid", "protattr", "overlay.opaque"):
        layers.mark("", name)
    os.setxattr(layers.wanted, layers.prefix + b"opaque", b"y")
    for top in both(layers):
        settle(top)
    layers.assert_taken_in()


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_what_other_mounts_leave_is_refused(layers: Layers, mark: str) -> None:
    (layers.upper / "d").mkdir()
    layers.mark("d", mark, b"/other")
    with pytest.raises(SourceError, match="was not made by 'dedupfs run'"):
        layers.take_in()
    assert [info.name for info in SnapshotCatalog(layers.store).list()] == ["base"]


def test_it_can_be_done_again_after_it_failed(layers: Layers) -> None:
    (layers.upper / "big").write_bytes(noise(5, 300_000))
    (layers.upper / "file").write_bytes(b"changed")
    (layers.upper / "z").mkdir()
    layers.mark("z", "redirect", b"/other")
    for _ in range(2):
        with pytest.raises(SourceError):
            layers.take_in()
    (layers.upper / "z").rmdir()
    (layers.wanted / "big").write_bytes(noise(5, 300_000))
    (layers.wanted / "file").write_bytes(b"changed")
    for top in both(layers):
        settle(top)
    first = layers.assert_taken_in()
    assert layers.take_in("again") == first
    with pytest.raises(ExistsError):
        layers.take_in("again")


def test_a_tree_that_is_gone_is_told(layers: Layers) -> None:
    layers.base = msgspec.structs.replace(layers.base, content=b"\1" * 16)
    with pytest.raises(MissingRecordError):
        layers.take_in()
