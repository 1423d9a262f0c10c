"""An unused directory becomes a clone of a snapshot: at once, isolated, and refused in time.

Method: short stories on a view without a mount; crashes and all the rest of a view's life are in
test_review_machine.py, what the kernel has cached in tests/fuse/test_mount_clone.py.
"""

import os
import stat
from collections.abc import Callable, Iterator

import pytest

from dedupfs.errors import (
    CrossScopeError,
    DedupfsError,
    InvalidError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    ReadOnlyError,
)
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.handover import Handover
from dedupfs.namespace.inodes import ROOT_INODE, SLOT_BITS
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.store import Store

CALLER = Caller(5, 6, 0o022)
FILES = 40


def write_file(view: View, parent: int, name: bytes, data: bytes) -> int:
    handle, attr = view.create(parent, name, 0o644, CALLER)
    view.write(handle, 0, data)
    view.release(handle)
    return attr.inode


def read_file(view: View, parent: int, name: bytes) -> bytes:
    attr = view.lookup(parent, name)
    handle = view.open(attr.inode, os.O_RDONLY)
    data = view.plan_read(handle, 0, attr.size + 1).run()
    view.release(handle)
    return data


def listing(view: View, inode: int) -> dict[bytes, int]:
    handle = view.opendir(inode)
    found = {name: attr.inode for _, name, attr in view.readdir(handle, 0)}
    view.releasedir(handle)
    return found


def clone(view: View, parent: int, name: bytes, source: bytes) -> int:
    inode = view.mkdir(parent, name, 0o755, CALLER).inode
    view.clone(inode, source, privileged=True)
    return inode


@pytest.fixture
def view(store: Store) -> Iterator[View]:
    """A view over a catalogue of two snapshots: "plain", and "linked" with hard links."""
    maker = View.bring_back(store, "maker")
    top = maker.mkdir(ROOT_INODE, b"top", 0o751, CALLER).inode
    sub = maker.mkdir(top, b"sub", 0o755, CALLER).inode
    for number in range(FILES):
        write_file(maker, sub, b"%d" % number, b"%d" % number * 900)
    file = write_file(maker, top, b"file", b"in the snapshot")
    maker.setxattr(top, b"user.of", b"the root")
    maker.setattr(top, AttrChange(mtime_ns=1_000_000_007))
    maker.commit("plain", path=b"top")
    maker.link(file, sub, b"again")
    maker.commit("linked", path=b"top")
    maker.close()
    view = View.bring_back(store)
    yield view
    view.close()


def test_a_clone_has_all_of_the_snapshot_and_numbers_of_its_own(view: View) -> None:
    original = view.lookup(ROOT_INODE, b"plain")
    made = [clone(view, ROOT_INODE, name, b"plain") for name in (b"one", b"two")]
    numbers = set(listing(view, original.inode).values())
    for inode in made:
        attr = view.getattr(inode)
        assert stat.S_IMODE(attr.mode) == 0o751
        assert (attr.uid, attr.gid, attr.nlink) == (original.uid, original.gid, original.nlink)
        assert attr.mtime_ns == original.mtime_ns == 1_000_000_007
        assert attr.ctime_ns > attr.mtime_ns
        assert view.getxattr(inode, b"user.of") == b"the root"
        assert set(listing(view, inode)) == {b"file", b"sub"}
        numbers |= set(listing(view, inode).values())
        sub = view.lookup(inode, b"sub").inode
        assert len(listing(view, sub)) == FILES
        assert read_file(view, sub, b"7") == b"7" * 900
        numbers |= set(listing(view, sub).values())
    assert len(numbers) == 3 * 2 + 2 * FILES


def test_clones_and_their_snapshot_know_nothing_of_each_other(store: Store, view: View) -> None:
    one, two = (clone(view, ROOT_INODE, name, b"plain") for name in (b"one", b"two"))
    handle = view.open(view.lookup(one, b"file").inode, os.O_RDWR)
    view.write(handle, 0, b"IN THE")
    view.release(handle)
    view.unlink(two, b"file")
    view.setattr(view.lookup(one, b"sub").inode, AttrChange(mode=0o700))
    write_file(view, view.lookup(two, b"sub").inode, b"new", b"mine")
    for _ in range(2):
        assert read_file(view, one, b"file") == b"IN THE snapshot"
        assert set(listing(view, two)) == {b"sub"}
        plain = view.lookup(ROOT_INODE, b"plain").inode
        assert read_file(view, plain, b"file") == b"in the snapshot"
        assert stat.S_IMODE(view.lookup(plain, b"sub").mode) == 0o755
        assert stat.S_IMODE(view.lookup(two, b"sub").mode) == 0o755
        assert len(listing(view, view.lookup(plain, b"sub").inode)) == FILES
        assert len(listing(view, view.lookup(two, b"sub").inode)) == FILES + 1
        view.fold()
    view.commit("of-one", path=b"one")
    assert (
        SnapshotCatalog(store).get("of-one").root.count
        == SnapshotCatalog(store).get("plain").root.count
    )


@pytest.mark.parametrize("folded", [False, True])
def test_a_clone_outlives_its_snapshot(store: Store, view: View, folded: bool) -> None:
    inode = clone(view, ROOT_INODE, b"one", b"plain")
    if folded:
        view.fold()
    SnapshotCatalog(store).remove(["plain", "linked"])
    collect(store)
    assert read_file(view, view.lookup(inode, b"sub").inode, b"39") == b"39" * 900


@pytest.mark.usefixtures("view")
def test_a_clone_comes_back_with_its_numbers(store: Store) -> None:
    view = View.bring_back(store, "mine")
    within = view.mkdir(ROOT_INODE, b"within", 0o755, CALLER).inode
    inodes = [clone(view, parent, b"one", b"plain") for parent in (ROOT_INODE, within)]
    before = [(view.getattr(inode), listing(view, inode)) for inode in inodes]
    handover = view.handover()
    fds = {name: os.dup(fd) for name, fd in handover.fds.items()}
    view._opened.release()
    handover = Handover(handover.view, handover.root, handover.owner, fds)
    taken_over = View.take_over(store, handover, "")
    try:
        after = [(taken_over.getattr(inode), listing(taken_over, inode)) for inode in inodes]
        assert after == before
        new = write_file(taken_over, inodes[1], b"new", b"data")
        assert new >> SLOT_BITS == inodes[1] >> SLOT_BITS
        assert new not in before[1][1].values()
    finally:
        taken_over.close()


def test_hard_links_stay_together_in_a_clone(view: View) -> None:
    one, two = (clone(view, ROOT_INODE, name, b"linked") for name in (b"one", b"two"))
    numbers = set()
    for inode in (one, two):
        file, again = (
            view.lookup(inode, b"file"),
            view.lookup(view.lookup(inode, b"sub").inode, b"again"),
        )
        assert file == again
        assert file.nlink == 2
        numbers.add(file.inode)
    assert len(numbers) == 2
    view.unlink(one, b"file")
    assert view.lookup(view.lookup(one, b"sub").inode, b"again").nlink == 1
    assert view.lookup(two, b"file").nlink == 2
    view.fold()
    assert read_file(view, view.lookup(one, b"sub").inode, b"again") == b"in the snapshot"


def test_a_part_of_a_snapshot_can_be_cloned(view: View) -> None:
    inode = clone(view, ROOT_INODE, b"part", b"plain:sub")
    assert len(listing(view, inode)) == FILES
    assert view.getattr(inode).inode == view.lookup(ROOT_INODE, b"part").inode


def test_of_one_snapshots_view_others_can_be_cloned_below(store: Store, view: View) -> None:
    other = View.bring_back(store, "other", snapshot="linked")
    try:
        inode = clone(other, other.mkdir(ROOT_INODE, b"d", 0o755, CALLER).inode, b"c", b"plain")
        assert read_file(other, inode, b"file") == b"in the snapshot"
    finally:
        other.close()


def used(view: View) -> int:
    inode = view.mkdir(ROOT_INODE, b"used", 0o755, CALLER).inode
    write_file(view, inode, b"f", b"x")
    view.unlink(inode, b"f")
    return inode


def removed(view: View) -> int:
    inode = view.mkdir(ROOT_INODE, b"gone", 0o755, CALLER).inode
    view.rmdir(ROOT_INODE, b"gone")
    return inode


def fresh(view: View) -> int:
    return view.mkdir(ROOT_INODE, b"fresh", 0o755, CALLER).inode


def nested(view: View) -> int:
    return view.mkdir(fresh(view), b"nested", 0o755, CALLER).inode


REFUSED: dict[str, tuple[Callable[[View], int], bytes, type[DedupfsError]]] = {
    "a used directory": (used, b"plain", NotEmptyError),
    "a snapshot's directory": (
        lambda view: view.lookup(ROOT_INODE, b"plain").inode,
        b"plain",
        NotEmptyError,
    ),
    "the root": (lambda view: ROOT_INODE, b"plain", NotPermittedError),
    "a removed directory": (removed, b"plain", NotFoundError),
    "a file": (lambda v: write_file(v, ROOT_INODE, b"f", b""), b"plain", NotADirectoryNameError),
    "no snapshot": (fresh, b"missing", NotFoundError),
    "no path": (fresh, b"plain:missing", NotFoundError),
    "a path to a file": (fresh, b"plain:file", NotADirectoryNameError),
    "no name": (fresh, b"a/b", InvalidError),
    "nothing": (fresh, b"", InvalidError),
    "no text": (fresh, b"\xff", InvalidError),
    "hard links below": (nested, b"linked", CrossScopeError),
    "hard links to above": (fresh, b"linked:sub", CrossScopeError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_cloned_is_refused_and_nothing_changes(view: View, what: str) -> None:
    make, source, error = REFUSED[what]
    inode = make(view)
    before = view.getattr(inode)
    with pytest.raises(error):
        view.clone(inode, source, privileged=True)
    assert view.getattr(inode) == before


def test_cloning_is_for_the_owner_and_on_writable_mounts(store: Store, view: View) -> None:
    with pytest.raises(NotPermittedError):
        view.clone(fresh(view), b"plain", privileged=False)
    read_only = View.open_read_only(store)
    try:
        with pytest.raises(ReadOnlyError):
            read_only.clone(read_only.lookup(ROOT_INODE, b"plain").inode, b"plain", privileged=True)
    finally:
        read_only.close()


def test_an_empty_snapshots_directory_is_no_target(store: Store, view: View) -> None:
    view.mkdir(ROOT_INODE, b"nothing", 0o755, CALLER)
    view.commit("empty", path=b"nothing")
    with pytest.raises(NotPermittedError):
        view.clone(view.lookup(ROOT_INODE, b"empty").inode, b"plain", privileged=True)
    inode = clone(view, ROOT_INODE, b"one", b"empty")
    assert listing(view, inode) == {}
    write_file(view, inode, b"f", b"x")
    assert view.getattr(inode).nlink == 2
