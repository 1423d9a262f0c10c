"""`view diff` tells exactly what a view changed, and looks at nothing else.

Method: random operations in a view, over all snapshots or over one. What the view shows before and
after is read through the view itself, file by file; the two pictures say what must be told.
"""

from __future__ import annotations

import os
import random
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedupfs.errors import DedupfsError, NotFoundError
from dedupfs.maintenance.check import check
from dedupfs.model import RecordId, RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from dedupfs.transfer.changes import held_root, view_changes
from dedupfs.transfer.ingest import ingest_tree
from tests.maintenance.samples import SMALL, noise

ROOT = 1
CALLER = Caller(0, 0)
NAMES = [b"a", b"b", b"c", b"sub", b"one", b"two"]

Picture = dict[bytes, tuple[int, bytes]]
"""Path -> type, and the bytes of a file or the target of a link."""


def told(store: Store, name: str) -> list[tuple[str, bytes]]:
    with held_root(store, name) as root:
        return [(found.kind.value, found.path) for found in view_changes(store, root)]


def picture(view: View, directory: int = ROOT, prefix: bytes = b"") -> Picture:
    found: Picture = {}
    handle = view.opendir(directory)
    listed = [(name, attr) for _, name, attr in view.readdir(handle, 0)]
    view.releasedir(handle)
    for name, attr in listed:
        if name in (b".", b".."):
            continue
        path = prefix + name
        data = b""
        if stat.S_ISREG(attr.mode):
            opened = view.open(attr.inode, os.O_RDONLY)
            data = view.plan_read(opened, 0, attr.size).run()
            view.release(opened)
        elif stat.S_ISLNK(attr.mode):
            data = view.readlink(attr.inode)
        found[path] = stat.S_IFMT(attr.mode), data
        if stat.S_ISDIR(attr.mode):
            found.update(picture(view, attr.inode, path + b"/"))
    return found


def import_two(store: Store, directory: Path) -> None:
    for number, name in enumerate(("one", "two")):
        top = directory / name
        (top / "sub" / "c").mkdir(parents=True)
        for path in ("a", "b", "sub/a", "sub/b", "sub/c/a"):
            (top / path).write_bytes(noise((number, path), 3000))
        (top / "large").write_bytes(noise(number, 60_000))
        os.link(top / "sub" / "a", top / "sub" / "linked")
        assert ingest_tree(store, top, name).snapshot is not None


def remove(view: View, parent: int, name: bytes) -> None:
    if not stat.S_ISDIR(view.lookup(parent, name).mode):
        view.unlink(parent, name)
        return
    inode = view.lookup(parent, name).inode
    handle = view.opendir(inode)
    below = [found for _, found, _ in view.readdir(handle, 0) if found not in (b".", b"..")]
    view.releasedir(handle)
    for found in below:
        remove(view, inode, found)
    view.rmdir(parent, name)


def somewhere(view: View, generator: random.Random) -> tuple[int, bytes]:
    """Choose a directory and a name in it, that may be there or not."""
    parent, name = ROOT, generator.choice(NAMES)
    while generator.random() < 0.6:
        try:
            attr = view.lookup(parent, name)
        except NotFoundError:
            break
        if not stat.S_ISDIR(attr.mode):
            break
        parent, name = attr.inode, generator.choice(NAMES)
    return parent, name


def change(view: View, generator: random.Random) -> None:
    """Do something at a random place; what is not possible there is left."""
    parent, name = somewhere(view, generator)
    try:
        match generator.choice(["write", "write", "rewrite", "mkdir", "remove", "move", "symlink"]):
            case "write":
                handle, _ = view.create(parent, name, 0o644, CALLER)
                view.write(handle, 0, generator.randbytes(generator.choice([10, 5000])))
                view.release(handle)
            case "rewrite":
                handle = view.open(view.lookup(parent, name).inode, os.O_RDWR)
                view.write(handle, generator.randrange(2000), b"changed")
                view.release(handle)
            case "mkdir":
                view.mkdir(parent, name, 0o755, CALLER)
            case "remove":
                remove(view, parent, name)
            case "move":
                view.rename(parent, name, parent, generator.choice(NAMES), flags=0)
            case "symlink":
                view.symlink(parent, name, b"nowhere", CALLER)
    except DedupfsError:
        pass


def expected(before: Picture, after: Picture, whole: set[bytes]) -> set[tuple[str, bytes]]:
    """Return what must be told, but for metadata; of removed snapshots their directory alone."""
    found = {("added", path) for path in after.keys() - before.keys()}
    for path in before.keys() - after.keys():
        top = path.partition(b"/")[0]
        if top not in whole or top in after or path == top:
            found.add(("removed", path))
    for path in before.keys() & after.keys():
        if before[path][0] != after[path][0]:
            found.add(("type", path))
        elif before[path] != after[path]:
            found.add(("modified", path))
    return found


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32), base=st.sampled_from([None, "one"]))
def test_a_diff_tells_what_the_view_shows(seed: int, base: str | None) -> None:
    generator = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="dedupfs-") as name,
        Store.create(Path(name, "store"), **SMALL) as store,
    ):
        import_two(store, Path(name))
        view = View.bring_back(store, "work", snapshot=base)
        before = picture(view)
        assert told(store, "work") == []
        for _ in range(generator.randrange(25)):
            change(view, generator)
        view.fold()
        found = told(store, "work")
        after = picture(view)
        view.close()
        assert len(found) == len(set(found))
        whole = {b"one", b"two"} if base is None else set()
        content = {pair for pair in found if pair[0] != "metadata"}
        assert content == expected(before, after, whole)
        report = check(store)
        assert report.ok, report.problems


def test_a_hidden_a_replaced_and_a_cloned_snapshot(store: Store, source: Path) -> None:
    import_two(store, source)
    view = View.bring_back(store, "work")
    remove(view, ROOT, b"two")
    view.clone(view.mkdir(ROOT, b"run", 0o755, CALLER).inode, b"one", privileged=True)
    remove(view, ROOT, b"one")
    view.mkdir(ROOT, b"one", 0o755, CALLER)
    view.fold()
    found = told(store, "work")
    assert ("removed", b"two") in found
    assert ("added", b"run/sub/linked") in found
    assert ("removed", b"one/sub/c/a") in found
    assert not any(path.startswith(b"two/") for _, path in found)
    view.close()


def test_the_cost_follows_the_change(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "file").write_bytes(b"%d" % number)
    ingest_tree(store, source, "wide")
    view = View.bring_back(store, "work")
    inode = view.lookup(view.lookup(ROOT, b"wide").inode, b"d7").inode
    view.unlink(inode, b"file")
    view.fold()
    loaded: list[RecordId] = []
    get = store.get

    def counting(record_id: RecordId, kind: RecordKind) -> bytes:
        loaded.append(record_id)
        return get(record_id, kind)

    monkeypatch.setattr(store, "get", counting)
    assert ("removed", b"wide/d7/file") in told(store, "work")
    assert len(loaded) < 10
    view.close()


def test_a_base_that_is_gone_is_said(store: Store, source: Path) -> None:
    import_two(store, source)
    View.bring_back(store, "work", snapshot="one").close()
    SnapshotCatalog(store).remove(["one"])
    with pytest.raises(NotFoundError, match="'one', which view 'work' was made over, has another"):
        told(store, "work")
    SnapshotCatalog(store).clone("two", "one")
    with pytest.raises(NotFoundError, match="newer than the view"):
        told(store, "work")
    with pytest.raises(NotFoundError, match="no view 'none'"):
        told(store, "none")
