"""A view of which a directory is damaged: what cannot be had is named, and each way out is one.

Method: one record is damaged behind the store's back, the view's root or a directory in it; then
the commands are run that somebody would try, and those that their messages name.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, StaleError
from dedupfs.format.tree import decode_view_root
from dedupfs.maintenance.check import check
from dedupfs.model import RecordId, RecordKind
from dedupfs.namespace.handover import Handover
from dedupfs.namespace.journal import journal_path
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.namespace.view import View
from dedupfs.namespace.views import find_view, list_views, view_directory
from dedupfs.store import Store
from tests.damage.harness import ROOT, Ended, require_told, run, write_file
from tests.maintenance.samples import (
    SMALL,
    damage,
    flip,
    import_directory,
    make_directory,
    noise,
    read_back,
    rows,
)

OWN = noise("own", 9000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with a snapshot, a view of the catalogue, and one over the snapshot."""
    top = tmp_path / "store"
    make_directory(tmp_path / "source")
    with Store.create(top, **SMALL) as store:
        import_directory(store, tmp_path / "source", "one")
        for name, base in (("all", None), ("over", "one")):
            view = View.bring_back(store, name, snapshot=base)
            write_file(view, b"own", OWN)
            inner = view.mkdir(1, b"made", 0o755, ROOT)
            handle, _attr = view.create(inner.inode, b"inner", 0o644, ROOT)
            view.write(handle, 0, b"inner")
            view.release(handle)
            view.close()
    return top


def root_of(store: Store, view: str) -> tuple[RecordId, RecordId]:
    """Return the ids of a view's root record and of its root's tree."""
    row = find_view(store, view)
    assert row is not None
    root = decode_view_root(store.get(row.root_id, RecordKind.VIEW_ROOT)).root
    tree_id = tree_id_of(root)
    assert tree_id is not None
    return row.root_id, tree_id


def directory_of(store: Store, tree_id: RecordId | None, name: bytes) -> RecordId:
    entry = TreeReader(store).find(tree_id, name)
    assert entry is not None
    found = tree_id_of(entry)
    assert found is not None
    return found


def spoil(store: Store, record_id: RecordId) -> str:
    """Damage a record; return its id as messages have it."""
    (row,) = [row for row in rows(store) if row.record_id == record_id]
    damage(store, row)
    return record_id.hex()


def refused(ended: Ended, *words: str) -> None:
    """Demand one line on standard error that has the words, and the exit code of damage."""
    require_told(ended)
    assert ended.code == 3, str(ended)
    (line,) = ended.err.splitlines()
    for word in words:
        assert word in line, f"no {word!r} in {line}"


def done(ended: Ended) -> str:
    require_told(ended)
    assert ended.code == 0, str(ended)
    return ended.out.decode()


@pytest.mark.allow_log("dead record kept")
@pytest.mark.parametrize(("name", "what"), [("all", "root"), ("all", "tree"), ("over", "tree")])
def test_a_view_whose_root_is_damaged_names_itself_and_a_way_out_that_is_one(
    path: Path, name: str, what: str
) -> None:
    with Store.open(path) as store:
        root_id, tree_id = root_of(store, name)
        bad = spoil(store, root_id if what == "root" else tree_id)
    other = "over" if name == "all" else "all"
    removal = f"dedupfs view rm {path} {name}"
    words = (f"view {name!r}", bad, f"'dedupfs check --repair {path}'", f"'{removal}'")
    refused(run("commit", path, "frozen", "--view", name), *words)
    refused(run("view", "diff", path, name), *words)
    repaired = require_told(run("check", "--repair", path))
    assert repaired.code == 3, str(repaired)
    assert f"(hits view {name}: /)" in repaired.out.decode()
    refused(run("commit", path, "frozen", "--view", name), *words)
    assert "+ " in done(run("view", "diff", path, other))
    done(run(*removal.split()[1:]))
    collected = require_told(run("gc", path))
    assert collected.code == 0, str(collected)
    assert "1 record cannot be read" in collected.out.decode()
    assert "check --repair" in collected.out.decode()
    done(run("check", "--repair", path))
    with Store.open(path) as store:
        assert [row.name for row in list_views(store)] == [other]
        assert read_back(store, "one")
        View.bring_back(store, name).close()
        assert check(store).ok


@pytest.mark.fuse
def test_a_mount_of_such_a_view_says_so_as_well(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        bad = spoil(store, root_of(store, "all")[1])
    (tmp_path / "mount").mkdir()
    ended = run("mount", path, tmp_path / "mount", "--view", "all")
    refused(ended, "view 'all'", bad, "check --repair", f"view rm {path} all")
    with Store.open(path) as store:
        assert [problem.record_id for problem in check(store).problems] == [bad]


@pytest.mark.parametrize("name", ["all", "over"])
def test_of_a_view_with_a_damaged_directory_the_rest_is_usable(path: Path, name: str) -> None:
    with Store.open(path) as store:
        bad = spoil(store, directory_of(store, root_of(store, name)[1], b"made"))
    refused(run("view", "diff", path, name), "made", bad, "check --repair")
    done(run("commit", path, "frozen", "--view", name))
    with Store.open(path) as store:
        view = View.bring_back(store, name)
        found = view.lookup(1, b"own")
        handle = view.open(found.inode, 0)
        plan = view.plan_read(handle, 0, len(OWN))
        assert bytes(plan.run()) == OWN
        view.release(handle)
        with pytest.raises(CorruptError) as raised:
            view.lookup(view.lookup(1, b"made").inode, b"inner")
        assert raised.value.errno == errno.EIO
        view.close()
        (problem,) = check(store).problems
        assert set(problem.uses) == {f"view {name}: /made", "snapshot frozen: /made"}
    refused(run("ls", "--recursive", path, "frozen"), "/made", bad, "check --repair")


@pytest.mark.allow_log("snapshot left out")
@pytest.mark.parametrize("where", [b"", b"sub"], ids=["root", "directory"])
def test_what_a_snapshot_has_too_comes_back_when_that_is_imported_again(
    path: Path, tmp_path: Path, where: bytes
) -> None:
    with Store.open(path) as store:
        tree_id = tree_id_of(SnapshotCatalog(store).get("one").root)
        assert tree_id is not None
        bad = spoil(store, directory_of(store, tree_id, where) if where else tree_id)
        if not where:
            with pytest.raises(CorruptError, match="snapshot 'one' cannot be opened"):
                View.bring_back(store, "new", snapshot="one")
            assert find_view(store, "new") is None
            assert not view_directory(path, "new").exists()
            with pytest.raises(CorruptError, match="snapshot 'one' cannot be opened"):
                View.open_read_only(store, snapshot="one")
        (problem,) = [found for found in check(store).problems if found.record_id == bad]
        assert "import" in problem.advice
        assert "dedupfs check --repair" in problem.advice
    done(run("import", "--reread", path, tmp_path / "source", "again"))
    assert bad in done(run("check", "--repair", path))
    done(run("check", path))
    with Store.open(path) as store:
        assert read_back(store, "one") == read_back(store, "again")
        View.bring_back(store, "new", snapshot="one").close()
        view = View.bring_back(store, "over")
        assert view.lookup(view.lookup(1, b"sub").inode, b"small").size
        view.close()


def test_a_view_whose_journal_begins_with_damage_comes_back_as_of_its_last_fold(
    path: Path,
) -> None:
    with Store.open(path) as store:
        row = find_view(store, "all")
        assert row is not None
    flip(journal_path(view_directory(path, "all"), row.generation), 12)
    words = ("view 'all'", f"views/all/journal.{row.generation:08d}", "check --repair")
    refused(run("view", "diff", path, "all"), *words)
    repaired = require_told(run("check", "--repair", path))
    assert "view all is as of its last fold" in repaired.out.decode()
    assert "own" in done(run("view", "diff", path, "all"))
    done(run("check", path))


@pytest.mark.allow_log("open file cannot be found again")
def test_what_is_open_below_a_damaged_directory_does_not_cost_a_mount_its_next_daemon(
    path: Path,
) -> None:
    with Store.open(path) as store:
        view = View.bring_back(store, "over")
        own = view.open(view.lookup(1, b"own").inode, os.O_RDONLY)
        made = view.lookup(1, b"made").inode
        inner = view.open(view.lookup(made, b"inner").inode, os.O_RDONLY)
        listing = view.opendir(made)
        _root_id, tree_id = root_of(store, "over")
        spoil(store, directory_of(store, tree_id, b"made"))
        handover = view.handover()
        fds = {name: os.dup(fd) for name, fd in handover.fds.items()}
        view._opened.release()
    with Store.open(path) as store:  # another one: the first has seen that record sound
        view = View.take_over(
            store, Handover(handover.view, handover.root, handover.owner, fds), ""
        )
        assert view.plan_read(own, 0, len(OWN)).run() == OWN
        with pytest.raises(StaleError):
            view.plan_read(inner, 0, 5)
        again = view.create(1, b"new", 0o644, ROOT)[0]
        for handle in (own, inner, again):
            view.release(handle)
        view.releasedir(listing)
        view.close()
