"""A view without a mount behaves like a directory, and like a mount to whoever else wants it.

Method for the first: the same random calls on a view and on a directory of the disk.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import dedupfs
from dedupfs.api.viewfile import ViewFile
from tests.api.conftest import BIG

ROUNDS = 60


def test_random_calls_do_what_they_do_to_a_directory(store: dedupfs.Store, tmp_path: Path) -> None:
    seed = 5 if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    rng = random.Random(seed)
    plain = tmp_path / "plain"
    plain.mkdir()
    with store.scratch() as view:
        view.mkdir("top")
        for _ in range(ROUNDS):
            call = _random_call(rng)
            on_view = outcome(call, Path("top"), view.open, view)
            on_disk = outcome(call, plain, open, Disk)
            assert on_view == on_disk, f"{seed=} {call.__name__}"
            for top, directories, files in os.walk(plain):
                where = os.path.normpath(os.path.join("top", os.path.relpath(top, plain)))
                assert view.ls(where) == sorted([*directories, *files]), f"{seed=}"
        for path in plain.rglob("*"):
            if path.is_file():
                told = os.path.join("top", path.relative_to(plain))
                assert view.read_bytes(told) == path.read_bytes(), f"{seed=}"
        frozen = view.commit("random", path="top")
        frozen.export(tmp_path / "frozen")
    done = subprocess.run(["diff", "-r", plain, tmp_path / "frozen"], check=False)
    assert done.returncode == 0, f"{seed=}"


class Disk:
    """What a view's methods are called when it is the disk's."""

    mkdir, remove, rmtree = staticmethod(os.mkdir), staticmethod(os.unlink), shutil.rmtree
    rename, truncate = staticmethod(os.rename), staticmethod(os.truncate)


Call = Callable[[Path, Any, Any], object]


def _random_call(rng: random.Random) -> Call:
    """Return something to do to a directory, with its open and its other functions."""
    name, other = (rng.choice(["a", "b", "c", "a/d", "b/e", "a/d/f"]) for _ in range(2))
    data = rng.randbytes(rng.choice([0, 10, 5000, 40_000]))
    where = rng.randrange(50_000)

    def write(top: Path, open_: Any, _: Any, mode: str = "wb") -> None:
        with open_(top / name, mode) as file:
            if "+" in mode:
                file.seek(where)
            file.write(data)

    def append(top: Path, open_: Any, on: Any) -> None:
        write(top, open_, on, "ab")

    def patch(top: Path, open_: Any, on: Any) -> None:
        write(top, open_, on, "r+b")

    def cut(top: Path, _: Any, on: Any) -> None:
        on.truncate(top / name, where)

    def rename(top: Path, _: Any, on: Any) -> None:
        on.rename(top / name, top / other)

    def mkdir(top: Path, _: Any, on: Any) -> None:
        on.mkdir(top / name)

    def remove(top: Path, _: Any, on: Any) -> None:
        on.remove(top / name)

    def rmtree(top: Path, _: Any, on: Any) -> None:
        on.rmtree(top / name)

    calls: list[Call] = [write, append, patch, cut, rename, mkdir, remove, rmtree]
    return rng.choice(calls)


def outcome(call: Call, top: Path, open_: object, on: object) -> int:
    """Return the errno of a call, 0 when it raised nothing."""
    try:
        call(top, open_, on)
    except OSError as exc:
        return exc.errno or -1
    return 0


def test_files_are_opened_as_the_built_in_open_does(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view:
        with pytest.raises(FileExistsError):
            view.open("a/x.txt", "xb")
        with pytest.raises(FileNotFoundError):
            view.open("nope", "r+b")
        with view.open("a/x.txt", "r+") as text:
            assert text.read() == "hello\n"
            text.write("more\n")
        with view.open("a/x.txt", "a") as text:
            text.write("last\n")
        assert view.read_text("hard") == "hello\nmore\nlast\n"
        with view.open("a/b/big", "r+b") as file:
            file.seek(1 << 20)
            file.write(b"X" * 10)
            file.seek((1 << 20) - 5)
            assert (
                file.read(20)
                == BIG[(1 << 20) - 5 : 1 << 20] + b"X" * 10 + (BIG[(1 << 20) + 10 : (1 << 20) + 15])
            )
        with view.open("w", "wb", 0) as raw:
            assert raw.write(memoryview(b"12345678").cast("H")) == 8
            raw.truncate(3)
            cast(ViewFile, raw).sync()
            with pytest.raises(OSError, match="not open for reading"):
                raw.read(1)
        assert view.read_bytes("w") == b"123"


def test_a_file_cannot_take_the_place_of_the_directory_it_is_in(store: dedupfs.Store) -> None:
    with store.scratch(snapshot="one") as view:
        with pytest.raises(OSError, match="is in 'a'") as caught:
            view.rename("a/x.txt", "a")
        assert caught.value.errno == errno.ENOTEMPTY  # as rename(2)
        view.rename("a/x.txt", "a/x.txt")
        view.rename("a/x.txt", "a/y.txt")
        assert view.ls("a") == ["b", "link", "y.txt"]


def test_a_removed_file_is_readable_while_it_is_open(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view:
        view.write_bytes("f", BIG)
        with view.open("f") as file, view.open("a/b/big") as old:
            view.remove("f")
            view.rename("a/x.txt", "a/b/big")
            assert not view.exists("f")
            assert file.read() == BIG
            assert old.read() == BIG
        view.fold()


def test_a_view_comes_back_with_all_that_was_done(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view:
        view.symlink("x.txt", "a/to-x")
        view.link("a/x.txt", "second")
        view.chmod("second", 0o600)
        view.utime("second", ns=(10**9 + 1, 10**9))
        view.clone("one:a/b", "cloned")
    with store.view("v") as view:
        assert view.readlink("a/to-x") == "x.txt"
        status = view.stat("hard")
        assert (status.mode & 0o777, status.mtime_ns, status.nlink) == (0o600, 10**9, 3)
        assert view.stat("cloned/big").size == len(BIG)
        assert [entry.path for entry in view.scandir("cloned")] == ["cloned/big"]
    assert [(info.name, info.snapshot, info.pid) for info in store.views()] == [("v", "one", None)]
    with pytest.raises(ValueError, match="made over"):
        store.view("v", snapshot="other")
    store.remove_view("v")
    assert store.views() == []


def test_a_view_over_all_shows_each_snapshot_as_a_directory(store: dedupfs.Store) -> None:
    with store.scratch() as view:
        assert view.ls() == ["one"]
        assert view.read_text("one/to-a/x.txt") == "hello\n"
        view.rmtree("one")
        assert view.ls() == []
        view.mkdir("step-1/model", parents=True)
        view.write_bytes("step-1/model/w", BIG)
        made = view.commit("step-1", path="step-1", tags={"loss": 0.5})
        assert made.tags == {"loss": "0.5"}
    assert list(store) == ["one", "step-1"]
    assert store["one"].exists("a/x.txt")
    assert made.read_bytes("model/w") == BIG


def test_a_view_has_one_owner_who_is_named(store: dedupfs.Store) -> None:
    with store.view("v") as view:
        with pytest.raises(dedupfs.errors.StoreBusyError, match=f"process {os.getpid()}") as caught:
            store.view("v")
        assert OSError in type(caught.value).__mro__
        assert store.views()[0].pid == os.getpid()
        command = [sys.executable, "-m", "dedupfs", "view", "rm", str(store.path), view.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, "in use" in done.stderr) == (6, True)
    with pytest.raises(ValueError, match="closed"):
        view.ls()


@pytest.mark.fuse
def test_a_view_that_is_mounted_is_refused_and_the_other_way_round(
    store: dedupfs.Store, tmp_path: Path
) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    dedupfs_command = [sys.executable, "-m", "dedupfs"]
    mount = [*dedupfs_command, "mount", str(store.path), str(mountpoint), "--view", "v"]
    with store.view("v"):
        done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode != 0
        assert "in use" in done.stderr
    subprocess.run(mount, check=True, timeout=120)
    try:
        with pytest.raises(dedupfs.errors.StoreBusyError, match="mnt"):
            store.view("v")
        (mountpoint / "made").mkdir()
        (mountpoint / "made" / "file").write_bytes(BIG)
        assert store.gc().freed_bytes >= 0
    finally:
        subprocess.run([*dedupfs_command, "umount", str(mountpoint)], check=True, timeout=120)
    with store.view("v") as view:
        assert view.read_bytes("made/file") == BIG
