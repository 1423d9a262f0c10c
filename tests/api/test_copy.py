"""``View.copy`` makes what ``shutil`` would, reads nothing, and stores nothing twice.

Method for the first: the same random calls on a view and on a directory of the disk, amid which the
view is folded, closed, or left as SIGKILL leaves it.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dedupfs
from tests.api.conftest import BIG
from tests.api.test_fsspec import file_system

CALLS = 150
MTIME_NS = 1_000_000_007


class Disk:
    """What a view's methods are called when it is the disk's, below ``top``."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda path, *more, **named: getattr(os, name)(self.top / path, *more, **named)

    def open(self, path: str, mode: str) -> Any:
        return open(self.top / path, mode)

    def link(self, source: str, path: str) -> None:
        os.link(self.top / source, self.top / path, follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.top / path)

    def rename(self, old: str, new: str) -> None:
        os.rename(self.top / old, self.top / new)

    def rmtree(self, path: str) -> None:
        shutil.rmtree(self.top / path)

    def copy(self, source: str, path: str) -> None:
        old, new = self.top / source, self.top / path
        if new.is_symlink() or new.exists():
            raise FileExistsError(errno.EEXIST, "exists")
        if not old.is_dir():
            shutil.copy2(old, new)
        elif new.is_relative_to(old) or not new.parent.is_dir():  # copytree would make it
            raise OSError(errno.EINVAL, "nowhere to copy it to")
        else:
            shutil.copytree(old, new, symlinks=True)


def random_call(rng: random.Random) -> Callable[[Any], None]:
    """Return something to do to a view or to a directory."""
    some = [f"{above}{name}" for above in ("", "a/", "b/", "a/c/", "a/c/b/") for name in "abcd"]
    name, other = rng.choice(some), rng.choice(some)
    data = rng.randbytes(rng.choice([0, 10, 5000, 60_000]))
    where = rng.randrange(50_000)

    def write(on: Any, mode: str = "wb") -> None:
        with on.open(name, mode) as file:
            if "+" in mode:
                file.seek(where)
            file.write(data)
        on.utime(name, ns=(MTIME_NS, where))

    calls: dict[str, Callable[[Any], None]] = {
        "write": write,
        "append": lambda on: write(on, "ab"),
        "patch": lambda on: write(on, "r+b"),
        "truncate": lambda on: (on.truncate(name, where), on.utime(name, ns=(3, 4)))[0],
        "mkdir": lambda on: on.mkdir(name),
        "remove": lambda on: on.remove(name),
        "rmtree": lambda on: on.rmtree(name),
        "rename": lambda on: on.rename(name, other),
        "link": lambda on: on.link(name, other),
        "symlink": lambda on: on.symlink("x", name),
        "chmod": lambda on: on.chmod(name, 0o600 + where % 0o100),
        "setxattr": lambda on: on.setxattr(name, "user.x", b"%d" % where),
    }
    weighted = [*calls, "write", "mkdir", "link"]
    chosen = rng.choice(["copy", "copy", *weighted])
    made = calls.get(chosen, lambda on: on.copy(name, other))
    made.__qualname__ = f"{chosen} {name} {other}"
    return made


def worked(call: Callable[[Any], None], on: object) -> bool:
    try:
        call(on)
    except OSError:
        return False
    return True


def shown(view: dedupfs.View) -> dict[str, tuple[object, ...]]:
    """Return what is in a view, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for top, directories, files in view.walk():
        for name in (*directories, *files):
            path = os.path.join(top, name)
            status = view.stat(path, follow_symlinks=False)
            content: object = None
            if status.is_symlink:
                content = view.readlink(path)
            elif status.is_file:
                content = view.read_bytes(path), status.mtime_ns, status.nlink
            if not status.is_symlink:
                content = content, [(n, view.getxattr(path, n)) for n in view.listxattr(path)]
            found[path] = stat.S_IFMT(status.mode), stat.S_IMODE(status.mode), content
    return found


def on_disk(top: Path) -> dict[str, tuple[object, ...]]:
    """Return the same of a directory."""
    found: dict[str, tuple[object, ...]] = {}
    for path in top.rglob("*"):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes(), status.st_mtime_ns, status.st_nlink
        if not path.is_symlink():
            content = content, [(n, os.getxattr(path, n)) for n in os.listxattr(path)]
        where = str(path.relative_to(top))
        found[where] = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), content
    return found


def killed(view: dedupfs.View) -> None:
    """Leave a view as SIGKILL does: nothing is folded, its lock is gone, as are its leases."""
    core, view._view = view._core, None
    view._opened.views.discard(view)
    core._opened.release()
    with view._opened.core.transaction() as txn:
        txn.release_pins(view._opened.core.owner)


@pytest.mark.unmeasured
def test_random_calls_and_copies_do_what_they_do_to_a_directory(
    store: dedupfs.Store, tmp_path: Path
) -> None:
    seed = 5 if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    rng = random.Random(seed)
    disk = Disk(tmp_path / "plain")
    disk.top.mkdir()
    with store.view("empty") as view:
        view.mkdir("nothing")
        view.commit("nothing", path="nothing")
    view = store.view("v", snapshot="nothing")
    for number in range(CALLS):
        call = random_call(rng)
        told = f"{seed=} {number=} {call.__qualname__}"
        assert worked(call, view) == worked(call, disk), told
        if rng.random() < 0.1:
            rng.choice([dedupfs.View.fold, dedupfs.View.close, killed])(view)
            store.gc()
            view = view if view.is_open else store.view("v")
        if number % 5 == 4:
            assert shown(view) == on_disk(disk.top), told
    with view:
        assert shown(view) == on_disk(disk.top), f"{seed=}"


def test_a_directory_is_copied_without_a_look_at_what_is_in_it(
    store: dedupfs.Store, tmp_path: Path
) -> None:
    for number in range(600):
        path = tmp_path / "many" / str(number % 30) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    store.import_tree(tmp_path / "many", "many")
    with store.view("v", snapshot="many") as view:
        view.mkdir("work")
        view.rename("1", "work/one")
        view.write_bytes("work/big", BIG)
        view.fold()
        read = store._opened.core.totals()["verified_chunks"], store.stats().stored_bytes
        before, journal_bytes = view._core.totals(), view._core.gauges()["journal_bytes"]
        for number in range(20):
            view.copy("work", f"copy-{number}")
            view.copy("work/big", f"big-{number}")
        after = view._core.totals()
        assert after["tree_reads"] - before["tree_reads"] <= 2
        assert view._core.gauges()["journal_bytes"] - journal_bytes < 40 * 1000
        view.fold()
        assert store._opened.core.totals()["verified_chunks"] - read[0] < 9  # trees; 700 a file
        assert store.stats().stored_bytes - read[1] < 40 * 200
        with view.open("copy-3/big", "r+b") as file:
            file.write(b"mine")
        assert view.read_bytes("copy-4/big") == view.read_bytes("big-5") == BIG
        assert view.read_bytes("copy-3/big") == b"mine" + BIG[4:]
        assert view.ls("copy-19/one") == view.ls("work/one")
        assert view.stat("copy-19").mtime_ns == view.stat("work").mtime_ns


@pytest.mark.parametrize("is_folded", [False, True])
def test_what_is_open_is_copied_as_far_as_it_was_flushed(
    store: dedupfs.Store, is_folded: bool
) -> None:
    with store.view("v", snapshot="one") as view:
        view.mkdir("d")
        with view.open("d/big", "wb", 0) as big, view.open("d/small", "wb", 0) as small:
            big.write(BIG[:1_000_000])
            small.write(b"first")
            if is_folded:  # without the open files, which alone are newer than trees then
                view.fold()
            view.copy("d", "whole")
            view.copy("d/big", "one-file")
            big.write(BIG[1_000_000:])
            small.write(b" second")
            view.copy("d/small", "two")
        assert view.read_bytes("d/big") == BIG
        assert view.read_bytes("whole/big") == view.read_bytes("one-file") == BIG[:1_000_000]
        assert view.read_text("whole/small") == "first"
        assert view.read_text("two") == view.read_text("d/small") == "first second"


def test_links_are_followed_only_to_what_is_copied_itself(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view:
        view.copy("to-a", "of-a")
        view.copy("to-a", "still-a-link", follow_symlinks=False)
        assert view.readlink("still-a-link") == "a"
        assert view.readlink("of-a/link") == view.readlink("a/link")
        assert not view.stat("of-a", follow_symlinks=False).is_symlink
        assert view.stat("hard").nlink == 2
        assert view.stat("of-a/x.txt").nlink == 1
        view.fold()
        view.chmod("hard", 0o741)  # that is a name of a/x.txt
        view.copy("a", "changed-a")
        assert stat.S_IMODE(view.stat("changed-a/x.txt").mode) == 0o741
        for source, path in (("nope", "x"), ("a", "hard"), ("a", "a/b/a"), ("", "x"), ("a", "")):
            with pytest.raises(OSError, match=r"no 'nope'|exists|into itself"):
                view.copy(source, path)


@pytest.mark.parametrize("source", ["one/a/b/big", "one/a/b"])
def test_what_has_no_hard_links_in_it_outlives_its_snapshot_and_a_kill(
    store: dedupfs.Store, source: str
) -> None:
    view = store.view("all")
    view.copy(source, "mine")
    store["one"].remove()
    killed(view)
    store.gc()
    with store.view("all") as view:
        assert view.read_bytes("mine" if source.endswith("big") else "mine/big") == BIG


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_what_was_copied_out_of_a_snapshot_outlives_it(store: dedupfs.Store, ending: str) -> None:
    view = store.view("all")
    view.copy("one", "mine")
    view.mkdir("some")
    view.copy("one/a/b/big", "some/big")
    view.copy("one/hard", "some/hard")
    assert view.ls("one") == view.ls("mine")
    store["one"].remove()
    store.gc()
    assert view.ls() == ["mine", "some"]
    view.close() if ending == "closed" else killed(view)
    store.gc()
    with store.view("all") as view:
        assert view.read_bytes("mine/a/b/big") == view.read_bytes("some/big") == BIG
        assert view.read_text("mine/hard") == view.read_text("some/hard") == "hello\n"
        view.write_text("mine/hard", "other")
        assert view.read_text("mine/a/x.txt") == "hello\n"
        view.rmtree("mine")
        view.commit("some", path="some")
    assert store["some"].read_bytes("big") == BIG


def test_fsspec_copies_inside_a_view_without_reading(store: dedupfs.Store) -> None:
    fs = file_system(store, view="data")
    fs.pipe("d/big", BIG)
    fs.pipe("d/sub/small", b"small")
    fs.pipe("there", b"before")
    fs.copy("d/sub/small", "e/small")  # settles what was written
    read = store._opened.core.totals()["verified_chunks"]
    fs.copy("d", "copied", recursive=True)
    fs.cp_file("d/big", "new/big")
    assert store._opened.core.totals()["verified_chunks"] - read < 9  # trees, not the 700 of one
    fs.cp_file("d/sub/small", "there")
    assert fs.cat("copied/big") == fs.cat("new/big") == BIG
    assert fs.cat("copied/sub/small") == fs.cat("there") == fs.cat("e/small") == b"small"
    fs.close()


def test_fsspec_copies_no_file_onto_itself(store: dedupfs.Store) -> None:
    """To empty the target first would lose it; to do nothing would lose it in ``mv``."""
    fs = file_system(store, view="data")
    fs.pipe("d/file", b"bytes")
    fs._view.symlink("d/file", "link")
    fs._view.link("d/file", "name")
    for target in ("d/file", "link", "name"):
        with pytest.raises(OSError, match="same file"):
            fs.copy("d/file", target)
        with pytest.raises(OSError, match="same file"):
            fs.copy(target, "d/file")
    with pytest.raises(OSError, match="same file"):
        fs.mv("d/file", "link")
    assert fs.cat("d/file") == fs.cat("link") == fs.cat("name") == b"bytes"
    fs.close()
